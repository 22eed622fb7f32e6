"""Graphs for a Bayesian network, in the forms in which users have them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.contract import check_count
from ppgen.distributions.network.labels import Labels, Levels, plain
from ppgen.distributions.network.structure import NetworkStructure
from ppgen.errors import ConfigError, ShapeError
from ppgen.inference.structure.problem import GraphSource

#: Which graphs of a posterior make the network.
Which = Literal["sample", "map", "median"]

Parents = list[list[list[int]]]


def levels_of(levels: Sequence[Sequence[Hashable] | None], cardinalities: Sequence[int]) -> Levels:
    """Levels as tuples, checked against the numbers of them."""
    found = tuple(None if one is None else plain(one) for one in levels)
    sizes = [0 if one is None else len(one) for one in found]
    if sizes != list(cardinalities):
        raise ConfigError(
            f"levels: expected names of as many as each variable has, {list(cardinalities)}, got {sizes}"
        )
    return found


def parents_of(graph: Any, labels: Labels) -> Parents:
    """The parents of each node in each graph.

    Args:
        graph: adjacency matrices (n, n) or (K, n, n), a networkx DiGraph, pairs of names or numbers, or what
            :meth:`~ppgen.distributions.network.structure.NetworkStructure.to_json` gave.
        labels: names of the nodes.

    Raises:
        ShapeError: matrices of another size.
        ConfigError: names or numbers that are none of the nodes'.
    """
    num = len(labels.names)
    if isinstance(graph, Mapping) and "families" in graph:
        return NetworkStructure.parents_from_json(dict(graph))
    if hasattr(graph, "edges") and hasattr(graph, "nodes"):
        for name in graph.nodes:
            labels.node(name)
        graph = list(graph.edges)
    matrix = isinstance(graph, Tensor) or hasattr(graph, "__array__")
    if not matrix:
        parents: list[list[int]] = [[] for _ in range(num)]
        for edge in graph:
            if isinstance(edge, str) or len(edge) != 2:
                raise ConfigError(f"graph: expected pairs (from, to), got {edge!r}")
            source, target = (_number(end, labels) for end in edge)
            if source not in parents[target]:
                parents[target].append(source)
        return [parents]
    adjacency = torch.as_tensor(graph).bool().cpu()
    if adjacency.ndim == 2:
        adjacency = adjacency[None]
    if adjacency.ndim != 3 or adjacency.shape[1:] != (num, num) or not len(adjacency):
        raise ShapeError(
            f"graph: expected an adjacency matrix of shape ({num}, {num}), or several stacked, got "
            f"{tuple(torch.as_tensor(graph).shape)}"
        )
    return [[torch.nonzero(one[:, v])[:, 0].tolist() for v in range(num)] for one in adjacency]


def graphs_of(source: GraphSource, which: Which, num_graphs: int, seed: int | None) -> tuple[Tensor, Tensor]:
    """Different graphs of a posterior, bool (K, n, n), and their log weights (K,)."""
    if which == "map":
        return source.map_graph()[None].bool(), torch.zeros(1, dtype=torch.float64)
    if which == "median":
        return (source.edge_probabilities() > 0.5)[None], torch.zeros(1, dtype=torch.float64)
    if which != "sample":
        raise ConfigError(f"graphs: expected 'sample', 'map' or 'median', got {which!r}")
    check_count(num_graphs, "num_graphs")
    drawn = source.sample(num_graphs, seed=seed)
    flat, number = drawn.adjacency.flatten(1).unique(dim=0, return_inverse=True)
    weights = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
    weights.index_add_(0, number, drawn.log_weights.double().exp())
    order = weights.argsort(descending=True, stable=True)
    order = order[weights[order] > 0]
    return flat[order].reshape(-1, *drawn.adjacency.shape[1:]).bool(), weights[order].log()


def _number(end: Any, labels: Labels) -> int:
    if isinstance(end, int) and not isinstance(end, bool):
        if not 0 <= end < len(labels.names):
            raise ConfigError(f"graph: expected node numbers below {len(labels.names)}, got {end}")
        return end
    return labels.node(end)
