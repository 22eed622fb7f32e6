r"""Ladders of inverse temperatures: given by a rule, placed like another one, or found rung by rung.

References: Salakhutdinov & Murray 2008; Grosse, Ghahramani & Adams 2015; Zhou, Johansen & Aston 2016
(conditional effective sample size).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.inference.annealing.walk import Path
from ppgen.inference.mcmc.kernel import State
from ppgen.ops.weights import conditional_ess

Ladder = Literal["linear", "sigmoid", "salakhutdinov-murray"]

_BISECTIONS = 60


def make_ladder(schedule: Ladder | Tensor, num_temperatures: int, *, steepness: float = 4.0) -> Tensor:
    r"""Rungs from 0 to 1 with ``num_temperatures`` steps, shape (T + 1,), float64.

    * ``"linear"``: evenly spaced.
    * ``"sigmoid"``: :math:`\sigma(a (2 t / T - 1))` moved and scaled to [0, 1], dense at both ends; a is
      ``steepness`` (Grosse, Ghahramani & Adams 2015).
    * ``"salakhutdinov-murray"``: linear in three parts, of 1/29, 4/29 and 24/29 of the steps, up to .5, .9
      and 1; theirs had 500, 4,000 and 10,000 distributions.
    * a tensor: taken as it is; ``num_temperatures`` is not looked at.

    Raises:
        ConfigError: no such schedule, fewer than one step, or a tensor that does not rise from 0 to 1.
    """
    if isinstance(schedule, Tensor):
        given = schedule.detach().double().cpu().flatten()
        if len(given) < 2 or given[0] != 0 or given[-1] != 1 or not bool((given.diff() > 0).all()):
            raise ConfigError(
                "schedule: expected rising inverse temperatures from 0 to 1, got a tensor of "
                f"{len(given)} from {given[:1].tolist()} to {given[-1:].tolist()}"
            )
        return given
    if num_temperatures < 1:
        raise ConfigError(f"num_temperatures: expected a positive integer, got {num_temperatures}")
    steps = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)
    if schedule == "linear":
        return steps
    if schedule == "sigmoid":
        raw = torch.sigmoid(steepness * (2 * steps - 1))
        ladder = (raw - raw[0]) / (raw[-1] - raw[0])
    elif schedule == "salakhutdinov-murray":
        knots = torch.tensor([0.0, 500, 4500, 14500], dtype=torch.float64) / 14500
        ladder = interpolate(steps, knots, torch.tensor([0.0, 0.5, 0.9, 1.0], dtype=torch.float64))
    else:
        raise ConfigError(
            f"schedule: expected 'linear', 'sigmoid', 'salakhutdinov-murray' or a tensor, got {schedule!r}"
        )
    ladder[0], ladder[-1] = 0.0, 1.0
    return ladder


def interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear values (K, ...) over ascending ``knots`` (K,) at x (N,); (N, ...)."""
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    width = (knots[right] - knots[right - 1]).clamp_min(torch.finfo(knots.dtype).tiny)
    share = ((x - knots[right - 1]) / width).clamp(0, 1)
    share = share.view(-1, *[1] * (values.ndim - 1))
    return values[right - 1] * (1 - share) + values[right] * share


def refine_ladder(ladder: Tensor, *, found_at: float, cess: float | None, num: int | None) -> Tensor:
    """A ladder placed like ``ladder`` with another number of rungs.

    Where each step of ``ladder`` has conditional effective sample size ``found_at``, with an incremental
    log weight of variance s² for small steps, CESS is about 1 / (1 + s²) and s is in proportion to the
    step; so the number of rungs that a larger ``cess`` needs is known.

    Args:
        ladder: shape (T + 1,).
        found_at: the share that its steps were chosen for.
        cess: the share that steps of the new ladder shall have; not used where ``num`` is given.
        num: number of steps of the new ladder.
    """
    if num is None:
        ratio = math.sqrt((1 / found_at - 1) / (1 / (cess or found_at) - 1))
        num = max(1, math.ceil((len(ladder) - 1) * ratio))
    places = torch.arange(len(ladder), dtype=torch.float64) / (len(ladder) - 1)
    new = interpolate(torch.linspace(0, 1, num + 1, dtype=torch.float64), places, ladder)
    new[0], new[-1] = 0.0, 1.0
    return new


def next_rung(path: Path, state: State, log_weights: Tensor, beta: float, cess: float) -> float:
    """The largest inverse temperature whose conditional effective sample size is ``cess``, by bisection.

    Particles whose weight is zero however small the step (a likelihood of zero) are left out of account.
    Where there are several groups, their mean counts.

    Args:
        path: the path.
        state: particles at ``beta``.
        log_weights: shape (P, G).
        beta: where they are.
        cess: share in (0, 1).

    Raises:
        DataError: no particle has a density greater than zero beyond ``beta``.
    """

    def share(after: float) -> float:
        ratios = path.log_ratio(state, beta, after).view_as(log_weights)
        alive = ratios > -math.inf
        weights = torch.where(alive, log_weights, -math.inf)
        usable = (weights > -math.inf).any(0)
        if not bool(usable.any()):
            raise DataError(
                f"model: none of {len(log_weights)} particles has a positive density beyond beta = "
                f"{beta:.3g}; use more particles, a guide nearer to the posterior, or check the data's "
                "support"
            )
        return float(conditional_ess(weights, torch.where(alive, ratios, 0.0))[usable].mean())

    if share(1.0) >= cess:
        return 1.0
    low, high = beta, 1.0
    for _ in range(_BISECTIONS):
        # Steps from zero span many orders of magnitude: halve the logarithm while it is far off.
        middle = math.sqrt(low * high) if low > 0 and high > 4 * low else (low + high) / 2
        if beta == 0 and low == 0:
            middle = high / 16
        low, high = (middle, high) if share(middle) >= cess else (low, middle)
        if high - low <= 1e-3 * (high - beta):
            break
    return low if low > beta else high
