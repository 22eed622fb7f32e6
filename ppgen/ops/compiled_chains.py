"""The recursions of :mod:`ppgen.ops.chains` in compiled code, for tensors on the CPU.

Potentials of sums are linear here, not logarithms. ``transitions`` are one matrix (K, K), or (B, S, K, K)
with S = T - 1, or S = 1 where a sequence has one for all its steps.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ppgen.errors import CompilationError
from ppgen.ops.compiled import build

_LANES = 8


@dataclass(frozen=True)
class Messages:
    """What a forward recursion leaves.

    Attributes:
        log_z: (B,), float64; not finite where a sequence was lost.
        faint: bool (B,): a weight underflowed (or was 0).
        alpha: normalised messages (B, T, K), and ``scale``, their sums (B, T).
        transposed: the transitions as the way back wants them.
    """

    log_z: Tensor
    faint: Tensor
    alpha: Tensor
    scale: Tensor
    transposed: Tensor


class Recursions:
    """The compiled recursions of one dtype."""

    def __init__(self, handle: ctypes.CDLL, dtype: torch.dtype) -> None:
        name = str(dtype).rpartition(".")[-1]
        pointer, integer = ctypes.c_void_p, ctypes.c_int64

        def found(step: str, sizes: int, *rest: type) -> ctypes._NamedFuncPointer:
            function = getattr(handle, f"{step}_{name}")
            function.argtypes = [integer] * sizes + [pointer] * 2 + [integer] * 2 + list(rest)
            return function

        self._forward = found("forward", 4, *[pointer] * 5)
        self._backward = found("backward", 4, *[pointer] * 7)
        self._heaviest = found("heaviest", 3, *[pointer] * 2)
        self._draw = getattr(handle, f"draw_{name}")
        self._draw.argtypes = [integer] * 5 + [pointer] + [integer] * 2 + [pointer] * 4

    def forward(self, obs: Tensor, transitions: Tensor, lengths: Tensor, *, keep: bool = True) -> Messages:
        """Sums over paths from the left; ``alpha`` and ``scale`` are empty unless kept."""
        obs, lengths, padded = obs.contiguous(), lengths.contiguous(), _padded(transitions)
        size, steps, num_states = obs.shape
        log_z, faint = torch.empty(size, dtype=torch.float64), torch.empty(size, dtype=torch.bool)
        alpha = obs.new_zeros(obs.shape if keep else (0,))
        scale = obs.new_zeros(obs.shape[:2] if keep else (0,))
        self._forward(
            size,
            steps,
            num_states,
            padded.shape[-1],
            obs.data_ptr(),
            padded.data_ptr(),
            *_strides(padded),
            lengths.data_ptr(),
            *(x.data_ptr() if keep else None for x in (alpha, scale)),
            *(x.data_ptr() for x in (log_z, faint)),
        )
        return Messages(log_z, faint, alpha, scale, _padded(transitions.mT))

    def backward(
        self, obs: Tensor, found: Messages, lengths: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The way back.

        Returns:
            Marginals (B, T, K); expected transitions over their potentials, of the transitions' shape,
            weighted by ``weights`` (B,); and bool (B,): what underflowed would have counted.
        """
        obs, lengths = obs.contiguous(), lengths.contiguous()
        size, steps, num_states = obs.shape
        weights = obs.new_ones(size) if weights is None else weights.to(obs).contiguous()
        nodes, edges = torch.zeros_like(obs), torch.zeros_like(found.transposed)
        lost = torch.empty(size, dtype=torch.bool)
        scale = found.scale.where(found.scale > 0, 1)
        self._backward(
            size,
            steps,
            num_states,
            edges.shape[-1],
            obs.data_ptr(),
            found.transposed.data_ptr(),
            *_strides(edges),
            *(x.data_ptr() for x in (lengths, found.alpha, scale, weights, nodes, edges, lost)),
        )
        return nodes, edges[..., :num_states], lost

    def heaviest(self, unary: Tensor, pairwise: Tensor, lengths: Tensor) -> Tensor:
        """Heaviest paths (B, T), -1 beyond the end, from logarithms."""
        unary, pairwise, lengths = unary.contiguous(), pairwise.contiguous(), lengths.contiguous()
        path = torch.full(unary.shape[:2], -1)
        self._heaviest(
            *unary.shape,
            unary.data_ptr(),
            pairwise.data_ptr(),
            *_strides(pairwise),
            lengths.data_ptr(),
            path.data_ptr(),
        )
        return path

    def draw(
        self, found: Messages, lengths: Tensor, num: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Paths (num, B, T), -1 beyond the end, drawn from the messages backwards."""
        alpha, lengths = found.alpha, lengths.contiguous()
        size, steps, num_states = alpha.shape
        points = torch.rand(num, size, steps, dtype=alpha.dtype, generator=generator)
        path = torch.full((num, size, steps), -1)
        self._draw(
            num,
            size,
            steps,
            num_states,
            found.transposed.shape[-1],
            found.transposed.data_ptr(),
            *_strides(found.transposed),
            *(x.data_ptr() for x in (lengths, alpha, points, path)),
        )
        return path


def recursions(x: Tensor, transitions: Tensor) -> Recursions | None:
    """The compiled recursions for such tensors, if there are any."""
    # Compiled code reads memory as it is told to: another type, or another device, would be garbage.
    fits = x.dtype in (torch.float32, torch.float64) and transitions.dtype == x.dtype
    fits = fits and x.device.type == "cpu" and transitions.device == x.device and x.numel() > 0
    return library(x.dtype) if fits else None


@functools.lru_cache(maxsize=2)
def library(dtype: torch.dtype) -> Recursions | None:
    """The compiled recursions of a dtype; ``None`` without a compiler."""
    source = (Path(__file__).parent / "native" / "chains.cpp").read_text()
    try:
        return Recursions(build(source).handle, dtype)
    except CompilationError:
        return None


def _padded(matrices: Tensor) -> Tensor:
    return torch.nn.functional.pad(matrices, (0, -matrices.shape[-1] % _LANES)).contiguous()


def _strides(matrices: Tensor) -> tuple[int, int]:
    """Distances from one sequence's matrix to the next one's, and from one step's."""
    if matrices.ndim == 2:
        return 0, 0
    return matrices.stride(0), matrices.stride(1) if matrices.shape[1] > 1 else 0
