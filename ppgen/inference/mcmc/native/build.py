"""Compiles programs of the sampler's code generator with the runtime's headers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppgen.ops import compiled
from ppgen.ops.compiled import Library

HEADERS = Path(__file__).parent / "runtime"

# Above this many statements optimising fully takes minutes.
_HUGE = 30_000


def build(
    source: str,
    *,
    double: bool,
    lanes: int | None = None,
    num_statements: int = 0,
    extra_flags: Sequence[str] = (),
) -> Library:
    """The library of a C++ program that includes ``ppgen.hpp``; compiled where it is not kept.

    Args:
        source: the program.
        double: whether its lanes are double precision.
        lanes: chains a vector; by default as many as fill 64 bytes.
        num_statements: how large it is; huge programs are optimised less.
        extra_flags: for the compiler.

    Raises:
        CompilationError: no compiler, or it failed, or the library could not be loaded.
    """
    flags = ["-O1" if num_statements > _HUGE else "-O2"]
    flags += ["-DPPGEN_DOUBLE"] * double + ([f"-DPPGEN_LANES={lanes}"] if lanes else [])
    return compiled.build(source, headers=HEADERS, flags=(*flags, *extra_flags))
