"""Structural Hamming distance (SHD)."""

from __future__ import annotations

from torch import Tensor

from ppgen.metrics.graphs.inputs import Graph, aligned_graphs, pairs


def shd(reference: Graph, estimate: Graph) -> int:
    """Structural Hamming distance: the number of pairs of nodes that two graphs join differently.

    A missing, an extra and a reversed edge each count 1, as does an undirected edge in place of a
    directed one (Tsamardinos, Brown & Aliferis 2006). Some authors count a reversed edge twice.

    Args:
        reference: the graph to compare with.
        estimate: the other; the distance is symmetric.

    Raises:
        ShapeError, DataError: graphs that do not match.
    """
    return int(num_different_pairs(*aligned_graphs(reference, estimate)))


def num_different_pairs(first: Tensor, second: Tensor) -> Tensor:
    """:func:`shd` of bool adjacency matrices (..., n, n), int64, shape (...)."""
    (a, b), (c, d) = pairs(first), pairs(second)
    return ((a != c) | (b != d)).sum(-1)
