"""``python -m benchmarks.likelihood NAME ...``: train, evaluate, keep the result, show the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.likelihood.registry import RESULTS, Run, Size, entries, keep, measure, read, table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entries named; without a name, show what is kept."""
    known = entries()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.likelihood", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"entries: {', '.join(known)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=("full", "reduced"), help="default full on CUDA, else reduced")
    parser.add_argument("--seconds", type=float, help="time limit on training, in place of the entry's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(known):
        parser.error(f"no entry {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    size: Size = arguments.size or ("full" if arguments.device.startswith("cuda") else "reduced")
    run = Run(size, arguments.device, arguments.seed, arguments.seconds)
    rows = []
    for name in arguments.names:
        sys.stderr.write(f"{name} ({size}) ...\n")
        rows.append(measure(known[name], run))
        keep(rows[-1], arguments.results)
    sys.stdout.write(table(rows if arguments.names else read(arguments.results)) + "\n")
    return int(any(row["target"] is not None and row["value"] > row["target"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
