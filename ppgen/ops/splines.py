r"""Monotone rational-quadratic splines with linear tails (Durkan, Bekasov, Murray & Papamakarios 2019).

A spline maps :math:`[-B, B]` onto itself through K + 1 knots :math:`(x_k, y_k)` with slopes
:math:`d_k > 0`, and is the identity outside. Between two knots, with width w, height h,
:math:`s = h / w` and :math:`t = (x - x_k) / w`,

.. math:: y = y_k + h\, \frac{t\,(s t + d_k (1 - t))}{s\,(t^2 + (1 - t)^2) + (d_k + d_{k+1})\, t (1 - t)} .

Both directions and the logarithm of the slope are closed forms that add positive terms only, so
that nothing cancels in float32. For the inverse that takes a step: with :math:`\rho = (y - y_k) / h`, the
discriminant of the quadratic for t is

.. math:: (d_k (1 - \rho) - d_{k+1} \rho)^2 + 4 s^2 \rho (1 - \rho) = q^2 + 4 s^2 \rho (1 - \rho),

never zero; with :math:`R = |q| + \sqrt{q^2 + 4 s^2 \rho (1 - \rho)}` the root is
:math:`t = 2 s \rho / (2 s \rho + R)` where :math:`q \ge 0`, and
:math:`1 - t = 2 s (1 - \rho) / (2 s (1 - \rho) + R)` where :math:`q < 0`.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

#: The least share of the interval that a bin can have, in width and in height.
MIN_SHARE = 1e-3
#: The least slope at a knot.
MIN_SLOPE = 1e-3
#: The most bins of a spline: their least shares fill half of the interval.
MAX_BINS = int(0.5 / MIN_SHARE)

# softplus of this, and the least slope, make 1: parameters of zero are the identity.
_UNIT = math.log(math.expm1(1 - MIN_SLOPE))


def rational_quadratic(
    x: Tensor, parameters: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The spline at ``x``, or its inverse, each element by its own parameters.

    Differentiable as often as wanted. NaN stays NaN.

    Args:
        x: any shape.
        parameters: unconstrained, shape ``(3 K - 1, *x.shape)``: softmax gives the K widths and the K
            heights, softplus the slopes of the inner knots. Zeros are the identity.
        bound: B.
        inverse: evaluate the inverse function.

    Returns:
        The value, and the logarithm of its slope in ``x``, each of the shape of ``x``.
    """
    num_bins = (len(parameters) + 1) // 3
    shape = x.shape
    # A network may have run in lower precision; one plane of contiguous numbers a parameter.
    raw = parameters.to(x.dtype).reshape(len(parameters), -1)
    x = x.reshape(-1)
    inside = x.detach().abs() < bound
    at = x.masked_fill(~inside, 0.0)

    shares, slopes = raw.split([2 * num_bins, num_bins - 1])
    shares = shares.unflatten(0, (2, num_bins)).softmax(1)
    knots = _knots(shares, bound)
    cell = (at.detach() >= knots.detach()[int(inverse), 1:-1]).sum(0)
    edge = torch.zeros_like(x)[None]
    table = torch.cat([knots.flatten(0, 1), edge, slopes, edge])
    rows = cell + _first_rows(num_bins, x.device)
    corners, ends = table.gather(0, rows).split([4, 2])
    left, right, low, high = corners.unbind(0)
    first, last = (functional.softplus(ends + _UNIT) + MIN_SLOPE).unbind(0)

    width, height = right - left, high - low
    secant = height / width
    if inverse:
        part = (at - low) / height
        rest = 1 - part
        q = first * rest - last * part
        root = q.abs() + (q.square() + 4 * secant.square() * part * rest).sqrt()
        steep = q >= 0
        twice = 2 * secant * torch.where(steep, part, rest)
        near = twice / (twice + root)
        far = root / (twice + root)
        t, u = torch.where(steep, near, far), torch.where(steep, far, near)
        value = left + width * t
    else:
        t = (at - left) / width
        u = 1 - t
    mixed = t * u
    denominator = secant * (1 - 2 * mixed) + (first + last) * mixed
    slope = (secant / denominator).square() * (last * t * t + 2 * secant * mixed + first * u * u)
    log_slope = slope.log()
    if inverse:
        log_slope = -log_slope
    else:
        value = low + height * t * (secant * t + first * u) / denominator
    value = torch.where(inside, value, x)
    return value.view(shape), log_slope.masked_fill(~inside, 0.0).view(shape)


def _knots(shares: Tensor, bound: float) -> Tensor:
    """Knots ``(2, K + 1, M)`` from -B to B, both exact, whose gaps follow ``shares``, ``(2, K, M)``."""
    weight, offset = _accumulation(shares.shape[1], bound, shares.dtype, shares.device)
    if shares.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return torch.baddbmm(offset, weight, shares)
    # Elsewhere a product of matrices may be rounded to fewer digits than a knot needs.
    inner = shares.cumsum(1)[:, :-1] * weight[:1, 1:-1, :1] + offset[:, 1:-1]
    ends = offset[:, :: len(offset[0]) - 1].expand(-1, -1, shares.shape[-1])
    return torch.cat([ends[:, :1], inner, ends[:, 1:]], 1)


@functools.lru_cache(maxsize=32)
def _accumulation(
    num_bins: int, bound: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The affine map from shares to knots: weights ``(2, K + 1, K)`` and offsets ``(2, K + 1, 1)``."""
    free = 2 * bound * (1 - num_bins * MIN_SHARE)
    weight = torch.ones(num_bins + 1, num_bins, dtype=torch.float64).tril(-1) * free
    offset = 2 * bound * MIN_SHARE * torch.arange(num_bins + 1, dtype=torch.float64) - bound
    weight[-1], offset[-1] = 0.0, bound
    weight, offset = weight.to(device, dtype), offset.to(device, dtype)
    return weight.expand(2, -1, -1), offset[:, None].expand(2, -1, -1)


@functools.lru_cache(maxsize=32)
def _first_rows(num_bins: int, device: torch.device) -> Tensor:
    """Where the table of knots and slopes holds what belongs to cell 0: both ends, of all three."""
    rows = [0, 1, num_bins + 1, num_bins + 2, 2 * num_bins + 2, 2 * num_bins + 3]
    return torch.tensor(rows, device=device)[:, None]
