"""Run the benchmarks: ``python -m benchmarks [NAME ...] [--json FILE]``.

A benchmark is a module of this package with ``run() -> list[dict]``; each row holds
``benchmark, case, ours_ms, peer_ms, peer, ratio, target``. The command prints them as one
table and ends with status 1 if a benchmark could not run or a ratio is above its target.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import pkgutil
import platform
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import benchmarks

_PACKAGES = (
    "ppgen",
    "torch",
    "pyro-ppl",
    "scikit-learn",
    "zuko",
    "hmmlearn",
    "numpy",
    "numpyro",
    "blackjax",
    "jax",
    "jaxlib",
)
_HEADS = ("benchmark", "case", "ours ms", "peer ms", "peer", "ratio", "target", "")


def names() -> list[str]:
    """The benchmarks of this package."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in found if name not in {"__main__", "timing", "likelihood"})


def measure(name: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of one benchmark, and the traceback of what went wrong or an empty string."""
    try:
        return list(importlib.import_module(f"benchmarks.{name}").run()), ""
    except Exception:  # one failing benchmark must not stop the others
        return [], traceback.format_exc()


def missed(row: dict[str, Any]) -> bool:
    """Whether a row has a target and is slower than that."""
    return row["target"] is not None and row["ratio"] > row["target"]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    def ratio(value: float | None) -> str:
        return f"1/{1 / value:.0f}" if value and value < 0.1 else number(value, 2)

    cells = [_HEADS] + [
        (
            str(row["benchmark"]),
            str(row["case"]),
            number(row["ours_ms"], 3),
            number(row["peer_ms"], 3),
            str(row["peer"]),
            ratio(row["ratio"]),
            ratio(row["target"]),
            "above target" if missed(row) else "",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADS))]
    left = {0, 1, 4, 7}

    def aligned(line: Sequence[str]) -> str:
        pairs = enumerate(zip(line, widths, strict=True))
        return "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in pairs).rstrip()

    return "\n".join(map(aligned, cells))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed against peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join(names())}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(names()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")

    rows: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for name in arguments.names or names():
        print(f"{name} ...", file=sys.stderr, flush=True)
        measured, failure = measure(name)
        rows += measured
        if failure:
            failures[name] = failure
            print(failure, file=sys.stderr)
    print(table(rows))
    if failures:
        print(f"could not run: {', '.join(failures)}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine(), "rows": rows, "failures": failures}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
        print(f"written to {arguments.json}")
    return int(bool(failures) or any(map(missed, rows)))


if __name__ == "__main__":
    sys.exit(main())
