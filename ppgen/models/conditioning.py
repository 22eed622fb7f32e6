"""What every family's ``condition`` is given, checked in one place."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.contract import GenerativeModel, check_count
from ppgen.errors import ConfigError, ShapeError


def observed_part(model: GenerativeModel, x: Tensor, mask: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The observed values of x, zero where they are missing, and the mask in the shape of x.

    Args:
        model: the family that is asked to ``condition``.
        x: data of the model's event shape, ``(N, *event_shape)``; what is missing may hold anything, NaN too.
        mask: bool, True where observed; broadcasts to the shape of x.
        num: draws a datum that are asked for.

    Raises:
        ShapeError: a mask that is no tensor, or does not broadcast to x.
        ConfigError: ``num`` below one, or a mask of another dtype than bool.
        DataError: an observed value that the model's data cannot have.
    """
    check_count(num)
    if not isinstance(mask, Tensor):
        raise ShapeError(
            f"mask: expected a tensor of booleans that broadcasts to {tuple(x.shape)}, got "
            f"{type(mask).__name__}; pass torch.as_tensor(mask)"
        )
    if mask.dtype != torch.bool:
        raise ConfigError(f"mask: expected booleans, True where observed, got {mask.dtype}; pass mask.bool()")
    try:
        mask = mask.expand(x.shape)
    except RuntimeError:
        raise ShapeError(
            f"mask: expected a shape that broadcasts to {tuple(x.shape)}, the shape of x, got "
            f"{tuple(mask.shape)}"
        ) from None
    filled = torch.where(mask, x, torch.zeros_like(x))
    model.support.check(filled, "x")
    return filled, mask
