"""A training step of ``ppgen.fit`` against the same step written by hand in torch.

Both draw a shuffled batch, evaluate the one-sample ELBO with the same estimator (log-densities
of a draw, no closed-form KL), and take an Adam step. The peer is the loop that one would write:
``torch.optim.Adam`` with its defaults. A step is the difference of a long run and a short one,
so that what a call of ``fit`` does once (checks, snapshots) is not in it. A second row gives the
peer the fused Adam that ppgen uses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import interleaved
from ppgen.inference.svi import fit
from ppgen.models import VAE
from ppgen.nn.mlp import mlp

_CASES = {"784-400-20": ((784,), (400,), 20, 160, 1.05), "64-32-4": ((64,), (32,), 4, 1000, 1.3)}
_BATCH = 128
_FEW = 4  # steps of the short run, whose set-up is taken off the long one


def run() -> list[dict[str, Any]]:
    """Milliseconds a step of both, and their ratio, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for case, (shape, hidden, latent, steps, target) in _CASES.items():
            data = (torch.rand(_BATCH * 4, *shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
            for fused in (False, True):
                short, long = (
                    interleaved(
                        _ours(data, hidden, latent, count),
                        _by_hand(data, hidden, latent, count, fused),
                        repeats=7,
                    )
                    for count in (_FEW, _FEW + steps)
                )
                ours_ms, peer_ms = ((more - few) / steps for more, few in zip(long, short, strict=True))
                rows.append(
                    {
                        "benchmark": "vae_step",
                        "case": case,
                        "ours_ms": ours_ms,
                        "peer_ms": peer_ms,
                        "peer": "torch by hand, fused Adam" if fused else "torch by hand",
                        "ratio": ours_ms / peer_ms,
                        "target": None if fused else target,
                    }
                )
    finally:
        torch.set_num_threads(threads)
    return rows


def _ours(data: Tensor, hidden: tuple[int, ...], latent: int, steps: int) -> Callable[[], object]:
    vae = VAE(data.shape[1:], latent_dim=latent, likelihood="bernoulli", hidden=hidden)
    epochs = steps * _BATCH // len(data)
    return lambda: fit(vae, _split(data), epochs=epochs, batch_size=_BATCH, device="cpu", progress=False)


def _split(data: Tensor) -> Any:
    from ppgen.datasets.split import Split
    from ppgen.datasets.values import BINARY

    return Split(data, values=BINARY)


def _by_hand(
    data: Tensor, hidden: tuple[int, ...], latent: int, steps: int, fused: bool
) -> Callable[[], object]:
    encoder = mlp(data.shape[1], hidden, 2 * latent)
    decoder = mlp(latent, hidden, data.shape[1])
    parameters = [*encoder.parameters(), *decoder.parameters()]

    def train() -> float:
        optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=fused)
        total = 0.0
        for _ in range(steps * _BATCH // len(data)):
            order = torch.randperm(len(data))
            for start in range(0, len(data), _BATCH):
                x = data[order[start : start + _BATCH]]
                loss = _negative_elbo(encoder, decoder, x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
        return total

    return train


def _negative_elbo(encoder: nn.Module, decoder: nn.Module, x: Tensor) -> Tensor:
    loc, raw = encoder(2 * x - 1).chunk(2, dim=-1)
    scale = functional.softplus(raw) + 1e-4
    noise = torch.randn_like(loc)
    z = loc + scale * noise
    log_q = (-0.5 * noise**2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    log_prior = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    log_x = -functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="none").sum(-1)
    return -(log_x + log_prior - log_q).mean()


if __name__ == "__main__":
    started = time.perf_counter()
    for row in run():
        print(row)  # noqa: T201
    print(time.perf_counter() - started)  # noqa: T201
