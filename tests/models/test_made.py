"""MADE: enumeration, orders, triangular Jacobians, completion, a leaked mask, digits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen import datasets
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.inference.svi import fit
from ppgen.models.made import MADE
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean, critical_z


def made(*args: Any, scale: float = 1.0, **options: Any) -> MADE:
    """A float64 model in evaluation mode with parameters away from their start."""
    with forked_rng(0), torch.no_grad():
        model = MADE(*args, **options).double().eval()
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def every(levels: int, *shape: int) -> Tensor:
    grid = torch.linspace(0, 1, levels, dtype=torch.float64).tolist()
    return torch.tensor(list(itertools.product(grid, repeat=math.prod(shape))), dtype=torch.float64).view(
        -1, *shape
    )


CASES: dict[str, dict[str, Any]] = {
    "binary": {"event_shape": (2, 2), "levels": 2},
    "binary, one coordinate": {"event_shape": (1,), "levels": 2},
    "three orders": {"event_shape": (1, 2, 3), "levels": 2, "num_orders": 3, "hidden": (7, 6)},
    "categorical": {"event_shape": (2, 2), "levels": 5, "num_orders": 2},
    "logistic mixture": {"event_shape": (2, 2), "levels": 6, "head": "logistic_mixture"},
    "conditional": {"event_shape": (2, 2), "levels": 3, "context_dim": 2},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_probabilities_sum_to_one(case: dict[str, Any]) -> None:
    model = made(**{"hidden": (8,), **case})
    x = every(case["levels"], *case["event_shape"])
    for label in range(model.context_dim or 1):
        context = torch.full((len(x),), label) if model.context_dim else None
        total = model.log_likelihood(x, context).value.exp().sum()
        assert float(total.detach()) == pytest.approx(1, abs=1e-9)


def test_a_leaked_mask_is_found() -> None:
    """The twin: one connection from a coordinate to itself, and the sum is off one."""
    model = made((2, 2), hidden=(8,))
    x = every(2, 2, 2)
    leaked: Any = model._networks[0].layers[0]
    leaked.mask[:, 3] = 1
    assert abs(float(model.log_likelihood(x).value.exp().sum().detach()) - 1) > 1e-3


@pytest.mark.parametrize("levels", [4, None], ids=["grid", "real"])
def test_outputs_see_only_what_comes_before_in_their_order(levels: int | None) -> None:
    """The Jacobian of the conditionals' parameters, by autograd, in each order; all earlier ones are seen."""
    model = made((5,), hidden=(20, 20), num_orders=3, levels=levels, activation="silu")
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for network, order in zip(model._networks, model.orders(), strict=True):
        jacobian = torch.autograd.functional.jacobian(network, x)
        seen = (jacobian.view(-1, 5, 5) != 0).any(0)[order][:, order]
        assert torch.equal(seen, torch.ones(5, 5).tril(-1).bool())


def test_orders_share_their_weights_and_are_averaged() -> None:
    one, several = made((4,), hidden=(6,)), made((4,), hidden=(6,), num_orders=3)
    assert one.num_parameters == several.num_parameters
    assert not torch.equal(several.orders()[0], several.orders()[1])
    x = every(2, 4)
    each = several.log_prob_by_order(x).exp()
    torch.testing.assert_close(each.sum(-1), torch.ones(3, dtype=torch.float64))
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(several.log_likelihood(x).value.exp(), each.mean(0))


def test_in_training_one_order_is_drawn_a_batch() -> None:
    model = made((4,), hidden=(6,), num_orders=3).train()
    x = every(2, 4)
    each = model.log_prob_by_order(x).detach()
    with forked_rng(1):
        drawn = [model.log_likelihood(x).value.detach() for _ in range(30)]
    found = {int((each - one).abs().sum(-1).argmin()) for one in drawn}
    assert found == {0, 1, 2}
    assert all(float((each - one).abs().sum(-1).min()) < 1e-9 for one in drawn)


def test_draws_follow_the_mixture_of_orders() -> None:
    model = made((3,), hidden=(8,), num_orders=2, levels=3)
    x = every(3, 3)
    mass = model.log_likelihood(x).value.exp().detach()
    draws = model.sample(20_000, seed=1)
    often = mass > 1e-3
    table = ((draws[:, None] - x[often]).abs().amax(-1) < 1e-9).double()
    assert_mean(table, mass[often])
    with pytest.raises(AssertionError):
        assert_mean(table, model.log_prob_by_order(x)[0].exp().detach()[often])


def test_real_data_have_a_density_that_integrates_to_one() -> None:
    model = made((2,), hidden=(8,), levels=None, num_components=2, scale=0.3)
    edges = torch.linspace(-40, 40, 801, dtype=torch.float64)
    points = torch.cartesian_prod(edges, edges)
    with torch.no_grad():
        density = model.log_likelihood(points).value.exp()
    assert float(density.sum()) * 0.1**2 == pytest.approx(1, abs=1e-6)


def test_completions_have_the_ratios_and_keep_what_is_known() -> None:
    model = made((4,), hidden=(8,), levels=2)
    x = torch.tensor([[1.0, 0.0, math.nan, math.nan], [0.0, math.nan, math.nan, math.nan]]).double()
    drawn = model.condition(x, ~x.isnan(), 5000, seed=3)
    assert drawn.shape == (5000, 2, 4)
    every_x = every(2, 4)
    mass = model.log_likelihood(every_x).value.exp().detach()
    for row, known in enumerate((2, 1)):
        fits = (every_x[:, :known] == x[row, :known]).all(-1)
        expected = mass[fits] / mass[fits].sum()
        table = (drawn[:, row, None] == every_x[fits]).all(-1).double()
        assert bool((table.sum(-1) == 1).all())
        assert_mean(table, expected)


@pytest.mark.parametrize("num_orders", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_a_few_missing_anywhere_have_the_ratios(num_orders: int, training: bool) -> None:
    """Given later coordinates, or in no order in particular: all values of what is missing are tried."""
    model = made((4,), hidden=(8,), levels=3, num_orders=num_orders, context_dim=2, dropout=0.5)
    x = torch.tensor([[0.5, 0.0, 1.0, 0.5], [1.0, 0.5, 0.5, 0.0]]).double()
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    labels = torch.tensor([0, 1])
    drawn = model.train(training).condition(x, mask, 5000, context=labels, seed=3)
    assert model.training == training
    every_x = every(3, 4)
    for row in range(2):
        mass = model.eval().log_likelihood(every_x, labels[row].expand(81)).value.exp().detach()
        fits = (every_x[:, mask[row]] == x[row, mask[row]]).all(-1)
        expected = mass[fits] / mass[fits].sum()
        table = (drawn[:, row, None] == every_x[fits]).all(-1).double()
        assert bool((table.sum(-1) == 1).all())
        often = expected > 5e-3
        assert_mean(table[:, often], expected[often])
        with pytest.raises(AssertionError):
            assert_mean(table[:, often], expected[often].roll(1))


def test_beginnings_and_other_parts_may_come_together() -> None:
    model = made((4,), hidden=(8,))
    x = every(2, 4)[:3]
    mask = torch.tensor([[True, True, False, False], [False, True, True, True], [False] * 4])
    drawn = model.condition(x, mask, 5, seed=0)
    assert drawn.shape == (5, 3, 4)
    assert torch.equal(drawn[:, mask], x[mask].expand(5, -1))


def test_what_is_no_beginning_and_too_much_to_try_is_refused() -> None:
    mask = torch.arange(14) > 12
    x = torch.zeros(2, 14, dtype=torch.float64)
    with pytest.raises(
        CapabilityError, match=r"coordinate 13 of the flat.*and 12, before.*row 0 has 2\*\*13 values"
    ):
        made((14,), hidden=(8,)).condition(x, mask)
    real = made((4,), hidden=(8,), levels=None)
    with pytest.raises(CapabilityError, match="row 0 has real values"):
        real.condition(torch.zeros(2, 4).double(), torch.tensor([True, False, True, False]))
    several = made((14,), hidden=(8,), num_orders=2)
    with pytest.raises(CapabilityError, match="averages 2 orders.*num_orders=1"):
        several.condition(x, mask)
    assert several.condition(x, torch.zeros(14, dtype=torch.bool), 3, seed=0).shape == (3, 2, 14)


def test_real_data_have_units() -> None:
    """After a look at the data, the density is that of standardised data over the scales."""
    model = made((3,), hidden=(8,), levels=None, num_orders=2, scale=0.3)
    loc, scale = torch.tensor([0.0, 5000.0, 1.0]).double(), torch.tensor([1.0, 1000.0, 1e-3]).double()
    with forked_rng(0):
        z = torch.randn(200, 3, dtype=torch.float64)
    z = (z - z.mean(0)) / z.std(0, correction=0)
    plain = model.log_likelihood(z).value
    drawn = model.sample(50, seed=1)
    x = loc + scale * z
    model.initialise(x)
    assert bool(model.initialised)
    torch.testing.assert_close(model.log_likelihood(x).value, plain - scale.log().sum())
    torch.testing.assert_close(model.sample(50, seed=1), loc + scale * drawn)
    model.initialise(torch.ones(5, 3, dtype=torch.float64))
    assert bool(torch.isfinite(model.log_likelihood(x).value).all())
    kept = made((3,), hidden=(8,), levels=None).condition(x, torch.tensor([True, False, False]), seed=0)
    assert torch.equal(kept[0, :, 0], x[:, 0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden": ()}, "hidden"),
        ({"num_orders": 0}, "num_orders"),
        ({"dropout": 1.0}, "dropout"),
        ({"activation": "sine"}, "activation"),
        ({"levels": None, "head": "categorical"}, "levels"),
        ({"head": "poisson"}, "head"),
        ({"levels": 2.5}, "levels"),
        ({"context_dim": -1}, "context_dim"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with forked_rng(0), pytest.raises(ConfigError, match=said):
        MADE((3,), **options)


def test_an_event_of_no_dimension_is_refused() -> None:
    with forked_rng(0), pytest.raises(ShapeError, match=r"event_shape.*\(1,\)"):
        MADE(())


def test_values_off_the_grid_are_refused() -> None:
    with pytest.raises(DataError, match="grid|binary"):
        made((2,), hidden=(4,)).log_prob_by_order(torch.full((1, 2), 0.3).double())
    with pytest.raises(DataError, match="grid|binary"):
        made((2,), hidden=(4,)).initialise(torch.full((1, 2), 0.3).double())
    with pytest.raises(DataError):
        made((2,), hidden=(4,)).condition(torch.full((1, 2), 0.3).double(), torch.ones(2, dtype=torch.bool))


def visible_sigmoid_network(train: Tensor, x: Tensor) -> Tensor:
    """Log-likelihoods of x, ``(N,)``: each coordinate by a logistic regression on those before it."""
    from sklearn.linear_model import LogisticRegression

    train, x = train.flatten(1).double(), x.flatten(1).double()
    shares = (train.sum(0) + 0.5) / (len(train) + 1)
    total = torch.zeros(len(x), dtype=torch.float64)
    for i, share in enumerate(shares):
        p = share.expand(len(x))
        if i and len(train[:, i].unique()) == 2:
            regression = LogisticRegression(C=0.3, max_iter=200)
            regression.fit(train[:, :i].numpy(), train[:, i].numpy())
            p = torch.from_numpy(regression.predict_proba(x[:, :i].numpy())[:, 1])
        total += torch.where(x[:, i] == 1, p, 1 - p).log()
    return total


@pytest.mark.slow
def test_digits_are_better_than_by_a_visible_sigmoid_network() -> None:
    data = datasets.load("digits").binarised()
    with forked_rng(0):
        model = MADE(data.event_shape, hidden=(500,), num_orders=8, dropout=0.2)
    fit(
        model,
        data.train,
        validation=data.validation,
        epochs=150,
        batch_size=64,
        learning_rate=3e-3,
        schedule="cosine",
        optimizer=lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.1),
        device="cpu",
        progress=False,
    )
    peer = visible_sigmoid_network(torch.cat([data.train.x, data.validation.x]), data.test.x)
    with torch.no_grad():
        better = model.log_likelihood(data.test.x).value.double() - peer
    assert float(better.mean()) > critical_z() * float(better.std()) / math.sqrt(len(better))
