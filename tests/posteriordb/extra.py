"""More models as Pyro's users write them, each with data simulated from it: none has reference draws.

They are small, and between them use nested plates, indexing by group, masks, ordered and correlated
parameters, mixtures summed out, Gaussian processes, ``reparam`` and heavy tails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from ppgen.ops.random import forked_rng
from tests.posteriordb.declare import Arguments

Model = Callable[..., None]


@dataclass(frozen=True)
class Extra:
    """A model, and its arguments with simulated data in place.

    Attributes:
        name: for test ids.
        model: the Pyro model.
        simulate: its arguments; the same seed gives the same ones.
    """

    name: str
    model: Model
    simulate: Callable[[int], Arguments]


def radon(floor: Tensor, county: Tensor, uranium: Tensor, y: Tensor | None = None) -> None:
    """Varying intercepts with a predictor for counties, and a slope: houses indexed by county."""
    gamma = pyro.sample("gamma", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    sigma_county = pyro.sample("sigma_county", dist.HalfCauchy(1.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("counties", len(uranium)):
        alpha = pyro.sample("alpha", dist.Normal(gamma[0] + gamma[1] * uranium, sigma_county))
    with pyro.plate("houses", len(floor)):
        pyro.sample("y", dist.Normal(alpha[county] + beta * floor, sigma), obs=y)


def rats(age: Tensor, y: Tensor | None = None) -> None:
    """Growth curves: two nested plates; some weights are missing (NaN) and become latents."""
    mean = pyro.sample("mean", dist.Normal(torch.tensor([240.0, 6.0]), torch.tensor([50.0, 5.0])).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(torch.tensor([20.0, 2.0])).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("rats", 6, dim=-2):
        height = pyro.sample("height", dist.Normal(mean[..., 0], spread[..., 0]))
        slope = pyro.sample("slope", dist.Normal(mean[..., 1], spread[..., 1]))
        with pyro.plate("weeks", len(age), dim=-1):
            line = height + slope * (age - age.mean())
            if y is None:
                pyro.sample("y", dist.Normal(line, sigma))
            else:
                observed = cast(torch.BoolTensor, y.isfinite())
                pyro.sample("y", dist.Normal(line, sigma), obs=y.nan_to_num(), obs_mask=observed)


def seeds(extract: Tensor, total: Tensor, r: Tensor | None = None) -> None:
    """Germinating seeds: binomial counts with a random effect a plate of the crop."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 1.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
    with pyro.plate("crops", len(total)):
        b = pyro.sample("b", dist.Normal(0.0, tau.rsqrt()))
        pyro.sample("r", dist.Binomial(total, logits=alpha + beta * extract + b), obs=r)


def irt_2pl(num_people: int, num_items: int, y: Tensor | None = None) -> None:
    """Two-parameter item response: crossed plates, (items, people)."""
    sigma_theta = pyro.sample("sigma_theta", dist.HalfCauchy(2.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = pyro.sample("sigma_b", dist.HalfCauchy(2.0))
    items, people = pyro.plate("items", num_items, dim=-2), pyro.plate("people", num_people, dim=-1)
    with people:
        theta = pyro.sample("theta", dist.Normal(0.0, sigma_theta))
    with items:
        a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
        b = pyro.sample("b", dist.Normal(mu_b, sigma_b))
    with items, people:
        pyro.sample("y", dist.Bernoulli(logits=a * (theta - b)), obs=y)


def ratings(x: Tensor, y: Tensor | None = None) -> None:
    """Ordered logistic regression on five levels."""
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    normal = dist.Normal(torch.tensor([-2.0, -0.5, 0.5, 2.0]), 1.0).to_event(1)
    cuts = pyro.sample("cuts", dist.TransformedDistribution(normal, dist.transforms.OrderedTransform()))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.OrderedLogistic(x @ beta, cuts), obs=y)


def random_slopes(x: Tensor, group: Tensor, y: Tensor | None = None, num_groups: int = 6) -> None:
    """Correlated intercepts and slopes: LKJ prior on their correlation, non-centred."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(1.0).expand([2]).to_event(1))
    correlation = pyro.sample("correlation", dist.LKJCholesky(2, torch.tensor(2.0)))
    sigma = pyro.sample("sigma", dist.Exponential(1.0))
    with pyro.plate("groups", num_groups):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    effects = mean + raw @ (spread.unsqueeze(-1) * correlation).mT
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(effects[group, 0] + effects[group, 1] * x, sigma), obs=y)


def fishing(x: Tensor, y: Tensor | None = None) -> None:
    """Counts with too many zeros: a Bernoulli latent a visit, summed out."""
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    nothing = pyro.sample("nothing", dist.Beta(2.0, 2.0))
    with pyro.plate("visits", len(x)):
        idle = pyro.sample("idle", dist.Bernoulli(nothing), infer={"enumerate": "parallel"})
        rate = (beta[0] + beta[1] * x).exp()
        pyro.sample("y", dist.Poisson(torch.where(idle > 0, torch.full_like(rate, 1e-6), rate)), obs=y)


def topics(y: Tensor | None = None, num: int = 40) -> None:
    """A mixture of three Gaussians in two dimensions, with a simplex, as one distribution."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
    with pyro.plate("components", 3):
        centre = pyro.sample("centre", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        width = pyro.sample("width", dist.InverseGamma(3.0, 2.0))
    components = dist.Normal(centre, width.unsqueeze(-1)).to_event(1)
    with pyro.plate("data", num):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=y)


def poisson_process(x: Tensor, k: Tensor | None = None) -> None:
    """Counts whose log rate is a Gaussian process, through its Cholesky factor."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    distance = (x[:, None] - x) / rho
    covariance = alpha**2 * torch.exp(-0.5 * distance**2) + 1e-6 * torch.eye(len(x))
    with pyro.plate("inputs", len(x)):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        f = pyro.deterministic("f", torch.linalg.cholesky(covariance) @ raw)
        pyro.sample("k", dist.Poisson(f.exp()), obs=k)


def volatility(steps: int, y: Tensor | None = None) -> None:
    """Stochastic volatility: a loop over time, each state given the one before, Student noise."""
    phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
    tau = pyro.sample("tau", dist.HalfCauchy(0.5))
    nu = pyro.sample("nu", dist.Gamma(10.0, 1.0))
    h = torch.zeros(())
    for t in range(steps):
        h = pyro.sample(f"h_{t}", dist.Normal(phi * h, tau))
        pyro.sample(f"y_{t}", dist.StudentT(nu, 0.0, (h / 2).exp()), obs=None if y is None else y[t])


@poutine.reparam(config={"effect": LocScaleReparam(0.0)})
def schools_by_reparam(error: Tensor, y: Tensor | None = None) -> None:
    """A centred hierarchy that ``reparam`` decentres."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(error)):
        effect = pyro.sample("effect", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(effect, error), obs=y)


def _simulated(
    model: Model, inputs: Callable[[], tuple[Tensor | int, ...]], site: str = "y", missing: bool = False
) -> Callable[[int], Arguments]:
    """Arguments and data from one run of the model itself."""

    def simulate(seed: int) -> Arguments:
        with forked_rng(seed), torch.no_grad():
            arguments = inputs()
            nodes: dict[str, Any] = dict(poutine.trace(model).get_trace(*arguments).nodes)
            one_by_one = [node["value"] for name, node in nodes.items() if name.startswith(f"{site}_")]
            value: Tensor = nodes[site]["value"] if site in nodes else torch.stack(one_by_one)
            if missing:
                value = torch.where(torch.rand(value.shape) < 0.2, torch.nan, value)
        return (*arguments, value.detach())

    return simulate


def _radon_inputs() -> tuple[Tensor, ...]:
    return torch.randint(2, (40,)).float(), torch.arange(40) % 8, torch.randn(8)


_EXTRA = (
    Extra("radon", radon, _simulated(radon, _radon_inputs)),
    Extra(
        "rats", rats, _simulated(rats, lambda: (torch.tensor([8.0, 15.0, 22.0, 29.0, 36.0]),), missing=True)
    ),
    Extra("seeds", seeds, _simulated(seeds, lambda: (torch.arange(12.0) % 2, torch.arange(20.0, 32.0)), "r")),
    Extra("irt_2pl", irt_2pl, _simulated(irt_2pl, lambda: (15, 6))),
    Extra("ratings", ratings, _simulated(ratings, lambda: (torch.randn(60, 3),))),
    Extra(
        "random_slopes",
        random_slopes,
        _simulated(random_slopes, lambda: (torch.randn(48), torch.arange(48) % 6)),
    ),
    Extra("fishing", fishing, _simulated(fishing, lambda: (torch.randn(50),))),
    Extra("topics", topics, _simulated(topics, lambda: ())),
    Extra(
        "poisson_process",
        poisson_process,
        _simulated(poisson_process, lambda: (torch.linspace(-10.0, 10.0, 11),), "k"),
    ),
    Extra("volatility", volatility, _simulated(volatility, lambda: (20,))),
    Extra(
        "schools_by_reparam",
        schools_by_reparam,
        _simulated(schools_by_reparam, lambda: (torch.arange(9.0, 17.0),)),
    ),
)

#: All of them, by name.
EXTRA: dict[str, Extra] = {extra.name: extra for extra in _EXTRA}
