"""Any ELBO of ``pyro.infer`` as an objective of the trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppgen.inference.objectives.base import GradientStepper, Objective, Program, StepOptions, Stepper


class PyroObjective(Objective):
    """A Pyro ELBO, stepped through its own ``loss_and_grads``, which every one of them has.

    Args:
        elbo: an instance of a class such as ``pyro.infer.TraceGraph_ELBO``.
    """

    needs_param_sites = True

    def __init__(self, elbo: Any) -> None:
        self.elbo = elbo

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Pyro's differentiable loss, in nats."""
        return self.elbo.differentiable_loss(model, guide, *args, **kwargs)

    def validation_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor | None:
        """Pyro's loss, in nats."""
        return torch.as_tensor(self.elbo.loss(model, guide, *args, **kwargs))

    def stepper(self, model: Program, guide: Program, options: StepOptions) -> Stepper:
        """Gradient steps with Pyro's own gradient."""
        return _PyroStepper(self, model, guide, options)


class _PyroStepper(GradientStepper):
    objective: PyroObjective

    def backward(self, num: int, /, *args: Any, **kwargs: Any) -> Tensor:
        """Pyro's gradient, of a total over the data, made a mean."""
        with self.options.autocast():
            loss = self.objective.elbo.loss_and_grads(self.model, self.guide, *args, **kwargs)
        for parameter in self.options.parameters:
            if parameter.grad is not None:
                parameter.grad /= num
        return torch.as_tensor(loss / num)
