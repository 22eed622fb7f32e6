"""What a network is given of one step of a series: an embedding of levels, or a linear map of numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StepEmbedding(nn.Module):
    """Steps ``(..., D)`` as vectors ``(..., width)``.

    Coordinates on a grid of three levels or more have one vector a level, summed over coordinates; binary and
    real ones, once standardised by ``loc`` and ``scale``, a linear map.

    Args:
        num_dims: coordinates D of a step.
        width: length of the vectors.
        levels: number of grid values, stored as k / (levels - 1); ``None`` for real numbers.
    """

    loc: Tensor
    scale: Tensor
    first: Tensor

    def __init__(self, num_dims: int, width: int, levels: int | None) -> None:
        super().__init__()
        self.steps = 0 if levels is None or levels == 2 else levels - 1
        self.map = (
            nn.Embedding(num_dims * (self.steps + 1), width) if self.steps else nn.Linear(num_dims, width)
        )
        self.register_buffer("loc", torch.zeros(num_dims))
        self.register_buffer("scale", torch.ones(num_dims))
        self.register_buffer("first", torch.arange(num_dims) * (self.steps + 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The vectors of x ``(..., D)``."""
        if not self.steps:
            vectors: Tensor = self.map((x - self.loc) / self.scale)
            return vectors
        each: Tensor = self.map((x * self.steps).round().long() + self.first)
        return each[..., 0, :] if x.shape[-1] == 1 else each.sum(-2)
