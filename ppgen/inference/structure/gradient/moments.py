r"""Second moments of a table, all that linear mechanisms see of it.

The mechanism of variable j is learnt from the rows in which j was not set. Over these rows alone,
everything is centred, which is the same as giving each mechanism an intercept of its own at its most likely
value; where other variables were set, their means differ between the rows of one mechanism and another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Means and scatter matrices over the rows of each variable's mechanism.

    Attributes:
        counts: rows in which j was not set, shape (n,), float64.
        means: mean of i over these rows, entry (i, j), shape (n, n); 0 where there is no row.
        scatter: sums of products of centred values over the rows of j, entry (j, i, k), shape (n, n, n).
    """

    counts: Tensor
    means: Tensor
    scatter: Tensor

    def squares(self, coefficients: Tensor) -> Tensor:
        """Sums of squared residuals of each variable, shape (..., n), for coefficients (..., n, n)."""
        residual = torch.eye(len(self.counts), dtype=torch.float64, device=self.counts.device) - coefficients
        return torch.einsum("...ij,jik,...kj->...j", residual, self.scatter, residual)


def moments(values: Tensor, clamped: Tensor) -> Moments:
    """Moments of values (N, n), float64, whose cells were set where ``clamped`` (N, n) is true."""
    n = values.shape[1]
    free = (~clamped).to(values)
    counts = free.sum(0)
    means = (values.T @ free) / counts.clamp(min=1)
    scatter = values.new_empty(n, n, n)
    patterns, pattern_of = clamped.unique(dim=1, return_inverse=True)
    for number in range(patterns.shape[1]):  # variables set in the same rows share their matrix
        nodes = pattern_of == number
        rows = values[~patterns[:, number]]
        rows = rows - rows.mean(0) if len(rows) else rows
        scatter[nodes] = rows.T @ rows
    return Moments(counts, means, scatter)


def free_variances(values: Tensor, clamped: Tensor) -> Tensor:
    """Variance of each column over the cells that were not set, shape (n,); NaN where there is none."""
    free = (~clamped).to(values)
    counts = free.sum(0)
    means = (values * free).sum(0) / counts
    return (((values - means) ** 2) * free).sum(0) / counts
