"""Graph tensors against brute force over all small DAGs, and against networkx and pgmpy."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable

import networkx as nx
import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, ShapeError
from ppgen.ops import dags, equivalence
from ppgen.testing.statistics import assert_mean

Edges = frozenset[tuple[int, int]]


def _graph(num_nodes: int, *edges: tuple[int, int]) -> Tensor:
    adjacency = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    for i, j in edges:
        adjacency[i, j] = True
    return adjacency


def _edges(adjacency: Tensor) -> Edges:
    return frozenset((i, j) for i, j in adjacency.nonzero().tolist())


def _class_of(edges: Edges, targets: list[set[int]]) -> Hashable:
    """Skeleton, v-structures, and the edges that some target splits (Hauser & Buehlmann, Theorem 10)."""
    skeleton = frozenset(frozenset(e) for e in edges)
    colliders = frozenset(
        (frozenset((i, j)), k)
        for (i, k), (j, other) in itertools.combinations(edges, 2)
        if k == other and frozenset((i, j)) not in skeleton
    )
    split = frozenset(e for e in edges if any(len(target & set(e)) == 1 for target in targets))
    return skeleton, colliders, split


def _essential_graphs(graphs: list[Edges], targets: list[set[int]]) -> list[Edges]:
    """The union of each graph's class: the definition of an essential graph."""
    unions: dict[Hashable, Edges] = defaultdict(frozenset)
    keys = [_class_of(graph, targets) for graph in graphs]
    for key, graph in zip(keys, graphs, strict=True):
        unions[key] |= graph
    return [unions[key] for key in keys]


def _count_orders(edges: Edges, num_nodes: int) -> int:
    return sum(
        all(order.index(i) < order.index(j) for i, j in edges)
        for order in itertools.permutations(range(num_nodes))
    )


@pytest.mark.parametrize(("num_nodes", "expected"), [(1, 1), (2, 3), (3, 25), (4, 543), (5, 29281)])
def test_all_dags_are_listed_once(num_nodes: int, expected: int) -> None:
    graphs = dags.enumerate_dags(num_nodes)
    assert graphs.shape == (expected, num_nodes, num_nodes)
    assert len(dags.unique_graphs(graphs)[0]) == expected
    assert not graphs[0].any()
    assert dags.is_acyclic(graphs).all()


@pytest.mark.parametrize("num_nodes", [0, 6])
def test_only_few_nodes_are_enumerated(num_nodes: int) -> None:
    with pytest.raises(ConfigError, match="num_nodes: expected 1 to 5"):
        dags.enumerate_dags(num_nodes)


def test_cycles_and_paths_agree_with_networkx() -> None:
    generator = torch.Generator().manual_seed(0)
    graphs = torch.rand(200, 7, 7, generator=generator) < 0.15
    graphs &= ~torch.eye(7, dtype=torch.bool)
    acyclic, reach = dags.is_acyclic(graphs), dags.closure(graphs)
    assert 20 < int(acyclic.sum()) < 180
    for g in range(len(graphs)):
        graph = nx.DiGraph(graphs[g].numpy())
        assert bool(acyclic[g]) == nx.is_directed_acyclic_graph(graph)
        # networkx's transitive closure keeps i -> i for nodes on cycles, as ours does.
        assert _edges(reach[g]) == frozenset(nx.transitive_closure(graph, reflexive=False).edges)
        cycle = dags.find_cycle(graphs[g])
        assert (cycle is None) == bool(acyclic[g])
        if cycle is not None:
            assert len(set(cycle)) == len(cycle)
            assert all(graphs[g, i, j] for i, j in itertools.pairwise([*cycle, cycle[0]]))
        else:
            order = dags.topological_order(graphs[g])
            assert sorted(order) == list(range(7))
            assert order == list(nx.lexicographical_topological_sort(graph))


def test_a_loop_is_a_cycle() -> None:
    loop = _graph(2, (1, 1))
    assert not dags.is_acyclic(loop)
    assert dags.find_cycle(loop) == [1]
    assert dags.closure(torch.ones(1, 1, dtype=torch.bool)).tolist() == [[True]]


def test_cycles_are_named() -> None:
    cyclic = _graph(4, (0, 1), (1, 2), (2, 1), (2, 3))
    with pytest.raises(ConfigError, match=r"cycle 1 -> 2 -> 1|cycle 2 -> 1 -> 2"):
        dags.topological_order(cyclic)
    with pytest.raises(ConfigError, match=r"cycle (b -> c -> b|c -> b -> c)"):
        dags.check_acyclic(torch.stack([_graph(4), cyclic]), ("a", "b", "c", "d"))
    for function in (dags.cpdag, dags.log_num_linear_extensions):
        with pytest.raises(ConfigError, match="cycle"):
            function(cyclic)


@pytest.mark.parametrize(
    "adjacency",
    [torch.zeros(3, 3), torch.zeros(3, 2, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)],
    ids=["float", "oblong", "vector"],
)
def test_what_is_no_adjacency_is_refused(adjacency: Tensor) -> None:
    for function in (dags.closure, dags.is_acyclic, dags.cpdag, dags.log_num_linear_extensions):
        with pytest.raises(ShapeError, match="adjacency: expected a bool tensor"):
            function(adjacency)


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4])
def test_cpdags_are_unions_of_equivalence_classes(num_nodes: int) -> None:
    graphs = dags.enumerate_dags(num_nodes)
    expected = _essential_graphs([_edges(g) for g in graphs], [])
    assert [_edges(g) for g in dags.cpdag(graphs)] == expected
    # Numbers of Markov equivalence classes (Gillispie & Perlman 2001).
    assert len(set(expected)) == {1: 1, 2: 2, 3: 11, 4: 185}[num_nodes]


def test_there_are_8782_equivalence_classes_of_five_nodes() -> None:
    graphs = dags.enumerate_dags(5)
    found = dags.cpdag(graphs)
    assert len(dags.unique_graphs(found)[0]) == 8782
    assert torch.equal(dags.cpdag(graphs[:100].reshape(10, 10, 5, 5)), found[:100].reshape(10, 10, 5, 5))


def test_rule_3_compels_an_edge() -> None:
    # 0 - 1, 0 - 2, 0 - 3, 1 -> 3 <- 2 compels 0 -> 3.
    graph = _graph(4, (0, 1), (0, 2), (0, 3), (1, 3), (2, 3))
    found = dags.cpdag(graph)
    assert _edges(found & ~found.T) == {(1, 3), (2, 3), (0, 3)}


_FAMILIES: list[list[set[int]]] = [
    [set(), {0}],
    [set(), {1}, {2, 3}],
    [{0}, {1}],
    [{0, 1}, {2}, set()],
    [set(), {0, 1, 2, 3}],
]


@pytest.mark.parametrize("targets", _FAMILIES, ids=[str(i) for i in range(len(_FAMILIES))])
def test_interventional_classes_by_brute_force(targets: list[set[int]]) -> None:
    graphs = dags.enumerate_dags(4)
    expected = _essential_graphs([_edges(g) for g in graphs], targets)
    found = [_edges(g) for g in dags.interventional_cpdag(graphs, targets)]
    assert found == expected


def test_interventional_classes_of_five_nodes_by_brute_force() -> None:
    graphs = dags.enumerate_dags(5)[::7]  # every skeleton with many of its directions
    everything = dags.enumerate_dags(5)
    targets = [set[int](), {1}, {3, 4}]
    keys = [_class_of(_edges(g), targets) for g in everything]
    unions: dict[Hashable, Edges] = defaultdict(frozenset)
    for key, graph in zip(keys, everything, strict=True):
        unions[key] |= _edges(graph)
    found = [_edges(g) for g in dags.interventional_cpdag(graphs, targets)]
    assert found == [unions[key] for key in keys[::7]]


def test_the_brute_force_check_rejects_a_dropped_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = dags.enumerate_dags(4)
    expected = _essential_graphs([_edges(g) for g in graphs], [])
    monkeypatch.setattr(equivalence, "_meek", lambda d, arrows, apart: torch.zeros_like(arrows))
    assert [_edges(g) for g in dags.cpdag(graphs)] != expected


def test_targets_are_checked() -> None:
    graph = _graph(3, (0, 1))
    with pytest.raises(ConfigError, match="expected nodes from 0 to 2, got 3"):
        dags.interventional_cpdag(graph, [set(), {3}])
    with pytest.raises(ConfigError, match="node 1 is in every set"):
        dags.interventional_cpdag(graph, [{1}, {0, 1}])
    with pytest.raises(ConfigError, match="node 0 is in every set"):
        dags.interventional_cpdag(graph, [])


@pytest.mark.parametrize("num_nodes", [8, 15, 30])
def test_cpdags_agree_with_pgmpy(num_nodes: int) -> None:
    base = pytest.importorskip("pgmpy.base")
    generator = torch.Generator().manual_seed(num_nodes)
    graphs = dags.random_dag(num_nodes, 3 / num_nodes, generator, num=5)
    for graph, found in zip(graphs, dags.cpdag(graphs), strict=True):
        theirs = base.DAG(list(_edges(graph)))
        pattern = theirs.to_pdag()
        undirected = {frozenset(e) for e in pattern.undirected_edges}
        assert _edges(found & ~found.T) == frozenset(pattern.directed_edges)
        assert {frozenset(e) for e in _edges(found & found.T)} == undirected


def test_linear_extensions_by_brute_force() -> None:
    graphs = dags.enumerate_dags(4)
    expected = torch.tensor([_count_orders(_edges(g), 4) for g in graphs], dtype=torch.float64)
    torch.testing.assert_close(dags.log_num_linear_extensions(graphs), expected.log(), rtol=0, atol=1e-12)


def test_linear_extensions_of_larger_graphs_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(1)
    graphs = torch.cat([dags.random_dag(7, p, generator, num=12) for p in (0.15, 0.3, 0.5)])
    expected = torch.tensor([_count_orders(_edges(g), 7) for g in graphs], dtype=torch.float64)
    found = dags.log_num_linear_extensions(graphs.reshape(3, 12, 7, 7)).flatten()
    torch.testing.assert_close(found, expected.log(), rtol=0, atol=1e-11)


def _zigzag(num_nodes: int) -> Tensor:
    """0 < 1 > 2 < 3 > ...: its linear extensions are the alternating permutations."""
    return _graph(num_nodes, *((i, i + 1) if i % 2 == 0 else (i + 1, i) for i in range(num_nodes - 1)))


def test_linear_extensions_in_closed_form() -> None:
    # Euler's zigzag numbers: 2, 5, 16 for n = 3, 4, 5; by Seidel's triangle for more.
    row, expected = [1], {0: 1}
    for n in range(1, 17):
        row = list(itertools.accumulate([0, *reversed(row)]))
        expected[n] = row[-1]
    assert (expected[3], expected[4], expected[5]) == (2, 5, 16)
    for n in (3, 5, 10, 16):
        found = float(dags.log_num_linear_extensions(_zigzag(n)).exp())
        assert found == pytest.approx(expected[n], rel=1e-12)
    # A star of 25 leaves, a chain, no edges, and a tree by the hook length formula.
    star = _graph(26, *((0, i) for i in range(1, 26)))
    chain = _graph(30, *itertools.pairwise(range(30)))
    tree = _graph(7, (0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6))
    assert float(dags.log_num_linear_extensions(star)) == pytest.approx(math.lgamma(26))
    assert float(dags.log_num_linear_extensions(chain)) == pytest.approx(0, abs=1e-12)
    assert float(dags.log_num_linear_extensions(_graph(40))) == pytest.approx(math.lgamma(41))
    hooks = math.factorial(7) / (7 * 3 * 3)
    assert float(dags.log_num_linear_extensions(tree).exp()) == pytest.approx(hooks)


def test_large_batches_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppgen.ops import linear_extensions

    graphs = dags.random_dag(9, 0.3, torch.Generator().manual_seed(2), num=40)
    expected = dags.log_num_linear_extensions(graphs)
    monkeypatch.setattr(linear_extensions, "_MAX_STEPS", {"cpu": 300, "other": 300})
    torch.testing.assert_close(dags.log_num_linear_extensions(graphs), expected, rtol=0, atol=1e-12)
    monkeypatch.setattr(linear_extensions, "_MAX_STEPS_OF_ONE", 20)
    with pytest.raises(ConfigError, match="too many to count"):
        dags.log_num_linear_extensions(graphs)


def test_no_graphs_are_no_problem() -> None:
    none = torch.zeros(0, 4, 4, dtype=torch.bool)
    assert dags.cpdag(none).shape == (0, 4, 4)
    assert dags.log_num_linear_extensions(none).shape == (0,)


def test_random_dags_have_the_edges_asked_for() -> None:
    generator = torch.Generator().manual_seed(3)
    graphs = dags.random_dag(6, 0.4, generator, num=4000)
    assert dags.is_acyclic(graphs).all()
    # Each ordered pair has an edge with half the probability of the pair: orders are uniform.
    pairs = ~torch.eye(6, dtype=torch.bool)
    assert_mean(graphs[:, pairs].double(), 0.2)
    with pytest.raises(AssertionError):
        assert_mean(graphs[:, pairs].double(), 0.25)
    assert dags.random_dag(3, 1.0, generator).sum() == 3
    for bad in ((0, 0.5), (3, 1.5)):
        with pytest.raises(ConfigError):
            dags.random_dag(bad[0], bad[1], generator)


@pytest.mark.cuda
def test_graphs_on_a_gpu() -> None:
    graphs = dags.random_dag(15, 0.3, torch.Generator().manual_seed(4), num=300)
    on_gpu = graphs.cuda()
    torch.testing.assert_close(
        dags.log_num_linear_extensions(on_gpu).cpu(),
        dags.log_num_linear_extensions(graphs),
        rtol=1e-12,
        atol=0,
    )
    assert torch.equal(dags.cpdag(on_gpu).cpu(), dags.cpdag(graphs))
    assert torch.equal(dags.closure(on_gpu).cpu(), dags.closure(graphs))
