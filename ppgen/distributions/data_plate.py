"""The plate over the data, cheaper than ``pyro.plate`` and the same to everything downstream."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.runtime import Message
from pyro.poutine.subsample_messenger import SubsampleMessenger


class DataPlate(PlateMessenger):
    """Independence of a batch of ``batch`` data from a population of ``size``, at dimension -1.

    ``pyro.plate`` draws its indices at a site of its own, at every entry. The rows of a batch
    are given, so this plate has no such site; frames, broadcasting and the scale
    ``size / batch`` are Pyro's.

    Args:
        name: name of the plate.
        size: number of data in the population.
        batch: number of data at hand.
        device: where the batch is.
    """

    def __init__(self, name: str, size: int, batch: int, device: torch.device) -> None:
        IndepMessenger.__init__(self, name, size, dim=-1, device=str(device))
        self.subsample_size = batch
        if batch != size:
            self._indices = torch.arange(batch, device=device)

    def _process_message(self, msg: Message[Any, Any]) -> None:
        SubsampleMessenger._process_message(self, msg)
        shape = getattr(msg["fn"], "batch_shape", ())
        if len(msg["cond_indep_stack"]) == 1 and shape[-1:] == (self.subsample_size,):
            return  # nothing to broadcast, and Pyro would build the distribution anew to find out
        BroadcastMessenger._pyro_sample(msg)
