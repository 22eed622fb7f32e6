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
from collections.abc import Callable, Mapping, Sequence
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
from ppgen.inference.mcmc.adaptation.trajectory import ChEES, chees_gradients, jitter, num_steps
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
#: Sampling takes trajectories so much longer than those that change squares most: means profit more than
#: squares lose (for a normal, correlations of -.46 and .33 between draws, in place of .07 and .08).
STRETCH = 1.4
_STILL = 1.0  # change of energy within a window, in nats, of a chain that stands still
_BLOCK = 4  # transitions of many chains between two changes of the step size


class Warmup:
    """Warm-up in steps of a few transitions; between two of them it may be saved, and go on elsewhere.

    Args:
        executor: runs the transitions.
        kernel: what it runs.
        state: the kernel's first state.
        tuning: what to learn.
        num: how many transitions.
        seed: of the choice of donors for stuck chains.
        weights: ``params["weights"]`` (P,), by default ones.
        record: entries of the state to keep of each transition, for the caller to look at.

    Attributes:
        completed: how many transitions were made.
        state: where the chains stand, with their next step sizes.
        params: what they share.
        recorded: entries of ``record``, each ``(num, C, ...)``, of the newest transitions.
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
        record: Sequence[str] = (),
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
        self._lowest = torch.full((self._num_chains,), math.inf, dtype=torch.float64)
        self._highest = -self._lowest
        self._restarts: list[Restart] = []
        self.recorded: dict[str, Tensor] = {}
        self._record = tuple(record)
        self._step_size_like = state["step_size"].detach()
        self._set_step_size()

    @property
    def done(self) -> bool:
        """Whether all transitions were made."""
        return self.completed >= self.num

    @property
    def step_size(self) -> float:
        """The step size of the next transition; the median over chains."""
        return float(np.median(self._next) if isinstance(self._next, np.ndarray) else self._next)

    def step(self) -> None:
        """Make the next transition, or the next few, and learn from them.

        Raises:
            SamplingError: the step size collapsed, or no chain has a finite energy.
        """
        num, before = self._num_next(), self.state
        lengths = [jitter(self.completed + i) for i in range(num)]
        learns_length, learns_mass = self._learns_length(), self._learns_mass(num)
        wanted = {"accept_prob", "u", *self._record}
        if learns_mass or learns_length:
            wanted.add("z")
        if learns_length:
            wanted |= {"new_z", "momentum"}
        self.state, self.recorded = self.executor.run(
            before,
            self.params,
            num=num,
            schedule=self._schedule_now(lengths),
            record=sorted(wanted),
        )
        self.completed += num
        accept = self.recorded["accept_prob"].detach().to("cpu", torch.float64).numpy()
        parts = self.recorded["u"]
        energies = total(parts.flatten(0, 1), self.params).view(parts.shape[:2])
        self._lowest = torch.minimum(self._lowest, energies.amin(0).double().cpu())
        self._highest = torch.maximum(self._highest, energies.amax(0).double().cpu())
        if self._search is None:
            self._accept_sum = self._accept_sum + accept.sum(0)
            self._accept_count += num
        if learns_length:
            gradients = chees_gradients(before["z"], self.recorded, self.params["scale"])
            self._length.update(gradients, lengths, self.step_size)
        if learns_mass:
            self._moments.add(self.recorded["z"].flatten(0, 1))
        self._learn(accept)
        if self.completed == self._windows[self._window].stop:
            self._end_window()
        self._set_step_size()

    def finish(self) -> Warmed:
        """The tuned kernel."""
        step_size = self._final_step_size()
        state = self.state | {"step_size": torch.full_like(self.state["step_size"], step_size)}
        fixed = self.tuning.trajectory_length
        longest = STRETCH * self._length.average if isinstance(fixed, str) else fixed
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
            "lowest": self._lowest,
            "highest": self._highest,
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
        self._lowest, self._highest = saved["lowest"].cpu(), saved["highest"].cpu()
        self._restarts = [Restart(**item) for item in saved["restarts"]]
        self.executor.set_rng_state(saved["rng"])
        self._next = self._step_sizes()

    def _kind(self) -> str:
        return self._windows[min(self._window, len(self._windows) - 1)].kind

    def _count(self, value: int) -> Tensor:
        return torch.tensor(value, device=self.state["z"].device)

    def _num_next(self) -> int:
        """How many transitions to make before the next look at them.

        Many chains tell so much in one transition that a few more with the same step size lose nothing.
        """
        if self._num_chains < MANY_CHAINS or self._search is not None or self._kind() == "first":
            return 1
        return min(_BLOCK, self._windows[self._window].stop - self.completed)

    def _learns_mass(self, num: int) -> bool:
        """Whether the next ``num`` draws belong to the next mass matrix."""
        window = self._windows[self._window]
        if not self.tuning.adapt_mass_matrix or self._search is not None or window.kind == "last":
            return False
        return window.kind == "mass" or self.completed + num > window.stop // 2

    def _learns_length(self) -> bool:
        return self.tuning.chees and self._search is None and self._kind() != "first"

    def _schedule_now(self, lengths: Sequence[float]) -> Params | None:
        """What changes with each of the next transitions, whose lengths relative to the longest are given."""
        if not self.kernel.ends_together:
            return None
        tuning = self.tuning
        if self._search is not None:
            counts = [1] * len(lengths)
        elif isinstance(tuning.trajectory_length, float | int):
            counts = [num_steps(tuning.trajectory_length, self.step_size)] * len(lengths)
        elif not tuning.chees:
            counts = [tuning.num_steps or 1] * len(lengths)
        elif self._kind() == "first":
            counts = [math.ceil(_FIRST_STEPS * h) for h in lengths]
        else:
            counts = [num_steps(h * self._length.now, self.step_size) for h in lengths]
        return {"num_steps": torch.tensor(counts, device=self._step_size_like.device)}

    def _learn(self, accept: NDArray[np.float64]) -> None:
        """Learn from acceptances (num, C) and the draws."""
        kind = self._kind()
        if self._search is not None:
            self._search.update(accept[0])
            if self._search.done or self.completed == self._windows[self._window].stop:
                self._own.restart(self._search.step_size)
                self._pooled.restart(_middle(self._search.step_size))
                self._search = None
            return
        if self.tuning.adapt_step_size:
            for values in accept:
                if kind == "first":
                    self._own.update(values)
                else:
                    self._pooled.update(float(values.mean()))

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
            self._lowest = torch.full_like(self._lowest, math.inf)
            self._highest = -self._lowest
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
        found = stuck_chains(u, accept, self._num_dims, self._lowest)
        healthy = ~torch.stack([*found.values(), torch.zeros_like(u, dtype=torch.bool)]).any(0)
        if not bool(healthy.any()):
            return
        generator = torch.Generator().manual_seed(self.seed + self.completed)
        # A chain whose energy still changed in the first half may only have been slow to arrive.
        arriving = self._highest - self._lowest > _STILL
        if self.completed > self.num // 2:
            arriving = torch.zeros_like(arriving)
        for reason, chosen in found.items():
            for stuck in (True, False):
                chains = chosen & (arriving != stuck)
                if bool(chains.any()):
                    self.state, places, donors = restart(self.state, chains, healthy, generator)
                    self._restarts.append(
                        Restart(self.completed, places.tolist(), donors.tolist(), reason, stuck)
                    )

    def _final_step_size(self) -> float:
        if not self.tuning.adapt_step_size or self.num == 0:
            return self.tuning.step_size
        return float(self._pooled.average)

    def _step_sizes(self) -> Numbers:
        """Of the next transition: one, or one for each chain."""
        if self._search is not None:
            return self._search.step_size
        if not self.tuning.adapt_step_size:
            return self.tuning.step_size
        return self._own.now if self.num > 0 and self._kind() == "first" else self._pooled.now

    def _set_step_size(self) -> None:
        """Give the chains their next step sizes."""
        self._next, like = self._step_sizes(), self._step_size_like
        if isinstance(self._next, np.ndarray):
            values = torch.from_numpy(self._next).to(like)
        else:
            values = torch.full_like(like, float(self._next))
        self.state = self.state | {"step_size": values}

    def _warnings(self, accept: float) -> list[str]:
        target = self.tuning.target(self.kernel.name)
        result = [
            f"{len(item.chains)} of {self._num_chains} chains were {item.reason} after {item.transition} "
            f"transitions of warm-up and were started again from others: {item.chains}. Look for a second "
            "mode, a tail without gradient, or starting points that are too far out"
            for item in self._restarts
            if item.stuck
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
        on_step: called after each step; where it returns True warm-up ends there.
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
    counts = [num_steps(jitter(warmup + first + i) * longest, step_size) for i in range(num)]
    return {"num_steps": torch.tensor(counts, device=device)}
