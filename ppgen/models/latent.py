r"""What families with a guide share: importance-weighted estimates of log p(x), one a datum.

.. math:: \log \hat p_P(x) = \log \frac1P \sum_{i=1}^P \frac{p(x, z_i)}{q(z_i \mid x)},
          \qquad z_i \sim q(z \mid x)

It is a lower bound in expectation, the ELBO for P = 1, and tightens with P
(Burda, Grosse & Salakhutdinov 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import CapabilityError, ConfigError
from ppgen.inference.objectives.elbo import SiteRecorder, site_log_prob


def importance_log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    context: Tensor | None = None,
    *,
    num_particles: int = 64,
    chunk_size: int = 4096,
) -> Estimate:
    """Estimate log p(x_n) for each datum with draws from the guide.

    Args:
        model: the generative program; latents and data share the plate dimension -1.
        guide: the recognition program.
        x: data, shape ``(N, *event_shape)``.
        context: passed to both programs, one row a datum.
        num_particles: draws P for each datum; 1 gives the ELBO.
        chunk_size: rows (data times particles) evaluated at once.

    Returns:
        ``value`` of shape (N,) in nats, a lower bound in expectation; ``std_error`` by the delta
        method from the spread of the weights (NaN-free: 0 for P = 1, where it is not known).
    """
    if num_particles < 1:
        raise ConfigError(f"num_particles: expected a positive integer, got {num_particles}")
    values, errors = [], []
    rows = max(1, chunk_size // num_particles)
    with torch.no_grad(), pyro.validation_enabled(False):
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            rest = None if context is None else context[part]
            log_weights = _log_weights(model, guide, x[part], num_particles, rest)
            value = log_weights.logsumexp(0) - math.log(num_particles)
            relative = (log_weights - value).exp()
            values.append(value)
            errors.append(
                relative.std(0) / math.sqrt(num_particles) if num_particles > 1 else torch.zeros_like(value)
            )
    return Estimate.of(torch.cat(values), Kind.LOWER_BOUND, torch.cat(errors))


def importance_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    context: Tensor | None = None,
    *,
    num_particles: int = 64,
) -> Estimate:
    """Estimate log p(x) of all data together, where latents are shared by them.

    Args:
        model: the generative program, with any plates.
        guide: the recognition program.
        x: data.
        context: passed to both programs.
        num_particles: draws from the guide, made one after the other.

    Returns:
        A scalar in nats, a lower bound in expectation, with its delta-method standard error.
    """
    totals = []
    with torch.no_grad(), pyro.validation_enabled(False):
        for _ in range(num_particles):
            with SiteRecorder() as q:
                guide(x, context)
            with SiteRecorder(q.values) as p:
                model(x, context)
            joint = sum(site_log_prob(site).sum() for site in p.sites.values())
            totals.append(joint - sum(site_log_prob(site).sum() for site in q.sites.values()))
    log_weights = torch.stack([torch.as_tensor(t) for t in totals])
    value = log_weights.logsumexp(0) - math.log(num_particles)
    spread = (log_weights - value).exp().std() if num_particles > 1 else torch.zeros_like(value)
    return Estimate.of(value, Kind.LOWER_BOUND, spread / math.sqrt(num_particles))


def _log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    num_particles: int,
    context: Tensor | None,
) -> Tensor:
    """Log p(x, z) - log q(z | x) for each particle and datum, shape (P, B)."""
    particles = pyro.plate("num_particles_vectorized", num_particles, dim=-2)
    with particles, SiteRecorder() as q:
        guide(x, context)
    with particles, SiteRecorder(q.values) as p:
        model(x, context)
    total = x.new_zeros(num_particles, len(x))
    for sign, recorder in ((1, p), (-1, q)):
        for name, site in recorder.sites.items():
            term = site_log_prob(site)
            if term.ndim > 2 or term.shape[-1:] != (len(x),):
                raise CapabilityError(
                    f"log_likelihood: site '{name}' has batch shape {tuple(term.shape)}, which is not one "
                    f"value for each of {len(x)} data; per-datum estimates need all sites in the data plate"
                )
            total = total + sign * term
    return total
