"""An EM iteration of a Gaussian mixture against scikit-learn: N=10,000, D=10, K=10, one thread.

scikit-learn's iteration is its expectation and maximisation steps in float64; ours is timed in
both precisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from ppgen.models.gaussian_mixture import Covariance, GaussianMixture
from ppgen.ops.random import forked_rng

NUM, DIM, COMPONENTS = 10_000, 10, 10
TARGET = 1.0
# Each structure with scikit-learn's name for it.
CASES: tuple[tuple[Covariance, str], ...] = (("full", "full"), ("diagonal", "diag"))


def run() -> list[dict[str, Any]]:
    """An EM iteration by covariance and precision, in milliseconds."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with forked_rng(0), threadpool_limits(limits=1):
            centres = 3 * torch.randn(COMPONENTS, DIM, dtype=torch.float64)
            x = torch.randn(NUM, DIM, dtype=torch.float64) + centres[torch.randint(COMPONENTS, (NUM,))]
            return [row for covariance, name in CASES for row in _rows(covariance, name, x)]
    finally:
        torch.set_num_threads(threads)


def _rows(covariance: Covariance, name: str, x: Tensor) -> Iterator[dict[str, Any]]:
    from sklearn.mixture import GaussianMixture as Peer

    data = x.numpy()
    means = data[:COMPONENTS]
    # A few iterations fit it, so that it is timed at work and not at its start.
    peer = Peer(COMPONENTS, covariance_type=name, means_init=means, tol=1e-2, random_state=0).fit(data)

    def peer_iteration() -> None:
        _, log_responsibilities = peer._e_step(data)
        peer._m_step(data, log_responsibilities)

    for dtype in (torch.float64, torch.float32):
        model = GaussianMixture((DIM,), num_components=COMPONENTS, covariance=covariance).to(dtype)
        points = x.to(dtype)
        model.initialise(points)
        for _ in range(3):
            model.em_step(points)

        def iteration(model: GaussianMixture = model, points: Tensor = points) -> None:
            model.em_step(points)

        ours_ms, peer_ms = interleaved(iteration, peer_iteration, repeats=25)
        yield {
            "benchmark": "gmm_em",
            "case": f"{covariance} {str(dtype).removeprefix('torch.')}",
            "ours_ms": ours_ms,
            "peer_ms": peer_ms,
            "peer": "scikit-learn (float64)",
            "ratio": ours_ms / peer_ms,
            "target": TARGET,
        }
