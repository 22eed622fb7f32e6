r"""The order-modular posterior (Koivisto & Sood 2004; Koivisto 2006).

Each pair of an order of the nodes and a DAG that fits it has the weight :math:`\prod_v \beta_v(P_v)`.
With :math:`\alpha_v(S) = \sum_{P \subseteq S} \beta_v(P)`, the weight of all pairs whose order begins with
the nodes of S is L(S) R(S), where

.. math::

    L(S) = \sum_{v \in S} \alpha_v(S \setminus v) L(S \setminus v), \qquad
    R(S) = \sum_{v \notin S} \alpha_v(S) R(S \cup v),

and :math:`Z = L(V) = R(\emptyset)`. All sums have positive terms and are taken in the log domain, since the
scores of one table span thousands of nats. :math:`O(n^2 2^n)` time.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ppgen.inference.structure.exact.lattice import backward, forward, subset_logsumexp_

_LOGSUMEXP = functools.partial(torch.logsumexp, dim=0)


class OrderTables:
    """Sums over orders.

    Attributes:
        log_alpha: shape (n, 2^(n-1)): logsumexp of the scores of all subsets of a set.
        log_prefix: log L, shape (2^n,).
    """

    def __init__(self, log_scores: Tensor) -> None:
        self.log_alpha = subset_logsumexp_(log_scores.clone())
        self.log_prefix = forward(self.log_alpha, _LOGSUMEXP)

    @functools.cached_property
    def log_suffix(self) -> Tensor:
        """Log R, shape (2^n,); made when first asked for."""
        return backward(self.log_alpha, _LOGSUMEXP)

    @property
    def log_partition(self) -> Tensor:
        """Log Z, a scalar."""
        return self.log_prefix[-1]

    def log_rest(self, node: int) -> Tensor:
        r"""Log of :math:`L(S) R(S \cup v) / Z` for every S without v, by its column: shape (2^(n-1),)."""
        before = self.log_prefix.view(-1, 2, 1 << node)[:, 0]
        after = self.log_suffix.view(-1, 2, 1 << node)[:, 1]
        return (before + after - self.log_partition).reshape(-1)
