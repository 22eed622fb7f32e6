"""The user's own arrays: what they are taken for, how they are split, what is refused."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ppgen import datasets
from ppgen.datasets import BINARY, REAL, DataSet, Split, Values, as_split, from_arrays, grid
from ppgen.datasets.declare import column_warnings
from ppgen.datasets.partition import partition
from ppgen.errors import ConfigError, DataError, DataWarning, ShapeError


def normal(num: int = 40, dims: int = 3) -> Any:
    """A well-behaved table, float64."""
    return np.random.default_rng(0).normal(size=(num, dims))


def everything(data: DataSet) -> torch.Tensor:
    """All rows of all splits."""
    return torch.cat([data.train.x, data.validation.x, data.test.x])


# -- what the numbers are taken for -------------------------------------------------------------

LEVELS_0_16 = np.arange(40).reshape(20, 2) % 17


@pytest.mark.parametrize(
    ("x", "options", "values", "scale"),
    [
        (normal(), {}, REAL, 1),
        (normal().astype(np.float32), {}, REAL, 1),
        (normal().astype(">f8"), {}, REAL, 1),
        (normal()[::-1], {}, REAL, 1),
        (normal() > 0, {}, BINARY, 1),
        ((normal() > 0).astype(np.int64), {}, BINARY, 1),
        ((normal() > 0).astype(np.uint8), {}, BINARY, 1),
        ((normal() > 0).astype(np.float64), {"levels": 2}, BINARY, 1),
        (np.arange(200, dtype=np.uint8).reshape(100, 2), {}, grid(256), 255),
        (LEVELS_0_16, {"levels": 17}, grid(17), 16),
        (LEVELS_0_16.astype(np.uint8), {"levels": 17}, grid(17), 16),
        (LEVELS_0_16.astype(np.float32), {"levels": 17}, grid(17), 16),
        (LEVELS_0_16 / 16, {"levels": 17}, grid(17), 1),
        (np.random.default_rng(0).integers(0, 9, (40, 2)), {"levels": None}, REAL, 1),
        (np.random.default_rng(0).integers(-900, 900, (40, 2)).astype(np.int16), {}, REAL, 1),
    ],
)
def test_values_by_type_and_declaration(x: Any, options: dict[str, Any], values: Values, scale: int) -> None:
    """No row is lost, none is changed beyond its scale, and nothing is warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = datasets.from_arrays(x, **options)
    assert data.values == values
    assert data.train.x.dtype == torch.float32
    expected = torch.tensor(np.asarray(x, dtype=np.float64) / scale).float()
    torch.testing.assert_close(everything(data).unique(dim=0), expected.unique(dim=0), rtol=1e-6, atol=1e-7)
    assert len(everything(data)) == len(x)


@pytest.mark.parametrize("as_type", [np.asarray, torch.tensor, pd.DataFrame, lambda a: a.tolist()])
def test_containers_agree(as_type: Any) -> None:
    """Array, tensor, frame and list of one table are one data set."""
    expected = datasets.from_arrays(normal(), seed=3)
    data = datasets.from_arrays(as_type(normal()), seed=3)
    assert torch.equal(data.train.x, expected.train.x)
    assert torch.equal(data.test.x, expected.test.x)


def test_bytes_are_said_to_be_images() -> None:
    """The description says what was done; channels go to the front."""
    grey = np.random.default_rng(0).integers(0, 256, (30, 8, 6)).astype(np.uint8)
    data = datasets.from_arrays(grey)
    assert data.event_shape == (1, 8, 6)
    assert "Bytes divided by 255: grid of 256 levels. Grey images: a channel" in data.description
    colour = np.random.default_rng(0).integers(0, 256, (30, 8, 6, 3)).astype(np.uint8)
    data = datasets.from_arrays(colour)
    assert data.event_shape == (3, 8, 6)
    first = torch.tensor(colour / 255).float().permute(0, 3, 1, 2)
    assert torch.equal(everything(data).unique(dim=0), first.unique(dim=0))
    assert datasets.from_arrays(colour, event_shape=(144,)).event_shape == (144,)


def test_dtype_option() -> None:
    """float64 on request, exactly."""
    data = datasets.from_arrays(normal(), dtype=torch.float64)
    assert torch.equal(everything(data).unique(dim=0), torch.tensor(normal()).unique(dim=0))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (LEVELS_0_16, {}, r"whole numbers 0 \.\. 16 taken as real.*declare levels=17"),
        (LEVELS_0_16.astype(np.float32), {}, "declare levels=17"),
        (LEVELS_0_16.astype(np.uint8), {}, "taken as 256 levels, but the largest is 16.*declare levels=17"),
        (np.arange(40).reshape(20, 2) ** 5 + 2**40, {}, "integers up to 1099601851975 are rounded"),
        (np.c_[normal(), np.ones(40)], {}, r"column\(s\) 3 are constant"),
        (np.c_[normal(), normal() @ [1, 0, -2]], {}, r"column\(s\) 3 \(from 0, 2\) are linear in others"),
        (normal(5, 8), {}, "5 rows for 8 columns"),
    ],
)
def test_warnings(x: Any, options: dict[str, Any], message: str) -> None:
    """Data that will disappoint are named, and taken all the same."""
    with pytest.warns(DataWarning, match=message):
        data = datasets.from_arrays(x, **options)
    assert len(everything(data)) == len(x)


def test_warnings_name_a_frames_columns() -> None:
    """Constant and collinear columns by their names."""
    frame = pd.DataFrame(normal(), columns=["height", "weight", "age"])
    frame["unit"] = 1.0
    frame["sum"] = frame["height"] + frame["age"] - 7
    with pytest.warns(DataWarning) as caught:
        datasets.from_arrays(frame)
    text = " ".join(str(w.message) for w in caught)
    assert "column(s) unit are constant" in text
    assert "column(s) sum (from height, age) are linear in others" in text


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_collinearity_does_not_depend_on_units(scale: float) -> None:
    """Squares of such numbers are infinite or 0."""
    x = torch.tensor(normal())
    assert column_warnings(scale * x, None, "x") == []
    x = scale * torch.cat([x, x[:, :1] - x[:, 2:]], 1)
    (found,) = column_warnings(x, None, "x")
    assert "column(s) 3 (from 0, 2) are linear in others" in found


def test_almost_collinear_is_not_collinear() -> None:
    """A thousandth of noise is enough to be a column of its own."""
    x = normal(200)
    x = np.c_[x, x[:, 0] + 1e-3 * np.random.default_rng(1).normal(size=200)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.from_arrays(x)


# -- splits -------------------------------------------------------------------------------------


@given(st.integers(5, 200), st.integers(1, 6), st.integers(0, 2**31))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_partition_is_a_balanced_partition(num: int, num_classes: int, seed: int) -> None:
    """Every row once; in the first block every class has its share up to one row."""
    labels = torch.randint(num_classes, (num,), generator=torch.Generator().manual_seed(seed))
    size = num // 5
    blocks = partition(num, [size, size], seed, labels)
    assert torch.equal(torch.cat(blocks).sort().values, torch.arange(num))
    assert [len(b) for b in blocks[:2]] == [size, size]
    got = labels[blocks[0]].bincount(minlength=num_classes)
    wanted = labels.bincount(minlength=num_classes) * size / num
    assert bool(((got - wanted).abs() <= 1 + 1e-9).all())


def test_the_seed_alone_decides() -> None:
    """Same seed, same rows; the global generators are neither read nor moved."""
    before, numpy_before = torch.get_rng_state(), repr(np.random.get_state(legacy=False))
    first = datasets.from_arrays(normal(), seed=7)
    assert torch.equal(before, torch.get_rng_state())
    assert repr(np.random.get_state(legacy=False)) == numpy_before
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        second = datasets.from_arrays(normal(), seed=7)
    assert torch.equal(first.train.x, second.train.x)
    assert torch.equal(first.test.x, second.test.x)
    assert not torch.equal(first.test.x, datasets.from_arrays(normal(), seed=8).test.x)


def test_shares_counts_and_given_splits() -> None:
    """A share is a fraction, a number of rows, or the rows themselves."""
    x, y = normal(), np.arange(40) % 2
    data = datasets.from_arrays(x, y, validation=0.25, test=5)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [25, 10, 5]
    assert "25 train, 10 validation, 5 test (class-balanced, seed 0)" in data.description
    given = datasets.from_arrays(x[:30], y[:30], test=(x[30:], y[30:]))
    assert torch.equal(given.test.x, torch.tensor(x[30:]).float())
    assert given.test.y is not None
    assert given.test.y.tolist() == y[30:].tolist()
    assert [len(given.train), len(given.validation)] == [27, 3]
    whole = datasets.from_arrays(x[:20], validation=x[20:30], test=x[30:])
    assert torch.equal(whole.train.x, torch.tensor(x[:20]).float())
    assert "(as given)" in whole.description
    assert [s.name for s in (whole.train, whole.test)] == ["data train", "data test"]


def test_rows_and_labels_stay_together() -> None:
    """After the split each row still has its own label; text is encoded in sorted order."""
    x = np.arange(60.0).reshape(30, 2) + 0.5
    names = np.array(["ant", "bee", "cow"])[np.arange(30) % 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second column is the first plus one
        data = datasets.from_arrays(x, names)
    for split in (data.train, data.validation, data.test):
        assert split.y is not None
        assert split.y.dtype == torch.int64
        assert torch.equal(((split.x[:, 0] - 0.5) / 2).long() % 3, split.y)
    assert "Labels: ant = 0, bee = 1, cow = 2." in data.description


def test_one_encoding_for_all_splits() -> None:
    """A class that only the test has moves no other class's number."""
    data = datasets.from_arrays(
        normal(20), ["b", "c"] * 10, test=(normal(2), ["a", "c"]), validation=(normal(2), ["b", "b"])
    )
    assert data.test.y is not None
    assert data.validation.y is not None
    assert (data.test.y.tolist(), data.validation.y.tolist()) == ([0, 2], [1, 1])


@pytest.mark.parametrize(
    ("y", "dtype", "shape"),
    [
        (np.arange(40) % 3, torch.int64, ()),
        (np.arange(40) % 2 == 0, torch.int64, ()),
        ((np.arange(40) % 3)[:, None], torch.int64, ()),
        (np.linspace(0, 1, 40), torch.float32, ()),
        (np.eye(40, 4), torch.float32, (4,)),
        (pd.Series(["u", "v"] * 20, dtype="category"), torch.int64, ()),
        (pd.Series(range(40)), torch.int64, ()),
    ],
)
def test_labels_and_contexts(y: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Classes are int64, features floating point."""
    label = datasets.from_arrays(normal(), y).train.y
    assert label is not None
    assert label.dtype == dtype
    assert label.shape[1:] == shape


# -- refused ------------------------------------------------------------------------------------


def holed() -> Any:
    """A table with three bad cells in two columns."""
    x = normal()
    x[4, 1] = x[9, 1] = math.nan
    x[7, 2] = math.inf
    return x


FRAME = pd.DataFrame({"size": [1.0, 2.0, 3.0], "name": ["a", "b", "c"], "day": pd.to_datetime(["2020"] * 3)})


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (holed(), None, {}, DataError, r"got 3 NaN .* of 120, in column\(s\) 1, 2 and row\(s\) 4, 7, 9"),
        (
            pd.DataFrame(holed(), columns=["a", "b", "c"]),
            None,
            {},
            DataError,
            r"in column\(s\) b, c and row",
        ),
        (pd.DataFrame({"n": pd.array([1, None, 3], "Int64")}), None, {}, DataError, r"column\(s\) n"),
        (np.zeros((0, 3)), None, {}, DataError, r"expected at least one datum, got shape \(0, 3\)"),
        (np.zeros((3, 0)), None, {}, DataError, "expected at least one datum"),
        (normal(), np.zeros(39), {}, ShapeError, "x has 40 rows and y has 39"),
        (normal(), np.full(40, np.nan), {}, DataError, "y: expected finite numbers, got 40"),
        (normal(), ["a", None] * 20, {}, DataError, "y: expected a label a row, 20 missing"),
        (normal()[:, 0], None, {}, ShapeError, r"use x\[:, None\] for one column"),
        (3.0, None, {}, ShapeError, r"expected an array of shape \(N, \*event_shape\)"),
        (FRAME, None, {}, DataError, r"other types in name \(.*\), day \(datetime"),
        (np.array([["a", "b"]]), None, {}, DataError, "expected numbers, got an array of dtype <U1"),
        (np.array([[1.0, "b"]], object), None, {}, DataError, r"object array with str in column\(s\) 1"),
        (np.zeros((3, 2), complex), None, {}, DataError, "dtype complex128"),
        (np.zeros(3, [("u", float), ("v", int)]), None, {}, DataError, "structured array with fields u, v"),
        (np.full((3, 1), 2**64 - 1, np.uint64), None, {}, DataError, "do not fit 64 bits with a sign"),
        (torch.zeros(3, 2, dtype=torch.complex64), None, {}, DataError, "dense tensor of real numbers"),
        (torch.eye(3).to_sparse(), None, {}, DataError, "dense tensor of real numbers"),
        ([[1.0], [1.0, 2.0]], None, {}, DataError, "rows differ in length"),
        (normal(), None, {"levels": 17}, DataError, "levels=17 means whole numbers 0 .. 16.*fractional"),
        (LEVELS_0_16, None, {"levels": 16}, DataError, "got whole numbers from 0 to 16"),
        (LEVELS_0_16 / 16, None, {"levels": 16}, DataError, "grid of 16 levels .* are not"),
        (normal(), None, {"levels": 1}, ConfigError, "levels: expected an integer of 2 or more"),
        (normal(), None, {"levels": "many"}, ConfigError, "levels: expected"),
        (normal(), None, {"event_shape": (2, 2)}, ShapeError, "has 4 coordinates, a datum of data has 3"),
        (normal(), None, {"dtype": torch.int64}, ConfigError, "dtype: expected a floating-point type"),
        (normal(), None, {"validation": 0.0}, ConfigError, r"validation: expected a fraction in \(0, 1\)"),
        (normal(), None, {"test": 1.5}, ConfigError, r"test: expected a fraction in \(0, 1\)"),
        (normal(), None, {"test": None}, ConfigError, "test: expected a fraction"),
        (normal(), None, {"test": True}, ConfigError, "test: expected a fraction"),
        (normal(2, 1), None, {}, DataError, "2 rows cannot give blocks of"),
        (normal(), None, {"test": 40}, DataError, "40 rows cannot give blocks of"),
        (normal(), None, {"test": normal(4, 2)}, ShapeError, r"one shape of datum, got \(3,\) and \(2,\)"),
        (normal(), None, {"test": normal(4) > 0}, DataError, "one type of numbers"),
        (normal(), np.zeros(40), {"test": normal(4)}, DataError, "1 of 2 splits have no labels"),
        (normal(), None, {"test": (normal(4),)}, DataError, "a tuple means .x, y., got one of length 1"),
    ],
)
def test_refused(x: Any, y: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    """Each message says which argument, what came, and what to do."""
    with pytest.raises(error, match=message):
        datasets.from_arrays(x, y, **options)


# -- torch data sets ----------------------------------------------------------------------------


class Squares(Dataset[Any]):
    """Map-style: ten items made by a function of the number."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Endless(IterableDataset[Any]):
    """Iterable, without an end."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        number = 0
        while True:
            yield torch.tensor([number + 0.5, number % 3])
            number += 1


def test_torch_data_sets() -> None:
    """Items x, (x,) and (x, y), as tensors, arrays and numbers, become one table."""
    plain = datasets.as_split(Squares(lambda i: torch.tensor([i + 0.5, i])))
    assert torch.equal(plain.x[:, 0], torch.arange(10) + 0.5)
    assert plain.y is None
    single = datasets.as_split(Squares(lambda i: (np.array([i + 0.5, i]),)))
    assert torch.equal(single.x, plain.x)
    pair = datasets.as_split(Squares(lambda i: (torch.tensor([i + 0.5, i]), i % 2)))
    assert pair.y is not None
    assert torch.equal(pair.y, torch.arange(10) % 2)
    images = datasets.from_arrays(Squares(lambda i: (np.full((4, 4), 20 * i, np.uint8), i % 2)))
    assert images.event_shape == (1, 4, 4)
    assert images.values == grid(256)
    first = datasets.as_split(Endless(), max_items=5)
    assert first.x[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert len(datasets.as_split(Squares(lambda i: torch.tensor([i + 0.5])), max_items=3)) == 3


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (Endless(), {}, ConfigError, "max_items: Endless is iterable and may never end"),
        (Endless(), {"max_items": 0}, ConfigError, "max_items: expected a positive integer"),
        (Squares(lambda i: {"x": 1, "y": 2}), {}, DataError, "dicts with keys x, y"),
        (Squares(lambda i: (1, 2, 3)), {}, DataError, "gives tuples of length 3"),
        (Squares(lambda i: torch.zeros(i + 1)), {}, ShapeError, "expected items of one shape"),
        (TensorDataset(torch.zeros(0, 2)), {}, DataError, "TensorDataset has none"),
    ],
)
def test_torch_data_sets_refused(
    data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message names the class and what its items are."""
    with pytest.raises(error, match=message):
        datasets.as_split(data, **options)


# -- as_split -----------------------------------------------------------------------------------


def test_as_split_takes_what_holds_data() -> None:
    """Split and DataSet are used as they are; all else is read, shapes kept."""
    digits = datasets.load("digits")
    assert datasets.as_split(digits.test) is digits.test
    assert datasets.as_split(digits) is digits.train
    x, y = torch.tensor(normal()), torch.arange(40)
    for data in ((x, y), TensorDataset(x, y)):
        split = datasets.as_split(data, name="mine")
        assert isinstance(split, Split)
        assert split.x.dtype == torch.float64
        assert split.y is not None
        assert torch.equal(split.y, y)
        assert split.name == "mine"
    assert datasets.as_split(normal()).x.dtype == torch.float32
    assert datasets.as_split(normal(), dtype=torch.float64).x.dtype == torch.float64
    assert datasets.as_split(pd.DataFrame(normal())).event_shape == (3,)
    images = torch.randint(256, (9, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert datasets.as_split(images).event_shape == (4, 4)
    assert datasets.as_split(images).values == grid(256)


def test_as_split_takes_the_callers_word_for_floats() -> None:
    """Values that the type does not tell are given, and checked."""
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert datasets.as_split(x, values=BINARY).values == BINARY
    assert datasets.as_split(torch.tensor(LEVELS_0_16 / 16), values=grid(17)).values == grid(17)
    assert datasets.as_split(x.to(torch.uint8) * 255, values=BINARY).values == grid(256)
    with pytest.raises(DataError, match="levels=2 means whole numbers"):
        datasets.as_split(torch.tensor([[0.3, 2.0]]), values=BINARY)


def test_as_split_spares_the_callers_tensor() -> None:
    """Gradients are not followed into the data, and the data are not written to."""
    x = torch.tensor(normal(), requires_grad=True)
    split = datasets.as_split(x)
    assert not split.x.requires_grad
    assert torch.equal(split.x, x.detach())


class Torn(Dataset[Any]):
    """Its fourth item cannot be read."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            raise ValueError("truncated image")
        return torch.zeros(2)


class TornStream(IterableDataset[Any]):
    """It breaks off after two items."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield torch.zeros(2)
        yield torch.zeros(2)
        raise ConnectionError("lost")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (Torn(), {}, "item 3 of Torn could not be read .ValueError: truncated image"),
        (TornStream(), {"max_items": 5}, "item 2 of TornStream could not be read .ConnectionError: lost"),
        (DataLoader(Torn()), {}, r"got a torch DataLoader; pass its dataset \(loader.dataset\)"),
    ],
)
def test_an_item_that_cannot_be_read_is_named(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(data, **options)
    with pytest.raises(DataError, match=message):
        as_split(data, **options)


def test_items_before_a_torn_one_can_be_taken() -> None:
    assert len(as_split(Torn(), max_items=3)) == 3


def test_an_object_array_names_the_type_that_is_no_number() -> None:
    mixed = np.array([[1, 2.0], [3, "four"]], dtype=object)
    with pytest.raises(DataError, match=r"object array with str in column\(s\) 1"):
        as_split(mixed)


def test_a_table_whose_columns_are_all_constant() -> None:
    with pytest.warns(DataWarning, match=r"column\(s\) 0, 1, 2 are constant"):
        found = from_arrays(np.full((20, 3), 0.5))
    assert len(found.train) == 16, "a warning: the data are there"
