"""Structural intervention distance (SID)."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.errors import DataError
from ppgen.metrics.graphs.inputs import Graph, aligned_graphs
from ppgen.ops.dags import closure, is_acyclic


def sid(reference: Graph, estimate: Graph) -> int:
    """Structural intervention distance of Peters & Buehlmann (2015) between two DAGs.

    The number of ordered pairs (i, j) for which the effect of setting i on j, computed in the estimate by
    adjusting for the parents that i has there, is wrong for some distribution of the reference: 0 to
    n (n - 1), 0 also where the estimate has extra edges only. Not symmetric. Cost O(n^4 log n).

    Args:
        reference: the true DAG.
        estimate: the other DAG.

    Raises:
        DataError: a graph is not a DAG, or names that do not match.
        ShapeError: numbers of nodes that differ.
    """
    first, second = aligned_graphs(reference, estimate)
    for argument, graph in (("reference", first), ("estimate", second)):
        if not bool(is_acyclic(graph)):
            raise DataError(
                f"{argument}: expected a directed graph without cycles, got one with a cycle or with "
                "undirected edges; take a DAG, such as one of those that a CPDAG stands for"
            )
    return int(_wrong_effects(first, second).sum())


def _wrong_effects(truth: Tensor, estimate: Tensor) -> Tensor:
    """Whether the estimate gets the effect of i on j wrong, bool (n, n); Peters & Buehlmann, Prop. 6."""
    n = truth.shape[-1]
    own = torch.eye(n, dtype=torch.bool, device=truth.device)
    descends = closure(truth)
    reaches = descends | own
    adjusted = estimate.T  # [i, z]: z is a parent of i in the estimate
    # causal[i, j, w]: w other than i is on a directed path from i to j.
    causal = descends[:, None, :] & reaches.T[None, :, :]
    spoilt = (causal.float() @ reaches.float() > 0.5) & adjusted[:, None, :]
    wrong = spoilt.any(-1) | _open_paths(truth, adjusted, reaches)
    # For a j that the estimate holds for a cause of i, it says that there is no effect.
    return torch.where(adjusted, descends, wrong) & ~own


def _open_paths(dag: Tensor, given: Tensor, reaches: Tensor) -> Tensor:
    """Whether a path from i to j that is not directed is open given the set of i; bool (n, n).

    Bayes ball: a state is a node and whether it was come to along an arrow or against one. The first step
    decides: back to a parent of i, or to a child from which no directed path leads to j. Walks that come
    back to i need not be followed: what they do from there on starts at i as well.

    Args:
        dag: bool (n, n).
        given: bool (n, n), row i the set given for i.
        reaches: closure of ``dag`` with the diagonal.
    """
    n = dag.shape[-1]
    passes = ~given & ~torch.eye(n, dtype=torch.bool, device=dag.device)
    collides = (given.float() @ reaches.T.float() > 0.5) & passes.new_ones(n, n).fill_diagonal_(False)
    moves = torch.zeros(n, 2, n, 2, n, dtype=torch.bool, device=dag.device)
    moves[:, 0, :, 0] = passes[:, :, None] & dag  # along, along
    moves[:, 0, :, 1] = collides[:, :, None] & dag.T  # along, against: a collider
    moves[:, 1, :, 0] = passes[:, :, None] & dag
    moves[:, 1, :, 1] = passes[:, :, None] & dag.T
    reach = closure(moves.reshape(n, 2 * n, 2 * n)) | torch.eye(2 * n, dtype=torch.bool, device=dag.device)
    ends = reach.reshape(n, 2, n, 2, n).any(3)  # [i, way, start, j]
    through_parents = (dag.T[:, :, None] & ends[:, 1]).any(1)
    children = dag[:, :, None] & ~reaches
    return through_parents | (children & ends[:, 0]).any(1)
