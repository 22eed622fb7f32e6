r"""Chains over orders and ordered partitions as methods of structure discovery.

**Orders.** The law of an order is :math:`S(\prec) = \prod_v \sum_{P \prec v} \beta_v(P)`, sums over the
parent sets within what comes before v; a DAG is drawn given the order. DAGs then have the order-modular
prior, which weights each by the number of its orders (Friedman & Koller 2003).

**Partitions.** Nodes lie in layers by the longest path that leads to them: an ordered partition, in which
every node but those of the first element has a parent in the element just before. Each DAG belongs to
one partition, and the law of a partition is the sum over its DAGs, so that a DAG drawn given the partition
has the uniform prior (Kuipers & Moffa 2017).

**Moves.** One node is relocated to any place by its probability given the others (Gibbs; all places
from one pass over the families); two nodes change places; elements split and merge. Partitions move by way
of orders as well: a graph of the partition is given one of its orders, which relocations of the order
move far, and the acceptance takes back that orders prefer graphs with many of them. Chains at higher
temperatures may run beside each chain and exchange states with it.

Sources: Friedman & Koller 2003 (*Being Bayesian about network structure*); Kuipers & Moffa 2017 (*Partition
MCMC for inference on acyclic digraphs*); Andrieu & Roberts 2009 (pseudo-marginal acceptance); Geyer 1991
(exchange of states).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ppgen.errors import ConfigError
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.sampled.engine import Space
from ppgen.inference.structure.sampled.runner import Settings, run_chains


@dataclass(frozen=True)
class _Chains:
    num_chains: int = 4
    num_samples: int = 1000
    warmup: int = 200
    thin: int = 1
    max_parents: int = 3
    temperatures: Sequence[float] = (1.0,)
    candidates: int | Mapping[str, Sequence[str]] | None = None
    backend: Literal["auto", "native", "torch"] = "auto"
    checkpoint: str | os.PathLike[str] | None = None

    space: ClassVar[Space]
    name: ClassVar[str]

    def __post_init__(self) -> None:
        for name, least in (
            ("num_chains", 1),
            ("num_samples", 1),
            ("warmup", 0),
            ("thin", 1),
            ("max_parents", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}: expected an integer of at least {least}, got {value!r}")
        ladder = list(self.temperatures)
        rising = all(a < b for a, b in zip(ladder, ladder[1:], strict=False))
        if not ladder or ladder[0] != 1.0 or not rising:
            raise ConfigError(f"temperatures: expected rising numbers from 1.0, got {self.temperatures!r}")
        if self.backend not in ("auto", "native", "torch"):
            raise ConfigError(f"backend: expected 'auto', 'native' or 'torch', got {self.backend!r}")
        if isinstance(self.candidates, int) and self.candidates < 1:
            raise ConfigError(f"candidates: expected a positive number of parents, got {self.candidates}")

    def run(self, problem: Problem, *, seed: int | None) -> Learned:
        """Learn."""
        settings = Settings(
            method=self.name,
            space=self.space,
            num_chains=self.num_chains,
            num_samples=self.num_samples,
            warmup=self.warmup,
            thin=self.thin,
            max_parents=self.max_parents,
            temperatures=tuple(float(t) for t in self.temperatures),
            candidates=self.candidates,
            backend=self.backend,
            checkpoint=self.checkpoint,
        )
        return run_chains(problem, settings, seed)


@dataclass(frozen=True)
class OrderMCMC(_Chains):
    """Draws orders, and DAGs given them, under the order-modular prior (Friedman & Koller 2003).

    For the uniform prior over DAGs its draws would need weights of 1 over the number of orders of
    each, which a handful of draws dominates: such a problem is refused, :class:`PartitionMCMC` solves it.

    Attributes:
        num_chains: C, from scattered starts.
        num_samples: draws of each chain.
        warmup: draws before them that are thrown away.
        thin: sweeps between two draws, each as many moves as there are variables.
        max_parents: largest number of parents; constraints may lower it.
        temperatures: of the chains run beside each other, the first 1.0; one more of them costs as much
            as one more chain.
        candidates: parents that are considered: a number, for that many whose single edge scores best, or
            the names for each variable (others are not restricted); ``None`` for all.
        backend: "native" (compiled code), "torch" (the same law by tensor operations), or "auto": native
            where there is a compiler.
        checkpoint: a directory to save the run to, every half minute and when interrupted; a run that
            finds itself there goes on to the same draws.
    """

    space: ClassVar[Space] = "order"
    name: ClassVar[str] = "order_mcmc"

    def run(self, problem: Problem, *, seed: int | None) -> Learned:
        """Learn.

        Raises:
            ConfigError: the prior is uniform over DAGs.
            SamplingError: no graph fits the constraints.
        """
        if problem.prior.kind != "order":
            raise ConfigError(
                "prior: order_mcmc draws under the order-modular prior, and weights for the uniform one are "
                "useless; use method='partition_mcmc', or prior='order'"
            )
        return super().run(problem, seed=seed)


@dataclass(frozen=True)
class PartitionMCMC(_Chains):
    """Draws ordered partitions, and DAGs given them, under the uniform prior (Kuipers & Moffa 2017).

    The options are those of :class:`OrderMCMC`. Chains start from graphs that short chains over orders
    reached from scattered places.
    """

    space: ClassVar[Space] = "partition"
    name: ClassVar[str] = "partition_mcmc"

    def run(self, problem: Problem, *, seed: int | None) -> Learned:
        """Learn.

        Raises:
            ConfigError: the prior is order-modular.
            SamplingError: no graph fits the constraints.
        """
        if problem.prior.kind != "uniform":
            raise ConfigError(
                "prior: partition_mcmc draws under the uniform prior over DAGs; use method='order_mcmc', or "
                "prior='uniform'"
            )
        return super().run(problem, seed=seed)
