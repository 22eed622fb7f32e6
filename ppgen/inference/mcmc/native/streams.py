"""Seeds of the random streams of compiled programs, one stream a chain."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def streams(seed: int, num_chains: int) -> Tensor:
    """First states of xoshiro128++ for chains 0, 1, ...: (C, 4) 32-bit words, as int32.

    The words of chain c depend on ``seed`` and c only. Made by splitmix64 (Steele, Lea and Flood 2014;
    Vigna 2015), as the authors of the generator advise.
    """
    chains = np.arange(num_chains, dtype=np.uint64)
    start = _mixed(_mixed(np.array([seed % 2**64], dtype=np.uint64)) + (chains + np.uint64(1)) * _GOLDEN)
    words = np.stack([_mixed(start + _GOLDEN), _mixed(start + _GOLDEN + _GOLDEN)], axis=1)
    # The one state that stays where it is.
    words[(words == 0).all(axis=1)] = _GOLDEN
    return torch.from_numpy(words.view(np.int32))


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
