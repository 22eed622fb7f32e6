"""Gaussian mixtures: exact density, Pyro's estimators, sampling, conditioning, digits."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, infer_discrete
from pyro.optim.optim import PyroOptim
from pyro.poutine import trace as pyro_trace
from scipy.stats import multivariate_normal
from torch import Tensor

from ppgen.datasets.split import Split
from ppgen.datasets.values import REAL, grid
from ppgen.errors import CapabilityError, ConfigError, DataError
from ppgen.inference.svi import fit
from ppgen.models.gaussian_mixture import FAMILY, Covariance, GaussianMixture
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean, assert_same_distribution

COVARIANCES: tuple[Covariance, ...] = ("full", "tied", "diagonal", "spherical")


def mixture(covariance: Covariance, event_shape: tuple[int, ...] = (3,), seed: int = 0) -> GaussianMixture:
    """A float64 mixture with parameters drawn at random."""
    with forked_rng(seed), torch.no_grad():
        model = GaussianMixture(event_shape, num_components=4, covariance=covariance).double()
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
        model.locs.mul_(2)
    return model


def loop(model: GaussianMixture, x: Tensor) -> np.ndarray[Any, Any]:
    """Log pi_k + log N(x_n; mu_k, Sigma_k) one component at a time, by scipy."""
    flat, weights = x.reshape(len(x), -1).numpy(), model.weights.detach().numpy()
    locs, covariances = model.locs.detach().numpy(), model.covariances.detach().numpy()
    columns = [multivariate_normal(m, c).logpdf(flat) for m, c in zip(locs, covariances, strict=True)]
    return np.stack(columns, -1) + np.log(weights)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("event_shape", [(3,), (2, 2)])
def test_density_and_responsibilities_are_the_loops(
    covariance: Covariance, event_shape: tuple[int, ...]
) -> None:
    model = mixture(covariance, event_shape)
    x = model.sample(20, seed=1)
    joint = loop(model, x)
    expected = np.log(np.exp(joint).sum(-1))
    estimate = model.log_likelihood(x)
    assert str(estimate.kind) == "exact"
    assert not estimate.std_error.any()
    np.testing.assert_allclose(estimate.value.detach().numpy(), expected, rtol=1e-10)
    shares = np.exp(joint - expected[:, None])
    np.testing.assert_allclose(model.responsibilities(x).detach().numpy(), shares, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_score_is_the_gradient(covariance: Covariance) -> None:
    model = mixture(covariance, (2, 2))
    x = model.sample(10, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_likelihood(x).value.sum(), x)
    torch.testing.assert_close(model.score(x.detach()).detach(), gradient)


def gradient_of(loss: Tensor, model: GaussianMixture) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def no_guide(*args: Any, **kwargs: Any) -> None:
    """Nothing is guessed: TraceEnum_ELBO then sums over k."""


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_enumeration_gives_the_exact_loss_and_gradient(covariance: Covariance) -> None:
    model = mixture(covariance, (2, 2))
    x = model.sample(12, seed=1)
    exact = -model.log_likelihood(x).value.sum()
    gradient = gradient_of(exact, model)
    for guide in (model.guide, no_guide):
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model.model, guide, x)
        torch.testing.assert_close(loss, exact)
        torch.testing.assert_close(gradient_of(loss, model), gradient)


@pytest.mark.parametrize("vectorised", [False, True])
def test_any_draw_of_the_guide_gives_the_exact_bound(vectorised: bool) -> None:
    model = mixture("full")
    x = model.sample(12, seed=1)
    with forked_rng(2):
        elbo = Trace_ELBO(num_particles=3, vectorize_particles=vectorised, max_plate_nesting=1)
        loss = elbo.loss(model.model, model.guide, x)
    assert loss == pytest.approx(-float(model.log_likelihood(x).value.detach().sum()), rel=1e-10)


def trace_elbo_gradients(model: GaussianMixture, x: Tensor, guide: Any, num: int = 400) -> Tensor:
    elbo = Trace_ELBO()
    rows = []
    with forked_rng(3):
        for _ in range(num):
            model.zero_grad()
            elbo.loss_and_grads(model.model, guide, x)
            rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return torch.stack(rows)


def test_trace_elbo_has_an_unbiased_gradient() -> None:
    model = mixture("diagonal", (2,))
    with torch.no_grad():
        model.locs.mul_(0.3)  # overlapping components, so that every draw is in doubt
    x = model.sample(3, seed=1)
    expected = gradient_of(-model.log_likelihood(x).value.sum(), model)
    assert_mean(trace_elbo_gradients(model, x, model.guide), expected)

    def prior(x: Tensor) -> None:
        model.guide(num=len(x))

    draws = trace_elbo_gradients(model, x, prior)
    with pytest.raises(AssertionError):
        assert_mean(draws, expected)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_svi_by_enumeration_reaches_the_maximum_that_em_finds(covariance: Covariance) -> None:
    with forked_rng(0):
        x = torch.randn(200, 2, dtype=torch.float64) + 4 * torch.randint(2, (200, 1))
        model = GaussianMixture((2,), num_components=2, covariance=covariance).double()
        model.initialise(x)
        model.locs.data += torch.randn_like(model.locs)
        model.log_scales.data += 0.5
    by_em, start = copy.deepcopy(model), float(model.log_likelihood(x).value.detach().mean())
    for _ in range(200):
        by_em.em_step(x)
    best = by_em.log_likelihood(x).value.detach()
    adam = PyroOptim(torch.optim.Adam, {"lr": 0.02})
    svi = SVI(model.model, no_guide, adam, TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(x) for _ in range(400)]
    found = model.log_likelihood(x).value.detach()
    assert losses[-1] == pytest.approx(-float(found.sum()), rel=1e-4)
    assert start < float(best.mean()) - 0.1
    torch.testing.assert_close(found, best, rtol=0, atol=1e-3)
    torch.testing.assert_close(model.weights, by_em.weights, rtol=0, atol=1e-3)
    torch.testing.assert_close(model.covariances, by_em.covariances, rtol=0, atol=1e-2)


def test_infer_discrete_finds_the_component() -> None:
    model = mixture("diagonal")
    x = model.sample(30, seed=4)
    best = infer_discrete(model.model, first_available_dim=-2, temperature=0)
    with forked_rng(0):
        k = pyro_trace(best).get_trace(x).nodes["k"]["value"]
    assert torch.equal(k, model.responsibilities(x).argmax(-1))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_samples_follow_the_density(covariance: Covariance) -> None:
    model = mixture(covariance, (2,))
    draws, others = model.sample(4000, seed=5), direct_draws(model, 4000)
    assert_same_distribution(draws, others)
    with torch.no_grad():
        model.log_scales.add_(0.25)
    with pytest.raises(AssertionError):
        assert_same_distribution(model.sample(4000, seed=5), others)


def direct_draws(model: GaussianMixture, num: int) -> Tensor:
    """Numpy's draws, component by component."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(num, model.weights.detach().numpy())
    locs, covariances = model.locs.detach().numpy(), model.covariances.detach().numpy()
    parts = [rng.multivariate_normal(m, c, size=n) for m, c, n in zip(locs, covariances, counts, strict=True)]
    return torch.as_tensor(np.concatenate(parts))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_conditional_draws_restore_the_joint(covariance: Covariance) -> None:
    # If x follows p, and some of its coordinates are drawn anew given the rest, it still does.
    model = mixture(covariance, (3,))
    x = model.sample(4000, seed=6)
    with forked_rng(7):
        mask = torch.rand(4000, 3) < 0.5
        mask[:, 0] |= ~mask.any(-1)
    hidden = torch.where(mask, x, torch.nan)
    drawn = model.condition(hidden, mask, seed=8)[0]
    assert torch.equal(drawn[mask], x[mask])
    assert not torch.equal(drawn, x)
    others = direct_draws(model, 4000)
    assert_same_distribution(drawn, others)
    careless = torch.where(mask, x, model.sample(4000, seed=8))  # ignores what was observed
    with pytest.raises(AssertionError):
        assert_same_distribution(careless, others)


def test_conditioning_on_all_or_nothing() -> None:
    model = mixture("full", (2, 2))
    x = model.sample(5, seed=0)
    assert torch.equal(
        model.condition(x, torch.ones(2, 2, dtype=torch.bool), 3, seed=1), x.expand(3, *x.shape)
    )
    free = model.condition(x[:1].expand(3000, 2, 2), torch.zeros(2, 2, dtype=torch.bool), seed=1)[0]
    assert_same_distribution(free.flatten(1), direct_draws(model, 3000))


def test_initialise_starts_at_clusters() -> None:
    with forked_rng(0):
        x = torch.randn(300, 2) + 20 * torch.arange(3).repeat(100)[:, None]
        model = GaussianMixture((2,), num_components=3)
        assert not model.initialised
        model.initialise(x)
    assert model.initialised
    found = model.locs.detach()[:, 0].sort().values
    torch.testing.assert_close(found, torch.tensor([0.0, 20.0, 40.0]), atol=0.5, rtol=0)
    torch.testing.assert_close(model.weights.detach(), torch.full((3,), 1 / 3))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_data_whose_squares_overflow_are_refused(covariance: Covariance) -> None:
    with forked_rng(0):
        x = 1e20 * torch.randn(20, 2)
        model = GaussianMixture((2,), num_components=3, covariance=covariance)
        with pytest.raises(DataError, match=r"squares of the data overflow torch.float32.*rescale"):
            model.initialise(x)
        assert not model.initialised
        model.double().initialise(x.double())
    assert torch.isfinite(model.log_likelihood(x.double()).value).all()


def test_float32_keeps_small_variances_far_from_zero() -> None:
    # Squares about zero would lose a variance of 1e-4 at 1e3 in single precision.
    with forked_rng(0):
        x = 1000 + 0.01 * torch.randn(2000, 1) + torch.arange(2).repeat(1000)[:, None]
        model = GaussianMixture((1,), num_components=2, min_variance=1e-8)
        model.initialise(x)
    for _ in range(5):
        model.em_step(x)
    assert model.covariances.sqrt().flatten().tolist() == pytest.approx([0.01, 0.01], rel=0.1)


def test_bad_arguments_are_named() -> None:
    with forked_rng(0):
        model = GaussianMixture((2,), num_components=5)
        for options, words in (
            ({"covariance": "diag"}, "covariance: expected one of .*'diagonal'.* got 'diag'"),
            ({"min_variance": 0.0}, "min_variance: expected a positive number"),
            ({"prior_count": -1.0}, "prior_count"),
            ({"num_components": 0}, "num_components: expected a positive integer"),
        ):
            with pytest.raises(ConfigError, match=words):
                GaussianMixture((2,), **options)
        with pytest.raises(ConfigError, match="5 components need as many data or more, got 4"):
            model.initialise(torch.randn(4, 2))
        with pytest.raises(DataError, match="1 NaN or infinite"):
            model.initialise(torch.tensor([[0.0, math.inf]] * 1 + [[0.0, 1.0]] * 9))
        with pytest.raises(DataError, match="NaN"):
            model.log_likelihood(torch.full((3, 2), math.nan))
        with pytest.raises(CapabilityError, match="unconditional"):
            model.log_likelihood(torch.zeros(3, 2), torch.zeros(3))


def digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.as_tensor(load_digits().data, dtype=torch.float32) / 16


def test_digits_in_bits_per_dimension() -> None:
    # 17 levels, uniform dequantisation, first 1437 train, last 360 test.
    x, values = digits(), grid(17)
    found = []
    for seed in range(5):
        with forked_rng(seed):
            model = FAMILY.build(torch.Size([64]), values, 1437)
        assert isinstance(model, GaussianMixture)
        fit(model, Split(x[:1437], values=values), epochs=60, seed=seed, progress=False, device="cpu")
        with forked_rng(100 + seed):
            test = values.dequantise(x[1437:])
        nats = -float(model.log_likelihood(test).value.detach().mean())
        found.append(nats / 64 / math.log(2) + math.log2(17))
    assert sum(found) / 5 <= 2.74
    assert max(found) <= 2.78


def test_the_family_fits_its_values() -> None:
    with forked_rng(0):
        assert FAMILY.example().support == REAL
        coarse, real = (FAMILY.build(torch.Size([4]), values, 100) for values in (grid(17), REAL))
    assert coarse.config["min_variance"] == pytest.approx(1 / (12 * 17**2))
    assert real.config["min_variance"] == 1e-6


def test_the_survey_asks_for_few_components_where_data_are_few() -> None:
    with forked_rng(0):
        sizes = [FAMILY.build(torch.Size([2]), REAL, num).config["num_components"] for num in (5, 100, 5000)]
    assert sizes == [1, 10, 60]
