"""Directed acyclic graphs as bool adjacency matrices, ``[..., i, j]`` the edge i -> j.

Functions take any batch dimensions unless they say otherwise.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.ops.equivalence import cpdag, interventional_cpdag
from ppgen.ops.linear_extensions import log_num_linear_extensions, unique_graphs
from ppgen.ops.reachability import check_acyclic, closure, find_cycle, is_acyclic, topological_order

__all__ = [
    "check_acyclic",
    "closure",
    "cpdag",
    "enumerate_dags",
    "find_cycle",
    "interventional_cpdag",
    "is_acyclic",
    "log_num_linear_extensions",
    "random_dag",
    "topological_order",
    "unique_graphs",
]

_MAX_ENUMERATED = 5


def enumerate_dags(num_nodes: int) -> Tensor:
    """All DAGs of up to 5 nodes; bool, shape ``(1 | 3 | 25 | 543 | 29281, n, n)``, the empty one first.

    Raises:
        ConfigError: not 1 to 5 nodes (6 nodes have 3,781,503 DAGs).
    """
    if not 1 <= num_nodes <= _MAX_ENUMERATED:
        raise ConfigError(f"num_nodes: expected 1 to {_MAX_ENUMERATED}, got {num_nodes}")
    pairs = list(itertools.combinations(range(num_nodes), 2))
    # Each pair has no edge, one forwards, or one backwards.
    code = torch.arange(3 ** len(pairs))
    graphs = torch.zeros(len(code), num_nodes, num_nodes, dtype=torch.bool)
    for place, (i, j) in enumerate(pairs):
        digit = code // 3**place % 3
        graphs[:, i, j] = digit == 1
        graphs[:, j, i] = digit == 2
    return graphs[is_acyclic(graphs)]


def random_dag(
    num_nodes: int, edge_probability: float, generator: torch.Generator | None = None, num: int | None = None
) -> Tensor:
    """A DAG with a uniform order and, given it, independent edges.

    Args:
        num_nodes: n.
        edge_probability: of each pair that an edge joins it.
        generator: source of randomness; torch's global one by default.
        num: how many; ``None`` for one without a batch dimension.

    Returns:
        bool, shape ``(n, n)`` or ``(num, n, n)``, on the generator's device.

    Raises:
        ConfigError: no nodes, or something that is no probability.
    """
    if num_nodes < 1:
        raise ConfigError(f"num_nodes: expected a positive integer, got {num_nodes}")
    if not 0 <= edge_probability <= 1:
        raise ConfigError(f"edge_probability: expected a number from 0 to 1, got {edge_probability}")
    device = torch.device("cpu") if generator is None else generator.device
    shape = (1 if num is None else num, num_nodes)
    order = torch.rand(shape, generator=generator, device=device, dtype=torch.float64).argsort(-1)
    chosen = torch.rand(*shape, num_nodes, generator=generator, device=device) < edge_probability
    graphs = chosen & (order[:, :, None] < order[:, None, :])
    return graphs[0] if num is None else graphs
