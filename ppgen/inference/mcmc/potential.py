r"""The flat unconstrained density of a Pyro model and its data.

.. math::
    \log \pi(z) = \log p(\theta(z)) + \log |\partial \theta / \partial z| + \log p(y \mid \theta(z)),
    \qquad z \in R^D

where :math:`\theta` are the continuous latents, each mapped from its piece of z by the bijection of its
support; discrete latents are summed out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints
from torch.utils import _pytree as pytree

from ppgen.errors import ConfigError, ShapeError
from ppgen.inference.mcmc import graph, precision
from ppgen.inference.mcmc.cures import cured
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.program import Program, energy_program
from ppgen.inference.mcmc.sites import (
    Given,
    LatentSite,
    Model,
    ObservedSite,
    Placed,
    Run,
    Site,
    Valued,
    enumerated,
    is_discrete,
    run,
    with_data,
)
from ppgen.inference.mcmc.survey import survey
from ppgen.inference.mcmc.transforms import bijection, unconstrained_shape


class Target(Protocol):
    """What samplers need of a density; :class:`Potential` and :class:`FunctionPotential` have it."""

    sites: tuple[LatentSite, ...]
    observed: tuple[ObservedSite, ...]
    deterministics: tuple[Site, ...]
    discrete: tuple[str, ...]
    num_dims: int
    dtype: torch.dtype
    dtype_reason: str
    device: torch.device

    def log_parts(self, z: Tensor) -> Tensor:
        """Log prior with the Jacobian, and log likelihood, (2,) in nats, at z (D,)."""

    def density(self, path: bool = False) -> Density:
        """Minus the log density and its gradient."""

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites, each ``(..., *shape)``, at points z ``(..., D)``."""

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """The point z (D,) of one draw of all latent sites."""

    def deterministic(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the deterministic sites, each ``(..., *shape)``, at points z ``(..., D)``."""

    def site_log_probs(self, z: Tensor) -> dict[str, Tensor]:
        """Total log density of each site with one, in nats, at z (D,)."""


class Potential:
    r"""A Pyro model and its data as a function of one flat vector.

    The model may be any Pyro program: a function, a ``PyroModule``, either of them in ``poutine``
    handlers. Its parameters (``pyro.param``, module parameters) are constants. Neither the model nor its
    arguments, Pyro's parameter store or any global switch is changed.

    Where the model is reparameterised (``poutine.reparam``), the sites are those that are sampled after
    that, as in Pyro's MCMC; what they stand for are deterministic sites.

    Where ``obs_mask`` marks data as missing, only the missing entries are coordinates of z.

    Args:
        model: the program.
        args: its positional arguments.
        kwargs: its named arguments.
        dtype: precision of all floats inside. ``None`` takes the model's own and, where that is float32,
            float64 if rounding would otherwise disturb differences of energy; ``dtype_reason`` says so.
        device: where the chains are; ``None`` leaves all where the model has it.
        max_plate_nesting: how many dimensions plates take, where enumeration must leave more to them
            than one run shows.
        seed: of the first values at which the model is tried.

    Attributes:
        model: the program, as it was given.
        args, kwargs: its arguments, on the device where the chains are.
        sites: the latent sites, in the order in which the model samples them.
        observed: observed sites and factors.
        deterministics: the deterministic sites, but for those that depend on a discrete latent.
        discrete: names of discrete latents, which are summed out.
        num_dims: D.
        dtype, device: of z.
        dtype_reason: why it has this precision.

    Raises:
        ConfigError: nothing to sample; discrete latents that cannot be summed out; a plate that
            subsamples; a support without a bijection; sites that come and go.
        DataError: observed values, or arguments, that are NaN or out of support.
    """

    def __init__(
        self,
        model: Model,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        max_plate_nesting: int | None = None,
        seed: int = 0,
    ) -> None:
        if not callable(model):
            raise ConfigError(f"model: expected a Pyro program, got {type(model).__name__}")
        if dtype not in (None, torch.float32, torch.float64):
            raise ConfigError(f"dtype: expected torch.float32, torch.float64 or None, got {dtype}")
        self._device = None if device is None else torch.device(device)
        self.model = model
        self.args, self.kwargs = _moved((tuple(args), dict(kwargs or {})), self._device)
        self._seed = seed
        found = survey(
            model,
            self.args,
            self.kwargs,
            dtype=dtype,
            device=self._device,
            max_plate_nesting=max_plate_nesting,
            seed=seed,
        )
        self._model = enumerated(model, found.max_plate_nesting) if found.discrete else model
        self._params = found.params
        self.sites = found.latents
        self.observed = found.observed
        self.discrete = found.discrete
        self.num_dims = found.latents[-1].slice.stop
        self.dtype = found.dtype
        self.device = self._device or found.device
        self._functions = {site.name for site in found.deterministics}
        self._latents = {site.name: site for site in found.latents}
        self._shapes = [torch.Size(site.unconstrained_shape) for site in found.latents]
        self._programs: dict[str, Program] = {}
        self.dtype_reason = f"dtype={dtype} was given"
        self.deterministics = self._without_discrete(found.deterministics)
        if dtype is None:
            self._choose_dtype()

    def log_parts(self, z: Tensor) -> Tensor:
        """Log prior with the log Jacobian, and log likelihood (the rest), (2,) in nats, at z (D,).

        Where a latent's prior depends on a discrete latent, it is in the second part.
        """
        if z.shape != (self.num_dims,):
            raise ShapeError(f"z: expected the shape ({self.num_dims},), got {tuple(z.shape)}")
        return torch.stack(self._parts(graph.split(z, self._shapes), z.dtype))

    def density(self, path: bool = False) -> Density:
        """Minus the log density and its gradient, in nats, traced at the first call.

        Args:
            path: give two parts, prior with Jacobian and likelihood, instead of their sum.
        """
        parts = self._path if path else self._joint
        name = parts.__name__
        if name not in self._programs:
            self._programs[name] = energy_program(parts, self._shapes, self._examples())
        return self._programs[name].density(self.num_dims, 2 if path else 1)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites, each ``(..., *shape)``, at points z ``(..., D)``."""
        self._check_points(z)
        if any(site.depends for site in self.sites):
            return dict(zip(self._latents, self._at(self._latent_values, z), strict=True))
        pieces = graph.split(z.detach(), self._shapes)
        with torch.no_grad(), self._cured(z.dtype):
            return {
                site.name: with_data(site, bijection(site.support, site.name)(piece))
                for site, piece in zip(self.sites, pieces, strict=True)
            }

    def deterministic(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the deterministic sites, each ``(..., *shape)``, at points z ``(..., D)``."""
        self._check_points(z)
        if not self.deterministics:
            return {}
        names = [site.name for site in self.deterministics]
        return dict(zip(names, self._at(self._deterministic_values, z), strict=True))

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """The point z (D,) of one draw of all latent sites, ``values[name]`` of the site's shape.

        Raises:
            ConfigError: a latent site without a value.
            ShapeError: a value of another shape.
        """
        check_values(self.sites, values)
        return self._unconstrained(Given(values, self.dtype, self.device), self._seed)

    def unconstrain_by(self, strategy: Callable[[Any], Tensor], *, seed: int) -> Tensor:
        """The point z (D,) at the values that ``strategy``, one of Pyro's ``init_to_...``, gives to sites.

        Discrete latents are drawn from their prior.
        """

        def value(site: Any) -> Tensor:
            if is_discrete(site):
                return site["fn"].sample()
            try:
                found = strategy(site)
            except NotImplementedError:  # most strategies sample first, which improper priors cannot
                transform = bijection(site["fn"].support, site["name"])
                shape = unconstrained_shape(transform, site["fn"].shape())
                found = transform(torch.rand(shape) * 4 - 2)
            if not bool(found.isfinite().all()):  # as the mean of a Cauchy
                found = init_to_median(site)
            return found.to(self.device, self.dtype)

        return self._unconstrained(InitMessenger(value), seed)

    def _unconstrained(self, values: Messenger, seed: int) -> Tensor:
        valued = Valued(self._latents, self._params)
        with torch.no_grad(), cured(self.dtype, self._device, seed), valued, values:
            self.model(*self.args, **self.kwargs)
        missing = [name for name in self._latents if name not in valued.pieces]
        if missing:
            raise ConfigError(
                f"model: latent sites {missing} were there in the first run and are not in another"
            )
        return torch.cat([valued.pieces[site.name].reshape(-1) for site in self.sites]).to(self.dtype)

    def site_log_probs(self, z: Tensor) -> dict[str, Tensor]:
        """Total log density of each site with one, in nats, at z (D,): for messages."""
        with torch.no_grad(), self._cured(z.dtype):
            done = self._run(self.model, graph.split(z, self._shapes))
            return {name: _log_prob(site).sum() for name, site in self._with_density(done).items()}

    def _without_discrete(self, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        """Those of the deterministic sites that have one value, whatever the discrete latents are."""
        if not self.discrete or not sites:
            return sites
        nodes = self._nodes_at(self._examples()[0])
        return tuple(
            site for site in sites if nodes[site.name]["value"].numel() == torch.Size(site.shape).numel()
        )

    def _choose_dtype(self) -> None:
        if self.dtype == torch.float64:
            self.dtype_reason = "the model, or its data, are in float64"
            return

        def exact(z: Tensor) -> Tensor:
            return -self.log_parts(z).sum()

        noise = precision.rounding_noise(self.density(), exact, self._examples()[0])
        limit = precision.NOISE_LIMIT
        self.dtype_reason = (
            f"float32 rounds differences of energy by {noise:.1g} nats, with a limit of {limit}"
        )
        if noise > limit:
            self.dtype = torch.float64
            self._programs.clear()

    def _cured(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        return cured(dtype, self._device, self._seed)

    def _run(self, model: Model, pieces: Sequence[Tensor]) -> Run:
        by_name = {site.name: piece for site, piece in zip(self.sites, pieces, strict=True)}
        placed = Placed(self._latents, by_name, self._params)
        return run(model, self.args, self.kwargs, placed, others={*self.discrete, *self._functions})

    def _parts(self, pieces: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        with self._cured(dtype):
            done = self._run(self._model, pieces)
            nodes = self._with_density(done)
            split = self._summed_out if self.discrete else self._by_site
            zero = pieces[0].new_zeros((), dtype=dtype)
            return [zero + part for part in split(done, nodes)]

    def _with_density(self, done: Run) -> dict[str, Any]:
        return {name: site for name, site in done.nodes.items() if name not in self._functions}

    def _by_site(self, done: Run, nodes: Mapping[str, Any]) -> tuple[Tensor | float, Tensor | float]:
        prior: Tensor | float = done.log_jacobian
        likelihood: Tensor | float = 0.0
        for name, site in nodes.items():
            value = _log_prob(site).sum()
            if name in self._latents:
                prior = prior + value
            else:
                likelihood = likelihood + value
        return prior, likelihood

    def _summed_out(self, done: Run, nodes: Mapping[str, Any]) -> tuple[Tensor | float, Tensor | float]:
        """As :meth:`_by_site`; what shares a discrete latent is contracted over it, in the second part."""
        trace = done.trace
        trace.compute_log_prob(lambda name, _: name in nodes)
        trace.pack_tensors()
        summed = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
        prior: Tensor | float = done.log_jacobian
        likelihood: Tensor | float = 0.0
        entangled: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        for name, site in nodes.items():
            packed = site["packed"]["log_prob"]
            if summed.intersection(packed._pyro_dims):
                frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
                ordinal = frozenset(trace.plate_to_symbol[frame.name] for frame in frames)
                entangled.setdefault(ordinal, []).append(packed)
            elif name in self._latents:
                prior = prior + packed.sum()
            else:
                likelihood = likelihood + packed.sum()
        if entangled:
            likelihood = likelihood + contract_to_tensor(entangled, summed)
        return prior, likelihood

    def _joint(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        prior, likelihood = self._parts(pieces, self.dtype)
        return [-(prior + likelihood)]

    def _path(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        return [-part for part in self._parts(pieces, self.dtype)]

    def _latent_values(self, z: Tensor) -> tuple[Tensor, ...]:
        nodes = self._nodes_at(z)
        return tuple(nodes[site.name]["value"].clone() for site in self.sites)

    def _deterministic_values(self, z: Tensor) -> tuple[Tensor, ...]:
        nodes = self._nodes_at(z)
        return tuple(nodes[site.name]["value"].clone() for site in self.deterministics)

    def _nodes_at(self, z: Tensor) -> dict[str, Any]:
        with torch.no_grad(), self._cured(self.dtype):
            return self._run(self._model, graph.split(z, self._shapes)).nodes

    def _program(self, function: Callable[[Tensor], tuple[Tensor, ...]]) -> Program:
        what = function.__name__
        if what not in self._programs:
            self._programs[what] = Program(function, self._examples())
        return self._programs[what]

    def _examples(self) -> Tensor:
        """Points (3, D) at which programs are traced and checked."""
        generator = torch.Generator().manual_seed(self._seed)
        points = torch.rand(3, self.num_dims, generator=generator, dtype=torch.float64) - 0.5
        return points.to(self.device, self.dtype)

    def _at(self, function: Callable[[Tensor], tuple[Tensor, ...]], z: Tensor) -> list[Tensor]:
        """What ``function`` gives at each point of z (..., D)."""
        flat = z.detach().reshape(-1, self.num_dims).to(self.device, self.dtype)
        with torch.no_grad():
            found = self._program(function).batched(flat)
        return [value.reshape((*z.shape[:-1], *value.shape[1:])) for value in found]

    def _check_points(self, z: Tensor) -> None:
        if z.shape[-1:] != (self.num_dims,):
            raise ShapeError(f"z: expected the shape (..., {self.num_dims}), got {tuple(z.shape)}")


def potential_from_function(
    potential_fn: Callable[[dict[str, Tensor]], Tensor], initial_params: Mapping[str, Tensor]
) -> FunctionPotential:
    """A density given as Pyro's ``potential_fn``; see :class:`FunctionPotential`."""
    return FunctionPotential(potential_fn, initial_params)


class FunctionPotential:
    """Minus a log density given as a function of a dictionary of unconstrained tensors.

    All of it counts as likelihood; the sites are the names of the dictionary, and are unconstrained.

    Args:
        potential_fn: from values by name to a scalar, in nats.
        initial_params: one value of each, for shapes, precision and device.

    Raises:
        ConfigError: no values, or values that are no float tensors.
    """

    def __init__(
        self, potential_fn: Callable[[dict[str, Tensor]], Tensor], initial_params: Mapping[str, Tensor]
    ) -> None:
        if not callable(potential_fn):
            raise ConfigError(f"potential_fn: expected a function, got {type(potential_fn).__name__}")
        if not initial_params:
            raise ConfigError("initial_params: expected a tensor for each name, got none")
        for name, value in initial_params.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise ConfigError(f"initial_params: '{name}' must be a tensor of floats")
        self._function = potential_fn
        start, sites = 0, []
        for name, value in initial_params.items():
            place = slice(start, start + value.numel())
            shape = tuple(value.shape)
            sites.append(LatentSite(name, shape, 0, (), place, shape, constraints.real))
            start = place.stop
        first = next(iter(initial_params.values()))
        self.sites: tuple[LatentSite, ...] = tuple(sites)
        self.observed: tuple[ObservedSite, ...] = ()
        self.deterministics: tuple[Site, ...] = ()
        self.discrete: tuple[str, ...] = ()
        self.num_dims, self.dtype, self.device = start, first.dtype, first.device
        self.dtype_reason = "the precision of initial_params"
        self._shapes = [torch.Size(site.shape) for site in sites]
        self._programs: dict[str, Program] = {}
        point = torch.cat([value.detach().reshape(-1) for value in initial_params.values()])
        self._points = torch.stack([point, point * 0.9 + 0.1])

    def log_parts(self, z: Tensor) -> Tensor:
        """Zero, and minus the function's value, (2,) in nats, at z (D,)."""
        value = self._energy(graph.split(z, self._shapes), z.dtype)
        return torch.stack([torch.zeros_like(value), -value])

    def density(self, path: bool = False) -> Density:
        """As :meth:`Potential.density`."""
        parts = self._path if path else self._joint
        name = parts.__name__
        if name not in self._programs:
            self._programs[name] = energy_program(parts, self._shapes, self._points)
        return self._programs[name].density(self.num_dims, 2 if path else 1)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Values by name, each ``(..., *shape)``, at points z ``(..., D)``."""
        names = [site.name for site in self.sites]
        return dict(zip(names, graph.split(z, self._shapes), strict=True))

    def deterministic(self, z: Tensor) -> dict[str, Tensor]:
        """Nothing: there are no such sites."""
        return {}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """The point z (D,) of values by name."""
        check_values(self.sites, values)
        return torch.cat([values[site.name].detach().reshape(-1) for site in self.sites]).to(self.dtype)

    def site_log_probs(self, z: Tensor) -> dict[str, Tensor]:
        """The function's value, under its name."""
        with torch.no_grad():
            return {"potential_fn": self.log_parts(z)[1]}

    def _energy(self, pieces: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        values = {site.name: piece for site, piece in zip(self.sites, pieces, strict=True)}
        with cured(dtype, None, 0):
            return self._function(values).reshape(())

    def _joint(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        return [self._energy(pieces, self.dtype)]

    def _path(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        value = self._energy(pieces, self.dtype)
        return [torch.zeros_like(value), value]


def check_values(sites: Sequence[LatentSite], values: Mapping[str, Tensor]) -> None:
    """Raise where ``values`` lacks a site, or has one of another shape."""
    for site in sites:
        if site.name not in values:
            raise ConfigError(f"values: latent site '{site.name}' has none; it needs the shape {site.shape}")
        if tuple(values[site.name].shape) != site.shape:
            got = tuple(values[site.name].shape)
            raise ShapeError(f"values: site '{site.name}' needs the shape {site.shape}, got {got}")


def _log_prob(site: Any) -> Tensor:
    """Log density of a site, scaled and masked, of its batch shape, in nats."""
    value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(value, site["scale"], site["mask"])


def _moved(tree: Any, device: torch.device | None) -> Any:
    """Every tensor of a nest of arguments on ``device``; the others, and the nest given, stay."""
    if device is None:
        return tree
    return pytree.tree_map_only(Tensor, lambda value: value.to(device), tree)
