"""Orientation against all DAGs: classes, constraints, weighted draws, contradictory graphs."""

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.inference.structure.orientation import (
    arrows_of_colliders,
    complete,
    extensions,
    nearest,
    with_knowledge,
)
from ppgen.inference.structure.prior import Constraints, GraphPrior, compile_prior
from ppgen.ops.dags import cpdag, enumerate_dags, is_acyclic
from ppgen.testing.statistics import assert_close_to

NAMES = tuple("abcdefgh")
KNOWN = {
    "nothing": Constraints(),
    "required": Constraints(required=[("a", "b")]),
    "forbidden": Constraints(forbidden=[("b", "a"), ("c", "d")]),
    "tiers": Constraints(tiers=[["c"], ["a", "b"]]),
    "fan-in": Constraints(max_parents=1),
    "all": Constraints(required=[("d", "a")], forbidden=[("a", "c")], tiers=[["d"], ["b"]], max_parents=2),
}


def prior_of(constraints: Constraints | None = None, n: int = 4) -> FamilyPrior:
    return compile_prior(GraphPrior(), constraints or Constraints(), NAMES[:n])


def edges(n: int, *pairs: tuple[int, int], both: bool = False) -> Tensor:
    graph = torch.zeros(n, n, dtype=torch.bool)
    for i, j in pairs:
        graph[i, j] = True
        graph[j, i] = both
    return graph


def as_set(graphs: Tensor) -> set[tuple[bool, ...]]:
    return {tuple(g.flatten().tolist()) for g in graphs}


@pytest.mark.parametrize("known", list(KNOWN))
def test_extensions_are_the_members_of_each_class_that_the_constraints_allow(known: str) -> None:
    dags, prior = enumerate_dags(4), prior_of(KNOWN[known])
    classes = defaultdict(list)
    for dag, pattern in zip(dags, cpdag(dags), strict=True):
        classes[tuple(pattern.flatten().tolist())].append(dag)
    assert len(classes) == 185
    for pattern, members in classes.items():
        allowed = [m for m in members if prior.allows(m)]
        if allowed:
            found = extensions(with_knowledge(torch.tensor(pattern).reshape(4, 4), prior), prior)
            assert found.complete
            assert len(found.adjacency) == len(allowed)
            assert as_set(found.adjacency) == as_set(torch.stack(allowed))


def test_completion_makes_the_pattern_from_the_colliders() -> None:
    dags = enumerate_dags(4)
    for dag, pattern in zip(dags[::7], cpdag(dags[::7]), strict=True):
        linked = dag | dag.T
        collides = torch.zeros_like(dag)
        for k in range(4):
            for i in range(4):
                others = dag[:, k] & ~linked[i]
                others[i] = False
                collides[i, k] = dag[i, k] and bool(others.any())
        completed = complete(linked & ~collides.T)
        assert completed is not None
        assert torch.equal(completed, pattern)


def test_draws_from_a_large_class_are_weighted_to_be_uniform() -> None:
    # Of the seven members of a path, one for each root, a fair coin at each link favours some.
    path = edges(7, *((i, i + 1) for i in range(6)), both=True)
    prior = prior_of(n=7)
    exact = extensions(path, prior).adjacency.double().mean(0)
    drawn = extensions(path, prior, limit=5, generator=torch.Generator().manual_seed(0))
    assert not drawn.complete
    many = [extensions(path, prior, limit=6, generator=torch.Generator().manual_seed(s)) for s in range(500)]
    graphs = torch.cat([m.adjacency for m in many]).double()
    weights = torch.cat([m.log_weights for m in many]).exp()
    # The weights are those of an unnormalised uniform distribution over seven members.
    assert_close_to(weights.mean(), 7, weights.std() / math.sqrt(len(weights)))
    products = weights[:, None, None] / 7 * graphs
    error = products.std(0) / math.sqrt(len(graphs))
    assert_close_to(products.mean(0), exact, error)
    with pytest.raises(AssertionError):
        assert_close_to(graphs.mean(0), exact, graphs.std(0) / math.sqrt(len(graphs)))


def test_draws_repeat_with_their_generator() -> None:
    full = ~torch.eye(5, dtype=torch.bool)
    one, two = (
        extensions(full, prior_of(n=5), limit=20, generator=torch.Generator().manual_seed(4))
        for _ in range(2)
    )
    assert torch.equal(one.adjacency, two.adjacency)
    assert bool(is_acyclic(one.adjacency).all())


def test_a_contradiction_is_told() -> None:
    cycle = edges(3, (0, 1), (1, 2), (2, 0))
    assert complete(cycle) is None
    assert len(extensions(cycle, prior_of(n=3)).adjacency) == 0
    # a -> b - c <- d with a, c apart and b, d apart: rule 1 wants b -> c and c -> b.
    both_ways = edges(4, (0, 1), (3, 2)) | edges(4, (1, 2), both=True)
    assert complete(both_ways) is None


def test_the_nearest_dag_of_a_member_is_in_the_class() -> None:
    dags = enumerate_dags(4)
    patterns = cpdag(dags)
    found = torch.stack([nearest(p, prior_of()) for p in patterns[::5]])
    assert torch.equal(cpdag(found), patterns[::5])


@pytest.mark.parametrize("known", ["required", "forbidden", "tiers", "all"])
def test_the_nearest_dag_keeps_the_constraints_on_edges_whatever_the_graph(known: str) -> None:
    prior = prior_of(KNOWN[known])
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        graph = torch.rand(4, 4, generator=generator) < 0.5
        graph.fill_diagonal_(False)
        dag = nearest(with_knowledge(graph, prior), prior)
        assert bool(is_acyclic(dag))
        assert not bool((dag & ~prior.allowed_edges).any())
        assert not bool((prior.required_edges & ~dag).any())


def test_colliders_come_from_what_separates() -> None:
    links = edges(3, (0, 1), (1, 2), both=True)
    free = ~torch.eye(3, dtype=torch.bool)
    collider = arrows_of_colliders(links, {frozenset((0, 2)): frozenset()}, free)
    assert torch.equal(collider, edges(3, (0, 1), (2, 1)))
    assert torch.equal(arrows_of_colliders(links, {frozenset((0, 2)): frozenset((1,))}, free), links)
    assert torch.equal(arrows_of_colliders(links, {}, free), links)
    forbidden = free & ~edges(3, (0, 1))
    assert torch.equal(arrows_of_colliders(links, {frozenset((0, 2)): frozenset()}, forbidden), links)
