r"""The uniform prior where its sums are out of reach: order-modular draws, weighted.

A DAG comes from the order-modular posterior in proportion to its number of linear extensions e(G) (Ellis &
Wong 2008); the weight 1 / e(G) takes that out, and its mean is the ratio of both normalisers:
:math:`Z_{\text{uniform}} / Z_{\text{order}} = E[1 / e(G)]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.inference.structure.exact.order import OrderTables
from ppgen.inference.structure.exact.sampling import draw_by_order
from ppgen.ops.dags import log_num_linear_extensions


@dataclass(frozen=True)
class ReweightedDraws:
    r"""Weighted draws from the posterior under the uniform prior.

    Attributes:
        adjacency: bool, shape (S, n, n).
        log_weights: normalised, shape (S,).
        log_partition: log Z under the uniform prior, an estimate.
        effective_size: :math:`1 / \sum_s w_s^2`, by which errors shrink.
    """

    adjacency: Tensor
    log_weights: Tensor
    log_partition: Estimate
    effective_size: float


def draw_reweighted(
    log_scores: Tensor, tables: OrderTables, num: int, generator: torch.Generator
) -> ReweightedDraws:
    """Draw ``num`` DAGs from the order-modular posterior and weight them.

    Args:
        log_scores: shape (n, 2^(n-1)).
        tables: sums over orders for these scores.
        num: S.
        generator: of random numbers.
    """
    adjacency = draw_by_order(log_scores, tables, num, generator)
    log_ratio = -log_num_linear_extensions(adjacency)
    total = log_ratio.logsumexp(0)
    log_weights = log_ratio - total
    effective = float((-(2 * log_weights).logsumexp(0)).exp())
    # The relative variance of the mean weight, (S / ESS - 1) / S, by the delta method.
    error = log_weights.new_tensor(math.sqrt(max(1 / effective - 1 / num, 0.0)))
    log_partition = Estimate(tables.log_partition + total - math.log(num), Kind.ESTIMATE, error)
    return ReweightedDraws(adjacency, log_weights, log_partition, effective)
