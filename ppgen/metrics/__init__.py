"""Metrics on estimates, samples and features; each says what kind of number it is.

Likelihood: :func:`nll`, :func:`bits_per_dim`, :func:`log_likelihoods`; of sequences,
:func:`nats_per_step` and :func:`perplexity`. Samples:
:func:`frechet_distance` (FID), :func:`kernel_distance` (KID), :func:`precision_recall`
(with density and coverage), on any feature function, such as :func:`classifier_features`.
Graphs: distances :func:`shd`, :func:`cpdag_shd`, :func:`sid` and :func:`expected_shd`; probabilities of edges
against a truth by :func:`auroc`, :func:`auprc` and :func:`edge_calibration`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.metrics.features import (
        FeatureMap,
        classifier_features,
        standardised_features,
        to_data_space,
    )
    from ppgen.metrics.frechet import frechet_distance, gaussian_frechet_distance
    from ppgen.metrics.graphs.average_precision import auprc
    from ppgen.metrics.graphs.calibration import EdgeCalibration, edge_calibration
    from ppgen.metrics.graphs.expected_hamming import expected_shd
    from ppgen.metrics.graphs.hamming import shd
    from ppgen.metrics.graphs.intervention_distance import sid
    from ppgen.metrics.graphs.pattern_hamming import cpdag_shd
    from ppgen.metrics.graphs.roc import auroc
    from ppgen.metrics.kernel import kernel_distance
    from ppgen.metrics.likelihood import bits_per_dim, log_likelihoods, nll
    from ppgen.metrics.neighbours import PrecisionRecall, precision_recall
    from ppgen.metrics.rates import nats_per_step, perplexity

# Name -> the module that defines it. No function has the name of its module: importing a
# submodule binds it on the package and would hide the function.
_HOMES = {
    "EdgeCalibration": "graphs.calibration",
    "FeatureMap": "features",
    "PrecisionRecall": "neighbours",
    "auprc": "graphs.average_precision",
    "auroc": "graphs.roc",
    "bits_per_dim": "likelihood",
    "classifier_features": "features",
    "cpdag_shd": "graphs.pattern_hamming",
    "edge_calibration": "graphs.calibration",
    "expected_shd": "graphs.expected_hamming",
    "frechet_distance": "frechet",
    "gaussian_frechet_distance": "frechet",
    "kernel_distance": "kernel",
    "log_likelihoods": "likelihood",
    "nats_per_step": "rates",
    "nll": "likelihood",
    "perplexity": "rates",
    "precision_recall": "neighbours",
    "shd": "graphs.hamming",
    "sid": "graphs.intervention_distance",
    "standardised_features": "features",
    "to_data_space": "features",
}

__all__ = [
    "EdgeCalibration",
    "FeatureMap",
    "PrecisionRecall",
    "auprc",
    "auroc",
    "bits_per_dim",
    "classifier_features",
    "cpdag_shd",
    "edge_calibration",
    "expected_shd",
    "frechet_distance",
    "gaussian_frechet_distance",
    "kernel_distance",
    "log_likelihoods",
    "nats_per_step",
    "nll",
    "perplexity",
    "precision_recall",
    "shd",
    "sid",
    "standardised_features",
    "to_data_space",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
