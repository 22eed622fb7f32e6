"""Cached against uncached sampling of autoregressive models.

PixelCNN on binary images, four layers of 16 channels: one image of 28 x 28, and 16 of 8 x 8. The sampler
that computes each activation once, against the one that runs the whole network on the whole image for
each pixel. Both are given the same noise and draw the same images.

A transformer of four blocks of width 128 and a WaveNet of two blocks of eight layers of 32 channels,
sequences of 256 values of 65 levels: the sampler that goes on from cached activations, against the one that
reads the whole past for each step. Both are given the same noise.
"""

from __future__ import annotations

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
            _row(28, 1),
            _row(8, 16),
            *(_sequence_row(name, num) for name in _SEQUENCES for num in (1, 4)),
        ]
    finally:
        torch.set_num_threads(threads)


def _row(size: int, num: int) -> dict[str, Any]:
    from ppgen.models import PixelCNN
    from ppgen.ops.random import forked_rng

    with forked_rng(0):
        model = PixelCNN((1, size, size), num_layers=4, num_channels=16).eval()
    empty = torch.zeros(num, 1, size, size)

    def cached() -> Tensor:
        return model.sample(num, seed=0)

    @torch.no_grad()
    def uncached() -> Tensor:
        with forked_rng(0):
            noise = model.head.noise((num, size, size), empty)
        x = empty.clone()
        for i in range(size):
            for j in range(size):
                features = model.network(x)[:, :, i, j]
                x[:, :, i, j] = model.head.draw(features, noise[:, i, j])
        return x

    differing = float((cached() != uncached()).double().mean())
    ours_ms, peer_ms = interleaved(cached, uncached, repeats=3)
    return {
        "benchmark": "autoregressive",
        "case": f"PixelCNN, {num} of {size}x{size}, {100 * (1 - differing):.4g} % of pixels equal",
        "ours_ms": ours_ms,
        "peer_ms": peer_ms,
        "peer": "whole network a pixel",
        "ratio": ours_ms / peer_ms,
        "target": _TARGET,
    }


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

    differing = float((draw(cached=True) != draw(cached=False)).double().mean())
    ours_ms, peer_ms = interleaved(lambda: draw(cached=True), lambda: draw(cached=False), repeats=3)
    return {
        "benchmark": "autoregressive",
        "case": f"{name}, {num} of length 256, {100 * (1 - differing):.4g} % of values equal",
        "ours_ms": ours_ms,
        "peer_ms": peer_ms,
        "peer": "whole past a step",
        "ratio": ours_ms / peer_ms,
        "target": _TARGET if name == "Transformer" else None,
    }
