"""Warm-up: transitions that are not kept, from which all chains together learn how to move.

Between two transitions the acceptances, draws and proposals of all chains are pooled: into one step
size (:mod:`~ppgen.inference.mcmc.adaptation.step_size`), one mass matrix
(:mod:`~ppgen.inference.mcmc.adaptation.mass`) and, for ChEES, one trajectory length
(:mod:`~ppgen.inference.mcmc.adaptation.trajectory`), in windows
(:mod:`~ppgen.inference.mcmc.adaptation.windows`). In the first window each chain has a step size of
its own: chains that start in a tail need other steps than those that have arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppgen.errors import SamplingError
from ppgen.inference.mcmc.adaptation.mass import Moments
from ppgen.inference.mcmc.adaptation.step_size import DualAveraging, Numbers, Search
from ppgen.inference.mcmc.adaptation.stuck import Restart, restart, stuck_chains
from ppgen.inference.mcmc.adaptation.trajectory import ChEES, halton, num_steps
from ppgen.inference.mcmc.adaptation.tuning import Report, Tuning, Warmed
from ppgen.inference.mcmc.adaptation.windows import MANY_CHAINS, windows
from ppgen.inference.mcmc.executor import Executor
from ppgen.inference.mcmc.kernel import Kernel, Params, State, total

#: ChEES needs so many chains for its means over chains.
CHEES_CHAINS = 16
# NUTS looks for its step size from above, where a trajectory ends at once; from below, it would be long.
_NUTS_HEAD_START = 16.0
_FIRST_LENGTH = 1.5  # of a trajectory, in standard deviations
_FIRST_STEPS = 10  # of a trajectory while the scale is unknown


class Warmup:
    """Warm-up in steps of one transition; between two of them it may be saved, and go on elsewhere.

    Args:
        executor: runs the transitions.
        kernel: what it runs.
        state: the kernel's first state.
        tuning: what to learn.
        num: how many transitions.
        seed: of the choice of donors for stuck chains.
        weights: ``params["weights"]`` (P,), by default ones.
    """

    def __init__(
        self,
        executor: Executor,
        kernel: Kernel,
        state: State,
        tuning: Tuning,
        *,
        num: int,
        seed: int,
        weights: Tensor | None = None,
    ) -> None:
        self.executor, self.kernel, self.tuning = executor, kernel, tuning
        self.num, self.seed, self.completed = num, seed, 0
        z = state["z"]
        self._num_chains, self._num_dims = z.shape
        self.state = state
        shape = (self._num_dims,) * (2 if tuning.full_mass else 1)
        scale = torch.eye(self._num_dims) if tuning.full_mass else torch.ones(shape)
        self.params: Params = {
            "scale": scale.to(z),
            "weights": torch.ones_like(state["u"][0]) if weights is None else weights,
        }
        self._windows = windows(num, self._num_chains, adapt_mass=tuning.adapt_mass_matrix)
        self._window = 0
        self._moments = Moments(self._num_dims, full=tuning.full_mass, device=z.device)
        target = tuning.target(kernel.name)
        head_start = _NUTS_HEAD_START if kernel.name == "NUTS" else 1.0
        first = np.full(self._num_chains, tuning.step_size * head_start)
        limits = (tuning.min_step_size, tuning.max_step_size)
        self._search: Search | None = None
        if tuning.adapt_step_size and num > 0:
            self._search = Search(np.clip(first, *limits), target, limits=limits)
        # Their median is taken: each need not be as bold as one that learns alone.
        self._own = DualAveraging(first, target, min(self._num_chains, 4), limits=limits)
        self._pooled = DualAveraging(tuning.step_size, target, self._num_chains, limits=limits)
        self._length = ChEES(_FIRST_LENGTH)
        self._accept_sum = np.zeros(self._num_chains)
        self._accept_count = 0
        self._restarts: list[Restart] = []
        self._step_size_like = state["step_size"].detach()
        self._set_step_size()

    @property
    def done(self) -> bool:
        """Whether all transitions were made."""
        return self.completed >= self.num

    def step(self) -> None:
        """Make one transition and learn from it.

        Raises:
            SamplingError: the step size collapsed, or no chain has a finite energy.
        """
        before = self.state
        jitter = halton(self.completed)
        params = self._params_now(jitter)
        self.state, _ = self.executor.run(before, params, num=1)
        self.completed += 1
        accept = self.state["accept_prob"].detach().to("cpu", torch.float64).numpy()
        if self._search is None:
            self._accept_sum = self._accept_sum + accept
            self._accept_count += 1
        self._learn(before, accept, params, jitter)
        if self.completed == self._windows[self._window].stop:
            self._end_window()
        self._set_step_size()

    def finish(self) -> Warmed:
        """The tuned kernel."""
        step_size = self._final_step_size()
        state = self.state | {"step_size": torch.full_like(self.state["step_size"], step_size)}
        fixed = self.tuning.trajectory_length
        longest = self._length.average if isinstance(fixed, str) else fixed
        params, schedule = self.params, _no_schedule
        if self.kernel.ends_together:
            count = self.tuning.num_steps or 1
            if longest is not None:
                count = num_steps(longest, step_size)
            params = params | {"num_steps": self._count(count)}
            if self.tuning.chees and longest is not None:
                schedule = partial(_jittered, longest, step_size, self.num, state["z"].device)
        accept = float(self._accept_sum.mean()) / self._accept_count if self._accept_count else math.nan
        return Warmed(
            state=state,
            params=params,
            schedule=schedule,
            report=Report(
                step_size=step_size,
                trajectory_length=None if longest is None else float(longest),
                accept_prob=accept,
                restarts=list(self._restarts),
                warnings=self._warnings(accept),
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the next transition depends on, the executor's random numbers too: tensors and numbers."""
        return {
            "completed": self.completed,
            "window": self._window,
            "state": dict(self.state),
            "scale": self.params["scale"],
            "moments": self._moments.state_dict(),
            "search": None if self._search is None else self._search.state_dict(),
            "own": self._own.state_dict(),
            "pooled": self._pooled.state_dict(),
            "length": self._length.state_dict(),
            "accept_sum": torch.from_numpy(self._accept_sum.copy()),
            "accept_count": self._accept_count,
            "restarts": [asdict(item) for item in self._restarts],
            "rng": self.executor.rng_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, to the same draws."""
        device = self.state["z"].device
        self.completed, self._window = saved["completed"], saved["window"]
        self.state = {name: value.to(device) for name, value in saved["state"].items()}
        self.params = self.params | {"scale": saved["scale"].to(device)}
        self._moments.load_state_dict(saved["moments"])
        if saved["search"] is None:
            self._search = None
        elif self._search is not None:
            self._search.load_state_dict(saved["search"])
        self._own.load_state_dict(saved["own"])
        self._pooled.load_state_dict(saved["pooled"])
        self._length.load_state_dict(saved["length"])
        self._accept_sum, self._accept_count = saved["accept_sum"].numpy().copy(), saved["accept_count"]
        self._restarts = [Restart(**item) for item in saved["restarts"]]
        self.executor.set_rng_state(saved["rng"])
        self.step_size = float(np.median(self._step_sizes()))

    def _kind(self) -> str:
        return self._windows[min(self._window, len(self._windows) - 1)].kind

    def _count(self, value: int) -> Tensor:
        return torch.tensor(value, device=self.state["z"].device)

    def _params_now(self, jitter: float) -> Params:
        """Params of the next transition."""
        if not self.kernel.ends_together:
            return self.params
        tuning = self.tuning
        if self._search is not None:
            count = 1
        elif isinstance(tuning.trajectory_length, float | int):
            count = num_steps(tuning.trajectory_length, self.step_size)
        elif not tuning.chees:
            count = tuning.num_steps or 1
        elif self._kind() == "first":
            count = math.ceil(_FIRST_STEPS * jitter)
        else:
            count = num_steps(jitter * self._length.now, self.step_size)
        return self.params | {"num_steps": self._count(count)}

    def _learn(self, before: State, accept: NDArray[np.float64], params: Params, jitter: float) -> None:
        kind = self._kind()
        if self._search is not None:
            self._search.update(accept)
            if self._search.done or self.completed == self._windows[self._window].stop:
                self._own.restart(self._search.step_size)
                self._pooled.restart(_middle(self._search.step_size))
                self._search = None
            return
        if self.tuning.adapt_step_size:
            if kind == "first":
                self._own.update(accept)
            else:
                self._pooled.update(accept.mean())
        if kind != "first" and self.tuning.chees:
            self._length.update(before["z"], self.state, params, jitter, self.step_size)
        window = self._windows[self._window]
        half = window.stop // 2 if kind == "first" else 0
        if self.tuning.adapt_mass_matrix and kind != "last" and self.completed > half:
            self._moments.add(self.state["z"])

    def _end_window(self) -> None:
        kind = self._kind()
        self._replace_stuck()
        if self.tuning.adapt_step_size and kind == "first":
            self._pooled.restart(_middle(self._own.average))
        # One or few chains have not seen enough of the mass in the first window.
        learnt = kind == "mass" or (kind == "first" and self._num_chains >= MANY_CHAINS)
        if learnt and self.tuning.adapt_mass_matrix and self._moments.count > 1:
            self._change_scale(self._moments.scale())
        self._moments.reset()
        if self.completed < self.num:
            self._window += 1
            self._accept_sum = np.zeros_like(self._accept_sum)
            self._accept_count = 0
            if self._kind() == "last" and self.tuning.chees:
                self._length.restart(self._length.now)
        collapsed = self.tuning.adapt_step_size and self.step_size <= 2 * self.tuning.min_step_size
        if collapsed:
            raise SamplingError(
                f"step_size: it fell to {self.step_size:.3g} after {self.completed} transitions of warm-up, "
                "and still almost every proposal is rejected. The density may have a gradient that is wrong "
                "or infinite, or no maximum; check the model's priors and parametrisation, or run in float64"
            )

    def _change_scale(self, scale: Tensor) -> None:
        old, new = self.params["scale"], scale.to(self.params["scale"])
        self.params = self.params | {"scale": new}
        if self.tuning.adapt_step_size:
            # The stiffest direction limits the step: keep its step, in the old coordinates, as it was.
            ratio = new / old if new.ndim == 1 else new.diagonal() / old.diagonal()
            self._pooled.restart(self._pooled.average / float(ratio.min()))

    def _replace_stuck(self) -> None:
        if self._window == len(self._windows) - 1:
            return  # too late: a copy would be among the draws
        accept = torch.from_numpy(self._accept_sum / max(self._accept_count, 1))
        u = total(self.state["u"], self.params).double().cpu()
        if not bool(torch.isfinite(u).any()):
            raise SamplingError("no chain has a finite energy: start the chains from other points")
        if self._accept_count == 0:
            accept = torch.ones_like(accept)  # nothing known
        for reason, stuck in stuck_chains(u, accept, self._num_dims).items():
            if bool(stuck.any()) and not bool(stuck.all()):
                generator = torch.Generator().manual_seed(self.seed + self.completed)
                self.state, chains, donors = restart(self.state, stuck, generator)
                self._restarts.append(Restart(self.completed, chains.tolist(), donors.tolist(), reason))

    def _final_step_size(self) -> float:
        if not self.tuning.adapt_step_size or self.num == 0:
            return self.tuning.step_size
        return float(self._pooled.average)

    def _step_sizes(self) -> Numbers:
        """Of the next transition: one, or one for each chain."""
        if self._search is not None:
            return self._search.step_size
        if not self.tuning.adapt_step_size:
            return np.float64(self.tuning.step_size)
        return self._own.now if self.num > 0 and self._kind() == "first" else self._pooled.now

    def _set_step_size(self) -> None:
        """Give the chains their next step sizes."""
        value, now = self._step_sizes(), self._step_size_like
        if isinstance(value, np.ndarray):
            #: The step size of the next transition; the median over chains.
            self.step_size = float(np.median(value))
            self.state = self.state | {"step_size": torch.from_numpy(value).to(now)}
        else:
            self.step_size = float(value)
            self.state = self.state | {"step_size": torch.full_like(now, self.step_size)}

    def _warnings(self, accept: float) -> list[str]:
        target = self.tuning.target(self.kernel.name)
        result = [
            f"{len(item.chains)} of {self._num_chains} chains were {item.reason} after {item.transition} "
            f"transitions of warm-up and were started again from others: {item.chains}. Look for a second "
            "mode, a tail without gradient, or starting points that are too far out"
            for item in self._restarts
        ]
        if self.tuning.adapt_step_size and abs(accept - target) > 0.15:
            result.append(
                f"the mean acceptance at the end of warm-up is {accept:.2f}, not near its target of "
                f"{target:.2f}: use more transitions of warm-up"
            )
        if self.tuning.chees and self._num_chains < CHEES_CHAINS:
            result.append(
                f"ChEES learnt its trajectory length from {self._num_chains} chains: use {2 * CHEES_CHAINS} "
                "or more, or NUTS"
            )
        return result


def warm_up(
    executor: Executor,
    kernel: Kernel,
    state: State,
    tuning: Tuning,
    *,
    num: int,
    seed: int,
    on_step: Callable[[Warmup], bool | None] | None = None,
    saved: Mapping[str, Any] | None = None,
    weights: Tensor | None = None,
) -> Warmed:
    """Warm up; see :class:`Warmup`.

    Args:
        executor: runs the transitions.
        kernel: what it runs.
        state: the kernel's first state.
        tuning: what to learn.
        num: how many transitions.
        seed: of the choice of donors for stuck chains.
        on_step: called after each transition; where it returns True warm-up ends there.
        saved: what :meth:`Warmup.state_dict` gave in an interrupted warm-up with the same arguments.
        weights: ``params["weights"]`` (P,), by default ones.

    Raises:
        SamplingError: the step size collapsed, or no chain has a finite energy.
    """
    warmup = Warmup(executor, kernel, state, tuning, num=num, seed=seed, weights=weights)
    if saved is not None:
        warmup.load_state_dict(saved)
    while not warmup.done:
        warmup.step()
        if on_step is not None and on_step(warmup):
            break
    return warmup.finish()


def _middle(step_sizes: Numbers) -> float:
    """Their median, on the scale of the logarithm."""
    return float(np.exp(np.median(np.log(step_sizes))))


def _no_schedule(first: int, num: int) -> dict[str, Tensor] | None:
    return None


def _jittered(
    longest: float, step_size: float, warmup: int, device: torch.device, first: int, num: int
) -> dict[str, Tensor]:
    counts = [num_steps(halton(warmup + first + i) * longest, step_size) for i in range(num)]
    return {"num_steps": torch.tensor(counts, device=device)}
