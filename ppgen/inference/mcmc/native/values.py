"""Values beside views of buffers: what is put together of pieces, what no chain changes, literals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppgen.inference.mcmc.native.layout import Kind, kind_of
from ppgen.inference.mcmc.native.program import Buffer, Value


@dataclass(frozen=True)
class Region:
    """Where a piece lies in a tensor.

    Attributes:
        starts: first index of each dimension of the tensor.
        runs: for each dimension of the piece, the dimension that it runs along, and its step.
    """

    starts: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]

    def inside(self, outer: Region) -> Region:
        """Of this region's piece, where this is a region of what lies at ``outer``."""
        starts = list(outer.starts)
        for start, (dim, step) in zip(self.starts, outer.runs, strict=True):
            starts[dim] += start * step
        runs = tuple((outer.runs[d][0], outer.runs[d][1] * step) for d, step in self.runs)
        return Region(tuple(starts), runs)

    def interval(self, dim: int, shape: Sequence[int]) -> tuple[int, int]:
        """First and last index along a dimension, for a piece of this shape."""
        first = last = self.starts[dim]
        for extent, (along, step) in zip(shape, self.runs, strict=True):
            if along == dim:
                last += (extent - 1) * step
        return first, last


@dataclass(frozen=True)
class Pieces:
    """A tensor that is zero but for pieces that do not overlap."""

    shape: tuple[int, ...]
    kind: Kind
    pieces: tuple[tuple[Region, Value], ...]

    def disjoint(self, other: Pieces) -> bool:
        """Whether no piece of one overlaps one of the other."""
        return all(
            any(
                a.interval(d, x.shape)[1] < b.interval(d, y.shape)[0]
                or b.interval(d, y.shape)[1] < a.interval(d, x.shape)[0]
                for d in range(len(self.shape))
            )
            for a, x in self.pieces
            for b, y in other.pieces
        )


@dataclass
class Uniforms:
    """The tensors that a program reads and no chain changes."""

    dtype: torch.dtype
    tensors: list[Tensor] = field(default_factory=list)
    buffers: dict[tuple[int, str], Buffer] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    def add(self, tensor: Tensor, transform: str = "") -> Buffer:
        """The buffer of a tensor; ``reciprocal`` or ``wrap:n`` (negative indices into n) apply first."""
        key = (id(tensor), transform)
        if key not in self.buffers:
            self.kept.append(tensor)  # so that its id stays its own
            kind = kind_of(tensor.dtype)
            data = tensor.detach()
            if kind == "bool":
                data = -data.to(torch.int64)
            else:
                data = data.to(self.dtype if kind == "float" else torch.int64)
            if transform == "reciprocal":
                data = data.reciprocal()
            elif transform:
                size = int(transform.partition(":")[2])
                data = torch.where(data < 0, data + size, data)
            name = f"u{len(self.tensors)}"
            self.tensors.append(data.contiguous())
            self.buffers[key] = Buffer(name, tuple(tensor.shape), kind, "uniform")
        return self.buffers[key]

    def transpose_of(self, matrix: Tensor) -> Buffer | None:
        """The uniform that is the transpose of ``matrix``, if one is: it need not be read twice."""
        for kept in self.kept:
            same_type = kept.dtype == matrix.dtype and kept.dtype != torch.bool
            if same_type and matrix.ndim == 2 and kept.shape == matrix.mT.shape and min(kept.shape) > 1:
                buffer = self.buffers.get((id(kept), ""))
                if buffer is not None and torch.equal(kept, matrix.mT):
                    return buffer
        return None


def is_whole(value: Value) -> bool:
    """Whether a value is all of its buffer, in its order."""
    buffer = value.buffer
    return (
        buffer is not None
        and value.view.storage_offset() == 0
        and value.view.is_contiguous()
        and value.view.numel() == buffer.numel
    )


def literal(number: float | int | bool, kind: Kind) -> str:
    """C++ for one number in all lanes."""
    if kind == "bool":
        return f"splat_int({-1 if number else 0})"
    if kind == "int":
        return f"splat_int({int(number)}L)"
    number = float(number)
    if math.isnan(number):
        return 'splat((T)__builtin_nan(""))'
    if math.isinf(number):
        return "splat(INF)" if number > 0 else "splat(-INF)"
    return f"splat((T){number!r})"


_CONVERSIONS: dict[tuple[Kind, Kind], str] = {
    ("float", "int"): "to_int({})",
    ("float", "bool"): "(I)({} != splat(0))",
    ("int", "float"): "to_float({})",
    ("int", "bool"): "(I)({} != splat_int(0))",
    ("bool", "float"): "select({}, splat(1), splat(0))",
    ("bool", "int"): "({} & 1)",
}


def conversion(given: Kind, wanted: Kind) -> str:
    """C++ around ``{}`` that converts."""
    return "{}" if given == wanted else _CONVERSIONS[given, wanted]


def long_dims(shape: Sequence[int]) -> list[int]:
    """The dimensions that are loops: all but those of extent 1."""
    return [d for d, n in enumerate(shape) if n != 1]
