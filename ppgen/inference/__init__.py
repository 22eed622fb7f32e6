"""Inference: the trainer, objectives and algorithms. Knows the contract, never a family."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.inference.em import ExpectationMaximisation
    from ppgen.inference.objectives.adversarial import Adversarial
    from ppgen.inference.objectives.contrastive_divergence import ContrastiveDivergence
    from ppgen.inference.objectives.elbo import ELBO
    from ppgen.inference.result import FitResult
    from ppgen.inference.svi import fit

__all__ = ["ELBO", "Adversarial", "ContrastiveDivergence", "ExpectationMaximisation", "FitResult", "fit"]

_MODULES = {
    "ELBO": "objectives.elbo",
    "Adversarial": "objectives.adversarial",
    "ContrastiveDivergence": "objectives.contrastive_divergence",
    "ExpectationMaximisation": "em",
    "FitResult": "result",
    "fit": "svi",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
