"""How many rows to work on at a time."""

from __future__ import annotations

import torch

# Elements of the largest temporary: small enough for a processor's cache (on one core, chunks of
# many megabytes were measured 3 times slower than these), large enough to fill a GPU.
_ELEMENTS = {"cpu": 2**16, "other": 2**25}
# Matrix products on fewer rows than this waste the processor.
_LEAST_ROWS = 128


def rows_per_chunk(elements_per_row: int, device: torch.device) -> int:
    """Rows of a chunk whose temporary holds ``elements_per_row`` numbers a row; at least 128."""
    budget = _ELEMENTS["cpu" if device.type == "cpu" else "other"]
    return max(_LEAST_ROWS, budget // max(1, elements_per_row))
