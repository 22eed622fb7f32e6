"""Inference: the trainer, objectives and algorithms. Knows the contract, never a family."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.inference import structure
    from ppgen.inference.ais import AIS
    from ppgen.inference.annealing.likelihood import simulated_bounds
    from ppgen.inference.em import ExpectationMaximisation
    from ppgen.inference.mcmc.mcmc import MCMC
    from ppgen.inference.mcmc.result import Posterior
    from ppgen.inference.mcmc.samplers import HMC, MALA, NUTS, ChEES, RandomWalk
    from ppgen.inference.objectives.adversarial import Adversarial
    from ppgen.inference.objectives.contrastive_divergence import ContrastiveDivergence
    from ppgen.inference.objectives.elbo import ELBO
    from ppgen.inference.objectives.flow_matching import FlowMatching
    from ppgen.inference.objectives.penalised import PenalisedLikelihood
    from ppgen.inference.partition import log_partition
    from ppgen.inference.result import FitResult
    from ppgen.inference.smc import SMC
    from ppgen.inference.svi import fit

__all__ = [
    "AIS",
    "ELBO",
    "HMC",
    "MALA",
    "MCMC",
    "NUTS",
    "SMC",
    "Adversarial",
    "ChEES",
    "ContrastiveDivergence",
    "ExpectationMaximisation",
    "FitResult",
    "FlowMatching",
    "PenalisedLikelihood",
    "Posterior",
    "RandomWalk",
    "fit",
    "log_partition",
    "simulated_bounds",
    "structure",
]

_MODULES = {
    "AIS": "ais",
    "ChEES": "mcmc.samplers",
    "HMC": "mcmc.samplers",
    "MALA": "mcmc.samplers",
    "MCMC": "mcmc.mcmc",
    "NUTS": "mcmc.samplers",
    "Posterior": "mcmc.result",
    "RandomWalk": "mcmc.samplers",
    "ELBO": "objectives.elbo",
    "Adversarial": "objectives.adversarial",
    "ContrastiveDivergence": "objectives.contrastive_divergence",
    "ExpectationMaximisation": "em",
    "PenalisedLikelihood": "objectives.penalised",
    "FitResult": "result",
    "FlowMatching": "objectives.flow_matching",
    "SMC": "smc",
    "fit": "svi",
    "log_partition": "partition",
    "simulated_bounds": "annealing.likelihood",
}


def __getattr__(name: str) -> Any:
    if name == "structure":
        return importlib.import_module(f"{__name__}.structure")
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
