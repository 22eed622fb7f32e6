r"""From a partly directed graph to the DAGs that it stands for, under what is known of the edges.

Searches leave a graph with links that have no direction yet. :func:`complete` adds every arrow that follows
from those that are there by Meek's four rules (Meek 1995), which also cover background knowledge;
:func:`extensions` gives the DAGs that remain, all of them or weighted draws; :func:`nearest` gives one DAG
where the arrows contradict each other or the constraints.

A partly directed graph is a bool matrix (n, n) on the CPU with an undirected link as both directions.
Inside, rows are integers whose bits are their entries: closures of small graphs are then a few machine
operations, and there are thousands of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.family_prior import FamilyPrior

# Dead ends of contradictory graphs are visited too, so that visits are limited beside graphs.
_VISITS_A_GRAPH = 20


@dataclass(frozen=True)
class Extensions:
    """DAGs that a partly directed graph stands for.

    Attributes:
        adjacency: shape (S, n, n), bool; S may be 0.
        log_weights: shape (S,): log of the number of members that each stands for, up to a constant.
        complete: whether these are all members, each once, so that the weights are 0.
    """

    adjacency: Tensor
    log_weights: Tensor
    complete: bool


def arrows_of_colliders(
    links: Tensor, separating: dict[frozenset[int], frozenset[int]], allowed: Tensor
) -> Tensor:
    """Direct x -> z <- y where x and y have no link and z is not in what separates them (PC's second half).

    Arrows that are not allowed, and those that turn an earlier one around, are left out, both of the pair.

    Args:
        links: symmetric bool, shape (n, n).
        separating: for pairs without a link, the variables that separate them.
        allowed: edges that there may be, bool, shape (n, n).

    Returns:
        The partly directed graph, shape (n, n).
    """
    graph = links.clone()
    n = len(graph)
    for x in range(n):
        for y in range(x + 1, n):
            between = separating.get(frozenset((x, y)))
            if links[x, y] or between is None:
                continue
            for z in (links[x] & links[y]).nonzero()[:, 0].tolist():
                if z not in between and allowed[x, z] and allowed[y, z] and graph[x, z] and graph[y, z]:
                    graph[z, x] = graph[z, y] = False
    return graph


def with_knowledge(graph: Tensor, prior: FamilyPrior) -> Tensor:
    """The graph with arrows turned, links directed, dropped and added as the constraints want it."""
    allowed = prior.allowed_edges & ~prior.required_edges.T
    linked = graph | graph.T
    # An arrow that is not allowed becomes the opposite one; with neither allowed the link goes.
    kept = graph & allowed
    lost = linked & ~(kept | kept.T)
    return (kept | (lost & allowed)) & ~prior.required_edges.T | prior.required_edges


def complete(graph: Tensor) -> Tensor | None:
    """Add the arrows that Meek's rules give; ``None`` where a rule would turn one around or close a cycle."""
    closed = _close(_rows(graph))
    return None if closed is None else _matrix(closed)


def extensions(
    graph: Tensor, prior: FamilyPrior, *, limit: int = 1000, generator: torch.Generator | None = None
) -> Extensions:
    r"""The DAGs that direct the links of a graph and keep its arrows, as far as the constraints allow them.

    A link is directed either way and the consequences by Meek's rules drawn, and so on until none is left.
    For a completed graph without constraints the leaves are the Markov equivalence class. Where there are
    more than ``limit`` of them, draws go down the same tree with a fair coin at each link that is still
    free; one that tossed k coins was reached with probability :math:`2^{-k}` and weighs :math:`k \log 2`,
    which makes weighted averages consistent for the uniform distribution over all members.

    Args:
        graph: partly directed, bool, shape (n, n).
        prior: members of weight zero are left out.
        limit: the largest number of members to list, and the number of draws beyond it.
        generator: source of randomness for the draws.
    """
    rows = _rows(graph)
    found: list[list[int]] = []
    for visits, leaf in enumerate(_leaves(rows)):
        if leaf is not None and bool(prior.allows(_matrix(leaf))):
            found.append(leaf)
        if len(found) > limit or visits > _VISITS_A_GRAPH * limit:
            return _draws(rows, prior, limit, generator)
    return Extensions(_matrices(found, len(rows)), torch.zeros(len(found), dtype=torch.float64), True)


def _draws(rows: list[int], prior: FamilyPrior, num: int, generator: torch.Generator | None) -> Extensions:
    found, coins = [], []
    for _ in range(num):
        state, tossed = _close(rows), 0
        while state is not None and (free := _free(state)):
            # Which link comes next does not bear on the weights; a random one needs fewer coins on a path.
            pick, side = torch.randint(2**30, (2,), generator=generator).tolist()
            i, j = free[pick % len(free)]
            state = _close(_directed(state, *((i, j) if side % 2 else (j, i))))
            tossed += 1
        if state is not None and bool(prior.allows(_matrix(state))):
            found.append(state)
            coins.append(tossed)
    log_weights = torch.tensor(coins, dtype=torch.float64) * torch.tensor(2.0, dtype=torch.float64).log()
    return Extensions(_matrices(found, len(rows)), log_weights, False)


def nearest(graph: Tensor, prior: FamilyPrior) -> Tensor:
    """A DAG with the links and, as far as possible, the arrows of a graph; edge constraints are kept.

    Nodes are taken away one by one, each as a sink of what remains, as in Dor & Tarsi (1992); where no node
    qualifies, the one goes that breaks the least: first, never, a required edge; then links that have to be
    dropped because the direction is not allowed; then arrows turned and new colliders made. Limits on the
    number of parents are not looked at.

    Returns:
        bool, shape (n, n).
    """
    n = len(graph)
    result = torch.zeros_like(graph)
    rest = torch.ones(n, dtype=torch.bool)
    linked = graph | graph.T
    while rest.any():
        best: tuple[tuple[int, int, int], int, Tensor] | None = None
        for node in rest.nonzero()[:, 0].tolist():
            others = linked[node] & rest
            parents = others & prior.allowed_edges[:, node]
            pairs = parents[:, None] & parents[None, :] & ~linked
            pairs.fill_diagonal_(False)
            known = (graph[:, node] & ~graph[node]) & rest
            # Colliders among known parents are the graph's own; others would be new.
            fresh = int(pairs.sum() - (pairs & known[:, None] & known[None, :]).sum()) // 2
            cost = (
                int((prior.required_edges[node] & rest).sum()),
                int((others & ~parents).sum()),
                int((graph[node] & ~graph[:, node] & rest).sum()) + fresh,
            )
            if best is None or cost < best[0]:
                best = cost, node, parents
        if best is not None:
            _, node, parents = best
            result[:, node] = parents
            rest[node] = False
    return result | prior.required_edges


# -- rows of bits ---------------------------------------------------------------------------


def _rows(graph: Tensor) -> list[int]:
    return [sum(1 << j for j in row.nonzero()[:, 0].tolist()) for row in graph.cpu()]


def _matrix(rows: list[int]) -> Tensor:
    n = len(rows)
    return torch.tensor([[row >> j & 1 for j in range(n)] for row in rows], dtype=torch.bool).reshape(n, n)


def _matrices(found: list[list[int]], n: int) -> Tensor:
    return torch.stack([_matrix(rows) for rows in found]) if found else torch.zeros(0, n, n, dtype=torch.bool)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _columns(rows: list[int]) -> list[int]:
    columns = [0] * len(rows)
    for i, row in enumerate(rows):
        for j in _bits(row):
            columns[j] |= 1 << i
    return columns


def _free(rows: list[int]) -> list[tuple[int, int]]:
    """Links without a direction, i < j."""
    return [(i, j) for i, row in enumerate(rows) for j in _bits(row) if i < j and rows[j] >> i & 1]


def _directed(rows: list[int], i: int, j: int) -> list[int]:
    """The graph with the link of i and j as i -> j."""
    result = list(rows)
    result[j] &= ~(1 << i)
    return result


def _leaves(rows: list[int]) -> Iterator[list[int] | None]:
    """All completions of a graph, ``None`` at each dead end."""
    stack = [list(rows)]
    while stack:
        state = _close(stack.pop())
        if state is None:
            yield None
        elif free := _free(state):
            i, j = free[0]
            stack += [_directed(state, j, i), _directed(state, i, j)]
        else:
            yield state


def _close(rows: list[int]) -> list[int] | None:
    """Meek's rules until they add nothing; ``None`` for a contradiction."""
    out = list(rows)  # arrows and links that leave a node
    into = _columns(out)
    changed = True
    while changed:
        changed = False
        for i, j in _free(out):
            forwards, backwards = _compelled(out, into, i, j), _compelled(out, into, j, i)
            if forwards and backwards:
                return None
            if forwards or backwards:
                a, b = (i, j) if forwards else (j, i)
                out[b] &= ~(1 << a)
                into[a] &= ~(1 << b)
                changed = True
    return out if _arrows_acyclic(out, into) else None


def _compelled(out: list[int], into: list[int], a: int, b: int) -> bool:
    """Whether one of Meek's rules directs a - b as a -> b."""
    parents_a, parents_b = into[a] & ~out[a], into[b] & ~out[b]
    linked_b = out[b] | into[b]
    if parents_a & ~linked_b & ~(1 << b):  # c -> a - b, c and b apart
        return True
    if (out[a] & ~into[a]) & parents_b:  # a -> c -> b
        return True
    loose_a = out[a] & into[a] & ~(1 << b)
    for c in _bits(loose_a & parents_b):  # a - c -> b and a - d -> b, c and d apart
        if loose_a & parents_b & ~(out[c] | into[c]) & ~(1 << c):
            return True
    # a - c -> d -> b, a and d linked, c and b apart
    linked_a = out[a] | into[a]
    return any(out[c] & ~into[c] & parents_b & linked_a for c in _bits(loose_a & ~linked_b))


def _arrows_acyclic(out: list[int], into: list[int]) -> bool:
    rest = (1 << len(out)) - 1
    parents = [into[v] & ~out[v] for v in range(len(out))]
    while rest:
        free = [v for v in _bits(rest) if not parents[v] & rest]
        if not free:
            return False
        for v in free:
            rest &= ~(1 << v)
    return True
