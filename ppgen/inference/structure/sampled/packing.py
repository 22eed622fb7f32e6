r"""Families laid out for chains: sets as bits, rows by falling score.

A node's score in a state of a chain is a logsumexp over the families that fit the state. Sorted rows let
the sum end early: once ``tails`` is far below what has been summed, the rest cannot change it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.families import ListedScores

#: Rows of a node are filled up to a multiple of this, the block that compiled code looks at together.
BLOCK = 16
_BITS = 64
# Nats from the highest to the lowest row of one base: exp(-500) is far from underflow.
_RANGE = 500.0


@dataclass(frozen=True)
class PackedFamilies:
    """Listed families, sorted, on the CPU; R is the number of all rows, W the words of 64 nodes.

    Attributes:
        num_nodes: n.
        offsets: shape (n + 1,), int64: where the rows of each node begin.
        masks: shape (W, R), int64: bits of the members; rows that only fill up have all bits.
        scores: shape (R,), float64, falling within a node; ``-inf`` in rows that fill up.
        tails: shape (R,): logsumexp of this row and those after it of the same node.
        bases: shape (R,): the same for rows whose scores are within some hundred nats.
        weights: shape (R,): exp of score minus base, 0 in rows that fill up; sums need no exponentials.
        empty: shape (n,): score without parents, ``-inf`` where that is not allowed.
        single: shape (n, n): score of node v with the one parent p at ``[v, p]``.
        parents: for each node, shape (F_v, k), int64, as in ``ListedScores``, sorted.
        log_scores: for each node, shape (F_v,), sorted.
        listed_rows: for each node, shape (F_v,): the rows of the sorted families in ``ListedScores``.
    """

    num_nodes: int
    offsets: Tensor
    masks: Tensor
    scores: Tensor
    tails: Tensor
    bases: Tensor
    weights: Tensor
    empty: Tensor
    single: Tensor
    parents: tuple[Tensor, ...]
    log_scores: tuple[Tensor, ...]
    listed_rows: tuple[Tensor, ...]

    @property
    def num_words(self) -> int:
        """Words of a set."""
        return self.masks.shape[0]

    def digest(self) -> str:
        """A hash of the families and their scores."""
        parts = (self.offsets, self.masks, self.scores)
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in parts)).hexdigest()[:16]

    def graphs(self, rows: Tensor) -> Tensor:
        """Adjacency matrices (..., n, n), bool, of graphs given by the rows of their families (..., n)."""
        n = self.num_nodes
        adjacency = torch.zeros(*rows.shape, n, dtype=torch.bool, device=rows.device)
        for node in range(n):
            adjacency[..., node] = self._indicators(node).to(rows.device)[rows[..., node].long()]
        return adjacency

    def _indicators(self, node: int) -> Tensor:
        """Members of the sets of a node, bool (F, n)."""
        sets = self.parents[node]
        marked = torch.zeros(len(sets), self.num_nodes + 1, dtype=torch.bool)
        marked.scatter_(1, sets.where(sets >= 0, self.num_nodes), True)
        return marked[:, :-1]


def pack(listed: ListedScores) -> PackedFamilies:
    """Sort and pack; families that are not allowed (``-inf``) are left out.

    Raises:
        ConfigError: a node has no allowed family.
    """
    n = listed.num_nodes
    num_words = max(1, -(-n // _BITS))
    offsets, masks, scores, tails, bases = [0], [], [], [], []
    sorted_parents, sorted_scores, listed_rows = [], [], []
    empty = torch.full((n,), -torch.inf, dtype=torch.float64)
    single = torch.full((n, n), -torch.inf, dtype=torch.float64)
    for node in range(n):
        sets, values = listed.parents[node].cpu(), listed.log_scores[node].cpu().double()
        kept = values.isfinite().nonzero()[:, 0]
        if not len(kept):
            raise ConfigError(
                f"constraints: no parent set of variable {node} is allowed; relax required or forbidden "
                "edges, max_parents or candidates"
            )
        order = kept[values[kept].argsort(descending=True, stable=True)]
        sets, values = sets[order], values[order]
        sizes = (sets >= 0).sum(1)
        if bool((sizes == 0).any()):
            empty[node] = values[sizes == 0][0]
        ones = sizes == 1
        single[node, sets[ones].amax(1) if bool(ones.any()) else []] = values[ones]
        filler = -len(values) % BLOCK
        words = torch.zeros(num_words, len(values), dtype=torch.int64)
        for word in range(num_words):
            inside = (sets >= _BITS * word) & (sets < _BITS * (word + 1))
            bits = torch.ones_like(sets) << (sets - _BITS * word).clamp(0, _BITS - 1)
            words[word] = bits.where(inside, 0).sum(1)
        masks.append(torch.nn.functional.pad(words, (0, filler), value=-1))
        scores.append(torch.nn.functional.pad(values, (0, filler), value=-torch.inf))
        tail = values.flip(0).logcumsumexp(0).flip(0)
        tails.append(torch.nn.functional.pad(tail, (0, filler), value=-torch.inf))
        above = values[0] - _RANGE * ((values[0] - values) / _RANGE).floor()
        bases.append(torch.nn.functional.pad(above, (0, filler)))
        offsets.append(offsets[-1] + len(values) + filler)
        sorted_parents.append(sets)
        sorted_scores.append(values)
        listed_rows.append(order)
    return PackedFamilies(
        n,
        torch.tensor(offsets),
        torch.cat(masks, 1).contiguous(),
        torch.cat(scores),
        torch.cat(tails),
        torch.cat(bases),
        (torch.cat(scores) - torch.cat(bases)).exp(),
        empty,
        single,
        tuple(sorted_parents),
        tuple(sorted_scores),
        tuple(listed_rows),
    )
