r"""A mixture of equal kernels, one at each of many centres: the distribution of a kernel density estimate.

.. math::

    p(x) = \frac1M \sum_{m=1}^M \frac{1}{\prod_d h_d} K\Big(\frac{x - c_m}{h}\Big)

with bandwidths h, one a coordinate. Kernels depend on the norm alone, that is they are spherical after
division by the bandwidths, not products of kernels of one coordinate (the Gaussian is both). With r the norm
and :math:`V_D` the volume of the unit ball of D dimensions:

* ``gaussian``: :math:`(2\pi)^{-D/2} \exp(-r^2 / 2)`;
* ``epanechnikov``: :math:`\frac{D + 2}{2 V_D} (1 - r^2)` within the unit ball, 0 outside;
* ``uniform``: :math:`1 / V_D` within the unit ball, 0 outside.

References: Silverman, *Density Estimation for Statistics and Data Analysis*, 1986; Epanechnikov, Theory of
Probability and its Applications 14, 1969.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

from ppgen.errors import ConfigError, ShapeError
from ppgen.ops.chunks import rows_per_chunk

KernelName = Literal["gaussian", "epanechnikov", "uniform"]
# The squared norm of a draw from a kernel on the unit ball is Beta(D / 2, b) distributed, with this b.
_BETA = {"uniform": 1.0, "epanechnikov": 2.0}
KERNELS = ("gaussian", *_BETA)


def log_normaliser(kernel: KernelName, num_dims: int) -> float:
    """Log of the integral of :func:`log_kernel_sum`'s kernel over ``num_dims`` dimensions, in nats."""
    if kernel == "gaussian":
        return num_dims / 2 * math.log(2 * math.pi)
    log_ball = num_dims / 2 * math.log(math.pi) - math.lgamma(num_dims / 2 + 1)
    return log_ball if kernel == "uniform" else log_ball + math.log(2 / (num_dims + 2))


def log_kernel_sum(kernel: KernelName, squares: Tensor) -> Tensor:
    """Log of sums over the last dimension of kernels without their constants; ``-inf`` where all are 0.

    Args:
        kernel: which one.
        squares: squared norms, shape (..., M); ``inf`` leaves a term out.
    """
    if kernel == "gaussian":
        return (-0.5 * squares).logsumexp(-1)
    heights = (1 - squares).clamp_min(0) if kernel == "epanechnikov" else (squares <= 1).to(squares)
    total = heights.sum(-1)
    return total.where(total > 0, 1.0).log().where(total > 0, -torch.inf)


def log_kernel_sums(kernel: KernelName, squares: Tensor, bandwidths: list[float]) -> Tensor:
    """:func:`log_kernel_sum` at each of G bandwidths, (G, n), for squared distances (n, M); no gradient."""
    if kernel != "gaussian":
        return torch.stack([log_kernel_sum(kernel, squares / h**2) for h in bandwidths])
    nearest = squares.amin(-1, keepdim=True)
    nearest = nearest.where(nearest.isfinite(), 0.0)
    beyond, terms, found = squares - nearest, torch.empty_like(squares), []
    for h in bandwidths:
        # Terms below e^-80 of the largest are as good as none, and subnormal numbers are slow.
        torch.mul(beyond, -0.5 / h**2, out=terms)
        sums = terms.clamp_min_(-80.0).exp_().sum(-1)
        found.append(sums.log() - 0.5 / h**2 * nearest[:, 0])
    return torch.stack(found)


def log_slice(kernel: KernelName, squares: Tensor, num_free: Tensor) -> Tensor:
    """Log of the integral of a kernel over some coordinates, up to a constant that they share.

    Args:
        kernel: which one.
        squares: squared norms of the other coordinates, shape (..., N, M).
        num_free: how many are integrated out of each datum, shape (N, 1).
    """
    if kernel == "gaussian":
        return -0.5 * squares
    # A ball of the radius that is left, on which the kernel is one of its own kind.
    left = (1 - squares).clamp_min(0)
    power = num_free / 2 + (_BETA[kernel] - 1)
    return torch.where(left > 0, power * left.where(left > 0, 1.0).log(), -torch.inf)


def kernel_noise(kernel: KernelName, free: Tensor, radius: Tensor | None = None) -> Tensor:
    """Draws from a kernel over the coordinates marked ``free``, 0 in the others; same shape, (..., D).

    Args:
        kernel: which one.
        free: 1 or 0, shape (..., D).
        radius: what is left of the unit ball's radius, shape (...); 1 by default. Gaussians have no use for
            it.
    """
    normal = torch.randn_like(free) * free
    if kernel == "gaussian":
        return normal
    num_free = free.sum(-1).clamp_min(1)
    other = torch.full_like(num_free, _BETA[kernel])
    length = torch.distributions.Beta(num_free / 2, other, validate_args=False).sample().sqrt()
    if radius is not None:
        length = length * radius
    norm = normal.norm(dim=-1).clamp_min(torch.finfo(normal.dtype).tiny)
    return normal * (length / norm)[..., None]


class KernelMixture(TorchDistribution):
    """Equal kernels at M centres.

    A density of R points takes O(R M D) operations; it is worked out in chunks of rows, whose memory does not
    grow with R, in the backward pass too.

    Args:
        centres: shape ``(*batch, M, D)``.
        bandwidths: shape (D,), in the units of the data.
        kernel: ``"gaussian"``, ``"epanechnikov"`` or ``"uniform"``.
        event_shape: of a datum, D numbers in all; (D,) by default.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(
        self,
        centres: Tensor,
        bandwidths: Tensor,
        kernel: KernelName = "gaussian",
        event_shape: torch.Size | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if kernel not in KERNELS:
            raise ConfigError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
        if centres.ndim < 2 or bandwidths.shape != centres.shape[-1:]:
            raise ShapeError(
                "centres, bandwidths: expected shapes (..., M, D) and (D,), got "
                f"{tuple(centres.shape)} and {tuple(bandwidths.shape)}"
            )
        self.centres, self.bandwidths, self.kernel = centres, bandwidths, kernel
        event = centres.shape[-1:] if event_shape is None else event_shape
        super().__init__(centres.shape[:-2], event, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All real events: outside of compact kernels the density is 0."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> KernelMixture:
        """The same distribution on a larger batch shape."""
        new = self._get_checked_instance(KernelMixture, _instance)
        new.centres, new.bandwidths, new.kernel = self.centres, self.bandwidths, self.kernel
        super(KernelMixture, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; nats. ``-inf`` where no kernel reaches."""
        if self._validate_args:
            self._validate_sample(value)
        shape = value.shape[: value.ndim - len(self.event_shape)]
        points = value.reshape(*shape, -1) / self.bandwidths
        centres = self.centres / self.bandwidths
        if centres.ndim > 2:
            sums = self._log_sum(points[..., None, :], centres)[..., 0]
        else:
            parts = points.flatten(0, -2).split(rows_per_chunk(len(centres), value.device))
            if len(parts) == 1 or not torch.is_grad_enabled():
                found = [self._log_sum(part, centres) for part in parts]
            else:  # distances are worked out again in the backward pass, not kept
                found = [
                    checkpoint(self._log_sum, part, centres, use_reentrant=False, preserve_rng_state=False)
                    for part in parts
                ]
            sums = torch.cat(found).view(shape)
        num_centres, num_dims = self.centres.shape[-2:]
        constant = math.log(num_centres) + log_normaliser(self.kernel, num_dims)
        log_prob = sums - self.bandwidths.log().sum() - constant
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """A centre at random, and noise from the kernel around it."""
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        num_centres, num_dims = self.centres.shape[-2:]
        k = torch.randint(num_centres, batch, device=self.centres.device)
        if self.centres.ndim == 2:
            chosen = self.centres[k]
        else:
            wide = self.centres.expand(*batch, num_centres, num_dims)
            chosen = wide.gather(-2, k[..., None, None].expand(*batch, 1, num_dims))[..., 0, :]
        noise = kernel_noise(self.kernel, torch.ones_like(chosen))
        return (chosen + self.bandwidths * noise).reshape(shape)

    def _log_sum(self, points: Tensor, centres: Tensor) -> Tensor:
        # Differences come first: an expansion of the square would cancel where bandwidths are small.
        distances = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
        return log_kernel_sum(self.kernel, distances.square())
