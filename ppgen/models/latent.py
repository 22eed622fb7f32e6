r"""What families with a guide share: importance-weighted estimates of log p(x), one a datum.

.. math:: \ell_P(x) = \log \frac1P \sum_{i=1}^P \frac{p(x, z_i)}{q(z_i \mid x)},
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
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import CapabilityError, ConfigError
from ppgen.inference.objectives.elbo import SiteRecorder, site_log_prob

_MOST_STATES = 2**26  # joint states times particles times data of a chunk: 256 MB


def importance_log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    context: Tensor | None = None,
    *,
    num_particles: int = 64,
    chunk_size: int = 4096,
    enumerates: bool = False,
) -> Estimate:
    """Estimate log p(x_n) for each datum with draws from the guide.

    Args:
        model: the generative program; latents and data share the plate dimension -1.
        guide: the recognition program.
        x: data, shape ``(N, *event_shape)``.
        context: passed to both programs, one row a datum.
        num_particles: draws P for each datum; 1 gives the ELBO.
        chunk_size: rows (data times particles) evaluated at once.
        enumerates: whether the model has discrete latents marked for enumeration that the guide
            does not sample; they are summed out, over all their joint states.

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
            log_weights = _log_weights(model, guide, x[part], num_particles, rest, enumerates)
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
    enumerates: bool = False,
) -> Estimate:
    """Estimate log p(x) of all data together, where latents are shared by them.

    Args:
        model: the generative program, with any plates.
        guide: the recognition program.
        x: data.
        context: passed to both programs.
        num_particles: draws from the guide, made one after the other.
        enumerates: as in :func:`importance_log_likelihood`; Pyro sums out, plate by plate.

    Returns:
        A scalar in nats, a lower bound in expectation, with its delta-method standard error.
    """
    if num_particles < 1:
        raise ConfigError(f"num_particles: expected a positive integer, got {num_particles}")
    # One particle of this estimator is the log weight of one draw. Twelve plates are room for any model.
    estimator = TraceEnum_ELBO(max_plate_nesting=12)
    draws = []
    with torch.no_grad(), pyro.validation_enabled(False):
        for _ in range(num_particles):
            if enumerates:
                draws.append(torch.as_tensor(-estimator.loss(model, guide, x, context)))
                continue
            with SiteRecorder() as q:
                guide(x, context)
            with SiteRecorder(q.values) as p:
                model(x, context)
            log_joint = sum(site_log_prob(site).sum() for site in p.sites.values())
            log_weight = log_joint - sum(site_log_prob(site).sum() for site in q.sites.values())
            draws.append(torch.as_tensor(log_weight))
    log_weights = torch.stack(draws)
    value = log_weights.logsumexp(0) - math.log(num_particles)
    spread = (log_weights - value).exp().std() if num_particles > 1 else torch.zeros_like(value)
    return Estimate.of(value, Kind.LOWER_BOUND, spread / math.sqrt(num_particles))


def _log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    num_particles: int,
    context: Tensor | None,
    enumerates: bool,
) -> Tensor:
    """Log p(x, z) - log q(z | x) for each particle and datum, shape (P, B)."""
    particles = pyro.plate("num_particles_vectorized", num_particles, dim=-2)
    if enumerates:
        model = poutine.enum(model, first_available_dim=-3)
    with particles, SiteRecorder() as q:
        guide(x, context)
    with particles, SiteRecorder(q.values) as p:
        model(x, context)
    nothing = x.new_zeros(num_particles, len(x))
    log_joint = _sum_of_sites(p.sites, nothing, enumerates)
    if log_joint.ndim > 2:
        log_joint = log_joint.flatten(0, -3).logsumexp(0)
    return log_joint - _sum_of_sites(q.sites, nothing, False)


def _sum_of_sites(sites: dict[str, Any], total: Tensor, enumerates: bool) -> Tensor:
    """``total``, zeros of shape (P, B), plus the log-probabilities of all sites; shape (states..., P, B)."""
    for name, site in sites.items():
        if site["infer"].get("_deterministic"):
            continue
        term = site_log_prob(site)
        if term.shape[-1:] != total.shape[-1:] or (term.ndim > 2 and not enumerates):
            raise CapabilityError(
                f"log_likelihood: site '{name}' has batch shape {tuple(term.shape)}, which is not one value "
                f"for each of {total.shape[-1]} data; per-datum estimates need all sites in the data plate"
            )
        if math.prod(torch.broadcast_shapes(total.shape, term.shape)) > _MOST_STATES:
            raise CapabilityError(
                f"log_likelihood: the discrete latents up to site '{name}' have too many joint states to "
                "list; sample some of them in a guide, or use pyro.infer.TraceEnum_ELBO, which eliminates "
                "them one by one, for the total over the data"
            )
        total = total + term
    return total
