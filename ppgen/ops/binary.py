r"""Vectors of zeros and ones: all of them in order, random ones, and the normaliser of their law.

State ``s`` of ``n`` units is the binary numeral of s, lowest bit first: unit i is bit i.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ppgen.errors import ConfigError

MAX_ENUMERATED = 20
"""Most units whose states are summed one by one: 2^20 is a million."""

# Numbers in one chunk of an enumeration: it stays in a core's cache.
_CHUNK_NUMBERS = 1 << 18


def binary_states(
    num_units: int,
    start: int = 0,
    stop: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """States ``start`` to ``stop - 1`` of ``num_units`` binary units.

    Args:
        num_units: number of units n.
        start: first state.
        stop: one past the last state; all 2^n by default.
        dtype: of the result; torch's default otherwise.
        device: of the result.

    Returns:
        Zeros and ones, shape ``(stop - start, num_units)``.

    Raises:
        ConfigError: the states asked for do not exist, or are too many to number.
    """
    if not 0 <= num_units <= 62:
        raise ConfigError(f"num_units: expected 0 to 62 units that can be enumerated, got {num_units}")
    stop = 1 << num_units if stop is None else stop
    if not 0 <= start <= stop <= 1 << num_units:
        raise ConfigError(
            f"start, stop: expected 0 <= start <= stop <= 2^{num_units}, got {start} and {stop}"
        )
    index = torch.arange(start, stop, device=device)
    return state_bits(index, num_units, dtype=dtype or torch.get_default_dtype())


def state_bits(index: Tensor, num_units: int, *, dtype: torch.dtype) -> Tensor:
    """The states that ``index`` (int64, any shape) numbers, shape ``(*index.shape, num_units)``."""
    places = torch.arange(num_units, device=index.device)
    return ((index.unsqueeze(-1) >> places) & 1).to(dtype)


def state_chunks(num_units: int, width: int, like: Tensor) -> Iterator[Tensor]:
    """All states in order, in chunks for work of ``width`` numbers a state; dtype and device of ``like``.

    A chunk holds at most 2^18 / ``width`` states, and at least one.
    """
    total = 1 << num_units
    size = max(1, min(total, _CHUNK_NUMBERS // max(width, 1)))
    for start in range(0, total, size):
        stop = min(start + size, total)
        yield binary_states(num_units, start, stop, dtype=like.dtype, device=like.device)


def sample_bernoulli(probs: Tensor) -> Tensor:
    """Zeros and ones that are 1 with probability ``probs``; same shape and dtype, no gradient.

    It compares with uniform noise of torch's global generator, which is several times faster
    on a CPU than ``torch.bernoulli``.
    """
    return torch.gt(probs, torch.rand_like(probs)).to(probs.dtype)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact to rounding in float64 too (torch's own threshold of 20 errs by 2e-9)."""
    return functional.softplus(x, threshold=40.0)
