r"""From a function of one chain's position to a small program of plain tensor operations.

Tracing runs a density and its gradient once (:mod:`ppgen.inference.mcmc.tracer`). What comes out is a
``torch.fx.GraphModule`` over aten operations in functional form: no Pyro, no autograd, no writing in
place, composite operations taken apart. What does not depend on the position was computed once, and is
held as buffers of the module (``get_attr`` nodes), never as numbers in the program.

Every pass is linear in the number of nodes: a solver of differential equations written as a Python loop
gives tens of thousands.
"""

from __future__ import annotations

import functools
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, fx

from ppgen.errors import SamplingWarning
from ppgen.inference.mcmc import passes
from ppgen.inference.mcmc.tracer import WritesThroughViewError, record

aten = torch.ops.aten

Pieces = Callable[[Sequence[Tensor]], Sequence[Tensor]]

# Composite operations that torch's core set keeps, and that are short programs of simpler ones.
_TAKEN_APART = (
    aten._softmax, aten._log_softmax, aten._softmax_backward_data, aten._log_softmax_backward_data,
    aten.logsumexp, aten.var, aten.std, aten.var_mean, aten.std_mean, aten.addmm, aten.addmv, aten.addbmm,
    aten.baddbmm, aten.native_layer_norm, aten.native_layer_norm_backward, aten.native_group_norm, aten.silu,
    aten.silu_backward, aten.softplus, aten.softplus_backward, aten.logit, aten.logit_backward, aten.xlogy,
    aten.special_xlog1py, aten.log_sigmoid_forward, aten.log_sigmoid_backward, aten.logaddexp,
    aten.logaddexp2, aten.logcumsumexp, aten.addcmul, aten.addcdiv, aten.lerp, aten.mse_loss, aten.stack,
    aten.hardtanh, aten.leaky_relu, aten.elu, aten.sigmoid_backward, aten.tanh_backward,
    aten.threshold_backward, aten.gelu, aten.gelu_backward, aten.trace, aten.dot, aten.tril, aten.triu,
    aten.nan_to_num, aten.rsub, aten.frac, aten.heaviside, aten.mv, aten.unsafe_split,
    aten.unsafe_split_with_sizes, aten.diag_embed,
    aten.diagonal_backward, aten.unfold_backward, aten._euclidean_dist, aten.native_dropout,
    aten.linalg_vector_norm, aten.norm, aten.square, aten.new_zeros, aten.new_ones, aten.zeros_like,
    aten.ones_like, aten.mvlgamma, aten.sinc, aten.special_entr,
)  # fmt: skip


@functools.cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Rules that take composite operations apart."""
    table: dict[Any, Callable[..., Any]] = dict(torch._decomp.core_aten_decompositions())
    registry = torch._decomp.decomposition_table
    for packet in _TAKEN_APART:
        for overload in packet.overloads():
            rule = registry.get(getattr(packet, overload))
            if rule is not None:
                table[getattr(packet, overload)] = rule
    table[aten.slice_backward.default] = _slice_backward
    table[aten.select_backward.default] = _select_backward
    return table


def _slice_backward(
    gradient: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Tensor:
    """The gradient of a slice: zeros around it. Torch's own rule batches badly."""
    dim = dim % len(sizes)
    start, end, step = slice(start, end, step).indices(sizes[dim])
    if step != 1:
        index = torch.arange(start, end, step, device=gradient.device)
        return gradient.new_zeros(tuple(sizes)).index_add(dim, index, gradient)
    pads = [0, 0] * (len(sizes) - dim - 1) + [start, sizes[dim] - start - gradient.shape[dim]]
    return aten.constant_pad_nd.default(gradient, pads, 0.0)


def _select_backward(gradient: Tensor, sizes: Sequence[int], dim: int, index: int) -> Tensor:
    """The gradient of a selection: zeros around it."""
    dim = dim % len(sizes)
    index = index % sizes[dim]
    return _slice_backward(gradient.unsqueeze(dim), sizes, dim, index, index + 1, 1)


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


def trace(function: Callable[..., Any], *example: Tensor) -> fx.GraphModule:
    """Record a function of tensors as a functional program of aten operations.

    Raises:
        ConfigError: the function draws random numbers.
    """
    try:
        graph = record(function, example, decompositions())
    except WritesThroughViewError:
        functional = torch.func.functionalize(function, remove="mutations")
        graph = record(functional, example, decompositions())
    return passes.tidied(graph)


def trace_with_gradients(parts: Pieces, shapes: Sequence[torch.Size], z: Tensor) -> fx.GraphModule:
    """Record :func:`with_gradients` of ``parts`` at the point z (D,).

    Raises:
        ConfigError: ``parts`` draws random numbers.
    """
    try:
        graph = record(lambda point: with_gradients(parts, shapes, point), (z,), decompositions())
    except WritesThroughViewError:
        # Writing is taken out before gradients are: theirs would be in terms of strides.
        forward = trace(lambda *pieces: tuple(parts(pieces)), *split(z.detach(), shapes))
        graph = record(
            lambda point: with_gradients(lambda p: forward(*p), shapes, point), (z,), decompositions()
        )
    return passes.tidied(graph)


def batched(single: Callable[..., Any], z: Tensor) -> fx.GraphModule:
    """The program of one chain (D,) made one of all chains, for as many as ``z`` (C, D) has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of operations that it batches by a loop
        return trace(torch.func.vmap(single), z)


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
