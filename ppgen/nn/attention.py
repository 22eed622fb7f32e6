"""Causal self-attention: a position sees itself and those before it (Vaswani et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class KeyValueCache:
    """Keys and values of the positions read so far, with room for more.

    Args:
        keys: of the first t positions, shape ``(N, heads, t, size)``.
        values: of the same positions and shape.
        capacity: positions in all.
    """

    def __init__(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        self.length = keys.shape[2]
        room = (*keys.shape[:2], capacity, keys.shape[3])
        self.keys, self.values = keys.new_empty(room), values.new_empty(room)
        self.keys[:, :, : self.length] = keys
        self.values[:, :, : self.length] = values

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values up to this position's, whose own are of shape ``(N, heads, 1, size)``."""
        end = self.length + 1
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class CausalSelfAttention(nn.Module):
    r"""Attention of every position to those up to it, in several heads.

    .. math:: \mathrm{out}_t = W_o \sum_{s \le t} \mathrm{softmax}_s(q_t \cdot k_s / \sqrt{d})\, v_s

    Args:
        dim: width of the input and the output.
        num_heads: heads; divides ``dim``.
        dropout: share of attention weights left out in training mode.
        rotary: whether queries and keys are turned by angles in proportion to their position, so that
            their products depend on distances (Su et al. 2021).
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0, rotary: bool = False) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.rotary = num_heads, dropout, rotary
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        """All positions at once: ``(N, T, dim)`` to ``(N, T, dim)``."""
        return self._attend(*self._projections(h, 0))

    def begin(self, h: Tensor, capacity: int) -> tuple[Tensor, KeyValueCache]:
        """As :meth:`forward`, with the cache from which :meth:`step` goes on to ``capacity`` positions."""
        query, key, value = self._projections(h, 0)
        return self._attend(query, key, value), KeyValueCache(key, value, capacity)

    def step(self, h: Tensor, cache: KeyValueCache) -> Tensor:
        """The next position alone: ``(N, 1, dim)`` to ``(N, 1, dim)``."""
        query, key, value = self._projections(h, cache.length)
        out = functional.scaled_dot_product_attention(query, *cache.append(key, value))
        return self._merged(out)

    def _projections(self, h: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``(N, heads, T, size)``, of positions from ``first`` on."""
        parts = self.project_in(h).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        if self.rotary:
            query, key = _turn(torch.stack([query, key]), first).unbind(0)
        return query, key, value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        out = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self._merged(out)

    def _merged(self, out: Tensor) -> Tensor:
        merged: Tensor = self.project_out(out.transpose(1, 2).flatten(2))
        return merged


def _turn(h: Tensor, first: int) -> Tensor:
    """Rotate pairs of coordinates of h ``(..., T, size)`` by the angles of positions from ``first`` on."""
    half = h.shape[-1] // 2
    # Positions are not told apart in half precision, in which a network may run.
    exact = torch.promote_types(h.dtype, torch.float32)
    positions = torch.arange(first, first + h.shape[-2], dtype=exact, device=h.device)
    rates = 10000.0 ** (-torch.arange(half, dtype=exact, device=h.device) / half)
    angles = positions[:, None] * rates
    cos, sin = angles.cos().to(h.dtype), angles.sin().to(h.dtype)
    a, b = h[..., :half], h[..., half : 2 * half]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
