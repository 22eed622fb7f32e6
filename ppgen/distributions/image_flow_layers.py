r"""Layers of flows on images, and the multi-scale flow made of them (Kingma & Dhariwal 2018).

A layer on images maps ``(N, C, H, W)`` to ``(N, C, H, W)``, from noise to data by ``push`` and back by
``pull``, which also gives the log-determinant a datum, in nats. :class:`MultiScale` strings them together as
one :class:`~ppgen.distributions.flow.FlowTransform` of the flattened image: at each level the image is
squeezed (2x2 pixels become 4 channels), goes through steps of :class:`ChannelMix` and :class:`ImageCoupling`,
and half of the channels leave for the noise, standardised by a Gaussian whose mean and scale the other half
gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pixel_shuffle, pixel_unshuffle

from ppgen.distributions.elementwise import Affine, Elementwise
from ppgen.distributions.flow import FlowTransform
from ppgen.errors import ConfigError
from ppgen.nn.context import context_features
from ppgen.nn.coupling_conv import CouplingConv


@dataclass(frozen=True)
class Shift:
    r""":math:`x = \mu + z`: what an additive coupling does to a coordinate."""

    num_parameters: int = 1

    def push(self, z: Tensor, parameters: Tensor) -> Tensor:
        """Noise to data."""
        return z + parameters[0]

    def pull(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data to noise; the slope is one."""
        return x - parameters[0], torch.zeros_like(x)


class ChannelMix(nn.Module):
    r"""Actnorm and an invertible 1x1 convolution: one affine map of the channels of each pixel.

    :math:`z = W\, \mathrm{diag}(e^{-s}) (x - m)` with learnt m, s and :math:`W = P L (U + \mathrm{diag}(d))`:
    P a fixed permutation, L unit lower and U strictly upper triangular, the signs of d fixed. So the
    log-determinant is a sum over channels, :math:`H W \sum_c (\log |d_c| - s_c)`. W starts as a random
    rotation.

    Args:
        num_channels: number C of channels.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(num_channels, num_channels))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.loc, self.log_scale = (
            nn.Parameter(torch.zeros(num_channels)),
            nn.Parameter(torch.zeros(num_channels)),
        )

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Let each channel of z have mean 0 and deviation 1 before the convolution, on ``(N, C, H, W)``."""
        rows = x.transpose(0, 1).flatten(1)
        scale = rows.std(1, correction=0)
        self.loc.copy_(rows.mean(1))
        self.log_scale.copy_(torch.where(scale > 1e-6, scale, torch.ones_like(scale)).log())

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise; the log-determinant is the same for all data, ``()``."""
        lower, upper = self._factors()
        weight = self.permutation @ lower @ (upper * (-self.log_scale).exp())
        z = conv2d(x, weight[:, :, None, None], -(weight @ self.loc))
        return z, (self.log_diagonal - self.log_scale).sum() * (x.shape[-1] * x.shape[-2])

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data: triangular systems are solved for the inverse of W."""
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, half, upper=True)
        weight = self.log_scale.exp()[:, None] * inverse
        return conv2d(z, weight[:, :, None, None], self.loc)

    def _factors(self) -> tuple[Tensor, Tensor]:
        diagonal = self.sign * self.log_diagonal.exp()
        identity = torch.eye(len(diagonal), dtype=diagonal.dtype, device=diagonal.device)
        return self.lower.tril(-1) + identity, self.upper.triu(1) + torch.diag(diagonal)


class ImageCoupling(nn.Module):
    r"""A coupling of channels: :math:`x_a = z_a` and :math:`x_b = f(z_b; \theta(x_a))`; first the identity.

    Args:
        num_channels: channels of the image; the first half, rounded down, is a.
        hidden_channels: channels inside the network of :math:`\theta`.
        size: height and width of the image.
        elementwise: f.
        context_dim: features of the context; 0 for none.
        dropout: share of hidden values left out at random from densities in training mode; draws, and
            everything in evaluation mode, use them all.
    """

    def __init__(
        self,
        num_channels: int,
        hidden_channels: int,
        size: tuple[int, int],
        elementwise: Elementwise,
        *,
        context_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.elementwise, self.dropout = elementwise, dropout
        self.sizes = [num_channels // 2, num_channels - num_channels // 2]
        self.network = CouplingConv(
            self.sizes[0],
            hidden_channels,
            elementwise.num_parameters * self.sizes[1],
            size,
            context_dim=context_dim,
        )

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise, and the log-determinant ``(N,)``."""
        a, b = x.split(self.sizes, dim=1)
        b, log_slope = self.elementwise.pull(
            b, self._parameters_given(a, context, self.dropout if self.training else 0.0)
        )
        return torch.cat([a, b], dim=1), log_slope.flatten(1).sum(-1)

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data."""
        a, b = z.split(self.sizes, dim=1)
        return torch.cat([a, self.elementwise.push(b, self._parameters_given(a, context, 0.0))], dim=1)

    def _parameters_given(self, a: Tensor, context: Tensor | None, dropout: float) -> Tensor:
        outputs = self.network(a, context, dropout=dropout)
        return outputs.unflatten(1, (self.elementwise.num_parameters, -1)).movedim(1, 0)


class SplitPrior(nn.Module):
    r"""The Gaussian of what leaves the flow: :math:`x_b = \mu + e^s z_b`, with mean and scale learnt.

    Each place and channel has its own numbers, to which a convolution of what stays and a linear map of the
    context are added; all start at zero.

    Args:
        num_kept: channels of what stays; 0 after the last level.
        num_channels: channels of what leaves.
        size: height and width.
        context_dim: features of the context; 0 for none.
    """

    def __init__(
        self, num_kept: int, num_channels: int, size: tuple[int, int], *, context_dim: int = 0
    ) -> None:
        super().__init__()
        self.context_dim = context_dim
        self.place = nn.Parameter(torch.zeros(2 * num_channels, *size))
        self.kept = nn.Conv2d(num_kept, 2 * num_channels, 3, padding=1, bias=False) if num_kept else None
        self.given = nn.Linear(context_dim, 2 * num_channels, bias=False) if context_dim else None
        for layer in (self.kept, self.given):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def pull(self, x: Tensor, kept: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What leaves ``(N, C, H, W)`` as noise of that shape, and the log-determinant ``(N,)``."""
        z, log_slope = Affine().pull(x, self._parameters_given(kept, context))
        return z, log_slope.flatten(1).sum(-1)

    def push(self, z: Tensor, kept: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to what left."""
        return Affine().push(z, self._parameters_given(kept, context))

    def _parameters_given(self, kept: Tensor, context: Tensor | None) -> Tensor:
        numbers = self.place.expand(len(kept), *self.place.shape)
        if self.kept is not None:
            numbers = numbers + self.kept(kept)
        if self.given is not None and context is not None:
            numbers = (
                numbers + self.given(context_features(context, self.context_dim, like=kept))[..., None, None]
            )
        return numbers.unflatten(1, (2, -1)).movedim(1, 0)


class MultiScale(FlowTransform):
    """A flow on images in several scales, as one bijection of the flattened image.

    The noise is the concatenation of what left after each level, finest first.

    Args:
        event_shape: ``(C, H, W)``; both sides divisible by 2 to the power ``num_levels``.
        num_levels: how often the image is squeezed.
        num_steps: steps of a :class:`ChannelMix` and an :class:`ImageCoupling` a level.
        hidden_channels: channels inside the couplings' networks.
        elementwise: what a coupling does to a coordinate.
        context_dim: features of the context; 0 for none.
        dropout: as in :class:`ImageCoupling`.
    """

    def __init__(
        self,
        event_shape: torch.Size,
        *,
        num_levels: int,
        num_steps: int,
        hidden_channels: int,
        elementwise: Elementwise,
        context_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.event_shape, self.num_steps = event_shape, num_steps
        channels, height, width = event_shape
        if height % 2**num_levels or width % 2**num_levels:
            raise ConfigError(
                f"num_levels: {num_levels} levels halve both sides {num_levels} times, which "
                f"{height} x {width} does not allow"
            )
        levels, priors = [], []
        self.leaving: list[tuple[int, int, int]] = []  # shapes of the parts of the noise
        for level in range(num_levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            size = (height, width)
            steps: list[nn.Module] = []
            for _ in range(num_steps):
                coupling = ImageCoupling(
                    channels, hidden_channels, size, elementwise, context_dim=context_dim, dropout=dropout
                )
                steps += [ChannelMix(channels), coupling]
            levels.append(nn.ModuleList(steps))
            kept = channels // 2 if level < num_levels - 1 else 0
            priors.append(SplitPrior(kept, channels - kept, size, context_dim=context_dim))
            self.leaving.append((channels - kept, height, width))
            channels = kept
        self.levels, self.priors = nn.ModuleList(levels), nn.ModuleList(priors)

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set every actnorm from data ``(N, D)``, in the order in which they meet it."""
        h = x.reshape(-1, *self.event_shape)
        for steps, prior in self._scales():
            h = pixel_unshuffle(h, 2)
            for layer in steps:
                if isinstance(layer, ChannelMix):
                    layer.initialise(h)
                h = layer.pull(h, context)[0]
            h = h[:, : self._num_kept(h, prior)]

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        h, context = self._images(x, context)
        log_det = x.new_zeros(len(h))
        noise = []
        for steps, prior in self._scales():
            h = pixel_unshuffle(h, 2)
            for layer in steps:
                h, change = layer.pull(h, context)
                log_det = log_det + change
            kept = self._num_kept(h, prior)
            h, leaving = h[:, :kept], h[:, kept:]
            z, change = prior.pull(leaving, h, context)
            noise.append(z.flatten(1))
            log_det = log_det + change
        return torch.cat(noise, dim=-1).reshape(x.shape), log_det.reshape(x.shape[:-1])

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data."""
        rows, context = self._images(z, context)
        parts = rows.flatten(1).split([c * h * w for c, h, w in self.leaving], dim=-1)
        channels, height, width = self.leaving[-1]
        h = rows.new_zeros(len(rows), 0, height, width)
        for (steps, prior), part, shape in reversed(
            list(zip(self._scales(), parts, self.leaving, strict=True))
        ):
            h = torch.cat([h, prior.push(part.reshape(-1, *shape), h, context)], dim=1)
            for layer in reversed(steps):
                h = layer.push(h, context)
            h = pixel_shuffle(h, 2)
        return h.reshape(z.shape)

    def _scales(self) -> list[tuple[list[ChannelMix | ImageCoupling], SplitPrior]]:
        steps = [
            cast(list[ChannelMix | ImageCoupling], list(cast(nn.ModuleList, level))) for level in self.levels
        ]
        return list(zip(steps, cast(list[SplitPrior], list(self.priors)), strict=True))

    def _num_kept(self, h: Tensor, prior: SplitPrior) -> int:
        return h.shape[1] - prior.place.shape[0] // 2

    def _images(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows as images ``(N, C, H, W)``, and the context's features in rows beside them."""
        if context is not None:
            context = context.expand(*x.shape[:-1], -1).reshape(-1, context.shape[-1])
        return x.reshape(-1, *self.event_shape), context
