r"""Ordinary differential equations :math:`dy/dt = f(t, y)`, many at once, one a row.

Two solvers: the classical Runge-Kutta method with a fixed number of steps, and the pair of Dormand & Prince
(1980), which chooses its steps so that each one's error stays below a tolerance. In the second every row has
steps of its own, so that its result does not depend on the rows beside it.

Both are made of differentiable operations: gradients are those of the numbers computed (the choice of the
steps is not differentiated), and memory grows with the number of steps.

References:
    Dormand & Prince, *A family of embedded Runge-Kutta formulae*, J. Comput. Appl. Math. 6, 1980.
    Hairer, Norsett & Wanner, *Solving Ordinary Differential Equations I*, section II.4 (first step, control).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.errors import ConfigError, SamplingError

#: f(t, y, rows) gives slopes ``(B, S)`` at times ``(B,)`` and states ``(B, S)`` of the rows numbered
#: ``(B,)``.
Field = Callable[[Tensor, Tensor, Tensor], Tensor]

# The tableau: nodes, weights of earlier slopes at each stage, and the error's weights. The last row of
# stages is the fifth-order solution, whose slope is the first one of the next step.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# A step grows or shrinks by these factors at most; aiming below the tolerance spares rejections.
_SHRINK, _GROW, _SAFETY = 0.2, 5.0, 0.9


def runge_kutta(field: Field, y: Tensor, start: float, stop: float, *, num_steps: int) -> Tensor:
    """The state at time ``stop`` by equal steps of the classical method, of order 4.

    Args:
        field: f; see :data:`Field`.
        y: states ``(N, S)`` at time ``start``.
        start: time to begin at.
        stop: time to end at, on either side of ``start``.
        num_steps: number of steps, of four evaluations of f each.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps: expected 1 or more, got {num_steps}")
    rows = torch.arange(len(y), device=y.device)
    h = (stop - start) / num_steps
    for step in range(num_steps):
        t = y.new_full((len(y),), start + step * h)
        first = field(t, y, rows)
        second = field(t + h / 2, y + h / 2 * first, rows)
        third = field(t + h / 2, y + h / 2 * second, rows)
        fourth = field(t + h, y + h * third, rows)
        y = y + h / 6 * (first + 2 * (second + third) + fourth)
    return y


def dormand_prince(
    field: Field, y: Tensor, start: float, stop: float, *, tolerance: float, max_steps: int = 2000
) -> Tensor:
    r"""The state at time ``stop`` by steps whose error is kept below a tolerance.

    A step is taken where the root mean square of :math:`e_i / (1 + |y_i|)`, with e the difference between
    the solutions of order 5 and 4, is below ``tolerance``. That bounds the error of a step, not that of the
    whole, which is of the same size for fields that do not pull neighbours apart.

    Args:
        field: f; see :data:`Field`.
        y: states ``(N, S)`` at time ``start``; a row that is not finite, or becomes so, ends as NaN.
        start: time to begin at.
        stop: time to end at, on either side of ``start``.
        tolerance: see above.
        max_steps: steps, taken or rejected, after which to give up.

    Raises:
        ConfigError: a tolerance that is not positive, or below what the dtype can hold.
        SamplingError: a row that is not at its end after ``max_steps``.
    """
    least = 10 * torch.finfo(y.dtype).eps
    if not least <= tolerance < 1:
        raise ConfigError(
            f"tolerance: expected a number from {least:.1g} (for {y.dtype}) to 1, got {tolerance}; "
            "for smaller ones use float64"
        )
    direction = 1.0 if stop > start else -1.0
    span = abs(stop - start)
    rows = torch.arange(len(y), device=y.device)
    done = y.new_zeros(len(y))  # time gone by, of each row
    slope = field(y.new_full((len(y),), start), y, rows)
    step = _first_step(y, slope, tolerance).clamp(max=span)
    result = y
    for _ in range(max_steps):
        if len(rows) == 0:
            return result
        h = torch.minimum(step, span - done)
        slopes = [slope]
        state = y
        for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
            state = y + (direction * h)[:, None] * _combine(weights, slopes)
            slopes.append(field(start + direction * (done + node * h), state, rows))
        with torch.no_grad():
            error = _size(h[:, None] * _combine(_ERROR, slopes), y, state) / tolerance
            broken = ~error.isfinite()
            taken = (error <= 1) | broken
            factor = (_SAFETY * error.clamp_min(1e-10) ** -0.2).clamp(_SHRINK, _GROW)
            # The end is met exactly, also where adding up the steps would miss it by rounding.
            last = taken & ((h >= span - done) | broken)
            done = torch.where(taken, done + h, done)
            step = h * torch.where(taken, factor, factor.clamp(max=1.0))
        y = torch.where(taken[:, None], state, y)
        slope = torch.where(taken[:, None], slopes[-1], slope)
        y = torch.where(broken[:, None], torch.nan, y)
        if bool(last.any()):
            result = result.index_copy(0, rows[last], y[last])
            left = ~last
            rows, y, slope, step, done = rows[left], y[left], slope[left], step[left], done[left]
    raise SamplingError(
        f"tolerance: {len(rows)} of {len(result)} trajectories are not at their end after {max_steps} steps, "
        f"the first of them at {float(done.min()) / span:.3g} of the way; the field is too steep for "
        f"{tolerance:g}: raise the tolerance, or use a fixed number of steps"
    )


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [w * s for w, s in zip(weights, slopes, strict=True) if w]
    return torch.stack(terms).sum(0)


def _size(change: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Root mean square of a change relative to one plus the state, a number a row."""
    scale = 1 + torch.maximum(before.abs(), after.abs())
    return (change / scale).square().mean(-1).sqrt()


@torch.no_grad()
def _first_step(y: Tensor, slope: Tensor, tolerance: float) -> Tensor:
    """A step on which the state moves by about ``tolerance`` to the power 1/5, a number a row."""
    speed = _size(slope, y, y)
    step: Tensor = tolerance**0.2 / speed.clamp_min(1e-3)
    return step.nan_to_num(1.0)
