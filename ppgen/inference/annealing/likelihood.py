r"""Log p(x) of each datum by annealed importance sampling, for models whose latents belong to one datum.

:func:`annealed_log_likelihood` is the tightest of the three bounds ELBO ≤ IWAE ≤ AIS (in expectation, and
given temperatures enough); :func:`simulated_bounds` holds it against a bound from above, on data that the
model itself makes.

Reference: Wu, Burda, Salakhutdinov & Grosse 2017 (*On the quantitative analysis of decoder-based
generative models*).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.errors import ConfigError
from ppgen.inference.ais import Bounds
from ppgen.inference.mcmc.density import Density
from ppgen.inference.objectives.elbo import SiteRecorder
from ppgen.inference.annealing.path_ends import fresh_seed
from ppgen.inference.annealing.per_datum import PerDatum, RecordedEnergy, eager
from ppgen.inference.annealing.plan import Plan, Tempering
from ppgen.ops.random import forked_rng
from ppgen.ops.weights import log_mean_weight


def annealed_log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    x: Tensor,
    context: Tensor | None = None,
    *,
    num_particles: int = 16,
    chunk_size: int = 4096,
    enumerates: bool = False,
    seed: int | None = None,
    **options: Any,
) -> Estimate:
    r"""Estimate log p(x_n) for each datum; every (particle, datum) is a chain, all in one batch.

    Step sizes and ladder come from a pilot run on the first chunk of the data, and hold for all.

    Args:
        model: the generative program; latents and data share the plate dimension -1.
        guide: q(z | x), to start from; ``None`` to start from the prior.
        x: data, shape (N, ...).
        context: passed to both programs, one row a datum.
        num_particles: particles P for each datum.
        chunk_size: chains (data times particles) that move at once.
        enumerates: whether the model has discrete latents marked for enumeration.
        seed: for the same figures again; torch's global generator gives one without it.
        **options: further fields of :class:`~ppgen.inference.annealing.plan.Plan`: ``num_temperatures``,
            ``schedule``, ``cess``, ``transition``, ``num_transitions``, ``progress``.

    Returns:
        ``value`` of shape (N,) in nats, float64, a lower bound in expectation, with the jackknife's error.

    Raises:
        CapabilityError: latents that are discrete or outside the data plate.
        ConfigError: arguments that make no sense.
    """
    found = [
        log_mean_weight(tempering.up().log_weights)
        for _, tempering, _ in _chunks(
            model, guide, x, context, num_particles, chunk_size, enumerates, fresh_seed(seed), options
        )
    ]
    value, error = (torch.cat(each) for each in zip(*found, strict=True))
    return Estimate(value, Kind.LOWER_BOUND, error)


def simulated_bounds(
    model: GenerativeModel,
    num: int = 100,
    context: Tensor | None = None,
    *,
    from_prior: bool = False,
    num_particles: int = 16,
    chunk_size: int = 4096,
    seed: int | None = None,
    **options: Any,
) -> Bounds:
    """Both bounds on log p(x) of data that the model makes (bidirectional Monte Carlo).

    Args:
        model: a model with continuous latents in the data plate.
        num: data N.
        context: rows for a conditional model, one a datum.
        from_prior: start from the prior instead of the guide.
        num_particles: see :func:`annealed_log_likelihood`, as what follows.
        chunk_size: see there.
        seed: see there.
        **options: see there.

    Returns:
        Bounds with one entry a datum; the gap is the mean over data, with the error of that mean.
    """
    seed = fresh_seed(seed)
    if num < 1:
        raise ConfigError(f"num: expected a positive integer, got {num}")
    quiet = pyro.validation_enabled(False)
    with torch.no_grad(), forked_rng(seed, model.device), quiet, SiteRecorder() as recorder:
        x = model.model(None, context, num=num)
    guide = None if from_prior else model.guide
    lowers, uppers = [], []
    for rows, tempering, chains in _chunks(
        model.model, guide, x, context, num_particles, chunk_size, False, seed, options
    ):
        lowers.append(log_mean_weight(tempering.up().log_weights))
        made = chains.unconstrain(
            {n: s["value"][rows] for n, s in recorder.sites.items() if n in chains.names}
        )
        value, error = log_mean_weight(tempering.down(made.repeat(num_particles, 1)).log_weights)
        uppers.append((-value, error))
    lower, upper = (
        Estimate(torch.cat([v for v, _ in each]), kind, torch.cat([e for _, e in each]))
        for each, kind in ((lowers, Kind.LOWER_BOUND), (uppers, Kind.UPPER_BOUND))
    )
    error = torch.hypot(lower.std_error, upper.std_error)
    gap = Estimate(upper.value - lower.value, Kind.UPPER_BOUND, error).mean()
    return Bounds(lower, upper, gap, seed)


def _chunks(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    x: Tensor,
    context: Tensor | None,
    num_particles: int,
    chunk_size: int,
    enumerates: bool,
    seed: int,
    options: dict[str, Any],
) -> Iterator[tuple[slice, Tempering, PerDatum]]:
    """The data in chunks, each with its walks; what the first one's pilot run found serves all."""
    if chunk_size < 1:
        raise ConfigError(f"chunk_size: expected a positive integer, got {chunk_size}")
    stream = torch.Generator().manual_seed(seed)
    tuned: Tempering | None = None
    at_once = max(1, chunk_size // num_particles)
    for start in range(0, len(x), at_once):
        rows = slice(start, start + at_once)
        chains = PerDatum(
            model, guide, x[rows], None if context is None else context[rows], enumerates=enumerates
        )
        plan = Plan(num_particles, seed=int(torch.randint(2**62, (), generator=stream)), **options)
        energy = RecordedEnergy(chains.parts)
        tempering = Tempering(
            # One chain alone has no meaning here: each has a datum of its own.
            Density(chains.num_dims, 2, energy, energy, traceable=False),
            chains.draw,
            plan,
            num_groups=len(x[rows]),
            device=x.device,
            executor=eager(energy, x.device),
            tuned=tuned,
        )
        tuned = tuned or tempering
        yield rows, tempering, chains
