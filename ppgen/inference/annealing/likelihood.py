r"""Log p(x) of each datum by annealed importance sampling, for models whose latents belong to one datum.

:func:`annealed_log_likelihood` is the tightest of the three bounds ELBO ≤ IWAE ≤ AIS (in expectation, and
given temperatures enough); :func:`simulated_bounds` holds it against a bound from above, on data that the
model itself makes.

Reference: Wu, Burda, Salakhutdinov & Grosse 2017 (*On the quantitative analysis of decoder-based
generative models*).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.errors import ConfigError, SamplingWarning
from ppgen.inference.ais import Bounds
from ppgen.inference.annealing.path_ends import fresh_seed
from ppgen.inference.annealing.per_datum import PerDatum, RecordedEnergy
from ppgen.inference.annealing.plan import Plan, Tempering
from ppgen.inference.annealing.walk import Annealed, uneven_weights
from ppgen.inference.mcmc.density import Density
from ppgen.inference.memory import is_out_of_memory
from ppgen.inference.objectives.elbo import SiteRecorder
from ppgen.ops.random import forked_rng
from ppgen.ops.weights import effective_sample_size, log_mean_weight


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
        chunk_size: chains (data times particles) that move at once; halved where memory runs out.
        enumerates: whether the model has discrete latents marked for enumeration.
        seed: for the same figures again; torch's global generator gives one without it.
        **options: further fields of :class:`~ppgen.inference.annealing.plan.Plan`: ``num_temperatures``,
            ``schedule``, ``cess``, ``transition``, ``num_transitions``, ``progress``.

    Returns:
        ``value`` of shape (N,) in nats, float64, a lower bound in expectation, with the jackknife's error.

    Raises:
        CapabilityError: latents that are discrete or outside the data plate.
        ConfigError: arguments that make no sense.
        KeyboardInterrupt: Ctrl-C before the last chunk.

    Warns:
        SamplingWarning: data whose weights are in few hands.
    """
    sizes: list[Tensor] = []

    def measure(_: slice, tempering: Tempering, __: PerDatum) -> list[Annealed]:
        return [tempering.up()]

    found = []
    for (walk,) in _chunks(
        measure, model, guide, x, context, num_particles, chunk_size, enumerates, fresh_seed(seed), options
    ):
        found.append(log_mean_weight(walk.log_weights))
        sizes.append(effective_sample_size(walk.log_weights))
    note = uneven_weights("log_likelihood", torch.cat(sizes), num_particles)
    if note:
        warnings.warn(note, SamplingWarning, stacklevel=2)
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

    def measure(rows: slice, tempering: Tempering, chains: PerDatum) -> list[Annealed]:
        sites = {n: s["value"][rows] for n, s in recorder.sites.items() if n in chains.names}
        return [tempering.up(), tempering.down(chains.unconstrain(sites).repeat(num_particles, 1))]

    lowers, uppers = [], []
    for up, down in _chunks(
        measure, model.model, guide, x, context, num_particles, chunk_size, False, seed, options
    ):
        lowers.append(log_mean_weight(up.log_weights))
        value, error = log_mean_weight(down.log_weights)
        uppers.append((-value, error))
    lower, upper = (
        Estimate(torch.cat([v for v, _ in each]), kind, torch.cat([e for _, e in each]))
        for each, kind in ((lowers, Kind.LOWER_BOUND), (uppers, Kind.UPPER_BOUND))
    )
    error = torch.hypot(lower.std_error, upper.std_error)
    gap = Estimate(upper.value - lower.value, Kind.UPPER_BOUND, error).mean()
    return Bounds(lower, upper, gap, seed)


def _chunks(
    measure: Callable[[slice, Tempering, PerDatum], list[Annealed]],
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    x: Tensor,
    context: Tensor | None,
    num_particles: int,
    chunk_size: int,
    enumerates: bool,
    seed: int,
    options: dict[str, Any],
) -> Iterator[list[Annealed]]:
    """What ``measure`` gives for the walks of each chunk of the data.

    What the first one's pilot run found serves all. Where memory runs out, chunks are halved.
    """
    if chunk_size < 1:
        raise ConfigError(f"chunk_size: expected a positive integer, got {chunk_size}")
    stream = torch.Generator().manual_seed(seed)
    tuned: Tempering | None = None
    start, at_once = 0, max(1, chunk_size // num_particles)
    while start < len(x):
        rows = slice(start, start + at_once)
        chains = PerDatum(
            model, guide, x[rows], None if context is None else context[rows], enumerates=enumerates
        )
        drawn = int(torch.randint(2**62, (), generator=stream))
        plan = Plan(num_particles, seed=drawn, **{"compile": False, **options})
        energy = RecordedEnergy(chains.parts)
        try:
            tempering = Tempering(
                # One chain alone has no meaning here: each has a datum of its own.
                Density(chains.num_dims, 2, energy, energy, traceable=False),
                chains.draw,
                plan,
                num_groups=len(x[rows]),
                apart=False,
                device=x.device,
                tuned=tuned,
            )
            found = measure(rows, tempering, chains)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or at_once == 1:
                raise
            found = []
        if not found:  # outside the handler: an exception keeps alive all that filled the memory
            at_once = -(-min(at_once, len(x) - start) // 2)
            continue
        tuned = tuned or tempering
        start += at_once
        yield found
        if start < len(x) and any(walk.interrupted for walk in found):
            raise KeyboardInterrupt
