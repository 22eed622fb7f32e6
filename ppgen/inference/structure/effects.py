r"""Effects of setting a variable, averaged over what is not known of the graph.

Given the parents P of the cause x,

.. math:: p(y \mid do(x)) = \sum_{x_P} p(y \mid x, x_P) \, p(x_P) ,

and p(y) where y is among them (adjustment for parents; Pearl, *Causality*, 2009, theorem 3.2.2). So the
posterior of an effect needs no more of the graph than the posterior of one parent set,

.. math:: p(y \mid do(x), D) = \sum_P p(P_x = P \mid D) \; E[p(y \mid do(x)) \mid P, D] ,

with independent Dirichlet (for continuous variables normal-inverse-gamma) posteriors of the two
factors. For linear-Gaussian variables the effect is the coefficient of x in the regression of y on x
and P.

**Which rows count.** Rows in which nothing was set, and those in which x alone was: setting x changes neither
its non-descendants P nor, given P, how y follows from x. A row in which another variable z was set
follows neither factor where z is on the way, and is left out. ``method="graphs"`` uses such rows as
well: it draws graphs, learns the mechanism of each variable from the rows in which it was not set, and
computes the effect in the graph without the edges into x.

:func:`ida` gives the possible effects over the DAGs of one Markov equivalence class (Maathuis, Kalisch &
Bühlmann 2009, *Estimating high-dimensional intervention effects from observational data*, the local
algorithm).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.distributions.network.density import NetworkDensity
from ppgen.distributions.network.labels import Labels
from ppgen.distributions.network.mechanisms import Discrete
from ppgen.distributions.network.posterior import RegressionPosterior, TablePosterior
from ppgen.distributions.network.structure import NetworkStructure
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.inference.structure.mechanism_cells import (
    disturbed_cells,
    graphs_and_agents,
    rows_disturbed_only_at,
    table_behind,
)
from ppgen.inference.structure.problem import GraphSource
from ppgen.inference.structure.table import Table
from ppgen.ops.elimination import check_size
from ppgen.ops.random import forked_rng

EffectMethod = Literal["parents", "graphs"]

# Parent sets beyond this share of the posterior are left out, and cells of a table.
_NEGLIGIBLE = 1e-9
_MAX_CELLS = 2**24


@dataclass(frozen=True)
class CausalEffect:
    """The posterior of an effect.

    Attributes:
        cause: name of the variable that is set.
        effect: name of the variable that is looked at.
        mean: posterior mean: p(y given do(x)), shape (levels of x, levels of y), or for continuous variables
            the change of E[y] by a unit of x, a scalar.
        draws: draws from the posterior, over graphs and parameters, shape ``(S, *mean.shape)``.
        cause_levels: levels of x; ``None`` for a continuous one.
        effect_levels: levels of y; ``None`` for a continuous one.
        method: ``"parents"`` or ``"graphs"``.
        num_rows: rows that counted.
    """

    cause: str
    effect: str
    mean: Tensor
    draws: Tensor
    cause_levels: tuple[Hashable, ...] | None
    effect_levels: tuple[Hashable, ...] | None
    method: EffectMethod
    num_rows: int

    @property
    def spread(self) -> Tensor:
        """Posterior standard deviation, shape of ``mean``."""
        return self.draws.std(0)

    def interval(self, probability: float = 0.9) -> tuple[Tensor, Tensor]:
        """Ends of the central interval of this posterior probability, each of the shape of ``mean``."""
        if not 0 < probability < 1:
            raise ConfigError(f"probability: expected a number between 0 and 1, got {probability}")
        tails = self.draws.new_tensor([(1 - probability) / 2, (1 + probability) / 2])
        low, high = torch.quantile(self.draws, tails, dim=0)
        return low, high

    def contrast(self, new: Hashable, old: Hashable) -> Tensor:
        """Draws of p(y given do(x = new)) - p(y given do(x = old)), shape (S, levels of y)."""
        if self.cause_levels is None:
            raise ConfigError(f"contrast: {self.cause!r} is continuous; its effect is a slope, see draws")
        labels = Labels((self.cause,), (self.cause_levels,))
        return self.draws[:, int(labels.code(0, new))] - self.draws[:, int(labels.code(0, old))]

    def to_frame(self) -> Any:
        """A DataFrame of means, and of standard deviations beside them."""
        import pandas

        if self.cause_levels is None or self.effect_levels is None:
            return pandas.DataFrame(
                {"mean": [float(self.mean)], "spread": [float(self.spread)]},
                index=pandas.Index([f"d {self.effect} / d {self.cause}"], name="effect"),
            )
        rows = pandas.MultiIndex.from_product(
            [self.cause_levels, self.effect_levels], names=[f"do({self.cause})", self.effect]
        )
        columns = {"mean": self.mean.reshape(-1).tolist(), "spread": self.spread.reshape(-1).tolist()}
        return pandas.DataFrame(columns, index=rows)


@dataclass(frozen=True)
class PossibleEffect:
    """One member of the multiset of :func:`ida`.

    Attributes:
        parents: names of the parents of the cause in the DAGs that it holds for.
        value: the effect: a slope, or p(y given do(x)) of shape (levels of x, levels of y).
    """

    parents: tuple[str, ...]
    value: Tensor


def causal_effect(
    posterior: Any,
    table: Any,
    cause: str,
    effect: str,
    *,
    interventions: Any = None,
    method: EffectMethod | None = None,
    num_draws: int = 1000,
    num_graphs: int = 200,
    equivalent_sample_size: float = 1.0,
    seed: int | None = None,
) -> CausalEffect:
    """The posterior of p(y given do(x)), or of the slope, over graphs and parameters.

    Args:
        posterior: a posterior over graphs, or its source.
        table: the rows that it was learnt from, all discrete or all continuous: a Table, or what
            :func:`~ppgen.inference.structure.reading.read_table` reads.
        cause: x.
        effect: y.
        interventions: what was set in each row, where ``table`` does not say it.
        method: see the module; by default ``"parents"``, but ``"graphs"`` where other variables than x
            were set.
        num_draws: draws of graphs and parameters together.
        num_graphs: graphs drawn by ``method="graphs"``; ``mean`` then has the error of so many.
        equivalent_sample_size: strength of the prior on parameters, in rows.
        seed: for draws that repeat.

    Raises:
        ConfigError: unknown names, the same twice, or a parent set whose table is too large.
        DataError: mixed tables, missing values, or no row that counts.
    """
    table = table_behind(posterior, table, interventions)
    labels = _labels(table)
    x, y = _pair(labels, cause, effect)
    _check_table(table)
    if num_draws < 1:
        raise ConfigError(f"num_draws: expected a positive integer, got {num_draws}")
    source, agents = graphs_and_agents(posterior, table)
    quiet = rows_disturbed_only_at(table, x)
    method = method or ("parents" if bool(quiet.all()) else "graphs")
    with forked_rng(seed, table.device):
        if method == "parents":
            mean, draws = _by_parents(source, table.rows(quiet), x, y, num_draws, equivalent_sample_size)
            num_rows = int(quiet.sum())
        elif method == "graphs":
            disturbed = disturbed_cells(table, agents)
            learner = _Mechanisms(table, disturbed, equivalent_sample_size)
            mean, draws = _by_graphs(source, learner, x, y, num_draws, num_graphs, seed)
            num_rows = table.num_rows
        else:
            raise ConfigError(f"method: expected 'parents' or 'graphs', got {method!r}")
    return CausalEffect(cause, effect, mean, draws, labels.levels[x], labels.levels[y], method, num_rows)


def ida(
    cpdag: Any,
    table: Any,
    cause: str,
    effect: str,
    *,
    interventions: Any = None,
    equivalent_sample_size: float = 1.0,
) -> list[PossibleEffect]:
    """The effects that are possible in the DAGs of one equivalence class.

    Every orientation of the undirected edges at the cause that makes no new v-structure there gives one. The
    multiset has the distinct values of the class; how often each occurs differs from a count of DAGs.

    Args:
        cpdag: bool, shape (n, n), with both directions of an undirected edge; or a networkx DiGraph of that
            kind over the names, as ``posterior.cpdag()`` is.
        table: all discrete or all continuous, in the forms that :func:`causal_effect` takes; rows in which
            another variable than the cause was set are left out.
        cause: x.
        effect: y.
        interventions: what was set in each row, where ``table`` does not say it.
        equivalent_sample_size: strength of the prior on parameters, in rows.

    Raises:
        ShapeError: a matrix of another size.
        ConfigError, DataError: as :func:`causal_effect`.
    """
    table = table_behind(None, table, interventions)
    labels = _labels(table)
    x, y = _pair(labels, cause, effect)
    _check_table(table)
    num = table.num_variables
    if hasattr(cpdag, "edges"):
        pairs = [(labels.node(i), labels.node(j)) for i, j in cpdag.edges()]
        cpdag = torch.zeros(num, num, dtype=torch.bool)
        for i, j in pairs:
            cpdag[i, j] = True
    if tuple(cpdag.shape) != (num, num):
        raise ShapeError(f"cpdag: expected shape ({num}, {num}), got {tuple(cpdag.shape)}")
    rows = table.rows(rows_disturbed_only_at(table, x))
    return [
        PossibleEffect(
            tuple(labels.names[p] for p in parents),
            _Adjusted(rows, x, y, parents, equivalent_sample_size).mean,
        )
        for parents in possible_parents(cpdag, x)
    ]


def possible_parents(cpdag: Tensor, node: int) -> Iterator[tuple[int, ...]]:
    """Parent sets of a node that make no new v-structure at it, in increasing order of size."""
    edges = cpdag.bool()
    adjacent = edges | edges.T
    sure = torch.nonzero(edges[:, node] & ~edges[node])[:, 0].tolist()
    free = torch.nonzero(edges[:, node] & edges[node])[:, 0].tolist()
    for size in range(len(free) + 1):
        for chosen in itertools.combinations(free, size):
            pairs = itertools.chain(itertools.combinations(chosen, 2), itertools.product(chosen, sure))
            if all(bool(adjacent[a, b]) for a, b in pairs):
                yield tuple(sorted((*sure, *chosen)))


# -- by parents ---------------------------------------------------------------------------


class _Adjusted:
    """An effect given the parents of the cause.

    Args:
        table: rows that count.
        x: the cause.
        y: the effect.
        parents: of the cause.
        strength: equivalent sample size.
    """

    def __init__(self, table: Table, x: int, y: int, parents: Sequence[int], strength: float) -> None:
        if not table.num_rows:
            raise DataError(
                "table: other variables were set in every row, so none tells of this effect by adjustment; "
                'use method="graphs"'
            )
        self.discrete, self.unrelated = table.is_discrete, y in parents
        self.shape: tuple[int, ...] = ()
        if not self.discrete:
            self._regress(table, x, y, parents, strength)
            return
        sizes = table.cardinalities
        self.shape = sizes[x], sizes[y]
        if self.unrelated:
            counts = table.codes[:, y].bincount(minlength=sizes[y]).double()
            self.outcome = TablePosterior.of(counts[None], strength)
            return
        configurations = math.prod(sizes[p] for p in parents)
        check_size(configurations * sizes[x] * sizes[y], f"parents of column {x}: their table", _MAX_CELLS)
        cell = torch.zeros(table.num_rows, dtype=torch.int64, device=table.device)
        for p in parents:
            cell = cell * sizes[p] + table.codes[:, p]
        self.context = TablePosterior.of(cell.bincount(minlength=configurations).double()[None], strength)
        cell = (cell * sizes[x] + table.codes[:, x]) * sizes[y] + table.codes[:, y]
        counts = cell.bincount(minlength=configurations * sizes[x] * sizes[y]).double()
        self.outcome = TablePosterior.of(counts.reshape(-1, sizes[y]), strength)

    def _regress(self, table: Table, x: int, y: int, parents: Sequence[int], strength: float) -> None:
        used = table.values[:, [x, *(p for p in parents if p != y), y]]
        centred = used - used.mean(0)
        scale = centred.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        u = torch.cat([torch.ones_like(centred[:, :1]), centred / scale], -1)
        counts = u.new_full((1,), len(u))
        self.slope = RegressionPosterior.of(counts, (u.T @ u)[None], strength)
        self.unit = scale[-1] / scale[0]

    @property
    def mean(self) -> Tensor:
        """Posterior mean of the effect."""
        if not self.discrete:
            return self.slope.mean.new_zeros(()) if self.unrelated else self.slope.mean[0, 1] * self.unit
        return self._combine(
            self.outcome.log_mean.exp(), None if self.unrelated else self.context.log_mean.exp()
        )

    def draw(self, num: int) -> Tensor:
        """Draws of the effect, shape ``(num, ...)``, from torch's global generator."""
        if not self.discrete:
            if self.unrelated:
                return self.slope.mean.new_zeros(num)
            many = RegressionPosterior(
                *(
                    part.expand(num, *part.shape[1:])
                    for part in (self.slope.mean, self.slope.precision, self.slope.shape, self.slope.rate)
                )
            )
            return many.draw()[0][:, 1] * self.unit
        found = [
            self._combine(
                self.outcome.log_draw().exp(), None if self.unrelated else self.context.log_draw().exp()
            )
            for _ in range(num)
        ]
        return torch.stack(found)

    def _combine(self, outcome: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return outcome.expand(self.shape)
        return (context[0, :, None, None] * outcome.reshape(-1, *self.shape)).sum(0)


def _by_parents(
    source: GraphSource, table: Table, x: int, y: int, num_draws: int, strength: float
) -> tuple[Tensor, Tensor]:
    sets, weights = source.parent_sets(x)
    order = weights.argsort(descending=True)
    weights, sets = weights[order].double().to(table.device), sets[order]
    beyond = weights.cumsum(0) - weights >= weights.sum() * (1 - _NEGLIGIBLE)
    weights, sets = weights[~beyond] / weights[~beyond].sum(), sets[~beyond.to(sets.device)]
    shares = torch.multinomial(weights, num_draws, replacement=True).bincount(minlength=len(weights))
    mean, draws = None, list[Tensor]()
    for members, weight, share in zip(sets, weights, shares.tolist(), strict=True):
        given = _Adjusted(table, x, y, torch.nonzero(members)[:, 0].tolist(), strength)
        part = weight * given.mean
        mean = part if mean is None else mean + part
        if share:
            draws.append(given.draw(share))
    if mean is None:
        raise DataError("posterior: has no parent set of positive probability")
    found = torch.cat(draws)
    return mean, found[torch.randperm(len(found), device=found.device)]


# -- by graphs ----------------------------------------------------------------------------


@dataclass
class _Mechanisms:
    """Posteriors of the families of a table, each worked out once.

    Attributes:
        table: the data.
        disturbed: cells that do not count, bool (N, n).
        strength: equivalent sample size.
    """

    table: Table
    disturbed: Tensor
    strength: float
    known: dict[tuple[int, tuple[int, ...]], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        centred = self.table.values - self.table.values.mean(0)
        scale = centred.std(0, correction=0)
        self.scale = torch.where(scale > 0, scale, 1.0)
        self.standardised = centred / self.scale

    def posterior(self, node: int, parents: tuple[int, ...]) -> Any:
        """A table's or a regression's posterior."""
        family = node, parents
        if family not in self.known:
            rows = ~self.disturbed[:, node]
            self.known[family] = (self._table if self.table.is_discrete else self._regression)(rows, family)
        return self.known[family]

    def _table(self, rows: Tensor, family: tuple[int, tuple[int, ...]]) -> TablePosterior:
        node, parents = family
        sizes, codes = self.table.cardinalities, self.table.codes[rows]
        cells = math.prod(sizes[v] for v in (*parents, node))
        check_size(cells, f"graph: the table of {self.table.names[node]!r}", _MAX_CELLS)
        cell = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        for v in (*parents, node):
            cell = cell * sizes[v] + codes[:, v]
        return TablePosterior.of(
            cell.bincount(minlength=cells).double().reshape(-1, sizes[node]), self.strength
        )

    def _regression(self, rows: Tensor, family: tuple[int, tuple[int, ...]]) -> RegressionPosterior:
        node, parents = family
        values = self.standardised[rows]
        u = torch.cat([torch.ones_like(values[:, :1]), values[:, [*parents, node]]], -1)
        return RegressionPosterior.of(u.new_full((1,), len(u)), (u.T @ u)[None], self.strength)


def _by_graphs(
    source: GraphSource,
    learner: _Mechanisms,
    x: int,
    y: int,
    num_draws: int,
    num_graphs: int,
    seed: int | None,
) -> tuple[Tensor, Tensor]:
    if num_graphs < 1:
        raise ConfigError(f"num_graphs: expected a positive integer, got {num_graphs}")
    drawn = source.sample(num_graphs, seed=seed)
    weights = drawn.log_weights.double().exp()
    # Only the ancestors of y once x is set matter: graphs that agree on them are one.
    cut = drawn.adjacency.bool().clone()
    cut[:, :, x] = False
    cut &= _ancestors(cut, y)[:, None, :]
    different, number = cut.flatten(1).unique(dim=0, return_inverse=True)
    shares = weights.new_zeros(len(different)).index_add_(0, number, weights)
    shares = (shares / shares.sum()).to(learner.table.device)
    parts = torch.multinomial(shares, num_draws, replacement=True).bincount(minlength=len(shares)).tolist()
    effect = _table_effect if learner.table.is_discrete else _slope_effect
    mean, draws = None, list[Tensor]()
    for flat, share, part in zip(different, shares, parts, strict=True):
        graph = flat.reshape(cut.shape[1:])
        value = share * effect(learner, graph, x, y, mean=True)
        mean = value if mean is None else mean + value
        draws += [effect(learner, graph, x, y, mean=False) for _ in range(part)]
    if mean is None:
        raise DataError("posterior: gave no graph")
    found = torch.stack(draws)
    return mean, found[torch.randperm(len(found), device=found.device)]


def _ancestors(adjacency: Tensor, node: int) -> Tensor:
    """Which nodes a node descends from, itself among them; bool (S, n)."""
    found = torch.zeros(adjacency.shape[:2], dtype=torch.bool, device=adjacency.device)
    found[:, node] = True
    for _ in range(adjacency.shape[1]):
        found = found | (adjacency & found[:, None, :]).any(-1)
    return found


def _table_effect(learner: _Mechanisms, graph: Tensor, x: int, y: int, *, mean: bool) -> Tensor:
    """P(y given do(x)) in a graph without edges into x, at mean tables (giving its mean) or drawn ones."""
    table = learner.table
    num, sizes = table.num_variables, table.cardinalities
    parents = [torch.nonzero(graph[:, v])[:, 0].tolist() for v in range(num)]
    structure = NetworkStructure.of(sizes, [parents], table.names)
    needed = _ancestors(graph[None], y)[0].tolist()
    mechanisms = []
    for node, found in structure.families:
        if needed[node] and node != x:
            posterior = learner.posterior(node, found)
            log_table = posterior.log_mean if mean else posterior.log_draw()
            shape = [sizes[p] for p in found] + [sizes[node]]
            mechanisms.append(Discrete(log_table.reshape(shape)))
        else:
            # Drops out: nothing that is asked for descends from it, or it is set.
            mechanisms.append(Discrete(table.values.new_zeros(sizes[node])))
    network = NetworkDensity(structure, tuple(mechanisms), table.values.new_zeros(1))
    rows = table.values.new_full((sizes[x], num), math.nan)
    rows[:, x] = torch.arange(sizes[x])
    is_set = torch.zeros_like(rows, dtype=torch.bool)
    is_set[:, x] = True
    return network.log_table(rows, is_set, [y])[0].exp()


def _slope_effect(learner: _Mechanisms, graph: Tensor, x: int, y: int, *, mean: bool) -> Tensor:
    """The total linear effect: the sum over paths of products of coefficients."""
    num = learner.table.num_variables
    needed = _ancestors(graph[None], y)[0].tolist()
    weights = learner.standardised.new_zeros(num, num)
    for node in range(num):
        parents = tuple(torch.nonzero(graph[:, node])[:, 0].tolist())
        if needed[node] and parents:
            posterior = learner.posterior(node, parents)
            found = posterior.mean if mean else posterior.draw()[0]
            weights[list(parents), node] = found[0, 1:]
    eye = torch.eye(num, dtype=weights.dtype, device=weights.device)
    return torch.linalg.inv(eye - weights)[x, y] * learner.scale[y] / learner.scale[x]


# -- checks -------------------------------------------------------------------------------


def _labels(table: Table) -> Labels:
    return Labels(table.names, tuple(v.levels for v in table.variables))


def _pair(labels: Labels, cause: str, effect: str) -> tuple[int, int]:
    x, y = labels.node(cause), labels.node(effect)
    if x == y:
        raise ConfigError(f"effect: expected another variable than the cause, got {effect!r} for both")
    return x, y


def _check_table(table: Table) -> None:
    if not (table.is_discrete or table.is_continuous):
        raise DataError(
            "table: has variables of both kinds, and effects are worked out for tables of one; discretise "
            "it, or see BayesianNetwork.from_posterior"
        )
    if bool(table.values.isnan().any()):
        raise DataError('table: has missing values; drop those rows (read_table has missing="drop")')
