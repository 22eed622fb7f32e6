r"""Mass matrices from the draws of all chains together.

The inverse mass :math:`M^{-1} = L L^\top` is the covariance of the draws of a window, shrunk:

.. math::
    \frac{n}{n+5} S + \frac{5}{n+5} 10^{-3} I  \quad\text{(Stan's), and for a dense one before that}\quad
    S \leftarrow \frac{n}{n+D} S + \frac{D}{n+D} \operatorname{diag} S,

with n draws, which keeps it positive definite where draws are few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Moments:
    """Running mean and covariance of draws, in float64.

    Args:
        num_dims: D.
        full: whether the covariance is (D, D), or only its diagonal (D,).
        device: where the draws are.
    """

    def __init__(self, num_dims: int, *, full: bool, device: torch.device) -> None:
        self.full = full
        self._shape = (num_dims, num_dims) if full else (num_dims,)
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Forget all draws."""
        self.count = 0
        # Sums of differences from a draw's neighbourhood: squares of large values would cancel.
        self._shift = torch.zeros(self._shape[0], dtype=torch.float64, device=self._device)
        self._sum = torch.zeros_like(self._shift)
        self._products = torch.zeros(self._shape, dtype=torch.float64, device=self._device)

    def add(self, z: Tensor) -> None:
        """Take in draws (C, D)."""
        z = z.double()
        if self.count == 0:
            self._shift = z.mean(0)
        z = z - self._shift
        self.count += len(z)
        self._sum += z.sum(0)
        self._products += z.T @ z if self.full else (z * z).sum(0)

    def covariance(self) -> Tensor:
        """The sample covariance (D, D), or the variances (D,)."""
        mean = self._sum / self.count
        outer = torch.outer(mean, mean) if self.full else mean**2
        return (self._products - self.count * outer) / max(self.count - 1, 1)

    def scale(self) -> Tensor:
        """L, as ``params["scale"]``: (D,) or lower triangular (D, D), float64."""
        n, s = self.count, self.covariance()
        if not self.full:
            return (n / (n + 5) * s.clamp(min=0) + 5e-3 / (n + 5)).sqrt()
        num_dims, variances = len(s), s.diagonal().clamp(min=0)
        s = n / (n + num_dims) * s + torch.diag(num_dims / (n + num_dims) * variances)
        s = n / (n + 5) * s + torch.diag(torch.full_like(variances, 5e-3 / (n + 5)))
        factor, failed = torch.linalg.cholesky_ex(s)
        # Draws that differ by many orders of magnitude: their scales alone are still sound.
        return torch.diag(s.diagonal().sqrt()) if bool(failed) else factor

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {
            "count": self.count,
            "shift": self._shift.clone(),
            "sum": self._sum.clone(),
            "products": self._products.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count = state["count"]
        self._shift, self._sum, self._products = (
            state[name].to(self._device, copy=True) for name in ("shift", "sum", "products")
        )
