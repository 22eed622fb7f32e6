r"""Restricted Boltzmann machines: energies, sums over states, block Gibbs, the marginal over hidden units.

With visible units v of D coordinates and binary hidden units h of H,

.. math::
   -E(v, h) = v^\top b + c^\top h + v^\top W h
   \quad\text{(binary v)}, \qquad
   -E(v, h) = -\tfrac12 |u|^2 + c^\top h + u^\top W h
   \quad\text{(real v)}, \quad u_d = (v_d - b_d) / \sigma_d ,

and :math:`p(v, h) = e^{-E(v, h)} / Z`. The real case is the Gaussian-Bernoulli machine in
centred units: :math:`v \mid h \sim N(b + \sigma W h, \sigma^2)`, so that b is the mean of v
where the weights vanish.

Both conditionals factorise. Where the smaller side that can be summed has at most
:data:`~ppgen.ops.binary.MAX_ENUMERATED` units, log Z, its gradient and independent draws are
exact, in memory that does not grow with the number of states (draws: one number a state).

References: Smolensky 1986; Hinton 2002; Cho, Ilin & Raiko 2011 for the Gaussian case.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ppgen.errors import CapabilityError, ConfigError, ShapeError, TrainingWarning
from ppgen.ops.binary import MAX_ENUMERATED, sample_bernoulli, softplus, state_bits, state_chunks


@dataclass(frozen=True)
class Harmonium:
    r"""The parameters of a restricted Boltzmann machine and all that follows from them.

    Attributes:
        weight: W, shape ``(D, H)``.
        visible_bias: b, shape ``(D,)``.
        hidden_bias: c, shape ``(H,)``.
        scale: standard deviations :math:`\sigma` of real visible units, shape ``(D,)``;
            ``None`` for binary ones.
    """

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        expected = {"visible_bias": self.weight.shape[:1], "hidden_bias": self.weight.shape[1:]}
        if self.scale is not None:
            expected["scale"] = self.weight.shape[:1]
        for name, shape in expected.items():
            if self.weight.ndim != 2 or getattr(self, name).shape != shape:
                raise ShapeError(
                    f"{name}: expected shape {tuple(shape)} beside a weight of shape (D, H), got "
                    f"{tuple(getattr(self, name).shape)} beside {tuple(self.weight.shape)}"
                )

    @property
    def num_visible(self) -> int:
        """Number D of visible units."""
        return self.weight.shape[0]

    @property
    def num_hidden(self) -> int:
        """Number H of hidden units."""
        return self.weight.shape[1]

    @property
    def num_enumerated(self) -> int:
        """Units on the side whose states are summed: the smaller one; the hidden one for real v."""
        return self.num_hidden if self.scale is not None else min(self.weight.shape)

    @property
    def enumerable(self) -> bool:
        """Whether log Z can be had by enumeration."""
        return self.num_enumerated <= MAX_ENUMERATED

    # -- conditionals and energies --------------------------------------------------------

    def standardised(self, v: Tensor) -> Tensor:
        r"""What the weights see: v itself, or :math:`u = (v - b) / \sigma`; shape ``(..., D)``."""
        return v if self.scale is None else (v - self.visible_bias) / self.scale

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Log-odds of each hidden unit given v ``(..., D)``; shape ``(..., H)``."""
        return self.standardised(v) @ self.weight + self.hidden_bias

    def visible_logits(self, h: Tensor) -> Tensor:
        """Log-odds of binary v, or the mean of real v, given h ``(..., H)``; shape ``(..., D)``."""
        drive = h @ self.weight.mT
        return self.visible_bias + (drive if self.scale is None else self.scale * drive)

    def visible_mean(self, h: Tensor) -> Tensor:
        """E[v given h]; shape ``(..., D)``."""
        logits = self.visible_logits(h)
        return logits.sigmoid() if self.scale is None else logits

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E(v, h) in nats; v ``(..., D)`` and h ``(..., H)`` broadcast to shape ``(...)``."""
        u = self.standardised(v)
        own = -v @ self.visible_bias if self.scale is None else u.square().sum(-1) / 2
        return own - h @ self.hidden_bias - ((u @ self.weight) * h).sum(-1)

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v), minus the log of the sum of exp(-E(v, h)) over h, in nats; shape ``(...)``."""
        u = self.standardised(v)
        own = -v @ self.visible_bias if self.scale is None else u.square().sum(-1) / 2
        return own - softplus(u @ self.weight + self.hidden_bias).sum(-1)

    def hidden_free_energy(self, h: Tensor) -> Tensor:
        """Minus the log of the sum or integral of exp(-E(v, h)) over v, in nats; shape ``(...)``."""
        if self.scale is None:
            own = softplus(self.visible_logits(h)).sum(-1)
        else:
            own = (h @ self.weight.mT).square().sum(-1) / 2 + _log_volume(self.scale)
        return -h @ self.hidden_bias - own

    def pseudo_log_likelihood(self, v: Tensor) -> Tensor:
        r"""Sum over d of :math:`\log p(v_d \mid v_{-d})` for binary v ``(N, D)``, in nats; shape ``(N,)``.

        All D conditionals are evaluated; nothing is drawn and nothing is rescaled. Cost N D H.

        Raises:
            CapabilityError: real visible units, whose conditionals have no closed form.
        """
        if self.scale is not None:
            raise CapabilityError(
                "pseudo_log_likelihood: defined here for binary visible units, these are real; "
                "use log_likelihood"
            )
        logits = self.hidden_logits(v)
        resting = softplus(logits)
        total = torch.zeros_like(v[:, 0])
        for d in range(self.num_visible):
            turn = 1 - 2 * v[:, d]
            flipped = softplus(logits + turn[:, None] * self.weight[d])
            rise = -turn * self.visible_bias[d] - (flipped - resting).sum(-1)
            total = total + logsigmoid(rise)
        return total

    # -- sums over all states ----------------------------------------------------------------

    def log_partition(self) -> Tensor:
        """The log normaliser log Z, a scalar in nats, with its gradient; 2^n states, in chunks.

        Raises:
            CapabilityError: more than 20 units on the side that is enumerated.
        """
        side, visible_bias = self._enumerated_side("log Z")
        log_sum: Tensor = _LogSumOverStates.apply(side.weight, visible_bias, side.hidden_bias)
        return log_sum if self.scale is None else log_sum + _log_volume(self.scale)

    @torch.no_grad()
    def sample_exact(self, num: int) -> Tensor:
        """Independent draws of h from its marginal, shape ``(num, H)``; 2^n states, one number each.

        Raises:
            CapabilityError: more than 20 units on the side that is enumerated.
        """
        side, _ = self._enumerated_side("independent draws")
        chunks = state_chunks(side.num_hidden, side.num_visible, like=self.weight)
        log_weights = torch.cat([-side.hidden_free_energy(states) for states in chunks]).double()
        cumulative = log_weights.softmax(0).cumsum(0)
        # 1 - U lies in (0, 1], so that a state without mass is never the first to reach it.
        points = 1 - torch.rand(num, dtype=torch.float64, device=self.weight.device)
        index = torch.searchsorted(cumulative, points * cumulative[-1])
        states = state_bits(index, side.num_hidden, dtype=self.weight.dtype)
        if side is self:
            return states
        return sample_bernoulli(self.hidden_logits(states).sigmoid())

    def _enumerated_side(self, purpose: str) -> tuple[Harmonium, Tensor | None]:
        """The machine whose hidden side is summed, and its visible bias where v is binary."""
        if not self.enumerable:
            sides = (
                f"D = {self.num_visible} and H = {self.num_hidden}"
                if self.scale is None
                else (f"H = {self.num_hidden} (real visible units cannot be enumerated)")
            )
            raise CapabilityError(
                f"{purpose}: too many units for enumeration (limit {MAX_ENUMERATED}): {sides}; build the "
                f"machine with num_hidden <= {MAX_ENUMERATED}, or compare its unnormalised densities only"
            )
        if self.scale is not None:
            return self, None
        if self.num_hidden <= self.num_visible:
            return self, self.visible_bias
        return Harmonium(self.weight.mT, self.hidden_bias, self.visible_bias), self.hidden_bias

    # -- draws -------------------------------------------------------------------------------

    @torch.no_grad()
    def sample_visible(self, h: Tensor) -> Tensor:
        """A draw of v from p(v given h); shape ``(..., D)``."""
        mean = self.visible_mean(h)
        if self.scale is None:
            return sample_bernoulli(mean)
        return mean + self.scale * torch.randn_like(mean)

    @torch.no_grad()
    def sample_hidden(self, v: Tensor) -> Tensor:
        """A draw of h from p(h given v); shape ``(..., H)``."""
        return sample_bernoulli(self.hidden_logits(v).sigmoid())

    @torch.no_grad()
    def gibbs(
        self, h: Tensor, num_steps: int, *, clamped: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Block Gibbs from h, one chain a row: ``num_steps`` times v given h, then h given v.

        Args:
            h: states of the chains, shape ``(..., H)``.
            num_steps: number of sweeps, at least 1.
            clamped: visible values held fixed where ``mask`` is True, shape ``(..., D)``.
            mask: True where v is clamped, same shape.

        Returns:
            The last v ``(..., D)`` and the h ``(..., H)`` drawn given it.
        """
        if num_steps < 1:
            raise ConfigError(f"num_steps: block Gibbs needs at least one sweep, got {num_steps}")
        for _ in range(num_steps):
            v = self.sample_visible(h)
            if clamped is not None and mask is not None:
                v = torch.where(mask, clamped, v)
            h = self.sample_hidden(v)
        return v, h


class BoltzmannMarginal(TorchDistribution):
    r"""The marginal p(h) of a restricted Boltzmann machine over its hidden units.

    :math:`\log p(h) = -F(h) - \log Z` with F the free energy of h. Where log Z is beyond
    enumeration it is taken as 0: ``normalised`` is False and ``log_prob`` holds up to a constant.
    Draws are independent where the machine can be enumerated; otherwise each is the end of an
    own block Gibbs chain.

    Args:
        harmonium: the machine; one for all elements of the batch.
        start_mean: mean of the visible units that the chains start from, shape ``(D,)``; the
            mean of v without weights by default.
        num_steps: sweeps of each chain; ``None`` for independent draws where they can be had and
            1000 sweeps elsewhere.
        batch_shape: shape of independent copies.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = False

    def __init__(
        self,
        harmonium: Harmonium,
        *,
        start_mean: Tensor | None = None,
        num_steps: int | None = None,
        batch_shape: torch.Size | tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        if num_steps is not None and num_steps < 1:
            raise ConfigError(f"num_steps: expected a positive number of sweeps or None, got {num_steps}")
        self.harmonium, self.num_steps = harmonium, num_steps
        self.start_mean = start_mean
        event_shape = torch.Size([harmonium.num_hidden])
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Zeros and ones."""
        return constraints.independent(constraints.boolean, 1)

    @property
    def normalised(self) -> bool:
        """Whether ``log_prob`` holds its normaliser."""
        return self.harmonium.enumerable

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Any = None
    ) -> BoltzmannMarginal:
        """Independent copies over ``batch_shape``."""
        return type(self)(
            self.harmonium,
            start_mean=self.start_mean,
            num_steps=self.num_steps,
            batch_shape=torch.Size(batch_shape),
            validate_args=self.__dict__.get("_validate_args"),
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of h in nats, up to a constant where not ``normalised``.

        Without log Z the gradient is not that of a likelihood: it raises every weight without end.
        Where one is asked for, a :class:`~ppgen.errors.TrainingWarning` says so.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_density = -self.harmonium.hidden_free_energy(value)
        if self.normalised:
            log_density = log_density - self.harmonium.log_partition()
        elif log_density.requires_grad:
            warnings.warn(
                "log_prob: log Z of this Boltzmann machine is beyond enumeration and taken as 0, so its "
                "gradient and any ELBO made with it lack log Z and do not train the machine; train with "
                "ppgen.inference.objectives.contrastive_divergence.ContrastiveDivergence",
                TrainingWarning,
                stacklevel=2,
            )
        shape = torch.broadcast_shapes(log_density.shape, self.batch_shape)
        return log_density.expand(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of h, shape ``(*sample_shape, *batch_shape, H)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        num = shape[:-1].numel()
        if self.num_steps is None and self.normalised:
            return self.harmonium.sample_exact(num).reshape(shape)
        steps = 1000 if self.num_steps is None else self.num_steps
        return self.harmonium.gibbs(self._start(num), steps)[1].reshape(shape)

    def _start(self, num: int) -> Tensor:
        """Hidden states of ``num`` chains that start from independent visible units."""
        machine = self.harmonium
        resting = machine.visible_mean(machine.hidden_bias.new_zeros(machine.num_hidden))
        mean = (resting if self.start_mean is None else self.start_mean).expand(num, -1)
        if machine.scale is None:
            return machine.sample_hidden(sample_bernoulli(mean))
        return machine.sample_hidden(mean + machine.scale * torch.randn_like(mean))


class _LogSumOverStates(torch.autograd.Function):
    r"""log of the sum over binary h of :math:`\exp(c^\top h + \sum_d \psi_d((W h)_d))`.

    :math:`\psi_d(a) = \log(1 + e^{b_d + a})` with a visible bias and :math:`a^2 / 2` without. The
    gradient is made of moments, which are summed in the same pass: no graph over 2^n states.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, visible_bias: Tensor | None, hidden_bias: Tensor) -> Tensor:
        """One pass over the states, with a running maximum."""
        wanted = any(ctx.needs_input_grad)  # type: ignore[attr-defined]
        total = weight.new_full((), -math.inf)
        moments = [torch.zeros_like(weight), weight.new_zeros(len(weight)), torch.zeros_like(hidden_bias)]
        for h in state_chunks(len(hidden_bias), len(weight), like=weight):
            drive = h @ weight.mT
            if visible_bias is None:
                own, mean = drive.square().sum(-1) / 2, drive
            else:
                drive += visible_bias
                own, mean = softplus(drive).sum(-1), drive
            logits = own + h @ hidden_bias
            before, total = total, torch.logaddexp(total, torch.logsumexp(logits, 0))
            if wanted:
                mean = mean if visible_bias is None else mean.sigmoid_()
                p = (logits - total).exp()
                kept = (before - total).exp()
                for moment, part in zip(moments, (mean.mT @ (p[:, None] * h), p @ mean, p @ h), strict=True):
                    moment.mul_(kept).add_(part)
        ctx.save_for_backward(*moments)
        ctx.has_bias = visible_bias is not None  # type: ignore[attr-defined]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The gradient of a log normaliser: expected statistics."""
        weight, visible, hidden = ctx.saved_tensors
        return grad * weight, grad * visible if ctx.has_bias else None, grad * hidden


def _log_volume(scale: Tensor) -> Tensor:
    """Log of the integral of exp(-|u|^2 / 2) over v."""
    return scale.log().sum() + 0.5 * len(scale) * math.log(2 * math.pi)
