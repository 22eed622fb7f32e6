"""Calibration of edge probabilities: of the edges called 70% sure, are 70% there?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.metrics.graphs.inputs import (
    Graph,
    HasEdgeProbabilities,
    Matrix,
    aligned_probabilities,
    off_diagonal,
)


@dataclass(frozen=True)
class EdgeCalibration:
    r"""How often edges of a stated probability are there; float64 tensors, empty bins left out.

    Attributes:
        predicted: mean stated probability in each bin, shape (K,).
        observed: share of the bin's candidates that are edges of the reference, (K,).
        std_error: standard error that ``observed`` has if the probabilities are right, and edges
            independent: :math:`\sqrt{\sum p (1 - p)} / m`, (K,).
        count: number of candidates in each bin, (K,).
        brier: mean squared difference between probability and truth; 0 is best.
        log_score: mean log probability of what is true, in nats; 0 is best, ``-inf`` where something
            true was called impossible.
        calibration_error: mean absolute difference between stated and observed, weighted by count.
    """

    predicted: Tensor
    observed: Tensor
    std_error: Tensor
    count: Tensor
    brier: float
    log_score: float
    calibration_error: float


def edge_calibration(
    reference: Graph, probabilities: Matrix | HasEdgeProbabilities, *, num_bins: int = 10
) -> EdgeCalibration:
    """Compare stated probabilities of directed edges with the frequency of edges among them.

    Bins are of equal width over [0, 1]. One graph has few edges of each probability: give batches of
    references and probabilities from many simulated data sets to see more than gross errors.

    Args:
        reference: the true graph, or graphs, shape (..., n, n).
        probabilities: p(i -> j), rows from, columns to, same shape, or a posterior over graphs.
        num_bins: how many bins.

    Raises:
        ConfigError: no bins.
        DataError, ShapeError: graphs and probabilities that do not match.
    """
    if num_bins < 1:
        raise ConfigError(f"num_bins: expected a positive integer, got {num_bins}")
    truth, stated = aligned_probabilities(reference, probabilities)
    labels, p = (off_diagonal(x).flatten().double() for x in torch.broadcast_tensors(truth, stated))
    bins = (p * num_bins).long().clamp_max(num_bins - 1)

    def total(values: Tensor) -> Tensor:
        return torch.zeros(num_bins, dtype=torch.float64, device=p.device).index_add_(0, bins, values)

    count = total(torch.ones_like(p))
    used = count > 0
    count = count[used]
    predicted, observed = total(p)[used] / count, total(labels)[used] / count
    return EdgeCalibration(
        predicted=predicted,
        observed=observed,
        std_error=total(p * (1 - p))[used].sqrt() / count,
        count=count,
        brier=float(((p - labels) ** 2).mean()),
        log_score=float(torch.where(labels > 0, p.log(), torch.log1p(-p)).mean()),
        calibration_error=float(((predicted - observed).abs() * count).sum() / count.sum()),
    )
