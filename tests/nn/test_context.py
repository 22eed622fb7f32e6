"""Context as features: labels become one-hot rows, features stay, and what fits neither is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppgen.errors import DataError, ShapeError
from ppgen.nn.context import context_features, with_context

LIKE = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_become_one_hot_rows(dtype: torch.dtype) -> None:
    features = context_features(torch.tensor([2, 0], dtype=dtype), 3, LIKE)
    expected = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(features, expected)
    assert features.dtype == torch.float64


def test_one_label_becomes_one_row() -> None:
    assert torch.equal(context_features(torch.tensor(1), 3, LIKE), torch.tensor([0.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_labels_are_labels_however_many_there_are(count: int) -> None:
    """As many labels as classes are labels still, not one row of features."""
    labels = torch.arange(count) % 3
    features = context_features(labels, 3, LIKE)
    assert torch.equal(features, torch.eye(3, dtype=torch.float64)[labels])


@pytest.mark.parametrize("lead", [(4,), (2, 4)])
def test_features_are_taken_as_they_are(lead: tuple[int, ...]) -> None:
    rows = torch.arange(float(torch.Size(lead).numel() * 3)).reshape(*lead, 3)
    assert torch.equal(context_features(rows, 3, LIKE), rows.double())
    # Whole numbers in rows are features too.
    assert torch.equal(context_features(rows.long(), 3, LIKE), rows.double())


def test_dtype_and_device_are_those_of_the_other_tensor() -> None:
    like = torch.zeros(2, dtype=torch.float32, device="meta")
    features = context_features(torch.tensor([0, 1]), 3, like)
    assert (features.dtype, features.device.type) == (torch.float32, "meta")


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_refused(label: int) -> None:
    with pytest.raises(DataError, match=r"context: expected labels in 0\.\.2, got a range of"):
        context_features(torch.tensor([0, label]), 3, LIKE)


@pytest.mark.parametrize("context", [torch.zeros(4, 2), torch.zeros(4)])
def test_features_of_another_width_are_refused(context: Tensor) -> None:
    with pytest.raises(
        ShapeError, match=r"context: expected integer labels \(N,\) or features \(N, 3\), got"
    ):
        context_features(context, 3, LIKE)


def test_features_are_appended() -> None:
    h = torch.arange(8.0).reshape(4, 2)
    out = with_context(h, torch.tensor([0, 1, 1, 0]), 2)
    assert torch.equal(out, torch.cat([h, torch.eye(2)[[0, 1, 1, 0]]], -1))


def test_features_are_repeated_over_more_leading_dimensions() -> None:
    h = torch.arange(40.0).reshape(5, 4, 2)
    labels = torch.tensor([0, 2, 1, 0])
    out = with_context(h, labels, 3)
    assert out.shape == (5, 4, 5)
    assert torch.equal(out[3], with_context(h[3], labels, 3))


def test_without_context_nothing_changes() -> None:
    h = torch.ones(4, 2)
    assert with_context(h, None, 3) is h
    assert with_context(h, torch.tensor([0, 0, 0, 0]), 0) is h
