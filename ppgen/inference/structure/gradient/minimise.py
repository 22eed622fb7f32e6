r"""Smooth functions plus weighted absolute values, minimised to stationarity.

OWL-QN (Andrew & Gao 2007): L-BFGS directions from the smooth part, kept within the orthant that the
steepest descent points to, so that coordinates become and stay exactly zero.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: value and gradient of the smooth part; ``None`` outside of its domain
Objective = Callable[[Tensor], tuple[Tensor, Tensor] | None]


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        point: shape (D,).
        violation: largest entry of the steepest descent direction there; 0 at a stationary point.
        iterations: steps taken.
    """

    point: Tensor
    violation: float
    iterations: int


def steepest(point: Tensor, gradient: Tensor, penalty: Tensor) -> Tensor:
    r"""The subgradient of least norm of :math:`f(w) + \sum_i \lambda_i |w_i|`; zero where w is stationary."""
    at_zero = gradient.sign() * (gradient.abs() - penalty).clamp(min=0)
    return torch.where(point == 0, at_zero, gradient + penalty * point.sign())


def _norm(point: Tensor, gradient: Tensor, penalty: Tensor) -> float:
    return float(steepest(point, gradient, penalty).norm())


def minimise(
    objective: Objective,
    start: Tensor,
    penalty: Tensor,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    rounding: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
) -> Minimum:
    r"""Minimise :math:`f(w) + \sum_i \lambda_i |w_i|`.

    Args:
        objective: f, smooth on its domain.
        start: shape (D,), within the domain of f.
        penalty: :math:`\lambda \ge 0`, shape (D,).
        tolerance: end where no entry of the steepest descent direction exceeds it.
        max_iterations: end after so many steps.
        rounding: error of the values of f beyond that of their last digit.
        stop: asked before each step; ends at once where true.

    Returns:
        The last point, which is never worse than the start.
    """
    point = start
    evaluated = objective(point)
    if point.numel() == 0 or evaluated is None:
        return Minimum(point, 0.0 if evaluated is not None else float("inf"), 0)
    smooth, gradient = evaluated
    value = smooth + (penalty * point.abs()).sum()
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=10)
    iterations = 0
    while iterations < max_iterations and not stop():
        descent = -steepest(point, gradient, penalty)
        if float(descent.abs().max()) <= tolerance:
            break
        direction = _quasi_newton(descent, pairs)
        direction = torch.where(direction * descent > 0, direction, 0.0)
        step = 1.0 if pairs else min(1.0, 1.0 / float(descent.abs().sum()))
        orthant = torch.where(point == 0, descent.sign(), point.sign())
        found = None
        while step > 1e-16:
            trial = point + step * direction
            trial = torch.where(trial.sign() == orthant, trial, 0.0)
            evaluated = objective(trial)
            if evaluated is not None:
                new_value = evaluated[0] + (penalty * trial.abs()).sum()
                decrease = float(value - new_value)
                enough = decrease > 1e-4 * abs(float(descent @ (trial - point)))
                # Where values differ by no more than their rounding, gradients still tell better from worse.
                flat = abs(decrease) <= rounding + 1e-14 * abs(float(value))
                if enough or (flat and _norm(trial, evaluated[1], penalty) < float(descent.norm())):
                    found = trial, new_value, evaluated[1]
                    break
            step /= 2
        if found is None:
            if not pairs:
                break  # not even downhill is there a lower value: what is left is rounding
            pairs.clear()
            continue
        trial, value, new_gradient = found
        moved, turned = trial - point, new_gradient - gradient
        if float(moved @ turned) > 1e-12 * float(turned @ turned):
            pairs.append((moved, turned))
        point, gradient = trial, new_gradient
        iterations += 1
    return Minimum(point, float(steepest(point, gradient, penalty).abs().max()), iterations)


def _quasi_newton(descent: Tensor, pairs: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """The L-BFGS direction (two-loop recursion)."""
    direction = descent.clone()
    shares = []
    for moved, turned in reversed(pairs):
        share = (moved @ direction) / (moved @ turned)
        direction -= share * turned
        shares.append(share)
    if pairs:
        moved, turned = pairs[-1]
        direction *= (moved @ turned) / (turned @ turned)
    for (moved, turned), share in zip(pairs, reversed(shares), strict=True):
        direction += (share - (turned @ direction) / (moved @ turned)) * moved
    return direction
