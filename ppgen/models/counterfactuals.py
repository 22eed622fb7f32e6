r"""Counterfactuals of a Bayesian network: what would have been, had variables been set.

A structural equation :math:`x_v = f_v(x_{P_v}, u_v)` with independent noise u makes a network a causal
model of single rows. Three steps (Pearl): *abduction* draws the noise given what was seen of a row, *action*
sets variables, *prediction* works the rest out anew from the same noise. Variables that descend from
nothing that was set keep their values.

What the equations are:

* continuous variables: :math:`x_v = \mu_v(x_P) + \sigma_v(x_P)\, u_v` with the network's regressions; given
  all values the noise is known, and the answer is exact;
* variables with levels: a table :math:`p(x_v \mid x_P)` does not say how one and the same row would have
  answered to other parents. Either a :class:`NoisyFunction` says it, or an assumption does:

  - ``"monotone"``: :math:`x_v = F^{-1}(u \mid x_P)`, u uniform, F the distribution function over the levels
    *in their order*; a row that is high among its like under one setting is so under another;
  - ``"gumbel-max"``: :math:`x_v = \arg\max_a \{\log p(a \mid x_P) + g_a\}` with Gumbel noise; does not
    depend on the order of the levels, and what becomes likelier by no less than others is kept.

  Where a table holds only zeros and ones all agree, and nothing need be assumed.

Of a row with gaps the unknown is drawn first, exactly, and of a mixture the graph; both are part of what is
abducted. The law of the draws is then the exact one under the equations.

References: Pearl, *Causality*, 2009, chapter 7; Oberst & Sontag 2019 (Gumbel-max); Maddison, Tarlow & Minka
2014 (Gumbels given their maximum).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ppgen.distributions.network.density import NetworkDensity
from ppgen.distributions.network.labels import Labels
from ppgen.distributions.network.mechanisms import Discrete, Gaussian
from ppgen.distributions.network.row import DataRows
from ppgen.errors import ConfigError
from ppgen.ops.elimination import categorical

#: How levels follow from parents and noise, where no function says it.
Assumption = Literal["monotone", "gumbel-max"]

# By how much the table of a function may differ from the network's, for parameters in float32.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class NoisyFunction:
    """A structural equation of a variable with levels: a function of its parents and of discrete noise.

    .. code-block:: python

        # the patient responds to the drug, always recovers, or never does
        NoisyFunction(lambda drug, noise: "well" if noise == 1 or (noise == 0 and drug == "given") else "ill",
                      probabilities=[0.3, 0.5, 0.2])

    Args:
        function: called with the levels of the parents by name and with ``noise``, a number from 0; gives the
            level of the variable. A parent whose name is no identifier of Python reaches a function
            of ``**levels``.
        probabilities: of the noise, non-negative, with sum 1.

    Raises:
        ConfigError: probabilities that are none.
    """

    function: Callable[..., Hashable]
    probabilities: Sequence[float]

    def __post_init__(self) -> None:
        found = torch.tensor(list(self.probabilities), dtype=torch.float64)
        if not len(found) or bool((found < 0).any()) or abs(float(found.sum()) - 1) > 1e-9:
            raise ConfigError(
                f"probabilities: expected non-negative numbers with sum 1, got {list(self.probabilities)}"
            )

    def outcomes(self, labels: Labels, node: int, parents: Sequence[int]) -> Tensor:
        """Level numbers for each configuration of the parents and each noise, int64 ``(L_p1, ..., K)``.

        Raises:
            ConfigError: a level that the variable has not, or a parent that the function does not take.
        """
        name, levels = labels.names[node], [labels.levels[p] or () for p in parents]
        shape = [len(one) for one in levels]
        found = []
        for values in itertools.product(*levels):
            given = {labels.names[p]: value for p, value in zip(parents, values, strict=True)}
            for noise in range(len(self.probabilities)):
                try:
                    level = self.function(**given, noise=noise)
                except TypeError as error:
                    raise ConfigError(
                        f"functions: that of {name!r} cannot be called with noise and {sorted(given)}, its "
                        f"parents: {error}"
                    ) from error
                found.append(int(labels.code(node, level)))
        return torch.tensor(found).reshape(*shape, len(self.probabilities))

    def table(self, labels: Labels, node: int, parents: Sequence[int]) -> Tensor:
        """P(level given parents) that follows from the function, ``(L_p1, ..., L)``, float64."""
        outcomes = self.outcomes(labels, node, parents)
        weights = torch.tensor(list(self.probabilities), dtype=torch.float64).expand(outcomes.shape)
        sizes = *outcomes.shape[:-1], len(labels.levels[node] or ())
        return torch.zeros(sizes, dtype=torch.float64).scatter_add(-1, outcomes, weights)


@dataclass(frozen=True)
class Abduction:
    """Rows with the noise behind them.

    Attributes:
        network: densities of rows in level numbers and standardised units.
        values: what happened, complete rows, float64, shape (M, n).
        graphs: the graph behind each, int64, shape (M,).
        noise: by variable, first dimension M; a variable is missing where its equation is not known.
        equations: outcomes of the functions, by graph and variable.
    """

    network: NetworkDensity
    values: Tensor
    graphs: Tensor
    noise: Mapping[int, Tensor]
    equations: Mapping[tuple[int, int], Tensor]

    def predict(self, held: Mapping[int, float], labels: Labels) -> Tensor:
        """The rows as they would have been with variables held at values; float64, shape (M, n).

        Args:
            held: level numbers and standardised numbers by variable.
            labels: for messages.

        Raises:
            ConfigError: a variable with levels that follows from what is held, and about whose
                structural equation nothing was said.
        """
        structure, found = self.network.structure, self.values.clone()
        for node, value in held.items():
            found[:, node] = value
        for graph in self.graphs.unique().tolist():
            rows = (self.graphs == graph).nonzero()[:, 0]
            new, moved = found[rows], set(held)
            for node in structure.orders[graph]:
                parents = structure.parents(graph, node)
                if node in held or not moved.intersection(parents):
                    continue
                moved.add(node)
                new[:, node] = self._answer(graph, node, rows, new, labels)
            found[rows] = new
        return found

    def _answer(self, graph: int, node: int, rows: Tensor, new: Tensor, labels: Labels) -> Tensor:
        """A variable from its parents in the new rows and its noise."""
        number = self.network.structure.graphs[graph][node]
        mechanism = self.network.mechanisms[number]
        if isinstance(mechanism, Gaussian):
            mean, scale = _moments(self.network, number, mechanism, new)
            return mean + scale * self.noise[node][rows]
        at = _configuration(self.network, number, new)
        outcomes = self.equations.get((graph, node))
        if outcomes is not None:
            return outcomes[(*at, self.noise[node][rows])].to(new.dtype)
        log_rows = _table_rows(mechanism, at, len(new))
        if bool(mechanism.log_table.max(-1).values.abs().max() < 1e-12):
            return log_rows.argmax(-1).to(new.dtype)  # levels follow for certain: there is no noise
        if node not in self.noise:
            raise ConfigError(
                f"assumption: {labels.names[node]!r} has levels and follows from what is set, and its table "
                "does not say how a row would have answered; pass assumption='monotone' or 'gumbel-max', or "
                "its structural equation as functions={name: NoisyFunction(...)}"
            )
        noise = self.noise[node][rows]
        if noise.ndim == 2:
            return (log_rows + noise).argmax(-1).to(new.dtype)
        return _quantile(log_rows, noise).to(new.dtype)


@torch.no_grad()
def abduct(
    rows: DataRows,
    values: Tensor,
    graphs: Tensor,
    labels: Labels,
    assumption: Assumption | None = None,
    functions: Mapping[str, NoisyFunction] | None = None,
) -> Abduction:
    """Draw the noise behind complete rows, from torch's global generator.

    Args:
        rows: densities of rows; what they hold was set already, and says nothing about its noise.
        values: complete rows of positive density, float64, shape (M, n).
        graphs: the graph behind each, int64, shape (M,).
        labels: names of variables and levels.
        assumption: about variables with levels.
        functions: structural equations by name.

    Raises:
        ConfigError: an unknown assumption or name, or a function whose table is not the network's.
    """
    if assumption is not None and assumption not in get_args(Assumption):
        raise ConfigError(
            f"assumption: expected one of {', '.join(get_args(Assumption))}, got {assumption!r}"
        )
    given = {labels.node(name): function for name, function in (functions or {}).items()}
    for node, function in given.items():
        if not isinstance(function, NoisyFunction):
            raise ConfigError(
                f"functions: expected a NoisyFunction for {labels.names[node]!r}, got {function!r}; it says "
                "what the noise is too: NoisyFunction(function, probabilities)"
            )
        if labels.levels[node] is None:
            raise ConfigError(
                f"functions: {labels.names[node]!r} is continuous, and follows its regression; leave it out"
            )
    noise: dict[int, Tensor] = {}
    equations: dict[tuple[int, int], Tensor] = {}
    network, structure = rows.network, rows.network.structure
    for graph in graphs.unique().tolist():
        mine = (graphs == graph).nonzero()[:, 0]
        part = values[mine]
        for node in range(structure.num_nodes):
            if node in rows.held:
                continue
            number = structure.graphs[graph][node]
            mechanism = network.mechanisms[number]
            if isinstance(mechanism, Gaussian):
                mean, scale = _moments(network, number, mechanism, part)
                found = (part[:, node] - mean) / scale
            elif node in given:
                outcomes = _checked(given[node], mechanism, labels, node, structure.parents(graph, node))
                equations[graph, node] = outcomes = outcomes.to(values.device)
                found = _noise_of_function(given[node], outcomes, network, number, part, node)
            elif assumption is None:
                continue
            else:
                log_rows = _table_rows(mechanism, _configuration(network, number, part), len(part))
                draw = _gumbels if assumption == "gumbel-max" else _uniforms
                found = draw(log_rows, part[:, node].long())
            kept = noise.setdefault(node, found.new_zeros(len(values), *found.shape[1:]))
            kept[mine] = found
    return Abduction(network, values, graphs, noise, equations)


def indexed(frame: Any, num: int, evidence: Any) -> Any:
    """A DataFrame of ``num`` draws of each row, with the index of the evidence, and of the draw beside it."""
    import pandas

    index = evidence.index if hasattr(evidence, "columns") else pandas.RangeIndex(len(frame) // num)
    return frame.set_axis(index if num == 1 else pandas.MultiIndex.from_product([range(num), index]))


def _moments(
    network: NetworkDensity, number: int, mechanism: Gaussian, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a continuous variable given its parents in rows, each (M,)."""
    inputs = values[:, list(network.structure.continuous_parents(number))]
    u = torch.cat([torch.ones_like(values[:, :1]), inputs], -1)
    mean, scale = mechanism.moments(u, _configuration(network, number, values))
    return mean, scale.expand_as(mean)


def _configuration(network: NetworkDensity, number: int, values: Tensor) -> tuple[Tensor, ...]:
    return tuple(values[:, p].long() for p in network.structure.discrete_parents(number))


def _table_rows(mechanism: Discrete, at: tuple[Tensor, ...], num: int) -> Tensor:
    """Log-probabilities of the levels in each row, (M, L)."""
    table = mechanism.log_table
    return table[at] if at else table.expand(num, -1)


def _quantile(log_rows: Tensor, points: Tensor) -> Tensor:
    """The level whose interval of the distribution function holds each point, int64 (M,)."""
    return torch.searchsorted(_cumulative(log_rows), points[:, None], right=True)[:, 0]


def _cumulative(log_rows: Tensor) -> Tensor:
    """Distribution function over the levels; its last value is one."""
    cumulative = log_rows.exp().cumsum(-1)
    return (cumulative / cumulative[:, -1:]).contiguous()


def _uniforms(log_rows: Tensor, codes: Tensor) -> Tensor:
    """U in [0, 1) given that the level that holds it is ``codes``; (M,)."""
    cumulative = _cumulative(log_rows)
    upper = cumulative.gather(-1, codes[:, None])[:, 0]
    before = cumulative.gather(-1, (codes[:, None] - 1).clamp_min(0))[:, 0]
    lower = torch.where(codes > 0, before, 0.0)
    points = lower + (upper - lower) * torch.rand_like(upper)
    # Rounding must not carry a point over the end of its interval.
    return torch.minimum(points, torch.nextafter(upper, lower))


def _gumbels(log_rows: Tensor, codes: Tensor) -> Tensor:
    """Gumbel noise given that ``codes`` has the greatest sum of noise and log-probability; (M, L).

    The maximum is a Gumbel of its own; the others are cut off below it (Maddison, Tarlow & Minka 2014).
    """
    free = -torch.empty_like(log_rows).exponential_().log()
    maximum = -torch.empty_like(log_rows[:, :1]).exponential_().log()
    found = -torch.logaddexp(log_rows - maximum, -free)
    own = codes[:, None]
    return found.scatter(-1, own, maximum - log_rows.gather(-1, own))


def _noise_of_function(
    function: NoisyFunction,
    outcomes: Tensor,
    network: NetworkDensity,
    number: int,
    values: Tensor,
    node: int,
) -> Tensor:
    """The noise of a function given its value, int64 (M,)."""
    prior = torch.tensor(list(function.probabilities), dtype=torch.float64, device=values.device)
    at = _configuration(network, number, values)
    levels = outcomes[at] if at else outcomes.expand(len(values), -1)
    return categorical(prior * (levels == values[:, node, None].long()))


def _checked(
    function: NoisyFunction, mechanism: Discrete, labels: Labels, node: int, parents: Sequence[int]
) -> Tensor:
    """The outcomes of a function whose table is that of the network."""
    found, wanted = function.table(labels, node, parents), mechanism.log_table.exp().cpu()
    gap = (found - wanted).abs()
    if bool((gap > _TOLERANCE).any()):
        cell = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
        setting = {labels.names[p]: (labels.levels[p] or ())[i] for p, i in zip(parents, cell, strict=False)}
        level = (labels.levels[node] or ())[cell[-1]]
        raise ConfigError(
            f"functions: that of {labels.names[node]!r} gives {level!r} the probability "
            f"{float(found[cell]):.6g} given {setting}, the network's table {float(wanted[cell]):.6g}; set "
            "the table by NoisyFunction.table, or the probabilities of the noise by the table"
        )
    return function.outcomes(labels, node, parents)
