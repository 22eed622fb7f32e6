r"""The first look at a Pyro model and its data: which sites there are, and whether they can be used.

Two runs: one with Pyro's validation on, for its messages, and one at other values, to see whether the
sites or their supports change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.utils import _pytree as pytree

from ppgen.errors import ConfigError, DataError
from ppgen.inference.mcmc.cures import Cures, store_kept, validation
from ppgen.inference.mcmc.sites import (
    LatentSite,
    Model,
    ObservedSite,
    Placed,
    Site,
    feasible_value,
    is_deterministic,
    is_discrete,
    is_masked_data,
    is_sampled,
    masked_data,
    plates_of,
    run,
)
from ppgen.inference.mcmc.transforms import bijection, unconstrained_shape
from ppgen.ops.random import forked_rng

# Starting values of the validated run: uniform in unconstrained space, within these radii.
_RADII = (0.5, 0.1, 1.0, 0.0, 2.0)
# What torch says where precisions are mixed.
_MIXED = re.compile("dtype|scalar type|same type")


@dataclass(frozen=True)
class Survey:
    """What the first runs found.

    Attributes:
        latents: in the order in which the model samples them.
        observed: observed sites and factors.
        deterministics: sites that are functions of others.
        discrete: names of the latents that are summed out.
        params: values of ``pyro.param`` sites.
        max_plate_nesting: how many dimensions plates take.
        dtype: precision of the model and its data, taken together.
        device: where the values are.
    """

    latents: tuple[LatentSite, ...]
    observed: tuple[ObservedSite, ...]
    deterministics: tuple[Site, ...]
    discrete: tuple[str, ...]
    params: Mapping[str, Tensor]
    max_plate_nesting: int
    dtype: torch.dtype
    device: torch.device


class _FirstValues(Messenger):
    """Gives each continuous latent a value near the middle of its support, and notes parameters."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self._radius = radius
        self.params: dict[str, Tensor] = {}

    def _pyro_param(self, msg: Any) -> None:
        # A module's own parameter stays itself: the parameter store must not get to know it.
        given = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(given, torch.nn.Parameter) and msg["name"] not in pyro.get_param_store():
            msg["value"] = given

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        given = msg["args"][1] if len(msg["args"]) > 1 else None
        # pyro.module compares objects, and would put another one into the user's module.
        self.params[msg["name"]] = value if isinstance(given, torch.nn.Parameter) else value.detach()

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample):
            if fn.subsample_size is not None and fn.subsample_size < fn.size:
                raise ConfigError(
                    f"model: plate '{msg['name']}' takes a subsample of {fn.subsample_size} of {fn.size}, so "
                    "the density would be another at every evaluation. Leave subsample_size out"
                )
        elif is_masked_data(msg):
            msg["value"] = masked_data(msg)
        elif not msg["is_observed"] and msg["value"] is None and not is_deterministic(msg):
            if is_discrete(msg):
                _check_enumerable(msg)
                return
            transform = bijection(fn.support, msg["name"])
            shape = unconstrained_shape(transform, fn.shape())
            msg["value"] = transform((torch.rand(shape, device=_device(fn)) * 2 - 1) * self._radius)


def survey(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    device: torch.device | None,
    max_plate_nesting: int | None,
    seed: int,
) -> Survey:
    """Look at a model.

    Raises:
        ConfigError: no continuous latents, a discrete latent that cannot be summed out, a plate that
            subsamples, a support without a bijection, sites that come and go.
        DataError: observed values that are NaN or out of support.
    """
    with store_kept():
        trace, first, dtype = _validated(model, args, kwargs, dtype, device, seed)
    sites = {name: site for name, site in trace.nodes.items() if is_sampled(site)}
    for site in sites.values():
        if site["is_observed"] and not is_deterministic(site):
            _check_observed(site)
    found = _classified(sites, first.params, max_plate_nesting, dtype)
    if not found.latents:
        what = (
            f"all its latent sites are discrete ({', '.join(found.discrete)}), and are summed out. "
            "Use pyro.infer.infer_discrete or pyro.infer.TraceEnum_ELBO"
            if found.discrete
            else "it has no latent sites. Give it something to infer: pyro.sample without obs"
        )
        raise ConfigError(f"model: there is nothing to sample: {what}")
    return replace(found, latents=tuple(_second_look(model, args, kwargs, found, device, seed)))


def _validated(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dtype: torch.dtype | None,
    device: torch.device | None,
    seed: int,
) -> tuple[Any, _FirstValues, torch.dtype]:
    """Pyro's trace of the first run that succeeds, with log densities; parameters; the precision."""
    error: Exception | None = None
    natural = dtype
    for attempt, radius in enumerate(_RADII):
        first = _FirstValues(radius)
        try:
            with (
                forked_rng(seed + attempt, device or "cpu"),
                validation(True),
                Cures(natural, device),
                torch.no_grad(),
                first,
            ):
                trace = poutine.trace(model).get_trace(*args, **kwargs)
                _check_data_first(trace)
                trace.compute_log_prob(lambda _, site: not is_deterministic(site))
        except (ConfigError, DataError):
            raise
        except Exception as raised:
            if dtype is None and natural is None and _MIXED.search(str(raised)):
                natural = torch.float64  # data of one precision met constants of another
            error = error or raised
            continue
        return trace, first, natural or _precision(trace)
    if error is None:
        raise RuntimeError("no attempt was made")
    _explain(error, args, kwargs)
    raise error


def _check_data_first(trace: Any) -> None:
    for site in trace.nodes.values():
        if is_sampled(site) and site["is_observed"] and not is_deterministic(site):
            _check_observed(site)


def _explain(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Where an argument holds NaN, that is the likely cause: say so instead."""
    for path, value in pytree.tree_flatten_with_path((args, dict(kwargs)))[0]:
        if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
            which = "kwargs" if pytree.keystr(path[:1]) == "[1]" else "args"
            where = which + pytree.keystr(path[1:])
            raise DataError(
                f"{where}: {int(value.isnan().sum())} of {value.numel()} values are NaN, and the model fails "
                "on them. Remove them, or mark them missing with obs_mask"
            ) from error


def _precision(trace: Any) -> torch.dtype:
    found: torch.dtype | None = None
    for site in trace.nodes.values():
        if not is_sampled(site) or is_deterministic(site):
            continue
        for value in (site["value"], site["log_prob"]):
            if isinstance(value, Tensor) and value.is_floating_point():
                found = value.dtype if found is None else torch.promote_types(found, value.dtype)
    return found if found in (torch.float32, torch.float64) else torch.float32


def _check_enumerable(site: Any) -> None:
    fn = site["fn"]
    try:
        if not fn.has_enumerate_support:
            raise NotImplementedError(f"{type(fn).__name__} has infinitely many values")
        fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise ConfigError(
            f"model: the discrete latent site '{site['name']}' cannot be summed out: {error}. Marginalise it "
            "by hand, or give it a distribution with finitely many values"
        ) from error


def _check_observed(site: Any) -> None:
    fn, value = site["fn"], site["value"]
    if not isinstance(value, Tensor):
        return
    event = tuple(range(-fn.event_dim, 0))
    mask = site["mask"] if isinstance(site["mask"], Tensor) else torch.tensor(site["mask"] is not False)
    entries = mask.reshape(mask.shape + (1,) * len(event)).to(value.device)
    if value.is_floating_point() and not getattr(fn, "takes_missing", False):
        nan = value.isnan() & entries
        if bool(nan.any()):
            raise DataError(
                f"site '{site['name']}': {int(nan.sum())} of {value.numel()} observed values are NaN. Remove "
                "them, or mark them missing with pyro.sample(..., obs_mask=...)"
            )
    try:
        valid = fn.support.check(value)
    except (NotImplementedError, AttributeError):
        return
    wrong = ~valid & mask.to(value.device)
    if bool(wrong.any()):
        raise DataError(
            f"site '{site['name']}': {int(wrong.sum())} of {wrong.numel()} observed values are outside of "
            f"the support of {type(fn).__name__}, {fn.support}. Check the data, or the distribution"
        )


def _classified(
    sites: Mapping[str, Any], params: Mapping[str, Tensor], max_plate_nesting: int | None, dtype: torch.dtype
) -> Survey:
    latents: list[LatentSite] = []
    observed: list[ObservedSite] = []
    deterministics: list[Site] = []
    discrete: list[str] = []
    start = 0
    for name, site in sites.items():
        fn, value = site["fn"], site["value"]
        if is_deterministic(site):
            deterministics.append(_deterministic(site))
        elif site["is_observed"]:
            given = None if isinstance(fn, dist.Unit) else value
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            observed.append(ObservedSite(name, shape, fn.event_dim, plates_of(site), given))
        elif is_discrete(site):
            discrete.append(name)
        else:
            latent = _latent(site, sites, start)
            start = latent.slice.stop
            latents.append(latent)
    dims = [frame.dim for site in sites.values() for frame in site["cond_indep_stack"] if frame.vectorized]
    nesting = -min(dims, default=0) if max_plate_nesting is None else max_plate_nesting
    device = next((s["value"].device for s in sites.values() if isinstance(s["value"], Tensor)), None)
    return Survey(
        tuple(latents),
        tuple(observed),
        tuple(deterministics),
        tuple(discrete),
        params,
        nesting,
        dtype,
        device or torch.device("cpu"),
    )


def _deterministic(site: Any) -> Site:
    """A deterministic site; pyro.deterministic takes all of a value for one event, unless it is told."""
    shape, plates, event_dim = tuple(site["value"].shape), plates_of(site), site["fn"].event_dim
    if event_dim == len(shape):
        for event_dim in range(len(shape) + 1):
            axes = [(len(shape) - event_dim + plate.dim, plate.size) for plate in plates]
            if all(axis >= 0 and shape[axis] == size for axis, size in axes):
                break
    return Site(site["name"], shape, event_dim, plates)


def _latent(site: Any, sites: Mapping[str, Any], start: int) -> LatentSite:
    name, fn = site["name"], site["fn"]
    shape = torch.Size(site["value"].shape)
    missing, fill = _missing(site, sites)
    piece = shape if missing is None else torch.Size((len(missing), *shape[len(shape) - fn.event_dim :]))
    unconstrained = unconstrained_shape(bijection(fn.support, name), piece)
    return LatentSite(
        name=name,
        shape=tuple(shape),
        event_dim=fn.event_dim,
        plates=plates_of(site),
        slice=slice(start, start + unconstrained.numel()),
        unconstrained_shape=tuple(unconstrained),
        support=fn.support,
        missing=missing,
        fill=fill,
    )


def _missing(site: Any, sites: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """For the unobserved half of a site with ``obs_mask``: which entries are latent, and the data.

    The others have no density and no influence: as coordinates of z they would drift off.
    """
    name: str = site["name"]
    twin = sites.get(name.removesuffix("_unobserved") + "_observed")
    if not name.endswith("_unobserved") or twin is None or not twin["is_observed"]:
        return None, None
    mask, value = site["mask"], site["value"]
    if not isinstance(mask, Tensor) or not isinstance(twin["value"], Tensor):
        return None, None
    if tuple(twin["value"].shape) != tuple(value.shape):
        return None, None
    batch = value.shape[: value.ndim - site["fn"].event_dim]
    bounds = (
        vars(_base(site["fn"].support)).values() if hasattr(_base(site["fn"].support), "__dict__") else ()
    )
    if any(isinstance(bound, Tensor) and bound.numel() > 1 for bound in bounds):
        return None, None  # entries are picked before they are transformed, which needs one transform for all
    missing = mask.expand(batch).reshape(-1).nonzero()[:, 0]
    return missing, masked_fill(twin)


def masked_fill(site: Any) -> Tensor:
    """The data of a site, with feasible values in place of NaN."""
    value: Tensor = site["value"].detach()
    return torch.where(value.isnan(), feasible_value(site["fn"].support, value), value)


def _base(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _second_look(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    found: Survey,
    device: torch.device | None,
    seed: int,
) -> Iterator[LatentSite]:
    """Run at other values: which supports depend on latents?"""
    latents = {site.name: site for site in found.latents}
    with (
        forked_rng(seed + len(_RADII), device or "cpu"),
        validation(False),
        store_kept(),
        Cures(found.dtype, device),
        torch.no_grad(),
    ):
        pieces = {
            site.name: torch.rand(site.unconstrained_shape, device=found.device) - 0.5
            for site in found.latents
        }
        looked = _Supports(latents, pieces, found.params)
        others = {*found.discrete, *(site.name for site in found.deterministics)}
        run(model, args, kwargs, looked, others=others)
        for site in found.latents:
            z = pieces[site.name]
            before, now = bijection(site.support, site.name)(z), looked.values[site.name]
            depends = before.shape != now.shape or not torch.allclose(before, now, equal_nan=True)
            yield replace(site, depends=depends)


class _Supports(Placed):
    """Notes the value of each piece before data are mixed in."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.values: dict[str, Tensor] = {}

    def _value(self, site: LatentSite, fn: Any) -> Tensor:
        value = bijection(fn.support, site.name)(self._pieces[site.name])
        self.values[site.name] = value
        return super()._value(site, fn)


def _device(fn: Any) -> torch.device | None:
    """Where a distribution's parameters are."""
    for value in vars(fn).values():
        if isinstance(value, Tensor):
            return value.device
    return None
