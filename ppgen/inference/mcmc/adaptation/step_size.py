r"""Step sizes: a first search by factors of two, then dual averaging.

Dual averaging moves :math:`x = \log\epsilon` so that the mean acceptance reaches its target
:math:`\delta`: with the error :math:`e_t = \delta - \alpha_t`,

.. math::
    \bar e_t = \Bigl(1 - \frac{1}{t + t_0}\Bigr) \bar e_{t-1} + \frac{e_t}{t + t_0}, \qquad
    x_{t+1} = \mu - \frac{\sqrt t}{\gamma} \bar e_t, \qquad
    \bar x_{t+1} = t^{-\kappa} x_{t+1} + (1 - t^{-\kappa}) \bar x_t,

with :math:`t_0 = 10`, :math:`\kappa = .75`. For one chain :math:`\gamma = .05` and :math:`\mu = \log 10
\epsilon_0`, as in Stan. The mean over C chains is :math:`\sqrt C` times less noisy, while an error as
small as that still moves the step size by the same gain; there :math:`\gamma = .05 \min(6, \sqrt C)` and
:math:`\mu = \log\epsilon_0`, which settles without swinging.

The acceptance of several chains is their arithmetic mean: a harmonic mean, as some papers use, is held
down by the few chains that reject, and ends at a mean acceptance far above the target.

References: Nesterov 2009; Hoffman & Gelman 2014, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Step sizes stay between these, in units of the scale.
LIMITS = (1e-12, 1e6)
_T0, _KAPPA = 10.0, 0.75

# In numpy, float64: on so few numbers its calls cost a third of torch's.
Numbers = NDArray[np.float64] | float


class DualAveraging:
    """Dual averaging of step sizes, each on its own.

    Args:
        step_size: where to begin: one, or an array of them.
        target: mean acceptance to reach.
        num_chains: how many chains learn together; acceptances are means over them where there is one
            step size.
        limits: smallest and largest step size.
    """

    def __init__(
        self,
        step_size: Numbers,
        target: float,
        num_chains: int,
        *,
        limits: tuple[float, float] = LIMITS,
    ) -> None:
        self.target, self.num_chains = target, num_chains
        self._limits = (math.log(limits[0]), math.log(limits[1]))
        self._gamma = 0.05 * min(6.0, math.sqrt(num_chains))
        self.restart(step_size)

    def restart(self, step_size: Numbers) -> None:
        """Begin anew from ``step_size``."""
        self.count = 0
        self._log: Numbers = np.log(np.float64(step_size))
        self._centre: Numbers = self._log + (math.log(10.0) if self.num_chains == 1 else 0.0)
        self._error: Numbers = 0.0 * self._log
        self._average: Numbers = self._log

    def update(self, accept_prob: Numbers) -> None:
        """Learn from acceptances, one for each step size."""
        self.count += 1
        t = self.count
        weight = 1.0 / (t + _T0)
        self._error = (1.0 - weight) * self._error + weight * (self.target - accept_prob)
        log = self._centre - (math.sqrt(t) / self._gamma) * self._error
        self._log = np.minimum(np.maximum(log, self._limits[0]), self._limits[1])
        weight = t**-_KAPPA
        self._average = weight * self._log + (1.0 - weight) * self._average

    @property
    def now(self) -> Numbers:
        """The step sizes to try next."""
        return np.exp(self._log)

    @property
    def average(self) -> Numbers:
        """The step sizes learnt."""
        return np.exp(self._average)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {
            "count": self.count,
            "log": _tensor(self._log),
            "centre": _tensor(self._centre),
            "error": _tensor(self._error),
            "average": _tensor(self._average),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count = state["count"]
        self._log, self._centre = _numbers(state["log"]), _numbers(state["centre"])
        self._error, self._average = _numbers(state["error"]), _numbers(state["average"])


class Search:
    """Doubles or halves each chain's step size until its acceptance crosses the target.

    Args:
        step_size: where to begin, (C,), float64.
        target: mean acceptance to cross.
        limits: smallest and largest step size.
    """

    #: So many transitions at most; a factor of 2^24 is enough for any scale in use.
    LONGEST = 24

    def __init__(
        self, step_size: NDArray[np.float64], target: float, *, limits: tuple[float, float] = LIMITS
    ) -> None:
        self.step_size, self.target, self._limits = step_size, target, limits
        self.count = 0
        self._direction = np.zeros_like(step_size)
        self._crossed = np.zeros(step_size.shape, dtype=np.bool_)

    @property
    def done(self) -> bool:
        """Whether nine chains of ten have crossed, or patience is at an end."""
        return self.count >= self.LONGEST or float(self._crossed.mean()) >= 0.9

    def update(self, accept_prob: NDArray[np.float64]) -> None:
        """Learn from acceptances (C,)."""
        way = np.where(accept_prob > self.target, 1.0, -1.0)
        if self.count == 0:
            self._direction = way
        self._crossed = self._crossed | (way != self._direction)
        moved = np.clip(self.step_size * 2.0**way, *self._limits)
        self.step_size = np.where(self._crossed, self.step_size, moved)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {
            "count": self.count,
            "step_size": torch.from_numpy(self.step_size.copy()),
            "direction": torch.from_numpy(self._direction.copy()),
            "crossed": torch.from_numpy(self._crossed.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count, self.step_size = state["count"], state["step_size"].numpy().copy()
        self._direction, self._crossed = state["direction"].numpy().copy(), state["crossed"].numpy().copy()


def _tensor(values: Numbers) -> Tensor:
    return torch.from_numpy(np.array(values))


def _numbers(values: Tensor) -> Numbers:
    found: Numbers = values.numpy().copy()[()]
    return found
