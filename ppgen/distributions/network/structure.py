"""Which variables depend on which: families, and graphs made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ppgen.errors import ConfigError
from ppgen.ops.elimination import check_size

#: A node and its parents in increasing order.
Family = tuple[int, tuple[int, ...]]

# Cells of one conditional table, and of all of them together.
_MAX_CELLS = 2**24
_MAX_ALL_CELLS = 2**26


@dataclass(frozen=True)
class NetworkStructure:
    """Graphs over the same nodes, which share the families that they have in common.

    Attributes:
        cardinalities: number of levels of each node; 0 for a continuous one.
        families: the different families of all graphs.
        graphs: for each graph, and each node, the number of its family.
    """

    cardinalities: tuple[int, ...]
    families: tuple[Family, ...]
    graphs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, cardinalities: Sequence[int], parents: Sequence[Sequence[Sequence[int]]], names: Sequence[str]
    ) -> NetworkStructure:
        """From the parents of each node in each graph, checked.

        Raises:
            ConfigError: a cycle (printed), a continuous parent of a discrete node, a table too large.
        """
        families: dict[Family, int] = {}
        graphs = []
        for graph in parents:
            numbers = []
            for node, found in enumerate(graph):
                family = (node, tuple(sorted(found)))
                numbers.append(families.setdefault(family, len(families)))
            graphs.append(tuple(numbers))
        structure = cls(tuple(cardinalities), tuple(families), tuple(graphs))
        structure._check(names)
        return structure

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.cardinalities)

    @property
    def num_graphs(self) -> int:
        """K."""
        return len(self.graphs)

    def discrete_parents(self, family: int) -> tuple[int, ...]:
        """The parents with levels."""
        return tuple(p for p in self.families[family][1] if self.cardinalities[p])

    def continuous_parents(self, family: int) -> tuple[int, ...]:
        """The parents without."""
        return tuple(p for p in self.families[family][1] if not self.cardinalities[p])

    def configurations(self, family: int) -> tuple[int, ...]:
        """Number of levels of each discrete parent."""
        return tuple(self.cardinalities[p] for p in self.discrete_parents(family))

    def parents(self, graph: int, node: int) -> tuple[int, ...]:
        """Parents of a node in a graph."""
        return self.families[self.graphs[graph][node]][1]

    @cached_property
    def orders(self) -> tuple[tuple[int, ...], ...]:
        """A topological order of each graph."""
        return tuple(self._order(graph) for graph in range(self.num_graphs))

    def _order(self, graph: int) -> tuple[int, ...]:
        waiting = {v: set(self.parents(graph, v)) for v in range(self.num_nodes)}
        order: list[int] = []
        while waiting:
            free = [v for v, left in waiting.items() if not left]
            if not free:
                break
            order += free
            for v in free:
                del waiting[v]
            for left in waiting.values():
                left.difference_update(free)
        return tuple(order)

    def _cycle(self, graph: int) -> list[int]:
        """A cycle of a graph that has one."""
        waiting = set(range(self.num_nodes)) - set(self._order(graph))
        node, seen = min(waiting), list[int]()
        while node not in seen:
            seen.append(node)
            node = next(p for p in self.parents(graph, node) if p in waiting)
        return [*reversed(seen[seen.index(node) :]), seen[-1]] if len(seen) else []

    def _check(self, names: Sequence[str]) -> None:
        for graph in range(self.num_graphs):
            if len(self.orders[graph]) < self.num_nodes:
                cycle = " -> ".join(names[v] for v in self._cycle(graph))
                raise ConfigError(f"graph: expected a DAG, got the cycle {cycle}; remove one of its edges")
        total = 0
        for number, (node, _) in enumerate(self.families):
            continuous = self.continuous_parents(number)
            if self.cardinalities[node] and continuous:
                raise ConfigError(
                    f"graph: {names[node]!r} has levels and the continuous parent {names[continuous[0]]!r}; "
                    "a conditional Gaussian network has none such: turn the edge, or discretise the parent"
                )
            cells = math.prod(self.configurations(number))
            cells *= self.cardinalities[node] or (len(continuous) + 2) ** 2
            check_size(cells, f"graph: the table of {names[node]!r}", _MAX_CELLS)
            total += cells
        check_size(total, "graph: all tables together", _MAX_ALL_CELLS)

    # -- as JSON, for the arguments that rebuild a model --------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Lists and numbers."""
        return {
            "families": [[node, list(parents)] for node, parents in self.families],
            "graphs": [list(graph) for graph in self.graphs],
        }

    @staticmethod
    def parents_from_json(tree: dict[str, Any]) -> list[list[list[int]]]:
        """What :meth:`of` wants, from what :meth:`to_json` gave."""
        return [[list(tree["families"][f][1]) for f in graph] for graph in tree["graphs"]]
