"""A user's own functions behind the contract, with densities known in closed form."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

import ppgen
from ppgen.contract import Kind
from ppgen.errors import CapabilityError, ConfigError, DataError, SamplingWarning
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


def shared_k(x: Tensor | None = None, num: int | None = None) -> Tensor:
    k = pyro.sample("k", dist.Bernoulli(0.3))
    with pyro.plate("data", num or 1 if x is None else len(x)):
        return pyro.sample("x", dist.Normal(3 * k, 1.0), obs=x)


def test_a_shared_discrete_latent_gives_the_exact_evidence_of_all_data() -> None:
    x = torch.randn(6)
    estimate = ppgen.wrap(shared_k).log_likelihood(x)
    each = [math.log(w) + dist.Normal(m, 1.0).log_prob(x).sum() for w, m in ((0.7, 0.0), (0.3, 3.0))]
    assert estimate.kind is Kind.EXACT
    assert estimate.value.shape == ()
    assert torch.allclose(estimate.value, torch.stack(each).logsumexp(0), atol=1e-4)


def test_a_shared_latent_is_known_by_its_plate_not_by_its_size() -> None:
    """As many shared components as data: they stay shared."""

    def model(x: Tensor) -> None:
        with pyro.plate("components", 3):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("components", 3):
            pyro.sample("mu", dist.Normal(0.0, 1.0))

    x = torch.zeros(3)
    estimate = ppgen.wrap(model, guide).log_likelihood(x, num_particles=4000)
    truth = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 3).log_prob(x)
    assert estimate.value.shape == ()
    assert_close_to(estimate.value, truth, estimate.std_error)


def test_discrete_latents_that_the_guide_draws_give_a_bound() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("j", dist.Bernoulli(0.3 + 0.4 * k))

    x = ppgen.wrap(mixture).sample(20, seed=1)
    estimate = ppgen.wrap(mixture, guide).log_likelihood(x, num_particles=5000)
    assert estimate.kind is Kind.LOWER_BOUND
    assert_close_to(estimate.value, ppgen.wrap(mixture).log_likelihood(x).value, estimate.std_error)


@pytest.mark.parametrize("shared", [False, True])
def test_discrete_latents_are_summed_out_beside_a_guide(shared: bool) -> None:
    def model(x: Tensor | None = None, num: int | None = None) -> Tensor:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0)) if shared else 0.0
        with pyro.plate("data", num or 1 if x is None else len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(mu + 3 * k, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        if shared:
            pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 0.7, 1.0))

    x = torch.tensor([0.5, 2.0])
    estimate = ppgen.wrap(model, guide).log_likelihood(x, num_particles=3000)
    if not shared:
        each = [math.log(w) + dist.Normal(m, math.sqrt(2)).log_prob(x) for w, m in ((0.7, 0.0), (0.3, 3.0))]
        truth = torch.stack(each).logsumexp(0)
    else:
        joint = dist.MultivariateNormal(torch.zeros(2), 2 * torch.eye(2) + 1)
        weights = [0.7, 0.3]
        terms = [
            math.log(weights[i] * weights[j]) + joint.log_prob(x - 3 * torch.tensor([i, j]))
            for i in (0, 1)
            for j in (0, 1)
        ]
        truth = torch.stack(terms).logsumexp(0)
    assert estimate.kind is Kind.LOWER_BOUND
    assert estimate.value.shape == truth.shape
    assert_close_to(estimate.value, truth, estimate.std_error)


def test_a_chain_of_discrete_latents_is_summed_over_all_paths() -> None:
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    def chain(x: Tensor | None = None, num: int | None = None, *, length: int = 3) -> None:
        with pyro.plate("data", num or 1 if x is None else len(x)):
            k = torch.tensor(0)
            for t in pyro.plate("time", length):
                k = pyro.sample(f"k{t}", dist.Categorical(transition[k]))
                pyro.sample(f"x{t}", dist.Normal(2.0 * k, 1.0), obs=None if x is None else x[:, int(t)])

    x = torch.randn(5, 3)
    wrapped = ppgen.wrap(chain, site="x0")
    paths = []
    for path in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
        before = [0, *path[:-1]]
        log_p = sum(math.log(float(transition[int(a)][int(b)])) for a, b in zip(before, path, strict=True))
        paths.append(log_p + sum(dist.Normal(2.0 * k, 1.0).log_prob(x[:, t]) for t, k in enumerate(path)))
    estimate = wrapped.log_likelihood(x)
    assert estimate.kind is Kind.EXACT
    assert torch.allclose(estimate.value, torch.stack(paths).logsumexp(0), atol=1e-5)
    assert wrapped.sample(4, seed=1).shape == (4,)  # the model returns nothing: the data site's values
    with pytest.raises(CapabilityError, match="too many joint states"):
        ppgen.wrap(functools.partial(chain, length=30), site="x0").log_likelihood(torch.zeros(2, 30))


def test_a_datum_spread_over_plates_is_refused_and_never_misread() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 3, dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    for num in (3, 5):  # 3: as many data as pixels
        wrapped = ppgen.wrap(model, example=torch.zeros(num, 3))
        with pytest.raises(CapabilityError, match=r"spans the plates .*to_event"):
            wrapped.log_likelihood(torch.zeros(num, 3))


def test_deterministic_and_factor_sites_are_no_data() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.deterministic("loc", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.factor("tilt", torch.full((len(x),), -0.5))
            pyro.sample("pixels", dist.Normal(loc, 1.0), obs=x)

    x = torch.randn(4)
    wrapped = ppgen.wrap(model)
    assert torch.allclose(wrapped.log_likelihood(x).value, dist.Normal(1.0, 1.0).log_prob(x) - 0.5)
    assert wrapped.site == "pixels"


class Bell(PyroModule):
    loc: Any
    scale: Any

    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.zeros(1))
        self.scale = PyroParam(torch.ones(1), constraint=dist.constraints.positive)

    def forward(self, x: Tensor | None = None, num: int | None = None) -> Tensor:
        with pyro.plate("data", num or 1 if x is None else len(x)):
            return pyro.sample("x", dist.Normal(self.loc, self.scale).to_event(1), obs=x)


def test_pyro_modules_of_one_class_stay_apart_and_out_of_the_global_store() -> None:
    first, second = (ppgen.wrap(Bell(), example=torch.zeros(1, 1)) for _ in range(2))
    x = 2 * torch.randn(200, 1) + 3
    options: dict[str, Any] = {"epochs": 400, "batch_size": None, "device": "cpu", "progress": False}
    ppgen.fit(first, x, learning_rate=0.05, **options)
    fitted: Any = first.user_model
    assert torch.allclose(fitted.loc, x.mean(0), atol=0.05)
    assert torch.allclose(fitted.scale, x.std(0), atol=0.05)
    zero = torch.zeros(1, 1)
    assert float(second.log_likelihood(zero).value) == pytest.approx(-0.5 * math.log(2 * math.pi), abs=1e-6)
    assert not list(pyro.get_param_store().keys())


def test_modules_that_have_run_before_can_be_wrapped() -> None:
    guide = AutoNormal(latent_model)
    x = torch.randn(5)
    Trace_ELBO().loss(latent_model, guide, x)
    pyro.clear_param_store()
    bell = Bell()
    bell(torch.zeros(2, 1))
    pyro.clear_param_store()
    assert len(list(ppgen.wrap(latent_model, guide).parameters())) == 2
    assert ppgen.wrap(latent_model, guide).log_likelihood(x).kind is Kind.LOWER_BOUND
    assert ppgen.wrap(bell).log_likelihood(torch.zeros(2, 1)).kind is Kind.EXACT
    assert not list(pyro.get_param_store().keys())


def test_methods_bring_the_parameters_of_their_module() -> None:
    class Machine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(1))

        def model(self, x: Tensor | None = None, num: int | None = None, context: Any = None) -> Tensor:
            with pyro.plate("data", num or 1 if x is None else len(x)):
                z = pyro.sample("z", dist.Normal(context, 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

        def guide(self, x: Tensor, context: Any = None) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc + (4 * x + context) / 5, 0.5).to_event(1))

    machine = Machine()
    wrapped = ppgen.wrap(machine.model, machine.guide)
    assert list(wrapped.parameters()) == [machine.loc]
    assert list(wrapped.state_dict()) == ["user_model.loc"]
    x, context = torch.randn(6, 1), torch.randn(6, 1)
    estimate = wrapped.log_likelihood(x, context, num_particles=3000)
    truth = dist.Normal(context, math.sqrt(1.25)).log_prob(x)[:, 0]
    assert_close_to(estimate.value, truth, estimate.std_error)
    assert wrapped.sample(6, context, seed=1).shape == (6, 1)


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


def test_a_wrapped_pair_is_fitted_without_an_example() -> None:
    class Centre(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor | None = None, num: int | None = None) -> Tensor:
            with pyro.plate("data", num or 1 if x is None else len(x)):
                return pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

    result = ppgen.fit(ppgen.wrap(Centre()), torch.randn(20, 2), epochs=2, device="cpu", progress=False)
    assert result.epochs == 2


# -- methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["elbo", "iwae", "ais"])
def test_a_latent_pair_by_each_method(method: Any) -> None:
    wrapped = ppgen.wrap(latent_model, latent_guide)
    x = wrapped.sample(20, seed=1)
    estimate = wrapped.log_likelihood(x, method=method, num_particles=100)
    truth = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x)
    assert estimate.kind is Kind.LOWER_BOUND
    if method == "elbo":
        assert float(estimate.value.mean()) < float(truth.mean())
    else:
        assert_close_to(estimate.value, truth, estimate.std_error)


def test_shared_latents_by_annealing() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    x = torch.randn(10) + 1
    truth = dist.MultivariateNormal(torch.zeros(10), torch.eye(10) + torch.ones(10, 10)).log_prob(x)
    for start in ("guide", "prior"):
        estimate = ppgen.wrap(model, guide).log_likelihood(x, method="ais", start=start, seed=0)
        assert estimate.value.shape == ()
        assert_close_to(estimate.value, truth, estimate.std_error)


def test_annealing_sums_out_what_is_enumerated() -> None:
    def model(x: Tensor | None = None, num: int | None = None) -> None:
        with pyro.plate("data", num or 1 if x is None else len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(2.0 * k, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    x = torch.randn(10)
    each = [math.log(w) + dist.Normal(m, math.sqrt(1.25)).log_prob(x) for w, m in ((0.7, 0.0), (0.3, 2.0))]
    estimate = ppgen.wrap(model, guide).log_likelihood(x, method="ais", num_particles=64, seed=0)
    assert_close_to(estimate.value, torch.stack(each).logsumexp(0), estimate.std_error)


def test_annealing_needs_continuous_latents() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("j", dist.Bernoulli(0.3 + 0.4 * k))

    with pytest.raises(CapabilityError, match="site 'k' is discrete"):
        ppgen.wrap(mixture, guide).log_likelihood(torch.zeros(3), method="ais")
    # Nothing is drawn here, and the exact figure comes whatever the method.
    assert ppgen.wrap(mixture).log_likelihood(torch.zeros(3), method="ais").kind is Kind.EXACT


def test_without_a_guide_annealing_starts_from_the_prior() -> None:
    wrapped = ppgen.wrap(latent_model)
    x = wrapped.sample(20, seed=1)
    estimate = wrapped.log_likelihood(x, method="ais", num_particles=64, seed=0)
    assert wrapped.density is estimate.kind is Kind.LOWER_BOUND
    assert_close_to(estimate.value, dist.Normal(0.0, math.sqrt(1.25)).log_prob(x), estimate.std_error)
    with pytest.raises(ConfigError, match=r"guide: .*'z'.* method='ais'"):
        wrapped.log_likelihood(x)
    with pytest.raises(ConfigError, match="guide: the model's latents"):
        ppgen.wrap(latent_model, lambda x: None).log_likelihood(x, method="ais")


def test_shared_latents_without_a_guide() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = torch.arange(5.0)
    truth = dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + torch.ones(5, 5)).log_prob(x)
    estimate = ppgen.wrap(model).log_likelihood(x, method="ais", seed=0, compile=False)
    assert_close_to(estimate.value, truth, estimate.std_error)
    with pytest.warns(SamplingWarning, match="effective sample size"):
        ppgen.wrap(model).log_likelihood(x + 9, method="ais", seed=0, compile=False, num_temperatures=1)
