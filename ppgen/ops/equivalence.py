r"""Markov equivalence: what data, with or without interventions, can tell of a DAG.

Two DAGs are Markov equivalent iff they have the same skeleton and the same v-structures (Verma & Pearl
1990). A class is drawn as a completed partially directed graph (CPDAG), with an arrow for each edge that
all members direct alike. Under perfect interventions with known targets the classes are finer: all
members also agree on every edge of which exactly one end is in some target (Hauser & Buehlmann 2012,
Theorem 10), and the drawing is the interventional essential graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.ops.chunks import rows_per_chunk
from ppgen.ops.reachability import check_acyclic, check_square, compose

# Graphs worked on together: their float matrices then take tens of megabytes at 40 nodes.
_GRAPHS = 1024


def cpdag(adjacency: Tensor) -> Tensor:
    """The completed partially directed graph of each DAG's Markov equivalence class.

    Args:
        adjacency: DAGs, bool, shape ``(..., n, n)``.

    Returns:
        bool, same shape: ``[i, j]`` alone is the compelled edge i -> j; ``[i, j]`` and ``[j, i]`` together
        are an edge that members of the class direct differently.

    Raises:
        ConfigError: a graph has a cycle.
    """
    return interventional_cpdag(adjacency, [()])


def interventional_cpdag(adjacency: Tensor, targets: Iterable[Collection[int]]) -> Tensor:
    """The interventional essential graph of each DAG, for perfect interventions with known targets.

    Args:
        adjacency: DAGs, bool, shape ``(..., n, n)``.
        targets: the sets of nodes that were set together, the empty set for observational data. Every node
            must be left alone in one of them (Hauser & Buehlmann call such families conservative).

    Returns:
        bool, same shape, as for :func:`cpdag`.

    Raises:
        ConfigError: a graph has a cycle; a target is no node; a node is in every target, so that nothing is
            known of its mechanism.
    """
    check_square(adjacency)
    check_acyclic(adjacency)
    n = adjacency.shape[-1]
    split = _split_by_targets(n, [set(target) for target in targets]).to(adjacency.device)
    flat = adjacency.reshape(-1, n, n)
    parts = [_complete(dags, dags & split) for dags in flat.split(_GRAPHS)]
    return torch.cat(parts).reshape(adjacency.shape) if parts else adjacency.clone()


def _split_by_targets(num_nodes: int, targets: list[set[int]]) -> Tensor:
    """Whether some target holds exactly one of i and j, shape ``(n, n)``."""
    held = torch.zeros(len(targets), num_nodes, dtype=torch.bool)
    for row, target in enumerate(targets):
        for node in target:
            if not 0 <= node < num_nodes:
                raise ConfigError(f"targets: expected nodes from 0 to {num_nodes - 1}, got {node!r}")
            held[row, node] = True
    always = held.all(0).nonzero()[:, 0].tolist()
    if always:
        raise ConfigError(
            f"targets: node {always[0]} is in every set, so that its mechanism was never seen; "
            "add the set () for observational data, or leave the node out"
        )
    return (held[:, :, None] != held[:, None, :]).any(0)


def _complete(dags: Tensor, arrows: Tensor) -> Tensor:
    """Add v-structures to the known ``arrows`` of DAGs (B, n, n), apply Meek's rules, undirect the rest."""
    n = dags.shape[-1]
    linked = dags | dags.mT
    apart = ~linked & ~torch.eye(n, dtype=torch.bool, device=dags.device)
    # i -> k is in a v-structure where k has another parent that is not linked to i.
    arrows = arrows | (dags & compose(apart, dags))
    active = torch.arange(len(dags), device=dags.device)
    while len(active):
        found = _meek(dags[active], arrows[active], apart[active])
        changed = found.flatten(1).any(1)
        active, found = active[changed], found[changed]
        arrows[active] |= found
    return dags | (dags & ~arrows).mT


def _meek(dags: Tensor, arrows: Tensor, apart: Tensor) -> Tensor:
    """Edges that Meek's rules 1 to 3 turn into arrows, given those so far; bool, (B, n, n).

    What the rules compel is directed as in every member of the class, so that the DAG at hand tells the
    direction. Rule 4 is for background knowledge: with none, or with all edges between differently
    targeted nodes, the three rules leave no a -> b with b - c undirected and a, c not joined by an arrow,
    and rule 4 has nothing to act on.
    """
    free = dags & ~arrows
    loose = free | free.mT
    # 1: a -> i, i - j, with a and j apart. 2: i -> a -> j and i - j.
    found = free & (compose(arrows.mT, apart) | compose(arrows, arrows))
    # 3: i - a -> j and i - b -> j, with a and b apart, and i - j.
    paths = loose.float() @ arrows.float()
    graph, i, j = (free & ~found & (paths > 1.5)).nonzero(as_tuple=True)
    rows = rows_per_chunk(dags.shape[-1] ** 2, dags.device)
    for g, a, b in zip(graph.split(rows), i.split(rows), j.split(rows), strict=True):
        via = loose[g, a] & arrows[g, :, b]
        pairs = apart[g] & via[:, :, None] & via[:, None, :]
        found[g, a, b] = pairs.flatten(1).any(1)
    return found
