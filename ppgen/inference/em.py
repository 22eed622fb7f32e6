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
from torch import Tensor

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
    """

    log_likelihood: Tensor
    log_prior: Tensor
    notes: tuple[str, ...] = ()


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
    minus the log prior over N: their sum never rises while the data stay the same.

    Args:
        epochs: iterations where :func:`ppgen.fit` is told neither epochs nor seconds; 1 suits models whose
            first step is the best.
    """

    def __init__(self, epochs: int | None = None) -> None:
        self.default_epochs = epochs
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
    """

    def __init__(self, model: HasExpectationMaximisation, notes: list[str]) -> None:
        self.model, self.notes = model, notes
        self.num_steps = 0

    @torch.no_grad()
    def step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One EM iteration on ``args[0]``; figures ``loss`` and ``penalty``, as means a datum."""
        x = args[0]
        found = self.model.em_step(x, args[1] if len(args) > 1 else kwargs.get("context"))
        self.num_steps += 1
        known = {note.split(", ", 1)[1].split(":")[0] for note in self.notes}
        fresh = [note for note in found.notes if note.split(":")[0] not in known]
        self.notes += [f"EM step {self.num_steps}, {note}" for note in fresh]
        return {"loss": -found.log_likelihood / len(x), "penalty": -found.log_prior / len(x)}

    def state_dict(self) -> dict[str, Any]:
        """The number of steps done and the repairs met; EM keeps nothing else."""
        return {"num_steps": self.num_steps, "notes": list(self.notes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state given by :meth:`state_dict`."""
        self.num_steps = state["num_steps"]
        self.notes[:] = state["notes"]
