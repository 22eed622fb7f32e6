r"""Probabilities of directed paths.

Under the uniform prior they come with the marginals, see
:mod:`~ppgen.inference.structure.exact.uniform`. Under the order-modular prior the descendants of a source
have to be followed through the orders (after Parviainen & Koivisto 2011): f(D, O) sums over the orders of
the nodes D and O, and the parents in them, in which D holds the source and its descendants. The next node
joins D with weight :math:`\alpha_v(D \cup O) - \alpha_v(O)`, and O with weight :math:`\alpha_v(O)`.
There are :math:`3^{n-1}` such pairs for each source.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.inference.structure.exact.lattice import chunk_size, family_values, sums_by_member
from ppgen.inference.structure.exact.order import OrderTables
from ppgen.inference.structure.exact.uniform import UniformTables


def uniform_paths(tables: UniformTables) -> Tensor:
    """p(a path leads from i to j), shape (n, n), under the uniform prior over DAGs; 0 on the diagonal."""
    rows = []
    for node, descent in enumerate(tables.descent):
        # Summed over the complement, so that small probabilities are not differences of large ones.
        outside = sums_by_member(descent.flip(0))
        rows.append(torch.cat([outside[:node], outside.new_zeros(1), outside[node:]]))
    return torch.stack(rows)


def order_paths(tables: OrderTables) -> Tensor:
    """p(a path leads from i to j), shape (n, n), under the order-modular prior; 0 on the diagonal."""
    num_nodes = tables.log_alpha.shape[0]
    states = _States(num_nodes, tables.log_alpha.device)
    return torch.stack([_paths_from(tables, states, source) for source in range(num_nodes)])


class _States:
    """Pairs of disjoint sets (D, O) by number: digit v in base three is 2 in D, 1 in O, 0 in neither."""

    def __init__(self, num_nodes: int, device: torch.device) -> None:
        kept: dict[str, Tensor] = {}
        for name, values in {"descendants": (0, 0, 1), "others": (0, 1, 0)}.items():
            kept[name] = torch.zeros(1, dtype=torch.int64, device=device)
            for bit in range(num_nodes):
                kept[name] = torch.cat([kept[name] + (value << bit) for value in values])
        self.descendants, self.others = kept["descendants"], kept["others"]
        self.placed = torch.zeros(1, dtype=torch.uint8, device=device)
        for _ in range(num_nodes):
            self.placed = torch.cat([self.placed, self.placed + 1, self.placed + 1])
        self.powers = 3 ** torch.arange(num_nodes, device=device)


def _paths_from(tables: OrderTables, states: _States, source: int) -> Tensor:
    alpha = tables.log_alpha
    num_nodes = alpha.shape[0]
    nodes = torch.arange(num_nodes, device=alpha.device)
    value = alpha.new_full((3**num_nodes,), -torch.inf)
    inside = states.descendants >> source & 1 > 0
    for size in range(1, num_nodes + 1):
        for batch in (
            ((states.placed == size) & inside).nonzero()[:, 0].split(chunk_size(alpha.device) // num_nodes)
        ):
            descendants, others = states.descendants[batch, None], states.others[batch, None]
            in_descendants, in_others = descendants >> nodes & 1 > 0, others >> nodes & 1 > 0
            before = batch[:, None] - states.powers * (2 * in_descendants.long() + in_others.long())
            rest = others & ~(1 << nodes)
            free = family_values(alpha, nodes, rest)
            whole = family_values(alpha, nodes, rest | (descendants & ~(1 << nodes)))
            joins = whole + (-torch.expm1((free - whole).clamp_max(0.0))).log()
            step = torch.where(in_others, free, torch.where(whole.isneginf(), whole, joins))
            terms = (step + value[before]).masked_fill(~(in_descendants | in_others), -torch.inf)
            # Nothing descends from the source before it comes: it starts D, after any order of O.
            start = (free + tables.log_prefix[others])[:, source]
            alone = (descendants == 1 << source)[:, 0]
            terms[:, source] = torch.where(alone, start, -torch.inf)
            value[batch] = torch.logsumexp(terms, -1)
    full = (states.placed == num_nodes) & inside
    share = (value[full] - tables.log_partition).exp()
    members = states.descendants[full, None] >> nodes & 1 > 0
    result = torch.where(members, share[:, None], 0.0).sum(0)
    result[source] = 0.0
    return result
