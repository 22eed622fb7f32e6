r"""What a recursion over time carries from step to step, one step after another or all steps at once.

A chain's messages follow :math:`m_t(j) = \bigoplus_i m_{t-1}(i) + F_t(i, j)` with the factors
:math:`F_t(i, j) = v_t(i, j) + u_t(j)`, in logarithms; :math:`\oplus` is ``logsumexp`` or the maximum.
Products of factors are associative, so all messages come in O(log T) rounds: neighbours are multiplied on the
way up, and messages handed on between them on the way down, at O(T K^3) for O(T K^2) of the loop (Blelloch,
*Prefix sums and their applications*, 1990; Särkkä & García-Fernández, IEEE Transactions on Automatic Control
66, 2021).

Messages are shifted to :math:`\bigoplus_k m_t(k) = 0`, so that sums over thousands of steps do not wear out
float32; what has no possible state stays ``-inf``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

#: sums over one dimension, in logarithms
Total = Callable[[Tensor, int], Tensor]

# Numbers that one operation spreads out at once, and that all factors of some sequences take.
_MAX_SPREAD = 2**24
_MAX_FACTORS = 2**26
# Work a step, in B K^3, above which a loop on a GPU waits less for its launches than a scan computes.
_BUSY = 2**22


def in_parallel(unary: Tensor) -> bool:
    """Whether all steps at once is quicker: on a GPU that would be idle most of the time in a loop."""
    size, steps, num_states = unary.shape
    return unary.is_cuda and steps > 8 and 0 < size * num_states**3 < _BUSY


def logsumexp(x: Tensor, dim: int) -> Tensor:
    """``logsumexp`` whose gradient is 0, not NaN, where all terms are ``-inf``."""
    top = finite(x.amax(dim, keepdim=True).detach())
    total = (x - top).exp().sum(dim)
    return torch.where(total > 0, total, 1.0).log().where(total > 0, -torch.inf) + top.squeeze(dim)


def largest(x: Tensor, dim: int) -> Tensor:
    """The maximum over a dimension."""
    return x.amax(dim)


def finite(x: Tensor) -> Tensor:
    """Zeros in place of what is not finite."""
    return torch.where(torch.isfinite(x), x, 0.0)


def live_steps(unary: Tensor, lengths: Tensor) -> Tensor:
    """Which steps (B, T) there are."""
    return torch.arange(unary.shape[1], device=unary.device) < lengths[:, None]


def factors(unary: Tensor, pairwise: Tensor, lengths: Tensor) -> Tensor:
    """F_2, ..., F_T, shape (B, T - 1, K, K); identities beyond a sequence's end."""
    num_states = unary.shape[-1]
    diagonal = torch.eye(num_states, dtype=torch.bool, device=unary.device)
    identity = torch.where(diagonal, 0.0, -torch.inf).to(pairwise)
    live = live_steps(unary, lengths)[:, 1:, None, None]
    return torch.where(live, pairwise + unary[:, 1:, None, :], identity)


def product_of_all(matrices: Tensor) -> Tensor:
    """The product of matrices (B, S, K, K) in logarithms, shape (B, K, K), by halving; not shifted."""
    while matrices.shape[1] > 1:
        odd = matrices[:, -1:] if matrices.shape[1] % 2 else matrices[:, :0]
        even = matrices[:, : matrices.shape[1] // 2 * 2]
        matrices = torch.cat([_product(even[:, ::2], even[:, 1::2], logsumexp), odd], 1)
    return matrices[:, 0]


def messages(
    unary: Tensor, pairwise: Tensor, lengths: Tensor, total: Total, *, back: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Messages (B, T, K), and the shifts (B, T) that were taken off them.

    Beyond a sequence's end a message stands still, with a shift of 0. With ``back`` they are those from the
    right, :math:`m_t(i) = \bigoplus_j F_{t+1}(i, j) + m_{t+1}(j)` from zeros on.
    """
    if not in_parallel(unary):
        return _loop(unary, pairwise, lengths, total, back=back)
    parts = [_scan(*part, total, back=back) for part in _parts(unary, pairwise, lengths)]
    found, shifts = (torch.cat(each) for each in zip(*parts, strict=True))
    return found, shifts


def back_trace(weights: Tensor, pairwise: Tensor, lengths: Tensor) -> Tensor:
    r"""Paths (R, B, T), from the last state back: :math:`z_t = \arg\max_i w_t(i) + v_{t+1}(i, z_{t+1})`.

    Of equal states it takes the lowest. Beyond a sequence's end paths hold -1.

    Args:
        weights: w, shape (R, B, T, K).
        pairwise: v, (K, K) or (B, S, K, K).
        lengths: (B,).
    """
    num, size, steps, num_states = weights.shape
    last = weights[:, torch.arange(size, device=weights.device), lengths - 1].argmax(-1)
    live = live_steps(weights[0], lengths)
    if in_parallel(weights.flatten(0, 1)):
        maps = torch.arange(num_states, device=weights.device).repeat(num, size, steps - 1, 1)
        width = max(1, _MAX_SPREAD // (num * size * num_states**2))
        for first in range(0, steps - 1, width):
            part = slice(first, min(first + width, steps - 1))
            onward = pairwise[:, part] if pairwise.ndim == 4 and pairwise.shape[1] > 1 else pairwise
            found = (weights[:, :, part, :, None] + onward).argmax(-2)
            maps[:, :, part] = torch.where(live[:, 1:][:, part, None], found, maps[:, :, part])
        onto = carried(
            last.flatten(),
            maps.flatten(0, 1).flip(1),
            lambda left, right: right.gather(-1, left),
            lambda state, each: each.gather(-1, state[..., None])[..., 0],
        )
        path = torch.cat([onto.flip(1), last.flatten()[:, None]], 1).view(num, size, steps)
        return path.where(live, -1)
    path = torch.full((num, size, steps), -1, device=weights.device)
    rows = torch.arange(size, device=weights.device)
    state = last
    for t in range(steps - 1, -1, -1):
        if t < steps - 1:
            onward = at(pairwise, t + 1).expand(size, num_states, num_states)
            before = (weights[:, :, t] + onward[rows, :, state]).argmax(-1)
            state = torch.where(t + 1 < lengths, before, state)
        path[:, :, t] = torch.where(t < lengths, state, -1)
    return path


def carried(
    start: Tensor,
    steps: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
    apply: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """What ``start`` (B, ...) becomes after each of S steps, shape (B, S, ...), in O(log S) rounds.

    Args:
        start: what the first step takes.
        steps: (B, S, ...).
        product: of steps (B, n, ...) and those right after each; associative.
        apply: what steps (B, n, ...) make of (B, n, ...).
    """
    num = steps.shape[1]
    if num < 2:
        return apply(start[:, None].expand(-1, num, *start.shape[1:]), steps)
    pairs = product(steps[:, : num - 1 : 2], steps[:, 1::2])
    second = carried(start, pairs, product, apply)
    before = torch.cat([start[:, None], second], 1)[:, : (num + 1) // 2]
    first = apply(before, steps[:, ::2])
    if num % 2:
        second = torch.cat([second, first[:, -1:]], 1)
    return torch.stack([first, second], 2).flatten(1, 2)[:, :num]


def at(pairwise: Tensor, t: int) -> Tensor:
    """v_t, from step t - 1 to t counted from 0: (K, K) or (B, K, K)."""
    if pairwise.ndim == 2:
        return pairwise
    return pairwise[:, t - 1] if pairwise.shape[1] > 1 else pairwise[:, 0]


# -- private -----------------------------------------------------------------------------------


def _shifted(x: Tensor, total: Total) -> tuple[Tensor, Tensor]:
    shift = total(x, -1)
    return x - finite(shift)[..., None], shift


def _loop(
    unary: Tensor, pairwise: Tensor, lengths: Tensor, total: Total, *, back: bool
) -> tuple[Tensor, Tensor]:
    size, steps, _ = unary.shape
    message, shift = _shifted(torch.zeros_like(unary[:, 0]) if back else unary[:, 0], total)
    found, shifts = [message], [shift]
    for t in range(steps - 1, 0, -1) if back else range(1, steps):
        if back:
            onward = total(at(pairwise, t) + (unary[:, t] + message)[:, None, :], 2)
        else:
            onward = total(message[:, :, None] + at(pairwise, t), 1) + unary[:, t]
        onward, shift = _shifted(onward, total)
        live = t < lengths
        message = torch.where(live[:, None], onward, message)
        found.append(message)
        shifts.append(torch.where(live, shift, 0.0))
    order = slice(None, None, -1) if back else slice(None)
    return torch.stack(found[order], 1), torch.stack(shifts[order], 1)


def _scan(
    unary: Tensor, pairwise: Tensor, lengths: Tensor, total: Total, *, back: bool
) -> tuple[Tensor, Tensor]:
    each = factors(unary, pairwise, lengths)
    start, shift = _shifted(torch.zeros_like(unary[:, 0]) if back else unary[:, 0], total)
    each = each.mT.flip(1) if back else each

    def product(left: Tensor, right: Tensor) -> Tensor:
        found = _product(left, right, total)
        return found - finite(found.amax((-2, -1), keepdim=True))

    def apply(message: Tensor, matrix: Tensor) -> Tensor:
        return _shifted(total(message[..., None] + matrix, -2), total)[0]

    onward = carried(start, each, product, apply)
    found = torch.cat([start[:, None], onward], 1)
    shifts = total(total(found[:, :-1, :, None] + each, -2), -1)
    shifts = torch.cat([shift[:, None], shifts], 1)
    return (found.flip(1), shifts.flip(1)) if back else (found, shifts)


def _product(left: Tensor, right: Tensor, total: Total) -> Tensor:
    """Products of matrices in logarithms, shapes (B, n, K, K), in parts of bounded memory."""
    num_states = left.shape[-1]
    a, b = left.flatten(0, 1), right.flatten(0, 1)
    rows = max(1, _MAX_SPREAD // num_states**3)
    parts = [
        total(p[:, :, :, None] + q[:, None], 2) for p, q in zip(a.split(rows), b.split(rows), strict=True)
    ]
    return torch.cat(parts).view(left.shape)


def _parts(unary: Tensor, pairwise: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    size, steps, num_states = unary.shape
    rows = max(1, _MAX_FACTORS // (steps * num_states**2))
    for first in range(0, size, rows):
        part = slice(first, first + rows)
        yield unary[part], pairwise if pairwise.ndim == 2 else pairwise[part], lengths[part]
