"""Smooth functions of weights: zero exactly on DAGs, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppgen.inference.structure.gradient.acyclicity import closed_walks, log_determinant, trace_exponential
from ppgen.ops.dags import is_acyclic

# Every directed graph of 3 nodes without self-loops.
_PAIRS = [(i, j) for i in range(3) for j in range(3) if i != j]
_GRAPHS = torch.zeros(64, 3, 3, dtype=torch.bool)
for _place, (_i, _j) in enumerate(_PAIRS):
    _GRAPHS[:, _i, _j] = (torch.arange(64) >> _place & 1) > 0


def _log_determinant(weights: Tensor) -> tuple[Tensor, Tensor]:
    found = log_determinant(weights, 1.0)
    assert found is not None
    return found


_FUNCTIONS = {
    "walks": closed_walks,
    "exponential": lambda m: trace_exponential(m)[0],
    "determinant": lambda m: _log_determinant(m)[0],
}


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_zero_exactly_where_there_is_no_cycle(name: str) -> None:
    h = torch.stack([_FUNCTIONS[name](0.3 * graph.double()) for graph in _GRAPHS])
    acyclic = is_acyclic(_GRAPHS)
    assert int(acyclic.sum()) == 25
    # A cycle of 3 edges of .3 has weight .027 a walk; all three functions weigh it by more than 1/10.
    assert bool((h[~acyclic] > 1e-3).all())
    assert float(h[acyclic].abs().max()) < 1e-14


@pytest.mark.parametrize(
    "function", [trace_exponential, _log_determinant], ids=["exponential", "determinant"]
)
def test_gradients_are_those_of_autograd(function: object) -> None:
    assert callable(function)
    weights = 0.15 * torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights.requires_grad_()
    value, gradient = function(weights)
    (expected,) = torch.autograd.grad(value, weights)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_values_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-6, 0.1, 1.0, 5.0):
        weights = scale * torch.rand(6, 6, generator=generator, dtype=torch.float64)
        value, gradient = trace_exponential(weights)
        expected = torch.linalg.matrix_exp(weights)
        torch.testing.assert_close(gradient, expected.T, rtol=1e-11, atol=0)
        if scale >= 0.1:
            torch.testing.assert_close(value, expected.trace() - 6, rtol=1e-11, atol=0)


def test_small_values_keep_their_digits() -> None:
    weights = torch.zeros(4, 4, dtype=torch.float64)
    weights[0, 1], weights[1, 0] = 1.0, 1e-13
    # tr e^M - n of a 2-cycle with product p is 2 (cosh sqrt(p) - 1) = p (1 + p/12 + ...).
    torch.testing.assert_close(float(trace_exponential(weights)[0]), 1e-13, rtol=1e-12, atol=0)


def test_outside_of_the_domain() -> None:
    weights = torch.zeros(3, 3, dtype=torch.float64)
    weights[0, 1] = weights[1, 0] = 1.01  # spectral radius 1.01
    assert log_determinant(weights, 1.0) is None
    assert log_determinant(weights, 1.02) is not None
    weights[0, 1] = weights[1, 0] = 2.0
    weights[2, 2] = 2.0  # two negative eigenvalues of I - M: its determinant is positive
    assert log_determinant(weights, 1.0) is None


def test_infinite_where_the_exponential_overflows() -> None:
    assert float(trace_exponential(torch.full((3, 3), 1e3, dtype=torch.float64))[0]) == math.inf
