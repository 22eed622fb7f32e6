"""Flows on grey-level images."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch

from benchmarks.likelihood.registry import Figure, Run, data_dir, entry
from benchmarks.likelihood.training import train_and_test
from ppgen import metrics
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import grid
from ppgen.models import Glow
from ppgen.ops.random import forked_rng


def grey_mnist() -> DataSet:
    """MNIST in its 256 grey levels: 50000, 10000 and 10000 images."""
    with np.load(data_dir() / "mnist" / "mnist.npz") as packed:

        def part(role: str) -> Split:
            images = torch.from_numpy(packed[f"{role}_images"]).float().div(255)
            return Split(images[:, None], values=grid(256))

        return DataSet("MNIST", part("train"), part("val"), part("test"))


@entry("glow-mnist", title="Glow, MNIST (256 levels, dequantised)", unit="bits/dim", target=1.10)
def glow_mnist(run: Run) -> Figure:
    """Full: 16 steps of 256 channels at each of two scales. Reduced: 6 of 48, validated on 1000 images."""
    data = grey_mnist()
    full = run.size == "full"
    num_steps, hidden_channels = (16, 256) if full else (6, 48)
    with forked_rng(run.seed):
        model = Glow(data.event_shape, num_steps=num_steps, hidden_channels=hidden_channels, num_bins=256)
    return train_and_test(
        model,
        data if full else replace(data, validation=data.validation.take(slice(0, 1000))),
        run,
        functools.partial(metrics.bits_per_dim, num_dequantisations=2),
        f"{num_steps} steps of {hidden_channels} channels at two scales, AdamW",
        max_seconds=1500.0 if full else 2400.0,
        batch_size=256 if full else 64,
        learning_rate=1e-3 if full else 2e-3,
        clip_norm=50.0,
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=0.01, fused=True),
    )
