r"""The sites of a Pyro model: found by a validated run, and run again with given values.

A *latent* site is a continuous one that is sampled and not observed; it has a place in the flat
unconstrained vector z. Discrete latents are summed out by Pyro's enumeration. Sites whose
distribution is a ``Delta`` without a density of its own (``pyro.deterministic``, and what ``reparam``
leaves behind) are *deterministic*: functions of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc.transforms import bijection, unconstrained_shape

Model = Callable[..., Any]


@dataclass(frozen=True)
class Plate:
    """A vectorised plate: its name, size, and dimension, counted from the right of the batch shape."""

    name: str
    size: int
    dim: int


@dataclass(frozen=True)
class Site:
    """What latent and observed sites have in common.

    Attributes:
        name: the name.
        shape: shape of one value.
        event_dim: how many dimensions on the right belong to one event.
        plates: the vectorised plates that it stands in.
    """

    name: str
    shape: tuple[int, ...]
    event_dim: int
    plates: tuple[Plate, ...]

    @property
    def dims(self) -> tuple[str | None, ...]:
        """For each dimension of ``shape`` the name of its plate, or ``None``."""
        names: list[str | None] = [None] * len(self.shape)
        for plate in self.plates:
            axis = len(self.shape) - self.event_dim + plate.dim
            if axis >= 0 and self.shape[axis] == plate.size:
                names[axis] = plate.name
        return tuple(names)


@dataclass(frozen=True)
class LatentSite(Site):
    """A continuous latent.

    Attributes:
        slice: its place in z.
        unconstrained_shape: shape of that piece.
        support: Pyro's constraint, as it was in the first run.
        depends: whether the support changes with other latents.
        missing: where only some values are latent (``obs_mask``): their positions among the
            flattened batch; the others are data.
        fill: values at the other positions.
    """

    slice: slice
    unconstrained_shape: tuple[int, ...]
    support: Any
    depends: bool = False
    missing: Tensor | None = None
    fill: Tensor | None = None


@dataclass(frozen=True)
class ObservedSite(Site):
    """An observed site, or a ``pyro.factor``; ``value`` is None for a factor."""

    value: Tensor | None = None


@dataclass
class Run:
    r"""One run of a model.

    Attributes:
        nodes: Pyro's message of each sample site, in order.
        log_jacobian: sum over the latents of :math:`\log |d v / d z|` with value v, in nats.
        trace: Pyro's trace.
    """

    nodes: dict[str, Any]
    log_jacobian: Tensor | float
    trace: Any


class Placed(Messenger):
    """Gives latents the values that belong to pieces of z, and parameters the values they had at first."""

    def __init__(
        self, latents: Mapping[str, LatentSite], pieces: Mapping[str, Tensor], params: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self._latents, self._pieces, self._params = latents, pieces, params
        self.log_jacobian: Tensor | float = 0.0

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self._params:
            msg["value"] = self._params[msg["name"]]

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self._latents and not msg["is_observed"] and msg["value"] is None:
            msg["value"] = self._value(self._latents[name], msg["fn"])
        elif is_masked_data(msg):
            msg["value"] = masked_data(msg)

    def _value(self, site: LatentSite, fn: Any) -> Tensor:
        z = self._pieces[site.name]
        transform = bijection(fn.support, site.name)
        value = transform(z)
        self.log_jacobian = self.log_jacobian + transform.log_abs_det_jacobian(z, value).sum()
        return with_data(site, value)


class Given(Messenger):
    """Gives sites their values."""

    def __init__(self, values: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._values, self._dtype, self._device = values, dtype, device

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._values and msg["value"] is None:
            msg["value"] = self._values[msg["name"]].detach().to(self._device, self._dtype)


class Valued(Messenger):
    """Notes the piece of z that belongs to the value of each latent."""

    def __init__(self, latents: Mapping[str, LatentSite], params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._latents, self._params = latents, params
        self.pieces: dict[str, Tensor] = {}

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self._params:
            msg["value"] = self._params[msg["name"]]

    def _pyro_sample(self, msg: Any) -> None:
        if is_masked_data(msg):
            msg["value"] = masked_data(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        site = self._latents.get(msg["name"])
        if site is None or msg["is_observed"]:
            return
        value = msg["value"].detach()
        if site.missing is not None:
            event = site.shape[len(site.shape) - site.event_dim :]
            value = value.reshape((-1, *event))[site.missing.to(value.device)]
        self.pieces[site.name] = bijection(msg["fn"].support, site.name).inv(value)


def with_data(site: LatentSite, value: Tensor) -> Tensor:
    """The whole value of a site of which only some entries are latent: ``value`` ``(..., M, *event)``."""
    if site.missing is None or site.fill is None:
        return value
    event = site.shape[len(site.shape) - site.event_dim :]
    batch = value.shape[: value.ndim - 1 - site.event_dim]
    flat = site.fill.to(value).reshape((-1, *event)).expand(*batch, -1, *event)
    flat = flat.movedim(len(batch), 0).index_put(
        (site.missing.to(value.device),), value.movedim(len(batch), 0)
    )
    return flat.movedim(0, len(batch)).reshape((*batch, *site.shape))


def is_masked_data(msg: Any) -> bool:
    """Whether a site is observed under a mask that is a tensor."""
    return (
        msg["is_observed"]
        and isinstance(msg["mask"], Tensor)
        and isinstance(msg["value"], Tensor)
        and msg["value"].is_floating_point()
    )


def masked_data(msg: Any) -> Tensor:
    """Observed values, with feasible ones where a mask hides NaN: 0 times the gradient of NaN is NaN."""
    value: Tensor = msg["value"]
    event_dim = msg["fn"].event_dim
    hidden = ~msg["mask"].reshape(msg["mask"].shape + (1,) * event_dim)
    try:
        feasible = feasible_value(msg["fn"].support, value)
    except NotImplementedError:
        return value
    return torch.where(hidden & value.isnan(), feasible, value)


def feasible_value(support: Any, like: Tensor) -> Tensor:
    """Some value in ``support``, of the shape of ``like``."""
    transform = torch.distributions.transform_to(support)
    shape = unconstrained_shape(transform, like.shape)
    return transform(torch.zeros(shape, dtype=like.dtype, device=like.device))


def is_deterministic(site: Any) -> bool:
    """Whether a site is a function of the others, without a density."""
    if site["infer"].get("_deterministic"):
        return True
    fn = site["fn"]
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    if not isinstance(fn, dist.Delta):
        return False
    density = fn.log_density
    return not isinstance(density, Tensor) or (not density.requires_grad and not bool(density.any()))


def is_sampled(site: Any) -> bool:
    """Whether a node of a trace is a sample site that may have a density."""
    return site["type"] == "sample" and not isinstance(site["fn"], _Subsample)


def is_discrete(site: Any) -> bool:
    """Whether a site takes discrete values."""
    if site["fn"].has_enumerate_support:
        return True
    support = site["fn"].support
    return bool(getattr(support, "is_discrete", False))


def plates_of(site: Any) -> tuple[Plate, ...]:
    """The vectorised plates of a site."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    return tuple(Plate(f.name, int(f.size), int(f.dim)) for f in sorted(frames, key=lambda f: f.dim))


def enumerated(model: Model, max_plate_nesting: int) -> Model:
    """The model with all its discrete latents enumerated in parallel."""

    def parallel(site: Any) -> Any:
        infer = dict(site["infer"])
        if not site["is_observed"] and getattr(site["fn"], "has_enumerate_support", False):
            infer["enumerate"] = "parallel"
            infer.pop("num_samples", None)
        return infer

    first = -1 - max_plate_nesting
    return poutine.enum(poutine.infer_config(config_enumerate(model), parallel), first_available_dim=first)


def run(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    placed: Placed,
    *,
    others: Collection[str] = (),
) -> Run:
    """Run a model with its latents placed; sites that only some runs have are an error.

    Args:
        model: the program.
        args: its positional arguments.
        kwargs: its named arguments.
        placed: gives latents their values.
        others: names of sites that are sampled and no latents: discrete and deterministic ones.

    Raises:
        ConfigError: a latent that this run has and the first had not, or the other way round.
    """
    with placed:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    nodes = {name: site for name, site in trace.nodes.items() if is_sampled(site)}
    for name in placed._latents:
        if name not in nodes:
            raise ConfigError(
                f"model: latent site '{name}' was there in the first run and is not in another; the density "
                "needs the same sites in every run. Sample it always, and ignore it where it does not apply"
            )
    for name, site in nodes.items():
        if not site["is_observed"] and name not in placed._latents and name not in others:
            raise ConfigError(
                f"model: latent site '{name}' was not there in the first run and is in another; the density "
                "needs the same sites in every run. Sample it always, and ignore it where it does not apply"
            )
    return Run(nodes, placed.log_jacobian, trace)
