"""Small sets of families whose posteriors are known by brute force over all DAGs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.families import ListedScores
from ppgen.ops.dags import enumerate_dags, log_num_linear_extensions


def random_families(
    num_nodes: int, seed: int, *, scale: float = 2.0, max_parents: int | None = None
) -> ListedScores:
    """All families of up to ``max_parents`` parents, with normal scores."""
    generator = torch.Generator().manual_seed(seed)
    width = num_nodes - 1 if max_parents is None else max_parents
    parents, scores = [], []
    for node in range(num_nodes):
        others = [u for u in range(num_nodes) if u != node]
        sets = [list(s) for size in range(width + 1) for s in itertools.combinations(others, size)]
        parents.append(torch.tensor([s + [-1] * (width - len(s)) for s in sets]).reshape(len(sets), width))
        scores.append(scale * torch.randn(len(sets), generator=generator, dtype=torch.float64))
    return ListedScores(tuple(parents), tuple(scores))


@dataclass(frozen=True)
class Law:
    """DAGs (M, n, n), their probabilities (M,) and those of their edges (n, n)."""

    dags: Tensor
    probabilities: Tensor

    @property
    def edges(self) -> Tensor:
        return torch.einsum("m,mij->ij", self.probabilities, self.dags.double())


def brute_force(listed: ListedScores, space: str) -> Law:
    """Every DAG with the product of its families' weights, and under "order" the number of its orders."""
    dags = enumerate_dags(listed.num_nodes)
    logs = torch.zeros(len(dags), dtype=torch.float64)
    for node, (sets, scores) in enumerate(zip(listed.parents, listed.log_scores, strict=True)):
        table = {
            tuple(p for p in s if p >= 0): x for s, x in zip(sets.tolist(), scores.tolist(), strict=True)
        }
        found = [table.get(tuple(column.nonzero()[:, 0].tolist()), -torch.inf) for column in dags[:, :, node]]
        logs += torch.tensor(found, dtype=torch.float64)
    if space == "order":
        logs += log_num_linear_extensions(dags)
    return Law(dags, logs.softmax(0))
