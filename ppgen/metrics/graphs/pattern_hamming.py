"""Structural Hamming distance between Markov equivalence classes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor

from ppgen.errors import DataError
from ppgen.metrics.graphs.hamming import num_different_pairs
from ppgen.metrics.graphs.inputs import Graph, aligned_graphs
from ppgen.ops.dags import interventional_cpdag, is_acyclic


def cpdag_shd(reference: Graph, estimate: Graph, *, targets: Iterable[Collection[int]] | None = None) -> int:
    """Number of pairs of nodes that the equivalence classes of two graphs join differently.

    Each graph stands for what observational data can tell of it, its completed partially directed graph;
    pairs are counted as in :func:`~ppgen.metrics.graphs.hamming.shd`. A graph that has undirected edges
    (both directions of a pair) is taken to be such a class already.

    Args:
        reference: the graph to compare with, a DAG or a CPDAG.
        estimate: the other; the distance is symmetric.
        targets: nodes set together in each kind of data, by their numbers in the reference, the empty
            set for observational data: compare what data under these perfect interventions can tell.

    Raises:
        DataError: a directed graph has a cycle; graphs that do not match.
        ShapeError: numbers of nodes that differ.
        ConfigError: targets that are no nodes, or always hold one of them.
    """
    first, second = aligned_graphs(reference, estimate)
    families: list[Collection[int]] = [()] if targets is None else list(targets)
    return int(
        num_different_pairs(_pattern(first, families, "reference"), _pattern(second, families, "estimate"))
    )


def _pattern(adjacency: Tensor, targets: list[Collection[int]], argument: str) -> Tensor:
    if bool((adjacency & adjacency.mT).any()):
        return adjacency
    if not bool(is_acyclic(adjacency)):
        raise DataError(
            f"{argument}: expected a graph without directed cycles, which has a class; got a cycle"
        )
    return interventional_cpdag(adjacency, targets)
