"""Checks of a model/guide pair before training, and the search for what went wrong in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import nn

from ppgen.errors import ConfigError, DataError, PpgenError, ShapeError
from ppgen.inference.memory import is_out_of_memory
from ppgen.inference.objectives.base import Program


@dataclass(frozen=True)
class PairReport:
    """What one validated run of the pair shows.

    Attributes:
        parameters: leaves of the ``param`` sites, by site name.
        latents: names of the model's latent sites.
    """

    parameters: dict[str, nn.Parameter]
    latents: list[str]


def check_pair(model: Program, guide: Program, *args: Any, **kwargs: Any) -> PairReport:
    """Run the pair once with Pyro's validation on, and raise where it cannot be trained.

    Raises:
        ConfigError: a latent that the guide does not give, or a guide site that the model
            does not have; plates of one name with different sizes.
        DataError: a log-probability that is not finite, naming the site.
        ShapeError: Pyro found shapes or plates that do not fit.
    """
    with torch.no_grad(), pyro.validation_enabled(True):
        try:
            guide_trace: Any = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace: Any = poutine.trace(replayed).get_trace(*args, **kwargs)
        except (ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, PpgenError) or is_out_of_memory(error):
                raise
            raise ShapeError(
                f"model/guide: running the pair on a batch failed, likely a shape that does not fit "
                f"its plates, or a value outside a support: {error}"
            ) from error
        _check_sites(model_trace, guide_trace)
        found = non_finite_site(model_trace) or non_finite_site(guide_trace)
        if found is not None:
            raise DataError(
                f"model/guide: {found} at the first step; look at the start values and the data there"
            )
    parameters: dict[str, nn.Parameter] = {
        name: site["value"].unconstrained()
        for trace in (model_trace, guide_trace)
        for name, site in trace.nodes.items()
        if site["type"] == "param"
    }
    return PairReport(parameters, sorted(_latents(model_trace)))


def non_finite_site(trace: Any) -> str | None:
    """Describe the first site whose value or log-probability is not finite; ``None`` if all are."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        value = site["value"]
        may_be_missing = site["is_observed"] and getattr(site["fn"], "takes_missing", False)
        if value.is_floating_point() and not may_be_missing and not bool(torch.isfinite(value).all()):
            return f"site '{name}' has a value that is not finite"
        try:
            log_prob = site["fn"].log_prob(value)
        except ValueError as error:
            return f"site '{name}' cannot be evaluated ({str(error).splitlines()[0]})"
        except TypeError:  # an implicit distribution has no density
            continue
        if not bool(torch.isfinite(log_prob).all()):
            return f"site '{name}' has a log-probability that is not finite"
    return None


def find_non_finite(model: Program, guide: Program, *args: Any, **kwargs: Any) -> str:
    """Name the site at which the pair turns non-finite on these arguments."""
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            found = non_finite_site(guide_trace)
            if found is None:
                replayed = poutine.replay(model, trace=guide_trace)
                found = non_finite_site(poutine.trace(replayed).get_trace(*args, **kwargs))
        except (RuntimeError, ValueError) as error:
            found = f"the pair can no longer be run ({str(error).splitlines()[0]})"
    return found or "no site: the loss or its gradient alone overflowed"


def _latents(trace: Any) -> set[str]:
    return {name for name in trace.stochastic_nodes if type(trace.nodes[name]["fn"]).__name__ != "_Subsample"}


def _check_sites(model_trace: Any, guide_trace: Any) -> None:
    model_latents, guide_latents = _latents(model_trace), _latents(guide_trace)
    auxiliary = {n for n in guide_latents if guide_trace.nodes[n]["infer"].get("is_auxiliary")}
    enumerated = {n for n in model_latents if model_trace.nodes[n]["infer"].get("enumerate")}
    missing = model_latents - guide_latents - enumerated
    if missing:
        raise ConfigError(
            f"guide: the model's latent sites {sorted(missing)} are not sampled in the guide; "
            "add them there, or enumerate the discrete ones (infer={'enumerate': 'parallel'})"
        )
    extra = guide_latents - model_latents - auxiliary
    if extra:
        raise ConfigError(
            f"guide: samples {sorted(extra)}, which the model does not have as latents; rename them, "
            "or mark them with infer={'is_auxiliary': True}"
        )
    sizes: dict[str, tuple[int, int]] = {}
    for trace in (model_trace, guide_trace):
        for site in trace.nodes.values():
            for frame in site.get("cond_indep_stack", ()):
                size = (frame.full_size or frame.size, frame.size)
                if sizes.setdefault(frame.name, size) != size:
                    full, rows = sizes[frame.name]
                    raise ConfigError(
                        f"plate '{frame.name}': the model has size {full} with {rows} rows at a time, "
                        f"the guide size {size[0]} with {size[1]}; give both the same size and subsample_size"
                    )
