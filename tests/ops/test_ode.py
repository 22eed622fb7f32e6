"""The solvers against closed forms: their order, their tolerance, rows that do not know of each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, SamplingError
from ppgen.ops import ode
from ppgen.ops.ode import Field, dormand_prince, runge_kutta

MATRIX = torch.tensor([[-0.3, 2.0], [-1.5, 0.1]], dtype=torch.float64)
START = torch.tensor([[1.0, 0.5], [-2.0, 3.0], [0.1, -0.2]], dtype=torch.float64)


def linear(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    return y @ MATRIX.T


def power(degree: int) -> Field:
    """A slope that depends on time alone: solving is quadrature."""
    return lambda t, y, rows: (degree + 1) * t[:, None] ** degree


def linear_solution(time: float) -> Tensor:
    return START @ torch.linalg.matrix_exp(time * MATRIX).T


def test_runge_kutta_is_of_order_four() -> None:
    errors = [
        float((runge_kutta(linear, START, 0.0, 2.0, num_steps=n) - linear_solution(2.0)).abs().max())
        for n in (20, 40, 80)
    ]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 14 < coarse / fine < 18


@pytest.mark.parametrize(("start", "stop"), [(0.0, 2.0), (0.5, -1.0)])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_dormand_prince_keeps_its_tolerance(start: float, stop: float, tolerance: float) -> None:
    found = dormand_prince(linear, START, start, stop, tolerance=tolerance)
    error = (found - linear_solution(stop - start)).abs().max()
    assert error < 30 * tolerance


def assert_one_step_is_exact_up_to_degree_four() -> None:
    zeros = torch.zeros(1, 1, dtype=torch.float64)
    for degree in range(5):
        slopes: list[Tensor] = []
        for node, weights in zip(ode._NODES, ode._STAGES, strict=True):
            state = zeros + (ode._combine(weights, slopes) if weights else 0)
            slopes.append(power(degree)(torch.tensor([node], dtype=torch.float64), state, torch.arange(1)))
        assert abs(float(state) - 1) < 1e-14
        if degree < 4:  # what the error's weights compare it with is of order four
            assert abs(float(ode._combine(ode._ERROR, slopes))) < 1e-14


def test_the_tableau_meets_its_order_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    for node, weights in zip(ode._NODES, ode._STAGES, strict=True):
        assert math.isclose(sum(weights), node, abs_tol=1e-14)
    assert_one_step_is_exact_up_to_degree_four()
    planted = (*ode._STAGES[-1][:2], 500 / 1113 + 0.01, 125 / 192 - 0.01, *ode._STAGES[-1][4:])
    monkeypatch.setattr(ode, "_STAGES", (*ode._STAGES[:-1], planted))
    with pytest.raises(AssertionError):
        assert_one_step_is_exact_up_to_degree_four()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    def field(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        speed = torch.tensor([1.0, 30.0, 200.0], dtype=torch.float64)[rows]
        return (speed * t).cos()[:, None] * y

    together = dormand_prince(field, START, 0.0, 1.0, tolerance=1e-6)
    for n in range(3):

        def alone(t: Tensor, y: Tensor, rows: Tensor, n: int = n) -> Tensor:
            return field(t, y, rows + n)

        torch.testing.assert_close(
            dormand_prince(alone, START[n : n + 1], 0.0, 1.0, tolerance=1e-6)[0], together[n]
        )
    speed = torch.tensor([1.0, 30.0, 200.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(together, START * (speed.sin() / speed).exp(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_gradients_are_those_of_the_solution(solver: str) -> None:
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y = START.clone().requires_grad_()

    def field(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return rate * y

    end = (
        runge_kutta(field, y, 0.0, 1.5, num_steps=60)
        if solver == "rk4"
        else dormand_prince(field, y, 0.0, 1.5, tolerance=1e-9)
    )
    by_rate, by_start = torch.autograd.grad(end.sum(), (rate, y))
    growth = math.exp(0.7 * 1.5)
    torch.testing.assert_close(by_rate, 1.5 * growth * START.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(by_start, torch.full_like(START, growth), rtol=1e-6, atol=0)


def test_a_row_that_is_not_finite_ends_as_nan_and_harms_no_other() -> None:
    bad = START.clone()
    bad[1, 0] = torch.nan
    end = dormand_prince(linear, bad, 0.0, 1.0, tolerance=1e-8)
    assert bool(end[1].isnan().all())
    torch.testing.assert_close(end[[0, 2]], linear_solution(1.0)[[0, 2]], rtol=1e-6, atol=1e-6)


def test_no_rows_and_no_time_are_no_trouble() -> None:
    assert dormand_prince(linear, START[:0], 0.0, 1.0, tolerance=1e-6).shape == (0, 2)
    torch.testing.assert_close(dormand_prince(linear, START, 1.0, 1.0, tolerance=1e-6), START)


def test_what_cannot_be_solved_is_named() -> None:
    with pytest.raises(SamplingError, match="after 20 steps"):
        dormand_prince(lambda t, y, rows: -1e6 * (y - 1), START, 0.0, 1.0, tolerance=1e-6, max_steps=20)
    with pytest.raises(ConfigError, match="tolerance"):
        dormand_prince(linear, START, 0.0, 1.0, tolerance=0.0)
    with pytest.raises(ConfigError, match="float32"):
        dormand_prince(linear, START.float(), 0.0, 1.0, tolerance=1e-9)
    with pytest.raises(ConfigError, match="num_steps"):
        runge_kutta(linear, START, 0.0, 1.0, num_steps=0)
