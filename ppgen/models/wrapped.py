r"""A user's own Pyro model and guide behind the contract.

.. code-block:: python

    def model(x=None, num=None):
        with pyro.plate("data", num if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    wrapped = ppgen.wrap(model, guide, example=data)
    ppgen.fit(wrapped, data)
    wrapped.log_likelihood(data)      # Estimate(kind="lower_bound"), one value a datum

What kind of likelihood it has is found by tracing the pair once: *exact* where nothing is left
to draw, for there are no latents or only discrete ones that Pyro enumerates; else a *lower
bound* by importance weighting with the guide's draws. Where a latent stands outside the data
plate, the data depend on each other through it, and the figure is the evidence of all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.datasets.values import REAL, Values
from ppgen.errors import CapabilityError, ConfigError, DataError
from ppgen.inference.objectives.elbo import ELBO, SiteRecorder
from ppgen.models.latent import Method, latent_log_likelihood

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
        model: a Pyro program whose first argument is the data (``None`` to generate): a function, a
            module, or a method of one. Arguments ``num`` and ``context`` are passed where it takes them.
        guide: a Pyro program with the same first argument; leave it out where there are no
            latents, or only discrete ones to be enumerated, or where likelihoods are all that is wanted, by
            annealing from the prior. Beside a guide, discrete latents that
            it does not sample are enumerated where the model marks them so.
        site: name of the site that holds a datum; needed where several are observed.
        support: the values that a coordinate can take.
        example: a few data that fix the event shape and the kind of density now; else the first data
            that ``log_likelihood`` or ``look_at`` sees do.

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

    Modules among the two programs, and modules whose methods they are, are registered, so that
    their parameters are saved, moved and trained; those of a ``PyroModule`` stay out of Pyro's
    global store. Parameters declared by ``pyro.param`` stay in that store.

    Attributes:
        user_model, user_guide: the programs.
        site: name of the site that holds a datum; known once data were seen.
        shares_latents: whether the data have a density only together; assumed until data were seen.
    """

    def __init__(
        self, model: Program, guide: Program | None, *, site: str | None = None, support: Values = REAL
    ) -> None:
        super().__init__((1,), support=support)
        self._programs = (model, guide)
        self._accepts = (_arguments(model), _arguments(guide) if guide is not None else set())
        # Past PyroModule's own registration, which would rename the sites of the user's modules
        # and refuses those that have run before.
        owners = [_module_of(program) for program in self._programs]
        self._modules["user_model"] = owners[0]
        self._modules["user_guide"] = None if owners[1] is owners[0] else owners[1]
        self.site = site
        self.event_shape = torch.Size()
        self.shares_latents = True
        self._enumerates = False
        self._unguided: list[str] = []
        self._datum_plates: list[str] = []

    @property
    def user_model(self) -> Program:
        """The model as it was given."""
        return self._programs[0]

    @property
    def user_guide(self) -> Program | None:
        """The guide as it was given."""
        return self._programs[1]

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """The user's model."""
        program = self.user_model
        if self.user_guide is None:  # latents without a guide are there to be summed out
            program = poutine.infer_config(program, _enumerate_in_parallel)
        return _call(program, self._accepts[0], x, num, context)

    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> None:
        """The user's guide."""
        if self.user_guide is not None:
            _call(self.user_guide, self._accepts[1], x, num, context)

    def check_event(self, x: Tensor | None) -> None:
        """Any shape goes: the user's program decides."""

    def check_data(self, x: Tensor, *, values: bool = True) -> Tensor:
        """Any data go, as they are."""
        return x

    def check_context(self, context: Tensor | None) -> None:
        """Any context goes, where the user's program takes one."""
        if context is not None and "context" not in self._accepts[0]:
            raise CapabilityError("context: the wrapped model takes no argument of that name; add it there")

    @torch.no_grad()
    def sample(self, num: int = 1, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """Draw ``num`` data from the model run without data; shape ``(num, *event_shape)``.

        They are what the model returns or, where it returns no tensor, the value of the data site.
        """
        if "num" not in self._accepts[0]:
            raise CapabilityError(
                "sample: the wrapped model takes no argument num, so it cannot be told how many data to "
                "generate; write it as model(x=None, num=None) with a plate of num where x is None"
            )
        with SiteRecorder() as recorder:
            drawn: Any = super().sample(num, context, seed=seed)
        if not isinstance(drawn, Tensor):
            drawn = recorder.sites.get(self.site or "x", {}).get("value")
        if not isinstance(drawn, Tensor):
            raise CapabilityError(
                f"sample: run without data, the wrapped model returns no tensor and has no site "
                f"'{self.site or 'x'}'; let it return the data, or name their site with wrap(..., site=...)"
            )
        return drawn

    def log_likelihood(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        method: Method = "iwae",
        num_particles: int | None = None,
        **options: Any,
    ) -> Estimate:
        """Log p(x_n), shape (N,), nats: exact, or a lower bound in expectation by one of three methods.

        Args:
            x: data.
            context: passed to the programs.
            method: ``"elbo"``, ``"iwae"`` or ``"ais"``, which make no difference where nothing is drawn.
                Without a guide for continuous latents, ``"ais"`` from the prior.
            num_particles: draws.
            **options: see :func:`~ppgen.models.latent.latent_log_likelihood`.

        Where something stands outside the data plate (a latent that all data share), the data have
        no likelihood each: the value is then a scalar, the evidence log p(x) of all of them.
        """
        self.look_at(x, context)
        if len(self._datum_plates) > 1:
            raise CapabilityError(
                f"log_likelihood: a datum of the wrapped model spans the plates {self._datum_plates}; make "
                "its coordinates one event, dist.Normal(...).to_event(1), inside the data plate at dim -1"
            )
        if self._unguided and method != "ais":
            raise ConfigError(f"{self._missing()}; or anneal from the prior, method='ais'")
        exact = self.density is Kind.EXACT
        found = latent_log_likelihood(
            self.model,
            None if self._unguided else self.guide,
            x,
            context,
            method="iwae" if exact else method,
            num_particles=1 if exact else num_particles,
            enumerates=self._enumerates,
            shared=self.shares_latents,
            **({} if exact else options),
        )
        return replace(found, kind=Kind.EXACT) if exact else found

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
        sites = {n: s for n, s in p.sites.items() if not s["infer"].get("_deterministic")}
        observed = [n for n, s in sites.items() if s["is_observed"] and s["value"].numel() > 0]
        if not observed:
            raise DataError("x: the wrapped model observes nothing when given data; give its data site obs=x")
        if self.site is None and len(observed) > 1 and "x" not in observed:
            raise ConfigError(f"site: the model observes {observed}; say which one is the datum, site=...")
        self.site = self.site or ("x" if "x" in observed else observed[0])
        if self.site not in observed:
            raise ConfigError(f"site: '{self.site}' is not among the observed sites {observed}")
        summed = {n: s for n, s in sites.items() if not s["is_observed"] and n not in q.sites}
        self._unguided = [n for n, s in summed.items() if s["infer"].get("enumerate") != "parallel"]
        if self._unguided and self.user_guide is not None:
            raise ConfigError(self._missing())
        self.event_shape = x.shape[1:]
        self._enumerates = len(summed) > len(self._unguided)
        drawn = bool(self._unguided) or any(not s["is_observed"] and n in q.sites for n, s in sites.items())
        self.density = Kind.LOWER_BOUND if drawn else Kind.EXACT
        self.shares_latents, self._datum_plates = _dependence(sites, self.site, len(x))

    def _missing(self) -> str:
        return (
            f"guide: the model's latents {self._unguided} are not sampled there; add them, or mark discrete "
            "ones for enumeration: infer={'enumerate': 'parallel'}"
        )


def _dependence(sites: dict[str, Any], datum: str, num: int) -> tuple[bool, list[str]]:
    """Whether some site stands outside the data plate; and the plates that hold parts of one datum."""
    stacks = [{f.name: f for f in s["cond_indep_stack"] if f.vectorized} for s in sites.values()]
    plates = {f.name: f for f in sites[datum]["cond_indep_stack"] if f.vectorized}
    rows = [name for name, f in plates.items() if f.size == num]
    if len(rows) > 1:
        rows = ["data"] if "data" in rows else rows
    if len(rows) > 1:
        raise ConfigError(
            f"model: the plates {rows} of site '{datum}' both have {num} elements, as many as there are "
            "data; name the data's plate 'data'"
        )
    if not any(stacks):  # no plates at all: the shape of the batch is all there is to go by
        return any(tuple(s["fn"].batch_shape) != (num,) for s in sites.values()), []
    if not rows or any(rows[0] not in stack for stack in stacks):
        return True, []
    widest = max(stacks, key=len)
    return False, list(widest)


def _call(
    program: Program, accepted: set[str], x: Tensor | None, num: int | None, context: Tensor | None
) -> Any:
    offered = {"num": num, "context": context}
    return program(x, **{k: v for k, v in offered.items() if v is not None and k in accepted})


def _module_of(program: Program | None) -> nn.Module | None:
    """The module that a program is, or is a method of."""
    found = getattr(program, "__self__", program)
    return found if isinstance(found, nn.Module) else None


def _arguments(program: Program) -> set[str]:
    target = program.forward if isinstance(program, nn.Module) else program
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return {"num", "context"}
    return {p.name for p in parameters}


def _enumerate_in_parallel(site: Any) -> Any:
    infer = dict(site["infer"])
    if not site["is_observed"] and getattr(site["fn"], "has_enumerate_support", False):
        infer["enumerate"] = "parallel"
    return infer
