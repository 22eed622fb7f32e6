"""The one clock of the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], *, repeats: int = 15, inner: int = 1
) -> tuple[float, float]:
    """Median milliseconds of one call of ``ours`` and of ``peer``, timed in turn.

    The two are called ours, peer, ours, peer, ..., so that what slows the machine down for a
    while slows both. One untimed round of each comes first.

    Args:
        ours: the call to be measured.
        peer: the call that it is compared with.
        repeats: timed rounds; the median is over these.
        inner: calls in a round, for calls too short for the clock.

    Returns:
        Milliseconds per call of ``ours`` and of ``peer``.
    """
    _milliseconds(ours, inner)
    _milliseconds(peer, inner)
    rounds = [(_milliseconds(ours, inner), _milliseconds(peer, inner)) for _ in range(repeats)]
    return statistics.median(r[0] for r in rounds), statistics.median(r[1] for r in rounds)


def _milliseconds(call: Callable[[], object], inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) * 1e3 / inner
