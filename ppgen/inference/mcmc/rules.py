"""How composite tensor operations are taken apart: torch's rules, and short ones of our own.

Many of torch's own go through its reference implementations, whose first use in a process imports a
computer algebra system and the compiler's front end, more than a second in all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

# Composite operations that torch's core set keeps, and that are short programs of simpler ones.
_TAKEN_APART = (
    aten.var, aten.std, aten.var_mean, aten.std_mean, aten.addmm, aten.addmv, aten.addbmm,
    aten.baddbmm, aten.native_layer_norm, aten.native_layer_norm_backward, aten.native_group_norm, aten.silu,
    aten.silu_backward, aten.logit, aten.logit_backward, aten.xlogy,
    aten.special_xlog1py, aten.logaddexp,
    aten.logaddexp2, aten.logcumsumexp, aten.addcmul, aten.addcdiv, aten.lerp, aten.mse_loss,
    aten.hardtanh, aten.leaky_relu, aten.elu, aten.gelu, aten.gelu_backward, aten.trace, aten.dot,
    aten.frac, aten.heaviside, aten.mv, aten.unsafe_split,
    aten.unsafe_split_with_sizes,
    aten.diagonal_backward, aten.unfold_backward, aten._euclidean_dist, aten.native_dropout,
    aten.linalg_vector_norm, aten.norm, aten.mvlgamma, aten.sinc, aten.special_entr,
)  # fmt: skip

# Views, and operations that batch and compile as they are.
_KEPT = (aten.transpose, aten.t, aten.tril, aten.triu, aten.diag_embed)


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
    for packet in _KEPT:
        for overload in packet.overloads():
            table.pop(getattr(packet, overload), None)
    return table | OWN


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


def _select_scatter(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    dim = dim % x.ndim
    index = index % x.shape[dim]
    pieces = [x.narrow(dim, 0, index), source.unsqueeze(dim)]
    pieces.append(x.narrow(dim, index + 1, x.shape[dim] - index - 1))
    return torch.cat(pieces, dim)


def _like(number: float) -> Callable[..., Tensor]:
    """Of the shape of another tensor, and independent of its values."""

    def made(x: Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
        return torch.full(x.shape, number, dtype=dtype or x.dtype, device=device or x.device)

    return made


def _new(number: float) -> Callable[..., Tensor]:
    def made(x: Tensor, size: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
        return torch.full(tuple(size), number, dtype=dtype or x.dtype, device=device or x.device)

    return made


def _number(number: Any, beside: Tensor) -> Tensor:
    """A number as a tensor that promotes as the number does."""
    return torch.scalar_tensor(number, dtype=torch.result_type(beside, number), device=beside.device)


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    dim = dim % (tensors[0].ndim + 1)
    return torch.cat([x.unsqueeze(dim) for x in tensors], dim)


def _reverse_subtract(x: Tensor, other: Any, alpha: Any = 1) -> Tensor:
    from_what = other if isinstance(other, Tensor) else _number(other, x)
    return torch.sub(from_what, x if alpha == 1 else x * alpha)


def _where_number(condition: Tensor, x: Any, y: Any) -> Tensor:
    if isinstance(x, Tensor):
        return torch.where(condition, x, _number(y, x))
    if isinstance(y, Tensor):
        return torch.where(condition, _number(x, y), y)
    dtype = torch.result_type(x, y)
    device = condition.device
    return torch.where(
        condition,
        torch.scalar_tensor(x, dtype=dtype, device=device),
        torch.scalar_tensor(y, dtype=dtype, device=device),
    )


def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    filled = (
        value.to(x.dtype)
        if isinstance(value, Tensor)
        else torch.scalar_tensor(value, dtype=x.dtype, device=x.device)
    )
    return torch.where(mask, filled, x)


def _nan_to_num(
    x: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    if not x.is_floating_point():
        return x
    limits = torch.finfo(x.dtype)
    for at, number in (
        (x != x, 0.0 if nan is None else nan),
        (x == math.inf, limits.max if posinf is None else posinf),
        (x == -math.inf, limits.min if neginf is None else neginf),
    ):
        x = torch.where(at, _number(number, x), x)
    return x


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    scaled = x if beta == 1 else x * beta
    soft = torch.log1p(torch.exp(scaled))
    return torch.where(scaled > threshold, x, soft if beta == 1 else soft / beta)


def _x_log_y(x: Tensor, y: Tensor) -> Tensor:
    found = torch.where(x == 0, _number(0.0, x), x * torch.log(y))
    return torch.where(y != y, _number(math.nan, y), found)


def _log_sum_exp(x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    if x.numel() == 0:
        return torch.sum(torch.exp(x), list(dim), keepdim).log()
    largest = torch.amax(x, list(dim), keepdim=True)
    largest = torch.where(largest.abs() == math.inf, _number(0.0, x), largest)
    total = torch.log(torch.sum(torch.exp(x - largest), list(dim), keepdim))
    return total + (largest if keepdim or not dim else largest.squeeze(tuple(dim)))


def _softplus_backward(gradient: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    scaled = x if beta == 1 else x * beta
    grown = torch.exp(scaled)
    return torch.where(scaled > threshold, gradient, gradient * grown / (grown + 1.0))


def _threshold_backward(gradient: Tensor, x: Tensor, threshold: float) -> Tensor:
    return torch.where(x <= threshold, _number(0.0, gradient), gradient)


def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    decayed = torch.exp(-x.abs())
    return x.clamp(max=0.0) - torch.log1p(decayed), decayed


def _log_sigmoid_backward(gradient: Tensor, x: Tensor, _: Tensor) -> Tensor:
    decayed = torch.exp(-x.abs())
    return gradient * torch.where(x < 0, _number(1.0, x), decayed) / (1.0 + decayed)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    grown = torch.exp(x - torch.amax(x, [dim], keepdim=True))
    return grown / torch.sum(grown, [dim], keepdim=True)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    shifted = x - torch.amax(x, [dim], keepdim=True)
    return shifted - torch.log(torch.sum(torch.exp(shifted), [dim], keepdim=True))


def _softmax_backward(gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    weighted = gradient * output
    return weighted - output * torch.sum(weighted, [dim], keepdim=True)


def _log_softmax_backward(gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return gradient - torch.exp(output) * torch.sum(gradient, [dim], keepdim=True)


OWN: dict[Any, Callable[..., Any]] = {
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward,
    aten.select_scatter.default: _select_scatter,
    aten.zeros_like.default: _like(0),
    aten.ones_like.default: _like(1),
    aten.empty_like.default: _like(0),
    aten.new_zeros.default: _new(0),
    aten.new_ones.default: _new(1),
    aten.new_empty.default: _new(0),
    aten.stack.default: _stack,
    aten.rsub.Scalar: _reverse_subtract,
    aten.rsub.Tensor: _reverse_subtract,
    aten.where.Scalar: _where_number,
    aten.where.ScalarSelf: _where_number,
    aten.where.ScalarOther: _where_number,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.nan_to_num.default: _nan_to_num,
    aten.isposinf.default: lambda x: x == math.inf,
    aten.isneginf.default: lambda x: x == -math.inf,
    aten.sgn.default: torch.sign,
    aten.square.default: lambda x: x * x,
    aten.softplus.default: _softplus,
    aten.softplus_backward.default: _softplus_backward,
    aten.threshold_backward.default: _threshold_backward,
    aten.sigmoid_backward.default: lambda gradient, y: gradient * (1.0 - y) * y,
    aten.tanh_backward.default: lambda gradient, y: gradient * (1.0 - y * y),
    aten.log_sigmoid_forward.default: _log_sigmoid,
    aten.log_sigmoid_backward.default: _log_sigmoid_backward,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten.xlogy.Tensor: _x_log_y,
    aten.logsumexp.default: _log_sum_exp,
}
