r"""Where chains start.

Many chains that start far apart, and agree in the end, are the best evidence that they have found what
there is to find; so the default is overdispersed. Fitted starts (Pathfinder, ADVI) save warm-up, and
tell less.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor

from ppgen.errors import ConfigError, SamplingError, ShapeError
from ppgen.inference.mcmc.approximations import advi, pathfinder
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.potential import Target

#: Half the width of the overdispersed starts, in unconstrained space (Stan's).
RADIUS = 2.0

Strategy = str | Callable[..., Any] | Mapping[str, Tensor]


def starting_points(
    potential: Target,
    num_chains: int,
    strategy: Strategy = "overdispersed",
    *,
    seed: int,
    max_tries: int = 100,
) -> Tensor:
    r"""A point for each chain, where the energy and its gradient are finite.

    Args:
        potential: the density.
        num_chains: C.
        strategy: one of

            - ``"overdispersed"``: uniform on (-2, 2) in each unconstrained coordinate;
            - ``"pathfinder"``, ``"advi"``: draws of a fitted approximation
              (:mod:`ppgen.inference.mcmc.approximations`);
            - one of ``pyro.infer.autoguide.initialization.init_to_...``, called anew for each chain
              (``init_to_uniform`` draws coordinates uniformly, as the first, within its radius);
            - values by name of the site, **unconstrained**, as Pyro's ``initial_params``: each of the site's
              unconstrained shape, or with the chains as a further first dimension.
        seed: of the draws.
        max_tries: how often a chain is drawn again where its point will not do.

    Returns:
        Points z of shape (C, D).

    Raises:
        ConfigError: an unknown strategy, or a site without a value.
        ShapeError: a value of another shape.
        SamplingError: no finite point was found; the message names the site that is to blame.
    """
    if num_chains < 1:
        raise ConfigError(f"num_chains: expected 1 or more, got {num_chains}")
    if isinstance(strategy, Mapping):
        points = _given(potential, num_chains, strategy)
        good = _is_good(potential.density(), points)
        if not bool(good.all()):
            _raise(potential, points[~good], "the initial_params")
        return points
    draw = _drawing(potential, strategy, seed)
    points = draw(num_chains, 0)
    good = _is_good(potential.density(), points)
    for attempt in range(1, max_tries):
        if bool(good.all()):
            return points
        points = torch.where(good[:, None], points, draw(num_chains, attempt))
        good = _is_good(potential.density(), points)
    if not bool(good.all()):
        _raise(potential, points[~good], f"the starting points after {max_tries} tries")
    return points


def _drawing(potential: Target, strategy: Strategy, seed: int) -> Callable[[int, int], Tensor]:
    """A function from the number of chains and of the attempt to points (C, D)."""
    generator = torch.Generator().manual_seed(seed)

    def overdispersed(num: int, attempt: int, radius: float = RADIUS) -> Tensor:
        uniform = torch.rand(num, potential.num_dims, generator=generator, dtype=torch.float64)
        return ((uniform * 2 - 1) * radius).to(potential.device, potential.dtype)

    fits = {"pathfinder": pathfinder, "advi": advi}
    if isinstance(strategy, str) and strategy == "overdispersed":
        return overdispersed
    if (radius := _uniform_radius(strategy)) is not None:
        return functools.partial(overdispersed, radius=radius)
    if isinstance(strategy, str) and strategy in fits:
        fit = fits[strategy]

        def fitted(num: int, attempt: int) -> Tensor:
            if attempt > 0:  # what the approximation cannot give, a plain draw may
                return overdispersed(num, attempt)
            first = starting_points(potential, num, seed=seed)
            return fit(potential.density(), first, generator)

        return fitted
    if isinstance(strategy, str) or not callable(strategy):
        raise ConfigError(
            f"init_strategy: expected 'overdispersed', 'pathfinder', 'advi', one of Pyro's init_to_... or a "
            f"dictionary of unconstrained values, got {strategy!r}"
        )
    by_site = getattr(potential, "unconstrain_by", None)
    if by_site is None:
        raise ConfigError(
            "init_strategy: a potential_fn has no sites to start; give initial_params, or a name"
        )

    def from_pyro(num: int, attempt: int) -> Tensor:
        first = seed + 1 + attempt * num
        return torch.stack([by_site(strategy, seed=(first + chain) % 2**63) for chain in range(num)])

    return from_pyro


def _uniform_radius(strategy: Strategy) -> float | None:
    """The radius of Pyro's ``init_to_uniform``, which needs no run of the model; ``None`` for others."""
    if strategy is init_to_uniform:
        return RADIUS
    if isinstance(strategy, functools.partial) and strategy.func is init_to_uniform and not strategy.args:
        return float(strategy.keywords.get("radius", RADIUS))
    return None


def _given(potential: Target, num_chains: int, values: Mapping[str, Tensor]) -> Tensor:
    unknown = set(values) - {site.name for site in potential.sites}
    if unknown:
        names = [site.name for site in potential.sites]
        raise ConfigError(f"initial_params: {sorted(unknown)} are no latent sites; there are {names}")
    columns = []
    for site in potential.sites:
        if site.name not in values:
            raise ConfigError(
                f"initial_params: latent site '{site.name}' has no value; give one of the unconstrained "
                f"shape {site.unconstrained_shape}, with the chains first"
            )
        value, shape = torch.as_tensor(values[site.name]).detach(), site.unconstrained_shape
        if tuple(value.shape) == shape:
            value = value.expand(num_chains, *shape)
        if tuple(value.shape) != (num_chains, *shape):
            raise ShapeError(
                f"initial_params: site '{site.name}' needs the unconstrained shape {shape}, or with the "
                f"chains first {(num_chains, *shape)}; got {tuple(value.shape)}"
            )
        columns.append(value.reshape(num_chains, -1))
    return torch.cat(columns, 1).to(potential.device, potential.dtype)


def _is_good(density: Density, points: Tensor) -> Tensor:
    """Whether the energy and its gradient are finite, (C,)."""
    parts, gradients = density.evaluate(points)
    return parts.isfinite().all(1) & gradients.isfinite().flatten(1).all(1)


def _raise(potential: Target, points: Tensor, what: str) -> None:
    found = potential.site_log_probs(points[0])
    bad = {name: float(value) for name, value in found.items() if not bool(value.isfinite())}
    if bad:
        named = ", ".join(f"'{name}' has the log density {value}" for name, value in bad.items())
        cause = f"there site {named}"
    else:
        energy = float(potential.density().single(points[0])[0].sum())
        cause = f"every site's log density is finite there (energy {energy:.6g}), but the gradient is not"
    raise SamplingError(
        f"{what} of {len(points)} chains have no finite energy and gradient: {cause}. Check the data and the "
        "priors there, or start at init_to_value(values=...)"
    )
