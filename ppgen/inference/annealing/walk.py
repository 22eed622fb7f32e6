r"""Particles that walk a path of distributions, and the weights that they gather.

A path :math:`f_\beta`, :math:`0 \le \beta \le 1`, of unnormalised densities leads from one whose
normaliser and draws are known to the one in question. Particles start as draws of :math:`f_0`; at each
rung of a ladder :math:`0 = \beta_0 < \dots < \beta_T = 1` they gather
:math:`\log f_{\beta_t}(z) - \log f_{\beta_{t-1}}(z)` and then move by a kernel that leaves
:math:`f_{\beta_t}` invariant. The mean weight is unbiased for :math:`Z_1 / Z_0`, whatever the
ladder and however badly the kernels mix, as long as neither was chosen by looking at these
particles. The same walk backwards from draws of :math:`f_1` has mean weight :math:`Z_0 / Z_1`.

What is here serves annealed importance sampling, its reverse, sequential Monte Carlo (with
resampling) and restricted Boltzmann machines; a method is a :class:`Path` and a call of :func:`anneal`.
Weights are float64, whatever the particles are.

References: Neal 2001 (AIS); Del Moral, Doucet & Jasra 2006 (SMC samplers); Grosse, Ghahramani & Adams
2015 (reverse).
"""

from __future__ import annotations

import abc
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.inference.interrupts import Interrupts
from ppgen.inference.mcmc.kernel import State
from ppgen.ops.weights import effective_sample_size, systematic_resample

# Rungs between looks at progress and interrupts: at most so many, and fewer where they take longer.
_MOST_RUNGS_AT_ONCE = 256
_SECONDS_AT_ONCE = 0.5
# With fewer effective particles than this, or than a quarter, the weights are in a few hands.
_FEW_EFFECTIVE = 10


@dataclass(frozen=True)
class Stretch:
    """What happened on k rungs in a row.

    Attributes:
        state: the particles after the last rung.
        log_ratios: gathered at each rung, shape (k, C), float64.
        slopes: derivative of the log density along the path at each rung arrived at, (k, C), float64.
        accept_prob: mean acceptance probability of each rung's moves, (k,).
    """

    state: State
    log_ratios: Tensor
    slopes: Tensor
    accept_prob: Tensor


class Path(abc.ABC):
    """Unnormalised densities f_beta and kernels that leave each of them invariant.

    The state is a dict of tensors whose first dimension is the particle.
    """

    @abc.abstractmethod
    def log_ratio(self, state: State, before: float, after: float) -> Tensor:
        """Log f_after - log f_before at each particle, nats; shape (C,), float64, ``-inf`` never NaN."""

    @abc.abstractmethod
    def slope(self, state: State, beta: float) -> Tensor:
        """Derivative of log f_beta with respect to beta at each particle; shape (C,), float64."""

    @abc.abstractmethod
    def move(self, state: State, beta: float) -> tuple[State, Tensor]:
        """The particles after a transition that leaves f_beta invariant, and its mean acceptance."""

    def up(self, state: State, betas: Tensor) -> Stretch:
        """Climb from ``betas[0]`` to ``betas[-1]``: at each rung gather, then move."""
        rungs = betas.tolist()
        log_ratios, slopes, accepts = [], [], []
        for before, after in zip(rungs[:-1], rungs[1:], strict=True):
            log_ratios.append(self.log_ratio(state, before, after))
            state, accept = self.move(state, after)
            slopes.append(self.slope(state, after))
            accepts.append(accept)
        return Stretch(state, torch.stack(log_ratios), torch.stack(slopes), torch.stack(accepts))

    def down(self, state: State, betas: Tensor) -> Stretch:
        """Descend from ``betas[0]`` to ``betas[-1]``: at each rung move, then gather."""
        rungs = betas.tolist()
        log_ratios, slopes, accepts = [], [], []
        for before, after in zip(rungs[:-1], rungs[1:], strict=True):
            state, accept = self.move(state, before)
            accepts.append(accept)
            log_ratios.append(self.log_ratio(state, before, after))
            slopes.append(self.slope(state, after))
        return Stretch(state, torch.stack(log_ratios), torch.stack(slopes), torch.stack(accepts))


@dataclass(frozen=True)
class Annealed:
    r"""Particles at the end of a path, in G groups that never meet (data, islands; 1 for plain AIS).

    Attributes:
        state: of all P G particles; particle p of group g is row p G + g.
        log_weights: since the last resampling, shape (P, G), float64.
        log_resampled: log of the mean weights that resampling took up, shape (G,); 0 without it.
        betas: the rungs, first to last; those that were left out after an interrupt are missing.
        slope_means: weighted mean over particles of d log f / d beta at each rung, shape (T + 1, G).
        slope_variances: its weighted variance, same shape.
        ess: effective sample size at each rung, before resampling, (T + 1, G).
        accept_prob: mean acceptance probability at each rung, (T,).
        interrupted: whether rungs were left out.
    """

    state: State
    log_weights: Tensor
    log_resampled: Tensor
    betas: Tensor
    slope_means: Tensor
    slope_variances: Tensor
    ess: Tensor
    accept_prob: Tensor
    interrupted: bool


def anneal(
    path: Path,
    state: State,
    betas: Tensor,
    *,
    num_groups: int = 1,
    resample_below: float = 0.0,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Annealed:
    """Walk particles along a ladder, up if it ascends and down if it descends.

    Args:
        path: the path.
        state: particles that are draws of the first rung's distribution.
        betas: the ladder, shape (T + 1,), float64.
        num_groups: groups G that the particles fall into; see :class:`Annealed`.
        resample_below: a group is resampled after a rung where its effective sample size is below this
            share of its particles; 0 for never (annealed importance sampling).
        generator: of the resampling, on the CPU.
        progress: show a bar of the rungs.

    Returns:
        The particles and their weights. After Ctrl-C the last rung is reached in one leap, without a
        move: the weights hold for it, and are only less even.
    """
    num = len(state["z"]) // num_groups
    rising = bool(betas[-1] >= betas[0])
    log_weights = torch.zeros(num, num_groups, dtype=torch.float64, device=state["z"].device)
    log_resampled = torch.zeros_like(log_weights[0])
    slope = path.slope(state, float(betas[0])).view(1, num, num_groups)
    # A particle that the target forbids has no weight from the first step on.
    known = log_weights.masked_fill(slope[0] == -math.inf, -math.inf)
    moments, sizes = [_moments(known[None], slope)], [effective_sample_size(log_weights)[None]]
    accepts: list[Tensor] = []
    done, count = 0, 1
    with Interrupts() as interrupts, tqdm(total=len(betas) - 1, disable=not progress, unit="rung") as bar:
        while done < len(betas) - 1 and not interrupts.requested:
            part = betas[done : done + 1 + (1 if resample_below > 0 else count)]
            started = time.perf_counter()
            if resample_below > 0:  # between gathering and moving, so that copies part at once
                before, after = part.tolist()
                log_weights = log_weights + path.log_ratio(state, before, after).view(num, num_groups)
                size = effective_sample_size(log_weights)
                poor = (size < resample_below * num) & (size > 0)
                if bool(poor.any()):
                    state, log_weights, gained = resample(state, log_weights, poor, generator)
                    log_resampled = log_resampled + gained
                state, accept = path.move(state, after)
                moments.append(_moments(log_weights[None], path.slope(state, after).view_as(slope)))
                sizes.append(size[None])
                accepts.append(accept[None])
            else:
                stretch = path.up(state, part) if rising else path.down(state, part)
                state = stretch.state
                each = log_weights + stretch.log_ratios.view(-1, num, num_groups).cumsum(0)
                log_weights = each[-1]
                moments.append(_moments(each, stretch.slopes.view_as(each)))
                sizes.append(effective_sample_size(each.transpose(0, 1)))
                accepts.append(stretch.accept_prob)
            if time.perf_counter() - started < _SECONDS_AT_ONCE / 2:
                count = min(2 * count, _MOST_RUNGS_AT_ONCE)
            done += len(part) - 1
            bar.update(len(part) - 1)
    reached = betas[: done + 1]
    if interrupted := done < len(betas) - 1:  # the rest in one leap: a coarser ladder, still unbiased
        start, end = float(betas[done]), float(betas[-1])
        log_weights = log_weights + path.log_ratio(state, start, end).view(num, num_groups)
        moments.append(_moments(log_weights[None], path.slope(state, end).view_as(slope)))
        sizes.append(effective_sample_size(log_weights)[None])
        reached = torch.cat([reached, betas[-1:]])
    means, variances = (torch.cat(each) for each in zip(*moments, strict=True))
    return Annealed(
        state,
        log_weights,
        log_resampled,
        reached,
        means,
        variances,
        torch.cat(sizes),
        torch.cat(accepts) if accepts else betas.new_zeros(0),
        interrupted,
    )


def _moments(log_weights: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance over the particles of (k, P, G) that have a weight; each (k, G)."""
    weights = log_weights.softmax(1).nan_to_num(nan=0.0)
    slopes = torch.where(weights > 0, slopes, 0.0)
    mean = (weights * slopes).sum(1, keepdim=True)
    return mean[:, 0], (weights * (slopes - mean).square()).sum(1)


def resample(
    state: State, log_weights: Tensor, poor: Tensor, generator: torch.Generator | None
) -> tuple[State, Tensor, Tensor]:
    """Resample the groups that are ``poor`` (G,).

    Returns:
        The state, the log weights (0 in these groups), and the log mean weight that each of them had,
        shape (G,), 0 in the others.
    """
    num, groups = log_weights.shape
    points = torch.rand(groups, generator=generator, dtype=torch.float64).to(log_weights.device)
    own = torch.arange(num, device=log_weights.device)[:, None].expand(num, groups)
    # Groups without any weight are left alone, and must not reach the search with NaN.
    safe = torch.where(poor, log_weights, 0.0)
    ancestors = torch.where(poor, systematic_resample(safe, points), own)
    rows = (ancestors * groups + torch.arange(groups, device=own.device)).flatten()
    gained = torch.where(poor, log_weights.logsumexp(0) - math.log(num), 0.0)
    state = {name: value[rows] for name, value in state.items()}
    return state, torch.where(poor, 0.0, log_weights), gained


def uneven_weights(name: str, ess: Tensor, num: int) -> str | None:
    """What to say where ``num`` weights are in too few hands for their error to be trusted, else ``None``.

    Args:
        name: what was asked for.
        ess: effective sample size of each set of weights, any shape.
        num: weights of a set.
    """
    poor = int((ess < min(_FEW_EFFECTIVE, num / 4)).sum())
    if not poor:
        return None
    where = "" if ess.numel() == 1 else f" for {poor} of {ess.numel()} data"
    return (
        f"{name}: the effective sample size falls to {float(ess.min()):.1f} of {num} particles{where}; the "
        "figure is a loose lower bound there and its error not to be trusted: raise num_temperatures, or "
        "start nearer to the target"
    )
