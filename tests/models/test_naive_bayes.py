"""Naive Bayes: scikit-learn, enumeration, missing values and labels, Pyro's estimators, digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

import ppgen
from ppgen import datasets
from ppgen.datasets.split import Split
from ppgen.datasets.values import BINARY, Values
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.metrics import nll
from ppgen.models.naive_bayes import NaiveBayes
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean

TABLE = (2, 3, 4)


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def labelled(num: int = 200) -> tuple[Tensor, Tensor]:
    """Columns of levels 2, 3, 4 and a real one, whose distributions depend on the class."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(3, (num,), generator=generator)
    tables = [torch.rand(3, size, generator=generator).double() for size in TABLE]
    columns = [torch.multinomial(t[y], 1, generator=generator)[:, 0].double() for t in tables]
    real = 1.5 * y + torch.randn(num, generator=generator, dtype=torch.float64)
    return torch.stack([*columns, real], 1), y


def fitted(x: Tensor, y: Tensor | None, **options: Any) -> NaiveBayes:
    model = NaiveBayes(tuple(x.shape[1:]), **options).to(x.dtype)
    ppgen.fit(model, x if y is None else (x, y), progress=False, device="cpu")
    return model


def peers(x: Tensor, y: Tensor) -> list[tuple[dict[str, Any], Tensor, Any]]:
    from sklearn.naive_bayes import BernoulliNB, CategoricalNB, GaussianNB

    levels = x[:, 1:2].repeat(1, 2)
    levels[:, 1] = x[:, 1].roll(1)
    return [
        ({"columns": "bernoulli", "smoothing": 0.7}, (x[:, :3] > 0).double(), BernoulliNB(alpha=0.7)),
        ({"columns": (3, 3), "smoothing": 0.7}, levels, CategoricalNB(alpha=0.7)),
        ({"columns": "gaussian", "min_variance": 1e-12}, x[:, 3:] + 0.1, GaussianNB(var_smoothing=0)),
    ]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["bernoulli", "categorical", "gaussian"])
def test_labelled_fits_are_those_of_scikit_learn(which: int) -> None:
    x, y = labelled()
    options, columns, peer = peers(x, y)[which]
    model = fitted(columns, y, num_classes=3, **options)
    peer.fit(columns.numpy(), y.numpy())
    ours = model.log_joint(columns).detach()
    theirs = torch.tensor(peer.predict_joint_log_proba(columns.numpy()))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.classify(columns).detach(), theirs.softmax(-1), rtol=1e-6, atol=1e-6)
    assert model.predict(columns).tolist() == peer.predict(columns.numpy()).tolist()


def test_mixed_columns_are_the_product_of_their_kinds() -> None:
    x, y = labelled()
    model = fitted(x, y, num_classes=3, columns=(*TABLE, 0))
    parts = [fitted(x[:, d : d + 1], y, num_classes=3, columns=(size,)) for d, size in enumerate((*TABLE, 0))]
    share = model.class_probs.log()
    alone = torch.stack([part.log_joint(x[:, d : d + 1]) - share for d, part in enumerate(parts)])
    torch.testing.assert_close(model.log_joint(x), alone.sum(0) + share)
    assert model.support == Values("table", cardinalities=(*TABLE, 0), missing=True)


def test_probabilities_sum_to_one_with_and_without_labels() -> None:
    x, y = labelled()
    model = fitted(x[:, :3], y, num_classes=3, columns=TABLE)
    every = torch.tensor(list(itertools.product(*map(range, TABLE))), dtype=torch.float64)
    marginal = model.log_likelihood(every).value
    joint = [model.log_likelihood(every, torch.full((len(every),), k)).value for k in range(3)]
    assert float(marginal.exp().sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(torch.stack(joint).logsumexp(0), marginal)
    unknown = torch.full((len(every),), -1)
    assert torch.equal(model.log_likelihood(every, unknown).value, marginal)


def test_missing_coordinates_are_summed_out() -> None:
    x, y = labelled()
    model = fitted(x[:, :3], y, num_classes=3, columns=TABLE)
    partial = torch.tensor([[1.0, math.nan, 3.0]], dtype=torch.float64)
    filled = torch.tensor([[1.0, level, 3.0] for level in range(3)], dtype=torch.float64)
    torch.testing.assert_close(
        model.log_joint(partial)[0], model.log_joint(filled).logsumexp(0), rtol=1e-12, atol=1e-12
    )


def test_fits_leave_out_what_is_missing() -> None:
    x, y = labelled()
    x[:, 3] = x[:, 3].masked_fill(torch.arange(len(x)) % 3 == 0, math.nan)
    model = fitted(x, y, num_classes=3, columns=(*TABLE, 0))
    seen = ~x[:, 3].isnan()
    alone = fitted(x[seen, 3:], y[seen], num_classes=3)
    new = torch.zeros(1, 4, dtype=torch.float64)
    new[:, :3] = math.nan
    of_column = alone.log_joint(new[:, 3:]) - alone.class_probs.log()
    torch.testing.assert_close(model.log_joint(new) - model.class_probs.log(), of_column)


def test_conditional_draws_have_the_posterior() -> None:
    x, y = labelled()
    model = fitted(x[:, :3], y, num_classes=3, columns=TABLE)
    partial = torch.tensor([[1.0, math.nan, 3.0]], dtype=torch.float64)
    drawn = model.condition(partial, ~partial.isnan(), 20_000, seed=3)[:, 0]
    filled = torch.tensor([[1.0, level, 3.0] for level in range(3)], dtype=torch.float64)
    expected = model.log_likelihood(filled).value.detach().softmax(0)
    table = (drawn[:, 1:2] == torch.arange(3)).double()
    assert_mean(table, expected)
    of_class = model.condition(partial, ~partial.isnan(), 20_000, context=torch.tensor([2]), seed=3)[:, 0]
    given = model.log_joint(filled).detach()[:, 2].softmax(0)
    assert_mean((of_class[:, 1:2] == torch.arange(3)).double(), given)
    with pytest.raises(AssertionError):
        assert_mean(table, given)


def test_draws_of_a_class() -> None:
    x, y = labelled()
    model = fitted(x, y, num_classes=3, columns=(*TABLE, 0))
    draws = model.sample(5000, torch.full((5000,), 2), seed=1)
    assert_mean(draws[:, 3], float(x[y == 2, 3].mean()))
    with pytest.raises(AssertionError):
        assert_mean(model.sample(5000, seed=1)[:, 3], float(x[y == 2, 3].mean()))


@pytest.mark.parametrize("labels", ["none", "some", "all"])
def test_pyros_bounds_are_exact(labels: str) -> None:
    x, y = labelled(20)
    model = fitted(x, y, num_classes=3, columns=(*TABLE, 0))
    y[: {"none": 20, "some": 7, "all": 0}[labels]] = -1
    args = (x,) if labels == "none" else (x, y)
    exact = -model.log_likelihood(*args).value.sum()
    assert Trace_ELBO().loss(model.model, model.guide, *args) == pytest.approx(float(exact.detach()))
    for guide in (model.guide, lambda *_: None):
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model.model, guide, *args)
        torch.testing.assert_close(loss, exact)
        parameters = list(model.parameters())
        for ours, expected in zip(
            torch.autograd.grad(loss, parameters, retain_graph=True),
            torch.autograd.grad(exact, parameters, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, expected)


def test_labelled_fits_are_stationary_and_done_in_one_step() -> None:
    x, y = labelled()
    model = NaiveBayes((4,), num_classes=3, columns=(*TABLE, 0)).double()
    model.initialise(x, y)
    before = [p.detach().clone() for p in model.parameters()]
    loss = model.default_objective().loss(model.model, model.guide, x, y)
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-4, rtol=0)
    model.em_step(x, y)
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new, old)


def test_labelled_fits_end_by_themselves(tmp_path: Path) -> None:
    """After the step that changes nothing: the first on the data of the start, the second on others."""
    x, y = labelled()
    model = NaiveBayes((4,), num_classes=3, columns=(*TABLE, 0)).double()
    for rows, expected in ((200, 1), (150, 2)):
        result = ppgen.fit(model, (x[:rows], y[:rows]), progress=False, device="cpu")
        assert (result.stopped, result.epochs) == ("finished", expected)
        mean = model.log_likelihood(x[:rows], y[:rows]).value.mean()
        assert result.history[-1]["loss"] == pytest.approx(-float(mean.detach()))
    for _ in range(2):  # the second run finds the first one's end
        again = NaiveBayes((4,), num_classes=3, columns=(*TABLE, 0)).double()
        assert ppgen.fit(again, (x, y), progress=False, device="cpu", checkpoint=tmp_path).epochs == 1
    some = y.clone()
    some[30:] = -1
    assert ppgen.fit(model, (x, some), progress=False, device="cpu", epochs=5).epochs == 5


@pytest.mark.parametrize("known", [0, 30])
def test_em_never_lowers_the_likelihood(known: int) -> None:
    x, y = labelled()
    y[known:] = -1
    model = NaiveBayes((4,), num_classes=3, columns=(*TABLE, 0)).double()
    model.initialise(x, y)
    totals = []
    for _ in range(30):
        step = model.em_step(x, y)
        totals.append(float(step.log_likelihood + step.log_prior))
    assert all(b >= a - 1e-9 * abs(a) for a, b in itertools.pairwise(totals))
    assert totals[-1] > totals[0] + 1


def test_unlabelled_data_help_few_labels() -> None:
    x, y = labelled(2000)
    test_x, test_y = labelled(3000)
    few = y.clone()
    few[9:] = -1
    scores = []
    for data in ((x[:9], y[:9]), (x, few)):
        model = NaiveBayes((4,), num_classes=3, columns=(*TABLE, 0)).double()
        ppgen.fit(model, data, progress=False, device="cpu")
        scores.append(float((model.classify(test_x).argmax(-1) == test_y).double().mean()))
    assert scores[1] > scores[0]


def test_digits_are_classified_as_by_scikit_learn() -> None:
    digits = datasets.load("digits", dtype=torch.float64)
    train, test = digits.train.joined(digits.validation), digits.test
    assert train.y is not None
    assert test.y is not None
    found = {}
    largest = float(train.x.flatten(1).var(0, correction=0).max())
    views: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("bernoulli", lambda s: s.binarised(), {"columns": "bernoulli", "smoothing": 1.0}),
        ("gaussian", lambda s: Split(s.x, s.y), {"columns": "gaussian", "min_variance": 1e-9 * largest}),
        ("categorical", lambda s: s, {"columns": "categorical", "levels": 17}),
    )
    for name, view, options in views:
        model = NaiveBayes(digits.event_shape, num_classes=10, **options).double()
        model.initialise(view(train).x, train.y)
        labels = model.classify(view(test).x).argmax(-1)
        found[name] = round(float((labels == test.y).double().mean()), 3)
    assert found["bernoulli"] == 0.839
    assert found["gaussian"] == 0.814
    from sklearn.naive_bayes import CategoricalNB

    numbers = [(s.x.flatten(1) * 16).round().numpy() for s in (train, test)]
    peer = CategoricalNB(min_categories=17).fit(numbers[0], train.y)
    assert found["categorical"] == round(float(peer.score(numbers[1], test.y)), 3)


def test_fit_takes_the_labels_of_a_data_set() -> None:
    digits = datasets.load("digits").binarised()
    model = NaiveBayes.of_values(digits.event_shape, digits.values, num_classes=10)
    result = ppgen.fit(
        model, digits.train, validation=digits.validation, progress=False, device="cpu", epochs=3
    )
    assert result.ok
    assert digits.validation.y is not None
    expected = -model.log_likelihood(digits.validation.x, digits.validation.y).value.mean()
    assert result.best_loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(nll(model, digits.test).value) < 22.5  # independent pixels: 24.8


def test_bad_input() -> None:
    for options in ({"num_classes": 0}, {"num_classes": 2, "smoothing": -1.0}):
        with pytest.raises(ConfigError, match=list(options)[-1]):
            NaiveBayes((2,), **options)
    for columns, levels in (("cosine", None), ("categorical", None), ("gaussian", 3), ((1, 1), None)):
        with pytest.raises(ConfigError, match="columns|levels"):
            NaiveBayes((2,), num_classes=2, columns=columns, levels=levels)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="columns"):
        NaiveBayes((2,), num_classes=2, columns=(2, 2, 2))
    model = NaiveBayes((2,), num_classes=2, columns=(2, 3))
    x = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    with pytest.raises(DataError, match="labels 0 to 1"):
        model.initialise(x, torch.tensor([0, 2]))
    with pytest.raises(ShapeError, match="labels"):
        model.log_likelihood(x, torch.tensor([0.0, 1.0]))
    with pytest.raises(ShapeError, match=r"got 1; one label for all data is torch\.tensor\(\[label\]\)"):
        model.sample(2, 1)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="2 data"):
        model.log_likelihood(x, torch.tensor([0, 1, 1]))
    with pytest.raises(DataError, match="column 0"):
        model.classify(x + 1)
    with pytest.raises(DataError, match="labels, or neither"):
        ppgen.fit(model, (x, torch.tensor([0, 1])), validation=x, progress=False, device="cpu")
    with pytest.raises(CapabilityError):
        ppgen.models.BernoulliMixture((2,)).log_likelihood(x * 0, torch.tensor([0, 1]))


def test_a_class_without_data_is_told() -> None:
    model = NaiveBayes((2,), num_classes=3, columns="bernoulli")
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    with pytest.warns(UserWarning, match=r"classes \[2\] have no data"):
        result = ppgen.fit(
            model, Split(x, torch.tensor([0, 1]), BINARY), progress=False, device="cpu", epochs=2
        )
    assert not result.ok
    assert float(model.classify(x).detach()[:, 2].max()) < 1e-20
