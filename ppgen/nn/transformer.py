"""A decoder-only transformer that predicts each value of a sequence from those before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.nn.attention import CausalSelfAttention, KeyValueCache
from ppgen.nn.step_embedding import StepEmbedding

Positions = Literal["learned", "rotary"]


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each of normalised input and added to it (Radford et al. 2019)."""

    def __init__(self, dim: int, num_heads: int, *, dropout: float, rotary: bool) -> None:
        super().__init__()
        self.norm_attention, self.norm_perceptron = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, num_heads, dropout=dropout, rotary=rotary)
        self.perceptron = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """All positions at once: ``(N, T, dim)`` to ``(N, T, dim)``."""
        return self._rest(h, self.attention(self.norm_attention(h)))

    def begin(self, h: Tensor, capacity: int) -> tuple[Tensor, KeyValueCache]:
        """As :meth:`forward`, with the cache from which :meth:`step` goes on."""
        attended, cache = self.attention.begin(self.norm_attention(h), capacity)
        return self._rest(h, attended), cache

    def step(self, h: Tensor, cache: KeyValueCache) -> Tensor:
        """The next position alone: ``(N, 1, dim)`` to ``(N, 1, dim)``."""
        return self._rest(h, self.attention.step(self.norm_attention(h), cache))

    def _rest(self, h: Tensor, attended: Tensor) -> Tensor:
        h = h + self.drop(attended)
        out: Tensor = h + self.drop(self.perceptron(self.norm_perceptron(h)))
        return out


@dataclass
class TransformerCache:
    """What a transformer has read: one cache a block, the number of positions, the context's share."""

    blocks: list[KeyValueCache]
    length: int
    shift: Tensor | None


class CausalTransformer(nn.Module):
    r"""Parameters of every value of a sequence on a grid, each from the values before it.

    The sequence that the blocks see is: the context's items (where the context is a sequence), a learnt
    start, and the values :math:`x_1, \dots, x_{S-1}`; the output at the start belongs to :math:`x_1`.

    Args:
        levels: number of grid values, which are stored as k / (levels - 1).
        num_steps: length S.
        num_outputs: parameters P of a value.
        num_layers: blocks.
        num_heads: heads of attention; divides ``dim``.
        dim: width.
        dropout: share left out in training mode, of embeddings, attention and both branches of a block.
        positions: ``learned``, one vector a position, or ``rotary``.
        context_dim: features of the context, or of one of its items; 0 for none.
        context_length: items of a context that is a sequence, read before the values; ``None`` for
            a context of one row, which is added at every position.
    """

    def __init__(
        self,
        levels: int,
        num_steps: int,
        num_outputs: int,
        *,
        num_layers: int,
        num_heads: int,
        dim: int,
        dropout: float = 0.0,
        positions: Positions = "learned",
        context_dim: int = 0,
        context_length: int | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1 or num_heads < 1 or dim < 1:
            raise ConfigError(
                f"num_layers, num_heads, dim: expected positive integers, got {num_layers}, {num_heads}, "
                f"{dim}"
            )
        if dim % (2 * num_heads):
            raise ConfigError(f"dim: expected a multiple of twice num_heads={num_heads}, got {dim}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout: expected a share in [0, 1), got {dropout}")
        if positions not in ("learned", "rotary"):
            raise ConfigError(f"positions: expected 'learned' or 'rotary', got {positions!r}")
        self.num_steps, self.context_length = num_steps, context_length
        self.offset = context_length or 0
        self.embedding = StepEmbedding(1, dim, levels)
        self.start = nn.Parameter(torch.empty(dim))
        self.position = (
            nn.Parameter(torch.empty(self.offset + num_steps, dim)) if positions == "learned" else None
        )
        self.context = nn.Linear(context_dim, dim) if context_dim else None
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads, dropout=dropout, rotary=positions == "rotary")
            for _ in range(num_layers)
        )
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.output = nn.Linear(dim, num_outputs)
        self._start_weights(num_layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters ``(N, S, P)`` of x ``(N, S, 1)``; context ``(N, F)`` or ``(N, L, F)``."""
        h, _ = self._inputs(x[:, :-1], context)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.output(self.norm(h[:, self.offset :]))
        return out

    def begin(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, TransformerCache]:
        """Parameters ``(N, P)`` of the value after x ``(N, s, 1)``, s < S; and the cache for :meth:`step`."""
        h, shift = self._inputs(x, context)
        caches = []
        for block in self._blocks:
            h, cache = block.begin(h, self.offset + self.num_steps)
            caches.append(cache)
        return self.output(self.norm(h[:, -1])), TransformerCache(caches, h.shape[1], shift)

    def step(self, x: Tensor, cache: TransformerCache) -> Tensor:
        """Parameters ``(N, P)`` of the value after x ``(N, 1)``, which follows what the cache has read."""
        h = self.embedding(x)
        if self.position is not None:
            h = h + self.position[cache.length]
        if cache.shift is not None:
            h = h + cache.shift
        h = h[:, None]
        for block, past in zip(self._blocks, cache.blocks, strict=True):
            h = block.step(h, past)
        cache.length += 1
        out: Tensor = self.output(self.norm(h[:, 0]))
        return out

    @property
    def _blocks(self) -> list[TransformerBlock]:
        return cast(list[TransformerBlock], list(self.blocks))

    def _inputs(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the blocks see of the first values, ``(N, L + 1 + s, dim)``; and a single context's share."""
        h = torch.cat([self.start.expand(len(x), 1, -1), self.embedding(x)], dim=1)
        shift = None
        if self.context is not None:
            features = self.context(context)
            if self.context_length is None:
                shift = features
                h = h + features[:, None]
            else:
                h = torch.cat([features, h], dim=1)
        if self.position is not None:
            h = h + self.position[: h.shape[1]]
        return self.drop(h), shift

    @torch.no_grad()
    def _start_weights(self, num_layers: int) -> None:
        """Small weights, smaller on the way into the residual stream (Radford et al. 2019)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for block in self._blocks:
            for last in (block.attention.project_out, block.perceptron[-1]):
                nn.init.normal_(cast(Tensor, last.weight), std=0.02 / math.sqrt(2 * num_layers))
        nn.init.normal_(self.start, std=0.02)
        if self.position is not None:
            nn.init.normal_(self.position, std=0.02)
