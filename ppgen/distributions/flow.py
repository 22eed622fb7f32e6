r"""Normalising flows: invertible maps of a standard normal, and the distribution of their image.

A flow turns noise into data, :math:`x = T_1(T_2(\cdots T_K(z)))` with :math:`z \sim N(0, I_D)`, and

.. math:: \log p(x) = \log N(z; 0, I) + \sum_k \log\left|\det \partial T_k^{-1}\right| .

Every transform here is a :class:`pyro.distributions.TransformModule`, so it serves in
``pyro.distributions.TransformedDistribution`` too. None of them remembers anything between calls:
the value for a tensor always follows the weights of now. All log-probabilities are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pyro.distributions import TorchDistribution, TransformModule
from torch import Tensor
from torch.distributions import Transform, constraints

from ppgen.errors import ShapeError


class FlowTransform(TransformModule):
    r"""A bijection of :math:`R^D` from noise to data, as two passes that each know their log-determinant.

    A subclass defines :meth:`push` and :meth:`pull`; torch's ``Transform`` methods follow from them.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=0)

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data: ``(..., D)`` to ``(..., D)``."""
        raise TypeError(f"{type(self).__name__} defines no push")

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise z, ``(..., D)``, and ``log |det dz/dx|``, ``(...)``, in nats."""
        raise TypeError(f"{type(self).__name__} defines no pull")

    def push_with_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data x, ``(..., D)``, and ``log |det dx/dz|``, ``(...)``, in nats."""
        x = self.push(z, context)
        return x, self.log_det(z, x, context)

    def log_det(self, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``log |det dx/dz|``, ``(...)``, in nats, at noise ``z`` whose image is ``x``."""
        return -self.pull(x, context)[1]

    def condition(self, context: Tensor) -> Transform:
        """The transform for this context, labels or features, as Pyro's conditional transforms have it."""
        return _Conditioned(self, context)

    def with_cache(self, cache_size: int = 1) -> Self:
        """The transform itself: a cache would outlive the weights that it was computed with."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        return self.push(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.pull(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log |det dy/dx|`` of the map from noise ``x`` to data ``y``, shape ``(...)``, in nats."""
        return self.log_det(x, y)


class _Conditioned(Transform):
    """A flow transform at one context."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, transform: FlowTransform, context: Tensor) -> None:
        super().__init__(cache_size=0)
        self.transform, self.context = transform, context

    def with_cache(self, cache_size: int = 1) -> Self:
        return self

    def _call(self, x: Tensor) -> Tensor:
        return self.transform.push(x, self.context)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform.pull(y, self.context)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.transform.log_det(x, y, self.context)


class FlowDistribution(TorchDistribution):
    r"""The distribution of a normal pushed through flow layers.

    Unlike ``pyro.distributions.TransformedDistribution`` it keeps no cache, and each layer is
    evaluated once for value and log-determinant together.

    Args:
        transforms: from the data's side to the noise's: ``x = T_1(T_2(... z))``.
        loc: mean of the normal noise, shape ``(D,)``; its dtype and device are those of the draws.
        event_shape: shape of one draw, D numbers in all.
        context: what the layers are conditioned on, features of shape ``(*batch_shape, C)``.
        validate_args: as in torch.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self,
        transforms: Sequence[FlowTransform],
        loc: Tensor,
        event_shape: Sequence[int],
        *,
        context: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        event_shape = torch.Size(event_shape)
        if event_shape.numel() != loc.numel():
            raise ShapeError(
                f"event_shape: loc has {loc.numel()} numbers, an event of shape {tuple(event_shape)} has "
                f"{event_shape.numel()}; they must match"
            )
        self.transforms, self.loc, self.context = tuple(transforms), loc, context
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real tensors of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Self | None = None) -> Self:
        """The same distribution with another batch shape."""
        new: Self = self._get_checked_instance(FlowDistribution, _instance)
        batch_shape = torch.Size(batch_shape)
        new.transforms, new.loc = self.transforms, self.loc
        new.context = None if self.context is None else self.context.expand(*batch_shape, -1)
        super(FlowDistribution, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, shape ``(*sample_shape, *batch_shape, *event_shape)``, differentiable once."""
        return self.from_noise(self._noise(sample_shape))

    def rsample_with_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draws as :meth:`rsample` makes them, and their log densities, ``(*sample_shape, *batch_shape)``.

        Where a draw is one pass and a density is not, as in an inverse autoregressive flow, this is the
        cheap way to both. In a Pyro guide::

            z, log_q = q.rsample_with_log_prob()
            pyro.sample("z", Delta(z, log_density=log_q, event_dim=1))
        """
        noise = z = self._noise(sample_shape)
        log_det = z.new_zeros(())
        for transform in reversed(self.transforms):
            z, change = transform.push_with_log_det(z, self.context)
            log_det = log_det + change
        return z.reshape(*z.shape[:-1], *self.event_shape), self._log_base(noise) - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(..., *batch_shape)``; exact."""
        if self._validate_args:
            self._validate_sample(value)
        z, log_det = self.to_noise(value)
        log_density = log_det + self._log_base(z)
        return log_density.expand(torch.broadcast_shapes(log_density.shape, self.batch_shape))

    def to_noise(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The noise of a value, ``(..., D)``, and ``log |det dz/dx|``, ``(...)``, in nats."""
        z = value.flatten(-len(self.event_shape)) if self.event_shape else value[..., None]
        if self.context is not None:
            z = z.expand(*torch.broadcast_shapes(z.shape[:-1], self.context.shape[:-1]), -1)
        log_det = z.new_zeros(())
        for transform in self.transforms:
            z, change = transform.pull(z, self.context)
            log_det = log_det + change
        return z, log_det

    def from_noise(self, z: Tensor) -> Tensor:
        """The value that noise ``(..., D)`` stands for, ``(..., *event_shape)``."""
        for transform in reversed(self.transforms):
            z = transform.push(z, self.context)
        return z.reshape(*z.shape[:-1], *self.event_shape)

    def _noise(self, sample_shape: Sequence[int]) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, self.loc.numel())
        return self.loc + torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def _log_base(self, z: Tensor) -> Tensor:
        """Log density of noise ``(..., D)``, in nats."""
        return -0.5 * ((z - self.loc).square().sum(-1) + self.loc.numel() * math.log(2 * math.pi))
