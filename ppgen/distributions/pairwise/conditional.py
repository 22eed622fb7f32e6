"""Draws of some sites of a pairwise field given the others: exact where that is possible, else by chains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppgen.distributions.pairwise.clusters import Sampler, move
from ppgen.distributions.pairwise.field import PairwiseField, draw_states
from ppgen.ops.elimination import Plan

# Patterns of what is known, beyond which rows are worked on together.
_MANY_PATTERNS = 16


@dataclass(frozen=True)
class ConditionalSites:
    """How the unknown sites of rows are drawn.

    Attributes:
        field: the field, of all rows or with a unary part for each.
        known: which sites are, bool, ``(N, S)``.
        whole: how all sites are summed out; ``None`` where that is too much.
        start: logits that chains start from, ``(S, q)``.
        num_steps: moves of each chain.
        sampler: of the chains, see :func:`~ppgen.distributions.pairwise.clusters.move`.
        max_entries: of the largest table of an exact draw; 0 for chains in any case.
    """

    field: PairwiseField
    known: Tensor
    whole: Plan | None
    start: Tensor
    num_steps: int
    sampler: Sampler | None
    max_entries: int

    def draw(self, codes: Tensor, num: int) -> Tensor:
        """States ``(num, N, S)`` that are ``codes``, int64 ``(N, S)``, where known; torch's generator."""
        patterns, which = torch.unique(self.known, dim=0, return_inverse=True)
        if len(patterns) > _MANY_PATTERNS and self.whole is not None and self.max_entries:
            # One elimination of all sites, the known ones held by their unary parts.
            impossible = self.known[..., None] & ~one_hot(codes, self.field.num_states).bool()
            held = self.field.unary.expand(len(codes), -1, -1).masked_fill(impossible, -torch.inf)
            law = replace(self.field, unary=held)
            return law.sample_exact(num, self.whole.order, self.whole.entries)
        found = codes.repeat(num, 1, 1)
        for number, pattern in enumerate(patterns):
            rows, unknown = (which == number).nonzero()[:, 0], (~pattern).nonzero()[:, 0]
            if len(unknown):
                found[:, rows[:, None], unknown] = self._draw(codes[rows], rows, unknown, num)
        return found

    def _draw(self, codes: Tensor, rows: Tensor, unknown: Tensor, num: int) -> Tensor:
        """Draws of the unknown sites of rows that know the same ones, ``(num, rows, unknown)``."""
        own = self.field.unary[rows] if self.field.unary.ndim == 3 else self.field.unary
        rest = replace(self.field, unary=own).given(codes, unknown.tolist())
        if self.max_entries:
            found = rest.graph.elimination(rest.num_states)
            if found.fits(self.max_entries):
                return rest.sample_exact(num, found.plan.order, found.plan.entries)
        chains = replace(rest, unary=rest.unary.repeat(num, 1, 1))
        begin = draw_states(self.start[unknown].expand(len(chains.unary), -1, -1))
        return move(chains, begin, self.num_steps, self.sampler).unflatten(0, (num, len(rows)))
