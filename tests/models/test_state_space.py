"""Linear-Gaussian state-space models against the joint Gaussian of all steps and Pyro's GaussianHMM."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import ppgen
from ppgen import datasets
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.models import LinearGaussianStateSpace
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to

STEPS, DIM, LATENT = 4, 2, 3


def system(
    event_shape: tuple[int, ...] = (STEPS, DIM), latent_dim: int = LATENT, seed: int = 0
) -> LinearGaussianStateSpace:
    """A float64 model with parameters drawn at random."""
    with forked_rng(seed), torch.no_grad():
        model = LinearGaussianStateSpace(event_shape, latent_dim=latent_dim).double()
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model


def with_holes(x: Tensor) -> Tensor:
    x = x.clone()
    x[0, 1, 0] = torch.nan
    x[1, 2:] = torch.nan
    x[2, 0] = torch.nan
    x[3] = torch.nan
    return x


def joint(model: LinearGaussianStateSpace) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (z_1..z_T, x_1..x_T), written out from the definition."""
    c, steps, dim = model.chain, model.num_steps, model.latent_dim
    size = steps * dim
    mean_z, mean = [], c.initial_loc
    covariance = torch.zeros(size, size, dtype=torch.float64)
    now = c.initial_covariance
    for t in range(steps):
        if t:
            mean, now = c.transition @ mean, c.transition @ now @ c.transition.T + c.transition_covariance
        mean_z.append(mean)
        block = now
        for s in range(t, steps):
            covariance[s * dim : (s + 1) * dim, t * dim : (t + 1) * dim] = block
            covariance[t * dim : (t + 1) * dim, s * dim : (s + 1) * dim] = block.T
            block = c.transition @ block
    loading = torch.block_diag(*[c.loading] * steps)
    mean_z_all = torch.cat(mean_z)
    mean_x = loading @ mean_z_all + c.offset.repeat(steps)
    cross = covariance @ loading.T
    noise = torch.diag(c.noise_scale.square().repeat(steps))
    top = torch.cat([covariance, cross], 1)
    bottom = torch.cat([cross.T, loading @ cross + noise], 1)
    return torch.cat([mean_z_all, mean_x]).detach(), torch.cat([top, bottom]).detach()


def given(model: LinearGaussianStateSpace, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(known x) of one sequence, and the mean and covariance of all else (z, then missing x)."""
    mean, covariance = joint(model)
    num_z = model.num_steps * model.latent_dim
    flat = x.flatten()
    known = torch.cat([torch.zeros(num_z, dtype=torch.bool), ~flat.isnan()])
    value = flat[~flat.isnan()]
    if not len(value):
        return torch.zeros((), dtype=torch.float64), mean[~known], covariance[~known][:, ~known]
    inner = covariance[known][:, known]
    log_prob = torch.distributions.MultivariateNormal(mean[known], inner).log_prob(value)
    gain = torch.linalg.solve(inner, covariance[known][:, ~known]).T
    left = covariance[~known][:, ~known] - gain @ covariance[known][:, ~known]
    return log_prob, mean[~known] + gain @ (value - mean[known]), left


@pytest.mark.parametrize("holes", [False, True], ids=["complete", "missing"])
def test_density_and_smoothing_are_those_of_the_joint_gaussian(holes: bool) -> None:
    model = system()
    x = model.sample(5, seed=0)
    x = with_holes(x) if holes else x
    found = model.log_likelihood(x).value.detach()
    means, covariances = model.smooth(x)
    for n in range(5):
        log_prob, mean, covariance = given(model, x[n])
        torch.testing.assert_close(found[n], log_prob)
        torch.testing.assert_close(means[n].flatten(), mean[: STEPS * LATENT])
        for t in range(STEPS):
            block = slice(t * LATENT, (t + 1) * LATENT)
            torch.testing.assert_close(covariances[n, t], covariance[block, block])
        past = x[n].clone()
        past[2:] = torch.nan
        _, mean, covariance = given(model, past)
        filtered = model.filter(x)
        torch.testing.assert_close(filtered[0][n, 1], mean[LATENT : 2 * LATENT])
        torch.testing.assert_close(filtered[1][n, 1], covariance[LATENT : 2 * LATENT, LATENT : 2 * LATENT])


@pytest.mark.parametrize("event_shape", [(STEPS, DIM), (STEPS,), (1, DIM)])
def test_pyros_class_agrees(event_shape: tuple[int, ...]) -> None:
    model = system(event_shape)
    x = model.sample(5, seed=0)
    theirs = model.gaussian_hmm().log_prob(x.reshape(5, event_shape[0], -1))
    torch.testing.assert_close(model.log_likelihood(x).value, theirs)


def test_the_gradient_is_that_of_the_joint_gaussian() -> None:
    model = system()
    x = with_holes(model.sample(5, seed=0))
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model.log_likelihood(x).value.sum(), parameters)
    for parameter, gradient in zip(parameters, ours, strict=True):
        if not parameter.numel():
            continue
        at, step = (0,) * parameter.ndim, 1e-5
        with torch.no_grad():
            parameter[at] += step
            above = sum(float(given(model, row)[0]) for row in x)
            parameter[at] -= 2 * step
            below = sum(float(given(model, row)[0]) for row in x)
            parameter[at] += step
        assert float(gradient[at]) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-6)


def assert_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Assert mean and covariance of draws (S, E) of a Gaussian."""
    num = len(draws)
    assert_close_to(draws.mean(0), mean, (covariance.diagonal() / num).sqrt(), "means")
    residuals = draws - mean
    products = residuals.T @ residuals / num
    variance = covariance.diagonal()
    error = ((variance[:, None] * variance + covariance.square()) / num).sqrt()
    assert_close_to(products.flatten(), covariance.flatten(), error.flatten(), "covariances")


def test_draws_of_paths_and_of_what_is_missing() -> None:
    model = system()
    x = with_holes(model.sample(4, seed=0))[:1]
    x[0, 2] = torch.nan
    _, mean, covariance = given(model, x[0])
    num_z = STEPS * LATENT
    paths = model.posterior_paths(x, 20_000, seed=1)[:, 0].flatten(1)
    assert_moments(paths, mean[:num_z], covariance[:num_z, :num_z])
    filled = model.condition(x, ~x.isnan(), 20_000, seed=2)[:, 0]
    assert bool((filled[:, ~x[0].isnan()] == x[0][~x[0].isnan()]).all())
    free = filled[:, x[0].isnan()]
    assert_moments(free, mean[num_z:], covariance[num_z:, num_z:])
    with pytest.raises(AssertionError):  # the twin: draws of x alone
        assert_moments(
            model.sample(20_000, seed=2)[:, x[0].isnan()], mean[num_z:], covariance[num_z:, num_z:]
        )


def test_samples_and_predictions() -> None:
    model = system()
    mean, covariance = joint(model)
    num_z = STEPS * LATENT
    assert_moments(model.sample(20_000, seed=1).flatten(1), mean[num_z:], covariance[num_z:, num_z:])
    x = model.sample(1, seed=0)
    x[:, 2:] = torch.nan
    _, mean, covariance = given(model, x[0])
    ahead = model.predict(x, 2, 20_000, seed=3)[:, 0].flatten(1)
    assert_moments(ahead, mean[num_z:], covariance[num_z:, num_z:])
    with pytest.raises(AssertionError):
        assert_moments(ahead.flip(1), mean[num_z:], covariance[num_z:, num_z:])


def test_forecasts_are_moments_of_the_joint_gaussian() -> None:
    model = system()
    x = model.sample(3, seed=0)
    x[0, 2:], x[1, 2:], x[1, 0] = torch.nan, torch.nan, torch.nan
    means, covariances = model.forecast(x, 2)
    for n in (0, 1):
        _, mean, covariance = given(model, x[n])
        ahead = slice(-2 * DIM, None)
        torch.testing.assert_close(means[n].flatten(), mean[ahead])
        for s, block in ((0, slice(-2 * DIM, -DIM)), (1, slice(-DIM, None))):
            torch.testing.assert_close(covariances[n, s], covariance[block, block])
    longer = system((STEPS + 2, DIM))
    whole = torch.nn.functional.pad(x[2:], (0, 0, 0, 2), value=torch.nan)
    torch.testing.assert_close(means[2].flatten(), given(longer, whole[0])[1][-2 * DIM :])
    assert model.float().forecast(x, 2)[1].dtype == torch.float32


@pytest.mark.parametrize("holes", [False, True], ids=["complete", "missing"])
def test_em_climbs_above_the_truth(holes: bool) -> None:
    truth = system((6, 3), 2)
    x = truth.sample(200, seed=1)
    x = with_holes(x) if holes else x
    with forked_rng(0):
        model = LinearGaussianStateSpace((6, 3), latent_dim=2, min_variance=1e-10).double()
        model.initialise(x)
    heights = [float(model.em_step(x).log_likelihood) for _ in range(100)]
    assert all(b >= a - 1e-8 * abs(a) for a, b in itertools.pairwise(heights))
    # On its own data the best fit is above the truth.
    assert heights[-1] > float(truth.log_likelihood(x).value.detach().sum())


def test_padding_is_nothing() -> None:
    model, short = system(), system((2, DIM))
    x = model.sample(10, seed=0)
    cut = x.clone()
    cut[:, 2:] = torch.nan
    torch.testing.assert_close(model.log_likelihood(cut).value, short.log_likelihood(x[:, :2]).value)
    model.em_step(cut)
    short.em_step(x[:, :2])
    for a, b in zip(model.parameters(), short.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_fit_takes_ragged_sequences_in_float32() -> None:
    truth = system((30, 2), 2)
    items = [row[: 10 + n % 20] for n, row in enumerate(truth.sample(60, seed=2))]
    data = datasets.sequences(items, num_steps=30)
    with forked_rng(0):
        model = LinearGaussianStateSpace((30, 2), latent_dim=2)
    result = ppgen.fit(model, data.train, validation=data.validation, epochs=20, device="cpu", progress=False)
    losses = [row["loss"] or 0.0 for row in result.history]
    assert losses[-1] < losses[0]
    assert math.isfinite(float(ppgen.metrics.nll(model, data.test).value))


def test_long_sequences_in_float32_stay_near_float64() -> None:
    model = system((400, 2), 3)
    with torch.no_grad():
        model.transition.copy_(0.99 * torch.linalg.qr(model.transition).Q)
    x = model.sample(3, seed=0)
    exact = model.log_likelihood(x).value.detach()
    model.float()
    rough = model.log_likelihood(x.float()).value.detach().double()
    assert bool(((rough - exact).abs() < 1e-4 * exact.abs()).all())


def test_the_scale_of_the_data_is_no_matter() -> None:
    x = system((20, 2), 2).sample(40, seed=3).float()
    found = []
    for scale in (1.0, 1e20):
        with forked_rng(0):
            model = LinearGaussianStateSpace((20, 2), latent_dim=2)
        ppgen.fit(model, scale * x, epochs=5, device="cpu", progress=False)
        found.append(model.log_likelihood(scale * x).value.detach())
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[1] + 40 * math.log(1e20), found[0], rtol=1e-3, atol=1e-2)


def test_what_float64_cannot_hold_is_named() -> None:
    model = system()
    x = 1e200 * model.sample(3, seed=0)
    for asked in (model.log_likelihood, model.smooth, model.posterior_paths):
        with pytest.raises(DataError, match=r"3 of 3 sequences have no finite density.*rescale"):
            asked(x)
    with pytest.raises(ppgen.errors.PpgenError):
        ppgen.fit(system(), x, epochs=2, device="cpu", progress=False)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="latent_dim"):
        LinearGaussianStateSpace((3, 2), latent_dim=0)
    with pytest.raises(ConfigError, match="min_variance"):
        LinearGaussianStateSpace((3, 2), min_variance=0.0)
    model = system()
    x = model.sample(3, seed=0)
    with pytest.raises(ShapeError, match="expects shape"):
        model.smooth(x[:, :2])
    with pytest.raises(DataError, match="infinite"):
        model.log_likelihood(x / 0)
    with pytest.raises(DataError, match="nothing is observed"):
        model.initialise(x * torch.nan)
    for wrong in (0, 1.5):
        with pytest.raises(ConfigError, match="num_steps"):
            model.predict(x, wrong)
    with pytest.raises(ConfigError, match="event_shape"):
        LinearGaussianStateSpace(())
    assert model.smooth(x.float())[0].dtype == torch.float64
    with pytest.raises(ConfigError, match="num:"):
        model.posterior_paths(x, 0)
