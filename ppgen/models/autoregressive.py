r"""What autoregressive families share: one site ``x``, a density in one pass, draws in steps.

.. math:: p(x) = \prod_i p(x_i \mid x_{j : j \text{ before } i}) .

A family gives the log-probability of whole events and a sampler that fills in the unknown part of a
partly known event; the rest follows. All log-probabilities are in nats.
"""

from __future__ import annotations

from abc import abstractmethod

import pyro
import torch
from torch import Tensor

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.distributions.autoregressive import AutoregressiveDistribution
from ppgen.errors import CapabilityError
from ppgen.models.conditioning import observed_part
from ppgen.nn.context import context_features
from ppgen.ops.random import forked_rng


class Autoregressive(GenerativeModel):
    """A density as a product of conditionals in an order. Abstract: a family adds its network.

    There are no latents, so the guide is empty and the ELBO is the log-likelihood itself.
    """

    density = Kind.EXACT

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Draw x, one coordinate after the other."""
        with self.data_plate(x, num, context):
            return pyro.sample("x", self.distribution(context), obs=x)

    def distribution(self, context: Tensor | None = None) -> AutoregressiveDistribution:
        """p(x | context) as a Pyro distribution; its batch shape is the context's, ``()`` without one."""
        if context is not None:
            context = context_features(context, self.context_dim, like=self._like)
        return AutoregressiveDistribution(self, self.event_shape, self.support, context=context)

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Exact log p(x_n | context_n) in nats, value of shape ``(N,)``; differentiable.

        Raises:
            DataError: values that x cannot have.
        """
        self.check_event(x)
        self.check_context(context)
        self.support.check(x)
        return Estimate.of(self.distribution(context).log_prob(x), Kind.EXACT)

    @torch.no_grad()
    def condition(
        self,
        x: Tensor,
        mask: Tensor,
        num: int = 1,
        *,
        context: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Exact draws of what follows a known beginning; the beginning may differ between data.

        Args:
            x: data, shape ``(N, *event_shape)``; what is missing may hold anything, NaN too.
            mask: bool, True where observed; broadcasts to the shape of ``x``. What is observed of a datum
                must come before all that is not, in the model's order.
            num: draws a datum.
            context: one row a datum, where the model is conditional.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, N, *event_shape)``, equal to ``x`` where observed.

        Raises:
            CapabilityError: a mask whose observed part is no beginning: draws given later values would
                need a sum over all that comes before them.
            ShapeError, ConfigError, DataError: as in
                :func:`~ppgen.models.conditioning.observed_part`.
        """
        filled, mask = observed_part(self, x, mask, num)
        self.check_context(context)
        self._check_beginning(mask)
        if context is not None:
            context = context_features(context, self.context_dim, like=self._like)
            context = context.expand(num, len(x), -1).flatten(0, 1)
        repeated = filled.expand(num, *x.shape).flatten(0, 1)
        with forked_rng(seed, self.device):
            drawn = self.complete(repeated, mask.expand(num, *x.shape).flatten(0, 1), context)
        return torch.where(mask, filled, drawn.reshape(num, *x.shape))

    # -- what a family adds ------------------------------------------------------------------

    @abstractmethod
    def event_log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log-probability, ``(N,)``, of data ``(N, *event_shape)`` under context rows ``(N, F)``; nats."""

    @abstractmethod
    def complete(self, x: Tensor, known: Tensor, context: Tensor | None) -> Tensor:
        """Draws, ``(N, *event_shape)``, that keep x where ``known`` is True; see :meth:`condition`."""

    @abstractmethod
    def orders(self) -> Tensor:
        """Orders of the coordinates in which the model draws them, shape ``(M, D)``: flat positions."""

    # -- helpers -----------------------------------------------------------------------------

    def event_draw(self, num: int, context: Tensor | None) -> Tensor:
        """Draws from p(x | context), ``(num, *event_shape)``; context features ``(num, F)``."""
        empty = self._like.new_zeros(num, *self.event_shape)
        return self.complete(empty, torch.zeros_like(empty, dtype=torch.bool), context)

    @property
    def _like(self) -> Tensor:
        """A tensor of the model's dtype and device."""
        return next(self.parameters())

    def _check_beginning(self, mask: Tensor) -> None:
        flat = mask.flatten(1)
        orders = self.orders().to(mask.device)
        if len(orders) > 1:
            if bool((flat != flat[:, :1]).any()):
                raise CapabilityError(
                    f"mask: this {type(self).__name__} averages {len(orders)} orders, and no part of x comes "
                    "first in all of them; build it with num_orders=1"
                )
            return
        in_order = flat[:, orders[0]]
        late = in_order[:, 1:] & ~in_order[:, :-1]
        if bool(late.any()):
            row, position = (int(i) for i in late.nonzero()[0])
            raise CapabilityError(
                f"mask: {type(self).__name__} draws what follows a known beginning, exactly; in row {row} "
                f"coordinate {int(orders[0, position + 1])} of the flat datum is observed and "
                f"{int(orders[0, position])}, before it in the model's order, is not. Observe a beginning, "
                "such as the top rows of an image, or take a family that conditions on any part: a mixture"
            )
