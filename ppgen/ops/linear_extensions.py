r"""Numbers of linear extensions: the orders of the nodes that a DAG fits.

An order of independent parts is an interleaving of orders of each,
:math:`N = \frac{m!}{\prod_c m_c!} \prod_c N_c`, and where all of one part precedes all of the next the
numbers multiply. Graphs are taken apart by both rules as far as it goes, which settles trees and their
like; for what is left, orders are counted by their initial sets,
:math:`N(S) = \sum_{v} N(S \setminus v)` over the v that may come last in S. Many graphs are done at once, and
parts that occur again are counted once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.ops.reachability import check_acyclic, check_square, closure

# Steps between initial sets held at once, 16 bytes each.
_MAX_STEPS = {"cpu": 2**23, "other": 2**26}
_MAX_STEPS_OF_ONE = 2**27
_MAX_NODES = 62  # bits of an int64, less its sign


def log_num_linear_extensions(adjacency: Tensor) -> Tensor:
    """Log of the number of orders of the nodes in which every parent precedes its children.

    The work grows with the number of initial sets, which is small where paths are long; sparse graphs of
    20 nodes have thousands of them, and graphs without edges none, as they fall apart.

    Args:
        adjacency: DAGs, bool, shape ``(..., n, n)``.

    Returns:
        float64, shape ``(...)``, in nats.

    Raises:
        ConfigError: a graph has a cycle, or more initial sets than fit into memory.
    """
    check_square(adjacency)
    check_acyclic(adjacency)
    n = adjacency.shape[-1]
    flat = adjacency.reshape(-1, n, n)
    unique, inverse = unique_graphs(closure(flat))
    total = torch.zeros(len(unique), dtype=torch.float64, device=adjacency.device)
    parts = _Parts(unique, torch.ones_like(unique[..., 0]), torch.arange(len(unique), device=unique.device))
    while True:
        before = len(parts.owner), int(parts.nodes.sum())
        parts = _split(parts, total)
        if before == (len(parts.owner), int(parts.nodes.sum())):
            break
    sizes = parts.nodes.sum(-1)
    for size in sizes.unique().tolist():
        chosen = sizes == size
        relation, again = unique_graphs(_relabelled(parts.take(chosen), size))
        counts = _count(relation)
        total.index_add_(0, parts.owner[chosen], counts.log()[again])
    return total[inverse].reshape(adjacency.shape[:-2])


def unique_graphs(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """Different graphs of a batch, and for each graph its number among them.

    Args:
        adjacency: bool, shape ``(B, n, n)``.

    Returns:
        bool ``(U, n, n)`` and int64 ``(B,)``.
    """
    n = adjacency.shape[-1]
    bits = adjacency.reshape(len(adjacency), n * n)
    bits = torch.nn.functional.pad(bits, (0, -n * n % 62)).unflatten(1, (-1, 62))
    words = (bits.long() << torch.arange(62, device=bits.device)).sum(-1)
    _, inverse = words.unique(dim=0, return_inverse=True)
    num = int(inverse.max()) + 1 if len(inverse) else 0
    first = torch.full((num,), len(words), device=bits.device)
    first.scatter_reduce_(0, inverse, torch.arange(len(words), device=bits.device), "amin")
    return adjacency[first], inverse


@dataclass(frozen=True)
class _Parts:
    """Subsets of the nodes of graphs whose orders are still to be counted.

    Attributes:
        relation: must i precede j, bool (K, n, n).
        nodes: members of the part, bool (K, n).
        owner: number of the graph, (K,).
    """

    relation: Tensor
    nodes: Tensor
    owner: Tensor

    def take(self, index: Tensor) -> _Parts:
        return _Parts(self.relation[index], self.nodes[index], self.owner[index])


def _split(parts: _Parts, total: Tensor) -> _Parts:
    """Take parts asunder, side by side and then one after the other, adding what that tells to ``total``."""
    either = parts.relation | parts.relation.mT
    pieces, source = _components(either, parts.nodes)
    total.index_add_(0, parts.owner, _log_factorial(parts.nodes))
    total.index_add_(0, parts.owner[source], -_log_factorial(pieces))
    parts = _Parts(parts.relation[source], pieces, parts.owner[source]).take(pieces.sum(-1) > 1)
    either = parts.relation | parts.relation.mT
    pieces, source = _components(~either, parts.nodes)
    return _Parts(parts.relation[source], pieces, parts.owner[source]).take(pieces.sum(-1) > 1)


def _components(linked: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Connected components among ``nodes`` (K, n): their members (C, n), and the row each is of (C,)."""
    inside = nodes[:, :, None] & nodes[:, None, :]
    own = torch.eye(nodes.shape[-1], dtype=torch.bool, device=nodes.device)
    joined = closure((linked | own) & inside)
    lowest = joined.int().argmax(-1)  # the lowest node stands for its component
    is_first = nodes & (lowest == torch.arange(nodes.shape[-1], device=nodes.device))
    row, node = is_first.nonzero(as_tuple=True)
    return joined[row, node], row


def _log_factorial(nodes: Tensor) -> Tensor:
    return torch.lgamma(nodes.sum(-1, dtype=torch.float64) + 1)


def _relabelled(parts: _Parts, size: int) -> Tensor:
    """The relation among the members alone, numbered so that predecessors come first; (K, size, size)."""
    num_before = (parts.relation & parts.nodes[:, :, None]).sum(-2)
    rank = num_before + (~parts.nodes) * parts.nodes.shape[-1]
    order = rank.argsort(dim=-1, stable=True)[:, :size]
    rows = torch.arange(len(order), device=order.device)[:, None, None]
    return parts.relation[rows, order[:, :, None], order[:, None, :]]


def _count(relation: Tensor) -> Tensor:
    """Numbers of linear extensions of transitive relations (K, m, m) with i before j only for i < j."""
    if relation.shape[-1] > _MAX_NODES:
        raise ConfigError(
            f"adjacency: linear extensions are counted for up to {_MAX_NODES} nodes that hang together, got "
            f"{relation.shape[-1]}"
        )
    done: list[Tensor] = []
    waiting = list(reversed(relation.split(512)))
    while waiting:
        part = waiting.pop()
        counts = _count_by_initial_sets(part)
        if counts is not None:
            done.append(counts)
        elif len(part) > 1:
            waiting.extend(reversed(part.split((len(part) + 1) // 2)))
        else:
            raise ConfigError(
                f"adjacency: a graph of {part.shape[-1]} nodes that hang together has more than "
                f"{_MAX_STEPS_OF_ONE:,} steps between initial sets, too many to count its linear extensions"
            )
    return torch.cat(done)


def _count_by_initial_sets(relation: Tensor) -> Tensor | None:
    """The numbers, (K,), or ``None`` where there are too many initial sets for one go.

    Initial sets are listed node by node: with node k they are those without it and, where these hold all
    predecessors of k, these with k. So each is met once, and so is each step from one to a larger one.
    """
    num, size = relation.shape[:2]
    device = relation.device
    limit = _MAX_STEPS_OF_ONE if num == 1 else _MAX_STEPS["cpu" if device.type == "cpu" else "other"]
    before = (relation.mT.long() << torch.arange(size, device=device)).sum(-1)
    graph = torch.arange(num, device=device)
    members = torch.zeros(num, dtype=torch.int64, device=device)
    start = end = torch.zeros(0, dtype=torch.int64, device=device)
    for k in range(size):
        wanted = before[graph, k]
        can = (members & wanted) == wanted
        chosen = can.nonzero()[:, 0]
        place = torch.cumsum(can, 0) + (len(members) - 1)  # of the set with k, where there is one
        kept = can[start]  # a step between sets of which the smaller can take k, and so the larger
        start, end = (
            torch.cat([start, place[start[kept]], chosen]),
            torch.cat([end, place[end[kept]], place[chosen]]),
        )
        members = torch.cat([members, members[chosen] | (1 << k)])
        graph = torch.cat([graph, graph[chosen]])
        if len(start) > limit:
            return None
    size_of = torch.zeros(len(members), dtype=torch.int64, device=device)
    for k in range(size):
        size_of += (members >> k) & 1
    level = size_of[end]
    order = level.argsort()
    start, end = start[order], end[order]
    counts = torch.zeros(len(members), dtype=torch.float64, device=device)
    counts[:num] = 1.0
    per_level = torch.bincount(level, minlength=size + 1).tolist()
    for first, last in zip(start.split(per_level), end.split(per_level), strict=True):
        counts.index_add_(0, last, counts[first])
    return counts[size_of == size][graph[size_of == size].argsort()]
