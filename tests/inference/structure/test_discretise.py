"""Cutting columns: quantiles with ties, and Hartemink's merging against a slow version written anew."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, DataWarning
from ppgen.inference.structure.discretise import Discretiser, Hartemink, Quantile, cut, interval_names
from ppgen.inference.structure.reading import read_table

NO_OTHERS = torch.zeros(0, 0, dtype=torch.int64)


def numbers(num_rows: int, num_columns: int, seed: int = 0) -> Tensor:
    """Dependent columns."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, num_columns))
    for k in range(1, num_columns):
        x[:, k] += 0.8 * x[:, k - 1] ** 2
    return torch.from_numpy(x)


def mutual_information(x: Tensor, y: Tensor) -> float:
    """Of two columns of level numbers, in nats, from the joint frequencies of complete rows."""
    keep = (x >= 0) & (y >= 0)
    joint = pd.crosstab(x[keep].numpy(), y[keep].numpy()).to_numpy() / int(keep.sum())
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / independent[there])).sum())


def slow_hartemink(codes: list[Tensor], num_cut: int, start: int, end: int) -> list[Tensor]:
    """Level numbers after merging, each candidate tried and measured from the data."""
    codes = [column.clone() for column in codes]
    for size in range(start, end, -1):
        for k in range(num_cut):
            if int(codes[k].max()) + 1 < size:
                continue
            kept = []
            for level in range(int(codes[k].max())):
                merged = codes[k] - (codes[k] > level).long()
                others = [column for j, column in enumerate(codes) if j != k]
                kept.append((sum(mutual_information(merged, other) for other in others), merged))
            best = max(value for value, _ in kept)
            codes[k] = next(merged for value, merged in kept if value > best - 1e-12)
    return codes[:num_cut]


def test_quantiles_without_ties() -> None:
    """Each level has its share of the rows."""
    column = torch.randperm(300, generator=torch.Generator().manual_seed(0)).double()
    (points,) = Quantile(num_levels=4).cuts(column[:, None], NO_OTHERS)
    np.testing.assert_allclose(points.numpy(), np.quantile(column.numpy(), [0.25, 0.5, 0.75]))
    assert torch.bincount(cut(column, points)).tolist() == [75, 75, 75, 75]


def test_quantiles_with_ties() -> None:
    """Equal values share a level, levels without data are not made, missing cells have none."""
    column = torch.tensor([0.0] * 80 + [1.0] * 10 + [2.0] * 10 + [torch.nan] * 5, dtype=torch.float64)
    (points,) = Quantile(num_levels=3).cuts(column[:, None], NO_OTHERS)
    levels = cut(column, points)
    assert torch.bincount(levels[levels >= 0]).tolist() == [80, 20]
    assert levels[-5:].tolist() == [-1] * 5
    top_heavy = torch.tensor([0.0] + [1.0] * 99, dtype=torch.float64)
    (points,) = Quantile(num_levels=3).cuts(top_heavy[:, None], NO_OTHERS)
    assert len(points) == 0
    for seed in range(20):
        ties = torch.from_numpy(np.random.default_rng(seed).poisson(1.5, 57)).double()
        for size in (2, 3, 7):
            (points,) = Quantile(size).cuts(ties[:, None], NO_OTHERS)
            assert (torch.bincount(cut(ties, points), minlength=len(points) + 1) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_hartemink_as_defined(seed: int) -> None:
    """The same levels as a version that tries every merging on the data."""
    x = numbers(150, 4, seed)
    found = Hartemink(num_levels=3, initial_levels=9).cuts(x, NO_OTHERS)
    start = [cut(c, p) for c, p in zip(x.T, Quantile(9).cuts(x, NO_OTHERS), strict=True)]
    expected = slow_hartemink(start, 4, 9, 3)
    for column, points, levels in zip(x.T, found, expected, strict=True):
        assert torch.equal(cut(column, points), levels)


def test_hartemink_with_partners_and_gaps() -> None:
    """Categorical columns are partners; rows where one of a pair is missing do not count for it."""
    x = numbers(200, 3, 5)
    other = (x[:, 0] > 0.3).long() + (x[:, 2] > 1).long()
    x[::7, 1] = torch.nan
    other[::11] = -1
    found = Hartemink(num_levels=2, initial_levels=8).cuts(x, other[:, None])
    start = [cut(c, p) for c, p in zip(x.T, Quantile(8).cuts(x, NO_OTHERS), strict=True)]
    expected = slow_hartemink([*start, other], 3, 8, 2)
    alone = Hartemink(num_levels=2, initial_levels=8).cuts(x, torch.zeros(200, 0, dtype=torch.int64))
    for column, points, levels in zip(x.T, found, expected, strict=True):
        assert torch.equal(cut(column, points), levels)
    assert any(not torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def test_hartemink_keeps_more_information_than_quantiles() -> None:
    """What it is for."""
    x = numbers(800, 4, 1)

    def total(discretiser: Discretiser) -> float:
        codes = [cut(c, p) for c, p in zip(x.T, discretiser.cuts(x, NO_OTHERS), strict=True)]
        return sum(mutual_information(codes[i], codes[j]) for i in range(4) for j in range(i))

    assert total(Hartemink(3, 40)) > total(Quantile(3))


def test_names_of_levels() -> None:
    """Short where that tells them apart, and longer where it does not."""
    assert interval_names(torch.tensor([1.5, 3.0])) == ("<= 1.5", "1.5 to 3", "> 3")
    assert interval_names(torch.tensor([1.00001, 1.00002], dtype=torch.float64)) == (
        "<= 1.00001",
        "1.00001 to 1.00002",
        "> 1.00002",
    )


def test_reading_with_discretisation() -> None:
    """By name and by object, on continuous columns only; the cuts are in the names of the levels."""
    x = numbers(90, 3)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": ["u", "v", "w"] * 30})
    table = read_table(frame, discretise="quantile")
    assert table.is_discrete
    assert table.cardinalities == (3, 3, 3)
    assert torch.bincount(table.codes[:, 0]).tolist() == [30, 30, 30]
    assert table.variables[2].levels == ("u", "v", "w")
    assert read_table(frame, discretise=Quantile(5)).cardinalities == (5, 5, 3)
    assert read_table(frame, discretise="hartemink").cardinalities == (3, 3, 3)
    assert read_table(frame, discretise=Hartemink(2, 10)).cardinalities == (2, 2, 3)


def test_reading_says_where_levels_lack() -> None:
    """Ties leave fewer levels than asked for: said; one level: an error."""
    frame = pd.DataFrame({"tied": [0.0] * 50 + [1.0] * 25 + [2.0] * 25, "b": np.arange(100.0)})
    with pytest.warns(DataWarning, match="tied has too many equal values for 4 levels, and got 3"):
        table = read_table(frame, discretise=Quantile(4))
    assert table.cardinalities == (3, 4)
    frame["tied"] = [0.0] * 1 + [1.0] * 99
    with pytest.raises(DataError, match="tied has one level"):
        read_table(frame, discretise="quantile")


def test_gaps_become_a_level() -> None:
    """A continuous column with missing cells has a level for them once it is cut."""
    frame = pd.DataFrame({"a": np.arange(30.0), "b": np.arange(30.0) ** 2})
    frame.loc[3:7, "a"] = np.nan
    table = read_table(frame, discretise="quantile", missing="level")
    assert table.cardinalities == (4, 3)
    assert table.variables[0].levels is not None
    assert table.variables[0].levels[-1] == "missing"
    assert int((table.codes[:, 0] == 3).sum()) == 5


def test_bad_options() -> None:
    """Numbers of levels, and words, that make no sense."""
    for bad in (1, 2.5, True):
        with pytest.raises(ConfigError, match="num_levels: expected a whole number of at least 2"):
            Quantile(bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="initial_levels: expected at least num_levels=5, got 4"):
        Hartemink(5, 4)
    frame = pd.DataFrame(numbers(20, 2).numpy(), columns=["a", "b"])
    for how in ("equal", Quantile, 3):
        with pytest.raises(ConfigError, match="discretise: expected 'quantile' or 'hartemink'"):
            read_table(frame, discretise=how)  # type: ignore[arg-type]


def test_sachs_by_condition(data_dir: Path) -> None:
    """853 cells of 11 proteins from 60 levels to 3."""
    cells = pd.read_csv(data_dir / "sachs" / "sachs_continuous_9cond.tsv", sep="\t")
    cells = cells[cells["experiment"] == 1].drop(columns="experiment")
    table = read_table(cells, discretise="hartemink", continuous=True)
    assert (table.num_rows, table.num_variables) == (853, 11)
    assert table.cardinalities == (3,) * 11
