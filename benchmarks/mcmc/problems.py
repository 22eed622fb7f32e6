"""The posteriors that samplers are measured on: data, and the Pyro program that ppgen and Pyro run.

Eleven come from posteriordb (their data are read from the directory of ``PPGEN_DATA``), three are
synthetic: a logistic regression (N=1000, D=26), a Poisson model with random effects (D=44) and a
correlated Gaussian in 100 dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from tests.posteriordb.programs import POSTERIORS

SYNTHETIC = ("logistic", "glmm", "gaussian")
NAMES = (
    "eight_schools-eight_schools_noncentered",
    "arK-arK",
    "earnings-logearn_interaction_z",
    "kidiq-kidscore_interaction",
    "mesquite-logmesquite",
    "nes1980-nes",
    "sblrc-blr",
    "garch-garch11",
    "gp_pois_regr-gp_regr",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "hmm_example-hmm_example",
    *SYNTHETIC,
)

#: Those that ``pyro.infer.NUTS`` is measured on: no loops in time, no constraint that it cannot begin from.
WITH_PYRO = NAMES[:7] + ("gp_pois_regr-gp_regr", "logistic")

Program = tuple[Callable[..., Any], tuple[Any, ...]]


def data_directory() -> Path:
    """Where the directory ``posteriordb`` is."""
    return Path(os.environ.get("PPGEN_DATA", "../shared/data"))


def load(name: str) -> dict[str, Any]:
    """The data of a posterior."""
    if name in SYNTHETIC:
        return _SIMULATORS[name](torch.Generator().manual_seed(20))
    data: dict[str, Any] = json.loads((data_directory() / "posteriordb" / name / "data.json").read_text())
    return data


def pyro_program(name: str) -> Program:
    """The Pyro model of a posterior, and its arguments."""
    data = load(name)
    if name in SYNTHETIC:
        return _PYRO[name](data)
    posterior = POSTERIORS[name]
    return posterior.model, posterior.arguments(data, torch.float32)


class _WidePriors(Messenger):
    """Puts Normal(0, 1000) or HalfNormal(1000) where a prior is flat."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not isinstance(msg["fn"], dist.ImproperUniform):
            return
        prior = msg["fn"]
        positive = prior.support is constraints.positive
        wide = dist.HalfNormal(1e3) if positive else dist.Normal(0.0, 1e3)
        msg["fn"] = wide.expand(prior.shape()).to_event(len(prior.event_shape))


def with_proper_priors(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model with very wide proper priors in place of improper ones on the reals or above zero."""

    def proper(*args: Any) -> Any:
        with _WidePriors():
            return model(*args)

    return proper


def _logistic_data(generator: torch.Generator) -> dict[str, Any]:
    x = torch.randn(1000, 25, generator=generator)
    weights = 0.5 * torch.randn(25, generator=generator)
    y = torch.bernoulli((0.3 + x @ weights).sigmoid(), generator=generator)
    return {"x": x.numpy(), "y": y.numpy()}


def _glmm_data(generator: torch.Generator) -> dict[str, Any]:
    group = torch.arange(400) % 40
    x = torch.randn(400, 2, generator=generator)
    effects = 0.6 * torch.randn(40, generator=generator)
    rate = (1.0 + x @ torch.tensor([0.3, -0.2]) + effects[group]).exp()
    y = torch.poisson(rate, generator=generator)
    return {"x": x.numpy(), "y": y.numpy(), "group": group.numpy(), "num_groups": 40}


def _gaussian_data(generator: torch.Generator) -> dict[str, Any]:
    basis = torch.linalg.qr(torch.randn(100, 100, generator=generator, dtype=torch.float64)).Q
    precision = (basis * torch.logspace(-1, 1, 100, dtype=torch.float64)) @ basis.T
    return {"precision": precision.numpy()}


def _logistic(data: dict[str, Any]) -> Program:
    def model(x: Tensor, y: Tensor) -> None:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 2.5))
        weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=intercept + x @ weights), obs=y)

    return model, (torch.as_tensor(data["x"]), torch.as_tensor(data["y"]))


def _glmm(data: dict[str, Any]) -> Program:
    def model(x: Tensor, group: Tensor, y: Tensor, num_groups: int) -> None:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
        slopes = pyro.sample("slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("groups", num_groups):
            effects = pyro.sample("effects", dist.Normal(0.0, 1.0))
        rate = (intercept + x @ slopes + tau * effects[group]).exp()
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    tensors = [torch.as_tensor(data[name]) for name in ("x", "group", "y")]
    return model, (*tensors, data["num_groups"])


def _gaussian(data: dict[str, Any]) -> Program:
    def model(precision: Tensor) -> None:
        zero = precision.new_zeros(len(precision))
        pyro.sample("z", dist.MultivariateNormal(zero, precision_matrix=precision))

    return model, (torch.as_tensor(data["precision"], dtype=torch.float32),)


_SIMULATORS: dict[str, Callable[[torch.Generator], dict[str, Any]]] = {
    "logistic": _logistic_data,
    "glmm": _glmm_data,
    "gaussian": _gaussian_data,
}
_PYRO: dict[str, Callable[[dict[str, Any]], Program]] = {
    "logistic": _logistic,
    "glmm": _glmm,
    "gaussian": _gaussian,
}
