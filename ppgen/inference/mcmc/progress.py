"""What a user sees of a run while it goes: one bar for all chains, on stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

_SECONDS = 0.1  # between two looks at the figures, which may wait for the device


class ProgressBar:
    """Transitions done, number of chains, median step size, mean acceptance, divergences.

    Args:
        warmup_steps: transitions of the warm-up.
        num_samples: draws after it.
        num_chains: chains.
        disable: show nothing.
    """

    def __init__(self, warmup_steps: int, num_samples: int, num_chains: int, *, disable: bool) -> None:
        self._num_chains, self._divergences = num_chains, 0
        self._diverging: list[Tensor] = []  # of transitions not yet counted
        self._waiting, self._shown = 0, 0.0
        self._total, self._stage = warmup_steps + num_samples, "Warmup" if warmup_steps else "Sample"
        self._bar: tqdm[Any] = tqdm(
            total=self._total, disable=disable, unit="draw", dynamic_ncols=True, mininterval=0.0
        )
        self._bar.set_description(self._stage, refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.update(self._waiting)
        self._bar.close()

    def skip(self, num: int) -> None:
        """Count ``num`` transitions that an earlier run did."""
        self._bar.update(num)

    def update(self, stage: str, num: int, statistics: dict[str, Tensor]) -> None:
        """Count ``num`` transitions and show their figures.

        Args:
            stage: "Warmup" or "Sample".
            num: transitions of every chain.
            statistics: of these transitions, each ``(num, C)`` or (C,): ``step_size``, ``accept_prob``
                and ``diverging``; what is missing is not shown.
        """
        if self._bar.disable:
            return  # reading the figures would wait for the device
        if stage != self._stage:
            self._stage, self._divergences = stage, 0
            self._diverging.clear()
            self._bar.set_description(stage, refresh=False)
        if "diverging" in statistics:
            self._diverging.append(statistics["diverging"])
        self._waiting += num
        last = self._bar.n + self._waiting >= self._total
        if last or time.perf_counter() - self._shown > _SECONDS:
            self._bar.set_postfix_str(self._describe(statistics), refresh=False)
            self._bar.update(self._waiting)
            self._waiting, self._shown = 0, time.perf_counter()

    def _describe(self, statistics: dict[str, Tensor]) -> str:
        chains = "1 chain" if self._num_chains == 1 else f"{self._num_chains} chains"
        shown = [chains]
        if "step_size" in statistics:
            shown.append(f"step size {float(statistics['step_size'].median()):.2e}")
        if "accept_prob" in statistics:
            shown.append(f"acc. prob {float(statistics['accept_prob'].mean()):.3f}")
        if "diverging" in statistics:
            self._divergences += int(torch.stack([d.sum() for d in self._diverging]).sum())
            self._diverging.clear()
            shown.append(f"{self._divergences} divergences")
        return ", ".join(shown)
