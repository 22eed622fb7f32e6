"""Families that draw the missing given the observed do so with one signature and one meaning."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.contract import GenerativeModel, HasConditioning
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.models import families
from ppgen.models.autoregressive import Autoregressive
from ppgen.models.gaussian_mixture import GaussianMixture
from ppgen.models.made import MADE
from ppgen.models.rbm import RBM
from ppgen.ops.random import forked_rng

Maker = Callable[[], GenerativeModel]


def makers() -> dict[str, Maker]:
    found: dict[str, Maker] = {name: family.example for name, family in families().items()}
    found["image-mixture"] = lambda: GaussianMixture((1, 2, 2), num_components=3, covariance="tied")
    found["made"] = lambda: MADE((3,), hidden=(8,), levels=3)  # of one order, which has beginnings
    found["gaussian-rbm"] = lambda: RBM((2, 2), num_hidden=3, visible="gaussian", num_gibbs_steps=5)
    with forked_rng(0):
        models = {name: make() for name, make in found.items()}
    # Models that want a context have tests of their own.
    return {n: found[n] for n, m in models.items() if isinstance(m, HasConditioning) and not m.context_dim}


MAKERS = makers()


def start(make: Maker) -> tuple[Any, Tensor, Tensor]:
    """A model, five data of its own, and a mask with observed and missing coordinates in each."""
    with forked_rng(0):
        model = make().eval()
        x = model.sample(5)
        mask = torch.rand(x.shape) < 0.5
        mask.view(5, -1)[:, 0], mask.view(5, -1)[:, -1] = True, False
        if isinstance(model, Autoregressive):  # these go on from beginnings
            order = model.orders()[0]
            lengths = torch.randint(1, len(order), (5, 1))
            mask = mask.flatten(1).index_copy(1, order, torch.arange(len(order)) < lengths).view(x.shape)
    return model, x, mask


def test_mixtures_and_boltzmann_machines_are_among_them() -> None:
    assert {"gaussian-mixture", "bernoulli-mixture", "rbm"} <= set(MAKERS)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_observed_stays_and_the_missing_is_drawn(make: Maker) -> None:
    model, x, mask = start(make)
    hidden = torch.where(mask, x, math.nan)
    drawn = model.condition(hidden, mask, 40, seed=1)
    assert drawn.shape == (40, *x.shape)
    assert drawn.dtype == x.dtype
    assert torch.equal(drawn[:, mask], x[mask].expand(40, -1))
    model.support.check(drawn.flatten(0, 1))
    assert bool((drawn[:, ~mask].std(0) > 0).any())
    assert model.condition(hidden, mask, seed=1).shape == (1, *x.shape)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_seed_repeats_the_draws_and_leaves_the_generator(make: Maker) -> None:
    model, x, mask = start(make)
    with forked_rng(3):
        before = torch.get_rng_state()
        first, second = (model.condition(x, mask, 8, seed=4) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, second)
        assert not torch.equal(model.condition(x, mask, 8), model.condition(x, mask, 8))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_mask_broadcasts(make: Maker) -> None:
    model, x, mask = start(make)
    whole = mask[:1].expand(x.shape)
    expected = model.condition(x, whole, 3, seed=2)
    for small in (mask[0], mask[:1]):
        assert torch.equal(model.condition(x, small, 3, seed=2), expected)
    everything = torch.ones((), dtype=torch.bool)
    assert torch.equal(model.condition(x, everything, 2, seed=0), x.expand(2, *x.shape))
    assert model.condition(torch.full_like(x, math.nan), ~everything, 2, seed=0).isfinite().all()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_makes_no_sense_is_named(make: Maker) -> None:
    model, x, mask = start(make)
    with pytest.raises(ConfigError, match=r"^num: expected a positive integer, got 0"):
        model.condition(x, mask, 0)
    with pytest.raises(ConfigError, match=r"^mask: expected booleans.*mask\.bool\(\)"):
        model.condition(x, mask.float())
    with pytest.raises(ShapeError, match=r"^mask: expected a shape that broadcasts"):
        model.condition(x, torch.ones(7, *x.shape[1:], dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"^x: .*expects shape"):
        model.condition(x[0], mask)
    if not model.support.missing:
        with pytest.raises(DataError, match=r"^x: expected finite numbers"):
            model.condition(torch.full_like(x, math.nan), mask)
    if model.support.discrete:
        with pytest.raises(DataError, match=r"^x: expected (values of the|level numbers)"):
            model.condition(x + 0.4, mask)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_signatures_agree(make: Maker) -> None:
    parameters = inspect.signature(start(make)[0].condition).parameters
    assert list(parameters)[:3] == ["x", "mask", "num"]
    assert parameters["num"].default == 1
    assert parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["seed"].default is None
    extra = set(parameters) - {"x", "mask", "num", "seed"}
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in extra)
