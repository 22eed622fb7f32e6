r"""Paths of tempered densities, moved by the kernels of :mod:`ppgen.inference.mcmc`.

.. math:: f_\beta(z) = \exp\big(-U_0(z) - \beta\, U_1(z)\big)

From a prior to a posterior :math:`U_0` is minus the log prior and :math:`U_1` minus the log likelihood;
from any normalised start q it is :math:`U_0 = -\log q` and :math:`U_1 = \log q - \log p`, the geometric
path :math:`q^{1 - \beta} p^\beta`.

Step sizes and scales of the kernels follow the inverse temperature; a pilot run finds them
(:mod:`ppgen.inference.annealing.pilot`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.annealing.ladders import interpolate
from ppgen.inference.annealing.walk import Path, Stretch
from ppgen.inference.mcmc.executor import Executor
from ppgen.inference.mcmc.kernel import Params, State

# Step sizes change by this factor up and down the ladder, so that no trajectory length is a period.
_JITTER = 0.2
# Knuth's multiplier, 2^64 over the golden ratio, as a signed number; and the golden ratio itself.
_HASH = -7046029254386353131
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Scales:
    r"""What the kernel's moves are scaled by along the path: the step size times the mass factor L.

    Attributes:
        betas: inverse temperatures of the pilot run, ascending from 0 to 1, shape (K,), float64.
        scale: step size times L at each, shape (K, D), or lower triangular (K, D, D).
        accept_prob: mean acceptance probability of the pilot at each, (K,).
    """

    betas: Tensor
    scale: Tensor
    accept_prob: Tensor

    def at(self, betas: Tensor) -> Tensor:
        """The scale at other inverse temperatures (N,), between those of the pilot; (N, D) or (N, D, D)."""
        return interpolate(betas.to(self.betas), self.betas, self.scale)


class TemperedPath(Path):
    """A density of two parts, weights (1, beta), and a kernel whose step follows ``scales``.

    The state is the kernel's. Whole stretches of rungs are one call of the executor.

    Args:
        executor: runs the kernel on the density.
        scales: of the moves.
        num_steps: leapfrog steps of a transition.
        num_transitions: transitions at each rung.
    """

    def __init__(
        self, executor: Executor, scales: Scales, *, num_steps: int = 5, num_transitions: int = 1
    ) -> None:
        self.executor, self.scales, self.num_transitions = executor, scales, num_transitions
        self.num_steps = torch.tensor(num_steps)

    def start(self, z: Tensor) -> State:
        """The state at the points z (C, D). The step size is in the scales."""
        return self.executor.init(z, torch.ones_like(z[:, 0]))

    def log_ratio(self, state: State, before: float, after: float) -> Tensor:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        return _gathered(state["u"], torch.tensor(after - before, dtype=torch.float64))

    def slope(self, state: State, beta: float) -> Tensor:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        return -state["u"][:, 1].double()

    def move(self, state: State, beta: float) -> tuple[State, Tensor]:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        moved, _, accepts = self._moves(state, torch.tensor([beta], dtype=torch.float64))
        return moved, accepts[0]

    def up(self, state: State, betas: Tensor) -> Stretch:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        moved, u, accepts = self._moves(state, betas[1:])
        gathering = torch.cat([state["u"][None], u[:-1]])
        return Stretch(moved, _gathered(gathering, betas.diff()), -u[..., 1].double(), accepts)

    def down(self, state: State, betas: Tensor) -> Stretch:
        """See :class:`~ppgen.inference.annealing.walk.Path`."""
        moved, u, accepts = self._moves(state, betas[:-1], backwards=True)
        return Stretch(moved, _gathered(u, betas.diff()), -u[..., 1].double(), accepts)

    def _moves(self, state: State, betas: Tensor, *, backwards: bool = False) -> tuple[State, Tensor, Tensor]:
        """Transitions at each of ``betas`` (k,): the state, parts (k, C, 2) after each, acceptance (k,).

        Backwards the transitions of a rung come in the opposite order.
        """
        z, num = state["z"], self.num_transitions
        jitter = _jitter(betas, num)
        jitter = (jitter.flip(1) if backwards else jitter).flatten()
        each = betas.repeat_interleave(num)
        scale = self.scales.at(each)
        scale = scale * jitter.to(scale).view(-1, *[1] * (scale.ndim - 1))
        schedule = {
            "weights": torch.stack([torch.ones_like(each), each], 1).to(z),
            "scale": scale.to(z),
        }
        params: Params = {name: values[0] for name, values in schedule.items()}
        params["num_steps"] = self.num_steps
        moved, kept = self.executor.run(
            state, params, num=len(each), schedule=schedule, record=("u", "accept_prob")
        )
        accepts = kept["accept_prob"].double().mean(1).view(-1, num).mean(1)
        return moved, kept["u"][num - 1 :: num], accepts


def _jitter(betas: Tensor, num: int) -> Tensor:
    """Factors (k, num) that look random, and depend on the inverse temperature and the place alone.

    So the kernels are the same in both directions, and however the ladder is cut into stretches.
    """
    bits = betas.cpu().double().contiguous().view(torch.int64) * _HASH
    place = (bits >> 11).bitwise_and(2**53 - 1).double() / 2**53
    places = torch.frac(place[:, None] + _GOLDEN * torch.arange(num))
    return 1 + _JITTER * (2 * places - 1)


def _gathered(u: Tensor, steps: Tensor) -> Tensor:
    """Log f_after - log f_before (..., C) where the parts are u (..., C, 2); NaN is a density of zero."""
    steps = steps.to(u.device)[..., None]
    found = (-steps * u[..., 1].double()).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    return torch.where(steps == 0, 0.0, found)
