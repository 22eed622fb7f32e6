"""Reading tables: kinds of columns, levels, missing cells, and every form of bad input."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ppgen.errors import ConfigError, DataError, DataWarning, DeviceError
from ppgen.inference.structure.reading import read_table
from ppgen.inference.structure.table import Intervention, Table, Variable

PROTEINS = ("Raf", "Mek", "Plcg", "PIP2", "PIP3", "Erk", "Akt", "PKA", "PKC", "P38", "Jnk")


def frame(**columns: Any) -> pd.DataFrame:
    """Two ordinary columns, and those of the test."""
    return pd.DataFrame({"a": [0, 1, 1, 0], "b": [0.5, 1.5, -2.0, 3.0]} | columns)


def test_the_sachs_file(data_dir: Path) -> None:
    """5400 cells, 11 proteins of three levels, the clamped one named by its number."""
    table = read_table(data_dir / "sachs" / "sachs.interventional.txt", interventions="INT")
    assert table.names == PROTEINS
    assert table.values.shape == (5400, 11)
    assert table.values.dtype == torch.float64
    assert table.cardinalities == (3,) * 11
    assert all(variable.levels == (1, 2, 3) for variable in table.variables)
    assert table.intervention is Intervention.PERFECT
    blocks = table.clamped.reshape(9, 600, 11)
    assert bool((blocks == blocks[:, :1]).all())
    assert [[PROTEINS[i] for i in row.nonzero()[:, 0]] for row in blocks[:, 0]] == [
        ["PKA"], [], ["Akt"], ["PKC"], ["PIP2"], ["Mek"], [], ["PKC"], []
    ]  # fmt: skip
    raw = np.loadtxt(data_dir / "sachs" / "sachs.interventional.txt", skiprows=1)
    assert np.array_equal(table.values.numpy() + 1, raw[:, :11])
    assert read_table(str(data_dir / "sachs" / "sachs.interventional.txt")).num_variables == 12


@pytest.mark.parametrize(
    ("column", "levels", "codes"),
    [
        (["y", "x", "y", "z"], ("x", "y", "z"), [1, 0, 1, 2]),
        ([3, 1, 3, 7], (1, 3, 7), [1, 0, 1, 2]),
        (np.array([3, 1, 3, 7], dtype=np.uint8), (1, 3, 7), [1, 0, 1, 2]),
        (pd.array([3, 1, 3, 7], dtype="Int64"), (1, 3, 7), [1, 0, 1, 2]),
        (pd.Series([3, 1, 3, 7], dtype=object), (1, 3, 7), [1, 0, 1, 2]),
        ([True, False, True, True], (False, True), [1, 0, 1, 1]),
        (pd.array([True, False, True, True], dtype="boolean"), (False, True), [1, 0, 1, 1]),
        (pd.Series([True, False, True, True], dtype=object), (False, True), [1, 0, 1, 1]),
        (pd.Categorical(list("hlhm"), ["l", "m", "h"]), ("l", "m", "h"), [2, 0, 2, 1]),
        (pd.Categorical(list("hlhl"), ["l", "m", "h"]), ("l", "m", "h"), [2, 0, 2, 0]),
        (pd.Categorical([5, 2, 5, 2]), (2, 5), [1, 0, 1, 0]),
        (pd.Series(["u", "v", "u", "v"], dtype="string"), ("u", "v"), [0, 1, 0, 1]),
    ],
    ids=[
        "strings", "integers", "bytes", "nullable integers", "integer objects", "booleans", "nullable "
        "booleans",
        "boolean objects", "ordered categories", "absent category", "categories of numbers", "string dtype",
    ],
)  # fmt: skip
def test_categorical_columns(column: Any, levels: tuple[Any, ...], codes: list[int]) -> None:
    """Levels in order, as Python values; codes that count them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = read_table(frame(c=column))
    assert table.variables[2] == Variable("c", levels)
    assert [type(level) for level in table.variables[2].levels or ()] == [type(level) for level in levels]
    assert table.codes[:, 2].tolist() == codes


def test_which_numbers_are_continuous() -> None:
    """Floating point, and whole numbers with more than 10 distinct values; what is declared comes first."""
    rows = np.arange(22)
    data = pd.DataFrame({"few": rows % 10, "many": rows % 11, "real": rows % 2 / 1.0})
    table = read_table(data)
    assert table.cardinalities == (10, 0, 0)
    assert table.values[:, 1].tolist() == data["many"].tolist()
    assert read_table(data, continuous=["few"]).is_continuous
    assert read_table(data, continuous=True).is_continuous
    declared = read_table(data, levels={"many": range(11), "real": (1, 0)})
    assert declared.cardinalities == (10, 11, 2)
    assert declared.codes[:2, 2].tolist() == [1, 0]
    assert read_table(data.assign(s=["u", "v"] * 11), continuous=True).cardinalities == (0, 0, 0, 2)
    mixed = read_table(data, levels=range(11), continuous=["real"])
    assert mixed.cardinalities == (11, 11, 0)


def test_declared_levels_may_be_absent() -> None:
    """More levels than the data have are kept; a constant column is said."""
    with pytest.warns(DataWarning, match="c is constant"):
        table = read_table(frame(c=["low"] * 4), levels={"c": ("low", "high")})
    assert table.cardinalities == (2, 0, 2)


def test_arrays_and_tensors() -> None:
    """Columns are numbered or named; floating point is continuous; the device is kept."""
    table = read_table(np.array([[0, 1], [1, 0], [1, 1]]))
    assert table.names == ("x1", "x2")
    assert table.is_discrete
    tensor = torch.tensor([[0.5, 1.0], [1.5, 0.0], [2.5, 1.0]])
    named = read_table(tensor, names=["u", "v"])
    assert named.names == ("u", "v")
    assert named.is_continuous
    assert torch.equal(named.values, tensor.double())
    assert named.device == tensor.device
    assert read_table(tensor.requires_grad_(), levels={"x2": (0, 1)}).cardinalities == (0, 2)
    assert read_table([[0, 1], [1, 0]]).num_rows == 2


@pytest.mark.cuda
def test_devices() -> None:
    """A table goes where it is told, or stays where its data are."""
    data = torch.rand(5, 2, device="cuda")
    assert read_table(data).device.type == "cuda"
    table = read_table(frame(), device="cuda", interventions=np.zeros((4, 2), dtype=bool))
    assert {table.values.device.type, table.clamped.device.type} == {"cuda"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_no_such_device() -> None:
    """CUDA is not there."""
    with pytest.raises(DeviceError, match="finds no CUDA device"):
        read_table(frame(), device="cuda")


def test_a_table_passes_through() -> None:
    """As it is, with other interventions where given, and never with columns settled anew."""
    table = read_table(frame(), interventions=["a", "", "", ""])
    assert read_table(table) is table
    other = read_table(table, interventions=["b", "", "", "a"])
    assert other.clamped.tolist() == [[False, True], [False, False], [False, False], [True, False]]
    assert other.values is table.values
    with pytest.raises(ConfigError, match="levels, discretise: data is a Table already"):
        read_table(table, levels={"a": (0, 1)}, discretise="quantile")
    with pytest.raises(ConfigError, match="the table has no column 'INT'.*give labels or a mask"):
        read_table(table, interventions="INT")
    variables = (Variable("a", (0, 1)), Variable("b"))
    broken = Table(variables, torch.tensor([[2.0, 1.0]]), torch.zeros(1, 2).bool())
    with pytest.raises(DataError, match="a of the Table has values other than its level numbers 0 to 1"):
        read_table(broken)
    broken.values[0] = torch.tensor([1.0, torch.nan])
    with pytest.raises(DataError, match="1 cells that are not finite"):
        read_table(broken)


def with_gaps() -> pd.DataFrame:
    """Gaps in a column of strings, one of whole numbers, and one of real numbers."""
    return pd.DataFrame(
        {
            "s": ["u", "v", None, "u", "v", "u"],
            "w": [0, 1, 1, np.nan, np.nan, 0],
            "r": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5],
        }
    )


def test_missing_cells_are_an_error() -> None:
    """Counted by column, with the ways out."""
    with pytest.raises(
        DataError, match="3 missing cells, 1 in s, 2 in w; fill them, use missing='drop'.*or missing='level'"
    ):
        read_table(with_gaps())


def test_missing_cells_dropped() -> None:
    """Complete rows stay, with the interventions in them."""
    data = with_gaps().assign(INT=["r", "s", "w", "", "", "s"])
    with pytest.warns(DataWarning, match=r"3 of 6 rows have missing cells \(in s, w\) and were dropped"):
        table = read_table(data, interventions="INT", missing="drop")
    assert table.values[:, 2].tolist() == [0.5, 1.5, 5.5]
    assert table.cardinalities == (2, 2, 0)
    assert table.clamped.tolist() == [[False, False, True], [True, False, False], [True, False, False]]
    data.loc[[0, 1], "s"] = None
    with pytest.raises(DataError, match="1 of 6 rows are complete, expected two or more"):
        read_table(data, interventions="INT", missing="drop")


def test_missing_cells_as_a_level() -> None:
    """The last one, in the columns that have gaps; not for continuous ones."""
    table = read_table(with_gaps(), missing="level")
    assert [v.levels for v in table.variables] == [("u", "v", "missing"), (0, 1, "missing"), None]
    assert table.codes[:, 0].tolist() == [0, 1, 2, 0, 1, 0]
    assert table.codes[:, 1].tolist() == [0, 1, 1, 2, 2, 0]
    data = with_gaps()
    data.loc[0, "r"] = np.nan
    with pytest.raises(DataError, match="1 missing cells in r, which is continuous"):
        read_table(data, missing="level")
    with pytest.raises(DataError, match="s has missing cells and a level called 'missing'"):
        read_table(with_gaps().replace({"s": {"v": "missing"}}), missing="level")
    with pytest.raises(ConfigError, match="missing: expected 'error', 'drop' or 'level', got 'ignore'"):
        read_table(with_gaps(), missing="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frame().iloc[:0], "expected two rows or more, got 0"),
        (frame().iloc[:1], "expected two rows or more, got 1"),
        (frame()[["a"]], "expected two variables or more, got a"),
        (pd.DataFrame(), "expected two rows or more"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), "columns of one name: 'a'"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=[1, "1"]), "columns of one name: '1'"),
        (frame(c=["x"] * 4), "c has one level, 'x'"),
        (frame(c=[7] * 4), "c has one level, 7"),
        (frame(c=[0.5, np.inf, -np.inf, 1.0]), "2 infinite cells in c"),
        (frame(c=[np.nan] * 4), "every cell of c is missing"),
        (frame(c=[None] * 4), "every cell of c is missing"),
        (frame(c=["x", 1, "y", 2.5]), "c holds values of type mixed"),
        (frame(c=pd.date_range("2020", periods=4)), "c holds values of type datetime"),
        (frame(c=[1j, 2j, 3j, 4j]), "c holds complex numbers"),
        (np.zeros(5), r"array of shape \(N, n\), got ndarray of shape \(5,\)"),
        (np.zeros((5, 2, 2)), r"got ndarray of shape \(5, 2, 2\)"),
        ("gone.csv", "no file at .*gone.csv"),
    ],
    ids=[
        "no rows", "one row", "one column", "nothing", "one name twice", "one name as text", "one string",
        "one number", "infinite", "all NaN", "all None", "mixed", "dates", "complex", "vector", "cube",
        "no file",
    ],
)  # fmt: skip
def test_bad_data(data: Any, message: str) -> None:
    """What is wrong is named, with its column."""
    with pytest.raises(DataError, match=message):
        read_table(data)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"levels": {"a": (1, 2)}}, DataError, "a has the value 0, which is none of its levels 1, 2"),
        ({"levels": {"a": ("0", "1")}}, DataError, "a has the value 0, 1, which is none of .* '0', '1'"),
        ({"levels": {"b": (0.5, 1.5)}}, DataError, "b has the value -2.0, 3.0, which"),
        ({"levels": {"x": (0, 1)}}, ConfigError, "levels: no variable is called 'x'; known are a, b"),
        ({"levels": {"a": ()}}, ConfigError, "levels: expected one or more different values for a"),
        ({"levels": {"a": (0, 1, 0)}}, ConfigError, "levels: expected one or more different values for a"),
        ({"levels": {"a": (0, 1, None)}}, ConfigError, "none of them missing"),
        ({"levels": {"a": ([0], [1])}}, ConfigError, "levels that are no plain values"),
        ({"levels": "ab"}, ConfigError, "got a text; put it in a list"),
        ({"continuous": "a"}, ConfigError, "got a text; put it in a list"),
        ({"continuous": ["x"]}, ConfigError, "continuous: no variable is called 'x'"),
        ({"continuous": ["a"], "levels": {"a": (0, 1)}}, ConfigError, "a cannot be both"),
        ({"continuous": ["c"]}, DataError, "c was declared continuous, but holds"),
        ({"names": ["u", "v", "w"]}, ConfigError, "names: these are for arrays"),
        ({"device": "gpu"}, DeviceError, "device: expected 'auto', 'cpu', 'cuda'"),
    ],
    ids=[
        "unseen", "text for numbers", "unseen numbers", "levels of nobody", "no levels", "level twice",
        "missing level", "lists as levels", "levels text", "continuous text", "continuous nobody", "both",
        "text declared continuous", "names of a frame", "device",
    ],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Arguments that do not fit the data, or each other."""
    with pytest.raises(kind, match=message):
        read_table(frame(c=list("uvuv")), **options)


def test_names_of_arrays() -> None:
    """As many as columns."""
    with pytest.raises(ConfigError, match="names: expected 2, one for each column, got 1"):
        read_table(np.eye(2), names=["u"])


def test_constant_columns_are_said() -> None:
    """A continuous one can be used, and will disappoint."""
    with pytest.warns(DataWarning, match="c is constant, so that nothing can be learnt"):
        read_table(frame(c=[0.1] * 4))


def test_data_are_left_alone() -> None:
    """Neither frames nor arrays are written to, and later changes do not reach the table."""
    data = frame(INT=["a", "", "", "b"])
    before = data.copy()
    table = read_table(data, interventions="INT")
    pd.testing.assert_frame_equal(data, before)
    data.loc[:, "b"] = 0.0
    assert table.values[:, 1].tolist() == before["b"].tolist()
    array = torch.tensor([[0.5, 1.0], [1.5, 2.0]], dtype=torch.float64)
    copied = read_table(array)
    array.zero_()
    assert copied.values.abs().sum() > 0
