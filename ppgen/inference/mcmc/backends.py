"""Chooses what runs the chains: compiled code where it pays and works, else torch as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ppgen.errors import CheckpointError, CompilationError, ConfigError, SamplingWarning
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.executor import EagerExecutor, Executor
from ppgen.inference.mcmc.inductor import InductorExecutor
from ppgen.inference.mcmc.kernel import Kernel, Params, State
from ppgen.inference.mcmc.native.executor import NativeExecutor
from ppgen.inference.mcmc.native.layout import UnsupportedOperation
from ppgen.ops.compiled import find_compiler

_Result = TypeVar("_Result")

#: What may be asked for; ``True`` is the compiled backend of the device.
Compile = Literal["auto", "native", "inductor"] | bool

# Compiling takes as long as about so many transitions of this many chains as they are.
_SMALL_TRANSITIONS = 50
_CHAINS_THAT_DOUBLE = 1000


@dataclass(frozen=True)
class Backend:
    """One way to run a kernel: its name, and how to make its executor once the dtype is known."""

    name: str
    make: Callable[[torch.dtype], Executor]


def make_executor(
    kernel: Kernel,
    density: Density,
    *,
    num_chains: int,
    seed: int,
    device: torch.device | str = "cpu",
    compile: Compile | str = "auto",
    work: int | None = None,
) -> ChosenExecutor:
    """The executor of a kernel on a density.

    ``"auto"`` takes, by counts and devices only, so that the same call takes the same way: torch as it
    is for small work; else native code on the CPU, and ``torch.compile`` on other devices. Where that
    turns out not to work (no compiler, a program that cannot be traced or has operations that the
    compiler lacks), torch as it is, warned once with the reason.

    Args:
        kernel: the kernel.
        density: the density.
        num_chains: C.
        seed: of the executor's random numbers.
        device: where the chains are.
        compile: ``"auto"``; ``"native"`` (CPU) or ``"inductor"`` (``torch.compile``); ``True`` for the
            compiled backend of the device; ``False`` for torch as it is. Compilation that was asked for
            does not fall back.
        work: how many transitions are to come; by default many.

    Raises:
        ConfigError: an unknown ``compile``, or native code asked for on another device than the CPU.
        CompilationError: compiled code was asked for and cannot be had: no compiler, or a density that
            cannot be traced. What shows only in the first transition is raised there.
    """
    device = torch.device(device)
    if compile is True:
        compile = "native" if device.type == "cpu" else "inductor"
    if compile not in ("auto", "native", "inductor", False):
        raise ConfigError(f"compile: expected 'auto', 'native', 'inductor', True or False, got {compile!r}")
    eager = Backend("eager", lambda _: EagerExecutor(kernel, density.batched, seed=seed, device=device))
    native = Backend(
        "native", lambda dtype: NativeExecutor(kernel, density, num_chains=num_chains, seed=seed, dtype=dtype)
    )
    inductor = Backend("inductor", lambda _: InductorExecutor(kernel, density, seed=seed, device=device))
    if compile == "native":
        if device.type != "cpu":
            raise ConfigError(
                f"compile: 'native' runs on the CPU, and the chains are on {device}; use 'inductor'"
            )
        _require_native(density)
        backends = [native]
    elif compile == "inductor":
        _require_traceable(density)
        backends = [inductor]
    elif compile is False or is_small(work, num_chains):
        backends = [eager]
    elif device.type == "cpu":
        backends = [native, eager]
    else:
        backends = [inductor, eager] if density.traceable else [eager]
    return ChosenExecutor(backends)


def is_small(work: int | None, num_chains: int) -> bool:
    """Whether ``work`` transitions of so many chains are done before a compiler would be."""
    return work is not None and work * (1 + num_chains / _CHAINS_THAT_DOUBLE) < _SMALL_TRANSITIONS


def _require_traceable(density: Density) -> None:
    if not density.traceable:
        raise CompilationError(
            "compile: the model cannot be compiled, since its program depends on values; leave compile='auto'"
        )


def _require_native(density: Density) -> None:
    _require_traceable(density)
    find_compiler()


class ChosenExecutor:
    """Runs a kernel on the first of several backends that can, chosen in the first calls.

    Args:
        backends: in the order of preference.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = list(backends)
        self._executor: Executor | None = None
        self._pending_rng: Tensor | None = None

    @property
    def backend(self) -> str:
        """Name of the backend: ``native``, ``inductor`` or ``eager``; may change in the first transition."""
        return self._backends[0].name

    @property
    def description(self) -> str:
        """What runs the chains, for people."""
        default = "torch, uncompiled" if self.backend == "eager" else self.backend
        return str(getattr(self._executor, "description", default))

    @property
    def info(self) -> dict[str, Any]:
        """The backend and, of a compiled one, what is known of its program."""
        return {"backend": self.backend, **getattr(self._executor, "info", {})}

    def init(self, z: Tensor, step_size: Tensor) -> State:
        """See :class:`~ppgen.inference.mcmc.executor.Executor`."""
        return self._first_that_works(z.dtype, lambda executor: executor.init(z, step_size))

    def run(
        self,
        state: State,
        params: Params,
        *,
        num: int,
        schedule: Params | None = None,
        record: Sequence[str] = (),
    ) -> tuple[State, dict[str, Tensor]]:
        """See :class:`~ppgen.inference.mcmc.executor.Executor`."""

        def run(executor: Executor) -> tuple[State, dict[str, Tensor]]:
            return executor.run(state, params, num=num, schedule=schedule, record=record)

        return self._first_that_works(state["z"].dtype, run)

    def rng_state(self) -> Tensor:
        """See :class:`~ppgen.inference.mcmc.executor.Executor`; empty before the first call."""
        if self._executor is not None:
            return self._executor.rng_state()
        return torch.empty(0, dtype=torch.uint8) if self._pending_rng is None else self._pending_rng

    def set_rng_state(self, value: Tensor) -> None:
        """See :class:`~ppgen.inference.mcmc.executor.Executor`."""
        self._pending_rng = value if value.numel() else None
        if self._executor is not None:
            self._set_pending_rng(self._executor)

    def _first_that_works(self, dtype: torch.dtype, call: Callable[[Executor], _Result]) -> _Result:
        while True:
            try:
                if self._executor is None:
                    executor = self._backends[0].make(dtype)
                    self._set_pending_rng(executor)
                    self._executor = executor
                return call(self._executor)
            except (CompilationError, UnsupportedOperation) as error:
                if len(self._backends) == 1:
                    raise
                failed = self._backends.pop(0)
                self._executor = None
                warnings.warn(
                    f"chains run without compiled code ({failed.name} to {self.backend}), "
                    f"which is slower: {error}",
                    SamplingWarning,
                    stacklevel=3,
                )

    def _set_pending_rng(self, executor: Executor) -> None:
        if self._pending_rng is None:
            return
        value, self._pending_rng = self._pending_rng, None
        try:
            executor.set_rng_state(value)
        except CheckpointError:
            raise
        except (RuntimeError, TypeError) as error:  # of torch's generators
            raise CheckpointError(
                f"random state: it was saved by another backend than {self.backend!r}, so the run cannot "
                "go on to the same draws; resume with the same `compile`, where there is the same compiler"
            ) from error
