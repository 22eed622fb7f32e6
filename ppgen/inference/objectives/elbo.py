r"""The evidence lower bound, evaluated in one lean pass over the pair.

.. math:: \mathrm{ELBO}(x) = E_{q(z \mid x)}[\log p(x, z) - \log q(z \mid x)] \le \log p(x)

With an empty guide it is :math:`\log p(x)` itself, so the same objective is maximum
likelihood for mixtures and flows. With ``beta`` the latent terms are weighted
(Higgins et al. 2017); the result is then a training objective, no longer a bound.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import kl_divergence

from ppgen.contract import GenerativeModel, Kind
from ppgen.errors import CapabilityError, ConfigError
from ppgen.inference.objectives.base import Objective, Program, StepOptions, Stepper

_COLLAPSED = 0.01  # nats a coordinate


class SiteRecorder(Messenger):
    """Runs a program once, with latents given from outside, and keeps its sample sites.

    Lighter than ``poutine.trace`` with ``replay``: no graph, no copies, no packing.

    Args:
        given: values of latent sites, by name; the others are drawn.
    """

    def __init__(self, given: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.given = given or {}
        self.sites: dict[str, Any] = {}

    def _process_message(self, msg: Message[Any, Any]) -> None:
        if msg["type"] == "sample" and msg["name"] in self.given and not msg["is_observed"]:
            msg["value"] = self.given[msg["name"]]
            msg["done"] = True

    def _postprocess_message(self, msg: Message[Any, Any]) -> None:
        if msg["type"] == "sample" and type(msg["fn"]).__name__ != "_Subsample":
            self.sites[str(msg["name"])] = msg

    @property
    def values(self) -> dict[str, Tensor]:
        """Values of the sites that are not observed."""
        return {name: msg["value"] for name, msg in self.sites.items() if not msg["is_observed"]}


def site_log_prob(site: Any) -> Tensor:
    """Log-probability of a recorded site by batch element, masked and scaled as Pyro does; nats."""
    log_prob = site["fn"].log_prob(site["value"])
    mask = site["mask"]
    if mask is not None and mask is not True:
        log_prob = torch.where(torch.as_tensor(mask, device=log_prob.device), log_prob, 0.0)
    return log_prob if isinstance(site["scale"], float) and site["scale"] == 1.0 else log_prob * site["scale"]


class ELBO(Objective):
    """Minus the evidence lower bound; minus the log-likelihood where there are no latents.

    Reparameterised guides take the lean pass, which gives the value and gradient of
    ``pyro.infer.Trace_ELBO`` on the same random numbers. Enumerated sites go through Pyro's
    ``TraceEnum_ELBO``, other guides through its ``Trace_ELBO`` with the score-function term.

    Args:
        num_particles: draws from the guide to average over.
        beta: weight of the latent terms; 1 is the bound.
    """

    additive = True

    def __init__(self, num_particles: int = 1, *, beta: float = 1.0) -> None:
        if num_particles < 1:
            raise ConfigError(f"num_particles: expected a positive integer, got {num_particles}")
        if beta < 0:
            raise ConfigError(f"beta: expected a weight of 0 or more, got {beta}")
        self.num_particles, self.beta = num_particles, beta

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the (beta-weighted) bound in nats, a total over the data."""
        return self._loss(model, guide, self.beta, *args, **kwargs)

    def stepper(self, model: Program, guide: Program, options: StepOptions) -> Stepper:
        """A gradient step.

        Raises:
            CapabilityError: a model whose density is unnormalised: without log Z its loss is not a
                likelihood, and falls for ever.
        """
        own = getattr(model, "__self__", None)
        if isinstance(own, GenerativeModel) and own.density is Kind.UNNORMALISED:
            raise CapabilityError(
                f"objective: the density of this {type(own).__name__} is unnormalised, and an ELBO without "
                "its log Z is no bound; leave the objective to the family"
            )
        return super().stepper(model, guide, options)

    def validation_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor | None:
        """Minus the bound itself (beta of 1) in nats, a total over the data."""
        return self._loss(model, guide, 1.0, *args, **kwargs)

    def diagnose(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> list[str]:
        """Report latents whose posterior has collapsed onto the prior: KL below 0.01 nats a coordinate."""
        with torch.no_grad(), SiteRecorder() as q:
            guide(*args, **kwargs)
        with torch.no_grad(), SiteRecorder(q.values) as p:
            model(*args, **kwargs)
        notes = []
        for name, site in q.sites.items():
            if name not in p.sites or not _is_lean(site) or p.sites[name]["is_observed"]:
                continue
            divergence, error = _divergence(site, p.sites[name])
            size = max(1, site["fn"].event_shape.numel())
            if (divergence + 3 * error) / size < _COLLAPSED:
                notes.append(
                    f"site '{name}': posterior collapse, its KL from the prior is about "
                    f"{divergence / size:.2g} nats a coordinate; x does not depend on it. "
                    "Try a smaller beta, a weaker decoder, or fewer latents"
                )
        return notes

    def _loss(self, model: Program, guide: Program, beta: float, *args: Any, **kwargs: Any) -> Tensor:
        terms: list[Tensor] = []
        for _ in range(self.num_particles):
            with SiteRecorder() as q:
                guide(*args, **kwargs)
            if any(not _is_lean(site) for site in q.sites.values()):
                return self._pyro_loss(model, guide, beta, *args, **kwargs)
            with SiteRecorder(q.values) as p:
                model(*args, **kwargs)
            if any(site["infer"].get("enumerate") for site in p.sites.values() if not site["is_observed"]):
                return self._pyro_loss(model, guide, beta, *args, **kwargs)
            for name, site in p.sites.items():
                term = site_log_prob(site)
                terms.append(-beta * term if name in q.sites and beta != 1 else -term)
            for site in q.sites.values():
                term = site_log_prob(site)
                terms.append(beta * term if beta != 1 else term)
        total = _sum_of(terms)
        return total if self.num_particles == 1 else total / self.num_particles

    def _pyro_loss(self, model: Program, guide: Program, beta: float, *args: Any, **kwargs: Any) -> Tensor:
        if beta != 1.0:
            raise ConfigError(
                f"beta: weights other than 1 need a guide of reparameterised continuous sites, "
                f"got beta={beta}; drop beta or change the guide"
            )
        enumerates = _any_enumerated(model, *args, **kwargs) or _any_enumerated(guide, *args, **kwargs)
        estimator = (TraceEnum_ELBO if enumerates else Trace_ELBO)(
            num_particles=self.num_particles, max_plate_nesting=_plate_depth(model, *args, **kwargs)
        )
        return estimator.differentiable_loss(model, guide, *args, **kwargs)


def _sum_of(terms: list[Tensor]) -> Tensor:
    """Sum of all elements of all terms, with one reduction where the shapes agree."""
    if all(term.shape == terms[0].shape for term in terms):
        return sum(terms[1:], terms[0]).sum()
    return sum((term.sum() for term in terms[1:]), terms[0].sum())


def _divergence(q: Any, p: Any) -> tuple[float, float]:
    """Mean KL of a guide site from its prior over the batch, in nats, and its standard error.

    Exact where torch knows the pair, else from the one draw a datum.
    """
    try:
        return float(kl_divergence(q["fn"], p["fn"]).mean()), 0.0
    except (NotImplementedError, ValueError):
        ratio = site_log_prob(q) - site_log_prob(p)
        num = ratio.numel()
        return float(ratio.mean()), float(ratio.std()) / math.sqrt(num) if num > 1 else math.inf


def _is_lean(site: Any) -> bool:
    """Whether the lean pass gives the right gradient of a guide site."""
    return site["is_observed"] or (site["fn"].has_rsample and not site["infer"].get("enumerate"))


def _any_enumerated(program: Program, *args: Any, **kwargs: Any) -> bool:
    with torch.no_grad(), SiteRecorder() as recorder:
        program(*args, **kwargs)
    return any(site["infer"].get("enumerate") for site in recorder.sites.values() if not site["is_observed"])


def _plate_depth(program: Program, *args: Any, **kwargs: Any) -> int:
    """Number of vectorised plate dimensions, which enumeration must stay left of."""
    with torch.no_grad(), SiteRecorder() as recorder:
        program(*args, **kwargs)
    depths = [-f.dim for s in recorder.sites.values() for f in s["cond_indep_stack"] if f.dim is not None]
    return max(depths, default=0)
