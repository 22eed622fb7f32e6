r"""Graphs as signs of inner products of latent vectors.

Each variable i has two vectors, :math:`u_i` as a cause and :math:`v_i` as an effect; Z has shape
(n, k, 2), ``Z[i, :, 0]`` being u and ``Z[i, :, 1]`` v. The edge i -> j has score
:math:`u_i \cdot v_j` and probability :math:`\sigma(\alpha\, u_i \cdot v_j)`, which becomes a step as
:math:`\alpha` grows. Forbidden edges have probability 0, required ones 1, at every :math:`\alpha`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.inference.structure.gradient.acyclicity import closed_walks
from ppgen.ops.dags import find_cycle


@dataclass(frozen=True)
class Edges:
    """What is known of the edges, on the device of the data.

    Attributes:
        allowed: shape (n, n), bool.
        required: shape (n, n), bool.
        log_odds: shape (n, n): prior log odds of each edge that is neither forbidden nor required; else 0.
        max_parents: the largest number of parents.
    """

    allowed: Tensor
    required: Tensor
    log_odds: Tensor
    max_parents: int

    @staticmethod
    def of(prior: FamilyPrior, device: torch.device) -> Edges:
        """From a compiled prior, whose preference for numbers of parents is left out."""
        allowed, required = prior.allowed_edges.to(device), prior.required_edges.to(device)
        odds = (prior.log_present - prior.log_absent).to(device)
        return Edges(allowed, required, torch.where(allowed & ~required, odds, 0.0), prior.max_parents)

    def log_prior(self, graph: Tensor) -> Tensor:
        """Log prior of the parents of each variable, up to a constant, shape (..., n)."""
        return (graph * self.log_odds).sum(-2)

    def clamp(self, graph: Tensor) -> Tensor:
        """Graphs (..., n, n), hard or soft, with what is known put in."""
        return torch.where(self.required, 1.0, torch.where(self.allowed, graph, 0.0))


def scores(z: Tensor) -> Tensor:
    """Inner products, shape (..., n, n), of latents Z, shape (..., n, k, 2)."""
    return torch.einsum("...ik,...jk->...ij", z[..., 0], z[..., 1])


def soft_graph(
    z: Tensor, edges: Edges, alpha: float, noise: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    r"""Edge probabilities, or with logistic noise a relaxed draw of the graph; shape (..., n, n).

    A draw is :math:`\sigma((\alpha u_i \cdot v_j + \epsilon_{ij}) / \tau)` (Maddison, Mnih & Teh 2017).

    Args:
        z: shape (..., n, k, 2).
        edges: what is known.
        alpha: inverse temperature of the edges.
        noise: standard logistic, broadcast against (..., n, n).
        temperature: of the relaxation, with noise only.
    """
    logits = alpha * scores(z)
    return edges.clamp((logits if noise is None else (logits + noise) / temperature).sigmoid())


def cyclicity(z: Tensor, edges: Edges, alpha: float) -> Tensor:
    """Closed walks in the graph of edge probabilities, shape (...); 0 where no draw has a cycle."""
    return closed_walks(soft_graph(z, edges, alpha))


@dataclass(frozen=True)
class HardGraphs:
    """DAGs read off latents.

    Attributes:
        adjacency: shape (S, n, n), bool.
        repaired: whether cycles had to be broken, shape (S,), bool.
    """

    adjacency: Tensor
    repaired: Tensor


def hard_graphs(z: Tensor, edges: Edges) -> HardGraphs:
    """Edges with a positive score, the weakest edge of each cycle taken out until there is none.

    Of more than ``max_parents`` parents those with the highest scores stay. Required edges stay always.

    Args:
        z: shape (S, n, k, 2).
        edges: what is known.
    """
    score = scores(z.detach())
    rank = torch.where(edges.required, math.inf, torch.where(edges.allowed, score, -math.inf))
    present = rank > 0
    if edges.max_parents < rank.shape[-1]:
        least = rank.sort(dim=-2, descending=True).values[:, edges.max_parents]
        present &= rank > least[:, None, :]
    device = z.device
    ranks, present = rank.cpu(), present.cpu()
    repaired = torch.zeros(len(z), dtype=torch.bool)
    for s, graph in enumerate(present):
        while (cycle := find_cycle(graph)) is not None:
            start, end = torch.tensor(cycle), torch.tensor([*cycle[1:], cycle[0]])
            real = start != end  # some write the first node again at the end
            start, end = start[real], end[real]
            weakest = ranks[s, start, end].argmin()
            graph[start[weakest], end[weakest]] = False
            repaired[s] = True
    return HardGraphs(present.to(device), repaired.to(device))
