"""Exact answers for small graphs, from a list of all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.families import squeeze
from ppgen.ops.dags import closure, enumerate_dags, log_num_linear_extensions


def random_scores(num_nodes: int, scale: float, *, seed: int = 0, forbid: float = 0.2) -> Tensor:
    """Scores (n, 2^(n-1)), some of them -inf, though never that of no parents."""
    generator = torch.Generator().manual_seed(seed + num_nodes)
    shape = num_nodes, 1 << (num_nodes - 1)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    forbidden = torch.rand(shape, generator=generator) < forbid
    forbidden[:, 0] = False
    return scores.masked_fill(forbidden, -torch.inf)


def codes(adjacency: Tensor) -> Tensor:
    """A number for each graph of (S, n, n)."""
    bits = adjacency.flatten(-2).long()
    return (bits << torch.arange(bits.shape[-1])).sum(-1)


@dataclass(frozen=True)
class AllDags:
    """The posterior as a list.

    Attributes:
        adjacency: shape (S, n, n).
        columns: of the parent sets, shape (S, n).
        log_scores: without the numbers of orders, shape (S,).
        log_partition: scalar.
        probabilities: shape (S,).
    """

    adjacency: Tensor
    columns: Tensor
    log_scores: Tensor
    log_partition: Tensor
    probabilities: Tensor

    @classmethod
    def of(cls, scores: Tensor, prior: str) -> AllDags:
        num_nodes = len(scores)
        dags = enumerate_dags(num_nodes)
        masks = (dags.long() << torch.arange(num_nodes)[:, None]).sum(1)
        columns = torch.stack([squeeze(masks[:, v], v) for v in range(num_nodes)], 1)
        log_scores = scores.gather(1, columns.T).sum(0)
        weights = log_scores + (log_num_linear_extensions(dags) if prior == "order" else 0.0)
        total = weights.logsumexp(0)
        return cls(dags, columns, log_scores, total, (weights - total).exp())

    def edges(self) -> Tensor:
        return torch.einsum("s,sij->ij", self.probabilities, self.adjacency.double())

    def paths(self) -> Tensor:
        return torch.einsum("s,sij->ij", self.probabilities, closure(self.adjacency).double())

    def families(self, node: int) -> Tensor:
        size = 1 << (self.columns.shape[1] - 1)
        return torch.zeros(size, dtype=torch.float64).index_add_(0, self.columns[:, node], self.probabilities)

    def frequencies(self, drawn: Tensor) -> Tensor:
        """Share of each DAG among drawn ones, shape (S,)."""
        known, order = codes(self.adjacency).sort()
        found = codes(drawn)
        places = torch.searchsorted(known, found)
        if not bool((known[places.clamp_max(len(known) - 1)] == found).all()):
            raise AssertionError("drawn graphs: not all are DAGs")
        return torch.bincount(order[places], minlength=len(known)).double() / len(drawn)
