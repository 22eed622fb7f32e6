"""ppgen: generative models on Pyro, every family a model/guide pair behind one contract.

The names below load what they need when they are first used; importing ppgen is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen import datasets, errors, inference, metrics, models, testing
    from ppgen.contract import Estimate, GenerativeModel, Kind
    from ppgen.inference.checkpoint import load_model as load
    from ppgen.inference.checkpoint import save_model as save
    from ppgen.inference.svi import fit
    from ppgen.models.wrapped import wrap
    from ppgen.report.survey import survey

__version__ = "0.1.0"

__all__ = [
    "Estimate",
    "GenerativeModel",
    "Kind",
    "__version__",
    "datasets",
    "errors",
    "fit",
    "inference",
    "load",
    "metrics",
    "models",
    "save",
    "survey",
    "testing",
    "wrap",
]

_MODULES = ("datasets", "errors", "inference", "metrics", "models", "testing")

# Public name -> (module that defines it, its name there).
_NAMES = {
    "Estimate": ("ppgen.contract", "Estimate"),
    "GenerativeModel": ("ppgen.contract", "GenerativeModel"),
    "Kind": ("ppgen.contract", "Kind"),
    "fit": ("ppgen.inference.svi", "fit"),
    "load": ("ppgen.inference.checkpoint", "load_model"),
    "save": ("ppgen.inference.checkpoint", "save_model"),
    "survey": ("ppgen.report.survey", "survey"),
    "wrap": ("ppgen.models.wrapped", "wrap"),
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ppgen.{name}")
    if name in _NAMES:
        module, attribute = _NAMES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'ppgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
