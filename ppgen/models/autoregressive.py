r"""What autoregressive families share: one site ``x``, a density in one pass, draws in steps.

.. math:: p(x) = \prod_i p(x_i \mid x_{j : j \text{ before } i}) .

A family gives the log-probability of whole events and a sampler that fills in what follows a known beginning;
the rest follows. Where a few coordinates are missing elsewhere, on a grid, all their values are tried, and
drawn in proportion to the densities. All log-probabilities are in nats.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import cast

import pyro
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.datasets.values import Values
from ppgen.distributions.autoregressive import AutoregressiveDistribution
from ppgen.errors import CapabilityError, ConfigError, ShapeError
from ppgen.models.conditioning import observed_part
from ppgen.nn.context import context_features
from ppgen.ops.random import forked_rng

# The most values of a datum's missing coordinates that are tried, and how many of them at once.
_MAX_TRIED, _TRIED_AT_ONCE = 4096, 512


class Autoregressive(GenerativeModel):
    """A density as a product of conditionals in an order. Abstract: a family adds its network.

    There are no latents, so the guide is empty and the ELBO is the log-likelihood itself.
    """

    density = Kind.EXACT

    def __init__(
        self, event_shape: tuple[int, ...] | torch.Size, *, support: Values, context_dim: int = 0
    ) -> None:
        super().__init__(event_shape, support=support)
        if not self.event_shape:
            raise ShapeError(
                "event_shape: expected one dimension or more, such as (1,) for one number, got ()"
            )
        self.context_dim = check_context_dim(context_dim)

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Draw x, one coordinate after the other."""
        with self.data_plate(x, num, context):
            return pyro.sample("x", self.distribution(context), obs=x)

    def distribution(self, context: Tensor | None = None) -> AutoregressiveDistribution:
        """p(x | context) as a Pyro distribution; its batch shape is the context's, ``()`` without one."""
        if context is not None:
            context = self._features(context)
        return AutoregressiveDistribution(self, self.event_shape, self.support, context=context)

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Exact log p(x_n | context_n) in nats, value of shape ``(N,)``; differentiable.

        Raises:
            DataError: values that x cannot have.
        """
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
        """Exact draws of what is missing; what is may differ between data.

        What follows a known beginning is drawn as :meth:`sample` does, only started later. Another missing
        part must be on a grid and have no more than 4096 values in all, such as 12 binary pixels or one of
        256 levels: for each of them the density is computed, which takes as long as of so many data.

        Args:
            x: data, shape ``(N, *event_shape)``; what is missing may hold anything, NaN too.
            mask: bool, True where observed; broadcasts to the shape of ``x``.
            num: draws a datum.
            context: one row a datum, where the model is conditional.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, N, *event_shape)``, equal to ``x`` where observed.

        Raises:
            CapabilityError: a mask whose observed part is no beginning in the model's order, of a datum of
                which too much is missing: draws given later values need a sum over all that comes before.
            ShapeError, ConfigError, DataError: as in
                :func:`~ppgen.models.conditioning.observed_part`.
        """
        filled, mask = observed_part(self, x, mask, num)
        if context is not None:
            context = self._features(context)
        follows = self._follows(mask)
        self._check_missing(mask, follows)
        drawn = filled.expand(num, *x.shape).clone()
        with forked_rng(seed, self.device):
            if bool(follows.any()):
                features = None if context is None else context[follows]
                drawn[:, follows] = self._followed(filled[follows], mask[follows], num, features)
            for n in (~follows).nonzero()[:, 0].tolist():
                features = None if context is None else context[n]
                drawn[:, n] = self._tried(filled[n], mask[n], num, features)
        return torch.where(mask, filled, drawn)

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

    def _features(self, context: Tensor) -> Tensor:
        """A context as rows of features, ``(..., F)``."""
        return context_features(context, self.context_dim, like=self._like)

    @property
    def _like(self) -> Tensor:
        """A tensor of the model's dtype and device."""
        return next(self.parameters())

    def _follows(self, mask: Tensor) -> Tensor:
        """Whether what is missing follows all that is known, in the order of the draws; shape ``(N,)``."""
        flat = mask.flatten(1)
        orders = self.orders().to(mask.device)
        if len(orders) > 1:
            return (flat == flat[:, :1]).all(-1)
        in_order = flat[:, orders[0]]
        return ~(in_order[:, 1:] & ~in_order[:, :-1]).any(-1)

    def _no_beginning(self, known: Tensor) -> str:
        """Why the known part, bool ``(*event_shape)``, is not one that draws can go on from."""
        orders, name = self.orders(), type(self).__name__
        if len(orders) > 1:
            return (
                f"this {name} averages {len(orders)} orders, and no part of x comes first in all of them; "
                "build it with num_orders=1"
            )
        in_order = known.flatten().cpu()[orders[0].cpu()]
        late = int((in_order[1:] & ~in_order[:-1]).nonzero()[0, 0])
        return (
            f"{name} draws what follows a known beginning; coordinate {int(orders[0, late + 1])} of the flat "
            f"datum is observed and {int(orders[0, late])}, before it in the model's order, is not. Observe "
            "a beginning, such as the top rows of an image"
        )

    def _check_missing(self, mask: Tensor, follows: Tensor) -> None:
        """Raise where neither a beginning is known nor all values of what is missing can be tried."""
        for row in (~follows).nonzero()[:, 0].tolist():
            num_missing, levels = int((~mask[row]).sum()), self.support.levels
            if levels is None or levels**num_missing > _MAX_TRIED:
                values = "real values" if levels is None else f"{levels}**{num_missing} values"
                raise CapabilityError(
                    f"mask: {self._no_beginning(mask[row])}; or leave no more missing than can be tried, "
                    f"{_MAX_TRIED} values in all, where row {row} has {values}; or take a family that "
                    "conditions on any part, such as a mixture"
                )

    def _followed(self, x: Tensor, known: Tensor, num: int, context: Tensor | None) -> Tensor:
        """Draws ``(num, N, *event_shape)`` of what follows known beginnings."""

        def rows(t: Tensor) -> Tensor:
            return t.expand(num, *t.shape).flatten(0, 1)

        drawn = self.complete(rows(x), rows(known), None if context is None else rows(context))
        return drawn.unflatten(0, (num, -1))

    def _tried(self, x: Tensor, known: Tensor, num: int, context: Tensor | None) -> Tensor:
        """Draws ``(num, *event_shape)`` of one datum from the densities of all values of what is missing."""
        levels = cast(int, self.support.levels)
        grid = torch.arange(levels, dtype=x.dtype, device=x.device) / (levels - 1)
        values = torch.cartesian_prod(*[grid] * int((~known).sum()))
        tried = x.expand(len(values), *x.shape).clone()
        tried[:, ~known] = values.view(len(values), -1)
        with evaluating(self):
            log_probs = [
                self.event_log_prob(part, None if context is None else context.expand(len(part), -1))
                for part in tried.split(_TRIED_AT_ONCE)
            ]
        chosen = torch.multinomial(torch.cat(log_probs).softmax(0), num, replacement=True)
        return tried[chosen]


def check_context_dim(context_dim: int) -> int:
    """A number of classes or features; raises :class:`~ppgen.errors.ConfigError` where it is none."""
    if isinstance(context_dim, bool) or not isinstance(context_dim, int) or context_dim < 0:
        raise ConfigError(
            f"context_dim: expected a number of classes or features, 0 for none, got {context_dim!r}"
        )
    return context_dim


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within, no dropout and all orders: a draw follows the model, not a thinned copy of it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
