"""The survey's table: what a number says, and that JSON and CSV give it back."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch

from ppgen.contract import Estimate, Kind
from ppgen.errors import CheckpointError
from ppgen.report.table import MEASURES, Number, Row, read_table, to_csv, to_json, write_atomically

ROWS = [
    Row(
        "a",
        "Family A",
        "family",
        "grid of 17 levels",
        "lower_bound",
        notes={"kid": "too few, alas; really"},
        bits_per_dim=Number(2.5, 0.02, "upper_bound"),
        fid=Number(-1.0, 0.0, "estimate"),
        train_seconds=1.5,
        epochs=3,
        latent_dim=16,
        warnings=("one", "two"),
        reading='A "line", with commas.',
    ),
    Row("b", "Family B", "family", "binary", "implicit", status="failed", reason="ValueError: no\nsuch"),
]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Number(2.7368, 0.0213, "upper_bound"), "≤ 2.737 ± 0.021"),
        (Number(2.7368, 0.0213, "lower_bound"), "≥ 2.737 ± 0.021"),
        (Number(18.512, 0.25, "exact"), "18.51 ± 0.25"),
        (Number(4.087462, 0.0, "exact"), "4.087"),
        (Number(1234.5, 32.0, "estimate"), "1234 ± 32"),
        (Number(-0.0234, 0.18, "estimate"), "−0.02 ± 0.18"),
        (Number(-0.001, 0.18, "estimate"), "0.00 ± 0.18"),
        (Number(0.1234567, 1e-7, "estimate"), "0.1235 ± 0.0000"),
        (Number(1.0, math.inf, "estimate"), "1.000"),
    ],
)
def test_a_number_shows_its_kind_and_its_error(number: Number, text: str) -> None:
    assert str(number) == text


def test_a_number_comes_from_an_estimate() -> None:
    estimate = Estimate(torch.tensor(-3.0), Kind.LOWER_BOUND, torch.tensor(0.5)).affine(-2.0)
    assert Number.of(estimate) == Number(6.0, 1.0, "upper_bound")


def test_json_gives_the_rows_back(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(to_json(ROWS, {"seed": 3, "odd": math.nan}))
    rows, environment = read_table(path)
    assert rows == ROWS
    assert environment == {"seed": 3, "odd": None}
    assert json.loads(path.read_text())["schema"] == 1


def test_csv_holds_the_same_figures() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert [line["name"] for line in lines] == ["a", "b"]
    assert float(lines[0]["bits_per_dim"]) == 2.5
    assert float(lines[0]["bits_per_dim_std_error"]) == 0.02
    assert lines[0]["bits_per_dim_kind"] == "upper_bound"
    assert lines[0]["reading"] == 'A "line", with commas.'
    assert lines[0]["warnings"] == "one; two"
    assert lines[1]["reason"] == "ValueError: no\nsuch"
    assert all(lines[1][name] == "" for name in MEASURES)


def test_a_newer_or_damaged_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"schema": 99, "rows": []}')
    with pytest.raises(CheckpointError, match="update ppgen"):
        read_table(path)
    path.write_text('{"schema": 1, "rows": [')
    with pytest.raises(CheckpointError, match="not a table"):
        read_table(path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    write_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
