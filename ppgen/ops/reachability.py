"""Paths and cycles of directed graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.errors import ConfigError, ShapeError


def check_square(adjacency: Tensor, *, batched: bool = True) -> None:
    """Raise :class:`~ppgen.errors.ShapeError` unless adjacency matrices are square and bool."""
    shape = tuple(adjacency.shape)
    fits = len(shape) >= 2 and shape[-1] == shape[-2] and (batched or len(shape) == 2)
    if not fits or adjacency.dtype is not torch.bool:
        wanted = "(..., n, n)" if batched else "(n, n)"
        raise ShapeError(
            f"adjacency: expected a bool tensor of shape {wanted}, got {adjacency.dtype} of shape {shape}; "
            "[i, j] says whether there is an edge i -> j"
        )


def closure(adjacency: Tensor) -> Tensor:
    """Whether a directed path of length 1 or more leads from i to j.

    Args:
        adjacency: bool, shape ``(..., n, n)``; cycles are allowed and reach themselves.

    Returns:
        bool, same shape.
    """
    check_square(adjacency)
    reach, covered = adjacency, 1
    while covered < adjacency.shape[-1]:
        reach = reach | compose(reach, reach)
        covered *= 2
    return reach.clone() if covered == 1 else reach


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Whether some k has ``first[i, k]`` and ``second[k, j]``; bool, any batch dimensions."""
    # Sums of 0 and 1 are exact in float32 up to 2^24 terms.
    return first.float() @ second.float() > 0.5


def is_acyclic(adjacency: Tensor) -> Tensor:
    """Whether a graph has no directed cycle; shape ``(...)`` for adjacency ``(..., n, n)``, bool."""
    check_square(adjacency)
    return ~_core(adjacency).any(-1)


def find_cycle(adjacency: Tensor) -> list[int] | None:
    """The nodes of one directed cycle in the order of its edges, or ``None``.

    Args:
        adjacency: bool, shape ``(n, n)``.
    """
    check_square(adjacency, batched=False)
    core = _core(adjacency)
    if not bool(core.any()):
        return None
    # Every node of the core has a parent in it: going backwards must come round.
    inside = (adjacency & core[:, None]).int().argmax(0).tolist()
    node, seen = int(core.int().argmax()), list[int]()
    while node not in seen:
        seen.append(node)
        node = inside[node]
    return seen[seen.index(node) :][::-1]


def check_acyclic(adjacency: Tensor, names: tuple[str, ...] | None = None) -> None:
    """Raise :class:`~ppgen.errors.ConfigError` with a cycle where a graph has one.

    Args:
        adjacency: bool, shape ``(..., n, n)``.
        names: of the nodes, for the message; by default their numbers.
    """
    bad = (~is_acyclic(adjacency)).flatten().nonzero()
    if len(bad):
        cycle = find_cycle(adjacency.flatten(0, -3)[bad[0, 0]] if adjacency.ndim > 2 else adjacency) or []
        shown = [str(i) if names is None else names[i] for i in [*cycle, *cycle[:1]]]
        raise ConfigError(
            f"adjacency: expected directed graphs without cycles, got the cycle {' -> '.join(shown)}; "
            "drop one of its edges"
        )


def topological_order(adjacency: Tensor) -> list[int]:
    """The nodes with every parent before its children; of those that could come next, the lowest first.

    Args:
        adjacency: bool, shape ``(n, n)``.

    Raises:
        ConfigError: the graph has a cycle, which the message shows.
    """
    check_square(adjacency, batched=False)
    check_acyclic(adjacency)
    parents: list[set[int]] = [set(row.nonzero()[:, 0].tolist()) for row in adjacency.T.cpu()]
    order: list[int] = []
    left = list(range(len(parents)))
    while left:
        node = next(v for v in left if parents[v].isdisjoint(left))
        order.append(node)
        left.remove(node)
    return order


def _core(adjacency: Tensor) -> Tensor:
    """Nodes on cycles or reached from one, shape ``(..., n)``: what peeling off orphans leaves."""
    left = torch.ones(adjacency.shape[:-1], dtype=torch.bool, device=adjacency.device)
    while True:
        kept = (adjacency & left[..., :, None]).any(-2) & left
        if bool((kept == left).all()):
            return left
        left = kept
