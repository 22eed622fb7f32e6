r"""Stein variational gradient descent (Liu & Wang 2016).

Particles :math:`y_1, \dots, y_P` follow

.. math:: \phi(y_i) = \frac1P \sum_j k(y_j, y_i) \nabla \log p(y_j) + \nabla_{y_j} k(y_j, y_i),

drawn to where p is high and pushed apart by the kernel. Where particles have parts, such as a latent graph
and its parameters, the kernel is the mean of one squared exponential for each part (Lorch et al. 2021),
:math:`k_b(y, y') = \exp(-\lVert y_b - y'_b \rVert^2 / h_b)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def stein_directions(
    parts: Sequence[Tensor], gradients: Sequence[Tensor], bandwidths: Sequence[float | None]
) -> list[Tensor]:
    r"""The direction :math:`\phi` of each particle, part by part.

    Args:
        parts: each of shape (P, ...).
        gradients: of log p at the particles, shaped as the parts.
        bandwidths: h of each part; ``None`` for the median of the squared distances over log(P + 1).

    Returns:
        Shaped as the parts.
    """
    flat = [part.detach().flatten(1) for part in parts]
    num = len(flat[0])
    squared = [torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist").square() for y in flat]
    widths = [_median(d) if h is None else h for d, h in zip(squared, bandwidths, strict=True)]
    kernels = [torch.exp(-d / h) for d, h in zip(squared, widths, strict=True)]
    attraction = torch.stack(kernels).mean(0)
    directions = []
    for y, part, gradient, kernel, h in zip(flat, parts, gradients, kernels, widths, strict=True):
        # The sum over j of the gradient in y_j of k(y_j, y_i), which points from y_j to y_i.
        repulsion = 2 / h * (y * kernel.sum(1, keepdim=True) - kernel @ y) / len(parts)
        directions.append(((attraction @ gradient.flatten(1) + repulsion) / num).view_as(part))
    return directions


def _median(squared: Tensor) -> float:
    num = len(squared)
    if num < 2:
        return 1.0
    above = squared[torch.ones_like(squared, dtype=torch.bool).triu(1)]
    return max(float(above.median()) / math.log(num + 1), 1e-12)
