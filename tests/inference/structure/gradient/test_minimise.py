"""The minimiser of smooth functions plus absolute values, by its conditions of optimality."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppgen.inference.structure.gradient.minimise import minimise, steepest


def _lasso(seed: int, dim: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    design = torch.randn(60, dim, generator=generator, dtype=torch.float64)
    design *= torch.logspace(0, 2, dim, dtype=torch.float64)
    target = design[:, :4] @ torch.tensor([1.0, -2.0, 0.5, 0.1], dtype=torch.float64)
    return design, target + torch.randn(60, generator=generator, dtype=torch.float64)


def test_lasso_is_stationary_and_sparse() -> None:
    design, target = _lasso(0)

    def objective(w: Tensor) -> tuple[Tensor, Tensor]:
        residual = design @ w - target
        return residual.square().sum() / 2, design.T @ residual

    penalty = torch.full((30,), 40.0, dtype=torch.float64)
    penalty[0] = 0.0
    found = minimise(objective, torch.zeros(30, dtype=torch.float64), penalty, tolerance=1e-7)
    gradient = objective(found.point)[1]
    # The conditions of Karush, Kuhn and Tucker, which have one solution for a convex function.
    active = found.point != 0
    assert bool(active[0])
    assert 0 < int((~active).sum()) < 30
    slack = gradient + penalty * found.point.sign()
    assert float(slack[active].abs().max()) <= 1e-7
    assert bool((gradient[~active].abs() <= penalty[~active] + 1e-7).all())
    assert found.violation <= 1e-7


def test_one_coordinate_has_the_soft_threshold() -> None:
    for centre, expected in ((3.0, 2.0), (0.5, 0.0), (-3.0, -2.0)):

        def objective(w: Tensor, centre: float = centre) -> tuple[Tensor, Tensor]:
            return (w - centre).square().sum() / 2, w - centre

        found = minimise(objective, torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        assert abs(float(found.point) - expected) <= 1e-6  # curvature 1: no further off than the gradient
        assert expected != 0 or float(found.point) == 0


def test_stays_in_the_domain() -> None:
    def objective(w: Tensor) -> tuple[Tensor, Tensor] | None:
        if bool((w >= 1).any()):
            return None
        return -10 * w.sum() - (1 - w).log().sum(), -10 + 1 / (1 - w)

    found = minimise(objective, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    # 1 / (1 - w) = 10, and the curvature there is 100.
    assert float((found.point - 0.9).abs().max()) <= 1e-8


def test_no_free_coordinate() -> None:
    def objective(w: Tensor) -> tuple[Tensor, Tensor]:
        return w.sum(), torch.ones_like(w)

    found = minimise(objective, torch.zeros(0), torch.zeros(0))
    assert found.violation == 0
    assert found.iterations == 0


def test_steepest_is_the_subgradient_of_least_norm() -> None:
    point = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0])
    gradient = torch.tensor([0.5, 0.5, 0.5, 2.0, -2.0])
    expected = torch.tensor([1.5, -0.5, 0.0, 1.0, -1.0])
    torch.testing.assert_close(steepest(point, gradient, torch.ones(5)), expected)


def test_stops_when_asked() -> None:
    def objective(w: Tensor) -> tuple[Tensor, Tensor]:
        return w.square().sum(), 2 * w

    start = torch.ones(2, dtype=torch.float64)
    found = minimise(objective, start, torch.zeros(2, dtype=torch.float64), stop=lambda: True)
    assert found.iterations == 0
    assert math.isclose(found.violation, 2.0)
