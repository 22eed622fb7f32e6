"""The digits that come with scikit-learn: the split that published figures use."""

import math

import torch
from sklearn.datasets import load_digits

from ppgen import datasets
from ppgen.datasets import DataSet, grid


def independent_bernoulli_nll(train: torch.Tensor, test: torch.Tensor) -> float:
    """Mean test NLL in nats of one Laplace-smoothed Bernoulli a pixel."""
    p = (train.flatten(1).sum(0) + 1) / (len(train) + 2)
    flat = test.flatten(1)
    return -float((flat * p.log() + (1 - flat) * (1 - p).log()).sum(1).mean())


def test_rows_are_scikit_learns() -> None:
    """Each row once, in its role; x * 16 are the raw levels."""
    raw = load_digits()
    images, labels = torch.tensor(raw.data), torch.tensor(raw.target)
    data = datasets.load("digits")
    assert data.event_shape == (1, 8, 8)
    assert data.values == grid(17)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1293, 144, 360]
    assert data.test.y is not None
    assert torch.equal(data.test.x.flatten(1).double() * 16, images[-360:])
    assert torch.equal(data.test.y, labels[-360:])
    joined = data.train.joined(data.validation)
    assert joined.y is not None
    rows = torch.cat([joined.x.flatten(1).double() * 16, joined.y[:, None].double()], 1)
    expected = torch.cat([images[:1437], labels[:1437, None].double()], 1)
    assert torch.equal(rows.unique(dim=0, return_counts=True)[0], expected.unique(dim=0))
    assert len(rows) == len(expected)


def test_validation_is_class_balanced() -> None:
    """Each class has its tenth, up to one row."""
    data = datasets.load("digits")
    y, held = data.train.joined(data.validation).y, data.validation.y
    assert y is not None
    assert held is not None
    wanted = y.bincount() * 144 / 1437
    assert bool(((held.bincount() - wanted).abs() <= 1).all())


def test_the_seed_alone_decides() -> None:
    """The same seed gives the same rows whatever the global generator; another gives others."""

    def rows(data: DataSet) -> torch.Tensor:
        return data.validation.x

    state = torch.get_rng_state()
    first = datasets.load("digits", seed=1)
    assert torch.equal(state, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(99)
        second = datasets.load("digits", seed=1)
    assert torch.equal(rows(first), rows(second))
    assert not torch.equal(rows(first), rows(datasets.load("digits", seed=2)))
    assert torch.equal(first.test.x, datasets.load("digits", seed=2).test.x)


def test_known_baseline() -> None:
    """One Bernoulli a pixel, fitted to the 1437, has 24.80 nats on the test (x >= 8 of 16)."""
    data = datasets.load("digits").binarised()
    nll = independent_bernoulli_nll(data.train.joined(data.validation).x, data.test.x)
    assert math.isclose(nll, 24.80, abs_tol=0.02)
    # The twin: training rows as test, which the figure would not forgive.
    assert not math.isclose(independent_bernoulli_nll(data.train.x, data.train.x), 24.80, abs_tol=0.02)


def test_dtype() -> None:
    """float64 on request, on the same grid."""
    data = datasets.load("digits", dtype=torch.float64)
    assert data.train.x.dtype == torch.float64
    assert torch.equal(data.train.x.float(), datasets.load("digits").train.x)
