"""Structural Hamming distance averaged over a posterior."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ppgen import contract
from ppgen.errors import DataError
from ppgen.metrics.graphs.hamming import num_different_pairs
from ppgen.metrics.graphs.inputs import Graph, aligned_graphs


class WeightedGraphs(Protocol):
    """Graphs with weights, as draws from a posterior are."""

    @property
    def adjacency(self) -> Tensor:
        """Bool, shape (S, n, n)."""

    @property
    def log_weights(self) -> Tensor:
        """Shape (S,), normalised."""


def expected_shd(reference: Graph, graphs: WeightedGraphs) -> contract.Estimate:
    r"""Mean of :func:`~ppgen.metrics.graphs.hamming.shd` over draws from a posterior.

    The standard error takes the draws as independent, :math:`\sqrt{\sum_s w_s^2 (d_s - \bar d)^2}`.

    Args:
        reference: the graph to compare with, nodes in the order of the draws.
        graphs: the draws.

    Returns:
        A scalar of kind ``estimate``.

    Raises:
        DataError: no draws, or a reference that is no graph.
        ShapeError: numbers of nodes that differ.
    """
    draws = graphs.adjacency
    if not len(draws):
        raise DataError("graphs: expected at least one draw, got none")
    truth, _ = aligned_graphs(reference, draws[0])
    distance = num_different_pairs(truth.to(draws.device), draws).double()
    weights = graphs.log_weights.double().exp()
    mean = (weights * distance).sum()
    error = torch.sqrt((weights**2 * (distance - mean) ** 2).sum())
    return contract.Estimate.of(mean, contract.Kind.ESTIMATE, error)
