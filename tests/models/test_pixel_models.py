"""PixelCNN and PixelRNN: enumeration, causal structure with channels, cached sampling, completion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.errors import CapabilityError, ConfigError, ShapeError
from ppgen.models.pixel_cnn import FAMILY, PixelCNN
from ppgen.models.pixel_rnn import PixelRNN
from ppgen.models.pixels import PixelHeadName, PixelModel
from ppgen.nn.causal_conv import GatedPixelStack, PixelNetwork
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean

Maker = Callable[..., PixelModel]
SMALL: dict[str, Maker] = {
    "cnn": lambda shape, **o: PixelCNN(shape, num_layers=2, num_channels=4, **o),
    "row": lambda shape, **o: PixelRNN(shape, layout="row", num_layers=2, num_channels=3, **o),
    "diagonal": lambda shape, **o: PixelRNN(shape, layout="diagonal", num_layers=1, num_channels=3, **o),
}
HEADS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "binary": ((1, 2, 2), {"levels": 2}),
    "four levels": ((1, 2, 2), {"levels": 4}),
    "logistic mixture": ((1, 2, 2), {"levels": 5, "head": "logistic_mixture", "num_components": 2}),
    "three channels": ((3, 2, 1), {"levels": 3}),
    "three channels, logistic mixture": (
        (3, 1, 2),
        {"levels": 3, "head": "logistic_mixture", "num_components": 2},
    ),
    "conditional": ((1, 2, 2), {"levels": 3, "context_dim": 2}),
}


def perturbed(make: Callable[[], PixelModel], scale: float = 0.5) -> PixelModel:
    """A float64 model in evaluation mode with parameters away from their start."""
    with forked_rng(0), torch.no_grad():
        model = make().double().eval()
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def every(levels: int, *shape: int) -> Tensor:
    grid = torch.linspace(0, 1, levels, dtype=torch.float64).tolist()
    return torch.tensor(list(itertools.product(grid, repeat=math.prod(shape))), dtype=torch.float64).view(
        -1, *shape
    )


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_probabilities_sum_to_one(make: Maker, head: tuple[tuple[int, int, int], dict[str, Any]]) -> None:
    shape, options = head
    model = perturbed(lambda: make(shape, **options))
    x = every(options["levels"], *shape)
    with torch.no_grad():
        for label in range(model.context_dim or 1):
            context = torch.full((len(x),), label) if model.context_dim else None
            total = model.log_likelihood(x, context).value.exp().sum()
            assert float(total) == pytest.approx(1, abs=1e-9)


def test_a_leaked_mask_is_found() -> None:
    """The twin: a first window that takes in the pixel itself, and the sum is off one."""
    model = perturbed(lambda: SMALL["row"]((1, 2, 2), levels=3))
    allowed: Any = model.network.first
    allowed.allowed[-1, allowed.allowed.shape[1] // 2] = 1
    with torch.no_grad():
        total = float(model.log_likelihood(every(3, 1, 2, 2)).value.exp().sum())
    assert abs(total - 1) > 1e-3


def conditionals(model: PixelModel, x: Tensor) -> Tensor:
    """Log-probability of each channel of each pixel given what comes before, shape (H, W, C), by telescoping.

    Each is the log mass of x up to there, summed over that channel's value and all later ones, which for a
    pixel's head means over the pixel's own later channels alone.
    """
    channels, height, width = x.shape
    levels = model.support.levels
    assert levels is not None
    features = model.network(x[None], None)[0].permute(1, 2, 0)
    grid = torch.linspace(0, 1, levels, dtype=x.dtype).tolist()
    rows = []
    for i, j in itertools.product(range(height), range(width)):
        masses = []
        for c in range(channels + 1):
            rest = torch.tensor(list(itertools.product(grid, repeat=channels - c)), dtype=x.dtype)
            pixel = torch.cat([x[:c, i, j].expand(len(rest), c), rest.view(len(rest), -1)], -1)
            masses.append(model.head.log_prob(features[i, j].expand(len(pixel), -1), pixel).logsumexp(0))
        rows.append(torch.stack([b - a for a, b in itertools.pairwise(masses)]))
    return torch.stack(rows).view(height, width, channels)


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("head", ["categorical", "logistic_mixture"])
def test_channels_come_in_order_within_pixels_in_order(make: Maker, head: str) -> None:
    """Conditionals add up to the density, and each changes with earlier coordinates and its own alone."""
    model = perturbed(lambda: make((3, 2, 2), levels=3, head=head))
    with forked_rng(1):
        x = torch.randint(3, (3, 2, 2)).double() / 2
    with torch.no_grad():
        before = conditionals(model, x).flatten()
        torch.testing.assert_close(before.sum(), model.log_likelihood(x[None]).value[0])
        order = model.orders()[0]
        for position, coordinate in enumerate(order.tolist()):
            changed = x.clone().flatten()
            changed[coordinate] = (changed[coordinate] + 0.5) % 1.5
            after = conditionals(model, changed.view_as(x)).flatten()
            torch.testing.assert_close(after[:position], before[:position], rtol=1e-12, atol=1e-12)
            assert not torch.isclose(after[position], before[position], atol=1e-9)
            if (position + 1) % 3:  # within the pixel
                assert not torch.isclose(after[position + 1], before[position + 1], atol=1e-9)


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("head", ["categorical", "logistic_mixture"])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_cached_and_uncached_samplers_draw_the_same_images(
    make: Maker, head: PixelHeadName, context_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = perturbed(lambda: make((2, 5, 4), head=head, levels=4, context_dim=context_dim))
    context = torch.arange(50) % 2 if context_dim else None
    cached = model.sample(50, context, seed=4)
    monkeypatch.setattr(type(model.network), "unroll", PixelNetwork.unroll)
    assert torch.equal(model.sample(50, context, seed=4), cached)
    assert not torch.equal(model.sample(50, context, seed=5), cached)


def test_draws_have_the_probabilities() -> None:
    model = perturbed(lambda: PixelCNN((1, 2, 2), num_layers=2, num_channels=4, levels=3))
    x = every(3, 1, 2, 2)
    with torch.no_grad():
        mass = model.log_likelihood(x).value.exp()
    draws = model.sample(20_000, seed=1)
    often = mass > 1e-3
    table = ((draws[:, None] - x[often]).abs().amax((-1, -2, -3)) < 1e-9).double()
    assert_mean(table, mass[often])
    with pytest.raises(AssertionError):
        assert_mean(table, mass[often].roll(1))


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_the_bottom_given_the_top_has_the_ratios(make: Maker) -> None:
    model = perturbed(lambda: make((1, 2, 2), levels=3))
    x = torch.tensor(
        [[[[1.0, 0.5], [math.nan, math.nan]]], [[[0.0, math.nan], [math.nan, math.nan]]]]
    ).double()
    drawn = model.condition(x, ~x.isnan(), 4000, seed=2)
    assert drawn.shape == (4000, 2, 1, 2, 2)
    everything = every(3, 1, 2, 2)
    with torch.no_grad():
        mass = model.log_likelihood(everything).value.exp()
    for row in range(2):
        known = ~x[row].isnan()
        fits = (everything[:, known] == x[row][known]).all(-1)
        expected = mass[fits] / mass[fits].sum()
        table = (drawn[:, row, None] == everything[fits]).flatten(2).all(-1).double()
        assert bool((table.sum(-1) == 1).all())
        assert_mean(table[:, expected > 5e-3], expected[expected > 5e-3])


def test_completions_follow_their_context() -> None:
    model = perturbed(lambda: PixelCNN((1, 2, 2), num_layers=2, num_channels=4, context_dim=2))
    x = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    mask = torch.tensor([[True, True], [False, False]])
    labels = torch.tensor([0, 1])
    drawn = model.condition(x, mask, 4000, context=labels, seed=2)
    everything = every(2, 1, 1, 2)
    whole = torch.cat([torch.zeros_like(everything), everything], 2)
    for label in range(2):
        with torch.no_grad():
            mass = model.log_likelihood(whole, torch.full((4,), label)).value.softmax(0)
        assert_mean((drawn[:, label, None, :, 1:] == everything).flatten(2).all(-1).double(), mass)


def beside_images(shape: tuple[int, int, int], channels: int, **options: Any) -> PixelCNN:
    """A model that is given images as contexts."""
    model = perturbed(
        lambda: PixelCNN(shape, num_layers=2, num_channels=4, context_channels=channels, **options)
    )
    assert isinstance(model, PixelCNN)
    return model


def pictures(num: int, *shape: int) -> Tensor:
    with forked_rng(7):
        return torch.randn(num, *shape, dtype=torch.float64)


def test_given_an_image_probabilities_sum_to_one_and_draws_follow() -> None:
    model = beside_images((1, 2, 2), 2, levels=3)
    x = every(3, 1, 2, 2)
    for context in pictures(2, 2, 2, 2):
        rows = context.expand(len(x), 2, 2, 2)
        with torch.no_grad():
            mass = model.log_likelihood(x, rows).value.exp()
        assert float(mass.sum()) == pytest.approx(1, abs=1e-9)
        often = mass > 1e-3
        draws = model.sample(10_000, context[None], seed=1)
        assert_mean((draws[:, None] - x[often]).abs().amax((-1, -2, -3)).lt(1e-9).double(), mass[often])


def test_given_images_cached_and_uncached_samplers_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = beside_images((2, 5, 4), 3, levels=4)
    context = pictures(50, 3, 5, 4)
    cached = model.sample(50, context, seed=4)
    assert not torch.equal(model.sample(50, context.flip(0), seed=4), cached)
    monkeypatch.setattr(GatedPixelStack, "unroll", PixelNetwork.unroll)
    assert torch.equal(model.sample(50, context, seed=4), cached)


def test_a_pixel_is_told_of_the_context_on_all_sides_and_of_x_before_it() -> None:
    model = beside_images((1, 4, 4), 1)
    x, context = pictures(1, 1, 4, 4).sigmoid(), pictures(1, 1, 4, 4)
    of_x = torch.autograd.functional.jacobian(lambda t: model.network(t, context), x)
    of_context = torch.autograd.functional.jacobian(lambda t: model.network(x, t), context)
    seen = (of_x != 0).flatten(2).any(1).any(0).view(16, 16)
    assert torch.equal(seen, torch.ones(16, 16).tril(-1).bool())
    assert bool((of_context != 0).flatten(2).any(1).any(0).all())


def test_contexts_that_are_no_such_images_are_refused() -> None:
    model = beside_images((1, 2, 2), 3)
    x = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"context: expected images of shape \(N, 3, 2, 2\)"):
        model.log_likelihood(x, pictures(2, 1, 2, 2))
    with pytest.raises(ShapeError, match="context"):
        model.log_likelihood(x)
    with torch.no_grad():
        images = pictures(2, 3, 2, 2)
        found = [model.log_likelihood(x, context).value for context in (images, images.flatten(1))]
    assert torch.equal(*found)
    with pytest.raises(ConfigError, match="context_channels"):
        PixelCNN((1, 2, 2), context_dim=2, context_channels=1)


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_a_gap_has_the_ratios(make: Maker) -> None:
    """The first pixel and one channel of the last, given all others."""
    model = perturbed(lambda: make((2, 2, 1), levels=3))
    x = torch.tensor([[[[0.0], [0.5]], [[0.0], [1.0]]]]).double()
    mask = torch.tensor([[[False], [True]], [[False], [False]]])
    drawn = model.condition(x, mask, 4000, seed=2)[:, 0]
    everything = every(3, 2, 2, 1)
    fits = (everything[:, mask] == x[0][mask]).all(-1)
    with torch.no_grad():
        expected = model.log_likelihood(everything[fits]).value.softmax(0)
    table = (drawn[:, None] == everything[fits]).flatten(2).all(-1).double()
    assert_mean(table[:, expected > 5e-3], expected[expected > 5e-3])


def test_other_parts_than_a_beginning_are_refused_where_they_are_large() -> None:
    model = perturbed(lambda: PixelCNN((2, 3, 3), num_layers=1, num_channels=3, levels=8))
    x = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    bottom = torch.zeros(3, 3, dtype=torch.bool)
    bottom[1:] = True
    with pytest.raises(CapabilityError, match=r"Observe a beginning.*8\*\*6 values"):
        model.condition(x, bottom)
    red = torch.zeros(2, 3, 3, dtype=torch.bool)
    red[0] = True
    with pytest.raises(CapabilityError, match="all channels of a pixel"):
        model.condition(x, red)
    assert torch.equal(model.condition(x, ~bottom, seed=0)[0, :, :, 0], x[:, :, 0])


def test_an_image_of_its_own_class_is_more_likely_after_training() -> None:
    """Two classes, stripes across and stripes down: who is not told has a mean of -log 2 at best."""
    from ppgen.inference.svi import fit

    rows = torch.zeros(1, 4, 4)
    rows[:, ::2] = 1
    x = torch.cat([rows.expand(64, 1, 4, 4), rows.mT.expand(64, 1, 4, 4)])
    y = torch.arange(2).repeat_interleave(64)
    with forked_rng(0):
        model = PixelCNN((1, 4, 4), num_layers=2, num_channels=6, context_dim=2)
    fit(model, (x, y), epochs=20, batch_size=32, learning_rate=1e-2, device="cpu", progress=False)
    with torch.no_grad():
        right, wrong = (model.log_likelihood(x, labels).value for labels in (y, 1 - y))
    assert float(right.mean()) > -math.log(2)
    assert float((right - wrong).min()) > 0


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: PixelCNN((8, 8)), ShapeError, "event_shape"),
        (lambda: PixelRNN((4,)), ShapeError, "event_shape"),
        (lambda: PixelCNN((1, 4, 4), head="gaussian_mixture"), ConfigError, "head"),  # type: ignore[arg-type]
        (lambda: PixelCNN((1, 4, 4), levels=1), ConfigError, "levels"),
        (lambda: PixelCNN((1, 4, 4), kernel_size=2), ConfigError, "kernel_size"),
        (lambda: PixelCNN((1, 4, 4), dropout=1.0), ConfigError, "dropout"),
        (lambda: PixelRNN((1, 4, 4), layout="spiral"), ConfigError, "layout"),  # type: ignore[arg-type]
        (lambda: PixelCNN((1, 4, 4), context_dim=-1), ConfigError, "context_dim"),
        (lambda: PixelRNN((1, 4, 4), context_dim=-1), ConfigError, "context_dim"),
    ],
    ids=["no image", "vector", "head", "levels", "kernel", "dropout", "layout", "context", "context of RNN"],
)
def test_arguments_that_make_no_sense_are_refused(
    make: Callable[[], PixelModel], error: type[Exception], said: str
) -> None:
    with forked_rng(0), pytest.raises(error, match=said):
        make()


def test_survey_models_take_few_and_many_levels() -> None:
    from ppgen.datasets.values import grid

    for levels in (2, 17, 256):
        with forked_rng(0), torch.no_grad():
            model: Any = FAMILY.build(torch.Size([1, 8, 8]), grid(levels), 1000)
            assert model.support == grid(levels)
            value = model.log_likelihood(torch.zeros(2, 1, 8, 8)).value
        assert bool(torch.isfinite(value).all())
