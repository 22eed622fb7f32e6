r"""Heads: what an autoregressive network's numbers say about the next value.

A head turns the parameters of one site, shape ``(..., P)``, into a distribution of its value, shape
``(..., C)``: one number, or the C channels of a pixel together. It has no parameters of its own. A draw
is a function of the parameters and of noise that was drawn beforehand, so that two samplers that are
given the same noise give the same values.

A network may have run in lower precision (autocast): parameters are taken in the type of the values, or of
the noise, since a sum of many log-probabilities needs it.

Log-probabilities are in nats. Values on a grid are stored as :math:`k / (L - 1)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ppgen.distributions.discretised_logistic import DiscretisedLogistic
from ppgen.errors import ConfigError

HeadName = Literal["categorical", "logistic_mixture", "gaussian_mixture"]
_FOR_GRID = ("categorical", "logistic_mixture")
# Keeps a mixture's component from becoming a point mass, on which a density has no bound.
_MIN_LOG_SCALE = -7.0


class Head(ABC):
    """The distribution of a value of ``channels`` numbers, given ``num_params`` parameters.

    Attributes:
        levels: number L of grid values k / (L - 1) that each number can take; ``None`` for real numbers.
        channels: numbers C in a value.
        num_params: parameters P of a value.
        num_noise: numbers U of noise that a draw takes.
    """

    levels: int | None
    channels: int = 1
    num_params: int
    num_noise: int = 1

    @abstractmethod
    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        """Log mass or density, ``(...)``, of values ``(..., C)`` under parameters ``(..., P)``; nats."""

    def start(self) -> Tensor:
        """Parameters ``(P,)`` that a network may start from: a broad distribution, components apart."""
        return torch.zeros(self.num_params)

    @abstractmethod
    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """The values, ``(..., C)``, that noise ``(..., U)`` stands for under parameters ``(..., P)``."""

    def noise(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Noise for values of a shape, ``(*shape, U)``, of the dtype and device of ``like``."""
        return torch.rand(*shape, self.num_noise, dtype=like.dtype, device=like.device)


class CategoricalHead(Head):
    """One probability a level: a logit for two levels, else L of them.

    Args:
        levels: number L of grid values.
    """

    def __init__(self, levels: int) -> None:
        self.levels: int = levels
        self.num_params = 1 if levels == 2 else levels

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        """Log mass of grid values ``(..., 1)``."""
        params = params.to(value.dtype)
        if self.levels == 2:
            return (value * params - functional.softplus(params))[..., 0]
        indices = (value * (self.levels - 1)).round().long()
        indices, params = torch.broadcast_tensors(indices, params)
        return params.log_softmax(-1).gather(-1, indices[..., :1])[..., 0]

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """By inversion of the cumulated probabilities."""
        params = params.to(noise.dtype)
        if self.levels == 2:
            return (noise < params.sigmoid()).to(params.dtype)
        return _choose(params, noise).to(params.dtype)[..., None] / (self.levels - 1)


class LogisticMixtureHead(Head):
    r"""A mixture of discretised logistics over the channels of a pixel (Salimans et al. 2017).

    .. math:: P(x) = \sum_k \pi_k \prod_c \mathrm{DL}(x_c;\, m_{kc}, s_{kc}), \qquad
       m_{kc} = \mu_{kc} + \sum_{c' < c} \alpha_{kcc'} x_{c'} ,

    with values on the scale :math:`[-1, 1]` in the means, and
    :class:`~ppgen.distributions.discretised_logistic.DiscretisedLogistic` as DL. One component stands for
    all channels; each channel's mean is linear in the channels before it.

    Args:
        levels: number L of grid values.
        num_components: number K of components.
        channels: number C of channels.
    """

    def __init__(self, levels: int, num_components: int, channels: int = 1) -> None:
        _check_components(num_components)
        self.levels: int = levels
        self.channels = channels
        self.num_components, self.num_noise = num_components, 1 + channels
        self.num_params = num_components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        """Log mass of pixels ``(..., C)``; sums to one over the grid of all channels."""
        logits, *rest = self._split(params.to(value.dtype))
        total = logits.log_softmax(-1)
        for c in range(self.channels):
            loc, log_scale = self._channel(c, rest, value[..., None, :])
            logistic = DiscretisedLogistic(loc, log_scale, self.levels, validate_args=False)
            total = total + logistic.log_prob(value[..., c, None])
        return total.logsumexp(-1)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """A component by the first number of noise, then channel by channel, rounded to the grid."""
        logits, *rest = self._split(params.to(noise.dtype))
        chosen = _choose(logits, noise[..., :1])[..., None, None]
        rest = [t.gather(-2, chosen.expand(*t.shape[:-2], 1, t.shape[-1]))[..., 0, :] for t in rest]
        eps = torch.finfo(noise.dtype).eps
        logistic = torch.logit(noise[..., 1:].clamp(eps, 1 - eps))
        value = torch.zeros_like(logistic)
        for c in range(self.channels):
            loc, log_scale = self._channel(c, rest, value)
            drawn = (loc + log_scale.exp() * logistic[..., c]).clamp(0, 1) * (self.levels - 1)
            value = torch.cat([value[..., :c], drawn.round()[..., None] / (self.levels - 1)], -1)
        return value

    def start(self) -> Tensor:
        """Components spread over the grid, of equal weight."""
        params = torch.zeros(self.num_params)
        self._split(params)[1].copy_(_spread(self.num_components)[:, None])
        return params

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits ``(..., K)``; means and log scales ``(..., K, C)``; slopes ``(..., K, C (C - 1) / 2)``."""
        logits, others = params.split([self.num_components, self.num_params - self.num_components], -1)
        others = others.unflatten(-1, (self.num_components, -1))
        pairs = self.channels * (self.channels - 1) // 2
        loc, log_scale, slopes = others.split([self.channels, self.channels, pairs], -1)
        return logits, loc, log_scale, slopes

    def _channel(self, c: int, rest: Sequence[Tensor], value: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log scale of channel c on the scale of [0, 1], given the channels before it."""
        loc, log_scale, slopes = rest
        mean = loc[..., c]
        first = c * (c - 1) // 2
        for before in range(c):
            mean = mean + slopes[..., first + before].tanh() * (2 * value[..., before] - 1)
        # A step of one on [-1, 1] is half of one on [0, 1]; a start scale that spans the grid.
        return 0.5 + 0.5 * mean, (log_scale[..., c] - 1.5).clamp_min(_MIN_LOG_SCALE - math.log(self.levels))


class GaussianMixtureHead(Head):
    r"""A mixture of K Gaussians over one real number: :math:`p(x) = \sum_k \pi_k N(x; \mu_k, s_k^2)`.

    Args:
        num_components: number K of components.
    """

    levels = None
    num_noise = 2

    def __init__(self, num_components: int) -> None:
        _check_components(num_components)
        self.num_components, self.num_params = num_components, 3 * num_components

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        """Log density of real values ``(..., 1)``."""
        logits, loc, log_scale = params.to(value.dtype).chunk(3, -1)
        log_scale = log_scale.clamp_min(_MIN_LOG_SCALE)
        z = (value - loc) * (-log_scale).exp()
        parts = logits.log_softmax(-1) - 0.5 * z.square() - log_scale - 0.5 * math.log(2 * math.pi)
        return parts.logsumexp(-1)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """A component by the first number of noise, moved and scaled standard normal noise by the second."""
        logits, *rest = params.to(noise.dtype).chunk(3, -1)
        chosen = _choose(logits, noise[..., :1])[..., None]
        loc, log_scale = (t.gather(-1, chosen) for t in rest)
        return loc + log_scale.clamp_min(_MIN_LOG_SCALE).exp() * noise[..., 1:]

    def start(self) -> Tensor:
        """Components spread over [-1, 1], of equal weight and unit scale."""
        params = torch.zeros(self.num_params)
        params.chunk(3)[1].copy_(_spread(self.num_components))
        return params

    def noise(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A uniform number for the component and a normal one for the value."""
        uniform = torch.rand(*shape, 1, dtype=like.dtype, device=like.device)
        normal = torch.randn(*shape, 1, dtype=like.dtype, device=like.device)
        return torch.cat([uniform, normal], -1)


def make_head(name: HeadName | None, levels: int | None, num_components: int, *, channels: int = 1) -> Head:
    """The head of this name, by default categorical for a grid and a mixture of Gaussians for real data.

    Args:
        name: ``categorical``, ``logistic_mixture`` or ``gaussian_mixture``.
        levels: number of levels of the grid, ``None`` for real data.
        num_components: components of a mixture.
        channels: numbers that a mixture of logistics describes together.

    Raises:
        ConfigError: an unknown name, a head that is not for such data, too few levels or components.
    """
    if name is None:
        name = "gaussian_mixture" if levels is None else "categorical"
    if name not in _FOR_GRID and name != "gaussian_mixture":
        raise ConfigError(
            f"head: expected one of {', '.join((*_FOR_GRID, 'gaussian_mixture'))}, got {name!r}"
        )
    if name == "gaussian_mixture":
        if levels is not None:
            raise ConfigError(
                f"head: a gaussian_mixture is for real data, got levels={levels}; pass levels=None, or take "
                f"{' or '.join(_FOR_GRID)}"
            )
        return GaussianMixtureHead(num_components)
    if not isinstance(levels, int) or levels < 2:
        raise ConfigError(f"levels: head={name!r} needs a grid of 2 levels or more, got {levels}")
    if name == "categorical":
        return CategoricalHead(levels)
    return LogisticMixtureHead(levels, num_components, channels)


def _spread(num_components: int) -> Tensor:
    """Means of K components over [-1, 1]: the middles of as many equal parts."""
    return (2 * torch.arange(num_components) + 1) / num_components - 1


def _choose(logits: Tensor, uniform: Tensor) -> Tensor:
    """Categories, ``(...)`` int64, by inversion: logits ``(..., K)``, uniform numbers ``(..., 1)``."""
    cumulated = logits.softmax(-1).cumsum(-1)
    # Rounding may leave the last sum off one: the uniform number is stretched to it.
    index = (uniform * cumulated[..., -1:] >= cumulated).sum(-1)
    return index.clamp_max(logits.shape[-1] - 1)


def _check_components(num_components: int) -> None:
    if num_components < 1:
        raise ConfigError(f"num_components: expected a positive integer, got {num_components}")
