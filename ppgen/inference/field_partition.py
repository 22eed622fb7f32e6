r"""Log Z of pairwise Markov random fields by annealing, from both sides.

The path leads from independent sites with given logits a to the field, :math:`\log f_\beta = (1 - \beta)\, a
- \beta E`; a move is a sweep of Gibbs sampling, and for an attractive field one of clusters before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.distributions.pairwise.clusters import Sampler, is_attractive, move
from ppgen.distributions.pairwise.field import PairwiseField, draw_states
from ppgen.errors import ConfigError, ShapeError
from ppgen.inference.annealing.ladders import Ladder, make_ladder
from ppgen.inference.annealing.walk import Path, anneal
from ppgen.inference.mcmc.kernel import State
from ppgen.inference.partition import PartitionEstimate, bounds
from ppgen.ops.elimination import Plan
from ppgen.ops.random import forked_rng
from ppgen.ops.weights import log_mean_weight


@dataclass(frozen=True)
class PairwisePath(Path):
    """From independent sites to a field.

    Random numbers are torch's global ones.

    Attributes:
        field: the field.
        base: logits of the independent sites, shape ``(S, q)``.
        sampler: moves, see :func:`~ppgen.distributions.pairwise.clusters.move`.
    """

    field: PairwiseField
    base: Tensor
    sampler: Sampler | None = None

    @property
    def log_start(self) -> float:
        """Log normaliser of the start, in nats."""
        return float(self.base.double().logsumexp(-1).sum())

    def draw(self, num: int) -> Tensor:
        """States of the start, int64, ``(num, S)``."""
        return draw_states(self.base.expand(num, *self.base.shape))

    def start(self, codes: Tensor) -> State:
        """The state at codes (C, S): with -E minus the log density of the start."""
        own = self.base.double().expand(*codes.shape, -1).gather(-1, codes[..., None])[..., 0].sum(-1)
        return {"z": codes, "difference": -self.field.energy(codes).double() - own}

    def log_ratio(self, state: State, before: float, after: float) -> Tensor:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        return (after - before) * state["difference"]

    def slope(self, state: State, beta: float) -> Tensor:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        return state["difference"]

    def move(self, state: State, beta: float) -> tuple[State, Tensor]:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        field = self.field.at_temperature(beta, self.base)
        return self.start(move(field, state["z"], 1, self.sampler)), torch.ones((), dtype=torch.float64)


@torch.no_grad()
def pairwise_log_partition(
    field: PairwiseField,
    *,
    plan: Plan | None = None,
    start: Tensor | None = None,
    sampler: Sampler | None = None,
    num_chains: int = 256,
    num_temperatures: int = 1000,
    schedule: Ladder | Tensor = "sigmoid",
    reverse: bool = True,
    num_gibbs_steps: int = 1000,
    seed: int | None = None,
    progress: bool = False,
) -> PartitionEstimate:
    """Log Z of a pairwise field by annealed importance sampling, in both directions.

    Args:
        field: the field.
        plan: how it is summed exactly, where it can be; the draws that walk backwards are then exact, and
            what they give is a bound.
        start: logits of the independent sites at the start, ``(S, q)``; the field without edges by default.
        sampler: moves; by default clusters and sweeps in turn for an attractive field, else sweeps.
        num_chains: particles P of each direction.
        num_temperatures: steps of the ladder.
        schedule: see :func:`~ppgen.inference.annealing.ladders.make_ladder`.
        reverse: walk backwards as well, for the estimate from above; without a plan from the ends of chains,
            one a particle, and then nothing is guaranteed: the kind is ``estimate``.
        num_gibbs_steps: moves of these chains.
        seed: for the same figure again; torch's global generator is drawn from without it.
        progress: show a bar.

    Raises:
        ConfigError: fewer than 2 chains, a ladder or a sampler that is none.
        ShapeError: ``start`` of another shape.
        CapabilityError: clusters for a field that has none.

    Warns:
        SamplingWarning: see :func:`~ppgen.inference.partition.bounds`.
    """
    if num_chains < 2:
        raise ConfigError(f"num_chains: a standard error needs 2 chains or more, got {num_chains}")
    base = field.unary if start is None else start.to(field.unary)
    if base.shape != field.unary.shape:
        raise ShapeError(f"start: expected shape {tuple(field.unary.shape)}, got {tuple(base.shape)}")
    if sampler is None and not is_attractive(field):
        sampler = "gibbs"  # found once, and not at every rung
    path, ladder = PairwisePath(field, base, sampler), make_ladder(schedule, num_temperatures)
    with forked_rng(seed, base.device):
        up = anneal(path, path.start(path.draw(num_chains)), ladder, progress=progress)
        if not reverse or up.interrupted:
            return bounds(up, path.log_start)
        if plan is not None:
            codes = field.sample_exact(num_chains, plan.order, plan.entries)
        else:
            codes = move(field, path.draw(num_chains), num_gibbs_steps, sampler)
        down = anneal(path, path.start(codes), ladder.flip(0), progress=progress)
    return bounds(
        up,
        path.log_start,
        log_mean_weight(down.log_weights[:, 0]),
        exact_draws=plan is not None,
        interrupted=down.interrupted,
    )
