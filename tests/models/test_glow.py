"""Glow: a density that integrates to one, draws that follow it, its start from data, its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.contract import Kind
from ppgen.datasets.values import REAL, grid
from ppgen.distributions.image_flow_layers import MultiScale
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.models.glow import FAMILY, Glow
from ppgen.ops.random import forked_rng
from ppgen.testing.agreement import compare_on_reals
from ppgen.testing.statistics import assert_same_distribution


def make(event_shape: tuple[int, ...] = (1, 4, 4), *, spread: float = 0.1, **options: Any) -> Glow:
    options = {"num_steps": 2, "hidden_channels": 6, **options}
    with forked_rng(0), torch.no_grad():
        flow = Glow(event_shape, **options).double()
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integral(flow: Glow, context: Tensor | None = None) -> float:
    """The trapezoidal rule on four pixels: it converges exponentially for smooth densities."""
    line = torch.linspace(-7, 7, 21, dtype=torch.float64)
    points = torch.cartesian_prod(line, line, line, line).view(-1, 1, 2, 2)
    with torch.no_grad():
        total = sum(
            float(
                flow.log_likelihood(part, None if context is None else context.expand(len(part), -1))
                .value.exp()
                .sum()
            )
            for part in points.split(200_000)
        )
    return total * float(line[1] - line[0]) ** 4


@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_density_integrates_to_one(coupling: str) -> None:
    flow = make((1, 2, 2), coupling=coupling, num_steps=1, spread=0.05)
    assert abs(integral(flow) - 1) < 1e-6


def test_density_integrates_to_one_under_a_context_and_a_forgotten_scale_is_caught() -> None:
    flow = make((1, 2, 2), context_dim=2, num_steps=1, spread=0.05)
    context = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert abs(integral(flow, context) - 1) < 1e-6
    multi_scale: Any = flow.transforms[1]
    pull = multi_scale.pull
    multi_scale.pull = lambda x, context=None: (pull(x, context)[0], torch.zeros_like(x[..., 0]))
    assert abs(integral(flow, context) - 1) > 1e-3


@pytest.mark.parametrize("context_dim", [0, 3])
def test_draws_follow_the_density(context_dim: int) -> None:
    flow = make((1, 2, 4), context_dim=context_dim)
    context = torch.full((20_000,), 1) if context_dim else None
    draws = flow.sample(20_000, context, seed=1)
    compare_on_reals(flow, draws, context)
    with pytest.raises(AssertionError):
        compare_on_reals(flow, 1.1 * draws, context)


@pytest.mark.parametrize("event_shape", [(1, 8, 8), (3, 4, 6), (1, 2, 2), (2, 28, 28)])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_encode_and_decode_are_inverse(event_shape: tuple[int, ...], context_dim: int) -> None:
    flow, x = make(event_shape, context_dim=context_dim, spread=0.05), uniform(4, *event_shape)
    labels = torch.tensor([0, 1, 2, 0]) if context_dim else None
    z = flow.encode(x, labels)
    assert z.shape == (4, flow.event_shape.numel())
    torch.testing.assert_close(flow.decode(z, labels), x, rtol=0, atol=1e-9)
    narrow = make(event_shape, context_dim=context_dim, spread=0.05).float()
    torch.testing.assert_close(narrow.encode(x.float(), labels), z.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("event_shape", "levels"),
    [((1, 8, 8), 2), ((1, 28, 28), 2), ((3, 32, 32), 3), ((1, 2, 6), 1), ((1, 64, 64), 3)],
)
def test_levels_are_chosen_by_the_size(event_shape: tuple[int, ...], levels: int) -> None:
    with forked_rng(0):
        flow = Glow(event_shape, num_steps=1, hidden_channels=2)
    multi_scale: Any = flow.transforms[1]
    assert isinstance(multi_scale, MultiScale)
    assert len(multi_scale.levels) == levels


def test_the_start_looks_at_the_data() -> None:
    x = 5 + 3 * uniform(300, 1, 4, 4).cumsum(-1)
    flow = make(spread=0.0)
    before = flow.log_likelihood(x).value.mean()
    flow.initialise(x)
    assert flow.initialised
    assert flow.log_likelihood(x).value.mean() > before + 10
    z = flow.encode(x)
    assert bool((z.mean(0).abs() < 0.5).all())
    narrow = make(spread=0.0).float()
    narrow.initialise(x)  # in another dtype
    torch.testing.assert_close(narrow.encode(x), z.float(), rtol=1e-3, atol=1e-3)
    with pytest.raises(DataError, match="x: expected finite"):
        flow.initialise(x.where(x < x.max(), math.nan))
    with pytest.raises(ShapeError, match="context:"):
        make(context_dim=3).initialise(x, torch.tensor([0, 1]))
    first = flow.encode(x[:5]).clone()
    copy = make(spread=0.3)
    copy.load_state_dict(flow.state_dict())
    torch.testing.assert_close(copy.encode(x[:5]), first, rtol=0, atol=0)


def test_on_levels_draws_stay_in_the_unit_interval() -> None:
    flow = make(num_bins=4)
    with pytest.raises(DataError, match="num_bins=4"):
        flow.initialise(2 * uniform(50, 1, 4, 4))
    flow.initialise(uniform(50, 1, 4, 4) ** 2)
    draws = flow.sample(100, seed=0)
    assert 0 <= float(draws.min()) <= float(draws.max()) <= 1
    assert bool(torch.isfinite(flow.log_likelihood(draws).value).all())
    assert bool((flow.log_likelihood(draws + 1).value == -math.inf).all())


def test_temperature_shrinks_the_noise() -> None:
    flow = make((1, 2, 2))
    same = flow.sample_tempered(4000, temperature=1.0, seed=1)
    assert_same_distribution(same, flow.sample(4000, seed=2))
    with pytest.raises(AssertionError):
        assert_same_distribution(flow.sample_tempered(4000, temperature=0.7, seed=1), same)
    centre = flow.decode(torch.zeros(1, 4, dtype=torch.float64))
    torch.testing.assert_close(flow.sample_tempered(3, temperature=0.0, seed=0), centre.expand(3, -1, -1, -1))
    half = flow.encode(flow.sample_tempered(5, temperature=0.5, seed=3))
    torch.testing.assert_close(half, 0.5 * flow.encode(flow.sample_tempered(5, temperature=1.0, seed=3)))
    conditional = make((1, 2, 2), context_dim=3)
    assert conditional.sample_tempered(2, context=torch.tensor([0, 1]), seed=0).shape == (2, 1, 2, 2)
    for options in ({"temperature": -1.0}, {"temperature": math.nan}, {"num": 0}, {"num": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            flow.sample_tempered(**options)


def test_what_makes_no_glow_is_named() -> None:
    cases: list[tuple[tuple[int, ...], dict[str, Any], type[Exception], str]] = [
        ((64,), {}, ShapeError, "images"),
        ((1, 7, 7), {}, ShapeError, "even sides"),
        ((1, 28, 28), {"num_levels": 3}, ConfigError, "multiple of 8"),
        ((1, 8, 8), {"num_levels": 0}, ConfigError, "num_levels"),
        ((1, 8, 8), {"num_steps": 0}, ConfigError, "num_steps"),
        ((1, 8, 8), {"num_steps": 1.5}, ConfigError, "num_steps"),
        ((1, 8, 8), {"hidden_channels": 0}, ConfigError, "hidden_channels"),
        ((1, 8, 8), {"dropout": 1.0}, ConfigError, "dropout"),
        ((1, 8, 8), {"coupling": "cubic"}, ConfigError, "coupling"),
        ((1, 8, 8), {"num_bins": 1}, ConfigError, "num_bins"),
    ]
    with forked_rng(0):
        for event_shape, options, error, words in cases:
            with pytest.raises(error, match=words):
                Glow(event_shape, **options)
        flow = make()
    with pytest.raises(ShapeError, match="x:"):
        flow.log_likelihood(uniform(4, 1, 8, 8))
    with pytest.raises(CapabilityError, match="unconditional"):
        flow.encode(uniform(4, 1, 4, 4), torch.zeros(4, dtype=torch.long))


def test_registration_builds_for_levels_and_for_reals() -> None:
    with forked_rng(0):
        assert FAMILY.build(torch.Size((1, 8, 8)), grid(17), 100).config["num_bins"] == 17
        flow = FAMILY.build(torch.Size((1, 8, 8)), REAL, 100)
    assert flow.config["num_bins"] is None
    assert flow.density is FAMILY.density is Kind.EXACT
