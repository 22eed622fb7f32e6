r"""A user's own Pyro model and guide behind the contract.

.. code-block:: python

    def model(x=None, num=None):
        with pyro.plate("data", num if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    wrapped = ppgen.wrap(model, guide)
    ppgen.fit(wrapped, data)
    wrapped.log_likelihood(data)      # Estimate(kind="lower_bound"), one value a datum

What kind of likelihood it has is found by tracing the pair once: *exact* without latents or
with discrete latents that Pyro can enumerate, else a *lower bound* by importance weighting.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.datasets.values import REAL, Values
from ppgen.errors import CapabilityError, ConfigError, DataError
from ppgen.inference.objectives.elbo import ELBO, SiteRecorder, site_log_prob
from ppgen.models.latent import importance_evidence, importance_log_likelihood

Program = Callable[..., Any]


def wrap(
    model: Program,
    guide: Program | None = None,
    *,
    site: str | None = None,
    support: Values = REAL,
    example: Tensor | None = None,
) -> WrappedModel:
    """Give plain Pyro functions the contract of a :class:`~ppgen.contract.GenerativeModel`.

    Args:
        model: a Pyro program whose first argument is the data (``None`` to generate). Arguments
            ``num`` and ``context`` are passed where it takes them.
        guide: a Pyro program with the same first argument; leave it out where there are no
            latents, or only discrete ones to be enumerated.
        site: name of the site that holds a datum; needed where several are observed.
        support: the values that a coordinate can take.
        example: a few data that fix the event shape now; else the first data seen do.

    Raises:
        ConfigError: something that is not callable.
    """
    for name, program in (("model", model), ("guide", guide)):
        if program is not None and not callable(program):
            raise ConfigError(f"{name}: expected a Pyro function, got {type(program).__name__}")
    wrapped = WrappedModel(model, guide, site=site, support=support)
    if example is not None:
        wrapped.look_at(example)
    return wrapped


class WrappedModel(GenerativeModel):
    """A user's pair; made by :func:`wrap`.

    Modules among the two programs are registered, so that their parameters are saved,
    moved and trained; parameters declared by ``pyro.param`` stay in Pyro's global store.
    """

    def __init__(
        self, model: Program, guide: Program | None, *, site: str | None = None, support: Values = REAL
    ) -> None:
        super().__init__((1,), support=support)
        self.user_model = model
        self._model_arguments = _arguments(model)
        self.user_guide = guide
        self.site = site
        self.event_shape = torch.Size()
        self.has_latents: bool | None = None
        self.enumerates = False
        self.shares_latents = False

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """The user's model."""
        program = self.user_model
        if self.user_guide is None:  # latents without a guide are there to be summed out
            program = poutine.infer_config(program, _enumerate_in_parallel)
        return self._call(program, self._model_arguments, x, num, context)

    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> None:
        """The user's guide."""
        if self.user_guide is not None:
            self._call(self.user_guide, _arguments(self.user_guide), x, num, context)

    def check_event(self, x: Tensor | None) -> None:
        """Any shape goes: the user's program decides."""

    def check_context(self, context: Tensor | None) -> None:
        """Any context goes, where the user's program takes one."""
        if context is not None and "context" not in self._model_arguments:
            raise CapabilityError("context: the wrapped model takes no argument of that name; add it there")

    @torch.no_grad()
    def sample(self, num: int = 1, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """Draw ``num`` data from the model run without data; shape ``(num, *event_shape)``."""
        if "num" in self._model_arguments:
            return super().sample(num, context, seed=seed)
        raise CapabilityError(
            "sample: the wrapped model takes no argument num, so it cannot be told how many data to "
            "generate; write it as model(x=None, num=None) with a plate of num where x is None"
        )

    def log_likelihood(
        self, x: Tensor, context: Tensor | None = None, *, num_particles: int = 64, **options: Any
    ) -> Estimate:
        """Log p(x_n), shape (N,), nats: exact, or a lower bound with ``num_particles`` draws.

        Where a latent is shared by all data (it stands outside the data plate), the data have no
        likelihood each: the value is then a scalar, a lower bound on the evidence log p(x).
        """
        self.look_at(x, context)
        if not self.has_latents or self.enumerates:
            return self._exact(x, context)
        estimator = importance_evidence if self.shares_latents else importance_log_likelihood
        return estimator(self.model, self.guide, x, context, num_particles=num_particles, **options)

    def default_objective(self) -> ELBO:
        """The ELBO; enumerated where the model says so."""
        return ELBO()

    @torch.no_grad()
    def look_at(self, x: Tensor, context: Tensor | None = None) -> None:
        """Trace the pair once on data, and note the data site, the event shape and the kind of density."""
        with pyro.validation_enabled(True), SiteRecorder() as q:
            self.guide(x, context)
        with pyro.validation_enabled(True), SiteRecorder(q.values) as p:
            self.model(x, context)
        observed = [name for name, site in p.sites.items() if site["is_observed"]]
        if not observed:
            raise DataError("x: the wrapped model observes nothing when given data; give its data site obs=x")
        if self.site is None and len(observed) > 1 and "x" not in observed:
            raise ConfigError(f"site: the model observes {observed}; say which one is the datum, site=...")
        self.site = self.site or ("x" if "x" in observed else observed[0])
        if self.site not in observed:
            raise ConfigError(f"site: '{self.site}' is not among the observed sites {observed}")
        self.event_shape = x.shape[1:]
        latents = [site for site in p.sites.values() if not site["is_observed"]]
        loose = [n for n, site in p.sites.items() if not site["is_observed"] and n not in q.sites]
        self.enumerates = bool(latents) and all(
            getattr(site["fn"], "has_enumerate_support", False) for site in latents
        )
        if loose and not self.enumerates:
            raise ConfigError(f"guide: the model's latents {loose} are not sampled there; add them")
        self.has_latents = bool(latents)
        self.shares_latents = any(site["fn"].batch_shape[-1:] != (len(x),) for site in latents)
        self.density = Kind.LOWER_BOUND if latents and not self.enumerates else Kind.EXACT

    @torch.no_grad()
    def _exact(self, x: Tensor, context: Tensor | None) -> Estimate:
        """Sum out what is discrete by broadcasting every site over the enumerated dimensions."""
        model = self.model
        if self.enumerates:
            model = poutine.enum(model, first_available_dim=-2)
        with pyro.validation_enabled(False), SiteRecorder() as p:
            model(x, context)
        total: Tensor | float = 0.0
        for name, site in p.sites.items():
            term = site_log_prob(site)
            if term.shape[-1:] != (len(x),) and site["is_observed"]:
                raise CapabilityError(
                    f"log_likelihood: site '{name}' has batch shape {tuple(term.shape)}, which is not one "
                    f"value for each of {len(x)} data; per-datum likelihoods need a data plate at dim -1"
                )
            total = total + term
        joint = torch.as_tensor(total)
        value = joint.flatten(0, -2).logsumexp(0) if joint.ndim > 1 else joint
        return Estimate.of(value, Kind.EXACT)

    @staticmethod
    def _call(
        program: Program, names: set[str], x: Tensor | None, num: int | None, context: Tensor | None
    ) -> Any:
        offered = {"num": num, "context": context}
        given = {k: v for k, v in offered.items() if v is not None and k in names}
        return program(x, **given)


def _arguments(program: Program) -> set[str]:
    target = program.forward if isinstance(program, torch.nn.Module) else program
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return {"num", "context"}
    return {p.name for p in parameters}


def _enumerate_in_parallel(site: Any) -> Any:
    infer = dict(site["infer"])
    if not site["is_observed"] and getattr(site["fn"], "has_enumerate_support", False):
        infer["enumerate"] = "parallel"
    return infer
