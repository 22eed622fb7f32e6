r"""Exact draws of DAGs, from the sums over orders or over DAGs.

*Order-modular prior.* An order is drawn from its last node to its first by
:math:`\alpha_v(S \setminus v) L(S \setminus v) / L(S)`, then the parents of each node given the nodes before
it: the DAGs have the order-modular law.

*Uniform prior.* A DAG falls in one way into layers, of which the first has the nodes without parents and
each other one the nodes whose last parents are in the layer before (the root partitions of Kuipers &
Moffa 2015, 2017). Let B be the layers drawn so far and R the last. With

.. math::

    M_B(T) = \sum_{U \supseteq T} (-1)^{|U \setminus T|} \prod_{v \in U} \alpha_v(B) \, G(B \cup U),

the weight of the completions in which the nodes with all their parents in B are just T, the next layer is
T with weight :math:`M_B(T) \prod_{v \in T} (1 - \alpha_v(B \setminus R) / \alpha_v(B))`. All of these weights
come from the table G by one Möbius transform, normalised by G(B), so that they are probabilities with an
absolute error of at most :math:`2^{n-|B|}` roundings.

Parents are drawn bit by bit through the stages of the zeta transform of the scores: also exact, and a few
operations a draw however many families there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.inference.structure.exact.best import adjacency_of
from ppgen.inference.structure.exact.lattice import (
    chunk_size,
    family_values,
    sums_over_subsets,
    superset_moebius_,
)
from ppgen.inference.structure.exact.order import OrderTables
from ppgen.inference.structure.exact.uniform import UniformTables
from ppgen.inference.structure.families import members, squeeze


def draw_by_order(log_scores: Tensor, tables: OrderTables, num: int, generator: torch.Generator) -> Tensor:
    """DAGs from the order-modular posterior, adjacency bool (num, n, n)."""
    num_nodes = len(log_scores)
    nodes = torch.arange(num_nodes, device=log_scores.device)
    remaining = torch.full((num,), (1 << num_nodes) - 1, device=log_scores.device)
    before = remaining.new_empty(num, num_nodes)
    for _ in range(num_nodes):
        inside = members(remaining, num_nodes)
        rest = remaining[:, None] & ~(1 << nodes)
        weight = family_values(tables.log_alpha, nodes, rest) + tables.log_prefix[rest]
        weight = weight.masked_fill(~inside, -torch.inf).softmax(-1)
        last = torch.multinomial(weight, 1, generator=generator)
        before.scatter_(1, last, rest.gather(1, last))
        remaining = rest.gather(1, last)[:, 0]
    columns = [
        draw_parents(log_scores[v], squeeze(before[:, v], v), None, generator) for v in range(num_nodes)
    ]
    return adjacency_of(torch.stack(columns, 1))


def draw_uniform(log_scores: Tensor, tables: UniformTables, num: int, generator: torch.Generator) -> Tensor:
    """DAGs from the posterior under the uniform prior, adjacency bool (num, n, n)."""
    num_nodes = len(log_scores)
    closed = torch.zeros(num, dtype=torch.int64, device=log_scores.device)  # B of each draw
    layer = torch.zeros_like(closed)  # R
    before, from_layer = (closed.new_zeros(num, num_nodes) for _ in range(2))
    for size in range(num_nodes):
        active = (members(closed, num_nodes).sum(-1) == size).nonzero()[:, 0]
        if not len(active):
            continue
        old, last = closed[active], layer[active]
        drawn = _next_layers(tables, old, last, size, generator)
        new = members(drawn, num_nodes)
        before[active] = torch.where(new, old[:, None], before[active])
        from_layer[active] = torch.where(new, last[:, None], from_layer[active])
        closed[active] = old | drawn
        layer[active] = drawn
    columns = []
    for v in range(num_nodes):
        within, hit = squeeze(before[:, v], v), squeeze(from_layer[:, v], v)
        columns.append(draw_parents(log_scores[v], within, hit, generator))
    return adjacency_of(torch.stack(columns, 1))


def _next_layers(
    tables: UniformTables, closed: Tensor, last: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """The layers after ``last`` (bits, shape (S,)), the ``size`` nodes of ``closed`` being drawn: (S,)."""
    states, which = torch.stack([closed, last], 1).unique(dim=0, return_inverse=True)
    drawn = torch.empty_like(which)
    rows = max(1, chunk_size(closed.device) >> (tables.num_nodes - size))
    for number, part in enumerate(states.split(rows)):
        here = (which // rows == number).nonzero()[:, 0]
        row = which[here] % rows
        share, unions = _layer_shares(tables, part[:, 0], part[:, 1], size)
        uniform = torch.rand(row.shape, generator=generator, dtype=share.dtype, device=share.device)
        # All rows in one search, each moved up by its number.
        steps = (share.cumsum(0).clamp_max_(1.0) + torch.arange(len(part), device=share.device)).T.flatten()
        found = torch.searchsorted(steps, row + uniform, right=True) - row * len(share)
        drawn[here] = unions[found.clamp(1, len(share) - 1), row] ^ closed[here]
    return drawn


def _layer_shares(tables: UniformTables, closed: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Probabilities of all next layers for pairs (B, R), shape (2^m, K), and the union of B with each."""
    block = tables.block(closed, size)
    held = block.log_products + tables.log_completions[block.unions]
    weight = superset_moebius_((held - tables.log_completions[closed]).exp_())
    weight[0] = 0.0  # some node has all its parents in a closed set
    if size:
        all_alpha = family_values(tables.log_alpha, block.outside, closed)
        old_alpha = family_values(tables.log_alpha, block.outside, closed ^ last)
        # Where alpha is 0, a set with that node has no weight already.
        gap = old_alpha - all_alpha.clamp_min(torch.finfo(all_alpha.dtype).min)
        weight *= sums_over_subsets((-torch.expm1(gap.clamp_max(0.0))).log()).exp_()
    weight.clamp_min_(0.0)
    return weight / weight.sum(0), block.unions


def draw_parents(
    log_scores: Tensor, within: Tensor, hit: Tensor | None, generator: torch.Generator
) -> Tensor:
    r"""Parent sets P drawn in proportion to their scores from the subsets of given sets.

    Let :math:`A_j(X)` be the sum over the sets that X turns into when any of its members among the lowest
    j bits are taken out: the stages of the zeta transform. With the higher bits settled, bit j - 1 of X stays
    with probability :math:`A_{j-1}(X) / A_j(X)`, and else is taken out of X.

    Args:
        log_scores: scores of one node, shape (2^m,).
        within: sets that P must be a subset of, by their columns, shape (S,).
        hit: sets that P must have a member of; 0 for draws without that condition; shape (S,).
        generator: of random numbers.

    Returns:
        Columns of the drawn sets, shape (S,).
    """
    num_bits = log_scores.numel().bit_length() - 1
    stages = [log_scores]
    for bit in range(num_bits):
        pairs = stages[-1].view(-1, 2, 1 << bit)
        stages.append(torch.stack([pairs[:, 0], torch.logaddexp(pairs[:, 0], pairs[:, 1])], 1).view(-1))
    current = within.clone()
    wanted = torch.zeros_like(within) if hit is None else hit.clone()
    for bit in reversed(range(num_bits)):
        stage, low = stages[bit], (1 << bit) - 1
        has_bit, is_wanted = current >> bit & 1 > 0, wanted >> bit & 1 > 0
        without, below = current & ~(1 << bit), wanted & low
        free = wanted == 0
        keep = _log_reaching(stage, current, below, free | is_wanted)
        drop = _log_reaching(stage, without, below, free)
        uniform = torch.rand(keep.shape, generator=generator, dtype=keep.dtype, device=keep.device)
        kept = has_bit & (uniform < torch.sigmoid(keep - drop))
        current = torch.where(kept, current, without)
        wanted = torch.where(kept & is_wanted, 0, wanted)
    return current


def _log_reaching(stage: Tensor, sets: Tensor, wanted: Tensor, free: Tensor) -> Tensor:
    """Log of a stage's sums over the subsets with a member of ``wanted``, or over all where ``free``."""
    whole, missing = stage[sets], stage[sets & ~wanted]
    gap = (missing - whole).clamp_max(0.0)
    return torch.where(free | whole.isneginf(), whole, whole + (-torch.expm1(gap)).log())
