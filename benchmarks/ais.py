"""Annealed importance sampling on a VAE's latents, against the same written by hand.

A decoder 20-400-784 with Bernoulli pixels, 32 particles for each of 32 images, path from the prior, ten
leapfrog steps a transition. Both move 1,024 chains in float32 on one thread; ours runs the recorded pair
through the kernels of MCMC, by hand it is a torch loop over tensors, with the prior's gradient written out,
one ``autograd.grad`` of the likelihood a step, and nothing evaluated twice.
Time is that of a (particle, leapfrog step), without the set-up: what a short run takes is taken off a
long one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.timing import interleaved
from ppgen.inference.annealing.per_datum import PerDatum, RecordedEnergy
from ppgen.inference.annealing.tempering import Scales, TemperedPath
from ppgen.inference.annealing.walk import anneal
from ppgen.inference.mcmc.executor import EagerExecutor
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.models import VAE

_DATA, _PARTICLES, _STEPS = 32, 32, 10
_STEP_SIZE = 0.05
_SHORT, _LONG = 1, 5  # temperatures
_TARGET = 1.1


def run() -> list[dict[str, Any]]:
    """Milliseconds of a thousand particle-steps of both, and their ratio, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = VAE((784,), latent_dim=20, hidden=(400,), likelihood="bernoulli")
            x = (torch.rand(_DATA, 784) < 0.2).float()
            ours, by_hand = _ours(vae, x), _by_hand(vae, x)
            short, long = (
                interleaved(lambda n=n: ours(n), lambda n=n: by_hand(n), repeats=5)  # type: ignore[misc]
                for n in (_SHORT, _LONG)
            )
    finally:
        torch.set_num_threads(threads)
    thousands = (_LONG - _SHORT) * _STEPS * _DATA * _PARTICLES / 1000
    ours_ms, peer_ms = ((more - few) / thousands for more, few in zip(long, short, strict=True))
    return [
        {
            "benchmark": "ais",
            "case": f"784-400-20, {_DATA} x {_PARTICLES} chains, 1000 particle-steps",
            "ours_ms": ours_ms,
            "peer_ms": peer_ms,
            "peer": "torch by hand",
            "ratio": ours_ms / peer_ms,
            "target": _TARGET,
        }
    ]


def _ours(vae: VAE, x: Tensor) -> Callable[[int], Tensor]:
    chains = PerDatum(vae.model, None, x)
    energy = RecordedEnergy(chains.parts)
    kernel = hmc_kernel(20)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    scales = Scales(ends, torch.full((2, 20), _STEP_SIZE, dtype=torch.float64), ends)

    def walk(num_temperatures: int) -> Tensor:
        executor = EagerExecutor(kernel, energy, seed=0)
        path = TemperedPath(executor, scales, num_steps=_STEPS)
        ladder = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)
        z = chains.draw(_PARTICLES, 0)
        return anneal(path, path.start(z), ladder, num_groups=_DATA).log_weights

    return walk


def _by_hand(vae: VAE, x: Tensor) -> Callable[[int], Tensor]:
    pixels = x.repeat(_PARTICLES, 1)

    def log_likelihood(z: Tensor) -> Tensor:
        logits = vae.decoder(z)
        return -functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(-1)

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        likelihood = log_likelihood(z)
        (g,) = torch.autograd.grad(likelihood.sum(), z)
        return likelihood.detach(), g

    def walk(num_temperatures: int) -> Tensor:
        ladder = torch.linspace(0, 1, num_temperatures + 1).tolist()
        z = torch.randn(len(pixels), 20)
        likelihood, slope = evaluate(z)
        log_weights = torch.zeros(len(pixels), dtype=torch.float64)
        for before, after in zip(ladder[:-1], ladder[1:], strict=True):
            log_weights += (after - before) * likelihood
            momentum = torch.randn_like(z)
            start = 0.5 * (z * z + momentum * momentum).sum(-1) - after * likelihood
            new, proposed, g = z, likelihood, slope
            for _ in range(_STEPS):
                momentum = momentum - 0.5 * _STEP_SIZE * (new - after * g)
                new = new + _STEP_SIZE * momentum
                proposed, g = evaluate(new)
                momentum = momentum - 0.5 * _STEP_SIZE * (new - after * g)
            end = 0.5 * (new * new + momentum * momentum).sum(-1) - after * proposed
            accepted = torch.rand(len(z)) < (start - end).exp()
            z = torch.where(accepted[:, None], new, z)
            slope = torch.where(accepted[:, None], g, slope)
            likelihood = torch.where(accepted, proposed, likelihood)
        return log_weights

    return walk
