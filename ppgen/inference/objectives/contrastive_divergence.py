r"""Contrastive divergence, from the data or with persistent chains, for energies with Gibbs sweeps.

The gradient of minus the mean log-likelihood is a difference of two means of the gradient of
the free energy F,

.. math:: -\nabla \overline{\log p(x)} = \overline{\nabla F}\,|_{\text{data}} - E_{p}[\nabla F] .

CD-k replaces the model's expectation by states that block Gibbs reaches from the data in k
sweeps; it is biased, and usually follows the likelihood well. *Persistent* CD keeps the chains
from step to step, so that they stay close to the model while it moves slowly; it follows the
likelihood where the learning rate falls to zero. Restricted Boltzmann machines sum their hidden units
out of F; a model without latents, such as a Markov random field, has its energy in place of F and keeps
chains of data. The loss is a surrogate: its gradient is the
estimate, its value (data against chains) is no likelihood and need not fall.

References: Hinton 2002 (CD); Younes 1989 and Tieleman 2008 (persistent chains); Hinton 2010,
*A practical guide to training restricted Boltzmann machines*.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from pyro import poutine
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.nn.functional import linear

from ppgen.contract import GenerativeModel, HasLogLikelihood, Kind
from ppgen.distributions.boltzmann import Harmonium
from ppgen.errors import CapabilityError, ConfigError, ShapeError
from ppgen.inference.objectives.base import (
    GradientStepper,
    Objective,
    Program,
    StepOptions,
    Stepper,
    owner,
)
from ppgen.inference.objectives.pseudo_likelihood import HasPseudoLikelihood
from ppgen.ops.binary import softplus

_REPORT_EVERY = 10  # steps in closed form between two evaluations of the figure that they report


@runtime_checkable
class HasHarmonium(Protocol):
    """A model over x that is a restricted Boltzmann machine."""

    def harmonium(self) -> Harmonium:
        """The machine over the flattened datum, holding the parameters themselves."""


@runtime_checkable
class HasGibbs(Protocol):
    """A model with an energy of x and Gibbs sweeps over x."""

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """E(x) in nats, shape (N,)."""

    def gibbs(self, x: Tensor, num_steps: int = 1, *, seed: int | None = None) -> Tensor:
        """Data ``num_steps`` sweeps further on; like x."""


class ContrastiveDivergence(Objective):
    """Data against fantasies of k sweeps of block Gibbs.

    It runs under :func:`ppgen.fit` and as ``pyro.infer.SVI(rbm.model, rbm.guide, optim,
    loss=ContrastiveDivergence(k=1))``. For binary visible units the trainer's step works the
    gradient out in closed form, without autograd. With ``torch.optim.SGD`` (momentum and weight
    decay included; no dampening, Nesterov or clipping) it also folds the update into the
    matrix products, which is the fastest way to train these machines on small data. The closed
    form runs in the parameters' dtype whatever ``autocast`` says.

    Args:
        k: sweeps of block Gibbs a step.
        persistent: keep the chains from step to step (PCD) instead of starting at the data.
        num_chains: number of persistent chains; as many as the first batch has data by default.

    Attributes:
        chains: hidden states of the persistent chains, shape ``(num_chains, H)``, or data,
            ``(num_chains, *event_shape)``, of a model without hidden units; ``None`` before the first
            step. They start from the first batch.

    Raises:
        ConfigError: a number out of its range, or ``num_chains`` without ``persistent``.
    """

    loss_name = "free-energy gap"

    def __init__(self, k: int = 1, *, persistent: bool = False, num_chains: int | None = None) -> None:
        if k < 1:
            raise ConfigError(f"k: expected one sweep of block Gibbs or more, got {k}")
        if num_chains is not None and not persistent:
            raise ConfigError(
                f"num_chains: chains that start at the data are as many as the data, got {num_chains}; "
                "pass persistent=True or leave it out"
            )
        if num_chains is not None and num_chains < 1:
            raise ConfigError(f"num_chains: expected a positive integer, got {num_chains}")
        self.k, self.persistent, self.num_chains = k, persistent, num_chains
        self.chains: Tensor | None = None

    def loss(
        self,
        model: Program,
        guide: Program,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> Tensor:
        """Free energy of the data minus that of as many fantasies, in nats, a total over the data.

        Args:
            model: the ``model`` method of a restricted Boltzmann machine, or of a model with an energy and
                Gibbs sweeps.
            guide: its ``guide`` method, which tells Pyro of the parameters.
            x: data, shape ``(B, *event_shape)``.
            context: none; for the error that says so.
            num: size of the population that the batch stands for; the batch itself by default.

        Raises:
            CapabilityError: the model is neither.
        """
        family = owner(model, "ContrastiveDivergence")
        if not isinstance(family, HasHarmonium) and isinstance(family, HasGibbs):
            family.check_event(x)
            family.check_context(context)
            # pyro.infer.SVI learns of the parameters by watching.
            with family.shown_to_pyro() if am_i_wrapped() else nullcontext():
                return self._energy_gap(family, x) * (num or len(x))
        _, harmonium = _machine(model, x, context)
        if am_i_wrapped():
            # pyro.infer.SVI learns of the parameters from the programs; this loss needs none of them.
            with poutine.block(hide_types=["sample"]):
                guide(x, context)
        v = x.flatten(1)
        fantasies = self.fantasies(harmonium, v)
        contrast: Tensor = harmonium.free_energy(v).mean() - harmonium.free_energy(fantasies).mean()
        return contrast * (num or len(x))

    def validation_loss(
        self,
        model: Program,
        guide: Program,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> Tensor | None:
        """What early stopping watches, a total over the data in nats.

        Minus the log-likelihood where log Z can be enumerated; else minus the log
        *pseudo*-likelihood for binary visible units, a different number on a different scale; and
        ``None`` for real visible units with too many hidden ones.
        """
        plain = owner(model, "ContrastiveDivergence")
        if not isinstance(plain, HasHarmonium):
            if isinstance(plain, HasLogLikelihood) and plain.density is Kind.EXACT:
                return -plain.log_likelihood(x).value.sum()
            return -plain.pseudo_log_likelihood(x).sum() if isinstance(plain, HasPseudoLikelihood) else None
        family, harmonium = _machine(model, x, context)
        if isinstance(family, HasLogLikelihood) and harmonium.enumerable:
            found = family.log_likelihood(x)
            if found.kind is Kind.EXACT:
                return -found.value.sum()
        if harmonium.scale is not None:
            return None
        return -harmonium.pseudo_log_likelihood(x.flatten(1)).sum()

    def fantasies(self, harmonium: Harmonium, v: Tensor) -> Tensor:
        """Visible states k sweeps on, from the data v ``(B, D)`` or the persistent chains; no gradient."""
        start = self.start(harmonium, v) if self.persistent else harmonium.sample_hidden(v)
        fantasies, h = harmonium.gibbs(start, self.k)
        if self.persistent:
            self.chains = h
        return fantasies

    def _energy_gap(self, family: HasGibbs, x: Tensor) -> Tensor:
        """Mean energy of data minus that of fantasies, of a model without hidden units."""
        start = x
        if self.persistent and self.chains is None:
            start = x[torch.arange(self.num_chains or len(x), device=x.device) % len(x)]
        elif self.persistent and self.chains is not None:
            start = self.chains.to(x)
        if start.shape[1:] != x.shape[1:]:
            raise ShapeError(
                f"chains: the persistent chains are of shape {tuple(start.shape[1:])}, the data of "
                f"{tuple(x.shape[1:])}; use one ContrastiveDivergence a model"
            )
        fantasies = family.gibbs(start, self.k)
        if self.persistent:
            self.chains = fantasies
        return family.energy(x).mean() - family.energy(fantasies).mean()

    def start(self, harmonium: Harmonium, v: Tensor) -> Tensor:
        """The persistent chains, made from data v ``(B, D)`` if there are none yet.

        Raises:
            ShapeError: the chains belong to a machine with another number of hidden units.
        """
        if self.chains is None:
            rows = torch.arange(self.num_chains or len(v), device=v.device) % len(v)
            self.chains = harmonium.sample_hidden(v[rows])
        if self.chains.shape[1] != harmonium.num_hidden:
            raise ShapeError(
                f"chains: the persistent chains have {self.chains.shape[1]} hidden units, the machine has "
                f"{harmonium.num_hidden}; use one ContrastiveDivergence a model"
            )
        self.chains = self.chains.to(harmonium.weight)
        return self.chains

    def stepper(self, model: Program, guide: Program, options: StepOptions) -> Stepper:
        """A step in closed form for binary visible units, by autograd otherwise."""
        own = owner(model, "ContrastiveDivergence")
        if isinstance(own, HasHarmonium):
            machine = own.harmonium()
            ours = {id(p) for p in (machine.weight, machine.visible_bias, machine.hidden_bias)}
            if machine.scale is None and ours == {id(p) for p in options.parameters}:
                return ClosedFormStepper(self, model, guide, options)
        return GradientStepper(self, model, guide, options)

    def state_dict(self) -> dict[str, Any]:
        """The persistent chains, if there are any."""
        return {} if self.chains is None else {"chains": self.chains.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the chains given by :meth:`state_dict`."""
        if set(state) - {"chains"}:
            raise ConfigError(f"state: expected chains or nothing, got {sorted(state)}")
        self.chains = state["chains"].clone() if "chains" in state else None


class ClosedFormStepper(GradientStepper):
    r"""The step of :class:`ContrastiveDivergence` for binary visible units, in a few matrix products.

    With rows of data and fantasies stacked in V, hidden probabilities P and row weights s of
    :math:`-1/B` and :math:`+1/M`, the gradient of the mean loss is
    :math:`V^\top \mathrm{diag}(s) P` for W, :math:`V^\top s` and :math:`P^\top s` for the biases.
    """

    objective: ContrastiveDivergence

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.machine = _harmonium(owner(self.model, "ContrastiveDivergence"))
        self.work: _Workspace | None = None
        self.steps, self.last_loss = 0, cast(Tensor | None, None)
        self._told_schedulers = False

    def step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One step; ``loss`` is the mean free energy of the data minus that of the fantasies, in nats.

        The step does not need that figure: it is worked out in every tenth step and repeated between.
        """
        if len(args) != 1 or kwargs:
            return super().step(*args, **kwargs)
        with torch.no_grad():
            reports = self.steps % _REPORT_EVERY == 0 or self.last_loss is None
            work = self._phases(args[0].flatten(1), with_sums=reports)
            if reports:
                own = torch.dot(work.all.visible @ self.machine.visible_bias, work.sign)
                self.last_loss = torch.dot(work.all.log_sums, work.sign).add_(own)
            self.steps += 1
            figures = {"loss": cast(Tensor, self.last_loss)}
            group = self._plain_sgd()
            if group is None:
                return figures | self._optimise(work)
            self._descend(work, group)
            return figures

    def state_dict(self) -> dict[str, Any]:
        """State of the optimiser, of the objective, and of what is reported."""
        state = super().state_dict() | {"steps": self.steps}
        return state if self.last_loss is None else state | {"last_loss": self.last_loss.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state given by :meth:`state_dict`."""
        super().load_state_dict(state)
        self.steps = int(state["steps"])
        self.last_loss = state["last_loss"].clone() if "last_loss" in state else None

    def _phases(self, v: Tensor, *, with_sums: bool) -> _Workspace:
        """Data above, fantasies below, with the hidden probabilities of both."""
        machine, objective = self.machine, self.objective
        chains = objective.start(machine, v) if objective.persistent else None
        work = self.work
        if work is None or work.key != (len(v), len(v) if chains is None else len(chains), v.device):
            work = self.work = _Workspace(machine, v, chains)
        h = work.hidden_state if chains is None else chains
        work.data.visible.copy_(v)
        if chains is None:
            work.data.activate(machine, with_sums=with_sums)
        source = work.data
        for sweep in range(objective.k):
            last = sweep == objective.k - 1
            work.noise.uniform_()
            if chains is None:
                torch.gt(source.hidden, work.hidden_noise, out=h)
                source = work.fantasies
            probs = linear(h, machine.weight, machine.visible_bias).sigmoid_()
            torch.gt(probs, work.visible_noise, out=work.fantasies.visible)
            # Data and fantasies share one matrix product where both are due.
            band = work.all if last and chains is not None else work.fantasies
            band.activate(machine, with_sums=with_sums and last)
            if chains is not None:
                torch.gt(work.fantasies.hidden, work.hidden_noise, out=h)
        return work

    def _plain_sgd(self) -> dict[str, Any] | None:
        """The options of the optimiser, if its step is one that can be folded."""
        optimizer = self.optimizer
        if type(optimizer) is not torch.optim.SGD or self.options.clip_norm is not None:
            return None
        group: dict[str, Any] = optimizer.param_groups[0]
        special = group["nesterov"] or group["maximize"] or group["dampening"] != 0
        return None if special or len(optimizer.param_groups) > 1 else group

    def _descend(self, work: _Workspace, group: dict[str, Any]) -> None:
        """One step of ``torch.optim.SGD``, with the gradient of W never stored."""
        if not self._told_schedulers:
            # A step without gradients moves nothing; torch's schedulers want to have seen one.
            self.optimizer.zero_grad()
            self.optimizer.step()
            self._told_schedulers = True
        rate, momentum, decay = float(group["lr"]), group["momentum"], group["weight_decay"]
        parameters = [self.machine.weight, self.machine.visible_bias, self.machine.hidden_bias]
        if momentum == 0:
            work.add_gradient(parameters, kept=1 - rate * decay, factor=-rate)
            return
        velocities = [self._velocity(p) for p in parameters]
        work.add_gradient(velocities, kept=momentum, factor=1.0)
        for parameter, velocity in zip(parameters, velocities, strict=True):
            if decay != 0:
                velocity.add_(parameter, alpha=decay)
            parameter.add_(velocity, alpha=-rate)

    def _velocity(self, parameter: Tensor) -> Tensor:
        """The optimiser's momentum buffer, made where there is none: zero then is what torch starts from."""
        state = self.optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _optimise(self, work: _Workspace) -> dict[str, Tensor]:
        """Hand the gradient to the optimiser."""
        figures = {}
        parameters = [self.machine.weight, self.machine.visible_bias, self.machine.hidden_bias]
        gradients = [torch.zeros_like(p) for p in parameters]
        work.add_gradient(gradients, kept=0.0, factor=1.0)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.options.clip_norm is not None:
            figures["grad_norm"] = nn.utils.clip_grad_norm_(self.options.parameters, self.options.clip_norm)
        self.optimizer.step()
        return figures


@dataclass(frozen=True)
class _Band:
    """Some rows of the work: visible ``(R, D)``, hidden ``(R, H)``, sums of log(1 + exp) ``(R,)``."""

    visible: Tensor
    hidden: Tensor
    log_sums: Tensor

    def rows(self, which: slice) -> _Band:
        """A view of some of the rows."""
        return _Band(self.visible[which], self.hidden[which], self.log_sums[which])

    def activate(self, machine: Harmonium, *, with_sums: bool) -> None:
        """Fill the hidden probabilities and, if asked, what the free energy sums over hidden units."""
        torch.addmm(machine.hidden_bias, self.visible, machine.weight, out=self.hidden)
        if with_sums:
            torch.sum(softplus(self.hidden), 1, out=self.log_sums)
        self.hidden.sigmoid_()


class _Workspace:
    """Memory of one step, kept while batches have one size: B rows of data above M of fantasies."""

    def __init__(self, machine: Harmonium, v: Tensor, chains: Tensor | None) -> None:
        like, size = machine.weight, len(v)
        num_chains = size if chains is None else len(chains)
        d, h = like.shape
        self.key = size, num_chains, v.device
        rows = size + num_chains
        self.all = _Band(like.new_empty(rows, d), like.new_empty(rows, h), like.new_empty(rows))
        self.data, self.fantasies = self.all.rows(slice(size)), self.all.rows(slice(size, None))
        self.hidden_state = like.new_empty(num_chains, h)
        self.noise = like.new_empty(num_chains * (d + h))
        self.visible_noise = self.noise[: num_chains * d].view(num_chains, d)
        self.hidden_noise = self.noise[num_chains * d :].view(num_chains, h)
        self.sign = torch.cat(
            [like.new_full((size,), -1 / size), like.new_full((num_chains,), 1 / num_chains)]
        )
        self.sign_column = self.sign[:, None]
        self.visible_transposed, self.hidden_transposed = self.all.visible.t(), self.all.hidden.t()

    def add_gradient(self, to: list[Tensor], *, kept: float, factor: float) -> None:
        """``kept * to + factor * gradient`` in place, for W, b and c; the visible rows take their weights."""
        weight, visible_bias, hidden_bias = to
        visible_bias.addmv_(self.visible_transposed, self.sign, beta=kept, alpha=factor)
        hidden_bias.addmv_(self.hidden_transposed, self.sign, beta=kept, alpha=factor)
        self.all.visible.mul_(self.sign_column)
        weight.addmm_(self.visible_transposed, self.all.hidden, beta=kept, alpha=factor)


def _harmonium(family: GenerativeModel) -> Harmonium:
    if not isinstance(family, HasHarmonium):
        raise CapabilityError(
            f"model: contrastive divergence trains restricted Boltzmann machines and models with energy() "
            f"and gibbs(), {type(family).__name__} is none; leave the objective to the family, or use ELBO()"
        )
    return family.harmonium()


def _machine(model: Program, x: Tensor, context: Tensor | None) -> tuple[GenerativeModel, Harmonium]:
    family = owner(model, "ContrastiveDivergence")
    harmonium = _harmonium(family)
    family.check_event(x)
    family.check_context(context)
    return family, harmonium
