"""Posteriors for ArviZ: the only place that imports it.

One path builds all groups; the last step makes of them an ``InferenceData`` (ArviZ below 1.0) or an xarray
``DataTree`` (from 1.0 on).
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppgen.errors import CapabilityError, ConfigError, SamplingWarning, ShapeError
from ppgen.inference.mcmc import predictive
from ppgen.inference.mcmc.result import Posterior

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[Any]
Names = Sequence[str | None]

# ArviZ's names of statistics, where they differ from ours.
_STATISTICS = {
    "accept_prob": "acceptance_rate",
    "num_steps": "n_steps",
    "reached_max_depth": "reached_max_treedepth",
}
_DRAWS = ("chain", "draw")
# Attributes with more numbers are left out: a dense mass matrix of many latents.
_MAX_NUMBERS = 10_000
_DEFAULT_DRAWS = 1000


def to_arviz(
    posterior: Posterior,
    *,
    prior: bool | int = False,
    posterior_predictive: bool | int = False,
    log_likelihood: bool = True,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
) -> Any:
    """Everything known of a run, as ArviZ wants it.

    The groups are ``posterior`` (latent and deterministic sites), ``sample_stats``, ``log_likelihood``,
    ``observed_data`` and ``constant_data`` (arguments of the model that are not observed); on request
    ``posterior_predictive``, ``prior`` and ``prior_predictive``. Dimensions bear the names of their plates,
    others are ``name_dim_0``, ``name_dim_1``, ... Attributes tell how the run went: seed, sampler, versions,
    seconds, step size, mass.

    Args:
        posterior: the draws.
        prior: how many draws from the prior, True for 1000.
        posterior_predictive: True for one draw of the data for each draw of the posterior; a number for so
            many, of draws taken at random.
        log_likelihood: include the log-likelihood of each observation, which ``arviz.loo`` needs.
        coords: labels of a dimension's places, by name.
        dims: names of a site's dimensions, instead of those of its plates.
        seed: of predictive and prior draws; by default the run's own, where it has one.

    Returns:
        ``arviz.InferenceData``, or ``xarray.DataTree`` with ArviZ 1.0 or newer.

    Raises:
        ConfigError: ArviZ cannot be imported; ``dims`` names a site that is not there.
        ShapeError: ``dims`` or ``coords`` do not fit the sites.
    """
    if seed is None:
        seed = posterior.attributes.get("seed")
    groups = _Groups(_plate_names(posterior), dict(dims or {}), dict(coords or {}))
    groups.add("posterior", posterior.samples, _DRAWS)
    if posterior.potential is not None:
        groups.add("posterior", predictive.deterministic(posterior), _DRAWS)
    groups.add("sample_stats", _statistics(posterior), _DRAWS)
    if posterior.potential is not None:
        if log_likelihood:
            groups.add("log_likelihood", _log_likelihood(posterior), _DRAWS)
        _add_predictive(groups, posterior, posterior_predictive, seed)
        _add_prior(groups, posterior, prior, seed)
        observed = {site.name: site.value for site in posterior.potential.observed if site.value is not None}
        groups.add("observed_data", observed)
        groups.add("constant_data", _constant_data(posterior, observed))
    return groups.build(_attributes(posterior.attributes))


def graphs_to_arviz(draws: Tensor, names: Sequence[str], attributes: Mapping[str, Any]) -> Any:
    """Drawn graphs, as ArviZ wants them: a posterior variable ``edges``, 0 or 1.

    Args:
        draws: bool, shape (C, S, n, n), ``[c, s, i, j]`` the edge i -> j.
        names: of the nodes.
        attributes: of the run.

    Returns:
        ``arviz.InferenceData``, or ``xarray.DataTree`` with ArviZ 1.0 or newer; the dimensions are chain,
        draw, from and to.
    """
    ends = {"from": list(names), "to": list(names)}
    groups = _Groups({}, {"edges": list(ends)}, dict(ends))
    groups.add("posterior", {"edges": draws.to(torch.int8)}, _DRAWS)
    return groups.build(_attributes(attributes))


def loo(posterior: Posterior, site: str | None = None, *, pointwise: bool = False) -> Any:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling (``arviz.loo``).

    Args:
        posterior: the draws.
        site: the observed site; it may be left out where there is one only.
        pointwise: also give the figures of each observation.

    Returns:
        What ``arviz.loo`` returns: the expected log predictive density in nats, its standard error, and
        how far the Pareto k values are to be trusted.

    Raises:
        ConfigError: several observed sites and none chosen, or one that is not there.
        CapabilityError: see :func:`ppgen.inference.mcmc.predictive.log_likelihood`.

    Reference: Vehtari, Gelman and Gabry 2017.
    """
    arviz = import_arviz()
    data, name = _for_loo(posterior, site)
    with _quiet():
        return arviz.loo(data, var_name=name, pointwise=pointwise)


def compare(
    posteriors: Mapping[str, Posterior], ic: str = "loo", site: str | None = None, **options: Any
) -> pd.DataFrame:
    """Rank models of the same data by what they predict of observations left out (``arviz.compare``).

    Args:
        posteriors: the models by name.
        ic: "loo", or with ArviZ below 1.0 also "waic".
        site: the observed site; it may be left out where there is one only.
        options: of ``arviz.compare``, such as ``method``.

    Returns:
        ArviZ's table, the best model first, with differences and weights.

    Raises:
        ConfigError: fewer than two models, or as for :func:`loo`.
    """
    if len(posteriors) < 2:
        raise ConfigError(f"posteriors: expected two models or more, got {len(posteriors)}")
    arviz = import_arviz()
    if not _is_new(arviz):
        options["ic"] = ic
    elif ic != "loo":
        raise ConfigError(f"ic: ArviZ {arviz.__version__} compares by 'loo' only, got {ic!r}")
    prepared = {name: _for_loo(posterior, site)[0] for name, posterior in posteriors.items()}
    with _quiet():
        return arviz.compare(prepared, **options)


def import_arviz() -> Any:
    """The module ``arviz``, without its daily announcement.

    Raises:
        ConfigError: it wants to write to a folder where it may not.
    """
    try:
        with _quiet():
            import arviz
    except OSError as error:
        raise ConfigError(
            f"arviz: it writes to its cache folder when imported, and cannot ({error}); set the environment "
            "variable XDG_CACHE_HOME to a folder that can be written, or HOME where that is the reason"
        ) from error
    return arviz


def _quiet() -> Any:
    """ArviZ announces its own future once a day, as a FutureWarning."""
    return warnings.catch_warnings(action="ignore", category=FutureWarning)


def _is_new(arviz: Any) -> bool:
    return int(arviz.__version__.partition(".")[0]) >= 1


@dataclass
class _Groups:
    """Groups of named arrays with named dimensions.

    Attributes:
        plates: by site, the plate's name of each dimension, or None.
        dims: by site, names from the user.
        coords: labels by dimension.
    """

    plates: Mapping[str, Names]
    dims: dict[str, Sequence[str]]
    coords: dict[str, Sequence[Any]]
    values: dict[str, dict[str, Array]] = field(default_factory=dict)
    names: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, group: str, values: Mapping[str, Tensor], leading: Sequence[str] = ()) -> None:
        """Add arrays, whose first dimensions are ``leading``, to a group."""
        for name, value in values.items():
            array = value.detach().cpu().numpy()
            rest = self._names(name, array.shape[len(leading) :], group)
            self.values.setdefault(group, {})[name] = array
            self.names.setdefault(group, {})[name] = [*leading, *rest]

    def build(self, attributes: dict[str, Any]) -> Any:
        """Make of all groups what the installed ArviZ works with."""
        arviz = import_arviz()
        unknown = set(self.dims) - {name for group in self.values.values() for name in group}
        if unknown:
            raise ConfigError(f"dims: there is no site {sorted(unknown)[0]!r}")
        none: dict[str, list[str]] = {"sample_dims" if _is_new(arviz) else "default_dims": []}
        with _quiet():
            datasets = {
                group: arviz.dict_to_dataset(
                    values, dims=self.names[group], coords=self._coords(group), attrs=attributes, **none
                )
                for group, values in self.values.items()
            }
            if not _is_new(arviz):
                return arviz.InferenceData(**datasets, attrs=attributes)
            tree = type(arviz.from_dict({})).from_dict(datasets)
            tree.attrs.update(attributes)
            return tree

    def _names(self, name: str, shape: tuple[int, ...], group: str) -> list[str]:
        if name in self.dims:
            given = list(self.dims[name])
            # Of a vector-valued observation there is one log-likelihood: the event's names fall away.
            given = given[: len(shape)] if group == "log_likelihood" else given
            if len(given) != len(shape):
                raise ShapeError(f"dims: site {name!r} has {len(shape)} dimensions {shape}, got {given}")
            return given
        # An argument of the model may bear the name of a site.
        plates = () if group == "constant_data" else self.plates.get(name, ())
        found, unnamed = [], 0
        for axis in range(len(shape)):
            plate = plates[axis] if axis < len(plates) else None
            if plate is None:
                found.append(f"{name}_dim_{unnamed}")
                unnamed += 1
            else:
                # xarray has one name space for variables and dimensions.
                found.append(f"{plate}_dim" if plate in (*_DRAWS, name) else plate)
        return found

    def _coords(self, group: str) -> dict[str, Any]:
        sizes: dict[str, int] = {}
        for name, dims in self.names[group].items():
            for dim, size in zip(dims, self.values[group][name].shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    raise ShapeError(
                        f"dims: dimension {dim!r} has the length {size} in site {name!r} and {sizes[dim]} in "
                        "another; give them other names"
                    )
        for dim, labels in self.coords.items():
            if dim in sizes and len(labels) != sizes[dim]:
                raise ShapeError(f"coords: {dim!r} has {sizes[dim]} places, got {len(labels)} labels")
        return {dim: self.coords.get(dim, np.arange(size)) for dim, size in sizes.items()}


def _plate_names(posterior: Posterior) -> Mapping[str, Names]:
    if posterior.potential is None:
        return {}
    return predictive.plate_names(posterior)


def _statistics(posterior: Posterior) -> dict[str, Tensor]:
    found = {_STATISTICS.get(name, name): value for name, value in posterior.statistics.items()}
    step_size = posterior.attributes.get("step_size")
    if "step_size" not in found and step_size is not None:
        shape = (posterior.num_chains, posterior.num_draws)
        found["step_size"] = torch.as_tensor(step_size).detach().cpu().reshape(-1, 1).expand(shape)
    return found


def _log_likelihood(posterior: Posterior) -> dict[str, Tensor]:
    try:
        return predictive.log_likelihood(posterior)
    except CapabilityError as error:
        warnings.warn(f"to_arviz: left out the group log_likelihood: {error}", SamplingWarning, stacklevel=3)
        return {}


def _add_predictive(groups: _Groups, posterior: Posterior, wanted: bool | int, seed: int | None) -> None:
    if wanted is False:
        return
    num = None if wanted is True else wanted
    drawn = predictive.posterior_predictive(
        posterior, seed=seed, num_samples=num, sites=_observed_names(posterior)
    )
    groups.add("posterior_predictive", drawn if num is None else _as_one_chain(drawn), _DRAWS)


def _add_prior(groups: _Groups, posterior: Posterior, wanted: bool | int, seed: int | None) -> None:
    if wanted is False:
        return
    num = _DEFAULT_DRAWS if wanted is True else wanted
    drawn = _as_one_chain(predictive.prior_predictive(posterior, num_samples=num, seed=seed))
    observed = set(_observed_names(posterior))
    groups.add("prior", {k: v for k, v in drawn.items() if k not in observed}, _DRAWS)
    groups.add("prior_predictive", {k: v for k, v in drawn.items() if k in observed}, _DRAWS)


def _as_one_chain(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[None] for name, value in values.items()}


def _observed_names(posterior: Posterior) -> list[str]:
    sites = [] if posterior.potential is None else posterior.potential.observed
    return [site.name for site in sites if site.value is not None]


def _constant_data(posterior: Posterior, observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arguments of the model that are numbers and were not observed."""
    source = posterior.potential
    if source is None:
        return {}
    found = {}
    for name, value in _arguments(source.model, source.args, source.kwargs).items():
        if isinstance(value, bool | int | float | np.ndarray | Tensor):
            tensor = torch.as_tensor(value)
            if not any(_same(tensor, data) for data in observed.values()):
                found[name] = tensor
    return found


def _arguments(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their names in the model's signature."""
    function = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {f"arg_{i}": value for i, value in enumerate(args)} | dict(kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{i}": each for i, each in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def _same(argument: Tensor, observed: Tensor) -> bool:
    """Whether an argument was observed; where it is NaN, it was hidden and something else stands there."""
    if argument.shape != observed.shape:
        return False
    first, second = argument.detach().double().cpu(), observed.detach().double().cpu()
    return bool((first.isclose(second) | first.isnan()).all())


def _for_loo(posterior: Posterior, site: str | None) -> tuple[Any, str]:
    """The log-likelihoods of one site for ArviZ, without entries that were hidden."""
    found = predictive.log_likelihood(posterior)
    if site is None and len(found) == 1:
        site = next(iter(found))
    if site is None or site not in found:
        raise ConfigError(f"site: expected one of the observed sites {sorted(found)}, got {site!r}")
    flat = found[site].flatten(2) if found[site].ndim > 2 else found[site][..., None]
    shown = (flat != 0).any(0).any(0)
    groups = _Groups({}, {}, {})
    groups.add("posterior", posterior.samples, _DRAWS)
    groups.add("log_likelihood", {site: flat[..., shown]}, _DRAWS)
    return groups.build({}), site


def _attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as strings, numbers and lists of numbers, which every file format can hold."""
    found: dict[str, Any] = {"inference_library": "ppgen"}
    for name, value in attributes.items():
        plain = _plain(value)
        if plain is None:
            continue
        if isinstance(plain, bool):
            plain = int(plain)
        nested = isinstance(plain, dict) or (
            isinstance(plain, list) and not all(isinstance(v, int | float) for v in plain)
        )
        found[name] = json.dumps(plain) if nested else plain
    return found


def _plain(value: Any) -> Any:
    """A value of JSON; None for numbers too many to be told."""
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return array.tolist() if array.size <= _MAX_NUMBERS else None
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return str(value)
