r"""Expectation-maximisation: exact coordinate ascent on a likelihood with discrete latents.

With :math:`r_{nk} = p(k \mid x_n; \theta)` from the present parameters, a step sets

.. math:: \theta' = \arg\max_\theta \sum_{n,k} r_{nk} \log p(x_n, k; \theta) + \log p(\theta),

after which :math:`\sum_n \log p(x_n; \theta') + \log p(\theta')` is never smaller
(Dempster, Laird & Rubin 1977). The prior :math:`p(\theta)` is flat unless the model has one.
Any model takes part that can do such a step: see :class:`HasExpectationMaximisation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ppgen.contract import require
from ppgen.inference.objectives.base import Program, StepOptions, Stepper, owner
from ppgen.inference.objectives.penalised import HasPenalisedLikelihood, PenalisedLikelihood


@dataclass(frozen=True)
class EMStep:
    """What one EM iteration found.

    Attributes:
        log_likelihood: total over the data *before* the step, a scalar, in nats.
        log_prior: log prior density of the parameters before the step, up to a constant, in nats.
        notes: sentences on repairs that the step had to make (collapsed or empty components).
        final: whether the step led to the maximum wherever it began, as where nothing is latent: a further
            one only moves the parameters within their rounding errors.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    notes: tuple[str, ...] = ()
    final: bool = False


@runtime_checkable
class HasExpectationMaximisation(HasPenalisedLikelihood, Protocol):
    """A likelihood that can be raised by expectation-maximisation."""

    def em_step(self, x: Tensor, context: Tensor | None = None) -> EMStep:
        """One EM iteration on all data, in place.

        Where the log-likelihood is not finite, the parameters are left as they are.
        """


class ExpectationMaximisation(PenalisedLikelihood):
    r"""Minus the log-likelihood, minus the log prior of the parameters where there is one.

    As a Pyro loss it is differentiable, so that ``pyro.infer.SVI(..., loss=objective)`` climbs
    the same hill by gradients. In :func:`ppgen.fit` each step is an EM iteration on all data,
    without an optimiser; learning rate, clipping and autocast have no say in it. Its figures
    are ``loss``, the mean negative log-likelihood a datum before the step, and ``penalty``,
    minus the log prior over N: their sum never rises while the data stay the same. A run ends where
    a step leaves every number as it was, and after the second step of a model whose every step leads to the
    maximum.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def diagnose(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> list[str]:
        """What the steps had to repair since the last :meth:`stepper`, each kind once."""
        return list(self.notes)

    def stepper(self, model: Program, guide: Program, options: StepOptions) -> Stepper:
        """EM iterations; see the class."""
        self.notes = []
        return EMStepper(self.learner(model), self.notes)

    def learner(self, model: Program) -> HasExpectationMaximisation:
        """The model that owns the program.

        Raises:
            CapabilityError: it has no EM step.
        """
        found = owner(model, "ExpectationMaximisation")
        require(found, HasExpectationMaximisation, "ExpectationMaximisation")
        return cast(HasExpectationMaximisation, found)


class EMStepper:
    """Repeats the EM iteration of a model.

    Args:
        model: a model with :class:`HasExpectationMaximisation`.
        notes: where repairs are written down, each kind once, with the step that met it first.

    Attributes:
        settled: whether the last step changed nothing, so that no further one will on these data; or began,
            and reported the likelihood, at the maximum.
    """

    def __init__(self, model: HasExpectationMaximisation, notes: list[str]) -> None:
        self.model, self.notes = model, notes
        self.num_steps, self.settled, self.at_maximum = 0, False, False

    @torch.no_grad()
    def step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One EM iteration on ``args[0]``; figures ``loss`` and ``penalty``, as means a datum."""
        x, before = args[0], _learnt(self.model)
        found = self.model.em_step(x, args[1] if len(args) > 1 else kwargs.get("context"))
        self.num_steps += 1
        after = _learnt(self.model, copy=False)
        # A step without a finite likelihood leaves all as it was, too, and is a fault.
        same = all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        self.settled = (same or self.at_maximum) and bool(found.log_likelihood.isfinite())
        self.at_maximum = found.final
        known = {note.split(", ", 1)[1].split(":")[0] for note in self.notes}
        fresh = [note for note in found.notes if note.split(":")[0] not in known]
        self.notes += [f"EM step {self.num_steps}, {note}" for note in fresh]
        return {"loss": -found.log_likelihood / len(x), "penalty": -found.log_prior / len(x)}

    def state_dict(self) -> dict[str, Any]:
        """The number of steps done, where they led, and the repairs met."""
        return {
            "num_steps": self.num_steps,
            "settled": self.settled,
            "at_maximum": self.at_maximum,
            "notes": list(self.notes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state given by :meth:`state_dict`."""
        self.num_steps, self.settled = state["num_steps"], state.get("settled", False)
        self.at_maximum = state.get("at_maximum", False)
        self.notes[:] = state["notes"]


def _learnt(model: HasExpectationMaximisation, copy: bool = True) -> list[Tensor]:
    """What a step may change: parameters and buffers, but for the mark that a start was made."""
    state = cast(nn.Module, model).state_dict()
    return [t.clone() if copy else t for name, t in state.items() if name != "initialised"]
