"""Heads: masses sum to one, densities integrate to one, draws follow them; a planted defect is seen."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ppgen.datasets.values import grid
from ppgen.distributions.heads import (
    CategoricalHead,
    GaussianMixtureHead,
    Head,
    LogisticMixtureHead,
    make_head,
)
from ppgen.distributions.pixel_heads import ChannelwisePixelHead, JointPixelHead, PixelHead
from ppgen.errors import ConfigError
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean

GRIDS: dict[str, Head] = {
    "binary": CategoricalHead(2),
    "categorical": CategoricalHead(5),
    "logistic": LogisticMixtureHead(256, 3),
    "logistic of two levels": LogisticMixtureHead(2, 2),
    "logistic of two channels": LogisticMixtureHead(16, 3, channels=2),
    "logistic of three channels": LogisticMixtureHead(6, 2, channels=3),
}


def values_of(head: Head) -> Tensor:
    """Every value that a head on a grid can give, shape ``(L ** C, C)``."""
    assert head.levels is not None
    each = torch.linspace(0, 1, head.levels, dtype=torch.float64).tolist()
    return torch.tensor(list(itertools.product(each, repeat=head.channels)), dtype=torch.float64)


def params_of(head: Head, num: int, scale: float = 2.0) -> Tensor:
    with forked_rng(0):
        return head.start().double() + scale * torch.randn(num, head.num_params, dtype=torch.float64)


@pytest.mark.parametrize("head", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("scale", [0.0, 2.0, 10.0])
def test_masses_sum_to_one(head: Head, scale: float) -> None:
    values = values_of(head)
    log_prob = head.log_prob(params_of(head, 20, scale)[:, None], values)
    assert log_prob.shape == (20, len(values))
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("head", GRIDS.values(), ids=GRIDS)
def test_draws_have_the_masses(head: Head) -> None:
    values, params = values_of(head), params_of(head, 1)
    with forked_rng(1):
        draws = head.draw(params.expand(20_000, -1), head.noise((20_000,), params))
    assert head.levels is not None
    grid(head.levels).check(draws)
    mass = head.log_prob(params, values).exp()
    often = mass > 5e-4
    table = (draws[:, None] - values[often]).abs().amax(-1) < 1e-9
    assert_mean(table.double(), mass[often])
    with pytest.raises(AssertionError):
        assert_mean(table.double(), head.log_prob(0.8 * params + 0.3, values).exp()[often])


def test_components_of_a_pixel_are_joint_over_its_channels() -> None:
    """By hand, from the formula, one value at a time."""
    head = LogisticMixtureHead(4, 2, channels=2)
    params = params_of(head, 1)[0]
    logits, rest = params[:2], params[2:].view(2, 5)
    weights = logits.softmax(-1)

    def cell(k: float, loc: float, log_scale: float) -> float:
        low, high = ((k / 3 + side / 6 - loc) / math.exp(log_scale) for side in (-1, 1))
        below = 0.0 if k == 0 else 1 / (1 + math.exp(-low))
        above = 1.0 if k == 3 else 1 / (1 + math.exp(-high))
        return above - below

    for first, second in itertools.product(range(4), repeat=2):
        total = 0.0
        for weight, (m1, m2, s1, s2, a) in zip(weights.tolist(), rest.tolist(), strict=True):
            mean = m2 + math.tanh(a) * (2 * first / 3 - 1)
            total += weight * cell(first, 0.5 + m1 / 2, s1 - 1.5) * cell(second, 0.5 + mean / 2, s2 - 1.5)
        value = torch.tensor([first / 3, second / 3], dtype=torch.float64)
        assert float(head.log_prob(params, value).exp()) == pytest.approx(total, rel=1e-9)


def test_gaussian_mixture_is_torchs_and_its_draws_follow_it() -> None:
    head = GaussianMixtureHead(3)
    params = params_of(head, 1)[0]
    logits, loc, log_scale = params.chunk(3)
    peer = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits), torch.distributions.Normal(loc, log_scale.exp())
    )
    x = torch.linspace(-8, 8, 50, dtype=torch.float64)
    torch.testing.assert_close(head.log_prob(params, x[:, None]), peer.log_prob(x))
    with forked_rng(2):
        draws = head.draw(params.expand(20_000, -1), head.noise((20_000,), params))[:, 0]
    edges = torch.linspace(-4, 4, 9, dtype=torch.float64)
    assert_mean((draws[:, None] < edges).double(), peer.cdf(edges))


def test_no_noise_gives_a_value_off_the_grid() -> None:
    """Uniform numbers at the ends, where rounding of the cumulated sum would show."""
    for head in GRIDS.values():
        params = params_of(head, 1, 10.0).float()[0]
        for end in (0.0, 1.0 - 2**-24):
            noise = torch.full((head.channels + 1 if head.num_noise > 1 else 1,), end)
            value = head.draw(params, noise)
            assert head.levels is not None
            grid(head.levels).check(value)
            assert torch.isfinite(head.log_prob(params, value))


def pixel_head(kind: str, channels: int) -> PixelHead:
    with forked_rng(3):
        made: PixelHead
        if kind == "categorical":
            made = ChannelwisePixelHead(4, CategoricalHead(3), channels)
        else:
            made = JointPixelHead(4, LogisticMixtureHead(3, 2, channels))
        made.double()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("kind", ["categorical", "logistic_mixture"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pixels_sum_to_one_and_their_draws_follow(kind: str, channels: int) -> None:
    head = pixel_head(kind, channels)
    pixels = torch.tensor(list(itertools.product([0.0, 0.5, 1.0], repeat=channels)), dtype=torch.float64)
    with forked_rng(4), torch.no_grad():
        features = torch.randn(1, 4, dtype=torch.float64)
        mass = head.log_prob(features.expand(len(pixels), -1), pixels).exp()
        draws = head.draw(features.expand(20_000, -1), head.noise((20_000,), features))
    assert float(mass.sum()) == pytest.approx(1, abs=1e-9)
    often = mass > 5e-4
    assert_mean((draws[:, None] == pixels[often]).all(-1).double(), mass[often])


def test_the_last_channel_sees_both_before_it() -> None:
    for kind in ("categorical", "logistic_mixture"):
        head = pixel_head(kind, 3)
        pixels = torch.tensor(list(itertools.product([0.0, 0.5, 1.0], repeat=3)), dtype=torch.float64)
        with torch.no_grad():
            mass = head.log_prob(torch.ones(27, 4, dtype=torch.float64), pixels).exp().view(3, 3, 3)
        joint = mass / mass.sum(-1, keepdim=True)
        assert not torch.allclose(joint[0, 0], joint[1, 0]), kind
        assert not torch.allclose(joint[0, 0], joint[0, 1]), kind


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bernoulli", 2, 1), "head"),
        (("gaussian_mixture", 2, 1), "levels=None"),
        (("categorical", None, 1), "levels"),
        (("categorical", 1, 1), "levels"),
        (("logistic_mixture", 4, 0), "num_components"),
    ],
    ids=["unknown", "real head on a grid", "grid head on the reals", "one level", "no component"],
)
def test_heads_that_make_no_sense_are_refused(arguments: tuple[str, int | None, int], said: str) -> None:
    name, levels, num_components = arguments
    with pytest.raises(ConfigError, match=said):
        make_head(name, levels, num_components)  # type: ignore[arg-type]
