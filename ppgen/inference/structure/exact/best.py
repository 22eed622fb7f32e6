r"""The DAG with the largest product of family scores (Silander & Myllymäki 2006).

The recursion over orders of :mod:`~ppgen.inference.structure.exact.order` with maxima for sums. The number of
orders that fit a DAG does not enter: under the order-modular prior this is the DAG of the largest score
and family prior, not of the largest posterior probability, for which no such recursion is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.exact.lattice import forward, subset_max_
from ppgen.inference.structure.families import members, squeeze, unsqueeze


@dataclass(frozen=True)
class BestDag:
    """A DAG of the largest score.

    Attributes:
        adjacency: shape (n, n), bool.
        columns: the parent set of each node, by its column in the table of scores; shape (n,).
        log_score: sum of the scores of its families, a scalar; ``-inf`` where every DAG has that.
    """

    adjacency: Tensor
    columns: Tensor
    log_score: Tensor


def best_dag(log_scores: Tensor) -> BestDag:
    """The best DAG; of equals, the one whose last nodes and then parent sets have the lowest numbers.

    Args:
        log_scores: shape (n, 2^(n-1)), as in :class:`~ppgen.inference.structure.families.DenseScores`.
    """
    num_nodes = len(log_scores)
    best_within = subset_max_(log_scores.clone())
    best = forward(best_within, lambda values: values.amax(0))
    columns = torch.zeros(num_nodes, dtype=torch.int64, device=log_scores.device)
    all_columns = torch.arange(log_scores.shape[1], device=log_scores.device)
    remaining = (1 << num_nodes) - 1
    for _ in range(num_nodes):
        inside = [v for v in range(num_nodes) if remaining >> v & 1]
        before = [_column(remaining ^ (1 << v), v) for v in inside]
        values = torch.stack(
            [best_within[v, c] + best[remaining ^ (1 << v)] for v, c in zip(inside, before, strict=True)]
        )
        place = int(values.argmax())
        node, column = inside[place], before[place]
        # The first of the best sets: those outside `column` are out of the race.
        scores = log_scores[node].masked_fill((all_columns & ~column) != 0, -torch.inf)
        columns[node] = scores.argmax()
        remaining ^= 1 << node
    return BestDag(adjacency_of(columns), columns, best[-1])


def adjacency_of(columns: Tensor) -> Tensor:
    """Adjacency matrices, bool (..., n, n), of DAGs given by the columns of their parent sets (..., n)."""
    num_nodes = columns.shape[-1]
    parents = [members(unsqueeze(columns[..., v], v), num_nodes) for v in range(num_nodes)]
    return torch.stack(parents, -1)


def columns_of(adjacency: Tensor) -> Tensor:
    """Columns of the parent sets, int64 (..., n), of graphs (..., n, n); undoes :func:`adjacency_of`."""
    num_nodes = adjacency.shape[-1]
    bits = torch.arange(num_nodes, device=adjacency.device)
    masks = (adjacency.long() << bits[:, None]).sum(-2)
    return torch.stack([squeeze(masks[..., v], v) for v in range(num_nodes)], -1)


def _column(mask: int, node: int) -> int:
    low = (1 << node) - 1
    return (mask & low) | ((mask >> 1) & ~low)
