"""The most likely tree against every tree."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest
import torch
from torch import Tensor

from ppgen.ops.trees import chow_liu, mutual_information


def rows(kind: str) -> tuple[Tensor, tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    base[:, 1] += base[:, 0]
    base[:, 3] += 0.7 * base[:, 1]
    base[:, 4] += 0.4 * base[:, 2] - 0.3 * base[:, 0]
    if kind == "continuous":
        return base, (0,) * 5
    codes = torch.stack(
        [torch.bucketize(c, c.quantile(torch.tensor([0.4, 0.7], dtype=torch.float64))) for c in base.T], -1
    )
    if kind == "discrete":
        return codes.double(), (3,) * 5
    mixed = base.clone()
    mixed[:, [0, 2]] = codes[:, [0, 2]].double()
    return mixed, (3, 0, 3, 0, 0)


@pytest.mark.parametrize("kind", ["discrete", "continuous", "mixed"])
def test_no_tree_has_more_information(kind: str) -> None:
    values, sizes = rows(kind)
    parents = chow_liu(values, sizes).tolist()
    information = mutual_information(values, sizes)
    assert parents.count(-1) == 1
    found = sum(float(information[p, v]) for v, p in enumerate(parents) if p >= 0)
    best = 0.0
    for edges in itertools.combinations(itertools.combinations(range(5), 2), 4):
        tree = nx.Graph(edges)
        if len(tree) < 5 or not nx.is_tree(tree):
            continue
        # Directed away from a discrete variable, if that leaves no continuous parent of a discrete one.
        root = next((v for v in range(5) if sizes[v]), 0)
        directed = nx.bfs_tree(tree, root)
        if any(sizes[v] and not sizes[u] for u, v in directed.edges):
            continue
        best = max(best, sum(float(information[a, b]) for a, b in edges))
    assert found == pytest.approx(best, abs=1e-12)
    assert all(not (sizes[v] and p >= 0 and not sizes[p]) for v, p in enumerate(parents))


def test_information_by_hand() -> None:
    values = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 0]], dtype=torch.float64)
    joint = torch.tensor([[0.5, 0.0], [0.25, 0.25]], dtype=torch.float64)
    outer = joint.sum(1, keepdim=True) * joint.sum(0)
    expected = torch.xlogy(joint, joint / outer).sum()
    assert float(mutual_information(values, (2, 2))[0, 1]) == pytest.approx(float(expected), abs=1e-12)


def test_one_variable_has_no_parent() -> None:
    assert chow_liu(torch.zeros(3, 1, dtype=torch.float64), (2,)).tolist() == [-1]
