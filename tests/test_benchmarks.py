"""The benchmarks' clock and table; the figures themselves come from ``make bench``."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks.timing import interleaved


def _row(case: str, ratio: float, target: float | None) -> dict[str, Any]:
    return {
        "benchmark": "toy",
        "case": case,
        "ours_ms": ratio,
        "peer_ms": 1.0,
        "peer": "peer",
        "ratio": ratio,
        "target": target,
    }


def _plant(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = types.ModuleType(f"benchmarks.{name}")
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command, "names", lambda: [name])


def test_calls_are_timed_in_turn() -> None:
    calls: list[str] = []
    ours, peer = interleaved(lambda: calls.append("o"), lambda: calls.append("p"), repeats=3, inner=2)
    assert "".join(calls) == "oopp" * 4  # one round of warming up
    assert ours > 0
    assert peer > 0


def test_median_is_of_the_calls_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: now)
    ours, peer = interleaved(lambda: spend(0.002), lambda: spend(0.004), repeats=5, inner=3)
    assert ours == pytest.approx(2.0)
    assert peer == pytest.approx(4.0)


def test_table_and_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [_row("met", 0.9, 1.0), _row("free", 3.0, None)]
    _plant(monkeypatch, "toy", run=lambda: rows)
    assert command.main(["--json", str(tmp_path / "new" / "bench.json")]) == 0
    printed = capsys.readouterr().out
    assert "above target" not in printed
    written = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert written["rows"] == rows
    assert written["failures"] == {}
    assert written["machine"]["versions"]["torch"]


def test_missed_target_and_failure_end_with_status_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _plant(monkeypatch, "toy", run=lambda: [_row("slow", 1.1, 1.0)])
    assert command.main([]) == 1
    assert "above target" in capsys.readouterr().out

    def broken() -> list[dict[str, Any]]:
        raise RuntimeError("planted")

    _plant(monkeypatch, "toy", run=broken)
    assert command.main([]) == 1
    captured = capsys.readouterr()
    assert "could not run: toy" in captured.out
    assert "planted" in captured.err
