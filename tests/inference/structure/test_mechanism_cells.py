"""The table behind a posterior, from what users have of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ppgen.errors import ConfigError, DataError
from ppgen.inference.structure.learning import learn
from ppgen.inference.structure.mechanism_cells import table_behind
from ppgen.inference.structure.posterior import GraphPosterior
from ppgen.inference.structure.reading import read_table


def _frame(num: int = 30) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    a = generator.choice(["hi", "lo"], num)
    return pd.DataFrame({"a": a, "b": generator.integers(0, 3, num), "c": generator.normal(size=num)})


def _learnt(data: Any, **options: Any) -> GraphPosterior:
    return learn(data, progress=False, **options)


def test_the_rows_themselves_are_known_in_every_form(tmp_path: Path) -> None:
    frame = _frame().assign(set=["b", ""] * 15)
    posterior = _learnt(frame, interventions="set")
    path = tmp_path / "rows.csv"
    frame.to_csv(path, index=False)
    for data in (frame, frame[["c", "b", "a"]], str(path), path):
        assert table_behind(posterior, data, None) is posterior.table
    again = table_behind(posterior, frame, "set")
    assert again is not posterior.table
    assert again.variables == read_table(frame, interventions="set").variables
    array = frame[["b", "c"]].to_numpy()
    of_array = _learnt(array, names=["b", "c"], levels={"b": [0, 1, 2]})
    assert table_behind(of_array, array, None) is of_array.table
    assert table_behind(of_array, torch.tensor(array), None) is of_array.table


@pytest.mark.filterwarnings("ignore::ppgen.errors.DataWarning")
def test_dropped_rows_gaps_and_cut_columns_are_no_difference() -> None:
    frame = _frame()
    frame["c"] = frame["c"].mask(frame.index == 3)
    for options in (
        {"missing": "drop"},
        {"missing": "drop", "discretise": "quantile"},
        {"missing": "level", "discretise": "quantile"},
    ):
        posterior = _learnt(frame, **options)
        assert table_behind(posterior, frame, None) is posterior.table


def test_other_rows_are_refused() -> None:
    frame = _frame()
    posterior = _learnt(frame)
    with pytest.raises(DataError, match="the 30 rows that the posterior was learnt from, got 10"):
        table_behind(posterior, frame[:10], None)
    with pytest.raises(DataError, match="no column 'b', 'c'"):
        table_behind(posterior, frame[["a"]], None)
    for name, values in (("a", "lo"), ("a", "new"), ("b", 1), ("c", frame["c"] + 1)):
        with pytest.raises(DataError, match=f"table: {name} has other values"):
            table_behind(posterior, frame.assign(**{name: values}), None)
    other = read_table(frame[:10])
    assert table_behind(posterior, other, None) is other


def test_what_is_read_anew_has_the_levels_of_the_posterior() -> None:
    frame = _frame().assign(set=["b", ""] * 15)
    posterior = _learnt(frame, interventions="set", discretise="quantile")
    with pytest.raises(ConfigError, match="table: c differs in name or levels"):
        table_behind(posterior, frame, "set")
