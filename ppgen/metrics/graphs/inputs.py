"""Graphs and edge probabilities in the forms that people have them, as aligned tensors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppgen.errors import DataError, ShapeError

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

Matrix: TypeAlias = "Tensor | NDArray[Any] | pd.DataFrame"
#: adjacency [i, j] for i -> j, with both directions for an undirected edge; or a networkx or pgmpy graph
Graph: TypeAlias = "Matrix | nx.DiGraph"


@runtime_checkable
class HasEdgeProbabilities(Protocol):
    """A posterior over graphs, as far as metrics need it."""

    @property
    def edge_probabilities(self) -> Any:
        """p(i -> j), a matrix with rows from and columns to, or a function that returns it."""


def aligned_graphs(reference: Graph, estimate: Graph) -> tuple[Tensor, Tensor]:
    """Two graphs as bool adjacency matrices with nodes in the reference's order.

    Raises:
        ShapeError: no square matrix, or numbers of nodes that differ.
        DataError: entries other than 0 and 1, an edge from a node to itself, or names that do not match.
    """
    first, second = _aligned(("reference", reference), ("estimate", estimate))
    for argument, matrix in (("reference", first), ("estimate", second)):
        if matrix.ndim != 2:
            raise ShapeError(f"{argument}: expected one graph, shape (n, n), got {tuple(matrix.shape)}")
    return _as_bool(first, "reference"), _as_bool(second, "estimate")


def aligned_probabilities(
    reference: Graph, probabilities: Matrix | HasEdgeProbabilities
) -> tuple[Tensor, Tensor]:
    """A graph as a bool adjacency and probabilities of edges in float64, in the reference's order of nodes.

    Raises:
        ShapeError: no square matrix, or numbers of nodes that differ.
        DataError: probabilities that are NaN or outside [0, 1], or as for :func:`aligned_graphs`.
    """
    given: Any = probabilities
    if isinstance(probabilities, HasEdgeProbabilities):
        given = probabilities.edge_probabilities
        given = given() if callable(given) else given
    first, second = _aligned(("reference", reference), ("probabilities", given))
    second = second.double()
    # Sums of probabilities may be above 1 by rounding.
    if not bool(((second >= 0) & (second <= 1 + 1e-9)).all()):
        raise DataError("probabilities: expected numbers from 0 to 1, got others or NaN")
    return _as_bool(first, "reference"), second.clamp_max(1.0)


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries of matrices (..., n, n) with i and j different, shape (..., n (n - 1))."""
    n = matrix.shape[-1]
    return matrix[..., ~torch.eye(n, dtype=torch.bool, device=matrix.device)]


def pairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Entries [i, j] and [j, i] for each pair i < j, each of shape (..., n (n - 1) / 2)."""
    n = matrix.shape[-1]
    i, j = torch.triu_indices(n, n, 1, device=matrix.device)
    return matrix[..., i, j], matrix[..., j, i]


def _aligned(first: tuple[str, Any], second: tuple[str, Any]) -> tuple[Tensor, Tensor]:
    (a, names), (b, others) = _matrix(*first), _matrix(*second)
    if a.shape[-1] != b.shape[-1]:
        raise ShapeError(
            f"{second[0]}: expected {a.shape[-1]} nodes as in {first[0]}, got {b.shape[-1]}; "
            "drop or add nodes so that both have the same"
        )
    if names is not None and others is not None and list(names) != list(others):
        if set(names) != set(others):
            raise DataError(
                f"{second[0]}: expected the nodes of {first[0]}; it lacks "
                f"{sorted(map(str, set(names) - set(others)))} and has "
                f"{sorted(map(str, set(others) - set(names)))} instead"
            )
        order = torch.tensor([others.index(name) for name in names], device=b.device)
        b = b[..., order, :][..., order]
    return a, b.to(a.device)


def _matrix(argument: str, graph: Any) -> tuple[Tensor, list[Hashable] | None]:
    """A matrix (..., n, n) and the names of its nodes, ``None`` where they are numbers 0 to n - 1."""
    names: Sequence[Hashable] | None = None
    if isinstance(graph, HasEdgeProbabilities):
        raise DataError(
            f"{argument}: expected one graph, got a posterior over graphs; give its median_graph() or "
            "map_graph(), or use expected_shd, auroc, auprc or edge_calibration, which take probabilities"
        )
    if hasattr(graph, "edges") and hasattr(graph, "nodes"):
        names = list(graph.nodes)
        if set(names) == set(range(len(names))):
            names = range(len(names))
        place = {name: i for i, name in enumerate(names)}
        matrix = torch.zeros(len(names), len(names), dtype=torch.bool)
        for i, j in graph.edges():
            matrix[place[i], place[j]] = True
    elif hasattr(graph, "index") and hasattr(graph, "columns"):
        names = list(graph.index)
        if sorted(map(repr, names)) != sorted(map(repr, graph.columns)) or len(set(names)) < len(names):
            raise DataError(f"{argument}: expected a table whose rows and columns are the same nodes")
        matrix = torch.tensor(np.array(graph[names]))
    else:
        matrix = graph if isinstance(graph, Tensor) else _as_tensor(argument, graph)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeError(
            f"{argument}: expected a square matrix with rows from and columns to, got {tuple(matrix.shape)}"
        )
    if names is None or list(names) == list(range(len(names))):
        return matrix, None
    return matrix, list(names)


def _as_tensor(argument: str, graph: Any) -> Tensor:
    try:
        return torch.tensor(np.array(graph))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{argument}: expected a networkx graph, a table or a matrix of numbers, got a "
            f"{type(graph).__name__}"
        ) from error


def _as_bool(matrix: Tensor, argument: str) -> Tensor:
    if not bool(((matrix == 0) | (matrix == 1)).all()):
        raise DataError(
            f"{argument}: expected entries 0 and 1, got others; threshold probabilities or weights first"
        )
    if bool(matrix.diagonal(dim1=-2, dim2=-1).any()):
        raise DataError(f"{argument}: expected no edge from a node to itself")
    return matrix.bool()
