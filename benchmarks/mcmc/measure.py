"""Measure one sampler on one posterior in a process of its own: ``python -m benchmarks.mcmc.measure``.

A fresh process on one core, with an empty cache of compiled programs, so that the first run is cold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Write a :class:`benchmarks.mcmc.samplers.Measured` as JSON to standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("sampler")
    parser.add_argument("seeds", type=int)
    arguments = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    import torch

    from benchmarks.mcmc.samplers import SAMPLERS

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PPGEN_CACHE"] = cache
        measured = SAMPLERS[arguments.sampler](arguments.name, range(arguments.seeds))
    json.dump(dataclasses.asdict(measured), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
