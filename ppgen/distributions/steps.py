"""Events as steps: how they are cut, how one step is distributed, where a sequence ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ppgen.distributions.heads import Head
from ppgen.errors import DataError
from ppgen.nn.masked import AutoregressiveMLP, MaskedLinear


@dataclass(frozen=True)
class Steps:
    """How an event is cut into steps, read one after the other.

    Images ``(C, H, W)`` are read row by row, and the channels of a pixel one after the other; events of
    another shape in the order in which they are stored.

    Attributes:
        event_shape: shape of one datum.
        per_step: coordinates of one step, next to each other in this order.
    """

    event_shape: torch.Size
    per_step: int = 1

    def __len__(self) -> int:
        return self.event_shape.numel() // self.per_step

    def split(self, x: Tensor) -> Tensor:
        """``(N, *event_shape)`` to ``(N, S, per_step)``."""
        if len(self.event_shape) == 3:
            x = x.movedim(1, -1)
        return x.reshape(len(x), len(self), self.per_step)

    def join(self, steps: Tensor) -> Tensor:
        """``(N, S, per_step)`` to ``(N, *event_shape)``."""
        if len(self.event_shape) == 3:
            channels, height, width = self.event_shape
            return steps.reshape(len(steps), height, width, channels).movedim(-1, 1)
        return steps.reshape(len(steps), *self.event_shape)

    def order(self) -> Tensor:
        """Positions in the flat event of the coordinates in the order of the steps, shape ``(D,)``."""
        flat = torch.arange(self.event_shape.numel())
        return self.split(flat.reshape(1, *self.event_shape)).flatten()


class StepHead(Protocol):
    """The distribution of one step of D coordinates, given ``num_params`` parameters."""

    num_params: int

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        """Log mass or density, ``(...)``, of steps ``(..., D)`` under parameters ``(..., P)``; nats."""

    def draw(self, params: Tensor, noise: Tensor, start: Tensor, known: Tensor) -> Tensor:
        """Steps ``(N, D)`` from noise ``(N, D, U)`` and parameters; ``start`` is kept where ``known``."""


class IndependentStep(nn.Module):
    """Coordinates of a step that are independent given the steps before.

    Args:
        head: the distribution of one coordinate, each with parameters of its own.
        num_dims: coordinates D of a step.
    """

    def __init__(self, head: Head, num_dims: int) -> None:
        super().__init__()
        self.head, self.num_dims = head, num_dims
        self.num_params = num_dims * head.num_params

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        """Sum over the coordinates."""
        each = self.head.log_prob(params.unflatten(-1, (self.num_dims, -1)), value[..., None])
        return each.sum(-1)

    def draw(self, params: Tensor, noise: Tensor, start: Tensor, known: Tensor) -> Tensor:
        """All coordinates at once."""
        drawn = self.head.draw(params.unflatten(-1, (self.num_dims, -1)), noise)[..., 0]
        return torch.where(known, start, drawn)


class ChainedStep(nn.Module):
    r"""Coordinates of a step by the chain rule, :math:`\prod_d p(x_d \mid x_{<d}, h)`, from features h.

    The conditionals are those of a masked perceptron (MADE) that is given the features as context, as in the
    RNN-NADE of Boulanger-Lewandowski, Bengio & Vincent (2012), with MADE for NADE.

    Args:
        head: the distribution of one coordinate.
        num_dims: coordinates D of a step.
        num_features: width of h.
        hidden: widths of the perceptron's hidden layers.
    """

    def __init__(self, head: Head, num_dims: int, num_features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.head, self.num_dims, self.num_params = head, num_dims, num_features
        self.network = AutoregressiveMLP(
            num_dims, hidden, head.num_params, order=torch.arange(num_dims), context_dim=num_features
        )

    @torch.no_grad()
    def start_from(self, params: Tensor) -> None:
        """Set the bias of the conditionals' parameters, ``(P * D,)``: the first of all coordinates, ..."""
        cast(MaskedLinear, self.network.layers[-1]).bias.copy_(params)

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        """Sum over the coordinates' conditionals, in one pass."""
        outputs = self.network(value, params).unflatten(-1, (-1, self.num_dims)).transpose(-1, -2)
        return self.head.log_prob(outputs, value[..., None]).sum(-1)

    def draw(self, params: Tensor, noise: Tensor, start: Tensor, known: Tensor) -> Tensor:
        """One coordinate after the other."""
        coordinates = iter(range(self.num_dims))

        def next_one(value: Tensor, outputs: Tensor) -> Tensor:
            d = next(coordinates)
            return torch.where(known[:, d], value, self.head.draw(outputs.T, noise[:, d])[:, 0])

        return self.network.unroll(start, next_one, params)


class StandardisedStep(nn.Module):
    """A step of real numbers in units of its data: ``inner`` describes ``(x - loc) / scale``.

    Args:
        inner: the distribution of a step of numbers of about zero mean and unit scale.
        num_dims: coordinates D of a step.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, inner: IndependentStep | ChainedStep, num_dims: int) -> None:
        super().__init__()
        self.inner, self.num_params = inner, inner.num_params
        self.register_buffer("loc", torch.zeros(num_dims))
        self.register_buffer("scale", torch.ones(num_dims))

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        """That of the standardised step, less the log-determinant of the scales."""
        return self.inner.log_prob(params, (value - self.loc) / self.scale) - self.scale.log().sum()

    def draw(self, params: Tensor, noise: Tensor, start: Tensor, known: Tensor) -> Tensor:
        """The standardised draw, scaled back."""
        drawn = self.inner.draw(params, noise, (start - self.loc) / self.scale, known)
        return torch.where(known, start, self.loc + self.scale * drawn)


def beyond_the_end(x: Tensor) -> Tensor | None:
    """Which steps of x ``(N, S, D)`` are NaN beyond a sequence's end, ``(N, S)``; ``None`` for no NaN.

    Raises:
        DataError: NaN that is not at the end of a sequence, or in a part of a step.
    """
    unknown = x.isnan()
    if x.is_meta or not bool(unknown.any()):
        return None
    beyond = unknown.all(-1)
    inside = (unknown.any(-1) & ~beyond).any(-1) | (beyond[:, :-1] & ~beyond[:, 1:]).any(-1)
    if bool(inside.any()):
        raise DataError(
            f"x: datum {int(inside.nonzero()[0, 0])} has NaN before its end, which a model that goes from "
            "step to step cannot sum out; only whole steps after the last known one may be missing. Impute "
            "the others, or take a family that sums them out, such as HiddenMarkov"
        )
    return beyond
