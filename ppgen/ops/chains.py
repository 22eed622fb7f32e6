r"""Sums, maxima and draws over the paths of a chain of K states: hidden Markov models, linear-chain CRFs.

A chain gives a path :math:`z_1, \dots, z_T` the weight

.. math:: w(z) = \exp\Big( \sum_{t=1}^T u_t(z_t) + \sum_{t=2}^T v_t(z_{t-1}, z_t) \Big) ,

with the log potentials ``unary``, shape (B, T, K), and ``pairwise``, shape (K, K), the same at all times, or
(B, T - 1, K, K); ``-inf`` forbids. Sequence b ends after ``lengths[b]`` steps; what stands beyond is ignored.
A hidden Markov model has :math:`u_t(k) = \log p(x_t | k)`, plus :math:`\log \pi_k` at t = 1, and
:math:`v = \log A`: its log-partition is :math:`\log p(x)`.

On the CPU, with one matrix of transitions, the recursions are scaled ones (Rabiner 1989) in compiled code;
sequences that they lose to underflow, and everything without a compiler or with transitions that change, are
worked out in logarithms. On CUDA, and where ``vmap`` or a tracer looks on, a scan over time halves the number
of factors in each round (Särkkä & García-Fernández 2021). All are in nats.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ppgen.errors import CompilationError, DataError, ShapeError
from ppgen.ops.compiled import build

_LANES = 8
# Numbers that a product of matrices in logarithms may spread out at once.
_MAX_SPREAD = 2**24


@dataclass(frozen=True)
class Expectations:
    """What a chain expects of its path.

    Attributes:
        log_z: log-partition, shape (B,), in nats.
        nodes: p(z_t = k), shape (B, T, K); 0 beyond a sequence's end.
        edges: expected number of transitions i -> j: summed over sequences and times, shape (K, K), or
            p(z_t = i, z_{t+1} = j), shape (B, T - 1, K, K), where the transitions change with time.
    """

    log_z: Tensor
    nodes: Tensor
    edges: Tensor


def log_partition(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The log of the sum of all paths' weights, shape (B,), in nats; differentiable (once in compiled code).

    Raises:
        ShapeError: tensors that do not fit together.
        DataError: a length outside 1..T.
    """
    lengths = _checked(unary, pairwise, lengths)
    if unary.dtype != pairwise.dtype:
        dtype = torch.promote_types(unary.dtype, pairwise.dtype)
        unary, pairwise = unary.to(dtype), pairwise.to(dtype)
    transformed = _is_transformed()
    native = None if transformed else _compiled(unary, pairwise)
    if native is not None:
        log_z: Tensor = _LogPartition.apply(native, unary, pairwise, lengths)
        return log_z
    if (unary.is_cuda or transformed) and pairwise.ndim == 2:
        return _scan(unary, pairwise, lengths)
    return _log_forward(unary, pairwise, lengths)[0]


def expectations(
    unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None, weights: Tensor | None = None
) -> Expectations:
    """Marginals of states and expected transitions; each sequence counts ``weights[b]`` times in ``edges``.

    Sequences that have no possible path have ``log_z = -inf`` and nodes of zero.
    """
    lengths = _checked(unary, pairwise, lengths)
    with torch.enable_grad():
        u, v = unary.detach().requires_grad_(), pairwise.detach().requires_grad_()
        log_z = log_partition(u, v, lengths)
        possible = torch.isfinite(log_z)
        scale = possible.to(log_z) if weights is None else torch.where(possible, weights.to(log_z), 0)
        # The gradients of the log-partition are the marginals.
        (edges,) = torch.autograd.grad((scale * log_z.where(possible, 0)).sum(), v, retain_graph=True)
        (nodes,) = torch.autograd.grad(log_z.where(possible, 0).sum(), u)
    return Expectations(log_z.detach(), nodes, edges)


def forward_sum(obs: Tensor, transitions: Tensor, lengths: Tensor) -> Tensor | None:
    """As :func:`log_partition`, from potentials themselves, like :func:`forward_backward`; no gradient.

    Returns ``None`` where compiled code does not apply, or where it underflows.
    """
    native = _compiled(obs, transitions)
    if native is None:
        return None
    log_z = native.forward(obs, transitions, lengths, keep=False)[0]
    return log_z.to(obs) if bool(torch.isfinite(log_z).all()) else None


def forward_backward(
    obs: Tensor, transitions: Tensor, lengths: Tensor, weights: Tensor | None = None
) -> Expectations | None:
    """As :func:`expectations`, from potentials themselves, not their logarithms, without a check.

    The quick way of expectation-maximisation: ``obs`` (B, T, K) and ``transitions`` (K, K) are used as they
    are. Returns ``None`` where compiled code does not apply, or where it underflows.
    """
    native = _compiled(obs, transitions)
    if native is None:
        return None
    log_z, alpha, scale, padded = native.forward(obs, transitions, lengths)
    if not bool(torch.isfinite(log_z).all()):
        return None
    nodes, edges = native.backward(obs, padded, lengths, alpha, scale, weights)
    return Expectations(log_z.to(obs), nodes, edges * transitions)


def filtered(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Marginals of the state given the potentials so far, shape (B, T, K); 0 beyond a sequence's end.

    In a hidden Markov model, p(z_t = k | x_1, ..., x_t); NaN from where on nothing is possible.
    """
    lengths = _checked(unary, pairwise, lengths)
    messages = torch.stack(_log_forward(unary, pairwise, lengths)[1], 1)
    live = torch.arange(unary.shape[1], device=unary.device) < lengths[:, None]
    return messages.softmax(-1).masked_fill(~live[..., None], 0.0)


def viterbi(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The heaviest path, shape (B, T), int64, and its log weight, shape (B,).

    Beyond a sequence's end the path holds -1. Of equally heavy paths, that of the lowest states from the end.
    """
    lengths = _checked(unary, pairwise, lengths)
    size, steps, _ = unary.shape
    best, pointers = unary[:, 0], []
    for t in range(1, steps):
        scores, pointer = (best[:, :, None] + _at(pairwise, t)).max(1)
        live = (t < lengths)[:, None]
        pointers.append(pointer)
        best = torch.where(live, scores + unary[:, t], best)
    weight, state = best.max(-1)
    path = torch.full((size, steps), -1, device=unary.device)
    for t in range(steps - 1, -1, -1):
        path[:, t] = torch.where(t < lengths, state, -1)
        if t:
            before = pointers[t - 1].gather(1, state[:, None])[:, 0]
            state = torch.where(t < lengths, before, state)
    return path, weight


def sample_paths(
    unary: Tensor,
    pairwise: Tensor,
    lengths: Tensor | None = None,
    *,
    num: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Independent paths with probability proportional to their weights, shape (num, B, T), int64.

    Forward filtering, backward sampling; -1 beyond a sequence's end.

    Raises:
        DataError: a sequence without a possible path.
    """
    lengths = _checked(unary, pairwise, lengths)
    log_z, messages = _log_forward(unary, pairwise, lengths)
    if not bool(torch.isfinite(log_z).all()):
        bad = int((~torch.isfinite(log_z)).nonzero()[0])
        raise DataError(f"unary: sequence {bad} has no possible path; its potentials forbid every one")
    size, steps, num_states = unary.shape
    path = torch.full((num, size, steps), -1, device=unary.device)
    state = torch.zeros(num, size, dtype=torch.int64, device=unary.device)
    for t in range(steps - 1, -1, -1):
        logits = messages[t].expand(num, size, num_states)
        if t < steps - 1:
            follow = _at(pairwise, t + 1).expand(size, num_states, num_states)
            onward = follow[torch.arange(size, device=state.device), :, state]
            logits = logits + torch.where((t + 1 < lengths)[:, None], onward, 0.0)
        weights = (logits - logits.amax(-1, keepdim=True)).exp().flatten(0, 1)
        drawn = torch.multinomial(weights, 1, generator=generator).view(num, size)
        state = torch.where(t < lengths, drawn, state)
        path[:, :, t] = torch.where(t < lengths, drawn, -1)
    return path


# -- in logarithms -----------------------------------------------------------------------------


def _log_forward(unary: Tensor, pairwise: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Log-partition, and the messages (B, K) of each time; a message stands still beyond the end."""
    message, messages = unary[:, 0], [unary[:, 0]]
    for t in range(1, unary.shape[1]):
        onward = _logsumexp(message[:, :, None] + _at(pairwise, t), 1) + unary[:, t]
        message = torch.where((t < lengths)[:, None], onward, message)
        messages.append(message)
    return _logsumexp(message, -1), messages


def _at(pairwise: Tensor, t: int) -> Tensor:
    return pairwise if pairwise.ndim == 2 else pairwise[:, t - 1]


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """``logsumexp`` whose gradient is 0, not NaN, where all terms are ``-inf``."""
    top = x.amax(dim, keepdim=True).detach()
    top = torch.where(torch.isfinite(top), top, 0.0)
    total = (x - top).exp().sum(dim)
    return torch.where(total > 0, total, 1.0).log().where(total > 0, -torch.inf) + top.squeeze(dim)


def _scan(unary: Tensor, pairwise: Tensor, lengths: Tensor) -> Tensor:
    """Log-partition by halving: neighbouring factors are multiplied until one matrix is left."""
    size, steps, num_states = unary.shape
    diagonal = torch.eye(num_states, dtype=torch.bool, device=unary.device)
    identity = torch.where(diagonal, 0.0, -torch.inf).to(pairwise)
    live = (torch.arange(1, steps, device=unary.device) < lengths[:, None])[:, :, None, None]
    factors = torch.where(live, pairwise + unary[:, 1:, None, :], identity)
    while factors.shape[1] > 1:
        odd = factors[:, -1:] if factors.shape[1] % 2 else factors[:, :0]
        even = factors[:, : factors.shape[1] // 2 * 2]
        factors = torch.cat([_log_product(even[:, ::2], even[:, 1::2]), odd], 1)
    last = unary[:, 0] if steps == 1 else _logsumexp(unary[:, 0, :, None] + factors[:, 0], 1)
    return _logsumexp(last, -1)


def _log_product(left: Tensor, right: Tensor) -> Tensor:
    """Products of matrices in logarithms, shapes (B, T, K, K), in parts of bounded memory."""
    num_states = left.shape[-1]
    a, b = left.flatten(0, 1), right.flatten(0, 1)
    rows = max(1, _MAX_SPREAD // num_states**3)
    parts = [
        _logsumexp(p[:, :, :, None] + q[:, None], 2)
        for p, q in zip(a.split(rows), b.split(rows), strict=True)
    ]
    return torch.cat(parts).view(left.shape)


# -- compiled ----------------------------------------------------------------------------------


class _Native:
    """The compiled recursions of one dtype."""

    def __init__(self, handle: ctypes.CDLL, dtype: torch.dtype) -> None:
        name = str(dtype).rpartition(".")[-1]
        self._forward, self._backward = (
            getattr(handle, f"{step}_{name}") for step in ("forward", "backward")
        )
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._forward.argtypes = [integer] * 4 + [pointer] * 6
        self._backward.argtypes = [integer] * 4 + [pointer] * 8

    def forward(
        self, obs: Tensor, transitions: Tensor, lengths: Tensor, *, keep: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``log_z`` (B,) float64, messages (B, T, K), sums (B, T), both empty unless kept, and transitions.

        The transitions come back transposed and padded, as :meth:`backward` wants them.
        """
        obs, lengths = obs.contiguous(), lengths.contiguous()
        size, steps, num_states = obs.shape
        padded = _padded(transitions)
        log_z = torch.empty(size, dtype=torch.float64)
        alpha = obs.new_zeros(obs.shape if keep else (0,))
        scale = obs.new_zeros(obs.shape[:2] if keep else (0,))
        pointers = (obs, padded, lengths, alpha, scale, log_z)
        kept = [x.data_ptr() if x.numel() else None for x in pointers]
        self._forward(size, steps, num_states, padded.shape[1], *kept)
        return log_z, alpha, scale, _padded(transitions.T)

    def backward(
        self,
        obs: Tensor,
        transposed: Tensor,
        lengths: Tensor,
        alpha: Tensor,
        scale: Tensor,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Marginals (B, T, K), and expected transitions over their potentials, (K, K), weighted."""
        obs, lengths = obs.contiguous(), lengths.contiguous()
        size, steps, num_states = obs.shape
        weights = obs.new_ones(size) if weights is None else weights.to(obs).contiguous()
        nodes, edges = torch.zeros_like(obs), obs.new_empty(num_states, num_states)
        pointers = (obs, transposed, lengths, alpha, scale, weights, nodes, edges)
        self._backward(size, steps, num_states, transposed.shape[1], *(x.data_ptr() for x in pointers))
        return nodes, edges


def _padded(matrix: Tensor) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % _LANES)).contiguous()


@functools.lru_cache(maxsize=2)
def _library(dtype: torch.dtype) -> _Native | None:
    source = (Path(__file__).parent / "native" / "chains.cpp").read_text()
    try:
        return _Native(build(source).handle, dtype)
    except CompilationError:
        return None


def _compiled(x: Tensor, transitions: Tensor) -> _Native | None:
    fits = x.device.type == "cpu" and transitions.ndim == 2 and x.dtype in (torch.float32, torch.float64)
    # Compiled code reads memory as it is told to: another type, or another device, would be garbage.
    fits = fits and transitions.dtype == x.dtype and transitions.device == x.device
    return _library(x.dtype) if fits and len(x) else None


def _is_transformed() -> bool:
    """Whether ``vmap``, ``grad``, a tracer or a mode looks on: they see torch's operations alone."""
    functorch: Any = torch._C._functorch
    return (
        functorch.peek_interpreter_stack() is not None
        or _get_current_dispatch_mode() is not None
        or any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    )


class _LogPartition(torch.autograd.Function):
    """The log-partition by scaled recursions, and in logarithms where these underflow."""

    @staticmethod
    def forward(ctx: Any, native: _Native, unary: Tensor, pairwise: Tensor, lengths: Tensor) -> Tensor:
        ctx.native = native
        live = torch.arange(unary.shape[1]) < lengths[:, None]
        # A path's weight is free of these shifts but for their sum.
        top = _finite(unary.amax(-1)).masked_fill(~live, 0)
        crest = _finite(pairwise.max())
        obs, transitions = (unary - top[..., None]).exp(), (pairwise - crest).exp()
        log_z, alpha, scale, transposed = native.forward(
            obs, transitions, lengths, keep=any(ctx.needs_input_grad)
        )
        log_z = log_z + top.double().sum(-1) + (lengths - 1) * crest.double()
        lost = ~torch.isfinite(log_z)
        if bool(lost.any()):
            log_z[lost] = _log_forward(unary[lost], pairwise, lengths[lost])[0].double()
        ctx.save_for_backward(unary, pairwise, lengths, obs, transitions, transposed, alpha, scale, lost)
        return log_z.to(unary.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        unary, pairwise, lengths, obs, transitions, transposed, alpha, scale, lost = ctx.saved_tensors
        weights = gradients[0].masked_fill(lost, 0)
        nodes, edges = ctx.native.backward(
            obs, transposed, lengths, alpha, scale.where(scale > 0, 1), weights
        )
        nodes, edges = nodes * weights[:, None, None], edges * transitions
        if bool(lost.any()):
            with torch.enable_grad():
                u, v = unary[lost].detach().requires_grad_(), pairwise.detach().requires_grad_()
                again = _log_forward(u, v, lengths[lost])[0]
                nodes[lost], more = torch.autograd.grad(again, (u, v), gradients[0][lost])
                edges = edges + more
        return None, nodes, edges, None


def _finite(x: Tensor) -> Tensor:
    return torch.where(torch.isfinite(x), x, 0.0)


def _checked(unary: Tensor, pairwise: Tensor, lengths: Tensor | None) -> Tensor:
    if unary.ndim != 3 or unary.shape[1] < 1:
        raise ShapeError(f"unary: expected shape (B, T, K) with one step or more, got {tuple(unary.shape)}")
    size, steps, num_states = unary.shape
    fits = ((num_states, num_states), (size, steps - 1, num_states, num_states))
    if tuple(pairwise.shape) not in fits:
        raise ShapeError(f"pairwise: expected shape {fits[0]} or {fits[1]}, got {tuple(pairwise.shape)}")
    if lengths is None:
        return torch.full((size,), steps, device=unary.device)
    if lengths.shape != (size,):
        raise ShapeError(
            f"lengths: expected one number a sequence, shape ({size},), got {tuple(lengths.shape)}"
        )
    if size and not _is_transformed() and (int(lengths.min()) < 1 or int(lengths.max()) > steps):
        raise DataError(
            f"lengths: expected numbers of steps from 1 to {steps}, got a range of {int(lengths.min())}.."
            f"{int(lengths.max())}"
        )
    return lengths.long()
