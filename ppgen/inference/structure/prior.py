r"""Priors over DAGs, and what is known of their edges.

All are modular in families, :math:`p(G) \propto w(G) \prod_v \rho_v(P_v)`, with :math:`w = 1` for the uniform
prior over DAGs and :math:`w(G)` the number of linear extensions of G for the order-modular one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class GraphPrior:
    """Prior over DAGs.

    Attributes:
        kind: ``"uniform"``: the same for every DAG, up to the factors below; ``"order"``: the same for
            every pair of an order and a DAG that fits it, which favours DAGs with many linear extensions.
        fan_in: ``None``: no preference; ``"cardinality"``: each number of parents alike, and alike within
            it (Koivisto & Sood 2004); or log weights by number of parents 0, 1, 2, ... (nats).
        edges: prior probabilities of the edges, shape (n, n), rows from, columns to; the factor of a
            graph is the product of p for each edge in it and 1 - p for each edge not in it.
    """

    kind: Literal["uniform", "order"] = "uniform"
    fan_in: Literal["cardinality"] | Sequence[float] | None = None
    edges: Tensor | None = None


@dataclass(frozen=True)
class Constraints:
    """What is known of the edges before seeing data.

    Attributes:
        required: edges (from, to) that every graph has.
        forbidden: edges that no graph has.
        tiers: groups of variables; nothing in a later group is a cause of anything in an earlier one.
            Variables in no group are free.
        max_parents: the largest number of parents; ``None`` for no limit.
    """

    required: Sequence[tuple[str, str]] = ()
    forbidden: Sequence[tuple[str, str]] = ()
    tiers: Sequence[Sequence[str]] = ()
    max_parents: int | None = None
