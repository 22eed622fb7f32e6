"""Flows against zuko: D=6, 5 layers, 128-128 ReLU networks, batch 256, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved
from ppgen.models.flow import Flow
from ppgen.models.maf import MAF
from ppgen.models.neural_spline_flow import NeuralSplineFlow
from ppgen.models.real_nvp import RealNVP
from ppgen.ops.random import forked_rng

NUM_DIMS, NUM_LAYERS, HIDDEN, BATCH, SPLINE_BINS = 6, 5, (128, 128), 256, 8


@dataclass(frozen=True)
class _Pair:
    """One architecture in both libraries, and the ratio that each of its rows must meet."""

    name: str
    ours: type[MAF] | type[RealNVP] | type[NeuralSplineFlow]
    peer: str
    targets: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)
    peer_options: dict[str, Any] = field(default_factory=dict)


_LEVEL = {"train": 1.0, "log_prob": 1.0, "sample": 1.0}
_BELOW = {"train": 0.9, "log_prob": 0.9, "sample": 0.9}
_SPLINE = {"num_spline_bins": SPLINE_BINS}
_PAIRS = (
    _Pair("MAF", MAF, "MAF", {**_LEVEL, "sample": 0.9}),
    _Pair("RealNVP", RealNVP, "RealNVP", _LEVEL),
    _Pair(
        "spline autoregressive",
        NeuralSplineFlow,
        "NSF",
        _BELOW,
        {"layout": "autoregressive", **_SPLINE},
        {"bins": SPLINE_BINS},
    ),
    # A coupling is an autoregressive flow of two passes, which is how zuko makes it.
    _Pair(
        "spline coupling",
        NeuralSplineFlow,
        "NSF",
        _BELOW,
        {"layout": "coupling", **_SPLINE},
        {"bins": SPLINE_BINS, "passes": 2},
    ),
)


def run() -> list[dict[str, Any]]:
    """Train step, density and draw of each family, in milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with forked_rng(0):
            return [row for pair in _PAIRS for row in _rows(pair)]
    finally:
        torch.set_num_threads(threads)


def _rows(pair: _Pair) -> list[dict[str, Any]]:
    import zuko

    ours: Flow = pair.ours(
        (NUM_DIMS,), num_layers=NUM_LAYERS, hidden=HIDDEN, activation="relu", **pair.options
    )
    peer = getattr(zuko.flows, pair.peer)(
        NUM_DIMS, transforms=NUM_LAYERS, hidden_features=HIDDEN, activation=nn.ReLU, **pair.peer_options
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
                "case": f"{pair.name} {case}",
                "ours_ms": ours_ms,
                "peer_ms": peer_ms,
                "peer": "zuko",
                "ratio": ours_ms / peer_ms,
                "target": pair.targets[case],
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
