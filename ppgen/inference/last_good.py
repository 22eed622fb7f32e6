"""The state that a run goes back to when numbers overflow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppgen.inference.objectives.base import Stepper
from ppgen.inference.trainee import Trainee


class LastGood:
    """A copy of the newest state of trainee and stepper that was finite.

    Tensors that hold NaN or infinities from the start (a mask, say) are left out of the check.

    Args:
        trainee: what is trained.
        stepper: what carries state from step to step.
        step: number of steps done.
    """

    def __init__(self, trainee: Trainee, stepper: Stepper, step: int) -> None:
        self.trainee, self.stepper = trainee, stepper
        self._watched = [name for name, tensor in trainee.state().items() if _is_finite(tensor)]
        self.keep(step)

    def find_bad(self) -> str | None:
        """Describe the first tensor that is finite no more; ``None`` if all are."""
        state = self.trainee.state()
        bad = next((name for name in self._watched if not _is_finite(state[name])), None)
        return None if bad is None else f"'{bad.partition('.')[2]}' has values that are not finite"

    def keep(self, step: int) -> None:
        """Take the present state as good."""
        self.step = step
        self._state = self.trainee.snapshot()
        self._stepper_state = _copied(self.stepper.state_dict())

    def restore(self) -> None:
        """Put the good state back."""
        self.trainee.restore(self._state)
        self.stepper.load_state_dict(_copied(self._stepper_state))


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _copied(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {k: _copied(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_copied(v) for v in tree]
    return tree
