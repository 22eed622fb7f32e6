r"""Stein inference for DiBS: latent graphs, and parameters unless they are integrated out, as particles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm

from ppgen.errors import ConfigError, SamplingError
from ppgen.inference.interrupts import Interrupts
from ppgen.inference.structure.gradient.dibs_model import DiBSModel
from ppgen.inference.structure.gradient.latent_graph import scores
from ppgen.inference.structure.gradient.mechanisms import Linear
from ppgen.inference.structure.gradient.svgd import stein_directions

Estimator = Literal["score", "reparam"]


@dataclass(frozen=True)
class Particles:
    """Where inference ended.

    Attributes:
        z: latents, shape (S, n, k, 2).
        theta: parameters, shape ``(S, *mechanism.shape)``; ``None`` where they were integrated out.
        variance: of the noises, shape (S, n); ``None`` likewise.
        steps: steps taken.
        complete: whether all steps were.
    """

    z: Tensor
    theta: Tensor | None
    variance: Tensor | None
    steps: int
    complete: bool


def log_density(
    model: DiBSModel, parts: Sequence[Tensor], alpha: float, beta: float, noise: Tensor | None = None
) -> Tensor:
    r"""Log joint density of particles and data, shape (P,).

    With ``noise`` the graph is averaged over these relaxed draws of it. The parents of different variables
    are independent given Z, so that the average is a product over variables, each with M draws of its own,

    .. math:: \sum_j \log \frac1M \sum_m p(\Theta_j, D_j \mid G_{m,\cdot j}),

    which has far less variance than one average over whole graphs; its gradient is DiBS's reparametrised one.

    Args:
        model: the model.
        parts: Z, shape (P, n, k, 2), alone, for parameters integrated out (linear mechanisms); or Z,
            parameters and log variances, shape (P, n), whose density is that of the logarithm.
        alpha: inverse temperature of the edges.
        beta: weight of closed walks.
        noise: standard logistic, shape (M, P, n, n).
    """
    inner = _given_graph(model, parts[1:], model.graphs(parts[0], alpha, noise))
    inner = inner if noise is None else inner.logsumexp(0) - math.log(len(noise))
    return model.log_prior_z(parts[0], alpha, beta) + _parameters(model, parts[1:]) + inner.sum(-1)


def score_surrogate(
    model: DiBSModel, parts: Sequence[Tensor], alpha: float, beta: float, noise: Tensor
) -> Tensor:
    r"""A function of the particles whose gradient is the score-function estimate of DiBS, shape (P,).

    For hard parents :math:`G_{m,\cdot j} \sim p_\alpha(\cdot \mid Z)` with weights
    :math:`w_{mj} \propto p(\Theta_j, D_j \mid G_{m, \cdot j})` it is

    .. math:: \log p(Z, \Theta) + \sum_{m, j} w_{mj} \big(\log p_\alpha(G_{m,\cdot j} \mid Z)
        + \log p(\Theta_j, D_j \mid G_{m, \cdot j})\big)

    with the weights held still. Arguments as :func:`log_density`.
    """
    z, *rest = parts
    logits = alpha * scores(z)
    edges = model.edges
    hard = edges.clamp((logits + noise > 0).to(logits))
    each = torch.where(hard > 0, logsigmoid(logits), logsigmoid(-logits))
    log_drawn = (each * (edges.allowed & ~edges.required)).sum(-2)
    if not rest and isinstance(model.mechanism, Linear):
        inner = model.edges.log_prior(hard) + model.mechanism.log_evidence_of_draws(hard, model.noise)
    else:
        inner = _given_graph(model, rest, hard)
    weights = inner.detach().softmax(0)
    prior = model.log_prior_z(z, alpha, beta) + _parameters(model, rest)
    return prior + (weights * (log_drawn + inner)).sum((0, -1))


def _given_graph(model: DiBSModel, rest: Sequence[Tensor], graph: Tensor) -> Tensor:
    """Log density of the data, with the prior of the edges, by variable, shape (..., n)."""
    log_edges = model.edges.log_prior(graph)
    if not rest:
        if not isinstance(model.mechanism, Linear):
            raise ConfigError("marginal: only the parameters of linear mechanisms can be integrated out")
        return log_edges + model.mechanism.log_evidence(graph, model.noise)
    return log_edges + model.log_likelihood(graph, rest[0], _variance(model, rest[1]))


def _parameters(model: DiBSModel, rest: Sequence[Tensor]) -> Tensor | float:
    """Log prior of parameters and log variances; 0 where they are integrated out."""
    if not rest:
        return 0.0
    jacobian = rest[1].sum(-1) if model.noise.fixed is None else 0.0
    return model.log_parameters(rest[0], _variance(model, rest[1])) + jacobian


def _variance(model: DiBSModel, log_variance: Tensor) -> Tensor:
    fixed = model.noise.fixed
    return log_variance.exp() if fixed is None else torch.full_like(log_variance, fixed**2)


def stein(
    model: DiBSModel,
    *,
    num_particles: int,
    num_steps: int,
    learning_rate: float,
    marginal: bool,
    estimator: Estimator,
    num_draws: int,
    bandwidths: tuple[float | None, float | None],
    generator: torch.Generator,
    progress: bool,
) -> Particles:
    r"""Move particles by :func:`stein_directions` and Adam, while the model is annealed.

    In step t of T, :math:`\alpha_t = \alpha t / T` and :math:`\beta_t = \beta t / T`.

    Raises:
        SamplingError: the density or its gradient is not finite.
    """
    mechanism = model.mechanism
    n, device = mechanism.num_nodes, mechanism.values.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(num_particles, *shape, generator=generator, dtype=torch.float64, device=device)

    parts = [model.latent_scale * normal(n, model.num_latent, 2)]
    if not marginal:
        variance = mechanism.values.new_full((num_particles, n), (model.noise.fixed or 1.0) ** 2)
        parts += [mechanism.prior_scale(variance) * normal(*mechanism.shape), variance.log()]
    h_z, h_theta = bandwidths
    widths = [h_z, h_theta, h_theta][: len(parts)]
    parts = [part.requires_grad_() for part in parts]
    moved = parts[:2] if model.noise.fixed is not None else parts
    optimiser = torch.optim.Adam(moved, lr=learning_rate)
    steps = 0
    with (
        Interrupts() as interrupts,
        tqdm(total=num_steps, disable=not progress, unit="step", desc="DiBS") as bar,
    ):
        while steps < num_steps and not interrupts.requested:
            share = (steps + 1) / num_steps
            noise = None
            if estimator == "score" or model.temperature is not None:
                uniform = torch.rand(
                    num_draws, num_particles, n, n, generator=generator, dtype=torch.float64, device=device
                )
                noise = uniform.clamp(1e-12, 1 - 1e-12).logit()
            annealed = share * model.alpha, share * model.beta
            if estimator == "score" and noise is not None:
                value = score_surrogate(model, parts, *annealed, noise)
            else:
                value = log_density(model, parts, *annealed, noise)
            gradients = torch.autograd.grad(value.sum(), moved)
            if not all(bool(g.isfinite().all()) for g in gradients):
                raise SamplingError(
                    f"DiBS: a gradient is not finite at step {steps}; lower learning_rate "
                    f"({learning_rate:g}), or look for extreme values in the table"
                )
            with torch.no_grad():
                directions = stein_directions(moved, gradients, widths[: len(moved)])
            for part, direction in zip(moved, directions, strict=True):
                part.grad = -direction
            optimiser.step()
            steps += 1
            bar.update()
    z, *rest = (part.detach() for part in parts)
    theta, log_variance = rest if rest else (None, None)
    found = None if log_variance is None else log_variance.exp()
    return Particles(z, theta, found, steps, steps == num_steps)
