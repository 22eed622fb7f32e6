"""Many-chain Markov chain Monte Carlo: kernels of pure functions, adapted and driven together."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.inference.mcmc.mcmc import MCMC
    from ppgen.inference.mcmc.potential import Potential
    from ppgen.inference.mcmc.result import Posterior
    from ppgen.inference.mcmc.samplers import HMC, MALA, NUTS, ChEES, RandomWalk, RandomWalkKernel

__all__ = [
    "HMC",
    "MALA",
    "MCMC",
    "NUTS",
    "ChEES",
    "Posterior",
    "Potential",
    "RandomWalk",
    "RandomWalkKernel",
]

_MODULES = {
    "ChEES": "samplers",
    "HMC": "samplers",
    "MALA": "samplers",
    "MCMC": "mcmc",
    "NUTS": "samplers",
    "Posterior": "result",
    "Potential": "potential",
    "RandomWalk": "samplers",
    "RandomWalkKernel": "samplers",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
