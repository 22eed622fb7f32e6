r"""From a function of one chain's position to a small program of plain tensor operations.

Tracing runs a density and its gradient once (:mod:`ppgen.inference.mcmc.tracer`). What comes out is a
``torch.fx.GraphModule`` over aten operations in functional form: no Pyro, no autograd, no writing in
place, composite operations taken apart. What does not depend on the position was computed once, and is
held as buffers of the module (``get_attr`` nodes), never as numbers in the program.

Every pass is linear in the number of nodes: a solver of differential equations written as a Python loop
gives tens of thousands.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, fx

from ppgen.errors import SamplingWarning
from ppgen.inference.mcmc import passes
from ppgen.inference.mcmc.rules import decompositions
from ppgen.inference.mcmc.tracer import WritesThroughViewError, record

Pieces = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def with_gradients(parts: Pieces, shapes: Sequence[torch.Size], z: Tensor) -> tuple[Tensor, Tensor]:
    """Values (P,) of ``parts`` and their gradients (P, D) at z (D,), by autograd."""
    with torch.enable_grad():
        # Pieces are the leaves, so that no gradient is ever scattered into all of z.
        pieces = [piece.detach().requires_grad_() for piece in split(z.detach(), shapes)]
        values = parts(pieces)
        rows = []
        for value in values:
            # create_graph makes autograd add gradients up without writing in place.
            found = (
                torch.autograd.grad(value, pieces, retain_graph=True, create_graph=True, allow_unused=True)
                if value.requires_grad
                else [None] * len(pieces)
            )
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(pieces, found, strict=True)]
            rows.append(torch.cat([g.reshape(-1) for g in filled]))
    return torch.stack([v.detach() for v in values]), torch.stack([row.detach() for row in rows])


def split(z: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The pieces of z (..., D), each ``(..., *shape)``."""
    pieces, start = [], 0
    for shape in shapes:
        size = shape.numel()
        pieces.append(z[..., start : start + size].reshape((*z.shape[:-1], *shape)))
        start += size
    return pieces


def trace(
    function: Callable[..., Any], *example: Tensor, rules: Mapping[Any, Callable[..., Any]] | None = None
) -> fx.GraphModule:
    """Record a function of tensors as a functional program of aten operations.

    Args:
        function: the function.
        *example: its arguments.
        rules: how composite operations are taken apart; :func:`decompositions` unless given.

    Raises:
        ConfigError: the function draws random numbers.
    """
    rules = decompositions() if rules is None else rules
    try:
        draft = record(function, example, rules)
    except WritesThroughViewError:
        functional = torch.func.functionalize(function, remove="mutations")
        draft = record(functional, example, rules)
    return passes.tidied(draft)


def trace_with_gradients(parts: Pieces, shapes: Sequence[torch.Size], z: Tensor) -> fx.GraphModule:
    """Record :func:`with_gradients` of ``parts`` at the point z (D,).

    Raises:
        ConfigError: ``parts`` draws random numbers.
    """
    try:
        draft = record(lambda point: with_gradients(parts, shapes, point), (z,), decompositions())
    except WritesThroughViewError:
        # Writing is taken out before gradients are: theirs would be in terms of strides.
        forward = trace(lambda *pieces: tuple(parts(pieces)), *split(z.detach(), shapes))
        draft = record(
            lambda point: with_gradients(lambda p: forward(*p), shapes, point), (z,), decompositions()
        )
    return passes.tidied(draft)


def batched(single: Callable[..., Any], z: Tensor) -> fx.GraphModule:
    """The program of one chain (D,) made one of all chains, for as many as ``z`` (C, D) has."""
    return trace(lambda points: at_once(single, points), z)


def at_once(single: Callable[..., Any], z: Tensor) -> Any:
    """What the program of one chain (D,) gives for each row of z (C, D), stacked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of operations that it batches by a loop
        return torch.func.vmap(single)(z)


def users_line(error: BaseException) -> str:
    """`` at file:line: code`` of the innermost frame of an error that is the user's; empty if none."""
    libraries = [str(Path(module.__file__ or "").parent) for module in (torch, pyro)]
    libraries.append(str(Path(__file__).parents[2]))
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*libraries, "<"))]
    if not own:
        return ""
    return f" at {own[-1].filename}:{own[-1].lineno}: {(own[-1].line or '').strip()}"


def warn_slow(what: str, error: BaseException) -> None:
    """Say that chains will be run one after the other, and why."""
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    warnings.warn(
        f"{what} ({type(error).__name__}: {reason}){users_line(error)}; the chains are evaluated one "
        "after the other, which is slower. Branches on values of latents and .item() are the usual cause: "
        "write torch.where instead",
        SamplingWarning,
        stacklevel=3,
    )
