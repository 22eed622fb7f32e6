r"""Variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014).

Joint density
    .. math:: p(z, x \mid c) = N(z; 0, I) \, p(x \mid f_\theta(z, c))

Plates
    ::

        data [N]:  z (L)  ->  x (*event_shape)

Guide
    :math:`q(z \mid x, c) = N(z; m_\phi(x, c), \mathrm{diag}\, s_\phi(x, c)^2)`, amortised by a network. It
    assumes that the posterior of each datum is one Gaussian with independent coordinates.

Density
    A lower bound: importance weighting with P draws, the ELBO for P = 1, at a cost of N P networks; or
    annealing over T temperatures of S leapfrog steps, at about 3 N P T S decoders.

Likelihoods
    ``bernoulli`` for binary data; ``gaussian`` for densities, with one learnt scale a
    coordinate; ``discretised_logistic`` and ``categorical`` for data on a grid of levels.

With ``beta`` other than 1, training weights the latent terms (Higgins et al. 2017); the pair,
and every reported likelihood, stays that of the model above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind, check_count
from ppgen.datasets.values import BINARY, REAL, Values, grid
from ppgen.distributions.diagonal_normal import DiagonalNormal
from ppgen.distributions.discretised_logistic import DiscretisedLogistic
from ppgen.distributions.grid_categorical import GridCategorical
from ppgen.errors import ConfigError, ShapeError
from ppgen.inference.objectives.elbo import ELBO
from ppgen.models.family import Family
from ppgen.models.latent import Method, latent_log_likelihood
from ppgen.nn.context import with_context
from ppgen.nn.conv import ConvDecoder, ConvEncoder
from ppgen.nn.mlp import mlp

Likelihood = Literal["bernoulli", "gaussian", "discretised_logistic", "categorical"]
_LIKELIHOODS = ("bernoulli", "gaussian", "discretised_logistic", "categorical")


class VAE(GenerativeModel):
    """Latent Gaussian, decoder network, amortised Gaussian guide.

    Args:
        event_shape: shape of one datum; (C, H, W) for ``architecture="conv"``.
        latent_dim: number L of latent coordinates.
        likelihood: distribution of x given z; see the module.
        levels: number of levels, for the likelihoods on a grid.
        architecture: ``"mlp"`` or ``"conv"``.
        hidden: widths of the MLPs' hidden layers (the decoder's in reverse order).
        channels: channels of the first convolution.
        context_dim: features (or classes) of the context; 0 for none.
        beta: weight of the latent terms in training.
        dropout: dropout on the encoder's input, against memorising small data.
        min_scale: smallest scale of the Gaussian likelihood and of the logistic.
    """

    density = Kind.LOWER_BOUND
    origin: Tensor  # zeros (L,), the mean of the prior

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        latent_dim: int = 16,
        likelihood: Likelihood = "gaussian",
        levels: int | None = None,
        architecture: Literal["mlp", "conv"] = "mlp",
        hidden: Sequence[int] = (256, 256),
        channels: int = 32,
        context_dim: int = 0,
        beta: float = 1.0,
        dropout: float = 0.0,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(event_shape, support=_support(likelihood, levels))
        check_count(latent_dim, "latent_dim")
        if architecture not in ("mlp", "conv"):
            raise ConfigError(f"architecture: expected 'mlp' or 'conv', got {architecture!r}")
        self.latent_dim, self.likelihood, self.levels = latent_dim, likelihood, levels
        self.context_dim, self.beta, self.min_scale = context_dim, beta, min_scale
        self.corrupt = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)
        size = self.event_shape.numel()
        # Location, and for a categorical one logit a level, at each coordinate.
        outputs = levels if likelihood == "categorical" and levels is not None else 1
        if architecture == "mlp":
            self.encoder = mlp(size + context_dim, hidden, 2 * latent_dim)
            self.decoder: nn.Module = mlp(latent_dim + context_dim, tuple(hidden)[::-1], size * outputs)
        else:
            self.trunk = ConvEncoder(self.event_shape, hidden[0], channels=channels)
            self.encoder = mlp(hidden[0] + context_dim, (), 2 * latent_dim)
            self.decoder = ConvDecoder(
                latent_dim + context_dim,
                self.event_shape,
                num_channels=self.event_shape[0] * outputs,
                channels=channels,
            )
        self.architecture = architecture
        if likelihood in ("gaussian", "discretised_logistic"):
            self.log_scale = nn.Parameter(torch.full(self.event_shape, -1.5))

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Draw z from the standard normal, then x from the decoder's distribution."""
        plate = self.data_plate(x, num, context)
        with plate:
            z = pyro.sample("z", DiagonalNormal(self.origin.expand(plate.subsample_size, -1)))
            return pyro.sample("x", self._emission(z, context), obs=x)

    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> None:
        """Draw z from the Gaussian that the encoder reads off x."""
        if x is None:
            raise ShapeError("x: the guide q(z | x) needs data, got None; pass x")
        with self.data_plate(x, num, context):
            loc, scale = self._posterior(x, context)
            pyro.sample("z", DiagonalNormal(loc, scale))

    def log_likelihood(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        method: Method = "iwae",
        num_particles: int | None = None,
        **options: Any,
    ) -> Estimate:
        """Lower bound in expectation on log p(x_n), shape (N,), nats.

        Args:
            x: data, shape ``(N, *event_shape)``.
            context: one row a datum, where the model is conditional.
            method: ``"elbo"``, ``"iwae"`` (importance weighting) or ``"ais"`` (annealing, from the guide or,
                with ``start="prior"``, from the prior), each tighter and dearer than the one before.
            num_particles: draws a datum: 64, or 16 for ``"ais"``, unless given.
            **options: see :func:`~ppgen.models.latent.latent_log_likelihood`.
        """
        return latent_log_likelihood(
            self.model, self.guide, x, context, method=method, num_particles=num_particles, **options
        )

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Posterior means of z, shape (N, L)."""
        return self._posterior(x, context)[0]

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Means of x given z, shape ``(N, *event_shape)``."""
        if z.shape[-1] != self.latent_dim:
            raise ShapeError(f"z: expected shape (N, {self.latent_dim}), got {tuple(z.shape)}")
        return self._emission(z, context).mean

    def default_objective(self) -> ELBO:
        """The ELBO, with its latent terms weighted by ``beta``."""
        return ELBO(beta=self.beta)

    def _posterior(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.corrupt(2 * x - 1 if self.support.discrete else x)
        lead = x.shape[: x.ndim - len(self.event_shape)]
        h = self.trunk(x) if self.architecture == "conv" else x.reshape(*lead, -1)
        loc, raw = self.encoder(with_context(h, context, self.context_dim)).chunk(2, dim=-1)
        return loc, nn.functional.softplus(raw) + 1e-4

    def _emission(self, z: Tensor, context: Tensor | None) -> dist.TorchDistribution:
        out = self.decoder(with_context(z, context, self.context_dim))
        event = len(self.event_shape)
        if self.likelihood == "categorical":
            logits = self._level_logits(out, z.shape[:-1])
            return GridCategorical(logits).to_event(event)
        out = out.reshape(*z.shape[:-1], *self.event_shape)
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=out).to_event(event)
        if self.likelihood == "gaussian":
            return dist.Normal(out, self.log_scale.exp() + self.min_scale).to_event(event)
        log_scale = torch.logaddexp(self.log_scale, self.log_scale.new_tensor(self.min_scale).log())
        return DiscretisedLogistic(torch.sigmoid(out), log_scale, self.levels or 2).to_event(event)

    def _level_logits(self, out: Tensor, lead: torch.Size) -> Tensor:
        """Decoder output as logits (..., *event_shape, levels)."""
        if self.architecture == "mlp":
            return out.reshape(*lead, *self.event_shape, self.levels or 2)
        channels, *size = self.event_shape
        return out.reshape(*lead, channels, self.levels or 2, *size).movedim(-3, -1)


def _support(likelihood: str, levels: int | None) -> Values:
    if likelihood not in _LIKELIHOODS:
        raise ConfigError(f"likelihood: expected one of {', '.join(_LIKELIHOODS)}, got {likelihood!r}")
    on_grid = likelihood in ("discretised_logistic", "categorical")
    if on_grid and levels is None:
        raise ConfigError(f"levels: the {likelihood} likelihood needs the number of levels, got None")
    if not on_grid and levels is not None:
        raise ConfigError(f"levels: the {likelihood} likelihood has none, got {levels}; leave it out")
    if on_grid:
        return grid(levels or 2)
    return BINARY if likelihood == "bernoulli" else REAL


def _build(event_shape: torch.Size, values: Values, num_data: int) -> VAE:
    """A VAE whose likelihood fits the values."""
    if values.kind == "binary":
        return VAE(event_shape, latent_dim=16, likelihood="bernoulli", dropout=0.1)
    if values.kind == "grid":
        # Few levels leave data enough to learn each one's probability; many want an ordered scale.
        few = (values.levels or 2) <= 32
        return VAE(
            event_shape,
            latent_dim=16,
            likelihood="categorical" if few else "discretised_logistic",
            levels=values.levels,
            dropout=0.1,
        )
    return VAE(event_shape, latent_dim=min(16, event_shape.numel()))


FAMILY = Family(
    name="vae",
    title="Variational autoencoder",
    density=Kind.LOWER_BOUND,
    view="as_is",
    build=_build,
    example=lambda: VAE((3,), latent_dim=2, hidden=(8,)),
    conditional_example=lambda: VAE((3,), latent_dim=2, hidden=(8,), context_dim=3),
    fit_options={
        "epochs": 400,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "batch_size": 64,
        "patience": 60,
    },
    reading="Bits are an upper bound (64 importance draws); the truth may be lower. The latents are a code.",
)
