r"""What draws from a posterior say of data: log-likelihoods and predictions.

Each function runs the Pyro model once for every draw, all draws in one batch (``torch.vmap``), or one after
the other where the model cannot be batched. Pyro's own ``Predictive(parallel=True)`` puts a plate around
the model instead, which is wrong for models that index or multiply from the left.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen.errors import CapabilityError, ConfigError, SamplingWarning, ShapeError
from ppgen.inference.mcmc.cures import Cures, validation
from ppgen.inference.mcmc.sites import Site, enumerated, is_deterministic, is_sampled, plates_of
from ppgen.ops.random import forked_rng

if TYPE_CHECKING:
    from ppgen.inference.mcmc.result import Posterior, Source

# Numbers that one batch of runs may produce: 64 MiB in float32.
_BATCH = 2**24

Values = dict[str, Tensor]


def log_likelihood(posterior: Posterior) -> dict[str, Tensor]:
    r"""Log-likelihood of each observation at each draw, :math:`\log p(y_n \mid \theta_s)` in nats.

    Discrete latents are summed out where each belongs to one observation, as in a mixture. Entries that
    ``obs_mask`` hides have log-likelihood 0. Scales (``poutine.scale``, subsampled plates) are left out:
    they weigh data, and these are the data themselves. Factors have no log-likelihood.

    Returns:
        For each observed site ``(C, S, *batch shape)``.

    Raises:
        CapabilityError: the draws have no model; or a discrete latent is shared by observations (a hidden
            Markov model, a group's class), so that they have no log-likelihoods one by one.
    """
    source = _source(posterior, "log_likelihood")

    program = enumerated(source.model, _plate_nesting(posterior, source))

    def run(given: Values) -> Values:
        trace = _trace(program, source.args, source.kwargs, given)
        return _pointwise({name: site for name, site in trace.nodes.items() if is_sampled(site)}, given)

    return _by_chain(_map(run, _flat(posterior), source), posterior)


def deterministic(posterior: Posterior) -> dict[str, Tensor]:
    """Values ``(C, S, *shape)`` of the model's ``pyro.deterministic`` sites at each draw.

    Those that depend on a discrete latent that was summed out are left out.

    Raises:
        CapabilityError: the draws have no model.
    """
    source = _source(posterior, "deterministic")
    names = [site.name for site in source.deterministics]

    def run(given: Values) -> Values:
        nodes = _trace(source.model, source.args, source.kwargs, given).nodes
        return {name: nodes[name]["value"] for name in names}

    return _by_chain(_map(run, _flat(posterior), source), posterior)


def posterior_predictive(
    posterior: Posterior,
    *args: Any,
    seed: int | None = None,
    sites: Sequence[str] | None = None,
    num_samples: int | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    r"""Draws of new data, :math:`\tilde y \sim p(y \mid \theta_s)`, one for each draw of the posterior.

    Args:
        posterior: draws of the latents.
        args: arguments of the model, such as new covariates; observations among them are ignored, and may
            be ``None`` where the model allows. Without ``args`` and ``kwargs``, those of the run.
        seed: of the draws; without it, one is drawn from torch's global generator.
        sites: what to return; by default all sites that are not latents of the posterior, deterministic ones
            among them.
        num_samples: take so many draws of the posterior, with replacement.
        kwargs: arguments of the model.

    Returns:
        ``(C, S, *shape)`` of each site; with ``num_samples`` N, ``(N, *shape)``.

    Raises:
        CapabilityError: the draws have no model.
        ShapeError: a latent has another shape under the new arguments.
        ConfigError: ``sites`` names a site that is not there, or ``num_samples`` is not positive.
    """
    source = _source(posterior, "posterior_predictive")
    if not args and not kwargs:
        args, kwargs = tuple(source.args), dict(source.kwargs)
    seed = _seed(seed)
    given = _flat(posterior)
    if num_samples is not None:
        _check_num(num_samples)
        total = posterior.num_chains * posterior.num_draws
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(total, (num_samples,), generator=generator)
        given = {name: value[chosen.to(value.device)] for name, value in given.items()}

    def run(latents: Values) -> Values:
        trace = _trace(source.model, args, kwargs, latents, forget=True)
        return _chosen(trace, sites, leave_out=latents)

    drawn = _map(run, given, source, seed=(seed + 1) % 2**62)
    return drawn if num_samples is not None else _by_chain(drawn, posterior)


def prior_predictive(
    source: Posterior | Source,
    *args: Any,
    num_samples: int = 1000,
    seed: int | None = None,
    sites: Sequence[str] | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Draws of latents and data from the model alone, its observations left aside.

    Args:
        source: a posterior, or the model with its arguments.
        args: arguments of the model; without ``args`` and ``kwargs``, those of the run.
        num_samples: N.
        seed: of the draws; without it, one is drawn from torch's global generator.
        sites: what to return; all by default.
        kwargs: arguments of the model.

    Returns:
        ``(N, *shape)`` of each site.

    Raises:
        CapabilityError: the draws have no model, or a prior is improper and cannot be drawn from.
        ConfigError: ``sites`` names a site that is not there, or ``num_samples`` is not positive.
    """
    model = _source(source, "prior_predictive") if hasattr(source, "samples") else source
    _check_num(num_samples)
    if not args and not kwargs:
        args, kwargs = tuple(model.args), dict(model.kwargs)

    def run(_: Values) -> Values:
        return _chosen(_trace(model.model, args, kwargs, {}, forget=True), sites, leave_out={})

    return _map(run, {"": torch.zeros(num_samples)}, model, seed=_seed(seed))


def plate_names(posterior: Posterior) -> dict[str, tuple[str | None, ...]]:
    """For each site of the model, the plate's name of each dimension of its values, or None.

    Raises:
        CapabilityError: the draws have no model.
    """
    source = _source(posterior, "plate_names")
    found = {}
    for name, site in _first_run(posterior, source).items():
        if is_sampled(site) and isinstance(site["value"], Tensor):
            # Pyro takes all dimensions of a deterministic value for one event; plates are seen by their size.
            event_dim = 0 if is_deterministic(site) else site["fn"].event_dim
            found[name] = Site(name, tuple(site["value"].shape), event_dim, plates_of(site)).dims
    return found


class _Given(Messenger):
    """Gives latents their values; a site that cannot be drawn from is named.

    Args:
        values: of the latents.
        forget: whether observed sites are drawn anew. ``poutine.uncondition`` would also draw deterministic
            sites, and in a plate get them once for each of its places.
    """

    def __init__(self, values: Mapping[str, Tensor], *, forget: bool) -> None:
        super().__init__()
        self._values, self._forget = values, forget

    def _pyro_param(self, msg: Any) -> None:
        # Pyro's parameter store must not get to know what it did not.
        given = msg["args"][1] if len(msg["args"]) > 1 else None
        if msg["name"] not in pyro.get_param_store() and given is not None:
            msg["value"] = given if isinstance(given, Tensor) else given()

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if self._forget and msg["is_observed"] and not is_deterministic(msg):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
        value = self._values.get(name)
        if value is not None and not msg["is_observed"]:
            expected = fn.shape()
            if tuple(value.shape) != tuple(expected):
                raise ShapeError(
                    f"site '{name}': its draws have shape {tuple(value.shape)}, and with these arguments the "
                    f"model wants {tuple(expected)}; predict for data with as many {_plates(msg)} as before"
                )
            msg["value"] = value
        elif not msg["is_observed"] and isinstance(_base(fn), dist.ImproperUniform):
            raise CapabilityError(f"site '{name}': its prior is improper, and cannot be drawn from")


def _trace(
    model: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], given: Values, *, forget: bool = False
) -> Any:
    with _Given(given, forget=forget):
        return poutine.trace(model).get_trace(*args, **kwargs)


class _Batchable(TorchFunctionMode):
    """Replaces what ``vmap`` refuses.

    Distributions fill tensors with random numbers, which ``vmap`` refuses for a tensor that all runs share;
    a newly drawn tensor is the same to them, as they use what the function returns. A model that fills a
    tensor of its own is left to the refusal. Enumeration looks at the shape of ``value.data``.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or draw."""
        if func == _DATA:
            return args[0].detach()
        name = getattr(func, "__name__", "")
        if name in _FILLS and func is getattr(Tensor, name):
            module = sys._getframe(1).f_globals.get("__name__", "")
            if module.startswith(("torch.distributions", "pyro.distributions")):
                like = args[0]
                kind = torch.randn if name == "normal_" else torch.rand
                noise = kind(like.shape, dtype=like.dtype, device=like.device)
                return _FILLS[name](noise, *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
# From standard normal or uniform numbers to what each function fills in.
_FILLS: dict[str, Callable[..., Tensor]] = {
    "normal_": lambda noise, mean=0.0, std=1.0: mean + std * noise,
    "uniform_": lambda noise, low=0.0, high=1.0: low + (high - low) * noise,
    "exponential_": lambda noise, rate=1.0: -torch.log1p(-noise) / rate,
    "cauchy_": lambda noise, median=0.0, scale=1.0: median + scale * torch.tan(math.pi * (noise - 0.5)),
}


def _chosen(trace: Any, sites: Sequence[str] | None, leave_out: Mapping[str, Any]) -> Values:
    """Values of the wanted sites of a trace."""
    there = {
        name: site["value"]
        for name, site in trace.nodes.items()
        if is_sampled(site) and not isinstance(_base(site["fn"]), dist.Unit)
    }
    if sites is None:
        return {name: value for name, value in there.items() if name not in leave_out}
    missing = [name for name in sites if name not in there]
    if missing:
        raise ConfigError(f"sites: the model has no site {missing[0]!r}; it has {', '.join(sorted(there))}")
    return {name: there[name] for name in sites}


def _pointwise(nodes: Mapping[str, Any], given: Values) -> Values:
    """Log-likelihoods of the observed sites of an enumerated run, discrete latents summed out."""
    density = {
        name: _log_prob(site)
        for name, site in nodes.items()
        if not is_deterministic(site)
        and (site["is_observed"] or "_enumerate_dim" in site["infer"])
        or name in given
    }
    axes = {
        site["infer"]["_enumerate_dim"]: name
        for name, site in nodes.items()
        if "_enumerate_dim" in site["infer"]
    }
    discrete = set(axes.values())
    found = {}
    for name, site in nodes.items():
        if (
            name not in density
            or name in given
            or name in discrete
            or isinstance(_base(site["fn"]), dist.Unit)
        ):
            continue
        parents = _ancestors(density, axes, name)
        sharing = [
            other
            for other in density
            if other not in parents and other != name and _axes_of(density[other], axes) & parents
        ]
        plates = _frames(site)
        wider = [parent for parent in parents if _frames(nodes[parent]) != plates]
        if sharing or wider:
            culprit = wider[0] if wider else sorted(_axes_of(density[sharing[0]], axes) & parents)[0]
            raise CapabilityError(
                f"log_likelihood: the discrete latent '{culprit}' is shared by several observations of site "
                f"'{name}' or of others, which therefore have no log-likelihoods one by one; put it in the "
                "plates of the observations, or compare models by their evidence"
            )
        total = density[name]
        for parent in sorted(parents):
            total = total + density[parent]
        batch = (
            len(site["fn"].batch_shape)
            if not parents
            else max((-f.dim for f in _vectorised(site)), default=0)
        )
        while total.ndim > batch:
            total = total.logsumexp(0)
        found[name] = total
    return found


def _ancestors(density: Mapping[str, Tensor], axes: Mapping[int, str], name: str) -> set[str]:
    """Discrete latents that a site's density depends on, by others too."""
    found: set[str] = set()
    new = _axes_of(density[name], axes)
    while new - found:
        found |= new
        new = set().union(*(_axes_of(density[parent], axes) for parent in found))
    return found


def _axes_of(value: Tensor, axes: Mapping[int, str]) -> set[str]:
    """Discrete latents along whose dimension a log density changes."""
    return {name for dim, name in axes.items() if value.ndim >= -dim and value.shape[dim] > 1}


def _log_prob(site: Any) -> Tensor:
    """Log density of a site's entries under its mask, without scales."""
    value: Tensor = site["fn"].log_prob(site["value"])
    mask = site["mask"]
    if mask is None or mask is True:
        return value
    return torch.where(torch.as_tensor(mask, device=value.device), value, 0.0)


def _vectorised(site: Any) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _frames(site: Any) -> set[tuple[str, Any]]:
    """The plates of a site, and its places in sequential ones."""
    return {(frame.name, None if frame.vectorized else frame.counter) for frame in site["cond_indep_stack"]}


def _plates(msg: Any) -> str:
    names = [frame.name for frame in msg["cond_indep_stack"] if frame.vectorized]
    return " and ".join(f"'{name}'" for name in names) if names else "entries"


def _base(fn: Any) -> Any:
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _plate_nesting(posterior: Posterior, source: Source) -> int:
    """How many dimensions the model's plates take."""
    nodes = _first_run(posterior, source).values()
    return max((-frame.dim for site in nodes if is_sampled(site) for frame in _vectorised(site)), default=0)


def _first_run(posterior: Posterior, source: Source) -> dict[str, Any]:
    """Nodes of a run of the model at the first draw."""
    first = {name: value[0] for name, value in _flat(posterior).items()}
    with forked_rng(0), validation(False), Cures(*_place(source)), torch.no_grad():
        nodes: dict[str, Any] = _trace(source.model, source.args, source.kwargs, first).nodes
        return nodes


def _source(posterior: Any, what: str) -> Source:
    source = posterior.potential
    if source is None or getattr(source, "model", None) is None:
        raise CapabilityError(
            f"{what}: these draws come from a density without a Pyro model; sample a model instead of a "
            "potential_fn"
        )
    return source


def _place(source: Source) -> tuple[torch.dtype | None, torch.device]:
    """Precision and device of the run."""
    return getattr(source, "dtype", None), getattr(source, "device", None) or torch.device("cpu")


def _seed(seed: int | None) -> int:
    return int(torch.randint(2**62, ())) if seed is None else seed


def _check_num(num_samples: int) -> None:
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigError(f"num_samples: expected a positive integer, got {num_samples!r}")


def _flat(posterior: Posterior) -> Values:
    """Draws of all latents, ``(C * S, *shape)`` each."""
    if not posterior.num_draws:
        raise ConfigError("samples: there are no draws yet; go on with the run")
    values, source = dict(posterior.samples), posterior.potential
    missing = [site.name for site in getattr(source, "sites", ()) if site.name not in values]
    if missing:
        # A latent that is not given would be drawn from its prior, unnoticed.
        constrain = getattr(source, "constrain", None)
        if constrain is None or posterior.unconstrained is None:
            raise CapabilityError(
                f"samples: the draws of '{missing[0]}' were not kept, and the model needs all latents; run "
                "with save_params=None"
            )
        values = constrain(posterior.unconstrained)
    return {name: value.detach().flatten(0, 1) for name, value in values.items()}


def _by_chain(values: Values, posterior: Posterior) -> Values:
    shape = (posterior.num_chains, posterior.num_draws)
    return {name: value.unflatten(0, shape) for name, value in values.items()}


def _map(run: Callable[[Values], Values], given: Values, source: Source, *, seed: int = 0) -> Values:
    """``run`` at each of N draws ``(N, ...)``: in batches, or one by one where it cannot be batched."""
    dtype, device = _place(source)
    given = {name: value.to(device) for name, value in given.items()}
    num = len(next(iter(given.values())))

    def one(values: Values) -> Values:
        with validation(False), Cures(dtype, device), _Batchable(), torch.no_grad():
            return {name: torch.as_tensor(value) for name, value in run(values).items()}

    with forked_rng(seed, device):
        first = one({name: value[0] for name, value in given.items()})
    numbers = sum(value.numel() for value in first.values())
    size = min(num, max(1, _BATCH // max(1, numbers)))
    batched = torch.vmap(one, randomness="different")
    try:
        with forked_rng(seed, device), warnings.catch_warnings():
            # torch's advice to itself, where it has no rule for an operation yet.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            parts = [
                batched({name: value[i : i + size] for name, value in given.items()})
                for i in range(0, num, size)
            ]
        if any(value.shape[1:] != first[name].shape for part in parts for name, value in part.items()):
            raise RuntimeError("the model gives other shapes in a batch")
    except (ShapeError, CapabilityError, ConfigError):
        raise
    except Exception as error:  # whatever the model does that cannot be batched
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"the model is run draw by draw, which is slow: it cannot be batched ({reason})",
            SamplingWarning,
            stacklevel=4,
        )
        with forked_rng(seed, device):
            draws = [one({name: value[i] for name, value in given.items()}) for i in range(num)]
        return {name: torch.stack([draw[name] for draw in draws]) for name in first}
    return {name: torch.cat([part[name] for part in parts]) for name in first}
