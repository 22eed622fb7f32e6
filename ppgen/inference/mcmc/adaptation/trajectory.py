r"""Lengths of trajectories that all chains share: fixed, or learnt by the ChEES criterion.

ChEES maximises the *change in the estimator of the expected square*: for a chain that goes from z to
the proposal z',

.. math:: \tfrac14\, E\bigl[(|z' - E z'|^2 - |z - E z|^2)^2\bigr],

by Adam on log T, where :math:`T` is the longest trajectory and the n-th transition takes
:math:`h_n T`, with :math:`h_n` from Halton's sequence in base 2: jitter that no chain's
period can follow. The gradient for one chain, in whitened coordinates, where the velocity is the
momentum p', is

.. math:: h_n T\,(|z' - \bar z'|^2 - |z - \bar z|^2)\,(z' - \bar z')^\top p',

averaged over chains with their acceptance probabilities as weights, the means
:math:`\bar z'` also.

Reference: Hoffman, Radul & Sountsov 2021 (*An adaptive-MCMC scheme for setting trajectory lengths in
Hamiltonian Monte Carlo*).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppgen.inference.mcmc.kernel import Params, State

#: No trajectory takes more steps.
MOST_STEPS = 1000
_RATE, _DECAY = 0.05, 0.95


def halton(index: int) -> float:
    """The ``index``-th number, from 0, of Halton's sequence in base 2: 1/2, 1/4, 3/4, 1/8, ..."""
    value, digit, index = 0.0, 0.5, index + 1
    while index:
        value += digit * (index & 1)
        digit, index = digit / 2, index >> 1
    return value


def num_steps(length: float, step_size: float) -> int:
    """Leapfrog steps of ``step_size`` that make up ``length``, rounded up."""
    return max(1, min(MOST_STEPS, math.ceil(length / step_size)))


def whitened(scale: Tensor, z: Tensor) -> Tensor:
    """``L^-1 z`` for each chain, z (C, D)."""
    if scale.ndim == 1:
        return z / scale
    return torch.linalg.solve_triangular(scale, z.T, upper=False).T


class ChEES:
    """Adam on the logarithm of the longest trajectory.

    Args:
        length: where to begin.
    """

    def __init__(self, length: float) -> None:
        self.restart(length)

    def restart(self, length: float) -> None:
        """Begin anew from ``length``."""
        self.count = 0
        self._log = math.log(length)
        self._square = 0.0
        self._log_sum = 0.0

    @property
    def now(self) -> float:
        """The longest trajectory to try next."""
        return math.exp(self._log)

    @property
    def average(self) -> float:
        """The longest trajectory learnt: the geometric mean since the restart."""
        return math.exp(self._log_sum / self.count) if self.count else self.now

    def update(self, before: Tensor, state: State, params: Params, jitter: float, shortest: float) -> None:
        """Learn from one transition.

        Args:
            before: the chains' points before it, (C, D).
            state: the state after it.
            params: its params.
            jitter: h_n.
            shortest: a bound from below for the length, such as the step size.
        """
        gradient = chees_gradient(before, state, params) * jitter * self.now
        self.count += 1
        if math.isfinite(gradient):
            self._square = _DECAY * self._square + (1 - _DECAY) * gradient**2
            if self._square > 0:
                scale = math.sqrt(self._square / (1 - _DECAY**self.count))
                self._log += _RATE * gradient / scale
        self._log = max(self._log, math.log(shortest))
        self._log_sum += self._log

    def state_dict(self) -> dict[str, Any]:
        """Numbers."""
        return {
            "count": self.count,
            "log": self._log,
            "square": self._square,
            "log_sum": self._log_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count, self._log = state["count"], state["log"]
        self._square, self._log_sum = state["square"], state["log_sum"]


def chees_gradient(before: Tensor, state: State, params: Params) -> float:
    """The derivative of the criterion by the trajectory's length, averaged over chains."""
    scale = params["scale"]
    # In numpy, whose calls cost a third of torch's on arrays as small as these.
    accept, momentum = _host(state["accept_prob"]), _host(state["momentum"])
    new, old = _host(whitened(scale, state["new_z"])), _host(whitened(scale, before))
    undefined = ~np.isfinite(np.einsum("cd,cd->c", new, momentum)) | (accept <= 0)
    if undefined.any():
        accept = np.where(undefined, 0.0, accept)
        new = np.where(undefined[:, None], old, new)
        momentum = np.where(undefined[:, None], 0.0, momentum)
    total = accept.sum()
    if not total > 0:
        return math.nan
    weight = accept / total
    new = new - weight @ new
    old = old - old.sum(0) / len(old)
    change = np.einsum("cd,cd->c", new, new) - np.einsum("cd,cd->c", old, old)
    along = np.einsum("cd,cd->c", new, momentum)
    return float((weight * change) @ along)


def _host(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().numpy()
