"""What a training objective is, and the step that the trainer repeats."""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ppgen.contract import GenerativeModel
from ppgen.errors import ConfigError, TrainingWarning
from ppgen.inference.memory import is_out_of_memory

Program = Callable[..., Any]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def _full_precision() -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class StepOptions:
    """What the trainer lends to the steps of an objective.

    Attributes:
        parameters: every parameter that is to be learnt.
        make_optimizer: makes the optimiser of some of them, at the trainer's learning rate.
        clip_norm: largest norm of a gradient; ``None`` for any.
        autocast: makes the context in which networks run in lower precision.
    """

    parameters: list[nn.Parameter]
    make_optimizer: OptimizerFactory
    clip_norm: float | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = _full_precision


class Stepper(Protocol):
    """One training step and the state that it carries from step to step.

    A stepper whose attribute ``settled`` is true has nothing left to improve, and ends the run.
    """

    def step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Improve the model on one batch; figures by name, detached; ``loss`` is among them."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers that resume the steps exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state given by :meth:`state_dict`."""


class Objective(ABC):
    """A Pyro loss: ``loss(model, guide, *args, **kwargs)``, minimised in expectation.

    An instance is callable with the same arguments, so it serves as
    ``pyro.infer.SVI(model, guide, optim, loss=objective)``. As in Pyro, the loss is a total
    over the data of the batch (scaled to the population where a plate subsamples).

    Attributes:
        full_batch: whether each step wants all data at once (EM).
        needs_param_sites: whether the loss looks for parameters among Pyro's ``param`` sites.
        additive: whether the loss of a batch is the sum over its rows wherever all sites of the pair
            are inside the data plate, so that a batch too large for memory may be cut.
        loss_name: what the training loss is; other than ``"loss"`` where ``validation_loss`` measures
            something else, so that the two have no common axis.
        default_epochs: passes over the data where :func:`ppgen.fit` is told neither epochs nor seconds;
            ``None`` leaves it to the trainer.
    """

    full_batch: bool = False
    needs_param_sites: bool = False
    additive: bool = False
    loss_name: str = "loss"
    default_epochs: int | None = None

    @abstractmethod
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """A scalar whose gradient the step follows."""

    def __call__(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, in the form that ``pyro.infer.SVI`` expects."""
        return self.loss(model, guide, *args, **kwargs)

    def validation_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor | None:
        """The figure that early stopping watches, a total over the batch; ``None`` if there is none.

        Called without gradients.
        """
        return self.loss(model, guide, *args, **kwargs)

    def diagnose(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> list[str]:
        """Sentences on what deserves a look in a trained model, found on one batch; none by default."""
        return []

    def stepper(self, model: Program, guide: Program, options: StepOptions) -> Stepper:
        """The step that the trainer repeats; by default a gradient step on :meth:`loss`."""
        return GradientStepper(self, model, guide, options)

    def state_dict(self) -> dict[str, Any]:
        """What the objective itself carries from step to step (persistent chains); nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state given by :meth:`state_dict`."""
        if state:
            raise ConfigError(f"state: {type(self).__name__} carries none, got {sorted(state)}")


class GradientStepper:
    """Loss, backward, clip, one optimiser over all parameters.

    Where memory runs out and the loss is a sum over rows, the batch is cut into smaller and
    smaller parts whose gradients are added up: the same gradient up to rounding, given the same
    noise. The number of rows that fit is remembered.
    """

    def __init__(self, objective: Objective, model: Program, guide: Program, options: StepOptions) -> None:
        self.objective, self.model, self.guide, self.options = objective, model, guide, options
        self.optimizer = options.make_optimizer(options.parameters)
        self.most_rows = sys.maxsize

    def step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One gradient step; ``loss`` is a mean over the first argument's rows."""
        figures = {"loss": self._differentiate(*args, **kwargs)}
        if self.options.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.options.parameters, self.options.clip_norm)
            figures["grad_norm"] = norm
        self.optimizer.step()
        return figures

    def backward(self, num: int, /, *args: Any, **kwargs: Any) -> Tensor:
        """Add the gradient of ``loss / num`` to that of the parameters; returns ``loss / num``."""
        with self.options.autocast():
            loss = self.objective.loss(self.model, self.guide, *args, **kwargs) / num
        loss.backward()
        return loss.detach()

    def _differentiate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Put the gradient of the mean loss into the parameters; returns the mean loss."""
        num = len(args[0])
        while True:
            self.optimizer.zero_grad()
            try:
                if num <= self.most_rows:
                    return self.backward(num, *args, **kwargs)
                parts = zip(*(a.split(self.most_rows) for a in args), strict=True)
                return torch.stack([self.backward(num, *part, **kwargs) for part in parts]).sum()
            except (RuntimeError, MemoryError) as error:
                rows = min(num, self.most_rows)
                if not is_out_of_memory(error) or rows == 1 or not self._may_cut():
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed pass alive.
            self.most_rows = -(-rows // 2)
            torch.cuda.empty_cache()
            warnings.warn(
                f"out of memory on a batch of {rows}: its gradient is now summed over parts of "
                f"{self.most_rows}; a batch_size of {self.most_rows} spares that",
                TrainingWarning,
                stacklevel=2,
            )

    def _may_cut(self) -> bool:
        own = getattr(self.model, "__self__", None)
        if not self.objective.additive or not isinstance(own, GenerativeModel) or own.has_priors:
            return False
        return not getattr(own, "shares_latents", False)  # a wrapped model may have latents of all data

    def state_dict(self) -> dict[str, Any]:
        """State of the optimiser and of the objective."""
        return {"optimizer": self.optimizer.state_dict(), "objective": self.objective.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state given by :meth:`state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])


def owner(model: Program, purpose: str) -> GenerativeModel:
    """The :class:`~ppgen.contract.GenerativeModel` whose bound ``model`` method this is.

    Raises:
        ConfigError: ``model`` is a plain function; the objective named in ``purpose``
            needs more than a Pyro program.
    """
    found = getattr(model, "__self__", model)
    if not isinstance(found, GenerativeModel):
        raise ConfigError(
            f"model: {purpose} needs the model method of a ppgen GenerativeModel, "
            f"got {type(found).__name__}; "
            "pass that, or train plain Pyro functions with ELBO()"
        )
    return found
