"""BDeu of all small families against pgmpy, on tables of 5000 rows drawn from known networks.

Ours scores every family of at most k parents in one call (``listed_scores`` without pruning); pgmpy scores
families one by one, past its cache. Where there are many families, pgmpy is timed on a random sample of
them, drawn anew each round, and the time is scaled to all.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import torch

from benchmarks.timing import interleaved

_ROWS = 5000
_SAMPLE = 300
# At least fifty times as fast.
_TARGET = 1 / 50


def run() -> list[dict[str, Any]]:
    """Milliseconds for all families, the median over rounds, on one thread."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return [_row(name, k) for name in ("asia", "sachs", "alarm") for k in (2, 3)]
    finally:
        torch.set_num_threads(threads)


def _row(name: str, k: int) -> dict[str, Any]:
    from ppgen.inference.pgmpy_adapter import example_network
    from ppgen.inference.structure.listed_scores import listed_scores
    from ppgen.inference.structure.prior import Constraints, GraphPrior
    from ppgen.inference.structure.problem import Problem
    from ppgen.inference.structure.scores.discrete import BDeu

    table = example_network(name).table(_ROWS, seed=0)
    problem = Problem(table, BDeu(1.0), GraphPrior(), Constraints(), progress=False)
    n = table.num_variables
    num = n * sum(math.comb(n - 1, size) for size in range(k + 1))
    peer = _Peer(table, k)
    ours_ms, peer_ms = interleaved(
        lambda: listed_scores(problem, max_parents=k, prune=0.0), peer.round, repeats=5 if num < 10_000 else 3
    )
    peer_ms *= num / peer.families_a_round
    return {
        "benchmark": "structure_scores",
        "case": f"{name}, {_ROWS} rows, k={k}, {num:,} families",
        "ours_ms": ours_ms,
        "peer_ms": peer_ms,
        "peer": "pgmpy",
        "ratio": ours_ms / peer_ms,
        "target": _TARGET,
    }


class _Peer:
    """pgmpy on a sample of the families of at most k parents."""

    def __init__(self, table: Any, k: int) -> None:
        import pandas as pd
        from pgmpy.structure_score import BDeu

        self.names = [f"x{i}" for i in range(table.num_variables)]
        frame = pd.DataFrame(table.codes.numpy(), columns=self.names).astype("category")
        levels = {name: list(range(c)) for name, c in zip(self.names, table.cardinalities, strict=True)}
        self._score = BDeu(frame, equivalent_sample_size=1.0, state_names=levels)
        families = [
            (node, parents)
            for node in self.names
            for size in range(k + 1)
            for parents in itertools.combinations([x for x in self.names if x != node], size)
        ]
        self._draw = random.Random(0)
        self._families = families
        self.families_a_round = min(_SAMPLE, len(families))

    def round(self) -> None:
        """Score as many families as a round has."""
        for node, parents in self._draw.sample(self._families, self.families_a_round):
            self._score._local_score(node, parents)
