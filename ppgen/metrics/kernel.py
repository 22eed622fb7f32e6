r"""Kernel distance between two samples: the squared maximum mean discrepancy (KID).

With the polynomial kernel :math:`k(x, y) = (x \cdot y / F + 1)^3` on F features,

.. math:: \widehat{\mathrm{MMD}}^2 = \frac{1}{N(N-1)} \sum_{i \ne j} k(x_i, x_j)
          + \frac{1}{M(M-1)} \sum_{i \ne j} k(y_i, y_j) - \frac{2}{NM} \sum_{i, j} k(x_i, y_j).

It is *unbiased*, so it may fall below 0 where the samples agree, and figures of different
numbers of data compare. All pairs are used: the mean over random subsets that is often
reported has the same expectation and a larger variance. Cost: O((N + M)^2 F).

References: Binkowski et al. (2018), "Demystifying MMD GANs"; Gretton et al. (2012), "A kernel
two-sample test", lemma 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import ConfigError, DataError
from ppgen.metrics.features import Features, extract
from ppgen.metrics.resampling import deal_both, jackknife_std_error
from ppgen.ops.chunks import rows_per_chunk


def kernel_distance(
    real: Tensor,
    generated: Tensor,
    features: Features | None = None,
    *,
    degree: int = 3,
    num_groups: int = 20,
    seed: int = 0,
) -> Estimate:
    """Kernel distance (KID) between real and generated data; unbiased, 0 for equal distributions.

    Args:
        real: data ``(N, *event_shape)``, 3 or more.
        generated: samples ``(M, *event_shape)``, 3 or more.
        features: maps data to features ``(N, F)``; ``None`` compares the arguments as they are.
        degree: of the polynomial kernel.
        num_groups: groups of the jackknife that gives the standard error.
        seed: of the groups; the distance itself does not depend on it.

    Returns:
        A scalar (float64) of kind ``estimate``. Where both distributions are the same, the
        statistic is degenerate and its standard error errs on the large side.

    Raises:
        DataError: fewer than 3 data, or NaN features.
        ShapeError: shapes that do not match.
        ConfigError: a degree below 1, or fewer than 2 groups.
    """
    if degree < 1:
        raise ConfigError(f"degree: expected a positive integer, got {degree}")
    a, b = extract(real, generated, features)
    for name, x in (("real", a), ("generated", b)):
        if len(x) < 3:
            raise DataError(f"{name}: pairs and their standard error need 3 data or more, got {len(x)}")
    groups_a, groups_b = deal_both(len(a), len(b), num_groups, seed)
    # Every sum over pairs is a sum of blocks, one for each pair of groups.
    within_a = _pair_sums(a, groups_a, a, groups_a, degree)
    within_b = _pair_sums(b, groups_b, b, groups_b, degree)
    across = _pair_sums(a, groups_a, b, groups_b, degree)
    for x, groups, within in ((a, groups_a, within_a), (b, groups_b, within_b)):
        alone = _polynomial((x * x).sum(1), x.shape[1], degree)  # a point is no pair with itself
        within.diagonal().sub_(torch.stack([alone[g].sum() for g in groups]))

    def distance(num_a: Tensor, num_b: Tensor, sums: list[Tensor]) -> Tensor:
        in_a, in_b, between = sums
        return in_a / (num_a * (num_a - 1)) + in_b / (num_b * (num_b - 1)) - 2 * between / (num_a * num_b)

    all_a, all_b = a.new_tensor(len(a)), b.new_tensor(len(b))
    without_a, without_b = (n - _sizes(g) for n, g in ((all_a, groups_a), (all_b, groups_b)))
    blocks = [within_a, within_b, across]
    value = distance(all_a, all_b, [s.sum() for s in blocks])
    # Leaving a group out drops its row and its column of blocks.
    rest = [s.sum() - s.sum(0) - s.sum(1) + s.diagonal() for s in blocks]
    return Estimate(value, Kind.ESTIMATE, jackknife_std_error(distance(without_a, without_b, rest)))


def _polynomial(products: Tensor, num_features: int, degree: int) -> Tensor:
    """The kernel from inner products of features."""
    return (products / num_features + 1) ** degree


def _sizes(groups: list[Tensor]) -> Tensor:
    return torch.tensor([len(g) for g in groups], dtype=torch.float64)


def _memberships(groups: list[Tensor]) -> Tensor:
    """Matrix ``(N, G)`` with 1 where a point is in a group."""
    member = torch.zeros(sum(map(len, groups)), len(groups), dtype=torch.float64)
    for g, rows in enumerate(groups):
        member[rows, g] = 1.0
    return member


def _pair_sums(x: Tensor, groups_x: list[Tensor], y: Tensor, groups_y: list[Tensor], degree: int) -> Tensor:
    """Sums of the kernel over all x and y by pair of groups, shape ``(G, G)``; chunks bound the memory."""
    member_x, member_y = _memberships(groups_x), _memberships(groups_y)
    sums = x.new_zeros(len(groups_x), len(groups_y))
    rows = rows_per_chunk(len(y), x.device)
    for part, member in zip(x.split(rows), member_x.split(rows), strict=True):
        sums += member.T @ (_polynomial(part @ y.T, y.shape[1], degree) @ member_y)
    return sums
