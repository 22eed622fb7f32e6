"""Transformer and WaveNet: sums and integrals of one, causality, caches that change nothing, beginnings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ppgen
from ppgen import metrics
from ppgen.contract import HasConditioning, HasInitialiser, HasLogLikelihood
from ppgen.datasets.split import Split
from ppgen.datasets.values import BINARY, grid
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.models import families
from ppgen.models.stepwise import Stepwise
from ppgen.models.transformer import Transformer
from ppgen.models.wavenet import WaveNet
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to, assert_mean
from tests.models.stepwise_models import (
    ON_GRIDS,
    ON_REALS,
    SERIES,
    SMALL,
    Make,
    context_for,
    every_value,
    made,
)

on_grids = pytest.mark.parametrize("make", ON_GRIDS.values(), ids=ON_GRIDS)
on_reals = pytest.mark.parametrize("make", ON_REALS.values(), ids=ON_REALS)
on_all = pytest.mark.parametrize("make", [*ON_GRIDS.values(), *ON_REALS.values()], ids=[*ON_GRIDS, *ON_REALS])


def total_probability(model: Stepwise) -> float:
    x, context = every_value(model), context_for(model, 1)
    rows = None if context is None else context.expand(len(x), *context.shape[1:])
    with torch.no_grad():
        return float(model.log_likelihood(x, rows).value.exp().sum())


@on_grids
def test_probabilities_sum_to_one(make: Make) -> None:
    model = made(make)
    assert abs(total_probability(model) - 1) < 1e-6


def leaky_attention(model: Transformer) -> None:
    """Plant a mask that lets a position see the next one."""
    plain = functional.scaled_dot_product_attention

    for block in model.network.blocks:
        attention: Any = block.attention

        def attend(query: Tensor, key: Tensor, value: Tensor, attention: Any = attention) -> Tensor:
            open_to = torch.ones(query.shape[-2], query.shape[-2], dtype=torch.bool).tril(1)
            return attention._merged(plain(query, key, value, attn_mask=open_to))

        attention._attend = attend


def leaky_convolution(model: WaveNet) -> None:
    """Plant a shift that is short by one: inputs are not those of the step before."""
    network = model.network
    plain = network._read
    network._read = lambda x: plain(x).roll(-1, 1)  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["tokens", "series"])
def test_a_leak_from_the_future_is_caught_by_the_sum(name: str) -> None:
    model = made(ON_GRIDS[name], spread=0.6)
    if isinstance(model, Transformer):
        leaky_attention(model)
    else:
        leaky_convolution(model)
    assert abs(total_probability(model) - 1) > 1e-3


def influences(model: Stepwise, context: Tensor | None) -> Tensor:
    """Which steps' parameters move with which steps of x, bool ``(S, S)``, by autograd through embeddings."""
    num_steps = len(model.steps)
    x = torch.zeros(1, num_steps, model.steps.per_step, dtype=torch.float64)
    embedding: Any = model.network.get_submodule("embedding")
    with forked_rng(5):
        vectors = torch.randn_like(embedding(x)).requires_grad_()
    plain = embedding.forward
    embedding.forward = lambda x: vectors[:, : x.shape[1]]
    items = None if context is None else model._items(model.distribution(context).context)
    params = model.network(x, items)
    embedding.forward = plain
    rows = []
    for s in range(num_steps):
        (gradient,) = torch.autograd.grad(params[0, s].square().sum(), vectors, retain_graph=True)
        rows.append(gradient[0].abs().sum(-1) > 0)
    return torch.stack(rows)


@on_all
def test_parameters_depend_on_the_past_alone(make: Make) -> None:
    model = made(make)
    depends = influences(model, context_for(model, 1))
    num_steps = len(model.steps)
    expected = torch.ones(num_steps, num_steps, dtype=torch.bool).tril(-1)
    if isinstance(model, WaveNet):
        expected &= expected.triu(-model.receptive_field)
    assert torch.equal(depends, expected)


def test_a_wavenet_forgets_what_is_beyond_its_receptive_field() -> None:
    model = made(lambda: WaveNet((9,), levels=3, dilations=(1, 2), channels=4))
    assert model.receptive_field == 4
    depends = influences(model, None)
    assert depends.sum(-1).tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("name", ["tokens", "series"])
def test_a_leak_from_the_future_is_caught_by_autograd(name: str) -> None:
    model = made(ON_GRIDS[name])
    if isinstance(model, Transformer):
        leaky_attention(model)
    else:
        leaky_convolution(model)
    assert bool(influences(model, None).triu().any())


def on_the_plane(model: Stepwise) -> tuple[Tensor, Tensor]:
    """Points of the line or the plane and their weights: the trapezoidal rule in t with x = sinh(t)."""
    t = torch.linspace(-6.0, 6.0, 400, dtype=torch.float64)
    x, weight = t.sinh(), t.cosh() * (t[1] - t[0])
    num_dims = model.event_shape.numel()
    points = torch.cartesian_prod(*[x] * num_dims).reshape(-1, *model.event_shape)
    weights = torch.cartesian_prod(*[weight] * num_dims).reshape(len(points), -1).prod(-1)
    return points, weights


def integral(model: Stepwise) -> float:
    points, weights = on_the_plane(model)
    context = context_for(model, 1)
    rows = None if context is None else context.expand(len(points))
    with torch.no_grad():
        return float((model.log_likelihood(points, rows).value.exp() * weights).sum())


@on_reals
def test_densities_integrate_to_one(make: Make) -> None:
    model = made(make, spread=0.1)
    with forked_rng(1):
        model.initialise(3 + 2 * torch.randn(500, *model.event_shape, dtype=torch.float64))
    assert abs(integral(model) - 1) < 1e-6


def test_a_forgotten_scale_is_caught_by_the_integral() -> None:
    model = made(ON_REALS["step"], spread=0.1)
    model.step_head.scale.fill_(2.0)
    model.step_head.log_prob = lambda params, value: model.step_head.inner.log_prob(params, value / 2.0)
    assert abs(integral(model) - 1) > 0.5


@on_all
def test_cached_draws_are_the_uncached_ones(make: Make) -> None:
    model = made(make)
    empty = torch.zeros(7, *model.event_shape, dtype=torch.float64)
    unknown = torch.zeros_like(empty, dtype=torch.bool)
    context = context_for(model, 7)
    features = None if context is None else model.distribution(context).context
    with forked_rng(4):
        cached = model.unroll(empty, unknown, features)
    with forked_rng(4):
        anew = model.unroll(empty, unknown, features, cached=False)
    if model.support.discrete:
        assert torch.equal(cached, anew)
    else:
        torch.testing.assert_close(cached, anew, rtol=1e-10, atol=1e-10)
    assert torch.equal(model.sample(7, context, seed=5), model.sample(7, context, seed=5))


@pytest.mark.parametrize("make", [ON_GRIDS["tokens-rotary"], ON_GRIDS["series"]], ids=["tokens", "series"])
def test_a_cache_that_is_off_by_one_step_is_caught(make: Make) -> None:
    model = made(make, spread=1.0)
    plain = model.network.begin

    def stale(x: Tensor, context: Tensor | None = None) -> Any:
        params, cache = plain(x, context)
        if isinstance(model, WaveNet):
            for buffer in cache.buffers:
                buffer.now += 1
        else:
            for block in cache.blocks:
                block.values[:, :, 0] += 5.0
        return params, cache

    empty = torch.zeros(200, *model.event_shape, dtype=torch.float64)
    unknown = torch.zeros_like(empty, dtype=torch.bool)
    with forked_rng(4):
        anew = model.unroll(empty, unknown, cached=False)
    model.network.begin = stale
    with forked_rng(4):
        assert not torch.equal(model.unroll(empty, unknown), anew)


# -- beginnings --------------------------------------------------------------------------


def test_the_lower_half_of_an_image_follows_its_upper_half() -> None:
    model = made(lambda: Transformer((1, 2, 2), levels=3, **SMALL), spread=0.5)
    num = 20_000
    x = torch.tensor([[[[0.5, 1.0], [torch.nan, torch.nan]]]], dtype=torch.float64)
    mask = torch.tensor([[[True, True], [False, False]]])
    drawn = model.condition(x, mask, num, seed=0)
    assert drawn.shape == (num, 1, 1, 2, 2)
    assert bool((drawn[..., 0, :] == x[..., 0, :]).all())
    rest = torch.cartesian_prod(*[torch.linspace(0, 1, 3, dtype=torch.float64)] * 2)
    full = x.expand(9, -1, -1, -1).clone()
    full[:, 0, 1] = rest
    with torch.no_grad():
        p = model.log_likelihood(full).value.softmax(0)
    hits = (drawn[:, 0, 0, 1, None] == rest).all(-1).double()
    assert_mean(hits, p, "completions")


def test_beginnings_may_differ_in_length_and_in_context() -> None:
    model = made(ON_GRIDS["tokens-of-classes"])
    x = model.sample(5, torch.arange(5) % 3, seed=1)
    lengths = torch.tensor([0, 1, 2, 3, 4])
    mask = torch.arange(4) < lengths[:, None]
    drawn = model.condition(x, mask, 3, context=torch.arange(5) % 3, seed=2)
    assert drawn.shape == (3, 5, 4)
    assert bool((drawn == x)[:, mask].all())
    assert torch.equal(model.condition(x, torch.tensor(True), context=torch.arange(5) % 3), x[None])


def test_part_of_a_chord_is_a_beginning() -> None:
    model = made(ON_GRIDS["chords"])
    x = model.sample(2000, seed=1)
    mask = torch.tensor([[True] * 3, [True, False, False], [False] * 3])
    drawn = model.condition(x, mask, seed=2)[0]
    assert bool((drawn == x)[:, mask].all())
    assert_mean(drawn[:, 1:].flatten(1) - x[:, 1:].flatten(1), 0.0, "completions of draws are draws")


@pytest.mark.parametrize("name", ["tokens-of-classes", "tokens-after-tokens", "series-beside-series"])
def test_a_gap_has_the_ratios(name: str) -> None:
    model = made(ON_GRIDS[name])
    context = context_for(model, 1)
    x = every_value(model)[7:8]
    mask = torch.arange(x.shape[1]) == 1
    drawn = model.condition(x, mask, 5000, context=context, seed=2)[:, 0]
    every = every_value(model)
    every = every[every[:, 1] == x[0, 1]]
    assert context is not None
    with torch.no_grad():
        p = model.log_likelihood(every, context.expand(len(every), *context.shape[1:])).value.softmax(0)
    hits = ((drawn[:, None] - every).abs() < 1e-9).all(-1).double()
    assert_mean(hits[:, p > 2e-3], p[p > 2e-3], "fillings")


def test_a_large_gap_is_refused() -> None:
    model = made(lambda: WaveNet((20,), levels=3, **SERIES))
    x = model.sample(2, seed=0)
    with pytest.raises(CapabilityError, match=r"beginning.*3\*\*18 values"):
        model.condition(x, torch.arange(20) % 18 == 1)


# -- sequences that end early ------------------------------------------------------------


RAGGED: dict[str, Make] = {
    "tokens": lambda: Transformer((4,), levels=3, ragged=True, **SMALL),
    "chords": lambda: WaveNet((4, 2), levels=2, ragged=True, within="autoregressive", **SERIES),
}


@pytest.mark.parametrize("make", RAGGED.values(), ids=RAGGED)
def test_a_short_sequence_sums_over_its_continuations(make: Make) -> None:
    model = made(make)
    every = every_value(model)
    start = every[:1].clone()
    start[:, 2:] = torch.nan
    alike = (every[:, :2] == start[:, :2]).flatten(1).all(-1)
    with torch.no_grad():
        expected = model.log_likelihood(every[alike]).value.logsumexp(0)
        found = model.log_likelihood(start).value[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    start[:, 0] = torch.nan
    start[:, 1] = 1.0
    with pytest.raises(DataError, match="before its end"):
        model.log_likelihood(start)


def test_ragged_sequences_train_and_are_completed() -> None:
    data = ppgen.datasets.sequences([[0, 1], [1, 0, 1, 1], [1, 1, 0], [0, 0, 1, 0]] * 5, levels=2)
    with forked_rng(0):
        model = WaveNet((4,), levels=2, ragged=True, dilations=(1, 2), channels=4)
    assert ppgen.fit(model, data.train, epochs=2, device="cpu", progress=False).history
    drawn = model.condition(data.train.x, torch.tensor(True), seed=0)
    assert not bool(drawn.isnan().any())
    listed: Any = [True] * 4
    with pytest.raises(ShapeError, match="mask"):
        model.condition(data.train.x, listed)
    with forked_rng(0), pytest.raises(DataError, match="missing"):
        ppgen.fit(WaveNet((4,), levels=2), data.train, epochs=1, progress=False)


# -- contexts ----------------------------------------------------------------------------


def test_sequences_are_read_before_others() -> None:
    model = made(ON_GRIDS["tokens-after-tokens"])
    labels = torch.tensor([[0, 2], [1, 1]])
    one_hot = functional.one_hot(labels, 3).double()
    x = model.sample(2, labels, seed=0)
    with torch.no_grad():
        by_labels = model.log_likelihood(x, labels).value
        assert torch.equal(by_labels, model.log_likelihood(x, one_hot).value)
        assert not torch.equal(by_labels, model.log_likelihood(x, labels.flip(0)).value)
    assert model.condition(x, torch.tensor(False), 2, context=labels, seed=1).shape == (2, 2, 3)
    with pytest.raises(ShapeError, match="context"):
        model.log_likelihood(x, torch.zeros(2, dtype=torch.int64))


def test_a_local_context_reaches_its_own_step_and_later_ones() -> None:
    model = made(ON_GRIDS["series-beside-series"])
    context = torch.zeros(1, 4, 2, dtype=torch.float64)
    x = model.sample(1, context, seed=0)
    base = model.network(model.steps.split(x), context)
    context[:, 2, 0] = 1.0
    moved = (model.network(model.steps.split(x), context) != base).any(-1)
    assert moved[0].tolist() == [False, False, True, True]


# -- training ----------------------------------------------------------------------------


def markov_chain(num: int, length: int, seed: int) -> tuple[Tensor, float, Tensor]:
    """Draws of a chain of three states, its entropy in nats over ``length`` steps, and log p of each draw."""
    initial = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    move = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    state = torch.multinomial(initial.expand(num, -1), 1, generator=generator)[:, 0]
    states, log_p = [state], initial[state].log()
    entropy, marginal = -(initial * initial.log()).sum(), initial
    for _ in range(length - 1):
        entropy = entropy - (marginal @ (move * move.log())).sum()
        marginal = marginal @ move
        new = torch.multinomial(move[state], 1, generator=generator)[:, 0]
        log_p = log_p + move[state, new].log()
        states.append(new)
        state = new
    return torch.stack(states, -1).float() / 2, float(entropy), log_p


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "wavenet"])
def test_a_markov_chain_is_learnt_to_its_entropy(name: str) -> None:
    length = 12
    train, entropy, _ = markov_chain(20_000, length, 0)
    test, _, log_p = markov_chain(4000, length, 1)
    with forked_rng(0):
        model: Stepwise = (
            Transformer((length,), levels=3, num_layers=1, num_heads=2, dim=32)
            if name == "transformer"
            else WaveNet((length,), levels=3, dilations=(1,), channels=16)
        )
    ppgen.fit(model, Split(train, values=grid(3)), epochs=10, learning_rate=3e-3, schedule="cosine",
              device="cpu", progress=False)  # fmt: skip
    found = metrics.nll(model, Split(test, values=grid(3)))
    assert_close_to(found.value, entropy, found.std_error, "nll")
    # Against the chain itself, on the same data: the excess is a Kullback-Leibler divergence.
    with torch.no_grad():
        excess = log_p.mean() - model.log_likelihood(test).value.mean()
    assert float(excess) < 0.01 * entropy


@pytest.mark.parametrize("name", ["transformer", "wavenet"])
def test_a_sequence_without_entropy_is_learnt_by_heart(name: str) -> None:
    pattern = torch.tensor([0, 2, 1, 1, 0, 1, 2, 2, 0, 0]).float() / 2
    data = Split(pattern.expand(64, -1).contiguous(), values=grid(3))
    with forked_rng(0):
        model: Stepwise = (
            Transformer((10,), levels=3, num_layers=1, num_heads=2, dim=16)
            if name == "transformer"
            else WaveNet((10,), levels=3, dilations=(1, 2, 4), channels=8)
        )
    ppgen.fit(model, data, epochs=150, batch_size=None, learning_rate=1e-2, device="cpu", progress=False)
    assert float(metrics.nll(model, data).value) < 0.05
    assert torch.equal(model.sample(1, seed=0)[0], pattern)
    assert float(metrics.perplexity(model, data).value) < 1.01


def test_real_series_are_measured_before_training() -> None:
    with forked_rng(0):
        x = torch.randn(200, 4, 2) * torch.tensor([1.0, 50.0]) + torch.tensor([0.0, 1000.0])
        model = WaveNet((4, 2), dilations=(1,), channels=4)
    assert isinstance(model, HasInitialiser)
    with pytest.raises(DataError, match="x: "):
        model.initialise(x / 0)
    model.initialise(x)
    torch.testing.assert_close(model.step_head.loc, x.flatten(0, 1).mean(0))
    with torch.no_grad():
        assert float(model.log_likelihood(x).value.mean()) > -60


@pytest.mark.parametrize("within", ["independent", "autoregressive"])
def test_binary_series_begin_at_their_frequencies(within: Any) -> None:
    p = torch.tensor([0.02, 0.5, 0.9])
    with forked_rng(0):
        x = torch.bernoulli(p.expand(2000, 4, 3))
        model = WaveNet((4, 3), levels=2, within=within, dilations=(1,), channels=8)
    before = metrics.nats_per_step(model, x)
    model.initialise(x)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    found = metrics.nats_per_step(model, x)
    assert float(found.value) < float(entropy) + 0.1 < float(before.value)
    model.initialise(torch.zeros(5, 4, 3))
    assert bool(torch.isfinite(model.log_likelihood(x).value).all())


@pytest.mark.parametrize("name", ["tokens-rotary", "series", "logistics", "two-steps"])
def test_under_autocast_only_the_network_is_rounded(name: str) -> None:
    """Log-probabilities in bfloat16 would have errors of one in 256, however they come about."""
    with forked_rng(0):
        model = {**ON_GRIDS, **ON_REALS}[name]().eval()
        x = model.sample(3, seed=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        items = model.steps.split(x)
        params = model.network(items, None)
        assert params.dtype == torch.bfloat16
        found = model.log_likelihood(x).value
        expected = model._head.log_prob(params.double(), items.double()).sum(-1)
        drawn = model.sample(3, seed=1)
    assert found.dtype == drawn.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_dropout_thins_densities_in_training_and_no_draws() -> None:
    model = made(lambda: Transformer((4,), levels=3, dropout=0.5, **SMALL)).train()
    x = model.sample(8, seed=0)
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(x, model.eval().sample(8, seed=0))
    with torch.no_grad(), forked_rng(0):
        still = model.log_likelihood(x).value
        assert torch.equal(still, model.log_likelihood(x).value)
        assert not torch.equal(still, model.train().log_likelihood(x).value)


# -- bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: Transformer((4,), levels=1), ConfigError, "levels"),
        (lambda: Transformer((4,), levels=None), ConfigError, "levels"),  # type: ignore[arg-type]
        (lambda: Transformer((4,), dim=6, num_heads=2), ConfigError, "dim"),
        (lambda: Transformer((4,), num_layers=0), ConfigError, "num_layers"),
        (lambda: Transformer((4,), dropout=1.0), ConfigError, "dropout"),
        (lambda: Transformer((4,), positions="none"), ConfigError, "positions"),  # type: ignore[arg-type]
        (lambda: Transformer((4,), context_length=2), ConfigError, "context_length"),
        (lambda: Transformer((0,)), ShapeError, "event_shape"),
        (lambda: WaveNet((1, 2, 2)), ShapeError, "series"),
        (lambda: WaveNet((4,), dilations=(0,)), ConfigError, "dilations"),
        (lambda: WaveNet((4,), dilations=()), ConfigError, "dilations"),
        (lambda: WaveNet((4,), dilations=3), ConfigError, "dilations"),  # type: ignore[arg-type]
        (lambda: WaveNet((4,), num_blocks=0), ConfigError, "num_blocks"),
        (lambda: WaveNet((4,), channels=0), ConfigError, "channels"),
        (lambda: WaveNet((4,), within="chain"), ConfigError, "within"),  # type: ignore[arg-type]
        (lambda: WaveNet((4,), head="categorical"), ConfigError, "levels"),
        (lambda: WaveNet((4,), local_context=True), ConfigError, "context"),
        (lambda: WaveNet((4,), context_dim=-1), ConfigError, "context_dim"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(build: Make, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def test_values_off_the_grid_are_refused() -> None:
    model = made(ON_GRIDS["tokens"])
    with pytest.raises(DataError, match="grid"):
        metrics.nll(model, torch.full((4, 4), 0.3))
    with pytest.raises(DataError, match="levels"):
        ppgen.fit(model, Split(torch.zeros(4, 4), values=BINARY), epochs=1, progress=False)


def test_capabilities() -> None:
    for make in (ON_GRIDS["tokens"], ON_GRIDS["series"]):
        model = made(make)
        assert isinstance(model, HasLogLikelihood)
        assert isinstance(model, HasConditioning)
    assert math.isfinite(model.num_parameters)
    assert isinstance(model.network, nn.Module)


@pytest.mark.parametrize("name", ["made", "pixel-cnn", "pixel-rnn", "transformer", "wavenet"])
@pytest.mark.parametrize("bad", [0.3, math.nan])
def test_values_that_are_no_levels_are_named(name: str, bad: float) -> None:
    with forked_rng(0):
        model = families()[name].example()
    x = torch.full((2, *model.event_shape), bad)
    assert isinstance(model, HasLogLikelihood)
    with pytest.raises(DataError, match=r"^x: expected (values of the grid|finite numbers)"):
        model.log_likelihood(x)
