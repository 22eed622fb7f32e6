"""Room for the draws of a run, filled a chunk at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppgen.errors import SamplingError
from ppgen.inference.memory import is_out_of_memory


class Draws:
    """Draws (C, S, ...) by name, in memory taken at once, so that too many fail before the first.

    They lie on the device of the chains, or, where that is too small, on the CPU.
    """

    def __init__(self) -> None:
        self.done = 0
        self._room: dict[str, Tensor] = {}

    def reserve(self, num: int, like: Mapping[str, Tensor]) -> None:
        """Make room for ``num`` draws of each chain in all, of entries like ``like``, (C, ...) each.

        Raises:
            SamplingError: they do not fit in memory.
        """
        for name, one in like.items():
            old = self._room.get(name)
            if old is not None and old.shape[1] >= num:
                continue
            self._room[name] = _take(name, num, one)
            if old is not None:
                self._room[name][:, : self.done] = old[:, : self.done]

    def write(self, recorded: Mapping[str, Tensor]) -> None:
        """Add entries of shape ``(num, C, ...)``, each of which has its room."""
        count = len(next(iter(recorded.values())))
        for name, values in recorded.items():
            self._room[name][:, self.done : self.done + count] = values.transpose(0, 1)
        self.done += count

    def read(self) -> dict[str, Tensor]:
        """Views ``(C, done, ...)`` of what has been drawn."""
        return {name: values[:, : self.done] for name, values in self._room.items()}

    def load(self, saved: Mapping[str, Tensor], device: torch.device) -> None:
        """Take draws that :meth:`read` gave, as if they had been drawn here."""
        self._room = {name: values.to(device) for name, values in saved.items()}
        self.done = next((values.shape[1] for values in saved.values()), 0)


def _take(name: str, num: int, one: Tensor) -> Tensor:
    """Room for ``num`` draws like ``one`` (C, ...)."""
    shape = torch.Size((len(one), num, *one.shape[1:]))
    for place in dict.fromkeys((one.device, torch.device("cpu"))):
        try:
            return torch.empty(shape, dtype=one.dtype, device=place)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = error
    raise SamplingError(
        f"out of memory: {num} draws of {len(one)} chains of '{name}' take "
        f"{shape.numel() * one.element_size() / 2**30:.1f} GiB; ask for fewer draws or chains, or name the "
        "sites to keep in save_params"
    ) from reason
