"""Executors run transitions of a kernel on all chains: as they are, or compiled.

Every executor has the same face, so that warm-up, sampling, annealing and particle methods do not
know which one they drive. Random numbers are the executor's own; torch's global generators are
never touched. The same executor, seed and calls give the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ppgen.inference.mcmc.kernel import Energy, Kernel, Noise, NoiseSpec, Params, State

# A host that does not know how many calls are left asks the device only now and then.
_CALLS_BETWEEN_LOOKS = 8


class Executor(Protocol):
    """Runs transitions."""

    def init(self, z: Tensor, step_size: Tensor) -> State:
        """The kernel's first state at the points z (C, D), with step sizes (C,)."""

    def run(
        self,
        state: State,
        params: Params,
        *,
        num: int,
        schedule: Params | None = None,
        record: Sequence[str] = (),
    ) -> tuple[State, dict[str, Tensor]]:
        """Run ``num`` transitions of every chain.

        Args:
            state: where the chains stand.
            params: what all chains share.
            num: how many transitions.
            schedule: params that change with the transition, each ``(num, ...)``.
            record: entries of the state to keep after each transition.

        Returns:
            The state after the last transition, and each recorded entry as ``(num, C, ...)``.
        """

    def rng_state(self) -> Tensor:
        """The state of the executor's generator, for checkpoints."""

    def set_rng_state(self, value: Tensor) -> None:
        """Go on from a state that :meth:`rng_state` gave."""


class EagerExecutor:
    """Runs a kernel as it is, one torch operation after the other.

    Args:
        kernel: the kernel.
        energy: the batched density.
        seed: of the executor's own generator, which lives on ``device``.
        device: where the chains are.
    """

    def __init__(
        self, kernel: Kernel, energy: Energy, *, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.kernel, self.energy = kernel, energy
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def init(self, z: Tensor, step_size: Tensor) -> State:
        """See :class:`Executor`."""
        return self.kernel.init(z, self.energy, step_size)

    @torch.no_grad()
    def run(
        self,
        state: State,
        params: Params,
        *,
        num: int,
        schedule: Params | None = None,
        record: Sequence[str] = (),
    ) -> tuple[State, dict[str, Tensor]]:
        """See :class:`Executor`."""
        kept: dict[str, list[Tensor]] = {name: [] for name in record}
        for step in range(num):
            now = params | {name: values[step] for name, values in (schedule or {}).items()}
            state = self._transition(state, now)
            for name in record:
                kept[name].append(state[name])
        return state, {name: torch.stack(values) for name, values in kept.items() if values}

    def rng_state(self) -> Tensor:
        """See :class:`Executor`."""
        return self._generator.get_state()

    def set_rng_state(self, value: Tensor) -> None:
        """See :class:`Executor`."""
        self._generator.set_state(value)

    def _transition(self, state: State, params: Params) -> State:
        kernel = self.kernel
        state = kernel.begin(state, params, self._draw(kernel.begin_noise, state["z"]))
        if kernel.ends_together:
            for _ in range(int(params["num_steps"])):
                state = self._advance(state, params)
        else:
            looks = 1 if state["z"].device.type == "cpu" else _CALLS_BETWEEN_LOOKS
            while bool(state["active"].any()):
                for _ in range(looks):
                    state = self._advance(state, params)
        return kernel.end(state, params, self._draw(kernel.end_noise, state["z"]))

    def _advance(self, state: State, params: Params) -> State:
        noise = self._draw(self.kernel.advance_noise, state["z"])
        return self.kernel.advance(state, params, self.energy, noise)

    def _draw(self, specs: Mapping[str, NoiseSpec], z: Tensor) -> Noise:
        draw = {"normal": torch.randn, "uniform": torch.rand}
        return {
            name: draw[spec.kind](
                len(z), *spec.shape, generator=self._generator, dtype=z.dtype, device=z.device
            )
            for name, spec in specs.items()
        }
