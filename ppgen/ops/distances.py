"""Euclidean distances between two sets of points, in chunks that bound the memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppgen.errors import ConfigError, ShapeError
from ppgen.ops.chunks import rows_per_chunk


def distance_chunks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    r"""Rows of the matrix :math:`\|x_i - y_j\|`, some at a time.

    The differences are taken coordinate by coordinate: unlike the expansion
    :math:`\|x\|^2 + \|y\|^2 - 2 x \cdot y` this gives exactly 0 for equal points.

    Args:
        x: points, shape ``(N, D)``.
        y: points, shape ``(M, D)``.

    Yields:
        The rows as a slice of ``x``, and their distances, shape ``(rows, M)``.

    Raises:
        ShapeError: not two matrices of equal width.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ShapeError(
            f"x, y: expected points of shapes (N, D) and (M, D), got {tuple(x.shape)} and {tuple(y.shape)}; "
            "flatten each point to one row"
        )
    rows = rows_per_chunk(len(y), x.device)
    for start in range(0, len(x), rows):
        chunk = slice(start, min(start + rows, len(x)))
        yield chunk, torch.cdist(x[chunk], y, compute_mode="donot_use_mm_for_euclid_dist")


def neighbour_distances(x: Tensor, k: int) -> Tensor:
    """Distance from each point to its k-th nearest neighbour, the point itself not counted.

    Args:
        x: points, shape ``(N, D)``.
        k: which neighbour, from 1 to N - 1.

    Returns:
        Distances, shape ``(N,)``; 0 for a point with k or more exact copies.

    Raises:
        ConfigError: k is not in 1 .. N - 1.
    """
    if not 1 <= k < len(x):
        raise ConfigError(
            f"k: {len(x)} points have neighbours 1 to {len(x) - 1}, got k={k}; lower k or give more points"
        )
    # The point is its own nearest neighbour at distance 0, hence k + 1.
    found = [d.kthvalue(k + 1, dim=1).values for _, d in distance_chunks(x, x)]
    return torch.cat(found)
