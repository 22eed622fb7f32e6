"""Which rows train, which validate, which test: decided by a seed, the same every time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError

Share = float | int


def count_rows(share: Share, num: int, role: str) -> int:
    """Number of rows that ``share`` of ``num`` rows means, at least 1.

    Args:
        share: a fraction in (0, 1), or a count (an integer of 1 or more).
        num: number of rows to share out.
        role: the argument's name, for messages.

    Raises:
        ConfigError: ``share`` is neither.
    """
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise ConfigError(f"{role}: expected a fraction in (0, 1) or a number of rows, got {share!r}")
    if isinstance(share, int) and share >= 1:
        return share
    if isinstance(share, float) and 0 < share < 1:
        return max(1, round(share * num))
    raise ConfigError(
        f"{role}: expected a fraction in (0, 1) or a number of rows of 1 or more, got {share!r}; "
        f"every data set keeps rows for {role}, so that no figure is reported on training data"
    )


def partition(num: int, sizes: list[int], seed: int, labels: Tensor | None = None) -> list[Tensor]:
    r"""Disjoint random blocks of the rows ``0 .. num - 1``, and the rest.

    With ``labels`` each block is class-balanced: a class of :math:`n_c` of the N rows has
    :math:`m n_c / N` rows, up to one, in a block of m rows at the front. (Rows are ordered by
    their random rank within their class divided by the class's size; a block is an interval of
    that order.)

    Args:
        num: number of rows, N.
        sizes: number of rows of each block.
        seed: seed of the permutation; the global generators are neither read nor changed.
        labels: one class a row, shape (N,).

    Returns:
        One sorted index tensor (int64) a size, then the remaining rows.

    Raises:
        DataError: nothing remains.
    """
    if num <= sum(sizes):
        raise DataError(
            f"x: {num} rows cannot give blocks of {sizes} rows and leave any to train on; "
            "bring more data or ask for smaller blocks with validation=, test="
        )
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        order = _balanced(order, labels.cpu())
    blocks = order.split([*sizes, num - sum(sizes)])
    return [block.sort().values for block in blocks]


def _balanced(order: Tensor, labels: Tensor) -> Tensor:
    """``order`` re-sorted so that every prefix holds each class in proportion."""
    shuffled = labels[order]
    quantile = torch.empty(len(order), dtype=torch.float64)
    for label in shuffled.unique():
        members = (shuffled == label).nonzero().squeeze(-1)
        quantile[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[quantile.argsort(stable=True)]


def balancing_labels(y: Tensor | None, sizes: list[int]) -> Tensor | None:
    """``y`` where balancing by it makes sense: few integer classes, each with several rows."""
    if y is None or y.ndim != 1 or y.is_floating_point() or math.prod(sizes) == 0:
        return None
    counts = y.unique(return_counts=True)[1]
    return y if int(counts.min()) >= len(sizes) + 1 else None
