"""Sixty variables: more than any exact method takes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen import metrics
from ppgen.inference import structure
from ppgen.inference.structure.network import DiscreteNetwork
from ppgen.ops.dags import is_acyclic, random_dag

_NODES = 60


def _network() -> tuple[DiscreteNetwork, Tensor]:
    """Binary variables with up to three parents, each of which moves its child's odds."""
    generator = torch.Generator().manual_seed(60)
    graph = random_dag(_NODES, 2 / (_NODES - 1), generator)
    parents, tables = [], []
    for node in range(_NODES):
        graph[graph[:, node].nonzero()[3:, 0], node] = False
        found = graph[:, node].nonzero()[:, 0].tolist()
        signs = 2 * torch.randint(2, (len(found),), generator=generator, dtype=torch.float64) - 1
        levels = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=len(found))), dtype=torch.float64)
        p = (1.5 * levels @ signs).sigmoid().reshape((2,) * len(found))
        parents.append(tuple(found))
        tables.append(torch.stack([1 - p, p], -1))
    names = tuple(f"x{v}" for v in range(_NODES))
    return DiscreteNetwork(names, ((0, 1),) * _NODES, tuple(parents), tuple(tables)), graph


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ppgen.errors.SamplingWarning")
@pytest.mark.parametrize("method", ["order_mcmc", "partition_mcmc"])
def test_sixty_variables(method: Any) -> None:
    network, graph = _network()
    posterior = structure.learn(
        network.table(3000, seed=1),
        method=method,
        prior="order" if method == "order_mcmc" else "uniform",
        num_samples=400,
        candidates=12,
        progress=False,
    )
    drawn = posterior.learned.draws
    assert drawn is not None
    assert drawn.shape[-2:] == (_NODES, _NODES)
    assert bool(is_acyclic(drawn).all())
    assert metrics.auroc(graph, posterior, skeleton=True) > 0.99
    # Of the edges that are there, those whose direction the data tell are found with it.
    assert metrics.cpdag_shd(graph, posterior.median_graph()) < 0.1 * int(graph.sum())
