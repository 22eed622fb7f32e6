r"""Local scores of families: :math:`\log \beta_v(P)` for a variable v and a set P of parents.

A score of graphs is *modular*: :math:`\log p(G, D) = \sum_v \log \beta_v(P_v)`, so that every learner needs
these numbers and nothing else of the data. Two layouts:

* :class:`DenseScores`: every subset of the other variables, for the exact methods;
* :class:`ListedScores`: the sets that are allowed and worth keeping, for the sampled ones.

Where unknown agents act on the variables, the score of (v, P) is summed over the sets Q of agents that
may act on v, :math:`\beta_v(P) = \sum_Q \beta_v(P, Q)`; the terms are kept in ``agent_terms``, so that the
posterior of each agent's targets follows from that of the families.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenseScores:
    """Local scores of all families, in nats.

    The column of a set P for variable v is the number whose bits are the members of P with bit v
    squeezed out: members below v keep their bit, members above v move down by one.

    Attributes:
        log_scores: shape (n, 2^(n-1)), float64; ``-inf`` for sets that are not allowed.
        agent_sets: shape (Q, A), bool: the sets of agents that may act on one variable; ``None`` without.
        agent_terms: shape (n, 2^(n-1), Q): log score of (v, P, Q), whose logsumexp over Q is ``log_scores``.
    """

    log_scores: Tensor
    agent_sets: Tensor | None = None
    agent_terms: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        """Number of variables, n."""
        return self.log_scores.shape[0]


@dataclass(frozen=True)
class ListedScores:
    """Local scores of listed families, in nats.

    Attributes:
        parents: for each variable, shape (F_v, k), int64: the members of each set in increasing order,
            filled up with -1. The empty set is listed unless it is not allowed.
        log_scores: for each variable, shape (F_v,), float64.
        agent_sets: as in :class:`DenseScores`.
        agent_terms: for each variable, shape (F_v, Q).
    """

    parents: tuple[Tensor, ...]
    log_scores: tuple[Tensor, ...]
    agent_sets: Tensor | None = None
    agent_terms: tuple[Tensor, ...] | None = None

    @property
    def num_nodes(self) -> int:
        """Number of variables, n."""
        return len(self.parents)


def squeeze(mask: Tensor, node: int) -> Tensor:
    """Column numbers in :class:`DenseScores` of sets given by their bits (int64; bit ``node`` is ignored)."""
    low = (1 << node) - 1
    return (mask & low) | ((mask >> 1) & ~low)


def unsqueeze(column: Tensor, node: int) -> Tensor:
    """Bits of the sets in these columns of ``node``'s row; bit ``node`` is 0."""
    low = (1 << node) - 1
    return (column & low) | ((column & ~low) << 1)


def members(mask: Tensor, num_nodes: int) -> Tensor:
    """Sets given by their bits as booleans, shape ``(*mask.shape, n)``."""
    return (mask[..., None] >> torch.arange(num_nodes, device=mask.device)) & 1 > 0
