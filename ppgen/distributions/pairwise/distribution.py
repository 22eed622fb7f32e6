"""A pairwise Markov random field as a distribution of Pyro."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppgen.distributions.pairwise.clusters import Sampler, move
from ppgen.distributions.pairwise.field import PairwiseField, draw_states
from ppgen.errors import ConfigError, TrainingWarning
from ppgen.ops import elimination


class PairwiseMarkov(TorchDistribution):
    """The states of all sites, with values on the grid ``k / (q - 1)``.

    Without a plan of elimination log Z is taken as 0: ``normalised`` is False, ``log_prob`` holds up to a
    constant, and each draw is the end of a Markov chain of its own.

    Args:
        field: the field; one for all elements of the batch, or with a row for each of its last dimension.
        event_shape: shape of a datum.
        plan: how log Z is summed exactly; ``None`` where that is too much.
        log_partition: gives log Z, where the caller knows it; by the plan otherwise.
        start: logits of the independent sites that chains start from, ``(S, q)``; uniform by default.
        num_steps: sweeps of each chain; ``None`` for independent draws where they can be had and 1000
            sweeps elsewhere.
        sampler: moves of the chains, see :func:`~ppgen.distributions.pairwise.clusters.move`.
        batch_shape: shape of independent copies.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(
        self,
        field: PairwiseField,
        event_shape: torch.Size | tuple[int, ...],
        *,
        plan: elimination.Plan | None,
        log_partition: Callable[[], Tensor] | None = None,
        start: Tensor | None = None,
        num_steps: int | None = None,
        sampler: Sampler | None = None,
        batch_shape: torch.Size | tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        if num_steps is not None and num_steps < 1:
            raise ConfigError(f"num_steps: expected a positive number of sweeps or None, got {num_steps}")
        self.field, self.plan, self.log_partition = field, plan, log_partition
        self.start, self.num_steps, self.sampler = start, num_steps, sampler
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Zeros and ones, or the unit interval that holds the grid."""
        one = constraints.boolean if self.field.num_states == 2 else constraints.unit_interval
        return constraints.independent(one, len(self.event_shape))

    @property
    def normalised(self) -> bool:
        """Whether ``log_prob`` holds its normaliser."""
        return self.plan is not None

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Any = None
    ) -> PairwiseMarkov:
        """Independent copies over ``batch_shape``."""
        return PairwiseMarkov(
            self.field,
            self.event_shape,
            plan=self.plan,
            log_partition=self.log_partition,
            start=self.start,
            num_steps=self.num_steps,
            sampler=self.sampler,
            batch_shape=torch.Size(batch_shape),
            validate_args=self.__dict__.get("_validate_args"),
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats, up to a constant where not ``normalised``.

        Without log Z the gradient is not that of a likelihood. Where one is asked for, a
        :class:`~ppgen.errors.TrainingWarning` says so.
        """
        if self._validate_args:
            self._validate_sample(value)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        codes = (value.reshape(batch.numel(), -1) * (self.field.num_states - 1)).round().long()
        log_density = -self._repeated(batch).energy(codes).reshape(batch)
        if self.plan is not None:
            known = self.log_partition
            log_density = log_density - (
                self.field.log_partition(self.plan.order) if known is None else known()
            )
        elif log_density.requires_grad:
            warnings.warn(
                "log_prob: log Z of this field is too large a sum and taken as 0, so its gradient does not "
                "train the field; train with PseudoLikelihood() or ContrastiveDivergence(persistent=True)",
                TrainingWarning,
                stacklevel=2,
            )
        return log_density.expand(torch.broadcast_shapes(batch, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, shape ``(*sample_shape, *batch_shape, *event_shape)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        unary, batch = self.field.unary, shape[: len(shape) - len(self.event_shape)]
        if unary.is_meta:
            return unary.new_empty(shape)
        if self.plan is not None and self.num_steps is None:
            rows = len(unary) if unary.ndim == 3 else 1
            codes = self.field.sample_exact(batch.numel() // rows, self.plan.order, self.plan.entries)
        else:
            begin = torch.zeros_like(unary) if self.start is None else self.start
            codes = draw_states(begin.expand(batch.numel(), *unary.shape[-2:]))
            codes = move(self._repeated(batch), codes, self.num_steps or 1000, self.sampler)
        return (codes.to(unary.dtype) / (self.field.num_states - 1)).reshape(shape)

    def _repeated(self, batch: torch.Size) -> PairwiseField:
        """The field with a row for each element of ``batch``, where its rows differ."""
        unary = self.field.unary
        if unary.ndim == 2:
            return self.field
        return replace(
            self.field, unary=unary.expand(*batch, *unary.shape[-2:]).reshape(-1, *unary.shape[-2:])
        )
