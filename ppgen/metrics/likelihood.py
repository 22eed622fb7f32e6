r"""Held-out likelihood: negative log-likelihood in nats and bits per dimension.

Data and model meet in one of two ways:

* both have the same values: the model's own log mass or log density is taken as it is;
* discrete data, density on the reals: *uniform dequantisation*. For data on L levels,
  :math:`y = (k + u) / L` with :math:`u \sim U[0, 1)^D`, and by Jensen

  .. math:: \log P(k) = \log \int_{[0,1)^D} p\big(\tfrac{k + u}{L}\big)\, \frac{du}{L^D}
            \ge E_u[\log p(y)] - D \log L .

  The expectation is estimated by a mean over draws of u, so the figure is a bound (upper for
  the negative log-likelihood) even where the density is exact.

So figures of densities and of masses on the same discrete data stand in one table.

References: Theis, van den Oord and Bethge (2016), "A note on the evaluation of generative
models"; Uria, Murray and Larochelle (2013), "RNADE", for the noise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppgen.contract import Estimate, GenerativeModel, HasLogLikelihood, Kind, require
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import bridge
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.ops.random import forked_rng


def nll(
    model: GenerativeModel,
    data: Split | Tensor,
    *,
    context: Tensor | None = None,
    batch_size: int = 512,
    num_dequantisations: int = 8,
    seed: int = 0,
    **options: Any,
) -> Estimate:
    r"""Mean negative log-likelihood :math:`-\frac1N \sum_n \log p(x_n)`, in nats per datum.

    Args:
        model: a model with ``log_likelihood``; evaluated in ``eval`` mode, its training flags
            are put back.
        data: a split, or a tensor ``(N, *event_shape)`` of the model's own values.
        context: one row a datum; the split's ``y`` where left out and the model is conditional.
        batch_size: data evaluated at once; bounds the memory.
        num_dequantisations: draws of the noise a datum, where dequantisation is needed; 2 or more.
        seed: of the noise and of the model's own draws; torch's global generators are left as
            they were. The noise does not depend on ``batch_size`` or the device.
        **options: passed on to ``model.log_likelihood`` (``num_particles=...``).

    Returns:
        A scalar (float64). Where ``log_likelihood`` is a lower bound, or where the data are
        dequantised, the kind is ``upper_bound``. The standard error is that of the mean over
        data as a sample of a population, Monte-Carlo error included; for a single datum it is
        the Monte-Carlo error alone. Both are infinite where the model gives some datum
        probability 0.

    Raises:
        CapabilityError: the model has no likelihood, or an unnormalised one, or an upper bound
            where dequantisation turns it into no bound at all.
        DataError: values that the model is not for; NaN among the data or the results; neither
            a split nor a tensor.
        ShapeError: data, context or results of a wrong shape.
    """
    each = _log_likelihoods(
        model, data, context, batch_size, num_dequantisations, seed, options, normalised=True
    )
    mean = each.mean()
    if not torch.isfinite(mean.value):
        mean = replace(mean, std_error=torch.full_like(mean.value, torch.inf))
    return mean.affine(-1.0)


def bits_per_dim(
    model: GenerativeModel,
    data: Split | Tensor,
    *,
    context: Tensor | None = None,
    batch_size: int = 512,
    num_dequantisations: int = 8,
    seed: int = 0,
    **options: Any,
) -> Estimate:
    r"""Mean negative log-likelihood in bits per coordinate, :math:`\mathrm{nll} / (D \log 2)`.

    For discrete data it is the length of the best code built from the model (or a bound on
    it), so a uniform model of L levels scores :math:`\log_2 L`. For real data it is a
    differential entropy rate: it changes with the unit of the data and may be negative.

    Arguments, kind, standard error and errors are those of :func:`nll`.
    """
    found = nll(
        model,
        data,
        context=context,
        batch_size=batch_size,
        num_dequantisations=num_dequantisations,
        seed=seed,
        **options,
    )
    return found.affine(1.0 / (model.event_shape.numel() * math.log(2.0)))


def log_likelihoods(
    model: GenerativeModel,
    data: Split | Tensor,
    *,
    context: Tensor | None = None,
    batch_size: int = 512,
    num_dequantisations: int = 8,
    seed: int = 0,
    **options: Any,
) -> Estimate:
    r"""Log-likelihood :math:`\log p(x_n)` of each datum, in nats; see :func:`nll` for the arguments.

    Returns:
        Values of shape (N,) (float64, on the data's device), standard errors of the same shape.
        Under dequantisation the kind is ``lower_bound`` (``unnormalised`` stays so), and the
        standard error is that of the mean over draws of the noise.

    Raises:
        CapabilityError, DataError, ShapeError: as :func:`nll`, but for an unnormalised
            density, which is returned as such.
    """
    return _log_likelihoods(
        model, data, context, batch_size, num_dequantisations, seed, options, normalised=False
    )


def _log_likelihoods(
    model: GenerativeModel,
    data: Split | Tensor,
    context: Tensor | None,
    batch_size: int,
    num_dequantisations: int,
    seed: int,
    options: dict[str, Any],
    *,
    normalised: bool,
) -> Estimate:
    """:func:`log_likelihoods`; refuses an unnormalised density where ``normalised`` is asked for."""
    require(model, HasLogLikelihood, "a likelihood metric")
    split = _as_split(model, data)
    model.check_event(split.x)
    context = _context_of(model, split, context)
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected a positive integer, got {batch_size}")
    bridge(split.values, model.support)  # raises where the model is for other values
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), split.x.dtype)

    def evaluate(x: Tensor, rows: slice) -> Estimate:
        given = None if context is None else context[rows].to(model.device)
        found = model.log_likelihood(x.to(device=model.device, dtype=dtype), given, **options)
        _check_result(model, found, len(x), normalised=normalised)
        return found

    streams = [] if split.values.within(model.support) else _noise_streams(seed, num_dequantisations)
    parts: list[Estimate] = []
    with torch.no_grad(), _eval_mode(model), forked_rng(seed, model.device):
        for start in range(0, len(split), batch_size):
            rows = slice(start, start + batch_size)
            if not streams:
                parts.append(evaluate(split.x[rows], rows))
                continue
            # Noise from the CPU whatever the device: the same figure everywhere.
            x = split.x[rows].cpu()
            draws = [evaluate(split.values.dequantise(x, stream), rows) for stream in streams]
            parts.append(_dequantised_mean(draws, split.values.log_cell_volume(split.num_dims)))
    if len({part.kind for part in parts}) != 1:
        raise CapabilityError(
            f"log_likelihood: {type(model).__name__} gives numbers of different kinds for different data: "
            f"{', '.join(sorted({part.kind for part in parts}))}; no one table can hold them"
        )
    value = torch.cat([part.value.double() for part in parts]).to(split.x.device)
    std_error = torch.cat([part.std_error.double() for part in parts]).to(split.x.device)
    return Estimate(value, parts[0].kind, std_error, _shared_error(parts))


def _as_split(model: GenerativeModel, data: Split | Tensor) -> Split:
    if isinstance(data, Split):
        return data
    if isinstance(data, Tensor):
        return Split(data, values=model.support)
    hint = (
        "a data set has three splits: give the one that was held out, data.test"
        if isinstance(data, DataSet)
        else "make it a split, datasets.as_split(data), which also tells what its values are"
    )
    raise DataError(f"data: expected a Split or a tensor, got a {type(data).__name__}; {hint}")


def _context_of(model: GenerativeModel, split: Split, context: Tensor | None) -> Tensor | None:
    """The context given, else the split's ``y`` where the model wants one; checked."""
    if context is None and model.context_dim > 0:
        context = split.y
    model.check_context(context)
    if context is not None and len(context) != len(split):
        raise ShapeError(f"context: expected one row for each of {len(split)} data, got {len(context)}")
    return context


def _check_result(model: GenerativeModel, found: Estimate, num: int, *, normalised: bool) -> None:
    name = type(model).__name__
    if normalised and found.kind is Kind.UNNORMALISED:
        raise CapabilityError(
            f"log_likelihood: {name} gives an unnormalised log density, and a likelihood needs its log "
            'partition (log Z), which is unknown here; pass method="ais", which estimates it by annealed '
            "importance sampling where the family has that, or compare unnormalised values of this one model "
            "with metrics.log_likelihoods"
        )
    if found.value.shape != (num,):
        raise ShapeError(
            f"log_likelihood: expected one number for each of {num} data, got a value of shape "
            f"{tuple(found.value.shape)} from {name}; sum the log-probability over the event"
        )
    bad = int((found.value.isnan() | found.value.isposinf() | found.std_error.isnan()).sum())
    if bad:
        raise DataError(
            f"log_likelihood: {name} gave NaN or +inf for {bad} of {num} data; its parameters have likely "
            "diverged: train with a lower learning rate, or evaluate in float64 (model.double())"
        )


def _noise_streams(seed: int, num: int) -> list[torch.Generator]:
    """One generator a draw: each walks the data in order, so batches of any size see the same noise."""
    if num < 2:
        raise ConfigError(
            f"num_dequantisations: a mean with a standard error needs 2 draws or more, got {num}"
        )
    seeds = torch.randint(2**62, (num,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [torch.Generator().manual_seed(s) for s in seeds]


def _dequantised_mean(draws: list[Estimate], log_cell_volume: float) -> Estimate:
    """Mean over draws of log p(y) plus the log volume of a cell: a lower bound on the log mass."""
    if draws[0].kind is Kind.UPPER_BOUND:
        raise CapabilityError(
            "log_likelihood: an upper bound on a log density gives no bound on the log mass of discrete "
            "data, for dequantisation bounds it from below; use a model of the data's own values"
        )
    # A consistent estimate of the density estimates the bound consistently, not the mass.
    kind = Kind.UNNORMALISED if draws[0].kind is Kind.UNNORMALISED else Kind.LOWER_BOUND
    values = torch.stack([draw.value.double() for draw in draws])
    mean = values.mean(0)
    # The spread over draws holds the noise and whatever the model itself draws.
    std_error = values.std(0) / math.sqrt(len(draws))
    shared = _shared_error(draws)
    if shared is not None:  # common to the draws too, so their spread does not show it
        std_error = torch.hypot(std_error, shared.to(std_error))
    return Estimate(mean + log_cell_volume, kind, std_error.where(mean.isfinite(), torch.inf), shared)


def _shared_error(parts: list[Estimate]) -> Tensor | None:
    """The error that all values of all parts have in common; the largest where they differ."""
    found = [part.shared_error.double() for part in parts if part.shared_error is not None]
    return torch.stack(found).max() if found else None


@contextlib.contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Within, the model is in ``eval`` mode; after, each module has the flag that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
