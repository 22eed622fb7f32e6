r"""Undirected graphs of sites: how users give them, how they are coloured, in which order they are summed.

Sites are numbered 0 to S - 1 in the row-major order of the datum. Sites of one colour are not neighbours,
so that a Gibbs sampler may draw them together.

References: Brélaz 1979 and Welsh & Powell 1967 (colouring); Cuthill & McKee 1969 (orders of small
bandwidth, whose elimination keeps tables narrow).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ppgen.errors import ConfigError, ShapeError
from ppgen.ops.elimination import Plan, plan

#: Graphs known by name: nearest neighbours along each dimension of the datum, the same with opposite
#: borders joined, and all pairs.
Named = Literal["grid", "torus", "complete"]

# Tables larger than this are not counted any further.
_UNCOUNTED = 2**30
# Min-fill looks at every pair of neighbours of every site; larger graphs take orders of small bandwidth.
_MOST_SITES_OF_MIN_FILL = 200


#: Entries of all tables of one elimination: 128 MiB of float64, and as much again for a gradient.
MAX_ALL_ENTRIES = 2**24


@dataclass(frozen=True)
class Elimination:
    """An order in which all sites are summed out, and what it costs.

    Attributes:
        plan: the order, and the entries of the largest table.
        total: entries of all tables together.
    """

    plan: Plan
    total: int

    def fits(self, max_entries: int) -> bool:
        """Whether no table has more entries, nor all together more than :data:`MAX_ALL_ENTRIES`."""
        return self.plan.entries <= max_entries and self.total <= MAX_ALL_ENTRIES


@dataclass(frozen=True)
class SiteGraph:
    """Sites and which of them interact.

    Attributes:
        num_sites: S.
        edges: pairs (i, j) with i < j, each once, in increasing order; E of them.
    """

    num_sites: int
    edges: tuple[tuple[int, int], ...]

    @cached_property
    def ends(self) -> Tensor:
        """The edges, int64, shape (E, 2)."""
        return torch.tensor(self.edges, dtype=torch.int64).reshape(-1, 2)

    @cached_property
    def neighbours(self) -> tuple[frozenset[int], ...]:
        """Of each site."""
        found: list[set[int]] = [set() for _ in range(self.num_sites)]
        for i, j in self.edges:
            found[i].add(j)
            found[j].add(i)
        return tuple(frozenset(one) for one in found)

    @cached_property
    def incidence(self) -> tuple[Tensor, Tensor]:
        """The neighbours of each site, padded, and by which directed edge each of them speaks to it.

        Returns:
            Sites, int64 (S, d) with d the largest degree (at least 1); and edges: e where the site is the
            first end of edge e, E + e where it is the second, 2 E for padding.
        """
        num = len(self.edges)
        beside: list[list[tuple[int, int]]] = [[] for _ in range(self.num_sites)]
        for e, (i, j) in enumerate(self.edges):
            beside[i].append((j, e))
            beside[j].append((i, num + e))
        width = max(1, *(len(one) for one in beside))
        padded = [one + [(0, 2 * num)] * (width - len(one)) for one in beside]
        both = torch.tensor(padded, dtype=torch.int64)
        return both[..., 0], both[..., 1]

    @cached_property
    def colours(self) -> tuple[Tensor, ...]:
        """Sites by colour, each int64 (n,): two colours where two suffice, else greedy, largest first."""
        import networkx

        graph = self.to_networkx()
        if networkx.is_bipartite(graph):
            found = networkx.bipartite.color(graph)
        else:
            found = networkx.greedy_color(graph, strategy="largest_first")
        by_colour: dict[int, list[int]] = {}
        for site in range(self.num_sites):
            by_colour.setdefault(found[site], []).append(site)
        return tuple(torch.tensor(by_colour[c], dtype=torch.int64) for c in sorted(by_colour))

    def to_networkx(self) -> Any:
        """As a ``networkx.Graph`` over the numbers of the sites."""
        import networkx

        graph = networkx.Graph()
        graph.add_nodes_from(range(self.num_sites))
        graph.add_edges_from(self.edges)
        return graph

    def induced(self, sites: Sequence[int]) -> tuple[SiteGraph, Tensor]:
        """The graph on some of the sites, numbered anew in their order, and the numbers of its edges here."""
        place = {site: k for k, site in enumerate(sites)}
        kept = [e for e, (i, j) in enumerate(self.edges) if i in place and j in place]
        ends = [sorted((place[self.edges[e][0]], place[self.edges[e][1]])) for e in kept]
        order = sorted(range(len(kept)), key=ends.__getitem__)
        graph = SiteGraph(len(sites), tuple((ends[k][0], ends[k][1]) for k in order))
        return graph, torch.tensor([kept[k] for k in order], dtype=torch.int64)

    def elimination(self, num_states: int) -> Elimination:
        """The order with the smallest tables: the sites' own, Cuthill & McKee's, or min-fill.

        Min-fill is tried for up to 200 sites. Beyond 2^30 entries counting stops: there are that or more.
        """
        import networkx

        orders = [tuple(range(self.num_sites))]
        orders.append(tuple(networkx.utils.reverse_cuthill_mckee_ordering(self.to_networkx())))
        if self.num_sites <= _MOST_SITES_OF_MIN_FILL:
            sizes = dict.fromkeys(range(self.num_sites), num_states)
            orders.append(plan(self.edges, sizes, range(self.num_sites)).order)
        counted = [(*self._entries(order, num_states), order) for order in orders]
        largest, total, order = min(counted)
        return Elimination(Plan(order, largest), total)

    def _entries(self, order: Sequence[int], num_states: int) -> tuple[int, int]:
        """Entries of the largest table, and of all tables, of an order."""
        around = [set(one) for one in self.neighbours]
        largest, total = 1, 0
        for site in order:
            beside = around[site]
            size = num_states ** (len(beside) + 1)
            largest, total = max(largest, size), total + size
            if largest > _UNCOUNTED:
                break
            for other in beside:
                around[other] |= beside
                around[other] -= {site, other}
        return largest, total


def site_graph(graph: Any, event_shape: torch.Size) -> SiteGraph:
    """The graph that a user means.

    Args:
        graph: a name (:data:`Named`); ``None`` for ``"grid"``; an undirected networkx graph, whose nodes are
            numbers of sites, or their coordinates in ``event_shape``, or anything else, then taken in the
            graph's own order; a symmetric adjacency matrix (S, S); or pairs of numbers of sites.
        event_shape: shape of the datum.

    Raises:
        ConfigError: a name that is none, a directed graph, a site that interacts with itself, unknown sites.
        ShapeError: another number of nodes than of sites.
    """
    num = event_shape.numel()
    if graph is None or isinstance(graph, str):
        return SiteGraph(num, _named(graph or "grid", event_shape))
    if hasattr(graph, "edges") and hasattr(graph, "nodes"):
        pairs = _of_networkx(graph, event_shape)
    elif isinstance(graph, Tensor) or hasattr(graph, "__array__"):
        pairs = _of_matrix(torch.as_tensor(graph), num)
    else:
        pairs = [_pair(one, num) for one in graph]
    loops = [i for i, j in pairs if i == j]
    if loops:
        raise ConfigError(
            f"graph: site {loops[0]} interacts with itself; drop the loop, its energy belongs to the field"
        )
    return SiteGraph(num, tuple(sorted({(min(pair), max(pair)) for pair in pairs})))


def _named(name: str, event_shape: torch.Size) -> tuple[tuple[int, int], ...]:
    if name not in get_args(Named):
        raise ConfigError(
            f"graph: expected one of {', '.join(get_args(Named))}, a networkx graph, an adjacency matrix or "
            f"pairs of sites, got {name!r}"
        )
    num = event_shape.numel()
    if name == "complete":
        return tuple(itertools.combinations(range(num), 2))
    sites, found = torch.arange(num).reshape(event_shape), set[tuple[int, int]]()
    for dim, size in enumerate(event_shape):
        if size < 2:
            continue
        # On the grid the last layer, whose next one is the first, is left out.
        kept = size if name == "torus" else size - 1
        pairs = torch.stack([sites, sites.roll(-1, dim)], -1).narrow(dim, 0, kept).reshape(-1, 2).tolist()
        found.update((min(i, j), max(i, j)) for i, j in pairs)
    return tuple(sorted(found))


def _of_networkx(graph: Any, event_shape: torch.Size) -> list[tuple[int, int]]:
    num = event_shape.numel()
    if graph.is_directed():
        raise ConfigError(
            "graph: a Markov random field is undirected, got a directed graph; pass graph.to_undirected(), "
            "or build a BayesianNetwork"
        )
    nodes = list(graph.nodes)
    if len(nodes) != num:
        raise ShapeError(f"graph: expected {num} nodes, one a site of {tuple(event_shape)}, got {len(nodes)}")
    if set(nodes) == set(range(num)):
        number = {node: node for node in nodes}
    else:
        coordinates = {tuple(at): k for k, at in enumerate(itertools.product(*map(range, event_shape)))}
        number = coordinates if set(nodes) == set(coordinates) else {v: k for k, v in enumerate(nodes)}
    return [(number[i], number[j]) for i, j in graph.edges()]


def _of_matrix(matrix: Tensor, num: int) -> list[tuple[int, int]]:
    if matrix.shape != (num, num):
        raise ShapeError(
            f"graph: expected an adjacency matrix of shape ({num}, {num}), got {tuple(matrix.shape)}"
        )
    joined = matrix.bool()
    if not torch.equal(joined, joined.mT):
        raise ConfigError("graph: expected a symmetric adjacency matrix; pass matrix | matrix.T")
    return [(i, j) for i, j in joined.nonzero().tolist() if i <= j]


def _pair(pair: Any, num: int) -> tuple[int, int]:
    if isinstance(pair, str) or not isinstance(pair, Iterable):
        raise ConfigError(f"graph: expected pairs of numbers of sites, got {pair!r}")
    ends = tuple(pair)
    if len(ends) != 2 or not all(isinstance(i, int) and 0 <= i < num for i in ends):
        raise ConfigError(f"graph: expected pairs of numbers of sites below {num}, got {pair!r}")
    return ends[0], ends[1]


def describe_entries(entries: int) -> str:
    """A number of entries for a message: as it is, or the least that it is known to be."""
    if entries > _UNCOUNTED:
        return f"more than 2^{int(math.log2(_UNCOUNTED))}"
    return f"{entries:.3g}"
