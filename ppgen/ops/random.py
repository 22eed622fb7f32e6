"""Random numbers that leave the caller's generators as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import SupportsIndex

import torch

from ppgen.errors import ConfigError


@contextlib.contextmanager
def forked_rng(seed: int | None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within, torch draws from ``seed``; after, its global generators go on as if nothing had been.

    Args:
        seed: seed of the CPU generator and of ``device``'s; with ``None`` nothing is forked, and the
            global generators are drawn from.
        device: the device whose generator is used inside, beside the CPU's.

    Raises:
        ConfigError: a seed that is no integer, is negative or has more than 63 bits.
    """
    if seed is None:
        yield
        return
    if isinstance(seed, bool) or not isinstance(seed, SupportsIndex) or not 0 <= int(seed) < 2**63:
        raise ConfigError(f"seed: expected an integer from 0 to 2**63 - 1, got {seed!r}")
    device = torch.device(device)
    cuda = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
