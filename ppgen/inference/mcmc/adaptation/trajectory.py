r"""Lengths of trajectories that all chains share: fixed, or learnt by the ChEES criterion.

ChEES maximises the *change in the estimator of the expected square*: for a chain that goes from z to
the proposal z',

.. math:: \tfrac14\, E\bigl[(|z' - E z'|^2 - |z - E z|^2)^2\bigr],

by Adam on log T, where :math:`T` is the longest trajectory and the n-th transition takes
:math:`h_n T`, with :math:`h_n` in (1/2, 1) from Halton's sequence in base 2: jitter that no chain's
period can follow. (For a normal with T = 2, near the maximum, neither a draw nor its square remembers
the one before: :math:`E \cos t = .07` and :math:`E \cos^2 t = .08`. Jitter from 0 on, as in the paper,
leaves .35 and .28 at its own maximum.) The gradient for one chain, in whitened coordinates, where the
velocity is the momentum p', is

.. math:: h_n T\,(|z' - \bar z'|^2 - |z - \bar z|^2)\,(z' - \bar z')^\top p',

averaged over chains with their acceptance probabilities as weights, the means
:math:`\bar z'` also.

Reference: Hoffman, Radul & Sountsov 2021 (*An adaptive-MCMC scheme for setting trajectory lengths in
Hamiltonian Monte Carlo*).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


def jitter(index: int) -> float:
    """The length of the ``index``-th trajectory, relative to the longest."""
    return 0.5 + 0.5 * halton(index)


def num_steps(length: float, step_size: float) -> int:
    """Leapfrog steps of ``step_size`` that make up ``length``, rounded up."""
    return max(1, min(MOST_STEPS, math.ceil(length / step_size)))


def whitened(scale: Tensor, z: Tensor) -> Tensor:
    """``L^-1 z`` for each chain, z ``(..., D)``."""
    if scale.ndim == 1:
        return z / scale
    return torch.linalg.solve_triangular(scale.T, z, upper=True, left=False)


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

    def update(self, gradients: Sequence[float], jitter: Sequence[float], shortest: float) -> None:
        """Learn from transitions that had this length.

        Args:
            gradients: of each, from :func:`chees_gradients`.
            jitter: h_n of each.
            shortest: a bound from below for the length, such as the step size.
        """
        length = self.now
        for slope, h in zip(gradients, jitter, strict=True):
            gradient = slope * h * length
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


def chees_gradients(before: Tensor, recorded: Mapping[str, Tensor], scale: Tensor) -> list[float]:
    """The derivative of the criterion by the trajectory's time, averaged over chains; of each transition.

    Args:
        before: the chains' points before the first of the transitions, (C, D).
        recorded: ``z``, ``new_z`` and ``momentum`` after each, (num, C, D), and ``accept_prob`` (num, C).
        scale: L.
    """
    # In numpy, whose calls cost a third of torch's on arrays as small as these.
    accept, momentum = _host(recorded["accept_prob"]), _host(recorded["momentum"])
    new, z = _host(whitened(scale, recorded["new_z"])), recorded["z"]
    old = _host(whitened(scale, torch.cat([before[None], z[:-1]])))
    with np.errstate(invalid="ignore", over="ignore"):
        gradients = _gradients(accept, old, new, momentum)
        if not np.isfinite(gradients).all():
            undefined = ~np.isfinite(np.einsum("ncd,ncd->nc", new, momentum)) | ~(accept > 0)
            new, momentum = np.where(undefined[..., None], [old, np.zeros_like(old)], [new, momentum])
            gradients = _gradients(np.where(undefined, 0.0, accept), old, new, momentum)
    found: list[float] = gradients.tolist()
    return found


def _gradients(
    accept: NDArray[Any], old: NDArray[Any], new: NDArray[Any], momentum: NDArray[Any]
) -> NDArray[Any]:
    """The means over chains, NaN where nothing was accepted."""
    weight = accept / accept.sum(1, keepdims=True)
    new = new - weight[:, None] @ new
    old = old - old.mean(1, keepdims=True)
    change = np.einsum("ncd,ncd->nc", new, new) - np.einsum("ncd,ncd->nc", old, old)
    along = np.einsum("ncd,ncd->nc", new, momentum)
    gradients: NDArray[Any] = np.einsum("nc,nc,nc->n", weight, change, along)
    return gradients


def _host(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().numpy()
