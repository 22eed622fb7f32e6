"""The distribution of a simulator's output: it can be drawn from, and has no density.

In an implicit model a latent z is drawn and x = G(z) is computed from it. Given z there is
nothing random left, and over z the image of a thin latent space has no density with respect
to the volume of the data space (Mohamed & Lakshminarayanan 2016). Under Pyro the site ``x``
is drawn, traced, replayed and conditioned like any other; only its log-probability is refused.
"""

from __future__ import annotations

from typing import ClassVar, NoReturn

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppgen.errors import CapabilityError, ShapeError

_Shape = torch.Size | list[int] | tuple[int, ...]
_ONE_DRAW = torch.Size()


class Implicit(TorchDistribution):
    r"""A simulator's output x = G(z) for latents that have been drawn: a point mass without a density.

    Draws are ``value`` itself and carry its gradient, so a generator learns through the site.

    Args:
        value: output of the simulator, shape ``(*batch_shape, *event_shape)``.
        event_dim: how many of the last dimensions make one datum.
        validate_args: as in torch; there is nothing to validate in a value.

    Raises:
        ShapeError: ``value`` has fewer than ``event_dim`` dimensions.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"value": constraints.dependent}
    has_rsample = True

    def __init__(self, value: Tensor, event_dim: int = 0, *, validate_args: bool | None = None) -> None:
        if not 0 <= event_dim <= value.ndim:
            raise ShapeError(
                f"event_dim: expected 0 to {value.ndim} for a value of shape {tuple(value.shape)}, "
                f"got {event_dim}"
            )
        self.value = value
        cut = value.ndim - event_dim
        super().__init__(value.shape[:cut], value.shape[cut:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Real numbers, ``event_dim`` dimensions of them."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """The value, which is all there is."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Zero: given the latents nothing is random."""
        return torch.zeros_like(self.value)

    def expand(self, batch_shape: _Shape, _instance: Implicit | None = None) -> Implicit:
        """The same values, repeated over a larger batch."""
        new: Implicit = self._get_checked_instance(Implicit, _instance)
        batch_shape = torch.Size(batch_shape)
        new.value = self.value.expand(batch_shape + self.event_shape)
        super(Implicit, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: _Shape = _ONE_DRAW) -> Tensor:
        """The value, repeated over ``sample_shape``; gradients flow into it."""
        return self.value.expand(self._extended_shape(torch.Size(sample_shape)))

    def sample(self, sample_shape: _Shape = _ONE_DRAW) -> Tensor:
        """The value as :meth:`rsample` gives it, without its gradient."""
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> NoReturn:
        """Refused: an implicit model has no density.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError(
            "log_prob: an implicit model has no density, only draws; compare its samples with data "
            "(ppgen.metrics: FID, KID, precision and recall), train it with "
            "ppgen.inference.objectives.adversarial.Adversarial instead of an ELBO, or take a family "
            "with a likelihood (ppgen.models.families_with(HasLogLikelihood))"
        )
