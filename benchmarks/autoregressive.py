"""Cached against uncached sampling of autoregressive models.

PixelCNN on binary images, four layers of 16 channels: one image of 28 x 28, and 16 of 8 x 8; PixelRNN of
two layers, 16 of 8 x 8. The sampler that computes each activation once, against the one that runs the network
on the whole image for each pixel. Both are given the same noise and draw the same images.

A transformer of four blocks of width 128 and a WaveNet of two blocks of eight layers of 32 channels,
sequences of 256 values of 65 levels: the sampler that goes on from cached activations, against the one that
reads the whole past for each step. Both are given the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import interleaved

_TARGET = 1 / 5
_SEQUENCES = ("Transformer", "WaveNet")


def run() -> list[dict[str, Any]]:
    """Milliseconds of a batch of draws, the median over rounds, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            _image_row("PixelCNN", 28, 1),
            _image_row("PixelCNN", 8, 16),
            _image_row("PixelRNN, row", 8, 16),
            _image_row("PixelRNN, diagonal", 8, 16),
            *(_sequence_row(name, num) for name in _SEQUENCES for num in (1, 4)),
        ]
    finally:
        torch.set_num_threads(threads)


def _image_row(name: str, size: int, num: int) -> dict[str, Any]:
    from ppgen.models import PixelCNN, PixelRNN
    from ppgen.models.pixels import PixelModel
    from ppgen.nn.causal_conv import PixelNetwork
    from ppgen.ops.random import forked_rng

    shape = (1, size, size)
    with forked_rng(0):
        model: PixelModel = (
            PixelCNN(shape, num_layers=4, num_channels=16)
            if name == "PixelCNN"
            else PixelRNN(shape, layout="diagonal" if name.endswith("diagonal") else "row")
        ).eval()
    empty = torch.zeros(num, *shape)

    def cached() -> Tensor:
        return model.sample(num, seed=0)

    @torch.no_grad()
    def uncached() -> Tensor:
        with forked_rng(0):
            noise = model.head.noise((num, size, size), empty)
        return PixelNetwork.unroll(
            model.network, empty, lambda i, j, features: model.head.draw(features, noise[:, i, j])
        )

    return _timed(
        f"{name}, {num} of {size}x{size}", cached, uncached, "whole network a pixel", target=_TARGET
    )


def _sequence_row(name: str, num: int) -> dict[str, Any]:
    from ppgen.models import Transformer, WaveNet
    from ppgen.models.stepwise import Stepwise
    from ppgen.ops.random import forked_rng

    with forked_rng(0):
        model: Stepwise = (
            Transformer((256,), levels=65, num_layers=4, num_heads=4, dim=128)
            if name == "Transformer"
            else WaveNet((256,), levels=65, num_blocks=2, num_layers=8, channels=32)
        )
    empty = torch.zeros(num, 256)

    def draw(cached: bool) -> Tensor:
        with forked_rng(0):
            return model.unroll(empty, torch.zeros_like(empty, dtype=torch.bool), cached=cached)

    return _timed(
        f"{name}, {num} of length 256",
        lambda: draw(cached=True),
        lambda: draw(cached=False),
        "whole past a step",
        target=_TARGET if name == "Transformer" else None,
    )


def _timed(
    case: str, ours: Callable[[], Tensor], peers: Callable[[], Tensor], peer: str, *, target: float | None
) -> dict[str, Any]:
    differing = float((ours() != peers()).double().mean())
    ours_ms, peer_ms = interleaved(ours, peers, repeats=3)
    return {
        "benchmark": "autoregressive",
        "case": f"{case}, {100 * (1 - differing):.4g} % of values equal",
        "ours_ms": ours_ms,
        "peer_ms": peer_ms,
        "peer": peer,
        "ratio": ours_ms / peer_ms,
        "target": target,
    }
