"""Sampled posteriors over graphs: partition and order MCMC on alarm and child, 5000 rows, on one thread.

``ours_ms`` is the time of scores and chains together, ``peer_ms`` the minute to stay under. ``ratio`` is the
worst of that time and of the figures in the case, each over its bound: directed AUROC (one minus it),
CPDAG-SHD of the median graph, and the largest R-hat of an edge.
"""

from __future__ import annotations

import time
from typing import Any

import torch

_ROWS, _SEED = 5000, 0
_SECONDS = 60.0
_RHAT = 1.05
# Network, method, and bounds: AUROC, CPDAG-SHD.
_CASES = (
    ("alarm", "partition_mcmc", 0.97, 4),
    ("alarm", "order_mcmc", 0.97, 4),
    ("child", "partition_mcmc", 0.99, 1),
    ("child", "order_mcmc", 0.99, 1),
)


def run() -> list[dict[str, Any]]:
    """Milliseconds and figures of each network and method."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(*case) for case in _CASES]
    finally:
        torch.set_num_threads(threads)


def _row(name: str, method: str, least_auroc: float, most_shd: int) -> dict[str, Any]:
    from ppgen.inference.pgmpy_adapter import example_network
    from ppgen.inference.structure.prior import Constraints, GraphPrior
    from ppgen.inference.structure.problem import Problem
    from ppgen.inference.structure.sampled.method import OrderMCMC, PartitionMCMC
    from ppgen.inference.structure.scores.discrete import BDeu
    from ppgen.metrics.graphs.pattern_hamming import cpdag_shd
    from ppgen.metrics.graphs.roc import auroc

    network = example_network(name)
    order = method == "order_mcmc"
    prior = GraphPrior("order" if order else "uniform")
    problem = Problem(network.table(_ROWS, seed=_SEED), BDeu(1.0), prior, Constraints(), progress=False)
    chosen = OrderMCMC() if order else PartitionMCMC(thin=2)
    began = time.perf_counter()
    learned = chosen.run(problem, seed=_SEED)
    edges = learned.source.edge_probabilities()
    seconds = time.perf_counter() - began
    area, distance = auroc(network.adjacency, edges), cpdag_shd(network.adjacency, edges > 0.5)
    rhat, scores = learned.attributes["max_rhat"], learned.attributes["score_seconds"]
    figures = f"AUROC {area:.4f}, CPDAG-SHD {distance}, R-hat {rhat:.3f}, scores {scores:.1f} s"
    worst = max(seconds / _SECONDS, (1 - area) / (1 - least_auroc), distance / most_shd, rhat / _RHAT)
    return {
        "benchmark": "structure_sampled",
        "case": f"{name}, {method}: {figures}",
        "ours_ms": seconds * 1e3,
        "peer_ms": _SECONDS * 1e3,
        "peer": "bounds",
        "ratio": worst,
        "target": 1.0,
    }
