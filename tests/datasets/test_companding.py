"""The mu-law: there and back within a level, finer where it is quiet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ppgen.datasets import grid, mu_law, mu_law_inverse
from ppgen.errors import ConfigError, DataError


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_levels_come_back(levels: int) -> None:
    values = torch.linspace(0, 1, levels, dtype=torch.float64)
    sound = mu_law_inverse(values, levels=levels)
    assert sound[[0, -1]].tolist() == pytest.approx([-1, 1], abs=1e-12)
    torch.testing.assert_close(mu_law(sound, levels=levels), values)


def test_sound_comes_back_within_half_a_level_of_the_companded_scale() -> None:
    x = torch.linspace(-1, 1, 10_001, dtype=torch.float64)
    values = mu_law(x)
    grid(256).check(values)
    back = mu_law_inverse(values)
    scale = x.sign() * torch.log1p(255 * x.abs()) / math.log(256)
    scale_back = back.sign() * torch.log1p(255 * back.abs()) / math.log(256)
    assert float((scale - scale_back).abs().max()) <= 1 / 255 + 1e-12
    quiet = x.abs() < 0.01
    assert float((back - x)[quiet].abs().max()) < 0.1 * float((back - x).abs().max())


def test_bad_sound() -> None:
    for x in (torch.tensor([1.1]), torch.tensor([torch.nan])):
        with pytest.raises(DataError, match=r"\[-1, 1\]"):
            mu_law(x)
    with pytest.raises(ConfigError, match="levels"):
        mu_law(torch.zeros(2), levels=1)
    for values in (torch.tensor([3.0]), torch.tensor([torch.nan])):
        with pytest.raises(DataError, match=r"\[0, 1\].*255"):
            mu_law_inverse(values)


def test_arrays_are_sound_too() -> None:
    x = np.linspace(-1, 1, 7)
    assert torch.equal(mu_law(x), mu_law(torch.from_numpy(x)))
