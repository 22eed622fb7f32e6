r"""Densities as the kernels see them: many chains at once, with gradients, free of Pyro.

A :class:`Density` is made once for a model and its data. It holds the traced program of *one* chain,
from which each executor makes what it runs: a batch of chains for torch, or compiled code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Density:
    r"""Minus a log density in P parts, :math:`U_p(z)`, z in :math:`R^D`.

    Attributes:
        num_dims: D.
        num_parts: P.
        single: parts (P,) in nats and gradients (P, D) at one point z of shape (D,). Where ``traceable``,
            a program of plain tensor operations: an fx graph, or a function that can be traced.
        batched: the same for points (C, D): parts (C, P) and gradients (C, P, D); an
            :class:`~ppgen.inference.mcmc.kernel.Energy`.
        traceable: whether ``single`` may be traced and compiled; else chains are run in a loop.
        occasional: as ``batched``, without a program of its own; see :meth:`evaluate`.
    """

    num_dims: int
    num_parts: int
    single: Callable[[Tensor], tuple[Tensor, Tensor]]
    batched: Callable[[Tensor], tuple[Tensor, Tensor]]
    traceable: bool = True
    occasional: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """As ``batched``, up to rounding, for a few calls: these do not pay for making a program."""
        return (self.occasional or self.batched)(z)
