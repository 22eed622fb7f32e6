"""Area under the precision-recall curve of edges."""

from __future__ import annotations

import torch

from ppgen.metrics.graphs.inputs import Graph, HasEdgeProbabilities, Matrix
from ppgen.metrics.graphs.ranking import labels_and_scores


def auprc(reference: Graph, probabilities: Matrix | HasEdgeProbabilities, *, skeleton: bool = False) -> float:
    r"""Average precision of edges ranked by probability.

    :math:`\sum_k (R_k - R_{k-1}) P_k` over thresholds from high to low, with precision P and recall R,
    without interpolation. Probabilities are rounded to 1e-9 first, and candidates that then tie enter
    together.
    Unlike the AUROC it does not reward a sparse truth: chance is the share of edges among candidates.

    Args:
        reference: the true graph.
        probabilities: p(i -> j), rows from, columns to, or a posterior over graphs.
        skeleton: rank the n (n - 1) / 2 pairs by p(i -> j) + p(j -> i) instead, whatever the direction.

    Returns:
        A number from 0 to 1.

    Raises:
        DataError: the reference has no edge or all; numbers that are no probabilities; unmatched names.
        ShapeError: numbers of nodes that differ.
    """
    labels, scores = labels_and_scores(reference, probabilities, skeleton=skeleton)
    _, group, sizes = torch.unique(-scores, return_inverse=True, return_counts=True)
    hits = torch.zeros(len(sizes), dtype=torch.float64, device=scores.device)
    hits.index_add_(0, group, labels.double())
    precision = hits.cumsum(0) / sizes.cumsum(0)
    return float((hits * precision).sum() / hits.sum())
