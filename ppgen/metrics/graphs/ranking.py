"""Edges ranked by probability, with ties as ties."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.errors import DataError, ShapeError
from ppgen.metrics.graphs.inputs import (
    Graph,
    HasEdgeProbabilities,
    Matrix,
    aligned_probabilities,
    off_diagonal,
    pairs,
)

_DECIMALS = 9


def labels_and_scores(
    reference: Graph, probabilities: Matrix | HasEdgeProbabilities, *, skeleton: bool
) -> tuple[Tensor, Tensor]:
    """Which candidate edges are in the reference, bool (E,), and their rounded probabilities, (E,).

    Probabilities are rounded to 1e-9: exact posteriors put most absent edges somewhere below 1e-10, and
    their order there, which is that of rounding errors and far tails, would decide the metric.

    Raises:
        DataError: the reference has no edge, or every edge there can be.
        ShapeError: more than one graph.
    """
    truth, scores = aligned_probabilities(reference, probabilities)
    if truth.ndim != 2 or scores.ndim != 2:
        raise ShapeError(
            f"probabilities: expected one matrix, got {tuple(scores.shape)} and a reference of "
            f"{tuple(truth.shape)}; rank the edges of one graph at a time"
        )
    if skeleton:
        forwards, backwards = pairs(truth)
        labels = forwards | backwards
        scores = torch.stack(pairs(scores)).sum(0)  # a DAG has one of both at most
    else:
        labels, scores = off_diagonal(truth), off_diagonal(scores)
    scores = scores.round(decimals=_DECIMALS)
    if bool(labels.all()) or not bool(labels.any()):
        raise DataError(
            "reference: expected some edges and some pairs without one, so that they can be told apart; "
            f"got {int(labels.sum())} edges of {labels.numel()}"
        )
    return labels, scores
