"""What a local score is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from ppgen.inference.structure.table import Table


@runtime_checkable
class Score(Protocol):
    r"""A modular score: :math:`\log \beta_v(P)`, in nats, of a variable v and a set P of parents.

    Scores are frozen dataclasses of their hyperparameters. Interventions are taken from the table: where a
    variable was set, the row does not count for its mechanism (or as the kind of intervention says).
    """

    name: str

    def check(self, table: Table) -> None:
        """Raise :class:`~ppgen.errors.DataError` or ``ConfigError`` where the table does not fit."""

    def local(self, table: Table, node: int, parents: Sequence[Sequence[int]]) -> Tensor:
        """Scores of ``node`` with each of these parent sets, shape (len(parents),), float64."""
