r"""Linear-Gaussian state-space models as distributions of whole sequences, the states integrated out.

The initial state emits first. NaN is a missing coordinate and is integrated out. See :mod:`ppgen.ops.kalman`
for the model and the recursions; cost O(T (L^3 + D L^2)), once for all sequences where nothing is missing.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppgen.distributions.missing import or_missing
from ppgen.ops.kalman import LinearGaussian, kalman_filter


class LinearGaussianSequence(TorchDistribution):
    """Sequences of T steps of D coordinates.

    Args:
        chain: the parameters.
        event_shape: (T,) or (T, D).
        num_steps: T where it is not the first dimension.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True
    #: NaN in observed values is a missing coordinate.
    takes_missing = True

    def __init__(
        self,
        chain: LinearGaussian,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_steps: int | None = None,
        batch_shape: tuple[int, ...] | torch.Size = (),
        validate_args: bool | None = None,
    ) -> None:
        self.chain = chain
        self.num_steps = event_shape[0] if num_steps is None else num_steps
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Real numbers or NaN."""
        return or_missing(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> LinearGaussianSequence:
        """The same distribution on a larger batch shape."""
        return LinearGaussianSequence(
            self.chain,
            self.event_shape,
            num_steps=self.num_steps,
            batch_shape=torch.Size(batch_shape),
            validate_args=self._validate_args,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density by the Kalman filter; nats."""
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        flat = value.expand(batch + self.event_shape).reshape(-1, self.num_steps, len(self.chain.offset))
        log_prob = kalman_filter(flat, self.chain).log_prob.view(batch)
        return log_prob.to(torch.promote_types(value.dtype, self.chain.offset.dtype))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Sequences, differentiable in the parameters."""
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        states = self.sample_states(batch, self.num_steps)
        return self.emit(states).reshape(shape)

    def sample_states(self, batch: torch.Size, num_steps: int, before: Tensor | None = None) -> Tensor:
        """Paths from the prior, ``(*batch, num_steps, L)``, from states one step before if they are given."""
        chain = self.chain
        loc = chain.initial_loc
        noise = torch.randn(*batch, num_steps, len(loc), dtype=loc.dtype, device=loc.device)
        path: list[Tensor] = []
        last = before
        for t in range(num_steps):
            if last is not None:
                state = last @ chain.transition.T + noise[..., t, :] @ chain.transition_tril.T
            else:
                state = loc + noise[..., 0, :] @ chain.initial_tril.T
            last = state
            path.append(state)
        return torch.stack(path, -2)

    def emit(self, states: Tensor) -> Tensor:
        """Steps given their states, (..., L) to (..., D)."""
        means = states @ self.chain.loading.T + self.chain.offset
        return means + self.chain.noise_scale * torch.randn_like(means)
