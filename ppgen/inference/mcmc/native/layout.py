"""What a generated program and its caller agree on: order, shapes and types of all that is passed.

A program holds W chains, a *group*, in the W lanes of each vector. Its entry points are

.. code-block:: c

    int ppgen_run(void** state, const void* const* uniform, const void* const* params,
                  const void* const* schedule, void** record, uint32_t* rng,
                  int64_t first_group, int64_t last_group, int64_t num_groups, int64_t num_transitions);
    int ppgen_energy(const void* const* uniform, const void* z, void* u, void* g,
                     int64_t first_group, int64_t last_group);

Each returns 0, or 1 where memory ran out. They work on the groups from ``first_group`` up to, without,
``last_group``; groups do not touch each other, so that threads may share them out.

- ``state[k]``, in the order of :attr:`Generated.state`: ``(G, numel, W)``, read and written.
- ``uniform[i]``: the data of ``Generated.uniforms[i]``.
- ``params[i]``, in the order of :attr:`Generated.params`: one value for all transitions, ``(numel,)``.
- ``schedule[i]``, in the same order: ``(num_transitions, numel)`` values that take its place, or null.
- ``record[k]``, in the order of the state: ``(num_transitions, G, numel, W)``, or null for what is not kept.
- ``rng``: ``(G, 4, W)`` 32-bit words, read and written.
- ``z``: ``(G, D, W)``; ``u``: ``(G, P, W)``; ``g``: ``(G, P, D, W)``.

Types: in state and records, floats are the run's dtype, ints and bools are integers of the same width
(int32 beside float32, int64 beside float64), and a bool is -1 or 0. Uniforms and params are the run's
dtype, or int64; a bool among them is -1 or 0 too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppgen.errors import CapabilityError

Kind = Literal["float", "int", "bool"]


class UnsupportedOperation(CapabilityError):
    """A program uses a tensor operation that cannot be compiled to lanes."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the program: its name, and its shape and kind for one chain."""

    name: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def numel(self) -> int:
        """How many numbers it has for one chain."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Generated:
    """A generated program.

    Attributes:
        source: C++ that includes ``ppgen.hpp``; it does not depend on the values of the data.
        double: whether lanes are double precision.
        state: entries of the state.
        params: what all chains share.
        uniforms: tensors that the program reads and no chain changes, contiguous, of the run's dtype or
            int64; the program keeps no reference, so the caller must.
        num_statements: how long the program is.
    """

    source: str
    double: bool
    state: tuple[Entry, ...]
    params: tuple[Entry, ...]
    uniforms: tuple[Tensor, ...]
    num_statements: int


def kind_of(dtype: torch.dtype) -> Kind:
    """The kind of a torch type."""
    if dtype == torch.bool:
        return "bool"
    if dtype.is_complex:
        raise UnsupportedOperation(f"{dtype} tensors cannot be compiled to lanes")
    return "float" if dtype.is_floating_point else "int"
