"""Flows against zuko: D=6, 5 layers, 128-128 ReLU networks, batch 256, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved
from ppgen.models.flow import Flow
from ppgen.models.maf import MAF
from ppgen.models.real_nvp import RealNVP
from ppgen.ops.random import forked_rng

NUM_DIMS, NUM_LAYERS, HIDDEN, BATCH = 6, 5, (128, 128), 256
TARGET = 1.0


def run() -> list[dict[str, Any]]:
    """Train step, density and draw of each family, in milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with forked_rng(0):
            return [row for family in (MAF, RealNVP) for row in _rows(family)]
    finally:
        torch.set_num_threads(threads)


def _rows(family: type[MAF] | type[RealNVP]) -> list[dict[str, Any]]:
    import zuko

    ours: Flow = family((NUM_DIMS,), num_layers=NUM_LAYERS, hidden=HIDDEN, activation="relu")
    peer = getattr(zuko.flows, family.__name__)(
        NUM_DIMS, transforms=NUM_LAYERS, hidden_features=HIDDEN, activation=nn.ReLU
    )
    x = torch.randn(BATCH, NUM_DIMS)

    def our_density() -> Tensor:
        return ours.distribution().log_prob(x)

    def peer_density() -> Tensor:
        density: Tensor = peer().log_prob(x)
        return density

    cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "train": (_step(our_density, ours.parameters()), _step(peer_density, peer.parameters())),
        "log_prob": (torch.no_grad()(our_density), torch.no_grad()(peer_density)),
        "sample": (lambda: ours.sample(BATCH), torch.no_grad()(lambda: peer().sample((BATCH,)))),
    }
    rows = []
    for case, (our_call, peer_call) in cases.items():
        ours_ms, peer_ms = interleaved(our_call, peer_call, repeats=15, inner=10)
        rows.append(
            {
                "benchmark": "flows",
                "case": f"{family.__name__} {case}",
                "ours_ms": ours_ms,
                "peer_ms": peer_ms,
                "peer": "zuko",
                "ratio": ours_ms / peer_ms,
                "target": TARGET,
            }
        )
    return rows


def _step(density: Callable[[], Tensor], parameters: Iterable[nn.Parameter]) -> Callable[[], None]:
    """One maximum-likelihood step with Adam."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> None:
        loss = -density().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
