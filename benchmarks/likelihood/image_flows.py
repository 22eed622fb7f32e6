"""Flows on grey-level images."""

from __future__ import annotations

import functools
import time

import numpy as np
import torch

from benchmarks.likelihood.registry import Figure, Run, data_dir, entry
from ppgen import fit, metrics
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
    """Full: 16 steps of 256 channels at each of two scales. Reduced: 4 of 32, validated on 1000 images."""
    data = grey_mnist()
    full = run.size == "full"
    num_steps, hidden_channels = (16, 256) if full else (4, 32)
    with forked_rng(run.seed):
        model = Glow(data.event_shape, num_steps=num_steps, hidden_channels=hidden_channels, num_bins=256)
    limit = 1500.0 if full else 540.0
    start = time.perf_counter()
    fit(
        model,
        data.train,
        validation=data.validation if full else data.validation.take(slice(0, 1000)),
        max_seconds=limit if run.seconds is None else run.seconds,
        batch_size=256 if full else 64,
        learning_rate=1e-3 if full else 2e-3,
        schedule="cosine",
        clip_norm=50.0,
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=0.01, fused=True),
        seed=run.seed,
        device=run.device,
        progress=False,
    )
    seconds = time.perf_counter() - start
    bits = metrics.bits_per_dim(model, data.test, num_dequantisations=2, seed=run.seed)
    note = f"{num_steps} steps of {hidden_channels} channels at two scales, AdamW"
    return Figure(
        float(bits.value), float(bits.std_error), str(bits.kind), model.num_parameters, seconds, note
    )
