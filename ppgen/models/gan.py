r"""Generative adversarial network: an implicit model, trained against a critic.

.. math:: z \sim N(0, I_L), \qquad x = G(z, c)

::

    +----------- data (N) -----------+
    |   z --- G(z, c) --> x          |        D(x, c): the critic, used in training only
    +--------------------------------+

Given z, x is determined; over z it has no density, so there is no ``log_likelihood`` and no
ELBO (:class:`~ppgen.distributions.implicit.Implicit`). The guide is the prior: it makes the
pair whole for Pyro and says nothing about x. Training is a game between G and D
(:class:`~ppgen.inference.objectives.adversarial.Adversarial`).

A draw costs one pass of G, a training step about three passes of each network and their
gradients. No network uses batch normalisation, so that gradient penalties are valid.

References: Goodfellow et al. 2014; Radford, Metz & Chintala 2016 (DCGAN); Gulrajani et al.
2017 (WGAN-GP); Mirza & Osindero 2014 (context); Miyato et al. 2018 (spectral normalisation).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ppgen.contract import GenerativeModel
from ppgen.datasets.values import Values
from ppgen.distributions.implicit import Implicit
from ppgen.errors import ConfigError, ShapeError
from ppgen.inference.objectives.adversarial import Adversarial, Loss
from ppgen.models.family import Family
from ppgen.nn.context import with_context
from ppgen.nn.conv import ConvDecoder, ConvEncoder
from ppgen.nn.mlp import mlp

Architecture = Literal["mlp", "conv"]
Output = Literal["identity", "sigmoid"]

_leaky = functools.partial(nn.LeakyReLU, 0.2)


class GAN(GenerativeModel):
    """Generative adversarial network on vectors or images.

    Args:
        event_shape: shape of one datum.
        latent_dim: number L of latents.
        architecture: ``"mlp"`` on the flattened datum, or ``"conv"`` on images (C, H, W).
        hidden: widths of the generator's hidden layers (``"mlp"``).
        critic_hidden: widths of the critic's hidden layers; those of ``hidden`` by default.
        channels: channels of the convolutions at full size (``"conv"``).
        output: ``"identity"`` for data on the real line, ``"sigmoid"`` for data in [0, 1].
        context_dim: number of classes or features that both players are given; 0 for none.
        spectral_norm: divide each layer of the critic by its largest singular value, as estimated
            by one power iteration a pass. Such layers go into a ``state_dict`` and not into a pickle.
        loss: the game that :func:`ppgen.fit` plays, as in
            :class:`~ppgen.inference.objectives.adversarial.Adversarial`.
        r1: weight of the game's gradient penalty at the data.

    Attributes:
        generator: the network G(z, context), from ``(..., L)`` to ``(..., *event_shape)``.
        critic: the network D(x, context), from ``(..., *event_shape)`` to ``(...)``: a logit,
            positive where it takes x for real; for ``wgan_gp`` a score without a zero of its own.

    Raises:
        ConfigError: an unknown architecture or output, or a size below one.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        latent_dim: int = 16,
        architecture: Architecture = "mlp",
        hidden: Sequence[int] = (256, 256),
        critic_hidden: Sequence[int] | None = None,
        channels: int = 32,
        output: Output = "identity",
        context_dim: int = 0,
        spectral_norm: bool = False,
        loss: Loss = "non_saturating",
        r1: float = 0.0,
    ) -> None:
        super().__init__(event_shape)
        for name, value, known in (("architecture", architecture, Architecture), ("output", output, Output)):
            if value not in get_args(known):
                raise ConfigError(f"{name}: expected one of {', '.join(get_args(known))}, got {value!r}")
        for name, count, least in (("latent_dim", latent_dim, 1), ("context_dim", context_dim, 0)):
            if count < least:
                raise ConfigError(f"{name}: expected an integer of {least} or more, got {count}")
        critic_hidden = hidden if critic_hidden is None else critic_hidden
        if architecture == "conv" and not critic_hidden:
            raise ConfigError("critic_hidden: convolutions need one width or more after them, got none")
        self.latent_dim = latent_dim
        self.context_dim = context_dim
        self._objective = Adversarial(loss, r1=r1)
        conv = architecture == "conv"
        self.generator = Generator(
            self.event_shape, latent_dim, hidden, channels if conv else None, output, context_dim
        )
        self.critic = CriticNetwork(
            self.event_shape,
            critic_hidden,
            channels if conv else None,
            context_dim,
            # A Wasserstein critic is compared with itself alone: nothing could teach it a constant.
            constant=loss != "wgan_gp",
        )
        if output == "sigmoid":
            self.critic.loc.fill_(0.5)
            self.critic.scale.fill_(0.5)
        if spectral_norm:
            for layer in self.critic.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    parametrizations.spectral_norm(layer)

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Draw z from the prior and compute x = G(z, context)."""
        with self.data_plate(x, num, context):
            z = pyro.sample("z", self._prior())
            made = Implicit(self.generator(z, context), len(self.event_shape))
            value: Tensor = pyro.sample("x", made, obs=x)
        return value

    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> None:
        """The prior of z: without a likelihood there is no posterior to go by."""
        with self.data_plate(x, num, context):
            pyro.sample("z", self._prior())

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The datum G(z, context) of each latent; from ``(N, L)`` to ``(N, *event_shape)``.

        Raises:
            ShapeError: ``z`` has another number of latents.
        """
        if z.shape[-1:] != (self.latent_dim,):
            raise ShapeError(f"z: expected shape (N, {self.latent_dim}), got {tuple(z.shape)}")
        made: Tensor = self.generator(z, context)
        return made

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Put the output and the critic's input on the scale of the data, coordinate by coordinate.

        A sigmoid's scale is known, and stays.
        """
        x = self.check_data(x)
        if self.generator.output == "identity":
            scale = x.std(0, correction=0)
            for player in (self.generator, self.critic):
                player.loc.copy_(x.mean(0))
                # A constant coordinate has no scale of its own.
                player.scale.copy_(torch.where(scale > 0, scale, 1.0))
        self.initialised.fill_(True)

    def default_objective(self) -> Adversarial:
        """The adversarial game with this model's ``loss`` and ``r1``."""
        return self._objective

    def _prior(self) -> dist.TorchDistribution:
        zeros = self.generator.loc.new_zeros(self.latent_dim)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)


class Generator(nn.Module):
    """G(z, context): latents to data.

    Args:
        event_shape: shape of one datum.
        latent_dim: number of latents.
        hidden: widths of the hidden layers, where there are no convolutions.
        channels: channels of the convolutions at full size; ``None`` for a multi-layer perceptron.
        output: the map from the network to the values of a datum.
        context_dim: number of features of the context.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: torch.Size,
        latent_dim: int,
        hidden: Sequence[int],
        channels: int | None,
        output: Output,
        context_dim: int,
    ) -> None:
        super().__init__()
        self.event_shape, self.output, self.context_dim = event_shape, output, context_dim
        num_inputs = latent_dim + context_dim
        if channels is None:
            self.network: nn.Module = mlp(num_inputs, hidden, event_shape.numel())
        else:
            self.network = ConvDecoder(num_inputs, event_shape, channels=channels)
        self.register_buffer("loc", torch.zeros(event_shape))
        self.register_buffer("scale", torch.ones(event_shape))

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Data for latents ``(..., L)``."""
        h: Tensor = self.network(with_context(z, context, self.context_dim))
        h = h.reshape(*z.shape[:-1], *self.event_shape)
        return h.sigmoid() if self.output == "sigmoid" else self.loc + self.scale * h


class CriticNetwork(nn.Module):
    """D(x, context): one logit a datum.

    Args:
        event_shape: shape of one datum.
        hidden: widths of the hidden layers; after the convolutions, where there are some.
        channels: channels of the convolutions at full size; ``None`` for a multi-layer perceptron.
        context_dim: number of features of the context.
        constant: whether a constant is learnt that is added to every logit.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: torch.Size,
        hidden: Sequence[int],
        channels: int | None,
        context_dim: int,
        *,
        constant: bool = True,
    ) -> None:
        super().__init__()
        self.event_shape, self.context_dim = event_shape, context_dim
        if channels is None:
            width = event_shape.numel()
            self.features: nn.Module = nn.Flatten(-len(event_shape))
        else:
            width = hidden[0]
            encoder = ConvEncoder(event_shape, width, channels=channels, activation=_leaky)
            self.features, hidden = nn.Sequential(encoder, _leaky()), hidden[1:]
        self.head = mlp(width + context_dim, hidden, 1, activation=_leaky)
        if not constant:
            self.head[-1].register_parameter("bias", None)
        self.register_buffer("loc", torch.zeros(event_shape))
        self.register_buffer("scale", torch.ones(event_shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits of data ``(..., *event_shape)``."""
        h = self.features((x - self.loc) / self.scale)
        logits: Tensor = self.head(with_context(h, context, self.context_dim))
        return logits.squeeze(-1)


def _build(event_shape: torch.Size, values: Values, num_data: int) -> GAN:
    """Perceptrons up to the size of 28 x 28, where they are cheap and do well; convolutions above."""
    large_image = len(event_shape) == 3 and event_shape.numel() > 28 * 28
    return GAN(
        event_shape,
        architecture="conv" if large_image else "mlp",
        output="sigmoid" if values.discrete else "identity",
        r1=0.1,
    )


FAMILY = Family(
    name="gan",
    title="Generative adversarial network",
    density=None,
    view="as_is",
    build=_build,
    example=lambda: GAN((3,), latent_dim=2, hidden=(8,)),
    conditional_example=lambda: GAN((3,), latent_dim=2, hidden=(8,), context_dim=3),
    fit_options={
        "epochs": 300,
        "batch_size": 128,
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "optimizer": functools.partial(torch.optim.Adam, betas=(0.5, 0.9)),
    },
    reading="No density, so no bits: judge it by FID, precision and recall; low recall is mode collapse.",
)
