r"""Statistical assertions with one declared false-alarm rate.

Every Monte-Carlo check of ppgen rejects a correct program with probability at most
:data:`FALSE_ALARM_RATE`, over all the numbers that it compares (Bonferroni). A tolerance is
always z times a standard error, never a guess. Each check raises :class:`AssertionError`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FALSE_ALARM_RATE = 1e-6


def critical_z(num_comparisons: int = 1, rate: float = FALSE_ALARM_RATE) -> float:
    """Two-sided normal quantile that ``num_comparisons`` z-scores exceed with probability ``rate``."""
    tail = rate / (2 * num_comparisons)
    return -float(torch.special.ndtri(torch.tensor(tail, dtype=torch.float64)))


def assert_close_to(
    estimate: Tensor, expected: Tensor | float, std_error: Tensor, name: str = "estimate"
) -> None:
    """Assert ``estimate = expected`` within z standard errors, all coordinates at once."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    gap = (estimate.double() - expected).abs()
    bound = critical_z(gap.numel()) * std_error.double()
    if not bool((gap <= bound + 1e-12 * expected.abs()).all()):
        worst = int((gap - bound).argmax())
        raise AssertionError(
            f"{name}: off by {gap.flatten()[worst]:.4g} with a bound of "
            f"{bound.expand_as(gap).flatten()[worst]:.4g} (coordinate {worst} of {gap.numel()})"
        )


def assert_mean(draws: Tensor, expected: Tensor | float, name: str = "mean") -> None:
    """Assert that independent ``draws`` (first dimension) have the mean ``expected``.

    Raises ``ValueError`` for fewer than 100 draws: the normal approximation needs them.
    """
    if len(draws) < 100:
        raise ValueError(f"draws: a z-test needs 100 draws or more, got {len(draws)}")
    draws = draws.double()
    assert_close_to(draws.mean(0), expected, draws.std(0) / math.sqrt(len(draws)), name)


def assert_same_distribution(first: Tensor, second: Tensor, name: str = "samples", seed: int = 0) -> None:
    """Assert that two sets of independent draws, ``(N, ...)`` and ``(M, ...)``, have one distribution.

    Kolmogorov-Smirnov tests of each coordinate, of 16 random projections and of the squared
    norm around the pooled mean; distribution-free for continuous data and conservative for
    discrete data.
    """
    a, b = first.double().flatten(1), second.double().flatten(1)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], 16, generator=generator, dtype=torch.float64).to(a.device)
    centre = torch.cat([a, b]).mean(0)

    def views(x: Tensor) -> Tensor:
        radius = ((x - centre) ** 2).sum(-1, keepdim=True)
        return torch.cat([x, (x - centre) @ directions, radius], dim=-1)

    va, vb = views(a), views(b)
    rate = FALSE_ALARM_RATE / va.shape[1]
    # Massart's constant: P(sup |F_n - G_m| > e) <= 2 exp(-2 e^2 nm / (n + m)) up to rounding.
    bound = math.sqrt(-math.log(rate / 2) / 2 * (len(a) + len(b)) / (len(a) * len(b)))
    for column in range(va.shape[1]):
        distance = _ks_distance(va[:, column], vb[:, column])
        if distance > bound:
            raise AssertionError(
                f"{name}: view {column} of {va.shape[1]} has a Kolmogorov-Smirnov distance of "
                f"{distance:.4f}, above {bound:.4f} ({len(a)} and {len(b)} draws)"
            )


def _ks_distance(a: Tensor, b: Tensor) -> float:
    a, b = a.sort().values.contiguous(), b.sort().values.contiguous()
    points = torch.cat([a, b])
    below_a = torch.searchsorted(a, points, right=True) / len(a)
    below_b = torch.searchsorted(b, points, right=True) / len(b)
    return float((below_a - below_b).abs().max())
