"""Sequence models: a text by characters, and chorales by time steps."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from benchmarks.likelihood.registry import Figure, Run, data_dir, entry
from benchmarks.likelihood.training import train_and_test
from ppgen import datasets, metrics
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import Values
from ppgen.models import HiddenMarkov, Transformer, WaveNet
from ppgen.ops.random import forked_rng

_SHAKESPEARE = "Tiny Shakespeare (first 90 % for training, last 5 % for testing)"
_CHORALES = "JSB chorales (Boulanger-Lewandowski's split)"


@entry(
    "transformer-tinyshakespeare",
    title=f"Transformer, {_SHAKESPEARE}",
    unit="nats/character",
    target=1.6,
)
def transformer_tinyshakespeare(run: Run) -> Figure:
    """Full: 6 blocks of width 384 on windows of 256 characters. Reduced: 4 of width 192 on 128.

    The figure is over windows that do not overlap: each character is predicted from those before it in
    its window alone, the first from none. So a short window costs more than in an evaluation that slides.
    """
    full = run.size == "full"
    length = 256 if full else 128
    data = datasets.text(
        data_dir() / "tinyshakespeare" / "input.txt",
        length=length,
        stride=16,
        validation=0.05,
        test=0.05,
    )
    num_layers, num_heads, dim = (6, 6, 384) if full else (4, 4, 192)
    with forked_rng(run.seed):
        model = Transformer(
            data.event_shape,
            levels=len(data.vocabulary),
            num_layers=num_layers,
            num_heads=num_heads,
            dim=dim,
            dropout=0.2 if full else 0.1,
            positions="rotary",
        )
    return train_and_test(
        model,
        data,
        run,
        metrics.nats_per_step,
        f"{num_layers} blocks of width {dim}, windows of {length}, AdamW",
        max_seconds=600.0 if full else 3000.0,
        batch_size=64 if full else 16,
        learning_rate=1e-3 if full else 2e-3,
        clip_norm=1.0,
        autocast=torch.bfloat16,
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=0.1, betas=(0.9, 0.95), fused=True),
    )


@entry("hmm-jsb", title=f"HMM, {_CHORALES}", unit="nats/step", target=None)
def hmm_jsb(run: Run) -> Figure:
    """A hidden Markov model whose notes are independent Bernoullis given the state, by EM."""
    data = chorales()
    num_states = 100 if run.size == "full" else 50
    with forked_rng(run.seed):
        model = HiddenMarkov(data.event_shape, num_states=num_states, emission="bernoulli", smoothing=0.1)
    return train_and_test(
        model,
        data,
        run,
        metrics.nats_per_step,
        f"{num_states} states, Bernoulli notes, EM",
        epochs=60,
        patience=5,
    )


@entry("wavenet-jsb", title=f"WaveNet, {_CHORALES}", unit="nats/step", target=None)
def wavenet_jsb(run: Run) -> Figure:
    """The notes of a step are independent given the steps before, which they are not in a chord."""
    return _wavenet(run, "independent")


@entry("wavenet-chained-jsb", title=f"WaveNet, notes chained, {_CHORALES}", unit="nats/step", target=None)
def wavenet_chained_jsb(run: Run) -> Figure:
    """The notes of a step follow a chain rule of their own, from the lowest to the highest."""
    return _wavenet(run, "autoregressive")


def chorales() -> DataSet:
    """The piano rolls, 88 notes a step, padded with NaN at their ends to the longest."""
    with np.load(data_dir() / "jsb_chorales" / "jsb_chorales.npz") as packed:
        rolls = {
            role: torch.from_numpy(packed[f"{role}_roll"]).float().split(packed[f"{role}_lengths"].tolist())
            for role in ("train", "valid", "test")
        }
    longest = max(len(roll) for role in rolls.values() for roll in role)

    def part(role: str) -> Split:
        x = torch.full((len(rolls[role]), longest, 88), torch.nan)
        for row, roll in zip(x, rolls[role], strict=True):
            row[: len(roll)] = roll
        return Split(x, values=Values("binary", missing=True), name=f"chorales {role}")

    return DataSet("JSB chorales", part("train"), part("valid"), part("test"))


def _wavenet(run: Run, within: Any) -> Figure:
    data = chorales()
    channels = 128 if run.size == "full" else 48
    with forked_rng(run.seed):
        model = WaveNet(
            data.event_shape,
            levels=2,
            within=within,
            num_blocks=1,
            num_layers=5,
            channels=channels,
            dropout=0.2,
            ragged=True,
        )
    return train_and_test(
        model,
        data,
        run,
        metrics.nats_per_step,
        f"5 layers of {channels} channels, notes {within}, AdamW",
        max_seconds=300.0 if run.size == "full" else 240.0,
        batch_size=8,
        learning_rate=3e-3,
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
    )
