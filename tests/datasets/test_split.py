"""Split and DataSet: rows, labels and values stay together."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppgen.datasets import BINARY, REAL, DataSet, Split, grid
from ppgen.errors import ConfigError, DataError, ShapeError


def numbered(num: int, start: int = 0) -> Split:
    """Rows whose coordinates and label tell their number."""
    rows = torch.arange(start, start + num)
    return Split(rows[:, None] * torch.tensor([1.0, -1.0]), rows, name="numbered")


@given(st.integers(1, 30), st.integers(0, 2**31))
@settings(derandomize=True, deadline=None)
def test_take_keeps_rows_and_labels_together(num: int, seed: int) -> None:
    """After any choice of rows, x still tells y."""
    order = torch.randint(num, (num,), generator=torch.Generator().manual_seed(seed))
    taken = numbered(num).take(order)
    assert taken.y is not None
    assert torch.equal(taken.x[:, 0].long(), taken.y)
    assert torch.equal(taken.y, order)


@given(st.integers(1, 30), st.integers(1, 30))
@settings(derandomize=True, deadline=None)
def test_joined_undoes_a_cut(first: int, second: int) -> None:
    """Two halves joined are the whole."""
    whole = numbered(first + second)
    joined = whole.take(slice(0, first)).joined(whole.take(slice(first, None)))
    assert torch.equal(joined.x, whole.x)
    assert joined.y is not None
    assert whole.y is not None
    assert torch.equal(joined.y, whole.y)


def test_sizes_shapes_and_moves() -> None:
    """Figures of a split, and the same data elsewhere."""
    split = Split(torch.zeros(3, 1, 8, 8), torch.arange(3), BINARY)
    assert (len(split), split.event_shape, split.num_dims) == (3, (1, 8, 8), 64)
    moved = split.to("meta")
    assert moved.y is not None
    assert (moved.x.device.type, moved.y.device.type, moved.values) == ("meta", "meta", BINARY)


def test_binarised_cuts_at_the_threshold() -> None:
    """The threshold itself becomes 1, and the values say binary."""
    split = Split(torch.tensor([[0.0, 0.25, 0.5, 1.0]]), values=grid(5)).binarised()
    assert split.x.tolist() == [[0, 0, 1, 1]]
    assert split.values == BINARY


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.zeros(4), None, ShapeError, r"expected x of shape \(N, \*event_shape\).*x\[:, None\]"),
        (torch.zeros(0, 4), None, DataError, "expected at least one datum"),
        (torch.zeros(4, 2), torch.zeros(3), ShapeError, "x has 4 rows and y has 3"),
        (torch.full((4, 2), math.nan), None, DataError, "8 NaN or infinite of 8"),
    ],
)
def test_bad_splits(x: torch.Tensor, y: torch.Tensor | None, error: type[Exception], message: str) -> None:
    """Each message says what was expected and what came."""
    with pytest.raises(error, match=message):
        Split(x, y)


def test_joined_refuses_other_data() -> None:
    """Values and shapes must agree."""
    with pytest.raises(ShapeError, match="expected real values"):
        numbered(3).joined(Split(torch.zeros(2, 3)))


def test_data_set_needs_splits_of_one_kind() -> None:
    """Values and event shape are those of the training split; another is named."""
    train = Split(torch.zeros(4, 2), values=BINARY)
    data = DataSet("d", train, train, train)
    assert data.event_shape == (2,)
    assert data.values == BINARY
    with pytest.raises(ConfigError, match="odd one has"):
        DataSet("d", train, train, Split(torch.zeros(4, 2), values=REAL, name="odd one"))


def test_binarised_data_set() -> None:
    """All splits, the name and the description change; the truth no longer holds."""
    split = Split(torch.tensor([[0.0, 0.5, 1.0]]), values=grid(3))
    truth = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    data = DataSet("d", split, split, split, "Three levels.", truth).binarised(0.75)
    assert data.name == "d-binary"
    assert data.description == "Three levels. Binarised at x >= 0.75."
    assert data.truth is None
    assert data.test.x.tolist() == [[0, 0, 1]]


def test_types_and_labels_that_no_model_can_take_are_refused() -> None:
    with pytest.raises(DataError, match=r"floating-point type, got torch.int64; use x.float\(\)"):
        Split(torch.ones(3, 2, dtype=torch.int64), values=BINARY)
    with pytest.raises(DataError, match=r"at least one datum, got shape \(3, 0\)"):
        Split(torch.ones(3, 0))
    with pytest.raises(DataError, match="finite y, got 1 NaN or infinite of 3"):
        Split(torch.ones(3, 2), torch.tensor([0.0, torch.nan, 1.0]))
