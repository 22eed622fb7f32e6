"""A function of one chain's position, traced where it can be, and run for many chains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from ppgen.errors import ConfigError, SamplingWarning
from ppgen.inference.mcmc import graph
from ppgen.inference.mcmc.density import Density

Function = Callable[[Tensor], tuple[Tensor, ...]]

# How far a traced program may be from the function that it was made of, relative to the largest entry.
_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-7}


class Program:
    """The program; it is traced here, and for each new number of chains.

    Where tracing fails, or where the traced program disagrees with the function at other points, the
    function itself is run for one chain after the other, and a ``SamplingWarning`` says so.

    Args:
        function: from a point (D,) to tensors.
        examples: points; the first is traced, the others are for the check.
        record: traces the function at a point; :func:`ppgen.inference.mcmc.graph.trace` unless given.

    Attributes:
        single: the traced program, or the function.
        traceable: whether it was traced.
    """

    def __init__(
        self, function: Function, examples: Tensor, record: Callable[[Tensor], fx.GraphModule] | None = None
    ) -> None:
        self._function = function
        self.single: Function = function
        self.traceable = False
        self._by_chains: dict[int, fx.GraphModule] = {}
        self._batches = True
        try:
            traced = record(examples[0]) if record else graph.trace(function, examples[0])
        except ConfigError:
            raise
        except Exception as error:
            graph.warn_slow("the model cannot be traced", error)
            return
        if agrees(traced, function, examples[1:]):
            self.single, self.traceable = traced, True
        else:
            warnings.warn(
                "the traced model disagrees with the model itself at other points, so it decides by values "
                "that tracing does not see; the chains are evaluated one after the other, which is slower. "
                "Write branches on latents as torch.where",
                SamplingWarning,
                stacklevel=2,
            )

    def batched(self, z: Tensor) -> tuple[Tensor, ...]:
        """What ``single`` gives for each row of z (C, D), stacked."""
        if self.traceable and self._batches:
            if len(z) not in self._by_chains:
                self._by_chains = {}  # a program holds constants of its own: keep one
                try:
                    self._by_chains[len(z)] = graph.batched(self.single, z)
                except Exception as error:
                    graph.warn_slow("the model cannot be evaluated for many chains at once", error)
                    self._batches = False
            if self._batches:
                return tuple(self._by_chains[len(z)](z))
        rows = [self.single(row) for row in z]
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def occasional(self, z: Tensor) -> tuple[Tensor, ...]:
        """As :meth:`batched`, without making a program for this number of chains."""
        if self.traceable and self._batches and len(z) not in self._by_chains:
            try:
                return graph.at_once(self.single, z)
            except RuntimeError:
                pass  # says why in the other way
        return self.batched(z)

    def density(self, num_dims: int, num_parts: int) -> Density:
        """The program as a density; its function must give values and gradients."""
        return Density(
            num_dims,
            num_parts,
            self.single,  # type: ignore[arg-type]
            self.batched,  # type: ignore[arg-type]
            self.traceable,
            self.occasional,  # type: ignore[arg-type]
        )


def energy_program(parts: graph.Pieces, shapes: Sequence[torch.Size], examples: Tensor) -> Program:
    """The program of values and gradients of ``parts`` of the pieces of z."""
    return Program(
        lambda z: graph.with_gradients(parts, shapes, z),
        examples,
        lambda z: graph.trace_with_gradients(parts, shapes, z),
    )


def agrees(traced: Function, function: Function, points: Tensor) -> bool:
    """Whether two functions agree at each of ``points``, up to rounding; NaN agrees with NaN."""
    tolerance = _TOLERANCE[points.dtype]
    with torch.no_grad():
        for point in points:
            for a, b in zip(traced(point), function(point), strict=True):
                scale = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
                if not torch.allclose(
                    a.to(torch.float64),
                    b.to(torch.float64),
                    rtol=tolerance,
                    atol=tolerance * (1.0 + scale),
                    equal_nan=True,
                ):
                    return False
    return True
