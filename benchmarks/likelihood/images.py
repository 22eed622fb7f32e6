"""Autoregressive models of binary images."""

from __future__ import annotations

import functools

import numpy as np
import torch

from benchmarks.likelihood.registry import Figure, Run, data_dir, entry
from benchmarks.likelihood.training import train_and_test
from ppgen import datasets, metrics
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import BINARY
from ppgen.models import MADE, PixelCNN
from ppgen.ops.random import forked_rng


def static_mnist() -> DataSet:
    """MNIST as Larochelle & Murray binarised it once and for all: 50000, 10000 and 10000 images."""
    with np.load(data_dir() / "binarized_mnist" / "binarized_mnist.npz") as packed:

        def part(role: str) -> Split:
            bits = np.unpackbits(packed[f"{role}_packed"], axis=1)[:, :784]
            return Split(torch.from_numpy(bits).float().view(-1, 1, 28, 28), values=BINARY)

        return DataSet("static binarised MNIST", part("train"), part("valid"), part("test"))


@entry("made-digits", title="MADE, scikit-learn digits (binary)", unit="nats", target=18.1)
def made_digits(run: Run) -> Figure:
    """Sixteen orders of one layer; the split is the first 1437 and the last 360 of the digits."""
    data = datasets.load("digits").binarised()
    with forked_rng(run.seed):
        model = MADE(data.event_shape, hidden=(1000,), num_orders=16, dropout=0.2)
    return train_and_test(
        model,
        data,
        run,
        metrics.nll,
        "1 layer of 1000, 16 orders, dropout .2, AdamW",
        epochs=200,
        batch_size=64,
        learning_rate=3e-3,
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
    )


@entry("made-static-mnist", title="MADE, static binarised MNIST", unit="nats", target=90.0)
def made_static_mnist(run: Run) -> Figure:
    """Full: one layer of 8000 in 32 orders, the largest single layer of Germain et al. (2015).

    Reduced: one layer of 2000 in one order.
    """
    data = static_mnist()
    full = run.size == "full"
    hidden, num_orders = (8000, 32) if full else (2000, 1)
    with forked_rng(run.seed):
        model = MADE(data.event_shape, hidden=(hidden,), num_orders=num_orders, dropout=0.1 if full else 0.2)
    return train_and_test(
        model,
        data,
        run,
        metrics.nll,
        f"1 layer of {hidden}, {num_orders} order(s), AdamW",
        max_seconds=900.0 if full else 1080.0,
        batch_size=100,
        autocast=None if full else torch.bfloat16,
        learning_rate=1e-3 if full else 2e-3,
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=0.05, fused=True),
    )


@entry("pixel-cnn-static-mnist", title="PixelCNN, static binarised MNIST", unit="nats", target=82.5)
def pixel_cnn_static_mnist(run: Run) -> Figure:
    """Full: twelve layers of 64 channels. Reduced: four of 32."""
    data = static_mnist()
    full = run.size == "full"
    num_layers, num_channels = (12, 64) if full else (4, 32)
    with forked_rng(run.seed):
        model = PixelCNN(
            data.event_shape,
            num_layers=num_layers,
            num_channels=num_channels,
            dropout=0.3 if full else 0.0,
        )
    return train_and_test(
        model,
        data,
        run,
        metrics.nll,
        f"{num_layers} layers of {num_channels} channels, Adam",
        max_seconds=1200.0 if full else 3000.0,
        batch_size=100 if full else 32,
        learning_rate=2e-3 if full else 4e-3,
        clip_norm=5.0,
        autocast=None if full else torch.bfloat16,
    )
