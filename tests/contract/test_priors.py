"""Priors on a model's networks: Pyro's automatic guides and its MCMC treat it as any Bayesian module."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.optim.optim import PyroOptim
from torch import Tensor, nn

from ppgen.contract import GenerativeModel
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to

LINEAR: Any = PyroModule[nn.Linear]
TRUTH = torch.tensor([[1.0, -2.0]])


class Regression(GenerativeModel):
    """x given its context, with a prior on the weights and a learnt bias and noise."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.context_dim = 2
        self.net = LINEAR(2, 1)
        self.net.weight = PyroSample(dist.Normal(0.0, 1.0).expand(torch.Size([1, 2])).to_event(2))
        self.noise: Any = PyroParam(torch.ones(()), constraint=dist.constraints.positive)

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        loc = self.net(context)
        with self.data_plate(x, num, context):
            return pyro.sample("x", dist.Normal(loc, self.noise).to_event(1), obs=x)


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0), pyro.get_param_store().scope():
        yield


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    context = torch.randn(100, 2)
    return context @ TRUTH.T + 0.3 * torch.randn(100, 1), context


def assert_posterior_mean(weight: Tensor, model: Regression, data: tuple[Tensor, Tensor]) -> None:
    """Assert that an estimate of the weights' mean is the exact one, given the model's bias and noise.

    The error allowed is that of a single draw: its standard error is the posterior deviation.
    """
    x, context = data
    noise, bias = float(model.noise), model.net.bias.detach()
    covariance = torch.linalg.inv(torch.eye(2) + context.T @ context / noise**2)
    mean = covariance @ context.T @ (x - bias)[:, 0] / noise**2
    assert_close_to(weight.flatten(), mean, covariance.diagonal().sqrt(), "posterior mean")


def test_an_automatic_guide_learns_the_weights(data: tuple[Tensor, Tensor]) -> None:
    model = Regression((1,))
    guide = AutoNormal(model.model)
    svi = SVI(model.model, guide, PyroOptim(torch.optim.Adam, {"lr": 0.03}), Trace_ELBO())
    for _ in range(400):
        svi.step(*data)
    assert_posterior_mean(guide.median(*data)["net.weight"], model, data)
    # The deviation of 100 residuals is known to 0.3 / sqrt(2 * 100).
    assert_close_to(model.noise.detach(), 0.3, torch.tensor(0.3 / 200**0.5), "noise")
    # What Pyro's guide declares is in Pyro's store; what the model learns is not.
    assert all(name.startswith("AutoNormal") for name in pyro.get_param_store())


def test_a_module_of_pyro_without_priors_gets_on_with_an_automatic_guide(data: tuple[Tensor, Tensor]) -> None:
    class Latent(GenerativeModel):
        def __init__(self, event_shape: tuple[int, ...]) -> None:
            super().__init__(event_shape)
            self.up = LINEAR(1, 1)

        def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
            with self.data_plate(x, num, context):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(self.up(z), 1.0).to_event(1), obs=x)

    model = Latent((1,))
    guide = AutoNormal(model.model)
    svi = SVI(model.model, guide, PyroOptim(torch.optim.Adam, {"lr": 0.03}), Trace_ELBO())
    weight = model.up.weight.detach().clone()
    svi.step(data[0])
    assert not torch.equal(model.up.weight, weight)
    assert all(name.startswith("AutoNormal") for name in pyro.get_param_store())


def test_nuts_and_predictive_see_the_weights(data: tuple[Tensor, Tensor]) -> None:
    model = Regression((1,))
    mcmc = MCMC(NUTS(model.model), num_samples=40, warmup_steps=40, disable_progbar=True)
    mcmc.run(*data)
    draws = mcmc.get_samples()
    assert_posterior_mean(draws["net.weight"].mean(0), model, data)
    with pytest.raises(AssertionError):  # the planted defect: weights the wrong way round
        assert_posterior_mean(draws["net.weight"].mean(0).flip(-1), model, data)
    replayed = Predictive(model.model, draws)(None, data[1], num=100)
    assert replayed["x"].shape == (40, 100, 1)


def test_a_model_with_priors_is_copied_and_pickled(data: tuple[Tensor, Tensor]) -> None:
    model = Regression((1,))
    Trace_ELBO().loss(model.model, AutoNormal(model.model), *data)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(model.sample(4, data[1][:4], seed=1), other.sample(4, data[1][:4], seed=1))
