r"""Maximum likelihood, or the mode of the posterior under a prior on the parameters, from all data at once.

.. math:: \hat\theta = \arg\min_\theta -\sum_n \log p(x_n; \theta) - \log p(\theta)

by L-BFGS with a line search by the strong Wolfe conditions (Liu & Nocedal 1989), which finds the minimum
where the objective is convex, as for log-linear models.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, require
from ppgen.inference.objectives.base import Objective, Program, StepOptions, Stepper, owner

_EPOCHS = 200
# A run ends after so many steps in a row that gained no more than rounding takes.
_IDLE = 3


@runtime_checkable
class HasPenalisedLikelihood(Protocol):
    """A likelihood in closed form, and a prior on its parameters."""

    def log_prior(self) -> Tensor:
        """Log prior density of the parameters, up to a constant: a scalar, in nats; 0 for none."""

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Log p(x_n), value of shape ``(N,)``, in nats, differentiable."""


class PenalisedLikelihood(Objective):
    """Minus the log-likelihood, minus the log prior of the parameters where there is one.

    As a Pyro loss it is differentiable. In :func:`ppgen.fit` each step is an iteration of L-BFGS on all data;
    learning rate, clipping and autocast have no say in it, and the run ends at the minimum, where steps gain
    no more than rounding takes. Its figures are ``loss``, the mean negative log-likelihood a datum before the
    step, and ``penalty``, minus the log prior over N.
    """

    full_batch = True
    default_epochs: int | None = _EPOCHS

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Minus log-likelihood (scaled to a population of ``num``) minus log prior, in nats."""
        return self.validation_loss(model, guide, *args, **kwargs) - self.learner(model).log_prior()

    def validation_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the log-likelihood, a total over the batch (scaled as in :meth:`loss`), in nats."""
        x, num = args[0], kwargs.get("num")
        context = args[1] if len(args) > 1 else kwargs.get("context")
        # The density is closed-form and runs no program, which would show Pyro the parameters.
        with owner(model, type(self).__name__).shown_to_pyro():
            log_likelihood = self.learner(model).log_likelihood(x, context).value.sum()
        return -log_likelihood * (1.0 if num is None else num / len(x))

    def stepper(self, model: Program, guide: Program, options: StepOptions) -> Stepper:
        """Iterations of L-BFGS; see the class."""
        return QuasiNewtonStepper(self, model, guide, options.parameters)

    def learner(self, model: Program) -> HasPenalisedLikelihood:
        """The model that owns the program.

        Raises:
            CapabilityError: it has no prior or no log-likelihood.
        """
        found, purpose = owner(model, type(self).__name__), type(self).__name__
        require(found, HasPenalisedLikelihood, purpose)
        return cast(HasPenalisedLikelihood, found)


class QuasiNewtonStepper:
    """One iteration of L-BFGS after another.

    Args:
        objective: what is minimised.
        model: the model.
        guide: its guide.
        parameters: what is learnt.
    """

    def __init__(
        self, objective: PenalisedLikelihood, model: Program, guide: Program, parameters: list[nn.Parameter]
    ) -> None:
        self.objective, self.model, self.guide = objective, model, guide
        self.rounding = rounding = max((torch.finfo(p.dtype).eps for p in parameters), default=0.0)
        self.last, self.idle = math.inf, 0
        self.optimizer = torch.optim.LBFGS(
            parameters,
            lr=1.0,
            max_iter=1,
            max_eval=25,
            history_size=20,
            tolerance_change=rounding / 100,  # of a loss of the order of one
            line_search_fn="strong_wolfe",
        )

    def step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One iteration on all data; figures ``loss`` and ``penalty``, as means a datum."""
        num, figures = len(args[0]), dict[str, Tensor]()

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            misfit = self.objective.validation_loss(self.model, self.guide, *args, **kwargs) / num
            penalty = -self.objective.learner(self.model).log_prior() / num
            (misfit + penalty).backward()
            if not figures:
                figures.update(loss=misfit.detach(), penalty=penalty.detach())
            return (misfit + penalty).detach()

        self.optimizer.step(closure)
        now = float(figures["loss"] + figures["penalty"])
        gained = self.last - now > 10 * self.rounding * max(1.0, abs(now))
        self.idle = 0 if gained or not math.isfinite(now) else self.idle + 1
        self.last = now
        return figures

    @property
    def settled(self) -> bool:
        """Whether the last steps gained nothing, so that no further one will on these data."""
        return self.idle >= _IDLE

    def state_dict(self) -> dict[str, Any]:
        """What L-BFGS remembers of the curvature, and how long it has gained nothing."""
        return {"optimizer": self.optimizer.state_dict(), "last": self.last, "idle": self.idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state given by :meth:`state_dict`."""
        # In memory of its own: where a file's tensors are not aligned, dot products differ in the last bit.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.last, self.idle = state.get("last", math.inf), state.get("idle", 0)
