r"""The two ends of the path of a Pyro model: exact draws of the start, and the density of the end.

The start is the model's prior, or a guide. For a guide, model and guide become one program,

.. code-block:: text

    theta ~ q(theta)                                    the guide's sites: the new "prior"
    the model's sites at theta, observed;  factor(-log q(theta))        the new "likelihood"

whose joint density is the model's, and whose prior can be drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.errors import CapabilityError, ConfigError, DataError
from ppgen.inference.mcmc.potential import Potential
from ppgen.inference.mcmc.sites import is_deterministic
from ppgen.inference.mcmc.transforms import bijection
from ppgen.inference.objectives.elbo import SiteRecorder, site_log_prob
from ppgen.ops.random import forked_rng

Program = Callable[..., Any]

# A draw at the edge of a support, such as a gamma variable that rounds to 0, has no finite place in z.
_MOST_REDRAWS = 100


def fresh_seed(seed: int | None) -> int:
    """``seed``, or one that torch's global generator gives."""
    return int(torch.randint(2**62, ())) if seed is None else seed


class PathEnds:
    """Exact draws of a start, and the potential whose two parts are the path.

    Args:
        model: a Pyro model.
        guide: a Pyro program over the same latents; ``None`` to start from the prior.
        args: positional arguments of both.
        kwargs: named arguments of both.
        dtype: see :class:`~ppgen.inference.mcmc.potential.Potential`.
        device: the same.
        seed: the same.

    Attributes:
        potential: the density.

    Raises:
        CapabilityError: a prior that cannot be drawn from, or that depends on a discrete latent.
    """

    def __init__(
        self,
        model: Program,
        guide: Program | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        self._program = model if guide is None else started_from(model, guide)
        self._args, self._kwargs = args, kwargs
        self.potential = Potential(self._program, args, kwargs, dtype=dtype, device=device, seed=seed)
        self._check_prior(seed)

    def draw(self, num: int, seed: int) -> Tensor:
        """Independent draws of the start, shape (num, D); one run of the program each."""
        found: list[Tensor] = []
        missing = num
        with torch.no_grad(), forked_rng(seed, self.potential.device):
            for _ in range(_MOST_REDRAWS):
                z = self.unconstrain(self._run(missing))
                found.append(z[z.isfinite().all(1)])
                missing -= len(found[-1])
                if missing == 0:
                    return torch.cat(found)
        raise DataError(
            f"model: {missing} of {num} draws of the prior lie at the edge of their support; "
            "give a prior that is less extreme, or dtype=torch.float64"
        )

    def unconstrain(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Points (M, D) of draws of the latents by site, each ``(M, *shape)``."""
        potential = self.potential
        if any(site.depends or site.missing is not None for site in potential.sites):
            count = len(next(iter(draws.values())))
            rows = [{name: value[i] for name, value in draws.items()} for i in range(count)]
            return torch.stack([potential.unconstrain(row) for row in rows])
        pieces = []
        for site in potential.sites:
            value = draws[site.name].to(potential.device, potential.dtype)
            z = bijection(site.support, site.name).inv(value)
            pieces.append(z.reshape(len(value), -1))
        return torch.cat(pieces, 1)

    def _run(self, num: int) -> dict[str, Tensor]:
        names = {site.name for site in self.potential.sites}
        runs: list[dict[str, Tensor]] = []
        for _ in range(num):
            sites = _run_once(self._program, self._args, self._kwargs)
            runs.append({name: sites[name]["value"] for name in names})
        return {name: torch.stack([run[name] for run in runs]) for name in names}

    def _check_prior(self, seed: int) -> None:
        """Whether what is drawn has the density that the path starts from."""
        with torch.no_grad(), forked_rng(seed, self.potential.device):
            try:
                sites = _run_once(self._program, self._args, self._kwargs)
            except NotImplementedError as error:
                raise CapabilityError(
                    "model: annealing starts from exact draws of the prior, and this one cannot be drawn "
                    f"from ({error}); give a guide to start from"
                ) from error
        for site in self.potential.sites:
            if not bool(torch.as_tensor(sites[site.name]["scale"] == 1).all()):
                raise CapabilityError(
                    f"model: site '{site.name}' is scaled, so the prior that it is drawn from is not the one "
                    "in the density, and annealing cannot start there; scale observed sites only, or give a "
                    "guide"
                )
        if not self.potential.discrete:
            return
        values = {site.name: sites[site.name]["value"] for site in self.potential.sites}
        z = self.unconstrain({name: value[None] for name, value in values.items()})[0]
        log_prior = 0.0
        for site in self.potential.sites:
            log_prior += float(site_log_prob(sites[site.name]).sum())
            transform = bijection(site.support, site.name)
            piece = transform.inv(values[site.name])
            log_prior += float(transform.log_abs_det_jacobian(piece, values[site.name]).sum())
        found = float(self.potential.log_parts(z)[0])
        if abs(found - log_prior) > 1e-3 * (1 + abs(log_prior)):
            raise CapabilityError(
                "model: the prior of a continuous latent depends on a discrete latent that is summed out, so "
                "annealing cannot start from the prior; give a guide over the continuous latents"
            )


def started_from(model: Program, guide: Program) -> Program:
    """The program whose prior is the guide and whose joint density is the model's; see the module."""

    def program(*args: Any, **kwargs: Any) -> None:
        with _Functions() as functions, SiteRecorder() as q:
            guide(*args, **kwargs)
        values = dict(functions.values)
        log_q: Tensor | float = functions.log_density
        for name, site in q.sites.items():
            if site["is_observed"] or name in values:
                continue
            values[name] = site["value"]
            log_q = log_q + site_log_prob(site).sum()
        with _Renamed("model/"):
            poutine.condition(model, data=values)(*args, **kwargs)
        pyro.factor("minus_log_guide", -torch.as_tensor(log_q))

    return program


class _Renamed(Messenger):
    """Puts a prefix before the names of sample sites."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            msg["name"] = self._prefix + msg["name"]


class _Functions(Messenger):
    """Makes a guide's ``Delta`` sites functions of its other sites; their density is kept apart.

    An automatic guide draws an auxiliary variable and places each latent at a function of it, with the
    Jacobian as the ``Delta``'s density.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.log_density: Tensor | float = 0.0

    def _process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        fn = msg["fn"]
        while isinstance(fn, dist.Independent | dist.MaskedDistribution):
            fn = fn.base_dist
        if not isinstance(fn, dist.Delta):
            return
        name = msg["name"]
        value = fn.v
        self.values[name] = value
        self.log_density = self.log_density + (torch.as_tensor(fn.log_density) + value.new_zeros(())).sum()
        msg["value"], msg["done"] = value, True
        msg["infer"] = {**msg["infer"], "_deterministic": True}
        msg["fn"] = dist.Delta(value, event_dim=value.ndim).mask(False)
        msg["is_observed"] = True


def simulate(
    model: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seed: int,
    device: torch.device | str | None = None,
) -> tuple[dict[str, Tensor], Program]:
    """Draw latents and data from a model.

    Args:
        model: a Pyro model that observes data.
        args: its positional arguments.
        kwargs: its named arguments.
        seed: of the draw.
        device: whose generator the draw uses.

    Returns:
        The latents by site, and the model with the simulated data in place of the observed ones.

    Raises:
        CapabilityError: a ``pyro.factor`` or another site that cannot be drawn.
        ConfigError: nothing is observed with these arguments.
    """
    free = poutine.uncondition(model)
    with torch.no_grad(), forked_rng(seed, device or "cpu"):
        try:
            sites = _run_once(free, args, kwargs)
        except NotImplementedError as error:
            raise CapabilityError(f"model: no data can be simulated from it ({error})") from error
    data: dict[str, Tensor] = {}
    latents: dict[str, Tensor] = {}
    for name, site in sites.items():
        if is_deterministic(site):
            continue
        if isinstance(site["fn"], dist.Unit):
            raise CapabilityError(
                f"model: no data can be simulated from it, for pyro.factor('{name}') has a density and no "
                "draws; bidirectional bounds need a model whose likelihood is all in sample sites"
            )
        observed = site["infer"].get("was_observed", False)
        (data if observed else latents)[name] = site["value"]
    if not data:
        raise ConfigError(
            "model: it observes nothing with these arguments, so there are no data to simulate; give an "
            "example of the data too: its values are not used, but it says which sites are observed"
        )
    return latents, poutine.condition(free, data=data)


def _run_once(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The sample sites of one run, unseen by handlers around it."""
    with pyro.validation_enabled(False), poutine.block(), SiteRecorder() as recorder:
        program(*args, **kwargs)
    return recorder.sites
