r"""The least squares loss of a weighted graph, over the entries that constraints leave free.

.. math:: L(W) = \frac12 \sum_j \frac{1}{N_j} \sum_{r:\, x_{rj} \text{ not set}}
    \Big(x_{rj} - b_j - \sum_i W_{ij} x_{ri}\Big)^2,

with the intercepts b at their minimum. Entries of forbidden edges are no variables at all, so that no
step can make them non-zero; required edges carry no penalty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.inference.structure.gradient.moments import Moments


class LeastSquares:
    """Loss, penalty and edges of a linear point estimate.

    Args:
        moments: of the table.
        known: which edges are allowed and required.
        penalty: of the absolute value of each weight.
    """

    def __init__(self, moments: Moments, known: FamilyPrior, penalty: float) -> None:
        counts = moments.counts.clamp(min=1)
        device = counts.device
        self.covariance = moments.scatter / counts[:, None, None]
        self.required = known.required_edges.to(device)
        self.rows, self.columns = known.allowed_edges.to(device).nonzero(as_tuple=True)
        self.penalty = penalty * (~self.required[self.rows, self.columns]).to(counts)
        self._identity = torch.eye(len(counts), dtype=counts.dtype, device=device)

    @property
    def num_free(self) -> int:
        """D, entries that may be non-zero."""
        return len(self.rows)

    def matrix(self, free: Tensor) -> Tensor:
        """W, shape (n, n), from its free entries, shape (D,)."""
        weights = torch.zeros_like(self._identity)
        weights[self.rows, self.columns] = free
        return weights

    def free(self, matrix: Tensor) -> Tensor:
        """Free entries (D,) of a matrix (n, n)."""
        return matrix[self.rows, self.columns]

    def loss(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """L, a scalar, and its gradient, shape (n, n)."""
        residual = self._identity - weights
        pulled = torch.einsum("jki,ij->kj", self.covariance, residual)
        return (residual * pulled).sum() / 2, -pulled

    def walks(self, weights: Tensor) -> Tensor:
        r"""What h is a function of: :math:`W \circ W`, and 1 more for each required edge.

        A required edge is there whatever its weight, so that no path may lead back along it.
        """
        return weights.square() + self.required.to(weights)
