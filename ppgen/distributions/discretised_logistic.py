r"""The logistic distribution rounded to a grid of levels in [0, 1]."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional


class DiscretisedLogistic(TorchDistribution):
    r"""Mass that a logistic variable puts on the cells of ``levels`` grid values of [0, 1].

    With :math:`\sigma` the logistic function and half a cell :math:`h = 1 / (2 (L - 1))`,

    .. math:: P(x) = \sigma((x + h - \mu) / s) - \sigma((x - h - \mu) / s),

    where the cell of 0 reaches to minus infinity and the cell of 1 to infinity, so that
    the masses sum to one (Kingma et al. 2016; Salimans et al. 2017).

    Args:
        loc: location of the logistic, on the scale of [0, 1].
        log_scale: log of its scale s.
        levels: number L of grid values k / (L - 1).
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}
    has_rsample = False

    def __init__(
        self, loc: Tensor, log_scale: Tensor, levels: int, *, validate_args: bool | None = None
    ) -> None:
        self.loc, self.log_scale = broadcast_all(loc, log_scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The unit interval that holds the grid."""
        return constraints.unit_interval

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretisedLogistic:
        """The same distribution on a larger batch shape."""
        new = self._get_checked_instance(DiscretisedLogistic, _instance)
        new.loc, new.log_scale = self.loc.expand(batch_shape), self.log_scale.expand(batch_shape)
        new.levels = self.levels
        super(DiscretisedLogistic, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of grid values; nats."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (self.levels - 1)
        inverse_scale = torch.exp(-self.log_scale)
        upper = (value + half - self.loc) * inverse_scale
        lower = (value - half - self.loc) * inverse_scale
        # log(sigmoid(u) - sigmoid(l)) = logsigmoid(u) + logsigmoid(-l) + log(1 - exp(l - u))
        width = (2 * half * inverse_scale).clamp_min(torch.finfo(upper.dtype).tiny)
        inside = (
            functional.logsigmoid(upper) + functional.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        )
        bottom, top = functional.logsigmoid(upper), functional.logsigmoid(-lower)
        return torch.where(value < half, bottom, torch.where(value > 1 - half, top, inside))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws on the grid."""
        shape = self._extended_shape(torch.Size(sample_shape))
        eps = torch.finfo(self.loc.dtype).eps
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(eps, 1 - eps)
        draws = self.loc + torch.exp(self.log_scale) * torch.logit(uniform)
        return (draws.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """Mean over the grid, by summing over its levels."""
        grid = torch.linspace(0, 1, self.levels, dtype=self.loc.dtype, device=self.loc.device)
        values = grid.view(-1, *([1] * self.loc.ndim)).expand(-1, *self.loc.shape)
        return (self.log_prob(values).exp() * values).sum(0)
