"""A user's own functions behind the contract, with densities known in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppgen
from ppgen.contract import Kind
from ppgen.errors import CapabilityError, ConfigError, DataError
from ppgen.ops.random import forked_rng
from ppgen.testing import CHECKS
from ppgen.testing.statistics import assert_close_to


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def latent_model(x: Tensor | None = None, num: int | None = None) -> Tensor:
    with pyro.plate("data", num or 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def latent_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.7 * x, 0.5))


def mixture(x: Tensor | None = None, num: int | None = None) -> Tensor:
    with pyro.plate("data", num or 1 if x is None else len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        j = pyro.sample("j", dist.Bernoulli(0.25 + 0.5 * k))
        return pyro.sample("x", dist.Normal(3.0 * k - j, 1.0), obs=x)


def test_a_latent_pair_is_bounded_and_close_to_the_truth() -> None:
    wrapped = ppgen.wrap(latent_model, latent_guide)
    x = wrapped.sample(100, seed=1)
    estimate = wrapped.log_likelihood(x, num_particles=5000)
    assert estimate.kind is Kind.LOWER_BOUND
    truth = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x)
    assert_close_to(estimate.value, truth, estimate.std_error)
    with pytest.raises(AssertionError):
        assert_close_to(estimate.value, dist.Normal(0.0, 1.2).log_prob(x), estimate.std_error)


def test_discrete_latents_are_summed_out_exactly() -> None:
    wrapped = ppgen.wrap(mixture)
    x = wrapped.sample(50, seed=1)
    estimate = wrapped.log_likelihood(x)
    assert estimate.kind is Kind.EXACT
    terms = []
    for k, pk in ((0, 0.3), (1, 0.7)):
        for j, pj in ((0, 0.75 - 0.5 * k), (1, 0.25 + 0.5 * k)):
            terms.append(math.log(pk * pj) + dist.Normal(3.0 * k - j, 1.0).log_prob(x))
    assert torch.allclose(estimate.value, torch.stack(terms).logsumexp(0), atol=1e-5)


def test_without_latents_the_density_is_exact() -> None:
    def model(x: Tensor | None = None, num: int | None = None) -> Tensor:
        with pyro.plate("data", num or 1 if x is None else len(x)):
            return pyro.sample("pixels", dist.Normal(torch.zeros(3), 2.0).to_event(1), obs=x)

    wrapped = ppgen.wrap(model)
    x = torch.randn(7, 3)
    estimate = wrapped.log_likelihood(x)
    assert estimate.kind is wrapped.density is Kind.EXACT
    assert wrapped.site == "pixels"
    assert wrapped.event_shape == (3,)
    assert torch.allclose(estimate.value, dist.Normal(torch.zeros(3), 2.0).to_event(1).log_prob(x))


def test_shared_latents_give_the_evidence_of_all_data() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(x.sum() / (1 + len(x)), 1.2 / math.sqrt(1 + len(x))))

    x = torch.randn(10) + 1
    estimate = ppgen.wrap(model, guide).log_likelihood(x, num_particles=4000)
    covariance = torch.eye(10) + torch.ones(10, 10)
    truth = dist.MultivariateNormal(torch.zeros(10), covariance).log_prob(x)
    assert estimate.value.shape == ()
    assert_close_to(estimate.value, truth, estimate.std_error)


def test_enumerated_models_train_through_the_trainer() -> None:
    class Clusters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.locs = nn.Parameter(torch.tensor([-1.0, 1.0]))

        def forward(self, x: Tensor | None = None, num: int | None = None) -> Tensor:
            with pyro.plate("data", num or 1 if x is None else len(x)):
                k = pyro.sample("k", dist.Bernoulli(0.5))
                loc = self.locs[k.long()][..., None]
                return pyro.sample("x", dist.Normal(loc, 0.3).to_event(1), obs=x)

    wrapped = ppgen.wrap(Clusters(), example=torch.zeros(4, 1))
    x = torch.cat([torch.randn(100) * 0.3 - 2, torch.randn(100) * 0.3 + 2])[:, None]
    options: dict[str, Any] = {"epochs": 200, "batch_size": None, "device": "cpu", "progress": False}
    ppgen.fit(wrapped, x, learning_rate=0.05, schedule="cosine", **options)
    (locs,) = wrapped.parameters()
    assert torch.allclose(locs, torch.stack([x[:100].mean(), x[100:].mean()]), atol=0.01)


def test_modules_among_the_programs_are_trained_and_saved() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor | None = None, num: int | None = None) -> Tensor:
            with pyro.plate("data", num or 1 if x is None else len(x)):
                return pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

    wrapped = ppgen.wrap(Decoder(), example=torch.zeros(1, 2))
    x = torch.randn(200, 2) + 3
    result = ppgen.fit(
        wrapped,
        x,
        epochs=300,
        batch_size=None,
        learning_rate=0.05,
        schedule="cosine",
        device="cpu",
        progress=False,
    )
    assert result.ok
    (loc,) = wrapped.parameters()
    assert torch.allclose(loc, x.mean(0), atol=0.01)
    assert list(wrapped.state_dict()) == ["user_model.loc"]


@pytest.mark.parametrize("check", ["seeds", "batch_of_one", "sampling_agrees_with_density"])
def test_promises_that_do_not_depend_on_the_constructor(check: str) -> None:
    def model(x: Tensor | None = None, num: int | None = None) -> Tensor:
        with pyro.plate("data", num or 1 if x is None else len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            loc = torch.stack([3 * k, -k], dim=-1)
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    CHECKS[check](lambda: ppgen.wrap(model, example=torch.zeros(1, 2)))


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="model: expected a Pyro function"):
        ppgen.wrap(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"latents \['z'\] are not sampled"):
        ppgen.wrap(latent_model).log_likelihood(torch.zeros(3))
    with pytest.raises(DataError, match="observes nothing"):
        ppgen.wrap(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0))).log_likelihood(torch.zeros(3))
    with pytest.raises(CapabilityError, match="no argument num"):
        ppgen.wrap(lambda x: None).sample(3)
    with pytest.raises(CapabilityError, match="context"):
        ppgen.wrap(latent_model, latent_guide).log_likelihood(torch.zeros(3), torch.zeros(3))

    def two(x: Tensor) -> Any:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(0.0, 1.0), obs=x)
            pyro.sample("b", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ConfigError, match="site: the model observes"):
        ppgen.wrap(two).log_likelihood(torch.zeros(3))
