r"""Sums, maxima and draws over the paths of a chain of K states: hidden Markov models, linear-chain CRFs.

A chain gives a path :math:`z_1, \dots, z_T` the weight

.. math:: w(z) = \exp\Big( \sum_{t=1}^T u_t(z_t) + \sum_{t=2}^T v_t(z_{t-1}, z_t) \Big) ,

with the log potentials ``unary``, shape (B, T, K), and ``pairwise``: (K, K), the same everywhere; (B, 1, K,
K), one matrix a sequence; or (B, T - 1, K, K); ``-inf`` forbids. Sequence b ends after ``lengths[b]`` steps;
what stands beyond is ignored. A hidden Markov model has :math:`u_t(k) = \log p(x_t | k)`, plus
:math:`\log \pi_k` at t = 1, and :math:`v = \log A`: its log-partition is :math:`\log p(x)`.

On the CPU the recursions are scaled ones (Rabiner 1989) in compiled code. Sequences in which a state that
counts falls below the smallest number that the type holds are found out, and worked out in logarithms, as is
everything without a compiler. On CUDA, and where ``vmap`` or a tracer looks on, scans over time take O(log T)
rounds (:mod:`ppgen.ops.chain_scans`). All are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ppgen.errors import DataError, ShapeError
from ppgen.ops import chain_scans, compiled_chains
from ppgen.ops.chain_scans import finite, largest, live_steps, logsumexp

# Numbers that transitions of all sequences at once may take, and noise of draws.
_MAX_SPREAD = 2**24


@dataclass(frozen=True)
class Expectations:
    """What a chain expects of its path.

    Attributes:
        log_z: log-partition, shape (B,), in nats.
        nodes: p(z_t = k), shape (B, T, K); 0 beyond a sequence's end.
        edges: expected number of transitions i -> j, of the shape of ``pairwise``: what one matrix serves is
            summed over.
    """

    log_z: Tensor
    nodes: Tensor
    edges: Tensor


def log_partition(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The log of the sum of all paths' weights, shape (B,), in nats; differentiable once.

    (Under ``torch.func`` and tracers, any number of times.)

    Raises:
        ShapeError: tensors that do not fit together.
        DataError: a length outside 1..T.
    """
    unary, pairwise, lengths = _checked(unary, pairwise, lengths)
    if _is_transformed():
        last = unary[:, 0]
        if unary.shape[1] > 1:
            onward = chain_scans.product_of_all(chain_scans.factors(unary, pairwise, lengths))
            last = logsumexp(last[:, :, None] + onward, 1)
        return logsumexp(last, -1)
    log_z: Tensor = _LogPartition.apply(unary, pairwise, lengths)
    return log_z


def expectations(
    unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None, weights: Tensor | None = None
) -> Expectations:
    """Marginals of states and expected transitions; each sequence counts ``weights[b]`` times in ``edges``.

    Sequences that have no possible path have ``log_z = -inf`` and nodes of zero.
    """
    unary, pairwise, lengths = _checked(unary.detach(), pairwise.detach(), lengths)
    found = _sums(unary, pairwise, lengths)
    weights = torch.ones_like(found.log_z) if weights is None else weights.to(found.log_z)
    nodes, edges = found.back(weights)
    return Expectations(found.log_z.to(unary.dtype), nodes, edges)


def forward_sum(obs: Tensor, transitions: Tensor, lengths: Tensor) -> Tensor | None:
    """As :func:`log_partition`, from potentials themselves, like :func:`forward_backward`; no gradient.

    Returns ``None`` where compiled code does not apply, or where it underflows.
    """
    native = compiled_chains.recursions(obs, transitions)
    if native is None:
        return None
    found = native.forward(obs, transitions, lengths, keep=False)
    if bool(found.faint.any()):
        every = forward_backward(obs, transitions, lengths)
        return None if every is None else every.log_z
    return found.log_z.to(obs) if bool(torch.isfinite(found.log_z).all()) else None


def forward_backward(
    obs: Tensor, transitions: Tensor, lengths: Tensor, weights: Tensor | None = None
) -> Expectations | None:
    """As :func:`expectations`, from potentials themselves, not their logarithms, without a check.

    The quick way of expectation-maximisation: ``obs`` (B, T, K) and ``transitions`` (K, K) are used as they
    are. Returns ``None`` where compiled code does not apply, or where it underflows.
    """
    native = compiled_chains.recursions(obs, transitions)
    if native is None:
        return None
    found = native.forward(obs, transitions, lengths)
    if not bool(torch.isfinite(found.log_z).all()):
        return None
    nodes, edges, lost = native.backward(obs, found, lengths, weights)
    if bool(lost.any()):
        return None
    return Expectations(found.log_z.to(obs), nodes, edges * transitions)


@torch.no_grad()
def filtered(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Marginals of the state given the potentials so far, shape (B, T, K); 0 beyond a sequence's end.

    In a hidden Markov model, p(z_t = k | x_1, ..., x_t); 0 from where on nothing is possible.
    """
    unary, pairwise, lengths = _checked(unary, pairwise, lengths)
    return _sums(unary, pairwise, lengths).filtered()


@torch.no_grad()
def viterbi(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The heaviest path, shape (B, T), int64, and its log weight, shape (B,).

    Beyond a sequence's end the path holds -1. Of equally heavy paths, that of the lowest states from the end
    (where they are equal to the last digit: sums in another order may round otherwise).
    """
    unary, pairwise, lengths = _checked(unary, pairwise, lengths)
    native = compiled_chains.recursions(unary, pairwise)
    if native is not None:
        path = native.heaviest(unary, pairwise, lengths)
    else:
        best, _ = chain_scans.messages(unary, pairwise, lengths, largest)
        path = chain_scans.back_trace(best[None], pairwise, lengths)[0]
    return path, path_weights(unary, pairwise, path)


def path_weights(unary: Tensor, pairwise: Tensor, paths: Tensor) -> Tensor:
    """Log weights (B,) of paths (B, T), in nats; -1 is beyond the end."""
    states = paths.clamp_min(0)
    nodes = unary.gather(-1, states[..., None])[..., 0]
    before, after = states[:, :-1], states[:, 1:]
    if pairwise.ndim == 2:
        edges = pairwise[before, after]
    else:
        wide = pairwise.expand(-1, before.shape[1], -1, -1)
        rows = wide.gather(2, before[..., None, None].expand(-1, -1, 1, wide.shape[-1]))[:, :, 0]
        edges = rows.gather(-1, after[..., None])[..., 0]
    return torch.where(paths < 0, 0.0, nodes).sum(-1) + torch.where(paths[:, 1:] < 0, 0.0, edges).sum(-1)


@torch.no_grad()
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
    unary, pairwise, lengths = _checked(unary, pairwise, lengths)
    found = _sums(unary, pairwise, lengths)
    if not bool(torch.isfinite(found.log_z).all()):
        bad = int((~torch.isfinite(found.log_z)).nonzero()[0])
        raise DataError(
            f"sequence {bad} has probability 0: every path is forbidden, so that there is none to draw"
        )
    return found.draw(num, generator)


# -- sums over paths ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _InLogs:
    """A forward recursion in logarithms, and what follows from its messages (B, T, K)."""

    unary: Tensor
    pairwise: Tensor
    lengths: Tensor
    messages: Tensor
    log_z: Tensor

    @classmethod
    def of(cls, unary: Tensor, pairwise: Tensor, lengths: Tensor) -> _InLogs:
        """Go forward."""
        messages, shifts = chain_scans.messages(unary, pairwise, lengths, logsumexp)
        return cls(unary, pairwise, lengths, messages, shifts.sum(-1))

    def back(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Marginals (B, T, K), and expected transitions of the shape of ``pairwise``, weighted."""
        ahead, _ = chain_scans.messages(self.unary, self.pairwise, self.lengths, logsumexp, back=True)
        live = live_steps(self.unary, self.lengths)
        joint = self.messages + ahead
        total = logsumexp(joint, -1)[..., None]
        nodes = (joint - finite(total)).exp().masked_fill(~live[..., None], 0.0)
        edges = torch.zeros_like(self.pairwise)
        size, steps, num_states = self.unary.shape
        width = max(1, _MAX_SPREAD // max(1, size * num_states**2))
        for first in range(1, steps, width):
            part = slice(first, min(first + width, steps))
            after = (self.unary + ahead)[:, part, None, :]
            joint = self.messages[:, part.start - 1 : part.stop - 1, :, None] + after + self._onward(part)
            total = logsumexp(joint.flatten(2), -1)[..., None, None]
            each = (joint - finite(total)).exp().masked_fill(~live[:, part, None, None], 0.0)
            each = each * weights[:, None, None, None]
            if edges.ndim == 2:
                edges += each.sum((0, 1))
            elif edges.shape[1] == 1:
                edges += each.sum(1, keepdim=True)
            else:
                edges[:, part.start - 1 : part.stop - 1] = each
        return nodes, edges

    def filtered(self) -> Tensor:
        """Marginals of each state given what came before."""
        return self.messages.exp().masked_fill(~live_steps(self.unary, self.lengths)[..., None], 0.0)

    def draw(self, num: int, generator: torch.Generator | None) -> Tensor:
        """Paths (num, B, T): the heaviest under messages with Gumbel noise."""
        rows = max(1, _MAX_SPREAD // self.messages.numel())
        parts = []
        for first in range(0, num, rows):
            shape = (min(rows, num - first), *self.messages.shape)
            noise = self.messages.new_empty(shape).exponential_(generator=generator).log()
            parts.append(chain_scans.back_trace(self.messages - noise, self.pairwise, self.lengths))
        return torch.cat(parts)

    def _onward(self, part: slice) -> Tensor:
        """Transitions into some steps, to be broadcast to (B, n, K, K)."""
        if self.pairwise.ndim == 2 or self.pairwise.shape[1] == 1:
            return self.pairwise
        return self.pairwise[:, part.start - 1 : part.stop - 1]


@dataclass(frozen=True)
class _Compiled:
    """A compiled forward recursion, with the sequences that it cannot be trusted with in logarithms.

    Attributes:
        native: the recursions.
        obs, transitions: scaled potentials themselves.
        lengths: (B,).
        found: messages.
        log_z: (B,), float64.
        lost: numbers of the sequences in logarithms, (R,).
        rest: these.
    """

    native: compiled_chains.Recursions
    obs: Tensor
    transitions: Tensor
    lengths: Tensor
    found: compiled_chains.Messages
    log_z: Tensor
    lost: Tensor
    rest: _InLogs | None

    @classmethod
    def of(
        cls, native: compiled_chains.Recursions, unary: Tensor, pairwise: Tensor, lengths: Tensor
    ) -> _Compiled:
        """Go forward."""
        live = live_steps(unary, lengths)
        # A path's weight is free of these shifts but for their sum.
        top = finite(unary.amax(-1)).masked_fill(~live, 0)
        crest = finite(pairwise.amax((-2, -1)))
        obs, transitions = (unary - top[..., None]).exp(), (pairwise - crest[..., None, None]).exp()
        found = native.forward(obs, transitions, lengths)
        crests = crest.double().expand(live[:, 1:].shape).masked_fill(~live[:, 1:], 0)
        log_z = found.log_z + top.double().sum(-1) + crests.sum(-1)
        doubtful = ~torch.isfinite(log_z)
        if bool(found.faint.any()):
            doubtful |= native.backward(obs, found, lengths)[2]
        lost, rest = doubtful.nonzero()[:, 0], None
        if len(lost):
            rest = _InLogs.of(unary[lost], pairwise if pairwise.ndim == 2 else pairwise[lost], lengths[lost])
            log_z[lost] = rest.log_z.double()
        return cls(native, obs, transitions, lengths, found, log_z, lost, rest)

    def back(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Marginals (B, T, K), and expected transitions of the shape of ``pairwise``, weighted."""
        # Of the sequences that are lost, nothing but the first step: no transition.
        lengths = self.lengths.index_fill(0, self.lost, 1)
        nodes, edges, _ = self.native.backward(self.obs, self.found, lengths, weights)
        edges = edges * self.transitions
        if self.rest is not None:
            nodes[self.lost], more = self.rest.back(weights[self.lost])
            if edges.ndim == 2:
                edges = edges + more
            else:
                edges[self.lost] = more
        return nodes, edges

    def filtered(self) -> Tensor:
        """Marginals of each state given what came before."""
        nodes = self.found.alpha
        return nodes if self.rest is None else nodes.index_copy(0, self.lost, self.rest.filtered())

    def draw(self, num: int, generator: torch.Generator | None) -> Tensor:
        """Paths (num, B, T)."""
        path = self.native.draw(self.found, self.lengths, num, generator)
        if self.rest is not None:
            path[:, self.lost] = self.rest.draw(num, generator)
        return path


def _sums(unary: Tensor, pairwise: Tensor, lengths: Tensor) -> _InLogs | _Compiled:
    native = compiled_chains.recursions(unary, pairwise)
    if native is None or not pairwise.numel():
        return _InLogs.of(unary, pairwise, lengths)
    return _Compiled.of(native, unary, pairwise, lengths)


class _LogPartition(torch.autograd.Function):
    """The log-partition, whose gradients are the marginals."""

    @staticmethod
    def forward(ctx: Any, unary: Tensor, pairwise: Tensor, lengths: Tensor) -> Tensor:
        ctx.save_for_backward(unary, pairwise)
        ctx.sums = _sums(unary, pairwise, lengths)
        log_z: Tensor = ctx.sums.log_z
        return log_z.to(unary.dtype, copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises where these were written over
        nodes, edges = ctx.sums.back(gradients[0])
        return nodes * gradients[0][:, None, None], edges, None


def _is_transformed() -> bool:
    """Whether ``vmap``, ``grad``, a tracer or a mode looks on: they see torch's operations alone."""
    functorch: Any = torch._C._functorch
    return (
        functorch.peek_interpreter_stack() is not None
        or _get_current_dispatch_mode() is not None
        or any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    )


def _checked(unary: Tensor, pairwise: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The chain in one dtype, with lengths."""
    if unary.ndim != 3 or unary.shape[1] < 1:
        raise ShapeError(f"unary: expected shape (B, T, K) with one step or more, got {tuple(unary.shape)}")
    size, steps, num_states = unary.shape
    matrix = (num_states, num_states)
    if tuple(pairwise.shape) not in (matrix, (size, 1, *matrix), (size, steps - 1, *matrix)):
        raise ShapeError(
            f"pairwise: expected shape {matrix}, {(size, 1, *matrix)} or {(size, steps - 1, *matrix)}, got "
            f"{tuple(pairwise.shape)}"
        )
    if unary.dtype != pairwise.dtype:
        dtype = torch.promote_types(unary.dtype, pairwise.dtype)
        unary, pairwise = unary.to(dtype), pairwise.to(dtype)
    if lengths is None:
        return unary, pairwise, torch.full((size,), steps, device=unary.device)
    if lengths.shape != (size,):
        raise ShapeError(
            f"lengths: expected one number a sequence, shape ({size},), got {tuple(lengths.shape)}"
        )
    if size and not _is_transformed() and (int(lengths.min()) < 1 or int(lengths.max()) > steps):
        raise DataError(
            f"lengths: expected numbers of steps from 1 to {steps}, got a range of {int(lengths.min())}.."
            f"{int(lengths.max())}"
        )
    return unary, pairwise, lengths.long()
