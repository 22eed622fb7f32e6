"""From a matrix of weights to one DAG, and what to doubt of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataWarning, SamplingWarning
from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.inference.structure.gradient.checks import check_table, spread
from ppgen.inference.structure.gradient.least_squares import LeastSquares
from ppgen.inference.structure.gradient.moments import free_variances, moments
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.prior import compile_prior
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.warned import warn
from ppgen.ops.dags import closure, is_acyclic

#: shares of variable pairs above which the order of the variances is said to have made the graph
_SORTABLE = 0.9


@dataclass(frozen=True)
class Thresholded:
    """A DAG made of weights.

    Attributes:
        adjacency: shape (n, n), bool.
        threshold: the weight that edges must reach so that there is no cycle; at least the one asked for.
    """

    adjacency: Tensor
    threshold: float


def threshold_to_dag(
    strength: Tensor, threshold: float, allowed: Tensor, required: Tensor, max_parents: int
) -> Thresholded:
    """Edges whose strength reaches a threshold, which is raised until there is no cycle.

    Of more than ``max_parents`` parents the strongest stay. Required edges stay whatever their strength;
    they make no cycle, so that in the end there is none.

    Args:
        strength: shape (n, n); larger is surer.
        threshold: the least strength of an edge.
        allowed: edges that may be there, shape (n, n), bool.
        required: edges that must be there, acyclic, shape (n, n), bool.
        max_parents: the largest number of parents.
    """
    rank = torch.where(required, math.inf, torch.where(allowed, strength, -math.inf))
    if max_parents < len(rank):
        least = rank.sort(dim=0, descending=True).values[max_parents]
        rank = torch.where(rank > least, rank, -math.inf)
    steps = rank[(rank >= threshold) & rank.isfinite()].unique()
    graphs = [(rank >= threshold) & (rank > 0), *(rank > step for step in steps)]
    low, high = 0, len(steps)  # above the strength of all there are only required edges
    while low < high:  # fewer edges never make a cycle
        middle = (low + high) // 2
        if bool(is_acyclic(graphs[middle])):
            high = middle
        else:
            low = middle + 1
    return Thresholded(graphs[low], threshold if low == 0 else float(steps[low - 1]))


def varsortability(adjacency: Tensor, variances: Tensor) -> tuple[float, int]:
    """The share of pairs joined by a directed path in which the variance grows along it; ties count half.

    Reisach, Seiler & Weichwald 2021, with each pair counted once instead of once for each length of path.

    Args:
        adjacency: a DAG, shape (n, n), bool.
        variances: of the variables, shape (n,).

    Returns:
        The share, NaN where there is no path, and the number of pairs.
    """
    start, end = closure(adjacency).nonzero(as_tuple=True)
    if not len(start):
        return math.nan, 0
    before, after = variances[start], variances[end]
    grows = (before < after).double() + (before == after).double() / 2
    return float(grows.mean()), len(start)


@dataclass(frozen=True)
class Optimum:
    """Where the search for weights ended.

    Attributes:
        weights: W, shape (n, n).
        acyclicity: h(W).
        multiplier: of h in the Lagrangian, for which W is stationary.
        violation: the largest entry of the gradient of the Lagrangian (its least subgradient).
        complete: whether it ended by itself.
    """

    weights: Tensor
    acyclicity: float
    multiplier: float
    violation: float
    complete: bool


@dataclass(frozen=True)
class Setting:
    """A problem made ready for a linear point estimate.

    Attributes:
        squares: the loss.
        known: which edges are allowed and required.
        scale: what each column is divided by, shape (n,).
    """

    squares: LeastSquares
    known: FamilyPrior
    scale: Tensor


def prepare(problem: Problem, method: str, penalty: float, standardise: bool) -> Setting:
    """Check a problem and take its moments.

    Raises:
        ConfigError: a table that is not continuous, interventions that are not perfect, a prior (which
            point estimates have no use for), or constraints that contradict each other.
        DataError: fewer than two rows; a constant column that is to be standardised.
    """
    check_table(problem.table, method)
    prior = problem.prior
    if prior.kind != "uniform" or prior.fan_in is not None or prior.edges is not None:
        raise ConfigError(
            f"prior: {method} is a penalised point estimate and has none; leave prior='uniform', and set "
            "penalty, or edges through constraints"
        )
    table = problem.table
    known = compile_prior(prior, problem.constraints, table.names)
    values = table.values.double()
    scale = spread(table) if standardise else torch.ones_like(values[0])
    squares = LeastSquares(moments(values / scale, table.clamped), known, penalty)
    return Setting(squares, known, scale)


class PointMethod(Protocol):
    """A method that finds one matrix of weights: its options and its optimiser."""

    @property
    def penalty(self) -> float:
        """Of the absolute weights."""

    @property
    def threshold(self) -> float:
        """The least absolute weight of an edge."""

    @property
    def standardise(self) -> bool:
        """Whether columns are divided by their standard deviations first."""

    def optimise(self, squares: LeastSquares, *, progress: bool = False) -> Optimum:
        """The weights before any threshold."""


def estimate(problem: Problem, method: PointMethod, name: str, tolerance: float = math.inf) -> Learned:
    """The DAG of the weights that a method finds, with warnings that are also issued.

    Args:
        problem: as it was given.
        method: how weights are found.
        name: of the method, in sentences.
        tolerance: the value of the acyclicity function above which a complete search is doubted.

    Raises:
        ConfigError, DataError: as :func:`prepare`.
    """
    start = time.perf_counter()
    setting = prepare(problem, name, method.penalty, method.standardise)
    optimum = method.optimise(setting.squares, progress=problem.progress)
    weights, threshold = optimum.weights, method.threshold
    doubts = []
    if not optimum.complete:
        doubts.append(f"{name} was interrupted: the weights are those of a search that had not ended")
    elif optimum.acyclicity > tolerance:
        doubts.append(f"{name} ended with h = {optimum.acyclicity:.2g}, above {tolerance:g}")
    known, device = setting.known, weights.device
    allowed, required = known.allowed_edges.to(device), known.required_edges.to(device)
    found = threshold_to_dag(weights.abs(), threshold, allowed, required, known.max_parents)
    sortable, pairs = varsortability(
        found.adjacency, free_variances(problem.table.values / setting.scale, problem.table.clamped)
    )
    if found.threshold > threshold:
        doubts.append(
            f"{name} left a cycle at a threshold of {threshold:g}; it was raised to {found.threshold:.3g}"
        )
    for doubt in doubts:
        warn(doubt, SamplingWarning)
    if pairs >= 3 and sortable >= _SORTABLE:
        doubts.append(
            f"{name} found causes with smaller variances than their effects in {sortable:.0%} of {pairs} "
            "pairs: the scale of the columns may have made the order; compare with standardise=True"
        )
        warn(doubts[-1], DataWarning)
    doubts.append(
        f"{name} gives one graph and no uncertainty: probabilities are 0 and 1; a bootstrap or a "
        "posterior says how sure an edge is"
    )
    return Learned(
        source=SampledSource(found.adjacency[None]),
        warnings=tuple(doubts),
        attributes={
            "acyclicity": optimum.acyclicity,
            "stationarity": optimum.violation,
            "interrupted": not optimum.complete,
            "seconds": time.perf_counter() - start,
            "threshold": found.threshold,
            "varsortability": sortable,
            "num_edges": int(found.adjacency.sum()),
        },
        weighted_graph=weights * setting.scale / setting.scale[:, None] * found.adjacency,
    )


def check_point_options(penalty: float, threshold: float) -> None:
    """Raise where the options of a point estimate are out of range."""
    for name, value in (("penalty", penalty), ("threshold", threshold)):
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name}: expected a finite number >= 0, got {value!r}")
