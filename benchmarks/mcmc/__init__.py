"""Effective samples a second of many-chain MCMC against pyro.infer, NumPyro and blackjax.

Fourteen posteriors (:mod:`benchmarks.mcmc.problems`), one core, float32, five seeds, medians. Each
sampler on each posterior has a process of its own, one after the other. The rows are milliseconds
for 1000 effective samples (smallest bulk ESS over coordinates), so a ratio of 1/3 is three times as many
effective samples a second. The peer of a row is the best of its kind on that posterior.

* ``sampling``: all compiled, the draws alone; ``by bulk and tail``: by the smaller of the two ESS, since
  draws that alternate around the mean flatter the bulk. ``warm-up counted``: all compiled, warm-up too.
* ``cold``: from nothing, with tracing and compilation, to 1000 effective samples (one run).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.mcmc.problems import NAMES, WITH_PYRO
from benchmarks.mcmc.samplers import SAMPLERS, Measured, Phases

_SEEDS = 5
_OURS = ("ppgen ChEES-64", "ppgen ChEES-256", "ppgen NUTS-64")
_JAX = tuple(name for name in SAMPLERS if name.startswith(("NumPyro", "blackjax")))
_NUMPYRO = tuple(name for name in SAMPLERS if name.startswith("NumPyro"))
_PYRO = ("Pyro NUTS",)

# Name of the comparison, ours, peers, the figure (milliseconds for 1000 effective samples, or to
# them), target on each posterior, target of the geometric mean.
Figure = Callable[[Measured], float]
_COMPARISONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], Figure, float | None, float | None], ...] = (
    ("sampling, best against Pyro", _OURS, _PYRO, lambda m: 1e6 / m.rate, 1 / 300, 1 / 1000),
    ("sampling, best against best", _OURS, _JAX, lambda m: 1e6 / m.rate, 1.0, 1 / 3),
    (
        "sampling by bulk and tail, best against best",
        _OURS,
        _JAX,
        lambda m: 1e6 / m.rate_with_tails,
        None,
        None,
    ),
    ("warm-up counted, best against best", _OURS, _JAX, lambda m: 1e6 / m.rate_with_warm_up, None, 1 / 2),
    ("sampling, NUTS against NumPyro's", _OURS[2:], _NUMPYRO, lambda m: 1e6 / m.rate, 1.0, None),
    ("cold, best against best", _OURS, _JAX, lambda m: 1e3 * m.cold, 1.0, None),
)


def run(names: Iterable[str] = NAMES, seeds: int = _SEEDS) -> list[dict[str, Any]]:
    """The comparisons on each posterior, and their geometric means; progress on standard error."""
    rows = []
    names = list(names)
    results = {name: {s: _measure(name, s, seeds) for s in (*_OURS, *_JAX)} for name in names}
    for name in (n for n in names if n in WITH_PYRO):
        results[name] |= {s: _measure(name, s, seeds) for s in _PYRO}
    for title, ours, peers, figure, each, overall in _COMPARISONS:
        ratios = []
        for name, measured in results.items():
            if not measured.keys() >= {*peers}:
                continue
            mine = min(ours, key=lambda s: figure(measured[s]))
            best = min(peers, key=lambda s: figure(measured[s]))
            ours_ms, peer_ms = figure(measured[mine]), figure(measured[best])
            ratios.append(ours_ms / peer_ms)
            case = f"{name.partition('-')[2] or name}: {mine.removeprefix('ppgen ')}"
            rows.append(_row(f"mcmc {title}", case, ours_ms, peer_ms, _named(best), each))
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        rows.append(_row(f"mcmc {title}", f"geometric mean of {len(ratios)}", mean, 1.0, "", overall))
    return rows


def _measure(name: str, sampler: str, seeds: int) -> Measured:
    command = [sys.executable, "-m", "benchmarks.mcmc.measure", name, sampler, str(seeds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    measured = Measured(found["first"], tuple(Phases(**phases) for phases in found["runs"]))
    rates = f"{measured.rate:.0f} ESS/s, {measured.rate_with_warm_up:.0f} with warm-up"
    sys.stderr.write(f"  {name}: {sampler}: {rates}, cold {measured.cold:.2f} s\n")
    return measured


def _named(sampler: str) -> str:
    """The peer with its version, and jax's where it runs on that."""
    package = {"Pyro": "pyro-ppl", "NumPyro": "numpyro", "blackjax": "blackjax"}[sampler.split()[0]]
    version = importlib.metadata.version(package)
    jax = "" if package == "pyro-ppl" else f", jax {importlib.metadata.version('jax')}"
    return f"{sampler} ({version}{jax})"


def _row(
    benchmark: str, case: str, ours_ms: float, peer_ms: float, peer: str, target: float | None
) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "case": case,
        "ours_ms": ours_ms,
        "peer_ms": peer_ms,
        "peer": peer,
        "ratio": ours_ms / peer_ms,
        "target": target,
    }
