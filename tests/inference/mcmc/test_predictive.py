"""Log-likelihoods and predictions, against sums by hand, Pyro's trace and closed forms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ppgen.errors import CapabilityError, ConfigError, SamplingWarning, ShapeError
from ppgen.inference.mcmc import predictive
from ppgen.inference.mcmc.result import Posterior
from ppgen.inference.mcmc.sites import is_deterministic, is_sampled
from ppgen.testing.statistics import assert_close_to, assert_mean, assert_same_distribution


@dataclass
class Observation:
    name: str
    value: Tensor | None


@dataclass
class Model:
    """A model with its data: what results need to know."""

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    sites: tuple[Any, ...] = ()
    observed: tuple[Observation, ...] = ()
    deterministics: tuple[Observation, ...] = ()


def posterior_of(
    model: Callable[..., Any], *args: Any, num_chains: int = 3, num_draws: int = 5, **kwargs: Any
) -> Posterior:
    """Prior draws in the place of posterior ones: for these functions any draws will do."""
    draws: dict[str, list[Any]] = {}
    nodes: dict[str, Any] = {}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(num_chains * num_draws):
            nodes = poutine.trace(model).get_trace(*args, **kwargs).nodes
            for name, site in nodes.items():
                fn: Any = site.get("fn")
                if is_sampled(site) and not site["is_observed"] and not fn.has_enumerate_support:
                    draws.setdefault(name, []).append(site["value"])
    shape = (num_chains, num_draws)
    samples = {name: torch.stack(values).unflatten(0, shape) for name, values in draws.items()}
    observed = tuple(
        Observation(name, site["value"])
        for name, site in nodes.items()
        if is_sampled(site) and site["is_observed"] and not is_deterministic(site)
    )
    functions = tuple(
        Observation(name, None) for name, site in nodes.items() if is_sampled(site) and is_deterministic(site)
    )
    known = Model(model, args, kwargs, observed=observed, deterministics=functions)
    return Posterior(samples, potential=known)


def eight_schools(sigma: Tensor, y: Tensor | None = None) -> Tensor:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * raw)
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def regression(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Multiplies from the left: a plate around it would be wrong."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def branches(y: Tensor) -> None:
    """Looks at the value of a latent, which cannot be batched."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    shift = 1.0 if mu.item() > 0 else -1.0
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + shift, 1.0), obs=y)


def vectors(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)


def test_log_likelihood_is_that_of_each_observation() -> None:
    posterior = posterior_of(eight_schools, SIGMA, Y)
    found = predictive.log_likelihood(posterior)
    theta = (
        posterior.samples["mu"][..., None] + posterior.samples["tau"][..., None] * posterior.samples["raw"]
    )
    expected = dist.Normal(theta, SIGMA).log_prob(Y)
    assert list(found) == ["y"]
    torch.testing.assert_close(found["y"], expected)
    torch.testing.assert_close(predictive.deterministic(posterior)["theta"], theta)
    torch.testing.assert_close(posterior.log_likelihood()["y"], expected)
    assert posterior.get_samples(deterministic=True)["theta"].shape == (15, 8)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_scales_of_the_model_are_left_out_of_log_likelihoods(scale: float) -> None:
    plain = posterior_of(eight_schools, SIGMA, Y)
    scaled = Posterior(plain.samples, potential=Model(poutine.scale(eight_schools, scale), (SIGMA, Y)))
    torch.testing.assert_close(predictive.log_likelihood(scaled), predictive.log_likelihood(plain))


def test_what_cannot_be_batched_is_run_draw_by_draw() -> None:
    y = torch.tensor([0.5, -0.5])
    posterior = posterior_of(branches, y)
    mu = posterior.samples["mu"]
    expected = dist.Normal(mu + mu.sign(), 1.0).expand([3, 5]).log_prob(y[:, None, None]).movedim(0, -1)
    with pytest.warns(SamplingWarning, match="draw by draw"):
        torch.testing.assert_close(predictive.log_likelihood(posterior)["y"], expected)
    with pytest.warns(SamplingWarning, match="draw by draw"):
        drawn = predictive.posterior_predictive(posterior, seed=0)["y"]
    assert drawn.shape == (3, 5, 2)
    assert len(drawn.unique()) == drawn.numel()


def test_events_have_one_log_likelihood() -> None:
    y = torch.tensor([[0.5, -0.5], [1.0, 2.0], [0.0, 0.0]])
    posterior = posterior_of(vectors, y)
    expected = dist.Normal(posterior.samples["mu"][..., None, :], 1.0).to_event(1).log_prob(y)
    found = predictive.log_likelihood(posterior)["y"]
    assert found.shape == (3, 5, 3)
    torch.testing.assert_close(found, expected)


def test_hidden_entries_have_none() -> None:
    mask = torch.BoolTensor([True, False, True])
    y = torch.tensor([1.0, float("nan"), 2.0])

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y.nan_to_num(), obs_mask=mask)

    posterior = posterior_of(model)
    found = predictive.log_likelihood(posterior)["y_observed"]
    expected = dist.Normal(posterior.samples["mu"][..., None], 1.0).log_prob(y.nan_to_num())
    torch.testing.assert_close(found[..., mask], expected[..., mask])
    assert (found[..., 1] == 0).all()


def mixture(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[k], 1.0), obs=y)


def test_discrete_latents_of_one_observation_are_summed_out() -> None:
    y = torch.tensor([-1.0, 0.0, 2.0, 5.0])
    posterior = posterior_of(mixture, y)
    weights, loc = posterior.samples["weights"], posterior.samples["loc"]
    terms = weights.log()[..., None, :] + dist.Normal(loc[..., None, :], 1.0).log_prob(y[:, None])
    torch.testing.assert_close(predictive.log_likelihood(posterior)["y"], terms.logsumexp(-1))


def test_chained_discrete_latents_of_one_observation_are_summed_out() -> None:
    y = torch.tensor([-1.0, 2.0])

    def model() -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 2):
            a = pyro.sample("a", dist.Bernoulli(p))
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.6 * a))
            pyro.sample("y", dist.Normal(3 * b, 1.0), obs=y)

    posterior = posterior_of(model)
    p = posterior.samples["p"][..., None]
    on = 0.2 * (1 - p) + 0.8 * p
    expected = torch.logaddexp(
        on.log() + dist.Normal(3.0, 1.0).log_prob(y), (1 - on).log() + dist.Normal(0.0, 1.0).log_prob(y)
    )
    torch.testing.assert_close(predictive.log_likelihood(posterior)["y"], expected)


def shared_class(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)


def two_views(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)
        pyro.sample("again", dist.Normal(mu - k, 1.0), obs=y)


def hidden_markov(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    state: Any = 0
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{t}", dist.Bernoulli(torch.as_tensor(0.2 + 0.6 * state)))
        pyro.sample(f"y_{t}", dist.Normal(mu + state, 1.0), obs=y[t])


@pytest.mark.parametrize("model", [shared_class, two_views, hidden_markov], ids=lambda m: m.__name__)
def test_shared_discrete_latents_are_refused(model: Callable[..., Any]) -> None:
    posterior = posterior_of(model, torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(CapabilityError, match="'(k|state_.)' is shared"):
        predictive.log_likelihood(posterior)


def known(num_draws: int, x: Tensor) -> tuple[Posterior, Tensor]:
    """Draws that are all one point: predictions have a known distribution."""
    w = torch.tensor([1.0, -2.0])
    posterior = Posterior(
        {"w": w.expand(4, num_draws, 2)}, potential=Model(regression, (x, torch.zeros(len(x))))
    )
    return posterior, x @ w


def test_predictions_have_the_distribution_of_the_model() -> None:
    posterior, mean = known(1000, torch.eye(2))
    drawn = predictive.posterior_predictive(posterior, seed=1)
    assert list(drawn) == ["y"]
    flat = drawn["y"].flatten(0, 1)
    assert_mean(flat, mean)
    assert_mean((flat - mean) ** 2, 0.25)
    new = torch.tensor([[1.0, 1.0], [0.5, 0.0], [0.0, 3.0]])
    flat = posterior.predict(new, seed=1)["y"].flatten(0, 1)
    assert_mean(flat, new @ torch.tensor([1.0, -2.0]))
    with pytest.raises(AssertionError):  # the twin: predictions that forget the draws
        assert_mean(flat, torch.zeros(3))


def test_batched_predictions_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = posterior_of(eight_schools, SIGMA, Y, num_chains=4, num_draws=200)
    theta = predictive.deterministic(posterior)["theta"].flatten(0, 1)
    batched = predictive.posterior_predictive(posterior, seed=1, sites=["y"])["y"].flatten(0, 1)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        def fail(*args: Any) -> Any:
            raise RuntimeError("cannot be batched")

        return fail

    monkeypatch.setattr(torch, "vmap", refuse)
    with pytest.warns(SamplingWarning, match="cannot be batched"):
        looped = predictive.posterior_predictive(posterior, seed=2, sites=["y"])["y"].flatten(0, 1)
    assert_same_distribution((batched - theta) / SIGMA, (looped - theta) / SIGMA)


@pytest.mark.parametrize("model", [eight_schools, regression, mixture], ids=lambda m: m.__name__)
def test_models_run_once_for_all_draws(model: Callable[..., Any]) -> None:
    """Or twice, three times, to see the shapes; with a loop it would be 150 runs."""
    data = {"regression": (torch.eye(2), torch.zeros(2)), "mixture": (torch.zeros(4),)}
    args = data.get(model.__name__, (SIGMA, Y))
    posterior = posterior_of(model, *args, num_draws=50)
    runs = 0

    def counted(*args: Any) -> Any:
        nonlocal runs
        runs += 1
        return model(*args)

    posterior.potential = Model(counted, args)
    predict = functools.partial(predictive.posterior_predictive, seed=0)
    for function in (predictive.log_likelihood, predictive.deterministic, predict):
        runs = 0
        function(posterior)
        assert runs <= 3


# Whose random numbers must be of another kind in a batch: filled in, or drawn by functions of their own.
FILLED: dict[str, Any] = {
    "normal": dist.Normal(1.0, 2.0),
    "uniform": dist.Uniform(-1.0, 2.0),
    "exponential": dist.Exponential(2.0),
    "laplace": dist.Laplace(1.0, 2.0),
    "cauchy": dist.Cauchy(1.0, 2.0),
    "geometric": dist.Geometric(0.3),
    "gamma": dist.Gamma(2.0, 3.0),
    "student": dist.StudentT(4.0),
    "poisson": dist.Poisson(3.0),
    "binomial": dist.Binomial(5, torch.tensor(0.3)),
    "categorical": dist.Categorical(torch.tensor([0.2, 0.3, 0.5])),
}


@pytest.mark.filterwarnings("error:.*draw by draw")
@pytest.mark.parametrize("name", FILLED)
def test_random_numbers_of_a_batch_are_those_of_the_distribution(name: str) -> None:
    fn = FILLED[name]

    def model() -> None:
        with pyro.plate("data", 2):
            pyro.sample("x", fn)

    drawn = predictive.prior_predictive(Model(model), num_samples=2000, seed=0)["x"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = fn.expand([2]).sample(torch.Size([2000]))
    assert_same_distribution(drawn, expected)


def test_predictions_repeat_with_their_seed_and_leave_the_generator_alone() -> None:
    posterior, _ = known(10, torch.eye(2))
    before = torch.get_rng_state()
    first = predictive.posterior_predictive(posterior, seed=1)["y"]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, predictive.posterior_predictive(posterior, seed=1)["y"])
    assert not torch.equal(first, predictive.posterior_predictive(posterior, seed=2)["y"])
    assert len(first.unique()) == first.numel()


def test_predictions_of_some_draws() -> None:
    posterior, _ = known(10, torch.eye(2))
    assert predictive.posterior_predictive(posterior, seed=1, num_samples=7)["y"].shape == (7, 2)


def test_discrete_latents_are_drawn_for_predictions() -> None:
    y = torch.tensor([-1.0, 0.0, 2.0, 5.0])
    posterior = posterior_of(mixture, y, num_draws=300)
    drawn = predictive.posterior_predictive(posterior, seed=0)
    assert set(drawn) == {"k", "y"}
    share = (drawn["k"][..., None] == torch.arange(3)).double().mean((0, 1))
    weights = posterior.samples["weights"].double().mean((0, 1))
    error = (weights * (1 - weights) / 900).sqrt().expand(4, 3)
    assert_close_to(share, weights.expand(4, 3), error)


def test_prior_draws_have_the_distribution_of_the_prior() -> None:
    posterior = posterior_of(eight_schools, SIGMA, Y)
    drawn = predictive.prior_predictive(posterior, num_samples=2000, seed=0)
    assert set(drawn) == {"mu", "tau", "raw", "theta", "y"}
    assert drawn["y"].shape == (2000, 8)
    assert_mean(drawn["mu"], 0.0)
    assert_mean(drawn["mu"] ** 2, 25.0)
    assert_mean(drawn["raw"] ** 2, 1.0)
    assert_mean(((drawn["y"] - drawn["theta"]) / SIGMA) ** 2, 1.0)


def test_improper_priors_are_named() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(CapabilityError, match="'mu': its prior is improper"):
        predictive.prior_predictive(Model(model), num_samples=3, seed=0)


def test_wrong_arguments_are_named() -> None:
    posterior = posterior_of(eight_schools, SIGMA, Y)
    with pytest.raises(ShapeError, match=r"site 'raw': .*\(8,\).*\(3,\).*'school'"):
        predictive.posterior_predictive(posterior, SIGMA[:3], seed=0)
    with pytest.raises(ConfigError, match="no site 'z'"):
        predictive.posterior_predictive(posterior, seed=0, sites=["z"])
    with pytest.raises(ConfigError, match="num_samples"):
        predictive.posterior_predictive(posterior, seed=0, num_samples=0)
    with pytest.raises(CapabilityError, match="potential_fn"):
        predictive.log_likelihood(Posterior(posterior.samples))


@dataclass
class Latent:
    name: str


def test_latents_that_were_not_kept_are_not_drawn_from_their_prior() -> None:
    posterior = posterior_of(eight_schools, SIGMA, Y)
    posterior.potential = Model(eight_schools, (SIGMA, Y), sites=(Latent("mu"), Latent("tau"), Latent("raw")))
    assert set(predictive.log_likelihood(posterior)) == {"y"}
    del posterior.samples["tau"]
    with pytest.raises(CapabilityError, match="'tau' were not kept.*save_params"):
        predictive.log_likelihood(posterior)


def test_no_draws_are_refused() -> None:
    posterior = posterior_of(eight_schools, SIGMA, Y)
    posterior.samples = {name: value[:, :0] for name, value in posterior.samples.items()}
    with pytest.raises(ConfigError, match="no draws yet"):
        predictive.log_likelihood(posterior)


def test_the_parameter_store_stays_as_it_was() -> None:
    def model() -> None:
        scale = pyro.param("scale_of_test_predictive", torch.tensor(2.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, scale), obs=torch.tensor(1.0))

    posterior = Posterior({"mu": torch.zeros(2, 3)}, potential=Model(model))
    found = predictive.log_likelihood(posterior)["y"]
    torch.testing.assert_close(found, dist.Normal(0.0, 2.0).log_prob(torch.tensor(1.0)).expand(2, 3))
    assert "scale_of_test_predictive" not in pyro.get_param_store()


def test_plates_name_dimensions() -> None:
    found = predictive.plate_names(posterior_of(eight_schools, SIGMA, Y))
    assert found == {"mu": (), "tau": (), "raw": ("school",), "theta": ("school",), "y": ("school",)}
    found = predictive.plate_names(posterior_of(vectors, torch.zeros(3, 2)))
    assert found == {"mu": (None,), "y": ("data", None)}
