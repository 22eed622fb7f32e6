r"""Swendsen-Wang moves of attractive Ising and Potts fields, for many chains at once.

Where the pairwise part is :math:`K_e [x_i = x_j]` plus a constant with :math:`K_e \ge 0`, each edge between
equal states is bound with probability :math:`1 - e^{-K_e}` (:math:`1 - e^{-2 J_e}` for an Ising coupling
:math:`J_e s_i s_j`), and each cluster of bound sites takes one new state with log-weights
:math:`\sum_{i \in \text{cluster}} \theta_i`. Both are exact conditionals of the joint of Edwards & Sokal over
states and bonds, so the field's law stays, with any unary part; sites are held by weights of minus infinity.

Clusters are found by all chains together, in a number of rounds that grows with the log of the
longest path: labels of bound neighbours are lowered to the least (at their roots) and pointers are halved.

References: Swendsen & Wang 1987; Edwards & Sokal 1988; Shiloach & Vishkin 1982 (components in parallel).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ppgen.distributions.pairwise.field import PairwiseField, draw_states
from ppgen.errors import CapabilityError, ConfigError

#: Moves of a chain: single sites colour by colour, or clusters.
Sampler = Literal["gibbs", "swendsen-wang"]


def attraction(field: PairwiseField) -> Tensor:
    """K of each edge, shape (E,).

    Raises:
        CapabilityError: a pairwise part that is no Ising or Potts interaction, or one that repels.
    """
    pair = field.pair
    equal = pair.diagonal(dim1=-2, dim2=-1)
    strength = equal[:, 0] - pair[:, 0, 1]
    ideal = pair[:, 0, 1, None, None] + strength[:, None, None] * torch.eye(
        field.num_states, dtype=pair.dtype, device=pair.device
    )
    if not torch.allclose(pair, ideal, rtol=1e-4, atol=1e-5):
        raise CapabilityError(
            "Swendsen-Wang: needs edges that favour equal states alone (Ising, Potts), got a general table; "
            "use sampler='gibbs'"
        )
    if bool((strength < 0).any()):
        raise CapabilityError(
            f"Swendsen-Wang: needs couplings of 0 or more (ferromagnetic), {int((strength < 0).sum())} of "
            f"{len(strength)} are below; use sampler='gibbs'"
        )
    return strength


def is_attractive(field: PairwiseField) -> bool:
    """Whether Swendsen-Wang moves exist."""
    try:
        attraction(field)
    except CapabilityError:
        return False
    return True


@torch.no_grad()
def swendsen_wang(
    field: PairwiseField, codes: Tensor, num_steps: int, *, fixed: Tensor | None = None
) -> Tensor:
    """Moves of all clusters, from torch's global generator.

    Args:
        field: an attractive one.
        codes: states of C chains, ``(C, S)``.
        num_steps: how many times bonds and states are drawn.
        fixed: True where a site is held, bool, ``(C, S)``.

    Returns:
        The states after the last move, int64, ``(C, S)``.

    Raises:
        CapabilityError: see :func:`attraction`.
    """
    chance = -torch.expm1(-attraction(field))
    first, second = field.graph.ends.to(codes.device).unbind(-1)
    num, sites = codes.shape
    offset = torch.arange(num, device=codes.device)[:, None] * sites
    unary = field.unary.expand(num, sites, -1)
    if fixed is not None:
        own = torch.nn.functional.one_hot(codes, field.num_states).bool()
        unary = unary.masked_fill(fixed[..., None] & ~own, -torch.inf)
    weights = unary.reshape(num * sites, -1)
    for _ in range(num_steps):
        alike = codes[:, first] == codes[:, second]
        bound = alike & (torch.rand(alike.shape, dtype=chance.dtype, device=codes.device) < chance)
        chains, edges = bound.nonzero(as_tuple=True)
        shift = offset[chains, 0]
        roots = components(first[edges] + shift, second[edges] + shift, num * sites)
        total = torch.zeros_like(weights).index_add_(0, roots, weights)
        codes = draw_states(total)[roots].reshape(num, sites)
    return codes


@torch.no_grad()
def move(
    field: PairwiseField,
    codes: Tensor,
    num_steps: int,
    sampler: Sampler | None = None,
    *,
    fixed: Tensor | None = None,
) -> Tensor:
    """Chains ``num_steps`` moves on.

    Args:
        field: the field.
        codes: states of C chains, int64, ``(C, S)``.
        num_steps: sweeps of Gibbs or moves of clusters, or of each in turn.
        sampler: which; by default both in turn for an attractive field and Gibbs for any other.
        fixed: True where a site is held, bool, ``(C, S)``.

    Raises:
        ConfigError: no such sampler, or fewer than one step.
        CapabilityError: clusters for a field that has none.
    """
    if sampler is not None and sampler not in get_args(Sampler):
        raise ConfigError(f"sampler: expected one of {', '.join(get_args(Sampler))}, got {sampler!r}")
    if num_steps < 1:
        raise ConfigError(f"num_steps: expected one sweep or more, got {num_steps}")
    if sampler == "swendsen-wang":
        return swendsen_wang(field, codes, num_steps, fixed=fixed)
    if sampler == "gibbs" or not is_attractive(field):
        return field.gibbs(codes, num_steps, fixed=fixed)
    for _ in range(num_steps):
        codes = field.gibbs(swendsen_wang(field, codes, 1, fixed=fixed), 1, fixed=fixed)
    return codes


def components(first: Tensor, second: Tensor, num: int) -> Tensor:
    """The least member of the component of each of ``num`` nodes, int64 (num,).

    Args:
        first: one end of each edge, int64 (M,).
        second: the other end.
        num: of nodes.
    """
    label = torch.arange(num, device=first.device)
    while True:
        one, other = label[first], label[second]
        if torch.equal(one, other):
            return label
        least = torch.minimum(one, other)
        # Hooking roots, not the nodes themselves, joins whole trees in one round.
        label = label.scatter_reduce(0, torch.cat([one, other]), torch.cat([least, least]), "amin")
        label = label[label]
        while not torch.equal(label, shorter := label[label]):
            label = shorter
