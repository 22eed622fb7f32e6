"""Effective samples a second against the number of chains: ChEES and NUTS, on CPU and CUDA.

A logistic regression with 1000 rows and 25 columns and a Poisson model with random effects, from
:mod:`benchmarks.mcmc.problems`; 200 draws a chain after 300 of warm-up, one thread. ``ours_ms`` is the
time of 1000 effective samples (smallest bulk ESS, sampling phase); ``peer_ms`` is that of the same
sampler with the fewest chains on the CPU, so the ratio falls as chains help.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.mcmc import problems
from benchmarks.mcmc.samplers import smallest_ess

_CHAINS = {"cpu": (1, 16, 256, 1024), "cuda": (1024, 4096, 16384)}
_DRAWS = 200
_WARMUP = 300


def run() -> list[dict[str, Any]]:
    """One row a model, sampler, device and number of chains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    try:
        rows = []
        for name in ("logistic", "glmm"):
            for kernel in ("ChEES", "NUTS"):
                alone: float | None = None
                for device in devices:
                    for chains in _CHAINS[device]:
                        if kernel == "ChEES" and chains == 1:
                            continue  # it learns from many chains
                        ours = _milliseconds(name, kernel, chains, device)
                        alone = alone or ours
                        rows.append(_row(f"{name}, {kernel}, {chains} chains on {device}", ours, alone))
        return rows
    finally:
        torch.set_num_threads(threads)


def _milliseconds(name: str, kernel: str, num_chains: int, device: str) -> float:
    """Milliseconds of sampling for 1000 effective samples; compilation and warm-up aside."""
    from ppgen import inference

    model, arguments = problems.pyro_program(name)
    moved = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)
    mcmc = inference.MCMC(
        getattr(inference, kernel)(model),
        num_samples=_DRAWS if num_chains > 1 else 20 * _DRAWS,
        warmup_steps=_WARMUP if num_chains > 1 else 1000,
        num_chains=num_chains,
        disable_progbar=True,
        seed=0,
        device=device,
    )
    mcmc.run(*moved)
    ess = smallest_ess(mcmc.get_samples(group_by_chain=True))
    return 1e6 * float(mcmc.posterior.attributes["sampling_seconds"]) / ess


def _row(case: str, ours_ms: float, alone_ms: float) -> dict[str, Any]:
    return {
        "benchmark": "mcmc chains",
        "case": case,
        "ours_ms": ours_ms,
        "peer_ms": alone_ms,
        "peer": "fewest chains, CPU",
        "ratio": ours_ms / alone_ms,
        "target": None,
    }
