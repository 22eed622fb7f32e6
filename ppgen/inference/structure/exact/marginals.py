r"""Posteriors of families and edges, from the weight of all that is not the family.

Both lattices end with a table :math:`r_v(S)`, the weight, divided by Z, of everything but the family of v
when v comes after the set S; the family posterior is
:math:`p(v, P) = \beta_v(P) \sum_{S \supseteq P} r_v(S)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.inference.structure.exact.lattice import sums_by_member, superset_logsumexp_
from ppgen.inference.structure.exact.order import OrderTables
from ppgen.inference.structure.exact.uniform import UniformTables

PriorKind = Literal["uniform", "order"]


def make_tables(
    log_scores: Tensor, prior: PriorKind, tick: Callable[[int], object] | None = None
) -> OrderTables | UniformTables:
    """The sums over DAGs, or over orders, for scores (n, 2^(n-1)); ``tick`` is told of terms done."""
    return OrderTables(log_scores) if prior == "order" else UniformTables(log_scores, tick=tick)


def family_posterior(log_scores: Tensor, tables: OrderTables | UniformTables, node: int) -> Tensor:
    """p(P is the parent set of ``node``), by the column of P: shape (2^(n-1),)."""
    return superset_logsumexp_(tables.log_rest(node)).add_(log_scores[node]).exp_()


def edge_column(families: Tensor, node: int) -> Tensor:
    """Probabilities of the edges into ``node``, shape (n,), from its family posterior (2^(n-1),)."""
    others = sums_by_member(families)
    return torch.cat([others[:node], others.new_zeros(1), others[node:]])


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_scores: Tensor, prior: PriorKind) -> Tensor:
        tables = make_tables(log_scores, prior)
        ctx.save_for_backward(log_scores)
        ctx.tables = tables
        return tables.log_partition.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (log_scores,) = ctx.saved_tensors
        nodes = range(len(log_scores))
        return grads[0] * torch.stack([family_posterior(log_scores, ctx.tables, v) for v in nodes]), None


def log_partition(log_scores: Tensor, prior: PriorKind = "uniform") -> Tensor:
    r"""Log of the sum over DAGs G of :math:`w(G) \prod_v \beta_v(P_v)`, in nats, a scalar; differentiable.

    The gradient with respect to :math:`\log \beta_v(P)` is the posterior of the family (v, P).

    Args:
        log_scores: log beta, shape (n, 2^(n-1)), float64.
        prior: ``"uniform"``: w = 1; ``"order"``: w(G) is the number of linear extensions of G.
    """
    return _LogPartition.apply(log_scores, prior)
