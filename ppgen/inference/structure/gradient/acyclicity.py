r"""Smooth functions of a weighted graph that are zero exactly where it has no cycle.

All take a matrix of non-negative weights :math:`M`, entry (i, j) for the edge i -> j, and are zero if and
only if the graph of the non-zero entries is acyclic: a closed walk from i back to itself has positive
weight wherever there is one. Those that optimisers call in their inner loop return the gradient as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: terms of the exponential series, whose remainder at a norm of 1/2 is below the rounding of float64
_TERMS = 15
#: a norm beyond which the exponential overflows
_LARGEST_EXPONENT = 700.0


def closed_walks(weights: Tensor) -> Tensor:
    r""":math:`\operatorname{tr} (I + M / n)^n - n` (Yu, Chen, Gao & Yu 2019).

    Args:
        weights: M, shape (..., n, n), non-negative.

    Returns:
        Shape (...); to be differentiated by autograd.
    """
    n = weights.shape[-1]
    identity = torch.eye(n, dtype=weights.dtype, device=weights.device)
    power = torch.linalg.matrix_power(identity + weights / n, n)
    return power.diagonal(dim1=-2, dim2=-1).sum(-1) - n


def trace_exponential(weights: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`h(M) = \operatorname{tr} e^M - n` (Zheng, Aragam, Ravikumar & Xing 2018).

    Args:
        weights: M, shape (n, n), non-negative.

    Returns:
        h, a scalar, and its gradient :math:`(e^M)^\top`, shape (n, n).
    """
    less_one = _exponential_less_one(weights)
    identity = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    return less_one.trace(), (less_one + identity).T


def _exponential_less_one(weights: Tensor) -> Tensor:
    """e^M - I by Taylor series and squaring: no term is negative, so that a small h keeps its digits."""
    norm = float(weights.detach().sum(0).max())
    if not norm < _LARGEST_EXPONENT:
        return torch.full_like(weights, math.inf)
    halvings = max(0, math.ceil(math.log2(norm)) + 1) if norm > 0 else 0
    scaled = weights / 2**halvings
    result = scaled / _TERMS
    for k in range(_TERMS - 1, 0, -1):
        result = (scaled + scaled @ result) / k
    for _ in range(halvings):
        result = 2 * result + result @ result
    return result


def log_determinant(weights: Tensor, radius: float) -> tuple[Tensor, Tensor] | None:
    r""":math:`h(M) = -\log\det(s I - M) + n \log s` (Bello, Aragam & Ravikumar 2022).

    Args:
        weights: M, shape (n, n), non-negative.
        radius: s; the function lives where the spectral radius of M is below it.

    Returns:
        h, a scalar, and its gradient :math:`(s I - M)^{-\top}`, shape (n, n); ``None`` outside of the domain.
    """
    n = len(weights)
    shifted = radius * torch.eye(n, dtype=weights.dtype, device=weights.device) - weights
    inverse, failed = torch.linalg.inv_ex(shifted)
    # s I - M is an M-matrix, the spectral radius of M below s, iff its inverse has no negative entry.
    if failed or not bool(inverse.min() >= -1e-12 * inverse.abs().max()):
        return None
    return n * math.log(radius) - torch.linalg.slogdet(shifted).logabsdet, inverse.T
