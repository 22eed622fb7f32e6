"""How probable it is that data, in any number, could tell the direction of an edge."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.problem import WeightedGraphs
from ppgen.ops.dags import interventional_cpdag, unique_graphs


@dataclass(frozen=True)
class ClassProbabilities:
    """Posterior of what the equivalence class of the graph has between two nodes; float64, shape (n, n).

    For each pair, ``compelled[i, j] + compelled[j, i] + undirected[i, j] + absent[i, j]`` is 1.

    Attributes:
        compelled: i -> j in every member of the class.
        undirected: an edge that members direct differently, symmetric.
        absent: no edge, symmetric.
        compelled_error: standard error of ``compelled``.
        undirected_error: of ``undirected``.
        absent_error: of ``absent``.
    """

    compelled: Tensor
    undirected: Tensor
    absent: Tensor
    compelled_error: Tensor
    undirected_error: Tensor
    absent_error: Tensor


def class_probabilities(
    graphs: WeightedGraphs, targets: Iterable[Collection[int]], edge_errors: Tensor
) -> ClassProbabilities:
    r"""Frequencies of compelled, undirected and absent edges in the classes of drawn DAGs.

    Standard errors are those of self-normalised weights, :math:`\sqrt{\sum_s w_s^2 (x_s - \bar x)^2}`. Draws
    from a chain's states look more alike than that tells; what the chain itself is unsure of, the larger
    error of the pair's two edges, is added in quadrature.

    Args:
        graphs: DAGs with weights.
        targets: sets of nodes that were set together, as for
            :func:`~ppgen.ops.equivalence.interventional_cpdag`; ``[()]`` for observational classes.
        edge_errors: standard errors of the probabilities of edges, (n, n); 0 where these are exact.
    """
    unique, inverse = unique_graphs(graphs.adjacency)
    weights = graphs.log_weights.double().exp()
    size = len(unique)
    total = torch.zeros(size, dtype=torch.float64, device=weights.device).index_add_(0, inverse, weights)
    squared = torch.zeros_like(total).index_add_(0, inverse, weights**2)
    pattern = interventional_cpdag(unique, targets)
    shared = torch.maximum(edge_errors, edge_errors.mT).to(total)

    def frequency(event: Tensor) -> tuple[Tensor, Tensor]:
        flat = event.flatten(1).double()
        mean = total @ flat
        # For 0 and 1, (x - m)^2 = x (1 - 2 m) + m^2.
        spread = (squared @ flat) * (1 - 2 * mean) + squared.sum() * mean**2
        error = spread.clamp_min(0).sqrt().reshape(shared.shape)
        return mean.reshape(shared.shape), torch.hypot(error, shared)

    compelled, compelled_error = frequency(pattern & ~pattern.mT)
    undirected, undirected_error = frequency(pattern & pattern.mT)
    absent, absent_error = frequency(~(pattern | pattern.mT))
    return ClassProbabilities(compelled, undirected, absent, compelled_error, undirected_error, absent_error)
