"""What the transformer alone has: generation beyond its length, sharpened draws, positions that turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.models.transformer import Transformer
from ppgen.nn.attention import _turn
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to, assert_mean
from tests.models.stepwise_models import ON_GRIDS, SMALL, context_for, every_value, made


def text_model(**options: Any) -> Any:
    return made(lambda: Transformer((6,), levels=4, **SMALL, **options), spread=0.5)


def test_generation_at_temperature_one_draws_from_the_model() -> None:
    model, num = text_model(), 20_000
    prompt = torch.tensor([0.0, 1.0, 1 / 3, 2 / 3], dtype=torch.float64)
    drawn = model.generate(prompt, num, seed=0)
    assert drawn.shape == (num, 6)
    rest = torch.cartesian_prod(*[torch.linspace(0, 1, 4, dtype=torch.float64)] * 2)
    with torch.no_grad():
        p = model.log_likelihood(torch.cat([prompt.expand(16, -1), rest], -1)).value.softmax(0)
    hits = ((drawn[:, None, 4:] - rest).abs() < 1e-9).all(-1).double()
    assert_mean(hits, p, "continuations")


@pytest.mark.parametrize("name", ["tokens-of-classes", "tokens-after-tokens"])
def test_generation_follows_its_context(name: str) -> None:
    model, num = made(ON_GRIDS[name], spread=0.5), 10_000
    context = context_for(model, 1)
    assert context is not None
    every = every_value(model)
    with torch.no_grad():
        p = model.log_likelihood(every, context.expand(len(every), *context.shape[1:])).value.exp()
    for rows in (context, context.expand(num, *context.shape[1:])):
        drawn = model.generate(num=num, context=rows, seed=0)
        hits = ((drawn[:, None] - every).abs() < 1e-9).all(-1).double()
        assert_mean(hits[:, p > 2e-3], p[p > 2e-3], "sequences")
    with pytest.raises(ShapeError, match="context"):
        model.generate(num=3, context=context.expand(2, *context.shape[1:]))
    unknown = torch.full((1, *context.shape[1:], model.item_dim), torch.nan, dtype=torch.float64)
    with pytest.raises(DataError, match="context"):
        model.generate(num=3, context=unknown)


def test_only_k_levels_are_kept_where_many_are_alike() -> None:
    with forked_rng(0):
        ternary, binary = (Transformer((3,), levels=levels, **SMALL) for levels in (3, 2))
    for model in (ternary, binary):
        torch.nn.init.zeros_(model.network.output.weight)
        drawn = model.generate(num=300, top_k=1, seed=0)
        assert bool((drawn == drawn[:1, :1]).all())


@pytest.mark.parametrize(("temperature", "top_k"), [(0.5, None), (2.0, None), (1.0, 2), (0.7, 1)])
def test_sharpened_conditionals(temperature: float, top_k: int | None) -> None:
    model, num = text_model(), 20_000
    first = model.generate(num=num, num_steps=1, temperature=temperature, top_k=top_k, seed=0)[:, 0]
    with torch.no_grad():
        params, _ = model.network.begin(torch.zeros(1, 0, 1, dtype=torch.float64))
    logits = params[0] / temperature
    if top_k is not None:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    frequency = torch.bincount((first * 3).round().long(), minlength=4).double() / num
    p = logits.softmax(-1)
    assert_close_to(frequency, p, (p * (1 - p) / num).sqrt(), "frequencies")


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("length", [0, 3, 5, 6, 20])
def test_prompts_of_any_length_go_on_for_as_long_as_wanted(length: int, positions: str) -> None:
    model = text_model(positions=positions)
    prompt = torch.ones(length, dtype=torch.float64)
    drawn = model.generate(prompt, 3, num_steps=15, seed=0)
    assert drawn.shape == (3, length + 15)
    assert bool((drawn[:, :length] == 1).all())
    model.support.check(drawn)


def test_a_sliding_window_is_taken_for_a_beginning() -> None:
    model = text_model()
    prompt = torch.linspace(0, 1, 4, dtype=torch.float64).repeat(5)
    greedy = model.generate(prompt, num_steps=2, top_k=1, seed=0)
    last = model.generate(prompt[-5:], num_steps=1, top_k=1, seed=0)
    assert torch.equal(greedy[:, 20], last[:, 5])
    half = greedy[0, -4:-1]  # six are full: the last three are read anew
    after = model.generate(half, num_steps=1, top_k=1, seed=0)
    assert torch.equal(greedy[:, 21], after[:, 3])


def test_bad_generation() -> None:
    model = text_model()
    full = torch.zeros(6, dtype=torch.float64)
    for options, error, match in (
        ({"prompt": full}, ConfigError, "num_steps"),
        ({"temperature": 0.0}, ConfigError, "temperature"),
        ({"top_k": 0}, ConfigError, "top_k"),
        ({"num_steps": 1.5}, ConfigError, "num_steps"),
        ({"num": 2.5}, ConfigError, "num"),
        ({"prompt": full[None, None]}, ShapeError, "prompt"),
        ({"prompt": full + 0.1, "num_steps": 1}, DataError, "prompt"),
        ({"prompt": "To be"}, ShapeError, "vocabulary.encode"),
    ):
        with pytest.raises(error, match=match):
            model.generate(**options)


def test_positions_are_turned_exactly_in_half_precision() -> None:
    with forked_rng(0):
        h = torch.randn(1, 2, 600, 8)
    torch.testing.assert_close(_turn(h.bfloat16(), 0).float(), _turn(h, 0), rtol=0.02, atol=0.03)
