r"""The posterior under the uniform prior over DAGs, by inclusion and exclusion (Tian & He 2009).

With :math:`\alpha_v(B) = \sum_{P \subseteq B} \beta_v(P)`, let G(B) be the weight of all DAGs on the nodes
outside B, whose parents may also be in B. Some of these nodes have their parents in B only; summing over sets
T of such nodes with alternating signs counts each DAG once:

.. math::

    G(B) = \sum_{\emptyset \ne T \subseteq V \setminus B} (-1)^{|T| + 1}
    \prod_{v \in T} \alpha_v(B) \, G(B \cup T), \qquad Z = G(\emptyset).

The marginals come from one adjoint pass, written here in probabilities. Let
:math:`c(B, T) = (-1)^{|T|+1} \prod_{v \in T} \alpha_v(B) G(B \cup T) / G(B)`. Then

* p(B), the probability that B is ancestrally closed, is :math:`p(S) = \sum_{B \cup T = S} p(B) c(B, T)`;
* :math:`q_v(B) = p(B) \sum_{T \ni v} c(B, T)` is the probability that the non-descendants of v are just B:
  the signs cancel unless v alone has all its parents in B.

The parents of v are among its non-descendants, so that
:math:`p(v, P) = \beta_v(P) \sum_{B \supseteq P} q_v(B) / \alpha_v(B)`, and the probability of a path from v
to t is the sum of :math:`q_v(B)` over B without t. :math:`O(3^n)` time, :math:`O(n 2^n)` memory.

*Cancellation.* :math:`|c(B, T)|` is the probability that the nodes of T have their parents in B, given that
B is closed: none exceeds 1, though up to :math:`2^{n - |B|}` of them make a sum of 1. A relative error made
in G(B) reaches Z in proportion to p(B). So to first order the relative error of Z, and with it the absolute
error of probabilities, stays below :math:`\epsilon \sum_{B, T} p(B) |c(B, T)| \le 3^n \epsilon`, which is
1e-8 for 16 nodes, and in practice far below. The sum is worked out, with the rounding of the logarithms, in
``rounding_error``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.exact.best import best_dag
from ppgen.inference.structure.exact.lattice import (
    Layers,
    chunk_size,
    family_index,
    family_values,
    signs,
    subset_logsumexp_,
    sums_by_member,
    sums_over_subsets,
)

Tick = Callable[[int], object]

# exp() takes many times as long where its result is denormal or zero; weights below are none.
_LOG_NOTHING = -700.0
_NOTHING = 1e-290


@dataclass(frozen=True)
class _Block:
    """Closed sets B of one size, and all sets T of the nodes outside them; both along tensors (2^m, rows)."""

    outside: Tensor  # shape (m, rows)
    log_products: Tensor  # log of the product over T of alpha_v(B), shape (2^m, rows)
    unions: Tensor  # B with T, shape (2^m, rows)


class UniformTables:
    r"""Sums over DAGs; see the module for the symbols.

    Attributes:
        log_alpha: shape (n, 2^(n-1)): logsumexp of the shifted scores of all subsets of a set.
        log_completions: log G with shifted scores, shape (2^n,).
        log_partition: log Z, a scalar.
        shift: what was taken off the scores of each node, so that the best DAG has weight 1, shape (n,).
        descent: :math:`q_v(B)`, the probability that B holds just the non-descendants of v; (n, 2^(n-1)).
        rounding_error: bound, to first order, on what rounding did to probabilities, see the module.

    Args:
        log_scores: shape (n, 2^(n-1)).
        tick: told of terms done, of about 2 * 3^n.
    """

    def __init__(self, log_scores: Tensor, *, tick: Tick | None = None) -> None:
        self._tick = tick
        self.num_nodes = len(log_scores)
        best = best_dag(log_scores)
        shift = log_scores.gather(1, best.columns[:, None])[:, 0]
        self.shift = torch.where(shift.isfinite(), shift, 0.0)
        self.log_alpha = subset_logsumexp_(log_scores - self.shift[:, None])
        self._layers = Layers(self.num_nodes, log_scores.device)
        self.log_completions = self._sum_completions()
        self.log_partition = self.log_completions[0] + self.shift.sum()
        self.descent, self.rounding_error = self._sum_marginals()

    def _blocks(self, size: int) -> Iterator[Tensor]:
        return self._layers.chunks(size, chunk_size(self.log_alpha.device) >> (self.num_nodes - size))

    def block(self, sets: Tensor, size: int) -> _Block:
        """What goes with the closed sets ``sets`` of ``size`` members."""
        outside = self._layers.outside(sets, size)
        terms = family_values(self.log_alpha, outside, sets)
        unions = sums_over_subsets(1 << outside) + sets
        return _Block(outside, sums_over_subsets(terms), unions)

    def _sum_completions(self) -> Tensor:
        log_g = self.log_alpha.new_zeros(1 << self.num_nodes)
        for size in reversed(range(self.num_nodes)):
            sign = signs(self.num_nodes - size, log_g)[1:]
            for sets in self._blocks(size):
                block = self.block(sets, size)
                terms = block.log_products[1:] + log_g[block.unions[1:]]
                # The largest term is the weight of some DAGs in G: scaled by it, the sum is at least 1.
                top = terms.amax(0)
                terms.sub_(top.clamp_min(torch.finfo(top.dtype).min))
                scaled = terms.clamp_min_(_LOG_NOTHING).exp_()
                log_g[sets] = (sign @ scaled).log() + top
                if self._tick:
                    self._tick(terms.numel())
        return log_g

    def _sum_marginals(self) -> tuple[Tensor, float]:
        """q, shape (n, 2^(n-1)), and the bound on what rounding did to probabilities."""
        log_g = self.log_completions
        finite = log_g.clamp_min(torch.finfo(log_g.dtype).min)  # closed sets without completions: c = 0
        closed = torch.zeros_like(log_g)
        closed[0] = 1.0
        descent = torch.zeros_like(self.log_alpha)
        error = closed.new_zeros(())
        for size in range(self.num_nodes):
            sign = signs(self.num_nodes - size, log_g)[:, None]
            for sets in self._blocks(size):
                block = self.block(sets, size)
                mass = closed[sets].clamp_min(0.0)
                terms = block.log_products.add_(log_g[block.unions]).sub_(finite[sets])
                terms.clamp_min_(_LOG_NOTHING).exp_()
                terms[0] = 0.0
                terms *= mass
                error += (terms.sum(0) * (4.0 + finite[sets].abs().clamp_max(1e6))).sum()
                terms *= sign
                closed.index_add_(0, block.unions.flatten(), terms.flatten())
                places = family_index(block.outside, sets, self.num_nodes)
                descent.view(-1)[places] = torch.threshold_(sums_by_member(terms), _NOTHING, 0.0)
                if self._tick:
                    self._tick(terms.numel())
        return descent, float(error) * torch.finfo(log_g.dtype).eps

    def log_rest(self, node: int) -> Tensor:
        r"""Log of :math:`q_v(B) / \alpha_v(B)` for every B without v, scores unshifted: shape (2^(n-1),)."""
        alpha = self.log_alpha[node] + self.shift[node]
        possible = (self.descent[node] > 0) & ~alpha.isneginf()
        return torch.where(possible, self.descent[node].log() - alpha, -torch.inf)
