"""What a training run gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Stopped = Literal["finished", "early", "time", "interrupted"]


@dataclass
class FitResult:
    """History and diagnosis of a training run.

    Attributes:
        history: one dict an epoch: ``epoch``, ``step``, ``seconds``, ``loss`` (training, a mean per
            datum in nats where the objective is a likelihood or bound), ``validation_loss`` (or
            ``None``), ``learning_rate``, and the objective's other figures. Training figures are
            means over the data of the epoch; a step whose loss was not finite is left out, and
            ``loss`` is ``None`` where all were.
        steps: steps taken, over all resumed runs.
        seconds: time spent training, over all resumed runs.
        best_loss: smallest validation loss; ``None`` without validation data, or where the
            objective has no figure to validate (a GAN).
        best_epoch: epoch of ``best_loss``, whose parameters the model holds; ``None`` for the last.
        stopped: why training ended: all epochs done, or nothing left to improve (both ``finished``), early
            stopping, time limit, Ctrl-C.
        warnings: what deserves a look, in sentences.
    """

    history: list[dict[str, float | None]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_epoch: int | None = None
    stopped: Stopped = "finished"
    warnings: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Number of epochs in the history; the last of them may have been cut short by the time limit."""
        return len(self.history)

    @property
    def ok(self) -> bool:
        """Whether nothing deserves a look and nobody interrupted."""
        return not self.warnings and self.stopped != "interrupted"

    def __str__(self) -> str:
        best = "" if self.best_loss is None else f", best loss {self.best_loss:.4f}"
        at = "" if self.best_epoch is None else f" at epoch {self.best_epoch}"
        notes = "".join(f"\n  warning: {w}" for w in self.warnings)
        return (
            f"{self.epochs} epochs, {self.steps} steps in {self.seconds:.1f} s "
            f"({self.stopped}){best}{at}{notes}"
        )
