"""Small Markov random fields of each kind, and their laws by enumeration and in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import networkx as nx
import torch
from torch import Tensor

from ppgen.models import MarkovRandomField
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to

CRITICAL = math.log(1 + math.sqrt(2)) / 2


def randomised(mrf: MarkovRandomField, std: float = 0.7, seed: int = 0) -> MarkovRandomField:
    mrf.double()
    with forked_rng(seed):
        for p in mrf.parameters():
            torch.nn.init.normal_(p, std=std)
    return mrf.requires_grad_(False)


def attractive(mrf: MarkovRandomField, seed: int = 0) -> MarkovRandomField:
    randomised(mrf, seed=seed).coupling.abs_()
    return mrf


WHEEL = nx.wheel_graph(7)
FIELDS: dict[str, Callable[[], MarkovRandomField]] = {
    "ising": lambda: randomised(MarkovRandomField((3, 4))),
    "ising-tied": lambda: randomised(MarkovRandomField((2, 2, 2), graph="torus", tied=True)),
    "ising-complete": lambda: randomised(MarkovRandomField((6,), graph="complete")),
    "potts": lambda: randomised(MarkovRandomField((7,), graph=WHEEL, num_states=3)),
    "potts-tied": lambda: randomised(MarkovRandomField((2, 3), num_states=4, tied=True)),
    "pairwise": lambda: randomised(
        MarkovRandomField((7,), graph=WHEEL, num_states=3, interaction="pairwise")
    ),
    "pairwise-binary": lambda: randomised(MarkovRandomField((3, 3), interaction="pairwise")),
    "pairwise-tied": lambda: randomised(
        MarkovRandomField((5,), graph=nx.cycle_graph(5), num_states=3, interaction="pairwise", tied=True)
    ),
    "no-edges": lambda: randomised(MarkovRandomField((4,), graph=[], num_states=3)),
}


def every_state(mrf: MarkovRandomField) -> Tensor:
    num, q = mrf.event_shape.numel(), mrf.num_states
    states = torch.tensor(list(itertools.product(range(q), repeat=num)), dtype=torch.float64)
    return (states / (q - 1)).view(-1, *mrf.event_shape)


def log_weights(mrf: MarkovRandomField, x: Tensor) -> Tensor:
    """-E(x) term by term, from the definition of each interaction."""
    codes = (x.flatten(1) * (mrf.num_states - 1)).round().long()
    total = torch.zeros(len(x), dtype=torch.float64)
    for i in range(codes.shape[1]):
        h = mrf.field if mrf.tied else mrf.field[i]
        total += h * (2 * codes[:, i] - 1) if mrf.interaction == "ising" else h[codes[:, i]]
    for e, (i, j) in enumerate(mrf.graph.edges):
        a, b = codes[:, i], codes[:, j]
        coupling = mrf.coupling if mrf.tied else mrf.coupling[e]
        if mrf.interaction == "ising":
            total += coupling * (2 * a - 1) * (2 * b - 1)
        elif mrf.interaction == "potts":
            total += coupling * (a == b)
        else:
            total += coupling[a, b]
    return total


def frequencies(mrf: MarkovRandomField, draws: Tensor) -> Tensor:
    """Which state each draw is, as rows with a single one, in the order of ``every_state``."""
    codes = (draws.flatten(1) * (mrf.num_states - 1)).round().long()
    places = mrf.num_states ** torch.arange(codes.shape[1] - 1, -1, -1)
    return torch.nn.functional.one_hot((codes * places).sum(-1), mrf.num_states ** codes.shape[1]).double()


def assert_drawn_from(mrf: MarkovRandomField, draws: Tensor, law: Tensor, name: str) -> None:
    """Assert that independent draws have the probabilities ``law``; rare states are pooled."""
    common = law * len(draws) > 50
    seen = frequencies(mrf, draws)
    pooled = torch.cat([seen[:, common], seen[:, ~common].sum(1, keepdim=True)], 1).mean(0)
    expected = torch.cat([law[common], law[~common].sum()[None]])
    assert_close_to(pooled, expected, (expected * (1 - expected) / len(draws)).sqrt() + 1e-12, name)


SMALL = {
    "ising": lambda: attractive(MarkovRandomField((2, 3))),
    "potts": lambda: attractive(MarkovRandomField((4,), graph="complete", num_states=3)),
}
NUM = 20_000


def conditional_law(mrf: MarkovRandomField, x: Tensor, mask: Tensor) -> Tensor:
    states = every_state(mrf)
    agrees = ((states == x) | ~mask).flatten(1).all(1)
    return torch.where(agrees, log_weights(mrf, states), -math.inf).softmax(0)


def torus_log_partition(size: int, coupling: float) -> float:
    """Ising on the square lattice with both borders joined: log trace of a power of the transfer matrix."""
    spins = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=size)), dtype=torch.float64)
    within = coupling * (spins * spins.roll(1, 1)).sum(1)
    transfer = (within[:, None] / 2 + within / 2 + coupling * spins @ spins.T).exp()
    return float(torch.linalg.eigvalsh(transfer).pow(size).sum().log())


def kaufman(size: int, coupling: float) -> float:
    """Log Z of the Ising model on a torus (Kaufman 1949), by the determinants of four boundary conditions."""
    k = torch.tensor(coupling, dtype=torch.float64)
    gammas = []
    for r in range(2 * size):
        if r == 0:
            gammas.append(2 * k + torch.tanh(k).log())
            continue
        c = (2 * k).cosh() ** 2 / (2 * k).sinh() - math.cos(math.pi * r / size)
        gammas.append(torch.acosh(c))
    odd, even = torch.stack(gammas[1::2]), torch.stack(gammas[0::2])
    half = size / 2

    def log_cosh(v: Tensor) -> Tensor:
        return (2 * (half * v).cosh()).log().sum()

    def sinh_product(v: Tensor) -> Tensor:
        return (2 * (half * v).sinh()).prod()

    terms = log_cosh(odd).exp() + sinh_product(odd) + log_cosh(even).exp() + sinh_product(even)
    return float(-math.log(2) + size * size / 2 * (2 * (2 * k).sinh()).log() + terms.log())
