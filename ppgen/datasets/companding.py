r"""Companding: sound on a grid whose levels are closer together where it is quiet."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError


def mu_law(x: Tensor | np.ndarray, *, levels: int = 256) -> Tensor:
    r"""Sound on [-1, 1] as grid values in [0, 1], by the mu-law (ITU-T G.711).

    .. math:: f(x) = \mathrm{sign}(x)\, \frac{\log(1 + \mu |x|)}{\log(1 + \mu)}, \qquad \mu = L - 1,

    rounded to the nearest of L levels of [-1, 1], which are stored as k / (L - 1).

    Args:
        x: any shape; also an array, such as a file of sound is read to.
        levels: number L of levels.

    Raises:
        DataError: numbers outside [-1, 1], or NaN.
        ConfigError: fewer than two levels.
    """
    mu, x = _mu(levels), torch.as_tensor(x)
    if not bool((x.abs() <= 1).all()):
        raise DataError(
            f"x: expected sound on [-1, 1], got a range of [{float(x.min()):.4g}, {float(x.max()):.4g}]; "
            "divide it by its largest magnitude, and leave NaN out"
        )
    companded = x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)
    return ((companded + 1) / 2 * mu).round() / mu


def mu_law_inverse(values: Tensor, *, levels: int = 256) -> Tensor:
    """The sound on [-1, 1] that grid values in [0, 1] stand for, the middle of each level; same shape.

    Raises:
        DataError: numbers outside [0, 1], or NaN.
        ConfigError: fewer than two levels.
    """
    mu = _mu(levels)
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise DataError(
            f"values: expected grid values in [0, 1], got a range of [{float(values.min()):.4g}, "
            f"{float(values.max()):.4g}]; divide level numbers by {levels - 1}"
        )
    companded = 2 * values - 1
    return companded.sign() * torch.expm1(companded.abs() * math.log1p(mu)) / mu


def _mu(levels: int) -> int:
    if levels < 2:
        raise ConfigError(f"levels: expected 2 or more, got {levels}")
    return levels - 1
