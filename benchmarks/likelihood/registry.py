"""Entries of the likelihood benchmark, what they return, and the file that keeps it."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import pkgutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Size = Literal["full", "reduced"]
RESULTS = Path(__file__).resolve().parents[1] / "results" / "likelihood.json"
_NOT_ENTRIES = {"__main__", "registry", "training"}


@dataclass(frozen=True)
class Run:
    """What a call asks of an entry.

    Attributes:
        size: ``full`` for a GPU, ``reduced`` for the better part of an hour of one core.
        device: where the model is trained.
        seed: of initial weights and training.
        seconds: time limit on training where it is other than the entry's own.
    """

    size: Size
    device: str
    seed: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Figure:
    """What an entry found.

    Attributes:
        value: the mean over the test data, in the entry's unit.
        std_error: its standard error over test data.
        kind: exact, bound or estimate, as :class:`ppgen.Kind` says.
        num_parameters: of the model.
        train_seconds: spent in training.
        note: what was trained, in a line.
    """

    value: float
    std_error: float
    kind: str
    num_parameters: int
    train_seconds: float
    note: str


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        name: as on the command line.
        title: the model and the data, as the table shows them.
        unit: of the figure: ``nats``, ``bits/dim``, ``nats/character``.
        target: the figure is to be at or below this; ``None`` for none.
        measure: trains and evaluates.
    """

    name: str
    title: str
    unit: str
    target: float | None
    measure: Callable[[Run], Figure]


_ENTRIES: dict[str, Entry] = {}


def entry(
    name: str, *, title: str, unit: str, target: float | None
) -> Callable[[Callable[[Run], Figure]], Callable[[Run], Figure]]:
    """Register a function as the entry of this name; see :class:`Entry`."""

    def register(measure: Callable[[Run], Figure]) -> Callable[[Run], Figure]:
        _ENTRIES[name] = Entry(name, title, unit, target, measure)
        return measure

    return register


def entries() -> dict[str, Entry]:
    """All entries by name, from every module of this package."""
    package = importlib.import_module("benchmarks.likelihood")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in _NOT_ENTRIES:
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_ENTRIES.items()))


def data_dir() -> Path:
    """Folder of the public data sets: ``PPGEN_DATA``, else ``../shared/data`` beside the repository.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("PPGEN_DATA", beside))
    if not folder.is_dir():
        raise FileNotFoundError(f"no data sets at {folder}; set PPGEN_DATA to their folder")
    return folder


def measure(item: Entry, run: Run) -> dict[str, Any]:
    """Run an entry; its line of the results."""
    start = time.perf_counter()
    figure = item.measure(run)
    device = torch.cuda.get_device_name(run.device) if run.device.startswith("cuda") else "CPU"
    return {
        "name": item.name,
        "title": item.title,
        "size": run.size,
        "value": round(figure.value, 4),
        "std_error": round(figure.std_error, 4),
        "unit": item.unit,
        "kind": figure.kind,
        "target": item.target,
        "num_parameters": figure.num_parameters,
        "note": figure.note,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seed": run.seed,
        "train_seconds": round(figure.train_seconds, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The results kept so far, by name and size."""
    return list(json.loads(path.read_text())) if path.is_file() else []


def keep(result: dict[str, Any], path: Path = RESULTS) -> None:
    """Add a result in the place of an earlier one of the same entry and size."""
    key = (result["name"], result["size"])
    others = [row for row in read(path) if (row["name"], row["size"]) != key]
    rows = sorted([*others, result], key=lambda row: (row["name"], row["size"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".json.new")
    beside.write_text(json.dumps(rows, indent=2) + "\n")
    beside.replace(path)


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| model and data | size | test | target | training | device |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        sign = {"lower_bound": "≥ ", "upper_bound": "≤ "}.get(row["kind"], "")
        target = "" if row["target"] is None else f"≤ {row['target']}"
        lines.append(
            f"| {row['title']} | {row['size']} | {sign}{row['value']:.2f} ± {row['std_error']:.2f} "
            f"{row['unit']} | {target} | {row['train_seconds'] / 60:.1f} min | {row['device']} |"
        )
    return "\n".join(lines)
