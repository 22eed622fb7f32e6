r"""What families with a guide share: estimates of log p(x), one a datum, by one of three methods.

With weights :math:`w_i = p(x, z_i) / q(z_i \mid x)` of draws :math:`z_i \sim q(z \mid x)`

* ``"elbo"``: :math:`\frac1P \sum_i \log w_i`;
* ``"iwae"``: :math:`\log \frac1P \sum_i w_i`, the ELBO for P = 1, tighter with P (Burda, Grosse &
  Salakhutdinov 2016);
* ``"ais"``: the same with weights that are gathered on a path of distributions from q, or from the prior,
  to the posterior (:mod:`ppgen.inference.annealing.likelihood`).

All are lower bounds in expectation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from ppgen.contract import Estimate, Kind, check_count
from ppgen.errors import ConfigError, SamplingWarning
from ppgen.inference.ais import AIS
from ppgen.inference.annealing.likelihood import annealed_log_likelihood
from ppgen.inference.annealing.per_datum import sum_of_sites
from ppgen.inference.objectives.elbo import SiteRecorder, site_log_prob
from ppgen.ops.weights import log_mean_weight

#: How a log-likelihood with latents is estimated; see the module.
Method = Literal["elbo", "iwae", "ais"]
#: Where annealing starts.
Start = Literal["guide", "prior"]


def latent_log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    x: Tensor,
    context: Tensor | None = None,
    *,
    method: Method = "iwae",
    start: Start = "guide",
    num_particles: int | None = None,
    enumerates: bool = False,
    shared: bool = False,
    **options: Any,
) -> Estimate:
    """Estimate log p(x_n) for each datum, or log p(x) of all where latents are ``shared``.

    Args:
        model: the generative program.
        guide: the recognition program; ``None`` where there is none, for ``"ais"`` from the prior.
        x: data, shape ``(N, *event_shape)``.
        context: passed to both programs, one row a datum.
        method: ``"elbo"``, ``"iwae"`` or ``"ais"``; see the module.
        start: where annealing starts.
        num_particles: draws or particles P; 64 by default, 16 a datum for ``"ais"``.
        enumerates: as in :func:`importance_log_likelihood`.
        shared: whether data depend on each other through their latents.
        **options: of the function that does the work: :func:`importance_log_likelihood`,
            :func:`importance_evidence`, :func:`~ppgen.inference.annealing.likelihood.annealed_log_likelihood`
            or :class:`~ppgen.inference.ais.AIS`.

    Raises:
        ConfigError: no such method or start, or arguments that make no sense.
        CapabilityError: latents that the method is not for.

    Warns:
        SamplingWarning: weights of ``"ais"`` in few hands.
    """
    check_method(method)
    if start not in get_args(Start):
        raise ConfigError(f"start: expected one of {', '.join(get_args(Start))}, got {start!r}")
    if method == "ais":
        begin = guide if start == "guide" else None
        if shared:
            given = (x,) if context is None else (x, context)
            evidence = AIS(model, begin, num_particles=num_particles or 64, **options).run(*given)
            for note in evidence.warnings:
                warnings.warn(note, SamplingWarning, stacklevel=3)
            return evidence.log_evidence
        return annealed_log_likelihood(
            model, begin, x, context, num_particles=num_particles or 16, enumerates=enumerates, **options
        )
    estimator = importance_evidence if shared else importance_log_likelihood
    return estimator(
        model,
        guide or _no_latents,
        x,
        context,
        elbo=method == "elbo",
        num_particles=64 if num_particles is None else num_particles,
        enumerates=enumerates,
        **options,
    )


def check_method(method: str) -> None:
    """Raise :class:`~ppgen.errors.ConfigError` unless ``method`` is a :data:`Method`."""
    if method not in get_args(Method):
        raise ConfigError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")


def _no_latents(*_: Any, **__: Any) -> None:
    """The guide of a model without latents, or with none but those that are summed out."""


def importance_log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    context: Tensor | None = None,
    *,
    num_particles: int = 64,
    chunk_size: int = 4096,
    enumerates: bool = False,
    elbo: bool = False,
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
        elbo: average the log weights instead of the weights.

    Returns:
        ``value`` of shape (N,) in nats, a lower bound in expectation; ``std_error`` from the spread of
        the weights (0 for P = 1, where it is not known).
    """
    check_count(num_particles, "num_particles")
    values, errors = [], []
    rows = max(1, chunk_size // num_particles)
    with torch.no_grad(), pyro.validation_enabled(False):
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            rest = None if context is None else context[part]
            log_weights = _log_weights(model, guide, x[part], num_particles, rest, enumerates)
            value, error = _average(log_weights, elbo)
            values.append(value)
            errors.append(error)
    return Estimate.of(torch.cat(values), Kind.LOWER_BOUND, torch.cat(errors))


def importance_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    context: Tensor | None = None,
    *,
    num_particles: int = 64,
    enumerates: bool = False,
    elbo: bool = False,
) -> Estimate:
    """Estimate log p(x) of all data together, where latents are shared by them.

    Args:
        model: the generative program, with any plates.
        guide: the recognition program.
        x: data.
        context: passed to both programs.
        num_particles: draws from the guide, made one after the other.
        enumerates: as in :func:`importance_log_likelihood`; Pyro sums out, plate by plate.
        elbo: average the log weights instead of the weights.

    Returns:
        A scalar in nats, a lower bound in expectation, with its standard error.
    """
    check_count(num_particles, "num_particles")
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
    value, error = _average(torch.stack(draws), elbo)
    return Estimate.of(value, Kind.LOWER_BOUND, error)


def _average(log_weights: Tensor, elbo: bool) -> tuple[Tensor, Tensor]:
    """The ELBO or the log mean weight over the first dimension, and its standard error."""
    if not elbo:
        return log_mean_weight(log_weights)
    num = len(log_weights)
    value = log_weights.mean(0)
    return value, log_weights.std(0) / math.sqrt(num) if num > 1 else torch.zeros_like(value)


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
    log_joint = sum_of_sites(p.sites, nothing, enumerates)
    if log_joint.ndim > 2:
        log_joint = log_joint.flatten(0, -3).logsumexp(0)
    return log_joint - sum_of_sites(q.sites, nothing, False)
