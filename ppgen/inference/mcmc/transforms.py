r"""Bijections from real vectors to the supports of Pyro's distributions.

They are Pyro's own (``biject_to``), and the few that torch lacks or that leave coordinates unused:
lower triangular matrices with a positive diagonal and positive definite matrices, both from
vectors of :math:`n (n + 1) / 2` numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import AffineTransform, ComposeTransform, IndependentTransform

from ppgen.errors import ConfigError


class TriangularTransform(Transform):
    r"""From n (n + 1) / 2 numbers to a lower triangular matrix with a positive diagonal.

    Rows are filled from left to right; the diagonal is the exponential of its numbers, so that
    :math:`\log |J| = \sum_i \log L_{ii}`.
    """

    domain = constraints.real_vector
    codomain: Any = constraints.lower_cholesky
    bijective = True

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        size = self._size(x.shape[-1])
        rows, columns = torch.tril_indices(size, size, device=x.device)
        matrix = x.new_zeros(*x.shape[:-1], size * size).index_copy(-1, rows * size + columns, x)
        matrix = matrix.reshape(*x.shape[:-1], size, size)
        return matrix.tril(-1) + matrix.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _inverse(self, y: Tensor) -> Tensor:
        size = y.shape[-1]
        rows, columns = torch.tril_indices(size, size, device=y.device)
        matrix = y.tril(-1) + y.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        return matrix[..., rows, columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log determinant of the Jacobian, of the batch shape, in nats."""
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """(..., n (n + 1) / 2) to (..., n, n)."""
        size = self._size(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """(..., n, n) to (..., n (n + 1) / 2)."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))

    @staticmethod
    def _size(length: int) -> int:
        return (math.isqrt(8 * length + 1) - 1) // 2


class CovarianceTransform(TriangularTransform):
    r"""From n (n + 1) / 2 numbers to a positive definite matrix :math:`L L^\top`.

    With i from 1 to n, :math:`\log |J| = n \log 2 + \sum_i (n - i + 2) \log L_{ii}`.
    """

    codomain = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        factor = super()._call(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log determinant of the Jacobian, of the batch shape, in nats."""
        size = y.shape[-1]
        power = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)
        diagonal = [row * (row + 3) // 2 for row in range(size)]  # where L's diagonal is in x
        return (x[..., diagonal] * power).sum(-1) + size * math.log(2.0)


def unconstrained_shape(transform: Transform, shape: torch.Size) -> torch.Size:
    """The shape that ``transform`` maps to ``shape``.

    As ``transform.inverse_shape``, which broadcasts with a slope's shape: what is mapped to a support has
    that already, and torch's way to broadcast shapes takes half a second at its first use.
    """
    if isinstance(transform, ComposeTransform):
        for part in reversed(transform.parts):
            shape = unconstrained_shape(part, shape)
        return shape
    if isinstance(transform, IndependentTransform):
        return unconstrained_shape(transform.base_transform, shape)
    if isinstance(transform, AffineTransform):
        return shape
    return torch.Size(transform.inverse_shape(shape))


def bijection(support: Any, site: str) -> Transform:
    """The transform from unconstrained values to ``support``.

    Raises:
        ConfigError: a support that no vector of real numbers can be mapped to one to one.
    """
    if isinstance(support, constraints.independent):
        base = bijection(support.base_constraint, site)
        return IndependentTransform(base, support.reinterpreted_batch_ndims)
    if support is constraints.lower_cholesky:
        return TriangularTransform()
    if support in (constraints.positive_definite, constraints.positive_semidefinite):
        return CovarianceTransform()
    try:
        transform = biject_to(support)
    except NotImplementedError as error:
        raise ConfigError(
            f"model: site '{site}' has the support {support}, which has no bijection from real numbers. "
            "Reparameterise it (pyro.infer.reparam: CircularReparam, ProjectedNormalReparam, ...)"
        ) from error
    return transform
