"""Exact posteriors over DAGs: from ready scores to all edge probabilities, on one thread.

Random scores, standard deviation 5 nats. The figure of both lattices is set against seconds to stay under; no
package has the uniform prior's, and a peer for orders (BDAGL) runs in Matlab. The memory is what the process
grew by at its peak, measured in a process of its own, scores included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import torch

from ppgen.inference.structure.exact.marginals import PriorKind
from ppgen.inference.structure.exact.source import ExactSource

# Prior, nodes, seconds to stay under.
_CASES: tuple[tuple[PriorKind, int, float], ...] = (
    ("order", 15, 0.1),
    ("order", 20, 4.0),
    ("order", 22, 20.0),
    ("uniform", 11, 0.1),
    ("uniform", 13, 0.5),
    ("uniform", 15, 5.0),
    ("uniform", 16, 15.0),
)
_SMALL = 15


def run() -> list[dict[str, Any]]:
    """Milliseconds of each case, and the ratio to the time that it should stay under."""
    rows = []
    for prior, num_nodes, limit in _CASES:
        command = [sys.executable, "-m", "benchmarks.structure_exact", prior, str(num_nodes)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, mebibytes = json.loads(printed)
        rows.append(
            {
                "benchmark": "structure_exact",
                "case": f"{prior} prior, {num_nodes} nodes, {mebibytes:.0f} MiB",
                "ours_ms": seconds * 1e3,
                "peer_ms": limit * 1e3,
                "peer": "time to stay under",
                "ratio": seconds / limit,
                "target": 1.0,
            }
        )
    return rows


def measure(prior: PriorKind, num_nodes: int) -> tuple[float, float]:
    """Seconds, the best of three for small graphs, and MiB that the process grew by at its peak."""
    torch.set_num_threads(1)
    start = _peak_mebibytes()
    generator = torch.Generator().manual_seed(num_nodes)
    scores = 5 * torch.randn(num_nodes, 1 << (num_nodes - 1), generator=generator, dtype=torch.float64)
    seconds = []
    for _ in range(3 if num_nodes <= _SMALL else 1):
        began = time.perf_counter()
        ExactSource(scores, prior).edge_probabilities()
        seconds.append(time.perf_counter() - began)
    return min(seconds), _peak_mebibytes() - start


def _peak_mebibytes() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    kind: PriorKind = "order" if sys.argv[1] == "order" else "uniform"
    sys.stdout.write(json.dumps(measure(kind, int(sys.argv[2]))))
