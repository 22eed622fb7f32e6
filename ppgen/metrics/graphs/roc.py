"""Area under the ROC curve of edges."""

from __future__ import annotations

import torch

from ppgen.metrics.graphs.inputs import Graph, HasEdgeProbabilities, Matrix
from ppgen.metrics.graphs.ranking import labels_and_scores


def auroc(reference: Graph, probabilities: Matrix | HasEdgeProbabilities, *, skeleton: bool = False) -> float:
    """Probability that an edge of the reference is ranked above a pair without one.

    Candidates are all n (n - 1) directed edges, so that a reversed edge is wrong. Probabilities are
    rounded to 1e-9 first, and candidates that then tie share their mean rank (a tie counts one half):
    otherwise differences far below any meaning would decide.

    Args:
        reference: the true graph.
        probabilities: p(i -> j), rows from, columns to, or a posterior over graphs.
        skeleton: rank the n (n - 1) / 2 pairs by p(i -> j) + p(j -> i) instead, whatever the direction.

    Returns:
        A number from 0 to 1; 0.5 by chance.

    Raises:
        DataError: the reference has no edge or all; numbers that are no probabilities; unmatched names.
        ShapeError: numbers of nodes that differ.
    """
    labels, scores = labels_and_scores(reference, probabilities, skeleton=skeleton)
    _, group, sizes = torch.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = sizes.cumsum(0).double() - (sizes.double() - 1) / 2
    positives = float(labels.sum())
    negatives = labels.numel() - positives
    above = float(mean_rank[group][labels].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)
