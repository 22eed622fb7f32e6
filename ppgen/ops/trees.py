r"""The most likely tree over variables (Chow & Liu 1968).

Among all networks in which each variable has at most one parent, the likelihood is greatest for a
spanning tree of greatest total mutual information. Discrete pairs have the empirical one,
continuous pairs :math:`-\frac12 \log(1 - \rho^2)`, and a discrete parent of a continuous variable
:math:`\frac12 \log(\sigma^2 / \prod_q \sigma_q^{2 n_q / n})`. A discrete variable has no continuous parent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A variance below this share of the whole counts as this share.
_LEAST_SHARE = 1e-6


def chow_liu(values: Tensor, cardinalities: Sequence[int]) -> Tensor:
    """The parent of each variable in the most likely tree, int64 (n,); -1 for the root.

    Args:
        values: shape (N, n), float64: level numbers of discrete variables, numbers of continuous ones.
        cardinalities: number of levels of each variable, 0 for a continuous one.
    """
    information = mutual_information(values, cardinalities)
    discrete = [v for v, levels in enumerate(cardinalities) if levels]
    continuous = [v for v, levels in enumerate(cardinalities) if not levels]
    parents = torch.full((len(cardinalities),), -1, dtype=torch.int64, device=values.device)
    placed: list[int] = []
    # Prim's algorithm from the discrete variables outwards: no edge then leads from a continuous one to them.
    for group in (discrete, continuous):
        _grow(information, group, placed, parents)
    return parents


def _grow(information: Tensor, group: Sequence[int], placed: list[int], parents: Tensor) -> None:
    """Join the variables of ``group`` to those ``placed``, the most informative edge first."""
    if not group:
        return
    left = list(group)
    if not placed:
        placed.append(left.pop(0))
    best, source = information[placed].max(0)
    source = torch.tensor(placed, device=information.device)[source]
    while left:
        node = left.pop(int(best[left].argmax()))
        parents[node] = source[node]
        placed.append(node)
        nearer = information[node] > best
        best = torch.where(nearer, information[node], best)
        source = torch.where(nearer, node, source)


def mutual_information(values: Tensor, cardinalities: Sequence[int]) -> Tensor:
    """Estimated mutual information of all pairs, shape (n, n), float64, in nats; 0 on the diagonal."""
    num, size = values.shape
    discrete = [v for v, levels in enumerate(cardinalities) if levels]
    continuous = [v for v, levels in enumerate(cardinalities) if not levels]
    found = values.new_zeros(size, size)
    start = [0]
    for v in discrete:
        start.append(start[-1] + cardinalities[v])
    one_hot = values.new_zeros(num, start[-1])
    for v, first in zip(discrete, start, strict=False):
        one_hot[torch.arange(num, device=values.device), first + values[:, v].long()] = 1.0
    if len(discrete) > 1:
        # Cells of each pair side by side; their terms are added up pair by pair.
        owner = torch.repeat_interleave(
            torch.arange(len(discrete)), torch.tensor([cardinalities[v] for v in discrete])
        ).to(values.device)
        joint = one_hot.T @ one_hot / num
        share = joint.diagonal()
        terms = torch.special.xlogy(joint, joint) - torch.special.xlogy(joint, share[:, None] * share)
        sums = values.new_zeros(len(discrete), len(discrete))
        sums.index_put_((owner[:, None].expand_as(terms), owner.expand_as(terms)), terms, accumulate=True)
        at = torch.tensor(discrete, device=values.device)
        found[at[:, None], at] = sums
    if continuous:
        at = torch.tensor(continuous, device=values.device)
        centred = values[:, at] - values[:, at].mean(0)
        variance = (centred**2).mean(0).clamp_min(torch.finfo(values.dtype).tiny)
        correlation = (centred.T @ centred) / num / (variance[:, None] * variance).sqrt()
        found[at[:, None], at] = -0.5 * torch.log1p(-(correlation**2).clamp_max(1 - _LEAST_SHARE))
        for v, first in zip(discrete, start, strict=False):
            members = one_hot[:, first : first + cardinalities[v]]
            counts = members.sum(0)
            means = members.T @ centred / counts.clamp_min(1)[:, None]
            within = members.T @ centred**2 / counts.clamp_min(1)[:, None] - means**2
            share = (within / variance).clamp_min(_LEAST_SHARE)
            gain = -0.5 * (counts[:, None] / num * share.log()).sum(0)
            found[v, at] = gain
            found[at, v] = gain
    return found.fill_diagonal_(0.0)
