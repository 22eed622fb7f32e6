r"""The normaliser of an energy, :math:`Z = \int e^{-E}`, from both sides by annealing.

* :func:`harmonium_log_partition`: restricted Boltzmann machines, with block Gibbs moves, from the machine
  without weights whose visible units have given means (the base rates; Salakhutdinov & Murray 2008); where
  nobody knows the data's means, from the best of several starts that a pilot run tries.
* :func:`log_partition`: any differentiable energy over real vectors, with HMC moves, from a Gaussian.

Annealing from the start gives an estimate that lies below log Z in expectation. The same walk backwards
from draws of the model gives one that lies above, *if* those draws are exact; from the ends of long
chains it is only an estimate, and labelled so.

A mode that no particle has found is missing from the estimate and from its error alike. Where the two sides
differ by more than their errors, the errors are therefore replaced by the difference, with a warning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.distributions.boltzmann import Harmonium
from ppgen.errors import ConfigError, SamplingWarning, ShapeError
from ppgen.inference.annealing.ladders import Ladder, make_ladder
from ppgen.inference.annealing.path_ends import fresh_seed
from ppgen.inference.annealing.per_datum import batched_energy
from ppgen.inference.annealing.plan import Plan, Tempering
from ppgen.inference.annealing.walk import Annealed, Path, anneal, uneven_weights
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.kernel import State
from ppgen.ops.binary import sample_bernoulli, softplus
from ppgen.ops.random import forked_rng
from ppgen.ops.weights import effective_sample_size, log_mean_weight

# Base rates of 0 or 1 would have infinite log-odds.
_LEAST_RATE = 1e-3
# Errors of both sides that leave a gap unexplained; but a gap that is this share of log Z is rounding.
_FAR_APART = 3.0
_ROUNDING = 1e-7
# Pilot runs in search of a start: how many, over how many temperatures at least, and what a gain is (nats).
_MOST_PILOTS = 6
_LEAST_PILOT = 20
_PILOT_GAIN = 0.1


@dataclass(frozen=True)
class PartitionEstimate(Estimate):
    """Log Z by annealing: as an :class:`~ppgen.contract.Estimate` the bound from below.

    Attributes:
        std_error: the jackknife's over particles; where the gap is beyond three errors, the gap.
        upper: the estimate by the walk backwards: ``upper_bound`` in expectation from exact draws of the
            model, ``estimate`` from the ends of long chains; ``None`` where it was not asked for.
        log_weights: of the particles upwards, including the log normaliser of the start, shape (P,), float64;
            their mean is unbiased for Z.
        ess: effective sample size of these weights.
        betas: the ladder, shape (T + 1,).
        interrupted: whether Ctrl-C cut the ladder short; the bounds hold, and are wider.
    """

    upper: Estimate | None = field(kw_only=True)
    log_weights: Tensor = field(kw_only=True)
    ess: Tensor = field(kw_only=True)
    betas: Tensor = field(kw_only=True)
    interrupted: bool = field(kw_only=True)

    @property
    def gap(self) -> Estimate | None:
        """``upper`` minus this: what is left unknown, in nats, with its standard error."""
        if self.upper is None:
            return None
        error = torch.hypot(self.std_error, self.upper.std_error)
        return Estimate(self.upper.value - self.value, Kind.ESTIMATE, error)


def bounds(
    up: Annealed,
    log_start: float,
    inverse: tuple[Tensor, Tensor] | None = None,
    *,
    exact_draws: bool = True,
    interrupted: bool = False,
) -> PartitionEstimate:
    """The two bounds from walks in the two directions.

    Args:
        up: the walk from the start, of one group.
        log_start: log normaliser of the start.
        inverse: log mean weight of the walk back from the target, and its error.
        exact_draws: whether the particles of that walk began as exact draws.
        interrupted: whether that walk was cut short.

    Warns:
        SamplingWarning: weights in few hands, or sides that differ by more than their errors.
    """
    log_weights = up.log_weights[:, 0] + log_start
    value, error = log_mean_weight(log_weights)
    ess, upper = effective_sample_size(log_weights), None
    if inverse is not None:
        other, other_error = log_start - inverse[0], inverse[1]
        gap = (other - value).abs()
        explained = _FAR_APART * torch.hypot(error, other_error) + _ROUNDING * (1 + value.abs())
        if bool(gap > explained):
            error, other_error = torch.maximum(error, gap), torch.maximum(other_error, gap)
            warnings.warn(
                f"log_partition: the estimates from both sides are {float(gap):.3g} nats apart, far "
                "more than their errors, which are replaced by that; raise num_temperatures, or start nearer "
                "to the target",
                SamplingWarning,
                stacklevel=3,
            )
        upper = Estimate(other, Kind.UPPER_BOUND if exact_draws else Kind.ESTIMATE, other_error)
    note = uneven_weights("log_partition", ess, len(log_weights))
    if note:
        warnings.warn(note, SamplingWarning, stacklevel=3)
    return PartitionEstimate(
        value,
        Kind.LOWER_BOUND,
        error,
        upper=upper,
        log_weights=log_weights,
        ess=ess,
        betas=up.betas,
        interrupted=up.interrupted or interrupted,
    )


# -- restricted Boltzmann machines ---------------------------------------------------------------


class HarmoniumPath(Path):
    r"""From independent visible units to a machine, with the hidden units summed out.

    .. math::
       \log f_\beta(v) = (1 - \beta)\, a(v) + \beta\, b(v) + \sum_j \log(1 + e^{\beta (c_j + u^\top W_j)})

    with a and b the visible terms of the start and of the machine. A move is a draw of h given v and one
    of v given h, both at :math:`\beta`; as a kernel on v it is reversible.

    Random numbers are torch's global ones.

    Args:
        machine: the machine.
        base: log-odds of the visible units at the start, or means where they are real; shape (D,).
    """

    def __init__(self, machine: Harmonium, base: Tensor) -> None:
        self.machine, self.base = machine, base

    @property
    def log_start(self) -> float:
        """Log normaliser of the start, in nats; the hidden units count with log 2 each."""
        machine, free = self.machine, self.machine.num_hidden * math.log(2)
        if machine.scale is None:
            return free + float(softplus(self.base.double()).sum())
        volume = 0.5 * math.log(2 * math.pi) * machine.num_visible
        return free + volume + float(machine.scale.double().log().sum())

    def draw(self, num: int) -> Tensor:
        """Draws of v from the start, shape (num, D)."""
        base = self.base.expand(num, -1)
        if self.machine.scale is None:
            return sample_bernoulli(base.sigmoid())
        return base + self.machine.scale * torch.randn_like(base)

    def start(self, v: Tensor) -> State:
        """The state at v (C, D): with the log-odds of the hidden units and the difference b(v) - a(v)."""
        machine = self.machine
        if machine.scale is None:
            difference = v @ (machine.visible_bias - self.base)
        else:
            shift = (self.base - machine.visible_bias) / machine.scale
            difference = shift.square().sum() / 2 - machine.standardised(v) @ shift
        return {"z": v, "logits": machine.hidden_logits(v).double(), "difference": difference.double()}

    def log_ratio(self, state: State, before: float, after: float) -> Tensor:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        logits = state["logits"]
        hidden = (softplus(after * logits) - softplus(before * logits)).sum(1)
        return (after - before) * state["difference"] + hidden

    def slope(self, state: State, beta: float) -> Tensor:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        logits = state["logits"]
        return state["difference"] + (logits * (beta * logits).sigmoid()).sum(1)

    def move(self, state: State, beta: float) -> tuple[State, Tensor]:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        machine = self.machine
        h = sample_bernoulli((beta * state["logits"]).sigmoid()).to(machine.weight)
        drive = (1 - beta) * self.base + beta * machine.visible_logits(h)
        if machine.scale is None:
            v = sample_bernoulli(drive.sigmoid())
        else:
            v = drive + machine.scale * torch.randn_like(drive)
        return self.start(v), torch.ones((), dtype=torch.float64)


@torch.no_grad()
def harmonium_log_partition(
    machine: Harmonium,
    *,
    start_mean: Tensor | None = None,
    search_start: bool | None = None,
    num_chains: int = 256,
    num_temperatures: int = 1000,
    schedule: Ladder | Tensor = "sigmoid",
    reverse: bool = True,
    num_gibbs_steps: int = 1000,
    seed: int | None = None,
    progress: bool = False,
) -> PartitionEstimate:
    """Log Z of a restricted Boltzmann machine by annealed importance sampling, in both directions.

    Args:
        machine: the machine.
        start_mean: means of the visible units at the start, shape (D,): the data's, where they are known;
            those of the machine without weights by default.
        search_start: look for a better start with chains and pilot runs, see :func:`find_start`; by default
            where ``start_mean`` is not given.
        num_chains: particles P of each direction.
        num_temperatures: steps of the ladder.
        schedule: see :func:`~ppgen.inference.annealing.ladders.make_ladder`.
        reverse: walk backwards as well, for the bound from above. It starts from exact draws where one side
            of the machine can be enumerated, and elsewhere from the ends of block Gibbs chains, one a
            particle; nothing then is guaranteed, and the kind is ``estimate``.
        num_gibbs_steps: sweeps of these chains, and of those of the search.
        seed: for the same figure again; torch's global generator is drawn from without it.
        progress: show a bar.

    Raises:
        ConfigError: fewer than 2 chains, or a ladder that is none.
        ShapeError: ``start_mean`` of another shape.

    Warns:
        SamplingWarning: see :func:`bounds`.
    """
    if num_chains < 2:
        raise ConfigError(f"num_chains: a standard error needs 2 chains or more, got {num_chains}")
    bias = machine.visible_bias
    if start_mean is not None and start_mean.shape != bias.shape:
        raise ShapeError(f"start_mean: expected shape {tuple(bias.shape)}, got {tuple(start_mean.shape)}")
    base = bias if start_mean is None else _base(machine, start_mean.to(bias))
    ladder = make_ladder(schedule, num_temperatures)
    with forked_rng(seed, bias.device):
        if search_start if search_start is not None else start_mean is None:
            base = find_start(machine, base, num_chains, (len(ladder) - 1) // 10, num_gibbs_steps)
        path = HarmoniumPath(machine, base)
        up = anneal(path, path.start(path.draw(num_chains)), ladder, progress=progress)
        if not reverse or up.interrupted:
            return bounds(up, path.log_start)
        if machine.enumerable:
            v = machine.sample_visible(machine.sample_exact(num_chains))
        else:
            v, _ = machine.gibbs(machine.sample_hidden(path.draw(num_chains)), num_gibbs_steps)
        down = anneal(path, path.start(v), ladder.flip(0), progress=progress)
    return bounds(
        up,
        path.log_start,
        log_mean_weight(down.log_weights[:, 0]),
        exact_draws=machine.enumerable,
        interrupted=down.interrupted,
    )


def find_start(
    machine: Harmonium, base: Tensor, num_chains: int, num_temperatures: int, num_gibbs_steps: int
) -> Tensor:
    """A start near to the mass of a machine: of several, the one whose pilot run has the greatest bound.

    They are the given one; the means over block Gibbs chains, each counted once, or each state that they
    ended in by its probability, for chains seldom change modes and do not tell which is the heaviest; and
    the weighted means at the end of the best pilot run so far. The walks that count are drawn afresh, and
    a bad start makes their bounds loose and not wrong.

    Args:
        machine: the machine.
        base: as for :class:`HarmoniumPath`.
        num_chains: chains, and particles of a pilot run.
        num_temperatures: of a pilot run.
        num_gibbs_steps: sweeps.

    Returns:
        Another base, shape (D,).
    """
    first = HarmoniumPath(machine, base).draw(num_chains)
    _, h = machine.gibbs(machine.sample_hidden(first), num_gibbs_steps)
    states = h.unique(dim=0)
    by_mass = (-machine.hidden_free_energy(states).double()).softmax(0).to(h)
    ladder = make_ladder("sigmoid", max(num_temperatures, _LEAST_PILOT))
    best, greatest = base, -math.inf
    tries = [
        base,
        _base(machine, machine.visible_mean(h).mean(0)),
        _base(machine, by_mass @ machine.visible_mean(states)),
    ]
    for _ in range(_MOST_PILOTS):
        if not tries:
            break
        path = HarmoniumPath(machine, tries.pop())
        walk = anneal(path, path.start(path.draw(num_chains)), ladder)
        if walk.interrupted:
            raise KeyboardInterrupt
        bound = path.log_start + float(log_mean_weight(walk.log_weights[:, 0])[0])
        if bound > greatest + _PILOT_GAIN:
            best, greatest = path.base, bound
            hidden = walk.state["logits"].sigmoid().to(h)
            weights = walk.log_weights[:, 0].softmax(0).to(h)
            tries.insert(0, _base(machine, weights @ machine.visible_mean(hidden)))
    return best


def _base(machine: Harmonium, mean: Tensor) -> Tensor:
    """Log-odds of binary visible units of these means, or the means themselves of real ones."""
    return mean if machine.scale is not None else mean.clamp(_LEAST_RATE, 1 - _LEAST_RATE).logit()


# -- any energy ------------------------------------------------------------------------------------


def log_partition(
    energy: Callable[[Tensor], Tensor],
    num_dims: int,
    *,
    loc: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    draws: Tensor | None = None,
    exact_draws: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    num_particles: int = 256,
    seed: int | None = None,
    **options: Any,
) -> PartitionEstimate:
    r"""Log of :math:`\int e^{-E(z)} dz` over :math:`R^D`, annealed from a Gaussian with HMC.

    Args:
        energy: E, in nats, of points (C, D), shape (C,); differentiable.
        num_dims: D.
        loc: mean of the Gaussian, a number or (D,).
        scale: its standard deviations; wider than the target rather than narrower.
        draws: draws of the target (M, D), for the bound from above; each starts P / M particles, rounded up.
        exact_draws: whether these are independent and exact; the ends of chains make that bound an
            ``estimate``.
        dtype: of the particles; torch's default otherwise.
        device: of the particles.
        num_particles: P.
        seed: for the same figure again.
        **options: further fields of :class:`~ppgen.inference.annealing.plan.Plan`.

    Raises:
        ConfigError, ShapeError: arguments that make no sense.
    """
    if num_dims < 1:
        raise ConfigError(f"num_dims: expected a positive integer, got {num_dims}")
    like = torch.zeros(num_dims, dtype=dtype or torch.get_default_dtype(), device=device)
    base = torch.distributions.Normal(like + loc, like + scale, validate_args=False)

    def parts(z: Tensor) -> tuple[Tensor, Tensor]:
        start = -base.log_prob(z).sum(-1)
        found = energy(z)
        if found.shape != z.shape[:1]:
            raise ShapeError(
                f"energy: expected one number for each of {len(z)} points, shape ({len(z)},), got a tensor "
                f"of shape {tuple(found.shape)}"
            )
        return start, found - start

    def draw(num: int, seed: int) -> Tensor:
        with forked_rng(seed, like.device):
            return base.sample((num,))

    def single(z: Tensor) -> tuple[Tensor, Tensor]:
        u, g = batched(z[None])
        return u[0], g[0]

    batched = batched_energy(parts)
    plan = Plan(num_particles, seed=fresh_seed(seed), **{"compile": False, **options})
    density = Density(num_dims, 2, single, batched, traceable=False)
    tempering = Tempering(density, draw, plan, device=like.device)
    up = tempering.up()
    if draws is None or up.interrupted:
        return bounds(up, 0.0)
    if draws.ndim != 2 or draws.shape[1] != num_dims:
        raise ShapeError(f"draws: expected shape (M, {num_dims}), got {tuple(draws.shape)}")
    inverse, interrupted = tempering.inverse(draws.to(like))
    return bounds(up, 0.0, inverse, exact_draws=exact_draws, interrupted=interrupted)
