r"""Autoregressive families whose network goes from step to step and remembers what it has read.

.. math:: p(x \mid c) = \prod_{s=1}^S p(x_s \mid x_1, \dots, x_{s-1}, c)

A step is a token, a pixel, or all coordinates of a series at one time. A family gives a network and a head;
density, cached draws and completion follow.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ppgen.datasets.values import REAL, Values, grid
from ppgen.distributions.heads import Head
from ppgen.distributions.steps import StepHead, Steps, beyond_the_end
from ppgen.errors import ConfigError, ShapeError
from ppgen.models.autoregressive import Autoregressive, evaluating
from ppgen.nn.context import context_features


class CausalNetwork(Protocol):
    """What is asked of the network: P parameters a step, of steps that it is given as ``(N, ..., D)``."""

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters ``(N, S, P)`` of all steps of x; those of step s depend on the steps before s."""

    def begin(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Any]:
        """Parameters ``(N, P)`` of the step after the first s of x, s < S, and the cache for :meth:`step`."""

    def step(self, x: Tensor, cache: Any) -> Tensor:
        """Parameters ``(N, P)`` of the step after this one; the cache is brought up to date."""


class Stepwise(Autoregressive):
    """An autoregressive model with a causal network. Abstract: a family sets ``network`` and ``step_head``.

    Args:
        event_shape: shape of one datum.
        head: the distribution of one coordinate.
        steps: how an event is cut into steps.
        ragged: whether sequences may end early, in steps of NaN: their likelihood is then that of what they
            hold, the sum over all that could follow.
        context_dim: classes or features of the context, or of one of its items; 0 for none.
        context_length: items of a context that is a sequence; ``None`` for a context of one row.
    """

    network: nn.Module
    step_head: nn.Module

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        head: Head,
        *,
        per_step: int = 1,
        ragged: bool = False,
        context_dim: int = 0,
        context_length: int | None = None,
    ) -> None:
        values = REAL if head.levels is None else grid(head.levels)
        super().__init__(
            event_shape,
            support=Values(values.kind, values.levels, missing=ragged),
            context_dim=context_dim,
        )
        if context_length is not None and (context_length < 1 or not context_dim):
            raise ConfigError(
                f"context_length: expected a positive integer beside a context_dim, got {context_length} "
                f"with context_dim={context_dim}"
            )
        self.head, self.steps = head, Steps(self.event_shape, per_step)
        self.item_dim, self.context_length = context_dim, context_length
        # Sequences of features travel as one row; the network is given them item by item.
        self.context_dim = context_dim * (context_length or 1)

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
        """Exact draws of what is missing: after a prompt, below the upper part of an image, in a small gap.

        Arguments, result and errors are those of
        :meth:`~ppgen.models.autoregressive.Autoregressive.condition`. Steps beyond the end of a ragged
        sequence count as missing.
        """
        if self.support.missing and isinstance(mask, Tensor) and mask.dtype == torch.bool:
            with contextlib.suppress(RuntimeError):  # shapes that do not fit are refused with a reason below
                mask = mask & ~x.isnan()
        return super().condition(x, mask, num, context=context, seed=seed)

    def event_log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log p(x_n), shape ``(N,)``, in nats, in one pass."""
        steps = self.steps.split(x)
        beyond = beyond_the_end(steps) if self.support.missing else None
        if beyond is not None:  # no datum needs the steps beyond the longest one's end
            longest = int((~beyond).any(0).sum())
            steps, beyond = steps[:, :longest].nan_to_num(0.0), beyond[:, :longest]
        params = self._network(steps, self._items(context))
        each = self._head.log_prob(params, steps)
        return (each if beyond is None else each.masked_fill(beyond, 0.0)).sum(-1)

    def complete(self, x: Tensor, known: Tensor, context: Tensor | None) -> Tensor:
        """Draws that keep x where ``known``, step by step with cached activations; ``(N, *event_shape)``."""
        return self.unroll(x, known, context)

    @torch.no_grad()
    def unroll(
        self, x: Tensor, known: Tensor, context: Tensor | None = None, *, cached: bool = True
    ) -> Tensor:
        """As :meth:`complete`. With ``cached=False`` each step reads all before it anew.

        That takes much longer and gives the same numbers up to rounding: for tests and measurements.
        """
        steps, kept = self.steps.split(x).clone(), self.steps.split(known)
        # A beginning that all data have is read in one pass.
        first = 0 if x.is_meta else int(kept.flatten(2).all(-1).all(0).long().cumprod(0).sum())
        if first == len(self.steps):
            return x
        noise = self.head.noise(tuple(steps.shape), steps)
        items = self._items(context)
        with evaluating(self.network), evaluating(self.step_head):
            params, cache = self._network.begin(steps[:, :first], items)
            for s in range(first, len(self.steps)):
                if s > first:
                    if cached:
                        params = self._network.step(steps[:, s - 1], cache)
                    else:
                        params, _ = self._network.begin(steps[:, :s], items)
                steps[:, s] = self._head.draw(params, noise[:, s], steps[:, s], kept[:, s])
        return self.steps.join(steps)

    def orders(self) -> Tensor:
        """The order in which coordinates are drawn, shape ``(1, D)``: flat positions."""
        return self.steps.order()[None]

    # -- helpers -----------------------------------------------------------------------------

    @property
    def _network(self) -> CausalNetwork:
        return cast(CausalNetwork, self.network)

    @property
    def _head(self) -> StepHead:
        return cast(StepHead, self.step_head)

    def _features(self, context: Tensor) -> Tensor:
        """A context as rows of features; those of the items of a sequence one after the other."""
        length = self.context_length
        if length is None:
            return super()._features(context)
        labels = not context.is_floating_point()
        if context.ndim < 2 or context.shape[-1 if labels else -2] != length:
            raise ShapeError(
                f"context: expected sequences of {length} integer labels, shape (N, {length}), or of "
                f"features, shape (N, {length}, {self.item_dim}), got {tuple(context.shape)}"
            )
        if not labels:
            return context_features(context, self.item_dim, like=self._like).flatten(-2)
        each = context_features(context.reshape(-1), self.item_dim, like=self._like)
        return each.reshape(*context.shape[:-1], -1)

    def _items(self, context: Tensor | None) -> Tensor | None:
        """Rows of features as the network wants them: ``(N, F)``, or ``(N, L, F)`` for sequences."""
        if context is None or self.context_length is None:
            return context
        return context.unflatten(-1, (self.context_length, self.item_dim))
