"""Small Bayesian networks of each kind, with random parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.models import BayesianNetwork
from ppgen.ops.random import forked_rng

SIZES = (2, 3, 2, 3, 2)
DIAMOND = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]
COLLIDER = [(0, 2), (1, 2), (2, 4), (1, 4)]
MIXED_SIZES = (3, 2, 0, 0, 0)
MIXED = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (1, 4)]


def matrix(edges: list[tuple[int, int]], num: int = 5) -> Tensor:
    found = torch.zeros(num, num, dtype=torch.bool)
    for i, j in edges:
        found[i, j] = True
    return found


def perturbed(model: BayesianNetwork, seed: int = 0) -> BayesianNetwork:
    with torch.no_grad(), forked_rng(seed):
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model.requires_grad_(False)


def discrete(seed: int = 0, edges: list[tuple[int, int]] = DIAMOND) -> BayesianNetwork:
    return perturbed(BayesianNetwork((5,), graph=edges, cardinalities=SIZES).double(), seed)


def gaussian(seed: int = 0) -> BayesianNetwork:
    return perturbed(BayesianNetwork((5,), graph=DIAMOND, cardinalities=0).double(), seed)


def mixed(seed: int = 0) -> BayesianNetwork:
    return perturbed(BayesianNetwork((5,), graph=MIXED, cardinalities=MIXED_SIZES).double(), seed)


def mixture(seed: int = 0) -> BayesianNetwork:
    graphs = torch.stack([matrix(DIAMOND), matrix(COLLIDER)])
    return perturbed(BayesianNetwork((5,), graph=graphs, cardinalities=SIZES).double(), seed)
