"""Runs transitions through ``torch.compile``: for CUDA, and for the CPU on request."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import torch

from ppgen.errors import SamplingWarning
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.executor import EagerExecutor
from ppgen.inference.mcmc.kernel import Kernel
from ppgen.inference.memory import is_out_of_memory


class InductorExecutor(EagerExecutor):
    """Runs the kernel's functions, compiled one by one; what cannot be compiled runs as it is, warned once.

    The first call of each function takes seconds. Random numbers are drawn outside, so draws are those
    of :class:`~ppgen.inference.mcmc.executor.EagerExecutor` up to rounding.

    Args:
        kernel: the kernel.
        density: the density.
        seed: of the executor's own generator, which lives on ``device``.
        device: where the chains are.

    Attributes:
        failures: for each function that runs as it is, why.
    """

    def __init__(
        self, kernel: Kernel, density: Density, *, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.failures: dict[str, str] = {}
        compiled = replace(
            kernel,
            begin=self._compiled("begin", kernel.begin),
            advance=self._compiled("advance", kernel.advance),
            end=self._compiled("end", kernel.end),
        )
        super().__init__(compiled, density.batched, seed=seed, device=device)
        self._device = torch.device(device)

    @property
    def description(self) -> str:
        """What runs the chains, for people."""
        failed = f", except {', '.join(sorted(self.failures))}" if self.failures else ""
        return f"torch.compile on {self._device}{failed}"

    def _compiled(self, name: str, function: Callable[..., Any]) -> Any:
        # The first use of torch.compile switches off the validation of distributions.
        validation = pyro.settings.get("validate_distributions_torch")
        with pyro.settings.context(validate_distributions_torch=validation):
            compiled = torch.compile(_own_code(function), fullgraph=True, dynamic=False)

        def call(*args: Any) -> Any:
            if name not in self.failures:
                try:
                    return compiled(*args)
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    self._give_up(name, error)
            # An error of the program itself comes again here, as it is.
            return function(*args)

        return call

    def _give_up(self, name: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        if not self.failures:
            warnings.warn(
                f"torch.compile failed on {name!r} of the kernel, which runs uncompiled: {reason}",
                SamplingWarning,
                stacklevel=2,
            )
        self.failures[name] = reason


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` under a code object of its own: programs are counted, and limited, by code object."""

    def call(*args: Any) -> Any:
        return function(*args)

    return types.FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
