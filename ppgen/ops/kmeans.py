"""k-means++ seeding and Lloyd steps: a quick partition that starts a mixture.

Arthur & Vassilvitskii, *k-means++: the advantages of careful seeding*, SODA 2007; several
candidates are tried at each seed and the best is kept, as the same authors advise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppgen.errors import ConfigError, ShapeError
from ppgen.ops.chunks import rows_per_chunk


def nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each row.

    Args:
        x: points, shape ``(N, D)``.
        centres: shape ``(K, D)``.

    Returns:
        Numbers of the nearest centres, int64 ``(N,)``, and the squared distances to them,
        ``(N,)``, which are never negative.
    """
    rows = rows_per_chunk(len(centres), x.device)
    half_norms = centres.square().sum(-1) / 2
    labels = torch.cat([(half_norms - part @ centres.T).argmin(-1) for part in x.split(rows)])
    return labels, (x - centres[labels]).square().sum(-1)


def plus_plus(x: Tensor, num_centres: int, *, num_candidates: int | None = None) -> Tensor:
    r"""Seeds spread over the data: each drawn with probability proportional to the squared distance.

    At each seed, ``num_candidates`` are drawn and the one that leaves the least sum of squared
    distances is kept. Once all points coincide with a seed, further seeds repeat points.

    Args:
        x: points, shape ``(N, D)``.
        num_centres: K, at most N.
        num_candidates: :math:`2 + \lfloor\log K\rfloor` unless given.

    Returns:
        K rows of ``x``, shape ``(K, D)``. Random numbers come from torch's global generator.
    """
    _check(x, num_centres)
    tries = 2 + int(math.log(num_centres)) if num_candidates is None else num_candidates
    if tries < 1:
        raise ConfigError(f"num_candidates: expected a positive integer, got {tries}")
    chosen = [x[torch.randint(len(x), (), device=x.device)]]
    distance = (x - chosen[0]).square().sum(-1)
    for _ in range(num_centres - 1):
        # Where every distance is zero the draw is uniform.
        weights = torch.where(distance.sum() > 0, distance, torch.ones_like(distance))
        drawn = x[_draw(weights, tries)]
        left = torch.stack([torch.minimum((x - seed).square().sum(-1), distance) for seed in drawn])
        best = left.sum(-1).argmin()
        chosen.append(drawn[best])
        distance = left[best]
    return torch.stack(chosen)


def lloyd(x: Tensor, centres: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Alternate between nearest centres and means; the sum of squared distances never rises.

    A centre that no point is nearest to stays where it is.

    Returns:
        The centres after ``num_steps`` steps, ``(K, D)``, and each row's nearest, int64 ``(N,)``.
    """
    labels, _ = nearest(x, centres)
    for _ in range(num_steps):
        counts = torch.bincount(labels, minlength=len(centres)).to(x.dtype)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, labels, x)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
        previous, (labels, _) = labels, nearest(x, centres)
        if torch.equal(previous, labels):
            break
    return centres, labels


def kmeans(x: Tensor, num_centres: int, *, num_steps: int = 10) -> tuple[Tensor, Tensor]:
    """k-means++ seeds, then Lloyd steps; returns centres ``(K, D)`` and labels ``(N,)``."""
    return lloyd(x, plus_plus(x, num_centres), num_steps)


def _draw(weights: Tensor, count: int) -> Tensor:
    """``count`` row numbers with probability proportional to ``weights``; any number of rows."""
    cumulative = weights.double().cumsum(0)
    points = torch.rand(count, device=weights.device, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, points, right=True).clamp_max(len(weights) - 1)


def _check(x: Tensor, num_centres: int) -> None:
    if x.ndim != 2:
        raise ShapeError(f"x: expected shape (N, D), got {tuple(x.shape)}; flatten the events first")
    if not 1 <= num_centres <= len(x):
        raise ConfigError(
            f"num_centres: expected from 1 to the {len(x)} data, got {num_centres}; "
            "use fewer centres or more data"
        )
