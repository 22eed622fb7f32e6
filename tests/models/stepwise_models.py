"""Small transformers and WaveNets with weights far from their start, and what they are asked about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppgen.models.stepwise import Stepwise
from ppgen.models.transformer import Transformer
from ppgen.models.wavenet import WaveNet
from ppgen.ops.random import forked_rng

Make = Callable[[], Stepwise]
SMALL: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "dim": 8}
SERIES: dict[str, Any] = {"dilations": (1, 2, 1), "channels": 6, "skip_channels": 8}


def made(make: Make, *, spread: float = 0.3) -> Any:
    """A model in float64 with weights far from their start, in evaluation mode."""
    with forked_rng(0), torch.no_grad():
        model = make().double().eval()
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


ON_GRIDS: dict[str, Make] = {
    "tokens": lambda: Transformer((4,), levels=3, **SMALL),
    "tokens-rotary": lambda: Transformer((4,), levels=3, positions="rotary", **SMALL),
    "pixels": lambda: Transformer((2, 2, 2), levels=2, **SMALL),
    "pixels-of-4-levels": lambda: Transformer((1, 2, 2), levels=4, **SMALL),
    "tokens-of-classes": lambda: Transformer((4,), levels=3, context_dim=3, **SMALL),
    "tokens-after-tokens": lambda: Transformer((3,), levels=3, context_dim=3, context_length=2, **SMALL),
    "series": lambda: WaveNet((5,), levels=3, **SERIES),
    "binary-series": lambda: WaveNet((3, 3), levels=2, **SERIES),
    "chords": lambda: WaveNet((3, 3), levels=2, within="autoregressive", **SERIES),
    "series-of-classes": lambda: WaveNet((4,), levels=3, context_dim=3, **SERIES),
    "series-beside-series": lambda: WaveNet((4,), levels=3, context_dim=2, local_context=True, **SERIES),
    "logistics": lambda: WaveNet((3,), levels=9, head="logistic_mixture", num_components=2, **SERIES),
}
ON_REALS: dict[str, Make] = {
    "step": lambda: WaveNet((1,), num_components=2, **SERIES),
    "two-steps": lambda: WaveNet((2,), num_components=2, **SERIES),
    "pair": lambda: WaveNet((1, 2), num_components=2, **SERIES),
    "chained-pair": lambda: WaveNet((1, 2), num_components=2, within="autoregressive", **SERIES),
    "two-steps-of-classes": lambda: WaveNet((2,), num_components=2, context_dim=3, **SERIES),
}


def context_for(model: Stepwise, num: int) -> Tensor | None:
    """A context for each datum, different from row to row."""
    if not model.context_dim:
        return None
    shape = (num,) if model.context_length is None else (num, model.context_length)
    return torch.randint(model.item_dim, shape, generator=torch.Generator().manual_seed(3))


def every_value(model: Stepwise) -> Tensor:
    points = model.support.points(model.event_shape.numel())
    assert points is not None
    return torch.cartesian_prod(*points).reshape(-1, *model.event_shape)
