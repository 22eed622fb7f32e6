"""Sequences of different lengths, and data with missing values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppgen import datasets
from ppgen.errors import DataError, ShapeError


def test_sequences_are_padded_at_their_end() -> None:
    items = [np.arange(n + 1, dtype=float)[:, None] + 0.5 for n in range(2, 22)]
    items[3][1] = np.nan
    data = datasets.sequences(items, y=list(range(20)), seed=1)
    assert data.event_shape == (22, 1)
    assert data.values == datasets.Values("real", missing=True)
    for split in (data.train, data.validation, data.test):
        assert split.y is not None
        for x, n in zip(split.x[..., 0], split.y.tolist(), strict=True):
            expected = torch.as_tensor(items[n][:, 0], dtype=torch.float32)
            torch.testing.assert_close(x[: n + 3], expected, equal_nan=True)
            assert bool(x[n + 3 :].isnan().all())


@pytest.mark.parametrize(
    ("dtype", "levels", "values"),
    [
        (bool, "auto", datasets.BINARY),
        (np.uint8, "auto", datasets.BINARY),
        (np.int64, 4, datasets.grid(4)),
        (np.int64, "count", datasets.Values("count")),
    ],
    ids=["bool", "bytes", "levels", "counts"],
)
def test_values_are_declared_once_for_all(dtype: type, levels: int, values: datasets.Values) -> None:
    data = datasets.sequences(
        [np.array([0, 1, 1]).astype(dtype), np.array([1]).astype(dtype)] * 5, levels=levels
    )
    assert values.within(data.values)
    assert data.values.missing
    top = 1 / 3 if levels == 4 else 1.0
    assert data.train.x.nan_to_num(0.0).unique().tolist() == pytest.approx([0, top])


def test_missing_values_of_arrays() -> None:
    x = np.array([[0.0, np.nan], [2.0, 1.0]] * 10)
    for levels, kind in ((None, "real"), (3, "grid"), ("count", "count")):
        data = datasets.from_arrays(x, levels=levels, missing=True)  # type: ignore[arg-type]
        assert (data.values.kind, data.values.missing) == (kind, True)
        assert int(data.train.x.isnan().sum()) + int(data.test.x.isnan().sum()) > 0
    assert "25.00% missing" in data.description
    with pytest.raises(DataError, match="NaN"):
        datasets.from_arrays(x)
    with pytest.raises(DataError, match="infinite"):
        datasets.from_arrays(np.where(x == 2, np.inf, x), missing=True)
    binary = datasets.from_arrays(x, levels=None, missing=True).binarised(1.5)
    assert torch.equal(
        binary.train.x.isnan(), datasets.from_arrays(x, levels=None, missing=True).train.x.isnan()
    )
    split = datasets.as_split(
        torch.tensor([[1.0, torch.nan]]), values=datasets.Values("binary", missing=True)
    )
    assert split.values.missing


def test_features_of_each_step_are_padded_with_their_sequence() -> None:
    rng = np.random.default_rng(0)
    items = [rng.integers(0, 3, n) for n in (4, 2, 5, 3, 1, 5)]
    features = [np.stack([item, item + 10.0], 1) for item in items]
    data = datasets.sequences(items, features, levels=3, validation=1, test=2)
    assert data.test.y is not None
    assert data.test.y.shape == (2, 5, 2)
    for split in (data.train, data.validation, data.test):
        assert split.y is not None
        torch.testing.assert_close(split.y[..., 0], 2 * split.x, equal_nan=True)
        torch.testing.assert_close(split.y[..., 1], 2 * split.x + 10, equal_nan=True)
    with pytest.raises(ShapeError, match="features of 6 sequences, got 5"):
        datasets.sequences(items, features[:-1], levels=3)
    with pytest.raises(ShapeError, match=r"each of the 2 steps of sequence 1, shape \(2, 2\), got \(3, 2\)"):
        datasets.sequences(items, [features[0], features[3], *features[2:]], levels=3)
    with pytest.raises(ShapeError, match=r"of sequence 5, shape \(5, 2\), got \(5, 1\)"):
        datasets.sequences(items, [*features[:-1], features[-1][:, :1]], levels=3)


def test_bad_sequences() -> None:
    good = [np.zeros((3, 2))] * 4
    with pytest.raises(DataError, match="at least one sequence"):
        datasets.sequences([])
    with pytest.raises(ShapeError, match="with one D"):
        datasets.sequences([*good, np.zeros((3, 1))])
    with pytest.raises(ShapeError, match="longest sequence has 3 steps, got 2"):
        datasets.sequences(good, num_steps=2)
    with pytest.raises(DataError, match="sequence 4 of shape .* holds no number"):
        datasets.sequences([*good, np.zeros((0, 2))])
    with pytest.raises(DataError, match="sequence 4 ends in a step of nothing but NaN"):
        datasets.sequences([*good, np.array([[0.0, 1.0], [np.nan, np.nan]])])
    with pytest.raises(DataError, match="levels=2"):
        datasets.sequences([np.array([0, 5])] * 4, levels=2)
