"""The families, one a file; each ends in the :class:`~ppgen.models.family.Family` that registers it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.models.family import Family

# Class name -> the module that defines it. A family is registered by its line here.
_CLASSES = {
    "GaussianMixture": "gaussian_mixture",
    "BernoulliMixture": "bernoulli_mixture",
    "KernelDensity": "kernel_density",
    "NaiveBayes": "naive_bayes",
    "BayesianNetwork": "bayesian_network",
    "HiddenMarkov": "hidden_markov",
    "LinearGaussianStateSpace": "state_space",
    "LinearChainCRF": "linear_chain_crf",
    "RealNVP": "real_nvp",
    "MAF": "maf",
    "IAF": "iaf",
    "NeuralSplineFlow": "neural_spline_flow",
    "Glow": "glow",
    "ContinuousFlow": "continuous_flow",
    "MADE": "made",
    "PixelCNN": "pixel_cnn",
    "PixelRNN": "pixel_rnn",
    "WaveNet": "wavenet",
    "Transformer": "transformer",
    "VAE": "vae",
    "RBM": "rbm",
    "MarkovRandomField": "markov_random_field",
    "GAN": "gan",
}

__all__ = [*_CLASSES, "families", "families_with"]


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(f"{__name__}.{_CLASSES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def families() -> dict[str, Family]:
    """Every registered family by its short name, in the order of the survey's table."""
    found = (importlib.import_module(f"{__name__}.{m}").FAMILY for m in _CLASSES.values())
    return {family.name: family for family in found}


def families_with(capability: type[Any]) -> list[str]:
    """Class names of the families that have a capability of :mod:`ppgen.contract`."""
    return [name for name in _CLASSES if issubclass(__getattr__(name), capability)]
