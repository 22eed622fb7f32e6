"""pgmpy's networks, files and searches, and the traps that the adapter closes."""

import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ppgen.errors import ConfigError, DataError
from ppgen.inference import pgmpy_adapter
from ppgen.inference.structure.network import DiscreteNetwork
from ppgen.inference.structure.table import Table, Variable
from ppgen.ops.dags import cpdag, is_acyclic


@pytest.fixture(name="asia", scope="module")
def asia_network() -> DiscreteNetwork:
    return pgmpy_adapter.example_network("asia")


def same(first: DiscreteNetwork, second: DiscreteNetwork, tolerance: float = 0.0) -> bool:
    second = second.reordered(first.names)
    return (
        first.levels == second.levels
        and first.parents == second.parents
        and all(
            torch.allclose(a, b, rtol=0, atol=tolerance)
            for a, b in zip(first.tables, second.tables, strict=True)
        )
    )


# -- networks and files ---------------------------------------------------------------------


def test_asia_is_the_network_of_lauritzen_and_spiegelhalter(asia: DiscreteNetwork) -> None:
    assert set(asia.edges) == {
        ("asia", "tub"),
        ("smoke", "lung"),
        ("smoke", "bronc"),
        ("tub", "either"),
        ("lung", "either"),
        ("either", "xray"),
        ("either", "dysp"),
        ("bronc", "dysp"),
    }
    dysp = asia.names.index("dysp")
    assert [asia.names[p] for p in asia.parents[dysp]] == ["bronc", "either"]
    # p(dysp = yes): both .9, bronchitis alone .8, tuberculosis or cancer alone .7, neither .1.
    assert asia.tables[dysp][..., 0].tolist() == [[0.9, 0.8], [0.7, 0.1]]


@pytest.mark.parametrize(
    ("name", "nodes", "edges"), [("cancer", 5, 4), ("sachs", 11, 17), ("child", 20, 25), ("alarm", 37, 46)]
)
def test_networks_of_the_wheel(name: str, nodes: int, edges: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = pgmpy_adapter.example_network(name)
    assert (network.num_nodes, len(network.edges)) == (nodes, edges)
    assert bool(is_acyclic(network.adjacency))


def test_an_unknown_network_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"name: expected one of alarm, .*asia.*; got 'assia'"):
        pgmpy_adapter.example_network("assia")


def test_to_pgmpy_and_back(asia: DiscreteNetwork) -> None:
    model = pgmpy_adapter.to_pgmpy(asia)
    assert model.check_model()
    assert same(asia, pgmpy_adapter.from_pgmpy(model))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # pgmpy warns of itself when its inference is imported
def test_marginals_agree_with_pgmpys_elimination(asia: DiscreteNetwork) -> None:
    from pgmpy.inference import VariableElimination

    answer = VariableElimination(pgmpy_adapter.to_pgmpy(asia)).query(["dysp"], show_progress=False)
    letters = "abcdefgh"
    terms = ",".join("".join(letters[q] for q in (*asia.parents[v], v)) for v in range(8))
    ours = torch.einsum(f"{terms}->{letters[asia.names.index('dysp')]}", *asia.tables)
    assert np.allclose(answer.values, ours.numpy(), rtol=0, atol=1e-12)


def test_columns_that_do_not_sum_to_one_are_refused() -> None:
    from pgmpy.factors.discrete import TabularCPD
    from pgmpy.models import DiscreteBayesianNetwork

    model = DiscreteBayesianNetwork()
    model.add_node("a")
    model.add_cpds(TabularCPD("a", 2, [[0.3], [0.3]]))
    with pytest.raises(DataError, match=r"a distribution of a is off by 0\.4"):
        pgmpy_adapter.from_pgmpy(model)
    model = DiscreteBayesianNetwork([("a", "b")])
    with pytest.raises(DataError, match="model: a has no table"):
        pgmpy_adapter.from_pgmpy(model)
    with pytest.raises(DataError, match="expected a pgmpy DiscreteBayesianNetwork"):
        pgmpy_adapter.from_pgmpy({"a": 1})


@pytest.mark.parametrize("name", ["asia", "child"])
def test_bif_there_and_back(name: str, tmp_path: Path) -> None:
    network = pgmpy_adapter.example_network(name)
    renamed = pgmpy_adapter.write_bif(network, tmp_path / "network.bif")
    again = pgmpy_adapter.read_bif(tmp_path / "network.bif")
    assert not renamed
    assert same(network, again, 1e-15)


def test_names_and_levels_that_bif_cannot_hold_are_changed_and_told(tmp_path: Path) -> None:
    tables = (torch.tensor([0.25, 0.75]), torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
    levels = (("(0, 1]", "(0; 1]"), (1, 2))
    network = DiscreteNetwork(("my var", "MY_VAR"), levels, ((), (0,)), tables)
    renamed = pgmpy_adapter.write_bif(network, tmp_path / "network.bif")
    assert renamed == {
        "my var": "my_var",
        "MY_VAR": "MY_VAR_2",
        "(0, 1]": "_0__1_",
        "(0; 1]": "_0__1__2",
    }
    again = pgmpy_adapter.read_bif(tmp_path / "network.bif").reordered(["my_var", "MY_VAR_2"])
    assert again.levels == (("_0__1_", "_0__1__2"), ("1", "2"))
    assert torch.equal(again.tables[1], network.tables[1])


def test_files_that_are_no_bif(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        pgmpy_adapter.read_bif(tmp_path / "missing.bif")
    path = tmp_path / "wrong.bif"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="found no variable"):
        pgmpy_adapter.read_bif(path)
    path.write_text("variable a {\n type discrete [ 2 ] { x, y };\n}\n")
    with pytest.raises(DataError, match="could not read it"):
        pgmpy_adapter.read_bif(path)


# -- searches -------------------------------------------------------------------------------


def bic(table: Table, calls: list[tuple[int, frozenset[int]]] | None = None) -> pgmpy_adapter.FamilyScore:
    """BIC by plain counting, as an oracle of its own."""
    codes, cards = table.codes.numpy(), table.cardinalities

    def score(node: int, parents: frozenset[int]) -> float:
        if calls is not None:
            calls.append((node, parents))
        cells = np.zeros(len(codes), dtype=int)
        for p in sorted(parents):
            cells = cells * cards[p] + codes[:, p]
        num = int(np.prod([cards[p] for p in parents]))
        counts = np.zeros((num, cards[node]))
        np.add.at(counts, (cells, codes[:, node]), 1)
        rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        fit = float((counts * np.log(np.where(counts > 0, rates, 1))).sum())
        return fit - np.log(len(codes)) / 2 * num * (cards[node] - 1)

    return score


def total(score: pgmpy_adapter.FamilyScore, graph: torch.Tensor) -> float:
    return sum(score(v, frozenset(graph[:, v].nonzero()[:, 0].tolist())) for v in range(len(graph)))


def test_hill_climbing_ends_where_no_step_gains(asia: DiscreteNetwork) -> None:
    table = asia.table(2000, seed=1)
    score = bic(table)
    dag = pgmpy_adapter.hill_climb(8, score)
    assert bool(is_acyclic(dag))
    assert total(score, dag) > total(score, torch.zeros_like(dag))
    best = total(score, dag)
    for i, j in dag.nonzero().tolist():
        removed = dag.clone()
        removed[i, j] = False
        assert total(score, removed) <= best + 1e-4
    for i, j in (~dag & ~dag.T & ~torch.eye(8, dtype=torch.bool)).nonzero().tolist():
        added = dag.clone()
        added[i, j] = True
        if is_acyclic(added):
            assert total(score, added) <= best + 1e-4


def test_hill_climbing_keeps_the_constraints(asia: DiscreteNetwork) -> None:
    score = bic(asia.table(2000, seed=1))
    free = pgmpy_adapter.hill_climb(8, score)
    i, j = free.nonzero().tolist()[0]
    dag = pgmpy_adapter.hill_climb(8, score, forbidden=[(i, j), (j, i)], required=[(0, 7)], max_parents=1)
    assert not dag[i, j]
    assert not dag[j, i]
    assert dag[0, 7]
    assert int(dag.sum(0).max()) == 1


def test_ges_finds_the_class_of_the_truth() -> None:
    network = pgmpy_adapter.example_network("earthquake")
    found = pgmpy_adapter.ges(5, bic(network.table(50_000, seed=0)))
    assert torch.equal(found, cpdag(network.adjacency))


def test_the_skeleton_of_pc() -> None:
    network = pgmpy_adapter.example_network("earthquake")
    links, separating = pgmpy_adapter.pc_skeleton(network.table(50_000, seed=0))
    assert torch.equal(links, network.adjacency | network.adjacency.T)
    assert {frozenset(p) for p in separating} == {
        frozenset((i, j)) for i in range(5) for j in range(i) if not links[i, j]
    }


def test_pc_takes_continuous_data_and_names_its_tests() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    x[:, 1] += x[:, 0] + x[:, 2]
    table = Table(tuple(Variable(n) for n in "abc"), x, torch.zeros_like(x, dtype=torch.bool))
    links, separating = pgmpy_adapter.pc_skeleton(table)
    assert links.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert separating == {frozenset((0, 2)): frozenset()}
    with pytest.raises(
        ConfigError, match=r"test: expected one of .*fisher_z.* for continuous data, got 'chi_square'"
    ):
        pgmpy_adapter.pc_skeleton(table, test="chi_square")
    with pytest.raises(ConfigError, match="for continuous data, got 'nonsense'"):
        pgmpy_adapter.pc_skeleton(table, test="nonsense")


def test_searches_say_nothing_and_set_nothing(
    asia: DiscreteNetwork, capfd: pytest.CaptureFixture[str]
) -> None:
    import pgmpy

    table = asia.table(300, seed=0)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    before = (logging.getLogger("pgmpy").level, pgmpy.config.get_show_progress(), pgmpy.config.get_backend())
    logging.getLogger("pgmpy").addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pgmpy_adapter.hill_climb(8, bic(table))
            pgmpy_adapter.ges(8, bic(table))
            pgmpy_adapter.pc_skeleton(table)
    finally:
        logging.getLogger("pgmpy").removeHandler(handler)
    assert capfd.readouterr() == ("", "")
    assert not stream.getvalue()
    assert before == (
        logging.getLogger("pgmpy").level,
        pgmpy.config.get_show_progress(),
        pgmpy.config.get_backend(),
    )


def test_answers_are_the_same_in_every_process() -> None:
    """Sets of strings come in another order under another hash seed; the searches must not follow it."""
    code = (
        "from ppgen.inference import pgmpy_adapter as a\n"
        "from tests.inference.test_pgmpy_adapter import bic\n"
        "t = a.example_network('asia').table(400, seed=2)\n"
        "s = bic(t)\n"
        "links, sep = a.pc_skeleton(t)\n"
        "print(a.hill_climb(8, s).nonzero().tolist(), a.ges(8, s).nonzero().tolist(), "
        "links.nonzero().tolist(), sorted((sorted(k), sorted(v)) for k, v in sep.items()))\n"
    )
    root = Path(__file__).resolve().parents[2]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            cwd=root,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().strip()
