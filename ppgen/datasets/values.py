r"""What the coordinates of a datum can be, and how discrete data meet densities.

Three kinds of values are told apart:

* ``real``: any real number;
* ``binary``: 0 or 1;
* ``grid``: ``levels`` equally spaced values, stored as :math:`k / (L - 1)` for
  :math:`k = 0, \dots, L - 1`, so that 0 is black and 1 is white.

A family with a density on the reals meets discrete data through *uniform
dequantisation* (Theis, van den Oord & Bethge 2016): it sees
:math:`y = (k + u) / L` with :math:`u \sim U[0, 1)^D`, and

.. math:: \log P(k) \ge E_u[\log p(y)] - D \log L .

So a density gives a lower bound on the log-probability of the levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError


@dataclass(frozen=True)
class Values:
    """The set of values that each coordinate of a datum can take.

    Attributes:
        kind: ``"real"``, ``"binary"`` or ``"grid"``.
        levels: number of levels: 2 for binary, ``None`` for real.
    """

    kind: Literal["real", "binary", "grid"]
    levels: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("real", "binary", "grid"):
            raise ConfigError(f"kind: expected 'real', 'binary' or 'grid', got {self.kind!r}")
        if self.kind == "binary" and self.levels not in (None, 2):
            raise ConfigError(f"levels: binary values have 2, got {self.levels}; leave it out")
        if self.kind == "real" and self.levels is not None:
            raise ConfigError(f"levels: real values have none, got {self.levels}; leave it out")
        if self.kind == "binary":
            object.__setattr__(self, "levels", 2)
        if self.kind == "grid" and (self.levels is None or self.levels < 2):
            raise ConfigError(f"levels: a grid needs an integer of 2 or more, got {self.levels}")

    @property
    def discrete(self) -> bool:
        """Whether a datum has a probability mass rather than a density."""
        return self.kind != "real"

    def __str__(self) -> str:
        return f"grid of {self.levels} levels" if self.kind == "grid" else self.kind

    def check(self, x: Tensor, name: str = "x") -> None:
        """Raise :class:`~ppgen.errors.DataError` where ``x`` is not made of these values."""
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).sum())
            raise DataError(
                f"{name}: expected finite numbers, got {bad} NaN or infinite of {x.numel()}; "
                "drop or impute those rows first"
            )
        if self.levels is None:
            return
        steps = x * (self.levels - 1)
        tolerance = max(1e-3, 4 * self.levels * torch.finfo(x.dtype).eps)
        off_grid = (steps - steps.round()).abs() > tolerance
        outside = (x < 0) | (x > 1)
        if bool((off_grid | outside).any()):
            count = int((off_grid | outside).sum())
            raise DataError(
                f"{name}: expected values of the {self} (k/{self.levels - 1} in [0, 1]), but {count} "
                f"of {x.numel()} are not, the range is [{float(x.min()):.4g}, {float(x.max()):.4g}]; "
                "declare the values with datasets.from_arrays(..., levels=...) or rescale them"
            )

    def indices(self, x: Tensor) -> Tensor:
        """Level numbers ``k`` (int64) of grid values ``x``, same shape."""
        if self.levels is None:
            raise ConfigError("values: real values have no level numbers; use a grid")
        return (x * (self.levels - 1)).round().long()

    def dequantise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``(k + u) / L`` in [0, 1) for grid values ``x``; real values are returned as they are."""
        if self.levels is None:
            return x
        noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        # Keeps k + u inside its cell after rounding, in float32 too.
        margin = 2 * self.levels * torch.finfo(x.dtype).eps
        return ((x * (self.levels - 1)).round() + noise.clamp(margin, 1 - margin)) / self.levels

    def quantise(self, y: Tensor) -> Tensor:
        """The grid values whose cells ``y`` falls into (the inverse of :meth:`dequantise`)."""
        if self.levels is None:
            return y
        return (y * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1)

    def log_cell_volume(self, num_dims: int) -> float:
        """``-D log L``: log volume of one dequantisation cell, in nats; 0 for real values."""
        return 0.0 if self.levels is None else -num_dims * math.log(self.levels)


REAL = Values("real")
BINARY = Values("binary")


def grid(levels: int) -> Values:
    """Values on ``levels`` equally spaced points of [0, 1]."""
    return BINARY if levels == 2 else Values("grid", levels)


def bridge(data: Values, model: Values, name: str = "data") -> Callable[[Tensor], Tensor]:
    """The map that turns batches of ``data`` values into what a model of ``model`` values sees.

    It is the identity where both agree, uniform dequantisation where a density on
    the reals meets discrete data. The noise comes from torch's global generator
    (fresh noise at each call).

    Args:
        data: values of the data.
        model: values that the model is for.
        name: what the data are called in messages.

    Raises:
        DataError: a model of discrete values meets data of other values.
    """
    if data == model:
        return lambda x: x
    if model.kind == "real":
        return data.dequantise
    hint = (
        "binarise the data (dataset.binarised())"
        if model.kind == "binary"
        else f"declare the data on that grid, or build the model for {data}"
    )
    raise DataError(f"{name}: the model is for {model} values, the data are {data}; {hint}")
