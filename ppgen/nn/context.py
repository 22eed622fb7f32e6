"""Context as features: what conditional networks are given beside their input."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.errors import DataError, ShapeError


def context_features(context: Tensor, num_features: int, like: Tensor) -> Tensor:
    """Context as a float tensor of shape ``(..., num_features)``.

    Args:
        context: integer labels, a scalar or of shape ``(N,)``, which become one-hot rows, or features of
            shape ``(..., num_features)``.
        num_features: number of classes or features.
        like: a tensor whose dtype and device the result takes.

    Raises:
        ShapeError: features of another width.
        DataError: a label outside ``0 .. num_features - 1``.
    """
    if not context.is_floating_point() and context.ndim < 2:
        known = context.device.type == "cpu" and context.numel() > 0  # elsewhere a look would wait
        if known and (int(context.min()) < 0 or int(context.max()) >= num_features):
            raise DataError(
                f"context: expected labels in 0..{num_features - 1}, got a range of "
                f"{int(context.min())}..{int(context.max())}; build the model with a larger context_dim"
            )
        context = torch.nn.functional.one_hot(context.long(), num_features)
    if context.shape[-1:] != (num_features,):
        raise ShapeError(
            f"context: expected integer labels (N,) or features (N, {num_features}), "
            f"got {tuple(context.shape)}"
        )
    return context.to(dtype=like.dtype, device=like.device)


def with_context(h: Tensor, context: Tensor | None, num_features: int) -> Tensor:
    """``h`` with the context's features appended to its last dimension (as it is without context)."""
    if context is None or num_features == 0:
        return h
    features = context_features(context, num_features, like=h)
    return torch.cat([h, features.expand(*h.shape[:-1], num_features)], dim=-1)
