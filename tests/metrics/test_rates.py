"""Nats a step and perplexity, against models whose rates are known."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppgen import metrics
from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.datasets import BINARY, Split, Values, grid
from ppgen.distributions.grid_categorical import GridCategorical
from ppgen.errors import CapabilityError, DataError, ShapeError
from ppgen.models.wavenet import WaveNet
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean


class Independent(GenerativeModel):
    """Independent levels with probabilities of their own; NaN counts as nothing."""

    def __init__(
        self, event_shape: tuple[int, ...], logits: Tensor, *, kind: Kind = Kind.EXACT, missing: bool = False
    ) -> None:
        values = grid(len(logits))
        super().__init__(event_shape, support=Values(values.kind, values.levels, missing=missing))
        self.logits, self.kind = nn.Parameter(logits), kind

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        with self.data_plate(x, num, context):
            each = GridCategorical(self.logits).expand(self.event_shape)
            return pyro.sample("x", dist.Independent(each, len(self.event_shape)), obs=x)

    def log_likelihood(self, x: Tensor, context: Any = None, **options: Any) -> Estimate:
        each = GridCategorical(self.logits, validate_args=False).log_prob(x.nan_to_num(0.0))
        return Estimate.of(each.masked_fill(x.isnan(), 0.0).flatten(1).sum(-1), self.kind)


def test_a_uniform_guess_has_the_perplexity_of_its_levels() -> None:
    model = Independent((7,), torch.zeros(5))
    x = model.sample(20, seed=0)
    rate = metrics.nats_per_step(model, x)
    assert rate.kind is Kind.EXACT
    assert float(rate.value) == pytest.approx(math.log(5))
    assert float(metrics.perplexity(model, x).value) == pytest.approx(5)
    assert float(rate.std_error) < 1e-6


def test_sequences_of_one_length_agree_with_the_mean_over_data() -> None:
    model = Independent((6, 2), torch.tensor([0.0, 1.0, -1.0]))
    x = Split(model.sample(50, seed=1), values=grid(3))
    rate, nll = metrics.nats_per_step(model, x), metrics.nll(model, x)
    torch.testing.assert_close(rate.value, nll.value / 6)
    torch.testing.assert_close(rate.std_error, nll.std_error / 6)
    flat = Independent((6,), torch.tensor([0.0, 1.0, -1.0]))
    chars = Split(x.x[..., 0], values=grid(3))
    bits = metrics.bits_per_dim(flat, chars)
    torch.testing.assert_close(metrics.nats_per_step(flat, chars).value / math.log(2), bits.value)
    perplexity = metrics.perplexity(flat, chars)
    torch.testing.assert_close(perplexity.value, 2**bits.value)
    torch.testing.assert_close(perplexity.std_error, perplexity.value * math.log(2) * bits.std_error)


def ragged(model: Independent, num: int, seed: int) -> Tensor:
    x = model.sample(num, seed=seed)
    lengths = torch.randint(1, 10, (num,), generator=torch.Generator().manual_seed(seed))
    return x.masked_fill(torch.arange(9) >= lengths[:, None], torch.nan)


def test_short_sequences_count_as_many_steps_as_they_hold() -> None:
    model = Independent((9,), torch.tensor([0.0, 2.0]), missing=True)
    x = ragged(model, 40, 2)
    known = x[~x.isnan()]
    logits = torch.tensor([0.0, 2.0], dtype=torch.float64).log_softmax(-1)
    expected = -torch.where(known == 1, logits[1], logits[0]).mean()
    found = metrics.nats_per_step(model, Split(x, values=model.support))
    assert float(found.value) == pytest.approx(float(expected), abs=1e-6)


def z_scores(shrink: float) -> Tensor:
    """Errors of 400 estimates in units of their standard errors."""
    model = Independent((9,), torch.tensor([0.0, 2.0]), missing=True)
    p = torch.tensor([0.0, 2.0], dtype=torch.float64).softmax(-1)
    truth = -(p * p.log()).sum()
    found = [
        metrics.nats_per_step(model, Split(ragged(model, 200, s), values=model.support)) for s in range(400)
    ]
    return torch.stack([(f.value - truth) / (shrink * f.std_error) for f in found])


def test_the_standard_error_is_that_of_the_ratio() -> None:
    z = z_scores(1.0)
    assert_mean(z, 0.0, "errors")
    assert_mean(z.square(), 1.0, "squared errors in units of their variances")


def test_half_the_standard_error_is_caught() -> None:
    with pytest.raises(AssertionError):
        assert_mean(z_scores(0.5).square(), 1.0)


def test_bounds_stay_bounds() -> None:
    model = Independent((3,), torch.zeros(2), kind=Kind.LOWER_BOUND)
    x = model.sample(4, seed=0)
    assert metrics.nats_per_step(model, x).kind is Kind.UPPER_BOUND
    assert metrics.perplexity(model, x).kind is Kind.UPPER_BOUND
    model.kind = Kind.UNNORMALISED
    with pytest.raises(CapabilityError, match='unnormalised.*method="ais"'):
        metrics.nats_per_step(model, x)


def test_an_impossible_datum_and_a_single_one() -> None:
    model = Independent((3,), torch.tensor([0.0, -torch.inf]))
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = metrics.nats_per_step(model, Split(x, values=BINARY))
    assert float(found.value) == float(found.std_error) == math.inf
    assert float(metrics.nats_per_step(model, Split(x[:1], values=BINARY)).std_error) == 0


def test_real_data_have_no_perplexity() -> None:
    with forked_rng(0):
        model = WaveNet((3,), dilations=(1,), channels=2)
    with pytest.raises(DataError, match="nats_per_step"):
        metrics.perplexity(model, torch.zeros(2, 3))


def test_images_have_no_steps() -> None:
    model = Independent((1, 4, 4), torch.zeros(2))
    for metric in (metrics.nats_per_step, metrics.perplexity):
        with pytest.raises(ShapeError, match="bits_per_dim"):
            metric(model, torch.zeros(2, 1, 4, 4))
