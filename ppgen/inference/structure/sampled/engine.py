"""What runs chains over orders and partitions, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

#: A chain over orders of the nodes, or over their ordered partitions.
Space = Literal["order", "partition"]

#: Columns of ``Drawn.counts``.
COUNTS = (
    "relocations",
    "jumps",
    "swaps",
    "swaps_taken",
    "splits_and_merges",
    "splits_and_merges_taken",
    "exchanges",
    "exchanges_taken",
    "jumps_taken",
)


@dataclass(frozen=True)
class Drawn:
    """Draws of C chains.

    Attributes:
        rows: shape (C, S, n), int32: of each node, the row of its family among the sorted ones.
        log_scores: shape (C, S): log score of the graph, the sum of those of its families.
        edges: shape (C, n, n): probabilities of the edges given the state, summed over the draws.
    """

    rows: Tensor
    log_scores: Tensor
    edges: Tensor


class Engine(Protocol):
    """Chains at several temperatures; the state is kept between calls.

    Attributes:
        counts: shape (C, 9), float64: moves tried and taken, as in ``COUNTS``, of the chains at temperature 1
            (exchanges: of all).
    """

    counts: Tensor

    def advance(self, num_draws: int, *, keep: bool) -> Drawn | None:
        """Go on by ``num_draws`` draws; ``None`` where graphs are not kept."""

    def state(self) -> dict[str, Any]:
        """Everything that decides how the chains go on, as a tree for a checkpoint."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
