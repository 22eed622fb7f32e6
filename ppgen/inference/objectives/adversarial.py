r"""Adversarial training: a generator against a critic, for models that have no likelihood.

The model is the generator's Pyro program; beside it stands a network ``critic`` with
:math:`D(x, c)`, a logit or a score for each datum. With real data x and fakes
:math:`\tilde x = G(z)` the players minimise, as means over the batch,

===================  =====================================================  =========================
loss                 critic                                                 generator
===================  =====================================================  =========================
``non_saturating``   softplus(-D(x)) + softplus(D(fake))                    softplus(-D(fake))
``hinge``            relu(1 - D(x)) + relu(1 + D(fake))                     -D(fake)
``wgan_gp``          D(fake) - D(x) + penalty (norm grad D(mix) - 1)^2      -D(fake)
===================  =====================================================  =========================

where ``mix`` lies uniformly between a datum and a fake. Every critic's loss takes
:math:`r_1 / 2 \; E|\nabla D(x)|^2` on top. The best critic of ``non_saturating`` is
:math:`\log p(x) - \log q(x)`, so that sigmoid(D) = p / (p + q).

References: Goodfellow et al. 2014; Gulrajani et al. 2017 (``wgan_gp``); Miyato et al. 2018
(``hinge``, spectral normalisation); Mescheder, Geiger & Nowozin 2018 (``r1``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ppgen.contract import GenerativeModel
from ppgen.errors import CapabilityError, ConfigError
from ppgen.inference.objectives.base import Objective, Program, StepOptions, owner

Loss = Literal["non_saturating", "hinge", "wgan_gp"]
Critic = Callable[[Tensor, Tensor | None], Tensor]


class Adversarial(Objective):
    """The two-player game between a model and its ``critic`` network.

    :func:`ppgen.fit` plays it in turns, with one optimiser a player. As a plain Pyro loss
    (``pyro.infer.SVI(gan.model, gan.guide, optim, loss=Adversarial())``) both players move at
    once: the gradient of :meth:`loss` is each player's own, for the other is held fixed.

    Adam's usual momentum of 0.9 makes the players circle; use ``betas=(0.5, 0.9)`` or
    ``(0.0, 0.9)``, for instance
    ``ppgen.fit(gan, data, optimizer=functools.partial(torch.optim.Adam, betas=(0.5, 0.9)))``.

    Args:
        loss: the game; see the table of the module.
        critic_steps: turns of the critic for each turn of the generator, one batch a turn;
            1 by default, 5 for ``wgan_gp``.
        penalty: weight of the gradient penalty of ``wgan_gp``.
        r1: weight of the squared gradient at the data; 0 for none.

    Raises:
        ConfigError: an unknown loss, or a number out of its range.
    """

    def __init__(
        self,
        loss: Loss = "non_saturating",
        *,
        critic_steps: int | None = None,
        penalty: float = 10.0,
        r1: float = 0.0,
    ) -> None:
        if loss not in get_args(Loss):
            raise ConfigError(f"loss: expected one of {', '.join(get_args(Loss))}, got {loss!r}")
        if critic_steps is None:
            critic_steps = 5 if loss == "wgan_gp" else 1
        if critic_steps < 1:
            raise ConfigError(f"critic_steps: expected a positive integer, got {critic_steps}")
        for name, weight in (("penalty", penalty), ("r1", r1)):
            if weight < 0:
                raise ConfigError(f"{name}: expected a weight of 0 or more, got {weight}")
        self.game, self.critic_steps, self.penalty, self.r1 = loss, critic_steps, penalty, r1

    def loss(
        self,
        model: Program,
        guide: Program,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> Tensor:
        """Both players' losses, a total over the data; its gradient moves both at once.

        ``critic_steps`` plays no part here: there is one batch, and one turn.

        Args:
            model: the ``model`` method of a family with a ``critic``.
            guide: not used; an adversarial game needs no posterior.
            x: data, shape ``(B, *event_shape)``.
            context: one row a datum, where the model is conditional.
            num: size of the population that the batch stands for; the batch itself by default.

        Raises:
            CapabilityError: the model has no critic.
        """
        family, critic = _players(model)
        family.check_event(x)
        fakes = model(num=len(x), context=context)
        critic_loss, _ = self.critic_loss(critic, x, fakes.detach(), context)
        total: Tensor = critic_loss + self.generator_loss(_held_fixed(critic), fakes, context)
        return total * (num or len(x))

    def validation_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor | None:
        """None: the loss of a game says nothing about the distance to the data."""

    def diagnose(
        self,
        model: Program,
        guide: Program,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> list[str]:
        """A sentence where the draws cover less than a fifth of the data: mode collapse, or no learning yet.

        Coverage is the share of data that have a draw nearer than their fifth neighbour in the
        data (Naeem et al. 2020), with as many draws as data; it needs a batch of 20 or more.
        """
        if len(x) < 20:
            return []
        covered = _coverage(x, model(num=len(x), context=context))
        if covered >= 0.2:
            return []
        return [
            f"the draws cover {covered:.0%} of the data: mode collapse, or too short a training; train "
            "longer, raise r1, or take loss='wgan_gp'"
        ]

    def critic_loss(
        self, critic: Critic, x: Tensor, fakes: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss, a mean over the batch, and figures of its state.

        Args:
            critic: D(x, context), one number a datum.
            x: data, shape ``(B, *event_shape)``.
            fakes: what the generator made, detached; same shape.
            context: one row for each datum and its fake.

        Returns:
            A scalar, and detached scalars: ``critic_accuracy`` (the share of data and fakes told
            right by the sign of D; 0.5 is a generator that cannot be told from the data), or
            ``wasserstein`` (for ``wgan_gp``: estimate of the Wasserstein-1 distance, too small
            as long as the critic learns), and ``gradient_penalty`` where there is one.
        """
        real, fake = critic(x, context), critic(fakes, context)
        figures: dict[str, Tensor] = {}
        if self.game == "wgan_gp":
            loss = fake.mean() - real.mean()
            figures["wasserstein"] = -loss.detach()
            penalty = gradient_penalty(critic, x, fakes, context)
            loss = loss + self.penalty * penalty
            figures["gradient_penalty"] = penalty.detach()
        else:
            cost = functional.softplus if self.game == "non_saturating" else _hinge
            loss = cost(-real).mean() + cost(fake).mean()
            right = (real > 0).to(real.dtype).mean() + (fake < 0).to(real.dtype).mean()
            figures["critic_accuracy"] = right.detach() / 2
        if self.r1 > 0:
            slope = _squared_slopes(critic, x, context).mean()
            loss = loss + self.r1 / 2 * slope
            figures["squared_slope"] = slope.detach()
        return loss, figures

    def generator_loss(self, critic: Critic, fakes: Tensor, context: Tensor | None = None) -> Tensor:
        """The generator's loss, a mean over the batch; ``critic`` with its parameters held fixed."""
        score = critic(fakes, context)
        return functional.softplus(-score).mean() if self.game == "non_saturating" else -score.mean()

    def stepper(self, model: Program, guide: Program, options: StepOptions) -> AdversarialStepper:
        """Turns of the two players, with one optimiser each."""
        return AdversarialStepper(self, model, options)


class AdversarialStepper:
    """One turn of the critic a batch; the generator's turn follows every ``critic_steps``-th of them.

    Each turn of the critic sees a fresh batch and fresh fakes; the generator then answers the
    moved critic with the same fakes. The first step is a turn of both.
    """

    def __init__(self, objective: Adversarial, model: Program, options: StepOptions) -> None:
        self.objective, self.model, self.options = objective, model, options
        self.family, self.critic = _players(model)
        owned = {id(p) for p in self.critic.parameters()}
        self.critic_parameters = [p for p in options.parameters if id(p) in owned]
        self.generator_parameters = [p for p in options.parameters if id(p) not in owned]
        if not self.critic_parameters or not self.generator_parameters:
            raise ConfigError(
                f"parameters: a game needs something to learn on both sides, got "
                f"{len(self.critic_parameters)} tensors of the critic and "
                f"{len(self.generator_parameters)} of the generator"
            )
        self.critic_optimizer = options.make_optimizer(self.critic_parameters)
        self.generator_optimizer = options.make_optimizer(self.generator_parameters)
        self.turns = 0
        self.last_generator_loss = self.critic_parameters[0].new_zeros(())

    def step(self, x: Tensor, context: Tensor | None = None, *, num: int | None = None) -> dict[str, Tensor]:
        """Play one turn.

        Args:
            x: data, shape ``(B, *event_shape)``.
            context: one row a datum, where the model is conditional.
            num: size of the population; a mean over the batch does not depend on it.

        Returns:
            ``loss`` (the sum of both), ``critic_loss``, ``generator_loss`` (of the generator's
            last turn), all means over the batch, and the figures of
            :meth:`Adversarial.critic_loss`.
        """
        self.family.check_event(x)
        generator_plays = self.turns % self.objective.critic_steps == 0
        with self.options.autocast():
            with torch.set_grad_enabled(generator_plays):
                fakes = self.model(num=len(x), context=context)
            critic_loss, figures = self.objective.critic_loss(self.critic, x, fakes.detach(), context)
        self._descend(critic_loss, self.critic_parameters, self.critic_optimizer)
        if generator_plays:
            with self.options.autocast():
                generator_loss = self.objective.generator_loss(_held_fixed(self.critic), fakes, context)
            self._descend(generator_loss, self.generator_parameters, self.generator_optimizer)
            self.last_generator_loss = generator_loss.detach()
        self.turns += 1
        critic_loss = critic_loss.detach()
        return {
            "loss": critic_loss + self.last_generator_loss,
            "critic_loss": critic_loss,
            "generator_loss": self.last_generator_loss,
            **figures,
        }

    def state_dict(self) -> dict[str, Any]:
        """State of both optimisers, whose turn it is, and the generator's last loss."""
        return {
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "turns": self.turns,
            "last_generator_loss": self.last_generator_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state given by :meth:`state_dict`."""
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.turns = state["turns"]
        self.last_generator_loss = state["last_generator_loss"].to(self.last_generator_loss)

    def _descend(
        self, loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        optimizer.zero_grad()
        loss.backward()
        if self.options.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.options.clip_norm)
        optimizer.step()


def gradient_penalty(critic: Critic, x: Tensor, fakes: Tensor, context: Tensor | None = None) -> Tensor:
    r"""Mean of :math:`(|\nabla D(\hat x)| - 1)^2` at points between data and fakes; a scalar.

    Each :math:`\hat x` is drawn uniformly on the line from a datum to its fake (Gulrajani et al.
    2017). The critic must treat the data of a batch one by one: no batch normalisation.
    """
    weight = torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
    squared = _squared_slopes(critic, torch.lerp(fakes, x, weight), context)
    # The norm has no gradient at zero, where a saturated critic can be.
    return (squared.clamp_min(1e-12).sqrt() - 1).square().mean()


def _squared_slopes(critic: Critic, x: Tensor, context: Tensor | None) -> Tensor:
    """Squared norm of the critic's gradient at each datum, shape (B,); differentiable in the critic."""
    differentiable = torch.is_grad_enabled()
    # Compiled networks cannot be differentiated twice: take the plain one.
    plain = critic.forward if isinstance(critic, nn.Module) else critic
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(plain(x, context).sum(), x, create_graph=differentiable)
    return gradient.flatten(1).square().sum(-1)


def _hinge(score: Tensor) -> Tensor:
    return functional.relu(1 + score)


def _coverage(x: Tensor, fakes: Tensor, neighbours: int = 5) -> float:
    """Share of the data with a fake nearer than their own n-th nearest datum."""
    x, fakes = x.flatten(1), fakes.flatten(1)
    # The first of the sorted distances is a datum's to itself.
    radius = torch.cdist(x, x).sort(-1).values[:, neighbours]
    return float((torch.cdist(x, fakes).min(-1).values <= radius).double().mean())


def _players(model: Program) -> tuple[GenerativeModel, nn.Module]:
    """The family that a program belongs to, and its critic network."""
    family = owner(model, "Adversarial")
    critic = getattr(family, "critic", None)
    if not isinstance(critic, nn.Module):
        raise CapabilityError(
            f"model: Adversarial needs a model with a network critic(x, context), "
            f"{type(family).__name__} has none; take ppgen.models.GAN, or train with ELBO()"
        )
    return family, critic


def _held_fixed(critic: nn.Module) -> Critic:
    """The critic with its parameters as constants: gradients pass through it and leave none in it."""
    constants = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    return lambda x, context: functional_call(critic, constants, (x, context))
