"""Telling that memory ran out, on any device."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error`` says that the memory of a device or of the machine is too small."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's allocator for the CPU has no error class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
