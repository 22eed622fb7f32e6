"""Bernoulli mixtures: enumeration of all x, Pyro's estimators, conditioning, digits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from ppgen.datasets.split import Split
from ppgen.datasets.values import BINARY
from ppgen.errors import ConfigError, DataError
from ppgen.inference.svi import fit
from ppgen.models.bernoulli_mixture import FAMILY, BernoulliMixture
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean


def mixture(event_shape: tuple[int, ...] = (2, 3)) -> BernoulliMixture:
    """A float64 mixture with parameters drawn at random."""
    with forked_rng(0), torch.no_grad():
        model = BernoulliMixture(event_shape, num_components=4).double()
        model.pixel_logits.mul_(4)
        model.logits.normal_()
    return model


def all_binary(num_dims: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_dims)), dtype=torch.float64)


def naive_joint(model: BernoulliMixture, x: Tensor) -> Tensor:
    """p(x_n, k) as a product over pixels, shape (N, K)."""
    x, probs = x.flatten(1), model.probs.detach().flatten(1)
    rows = [
        [
            float(w) * math.prod(float(p if on else 1 - p) for on, p in zip(row, ps, strict=True))
            for w, ps in zip(model.weights, probs, strict=True)
        ]
        for row in x
    ]
    return torch.tensor(rows, dtype=torch.float64)


def test_probabilities_sum_to_one_and_are_the_products() -> None:
    model = mixture()
    x = all_binary(6).view(-1, 2, 3)
    log_likelihood = model.log_likelihood(x).value.detach()
    assert float(log_likelihood.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    joint = naive_joint(model, x)
    torch.testing.assert_close(log_likelihood, joint.sum(-1).log())
    torch.testing.assert_close(model.responsibilities(x).detach(), joint / joint.sum(-1, keepdim=True))


def test_samples_have_the_probabilities() -> None:
    model = mixture((4,))
    x = all_binary(4)
    draws = model.sample(20_000, seed=1)
    table = (draws[:, None] == x).all(-1).double()
    expected = model.log_likelihood(x).value.detach().exp()
    assert_mean(table, expected)
    with torch.no_grad():
        model.pixel_logits.mul_(0.8)
    with pytest.raises(AssertionError):
        assert_mean(table, model.log_likelihood(x).value.detach().exp())


def test_pyros_bounds_are_exact() -> None:
    model = mixture()
    x = model.sample(10, seed=2)
    exact = -model.log_likelihood(x).value.sum()
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(exact, parameters)
    for guide in (model.guide, lambda x: None):
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model.model, guide, x)
        torch.testing.assert_close(loss, exact)
        for ours, expected in zip(torch.autograd.grad(loss, parameters), gradient, strict=True):
            torch.testing.assert_close(ours, expected)
    with forked_rng(0):
        drawn = Trace_ELBO().loss(model.model, model.guide, x)
    assert drawn == pytest.approx(float(exact))


def test_conditional_draws_have_the_ratios() -> None:
    model = mixture((4,))
    x = torch.tensor([[1.0, math.nan, 0.0, math.nan]], dtype=torch.float64)
    mask = ~x.isnan()
    drawn = model.condition(x, mask, 20_000, seed=3)[:, 0]
    assert (drawn[:, 0] == 1).all()
    assert (drawn[:, 2] == 0).all()
    free = all_binary(2)
    joint = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64).repeat(4, 1)
    joint[:, [1, 3]] = free
    log_p = model.log_likelihood(joint).value.detach()
    table = (drawn[:, None, [1, 3]] == free).all(-1).double()
    assert_mean(table, log_p.softmax(-1))
    unconditional = (model.sample(20_000, seed=3)[:, None, [1, 3]] == free).all(-1).double()
    with pytest.raises(AssertionError):
        assert_mean(unconditional, log_p.softmax(-1))


def test_smoothing_is_the_mode_of_the_posterior() -> None:
    # One component: (ones + s) / (N + 2 s), where the gradient of the objective vanishes.
    with forked_rng(0):
        x = (torch.rand(50, 3) < torch.tensor([0.0, 0.3, 0.9])).double()
        model = BernoulliMixture((3,), num_components=1, smoothing=0.5).double()
    model.em_step(x)
    torch.testing.assert_close(model.probs.detach()[0], (x.sum(0) + 0.5) / 51)
    loss = model.default_objective().loss(model.model, model.guide, x)
    (gradient,) = torch.autograd.grad(loss, model.pixel_logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


def test_without_smoothing_nothing_is_infinite() -> None:
    x = torch.zeros(20, 3)
    with forked_rng(0):
        model = BernoulliMixture((3,), num_components=2, smoothing=0.0)
        model.initialise(x)
    model.em_step(x)
    assert torch.isfinite(model.log_likelihood(1 - x).value).all()


def test_certain_pixels_are_exact_to_rounding() -> None:
    model = mixture((3,))
    with torch.no_grad():
        model.pixel_logits.fill_(25.0)
    x = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    expected = 2 * -math.log1p(math.exp(-25.0)) - 25.0 - math.log1p(math.exp(-25.0))
    assert float(model.log_likelihood(x).value.detach()) == pytest.approx(expected, rel=0, abs=1e-13)


def test_bad_arguments_are_named() -> None:
    with forked_rng(0):
        model = BernoulliMixture((3,), num_components=2)
    for call in (model.initialise, model.log_likelihood, model.responsibilities):
        with pytest.raises(DataError, match="binary"):
            call(torch.full((4, 3), 0.5))
    with pytest.raises(ConfigError, match="smoothing"):
        BernoulliMixture((3,), smoothing=-1.0)
    with pytest.raises(ConfigError, match="2 components need as many data or more, got 1"):
        model.initialise(torch.zeros(1, 3))


def test_digits_in_nats() -> None:
    # Binary: x >= 8 of 16; first 1437 train, last 360 test.
    from sklearn.datasets import load_digits

    x = (torch.as_tensor(load_digits().data) >= 8).float()
    found = []
    for seed in range(5):
        with forked_rng(seed):
            model = FAMILY.build(torch.Size([64]), BINARY, 1437)
        assert isinstance(model, BernoulliMixture)
        fit(model, Split(x[:1437], values=BINARY), epochs=60, seed=seed, progress=False, device="cpu")
        found.append(-float(model.log_likelihood(x[1437:]).value.mean()))
    assert sum(found) / 5 <= 18.6
    assert max(found) <= 18.8


def test_every_method_is_exact() -> None:
    model = mixture()
    x = all_binary(6)[:5].view(5, 2, 3)
    for method in ("elbo", "iwae", "ais"):
        found = model.log_likelihood(x, method=method)
        assert torch.equal(found.value, model.log_likelihood(x).value)
    with pytest.raises(ConfigError, match="^method"):
        model.log_likelihood(x, method="exact")  # type: ignore[arg-type]
