r"""A discrete Bayesian network as plain data, shared by the model, pgmpy's adapter and the benchmarks.

The family :class:`ppgen.models.BayesianNetwork` is the one to compute with; this record is what networks
are read from, written to and drawn from without it: example networks, BIF files, test data.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.inference.structure.table import Table, Variable
from ppgen.ops.random import forked_rng

# Published networks carry about seven digits; what is farther from one is an error, not rounding.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class DiscreteNetwork:
    r"""A DAG over categorical variables and a table :math:`p(x_v \mid x_{P_v})` for each.

    Tables whose distributions sum to one within 1e-5 are accepted, and normalised.

    Attributes:
        names: of the variables.
        levels: the values of each variable, in order.
        parents: for each variable the numbers of its parents, in the order of its table's dimensions.
        tables: for each variable, float64, shape ``(*cardinalities of its parents, its own)``.

    Raises:
        ConfigError: names or parents that are repeated or unknown, or edges that form a cycle.
        ShapeError: a table of another shape.
        DataError: a table with negative or non-finite entries, or distributions that do not sum to one.
    """

    names: tuple[str, ...]
    levels: tuple[tuple[Hashable, ...], ...]
    parents: tuple[tuple[int, ...], ...]
    tables: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        num = len(self.names)
        if len(set(self.names)) < num or not len(self.levels) == len(self.parents) == len(self.tables) == num:
            raise ConfigError(
                f"names: expected different names, and levels, parents and a table for each; got {num} "
                f"names, {len(set(self.names))} of them different, {len(self.levels)} levels, "
                f"{len(self.parents)} parents and {len(self.tables)} tables"
            )
        for node, name in enumerate(self.names):
            self._check_family(node, name)
        tables = tuple(t.double() / t.double().sum(-1, keepdim=True) for t in self.tables)
        object.__setattr__(self, "tables", tables)
        if len(self.order) < num:
            rest = [self.names[v] for v in range(num) if v not in set(self.order)]
            raise ConfigError(
                f"parents: the edges form a cycle among {', '.join(rest)} (or above them); remove one of its "
                "edges"
            )

    def _check_family(self, node: int, name: str) -> None:
        parents, table = self.parents[node], self.tables[node]
        if len(set(parents)) < len(parents) or not all(0 <= p < len(self.names) for p in parents):
            raise ConfigError(
                f"parents: {name} has {parents}; expected different numbers from 0 to {len(self.names) - 1}"
            )
        if len(set(self.levels[node])) < len(self.levels[node]) or not self.levels[node]:
            raise ConfigError(
                f"levels: {name} has {self.levels[node]!r}; expected at least one level, all different"
            )
        shape = tuple(len(self.levels[p]) for p in (*parents, node))
        if tuple(table.shape) != shape:
            raise ShapeError(
                f"tables: {name} has shape {tuple(table.shape)}; its parents and levels need {shape}"
            )
        if not bool((table >= 0).all() & table.isfinite().all()):
            raise DataError(
                f"tables: {name} has entries that are negative or not finite; expected probabilities"
            )
        error = float((table.double().sum(-1) - 1).abs().max())
        if error > _TOLERANCE:
            raise DataError(
                f"tables: a distribution of {name} is off by {error:.3g} from a sum of 1; "
                "divide its table by its sum over the last dimension if that is meant"
            )

    @property
    def num_nodes(self) -> int:
        """Number of variables, n."""
        return len(self.names)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of levels of each variable."""
        return tuple(len(levels) for levels in self.levels)

    @property
    def adjacency(self) -> Tensor:
        """The edges, bool, shape (n, n); ``[i, j]`` is i -> j."""
        adjacency = torch.zeros(self.num_nodes, self.num_nodes, dtype=torch.bool)
        for node, parents in enumerate(self.parents):
            adjacency[list(parents), node] = True
        return adjacency

    @property
    def edges(self) -> list[tuple[str, str]]:
        """The edges by name."""
        return [(self.names[p], self.names[v]) for v, parents in enumerate(self.parents) for p in parents]

    @property
    def order(self) -> list[int]:
        """Variables with parents before children; those on a cycle, and below one, are left out."""
        order: list[int] = []
        rest, placed = list(range(self.num_nodes)), set[int]()
        while ready := [v for v in rest if placed.issuperset(self.parents[v])]:
            order += ready
            placed.update(ready)
            rest = [v for v in rest if v not in placed]
        return order

    def draw(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw rows by ancestral sampling.

        Args:
            num: how many, N.
            generator: source of randomness, on the device of the tables; torch's global one where left out.

        Returns:
            Level numbers, int64, shape (N, n), on the device of the tables.
        """
        if num < 1:
            raise ConfigError(f"num: expected a positive integer, got {num}")
        device = self.tables[0].device
        codes = torch.zeros(num, self.num_nodes, dtype=torch.int64, device=device)
        for node in self.order:
            rows = self.tables[node][tuple(codes[:, p] for p in self.parents[node])].expand(num, -1)
            uniform = torch.rand(num, 1, generator=generator, dtype=torch.float64, device=device)
            # Rounding can leave the last sum a hair below 1, and so a draw above all of them.
            codes[:, node] = (rows.cumsum(-1)[:, :-1] <= uniform).sum(-1)
        return codes

    def table(self, num: int, *, seed: int | None = None) -> Table:
        """Draw rows as a table without interventions, with the network's levels declared."""
        with forked_rng(seed, self.tables[0].device):
            values = self.draw(num).double()
        variables = tuple(Variable(n, lv) for n, lv in zip(self.names, self.levels, strict=True))
        return Table(variables, values, torch.zeros_like(values, dtype=torch.bool))

    def reordered(self, names: Sequence[str]) -> DiscreteNetwork:
        """The same network with its variables in another order."""
        if sorted(names) != sorted(self.names):
            raise ConfigError(
                f"names: expected {', '.join(self.names)} in some order, got {', '.join(names)}"
            )
        source = [self.names.index(name) for name in names]
        target = {v: number for number, v in enumerate(source)}
        return DiscreteNetwork(
            tuple(names),
            tuple(self.levels[v] for v in source),
            tuple(tuple(target[p] for p in self.parents[v]) for v in source),
            tuple(self.tables[v] for v in source),
        )
