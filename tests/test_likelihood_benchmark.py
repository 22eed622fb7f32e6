"""The likelihood benchmark's registry, file and table; the figures come from running it by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.likelihood import __main__ as command
from benchmarks.likelihood import registry
from benchmarks.likelihood.registry import Entry, Figure, Run


def _plant(monkeypatch: pytest.MonkeyPatch, value: float, runs: list[Run]) -> None:
    def measure(run: Run) -> Figure:
        runs.append(run)
        return Figure(value, 0.1, "exact", 12, 3.0, "a toy")

    toy = Entry("toy", "Toy, no data", "nats", 2.0, measure)
    monkeypatch.setattr(command, "entries", lambda: {"toy": toy})


def test_a_run_is_kept_once_for_each_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "new" / "likelihood.json", list[Run]()
    options = ["--device", "cpu", "--results", str(file)]
    _plant(monkeypatch, 1.5, runs)
    assert command.main(["toy", *options]) == 0
    _plant(monkeypatch, 2.5, runs)
    assert command.main(["toy", *options, "--size", "full", "--seconds", "7", "--seed", "3"]) == 1
    _plant(monkeypatch, 1.25, runs)
    assert command.main(["toy", *options]) == 0
    assert [(run.size, run.seed, run.seconds) for run in runs[:2]] == [("reduced", 0, None), ("full", 3, 7.0)]
    rows = json.loads(file.read_text())
    assert [(row["size"], row["value"]) for row in rows] == [("full", 2.5), ("reduced", 1.25)]
    assert {"date", "device", "seed", "seconds", "train_seconds", "kind", "unit"} <= set(rows[0])
    capsys.readouterr()
    assert command.main(options) == 0
    assert "| Toy, no data | reduced | 1.25 ± 0.10 nats | ≤ 2.0 |" in capsys.readouterr().out


def test_entries_are_found_in_the_modules_of_the_package() -> None:
    found = registry.entries()
    assert {"made-digits", "made-static-mnist", "pixel-cnn-static-mnist"} <= set(found)
    assert all(name == item.name and item.title for name, item in found.items())


def test_kept_results_are_of_entries() -> None:
    known = registry.entries()
    for row in registry.read():
        assert row["name"] in known
        assert row["size"] in ("full", "reduced")
