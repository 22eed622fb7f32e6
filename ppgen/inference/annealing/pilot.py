r"""A pilot run along a tempered path: it finds the rungs, the step sizes and the scales of the moves.

It has particles of its own, and what it finds is fixed before the particles that count are drawn:
adaptation to the particles themselves would make their weights biased.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.annealing.ladders import next_rung
from ppgen.inference.annealing.tempering import Scales, TemperedPath
from ppgen.inference.annealing.walk import resample
from ppgen.inference.mcmc.executor import Executor
from ppgen.ops.weights import effective_sample_size

#: Least conditional effective sample size of a step of the pilot run.
PILOT_CESS = 0.8
_PILOT_MOVES = 3
# Where a rung accepts far less than it should, the step size is still off: move more often there.
_MOST_PILOT_MOVES = 30
_FIRST_MOVES = 20
_GAIN = 1.0
_MOST_RUNGS = 5000
# Longest trajectory, in standard deviations: a Gaussian comes back to where it was after 2 pi, and to its
# mirror image after pi; and a step that is only just stable accepts at one rung and nothing at the next.
_LONGEST = 2.0


def pilot(
    executor: Executor,
    z: Tensor,
    *,
    num_groups: int = 1,
    num_steps: int = 5,
    step_size: float | None = None,
    target_accept: float = 0.65,
    dense: bool = False,
    generator: torch.Generator | None = None,
) -> Scales:
    r"""Find rungs, step sizes and scales along a path by adaptive sequential Monte Carlo.

    Each rung is chosen by conditional effective sample size; the scale there is the standard deviation
    (or, ``dense``, a factor of the covariance) of the particles; the step size follows
    :math:`\log \epsilon \leftarrow \log \epsilon + (a - a^*)` after every transition, with a the mean
    acceptance probability, but trajectories stay within 2 standard deviations.

    Args:
        executor: runs the kernel for these particles; not used again.
        z: draws of the path's start, shape (P G, D); particle p of group g is row p G + g.
        num_groups: groups whose particles have densities of their own; scales are pooled over them.
        num_steps: leapfrog steps of a transition.
        step_size: fixed step size; adapted by default.
        target_accept: acceptance probability that is aimed at.
        dense: scale by the covariance's factor.
        generator: of the resampling, on the CPU.

    Returns:
        The scales, on the device of z, float64.

    Raises:
        ConfigError: the ladder does not end, for the density is too peaked for its start.
        DataError: no particle has a positive density.
    """
    log_step = torch.tensor(0.0 if step_size is None else math.log(step_size), dtype=torch.float64)
    longest = math.log(_LONGEST / num_steps)
    if step_size is None:
        log_step = (log_step - 0.25 * math.log(z.shape[1])).clamp(max=longest)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=z.device)
    path = TemperedPath(executor, Scales(ends, torch.ones_like(z[:2]), ends), num_steps=num_steps)
    state = path.start(z)
    weights = torch.zeros(len(z) // num_groups, num_groups, dtype=torch.float64, device=z.device)
    beta = 0.0
    betas: list[float] = []
    scales: list[Tensor] = []
    accepts: list[float] = []
    while True:
        factor = _spread(state["z"], weights, dense)
        size = effective_sample_size(weights)
        poor = (size < len(weights) / 2) & (size > 0)
        if bool(poor.any()):
            state, weights, _ = resample(state, weights, poor, generator)
        least, gain = (_FIRST_MOVES, 2 * _GAIN) if not betas else (_PILOT_MOVES, _GAIN)
        recent = 0.0
        for count in range(1, _MOST_PILOT_MOVES + 1):
            scale = log_step.exp().to(factor) * factor
            path.scales = replace(path.scales, scale=torch.stack([scale, scale]))
            state, accept = path.move(state, beta)
            recent = float(accept)
            if step_size is None:
                log_step = (log_step + gain * (recent - target_accept)).clamp(max=longest)
            if count >= least and (step_size is not None or recent > target_accept - 0.2):
                break
        betas.append(beta)
        scales.append(scale)
        accepts.append(recent)
        if beta == 1:
            break
        if len(betas) > _MOST_RUNGS:
            raise ConfigError(
                f"num_temperatures: the pilot run stands at beta = {beta:.3g} after {_MOST_RUNGS} rungs; the "
                "posterior is too far from the start: give a guide that is nearer, or a schedule"
            )
        after = next_rung(path, state, weights, beta, PILOT_CESS)
        weights = weights + path.log_ratio(state, beta, after).view_as(weights)
        beta = after
    return Scales(
        torch.tensor(betas, dtype=torch.float64, device=z.device),
        torch.stack(scales),
        torch.tensor(accepts, dtype=torch.float64, device=z.device),
    )


def _spread(z: Tensor, log_weights: Tensor, dense: bool) -> Tensor:
    """Standard deviations (D,), or a factor of the covariance (D, D), of z within its groups; float64."""
    points = z.double().view(*log_weights.shape, -1)
    weights = log_weights.softmax(0).nan_to_num(nan=1.0 / len(log_weights))[..., None]
    centred = weights.sqrt() * (points - (weights * points).sum(0))
    # Weighted deviations from a weighted mean are too small by the share of the largest weights.
    centred = centred / (1 - weights.square().sum(0)).clamp_min(1e-3).sqrt()
    centred = centred.flatten(0, 1) / math.sqrt(log_weights.shape[1])
    variances = centred.square().sum(0).clamp_min(1e-30)
    if not dense:
        return variances.sqrt()
    num = float(effective_sample_size(log_weights).sum())
    shrunk = (centred.T @ centred) * (num / (num + len(variances)))
    shrunk = shrunk - shrunk.diag().diag() + variances.diag()
    return torch.linalg.cholesky(shrunk)
