r"""Subsets of a given size, numbered.

Subsets :math:`\{p_0 < p_1 < \dots\}` of positions 0, 1, ... are in colexicographic order, where the number
of a set is :math:`\sum_i \binom{p_i}{i + 1}`: it does not depend on how many positions there are, and the
sets of the first j positions come before all others.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def subsets(num: int, size: int, device: torch.device | str | None = None) -> Tensor:
    """All subsets of ``size`` of the positions 0..num-1, in order; shape (C(num, size), size), int64."""
    result = torch.zeros(1, 0, dtype=torch.int64)
    for length in range(1, size + 1):
        # Sets whose largest member is ``top``: the first C(top, length - 1) of those one shorter.
        tops = range(length - 1, num - (size - length))
        parts = [torch.nn.functional.pad(result[: math.comb(t, length - 1)], (0, 1), value=t) for t in tops]
        result = torch.cat(parts) if parts else torch.zeros(0, length, dtype=torch.int64)
    return result.to(device)


def ranks(sets: Tensor) -> Tensor:
    """Numbers of sets given by their members in increasing order.

    Args:
        sets: shape (F, size), int64.

    Returns:
        Shape (F,), int64.
    """
    size = sets.shape[1]
    if sets.numel() == 0:
        return torch.zeros(len(sets), dtype=torch.int64, device=sets.device)
    table = _binomials(int(sets[:, -1].max()) + 1, size).to(sets.device)
    return table[sets, torch.arange(size, device=sets.device)].sum(-1)


def count_subsets(num: int, largest: int) -> int:
    """Number of subsets of ``num`` positions with at most ``largest`` members."""
    return sum(math.comb(num, size) for size in range(min(num, largest) + 1))


@functools.lru_cache(maxsize=16)
def _binomials(num: int, size: int) -> Tensor:
    """C(p, i + 1) for p < num and i < size."""
    return torch.tensor([[math.comb(p, i + 1) for i in range(size)] for p in range(num)])
