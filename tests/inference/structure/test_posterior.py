"""The posterior over graphs as users have it, against all DAGs of four nodes."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import networkx as nx
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from ppgen import metrics
from ppgen.contract import Estimate, Kind
from ppgen.errors import CheckpointError, ConfigError, DataError, DataWarning, SamplingWarning
from ppgen.inference.structure import posterior_files
from ppgen.inference.structure.class_probabilities import class_probabilities
from ppgen.inference.structure.exact.source import ExactSource
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.posterior import GraphPosterior, without_cycles
from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.inference.structure.problem import Learned, Problem, WeightedGraphs
from ppgen.inference.structure.table import Intervention, Table, Variable
from ppgen.ops import dags
from ppgen.testing.statistics import assert_close_to, assert_mean
from tests.inference.structure.all_dags import AllDags, random_scores

_NAMES = ("a", "b", "c", "d")
_SCORES = random_scores(4, 1.5)


class _Weighted:
    """Weighted graphs as a source: draws are all of them, with their weights."""

    log_evidence: Estimate | None = None

    def __init__(self, adjacency: Tensor, probabilities: Tensor) -> None:
        self.adjacency, self.probabilities = adjacency, probabilities
        self.num_nodes = adjacency.shape[-1]

    def edge_probabilities(self) -> Tensor:
        return torch.einsum("s,sij->ij", self.probabilities, self.adjacency.double())

    def edge_errors(self) -> Tensor:
        return torch.full((self.num_nodes, self.num_nodes), 0.01, dtype=torch.float64)

    def path_probabilities(self) -> Estimate:
        paths = torch.einsum("s,sij->ij", self.probabilities, dags.closure(self.adjacency).double())
        return Estimate.of(paths, Kind.ESTIMATE)

    def parent_sets(self, node: int) -> tuple[Tensor, Tensor]:
        return self.adjacency[:, :, node], self.probabilities

    def map_graph(self) -> Tensor:
        return self.adjacency[int(self.probabilities.argmax())]

    def sample(self, num: int, *, seed: int | None = None) -> WeightedGraphs:
        return WeightedGraphs(self.adjacency, self.probabilities.log())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"adjacency": self.adjacency, "probabilities": self.probabilities}, {}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Self:
        return cls(tensors["adjacency"], tensors["probabilities"])


def _everything() -> AllDags:
    return AllDags.of(_SCORES, "uniform")


def _posterior(**learned: Any) -> GraphPosterior:
    evidence = Estimate.of(torch.tensor(-12.5, dtype=torch.float64), Kind.EXACT)
    source = ExactSource(_SCORES, "uniform", log_evidence=evidence)
    return GraphPosterior(_NAMES, Learned(source, **learned), targets=[[], [1]], method="exact")


def _weighted() -> GraphPosterior:
    every = _everything()
    return GraphPosterior(_NAMES, Learned(_Weighted(every.adjacency, every.probabilities)), targets=[[], [1]])


def _cyclic() -> GraphPosterior:
    """Three DAGs, each of two edges of the cycle a -> b -> c -> a, which all are above one half."""
    graphs = torch.zeros(3, 3, 3, dtype=torch.bool)
    for s, missing in enumerate([(0, 1), (1, 2), (2, 0)]):
        for edge in {(0, 1), (1, 2), (2, 0)} - {missing}:
            graphs[s][edge] = True
    p = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
    return GraphPosterior("abc", Learned(_Weighted(graphs, p)))


# -- probabilities ----------------------------------------------------------------------


def test_tables_have_names_and_the_right_numbers() -> None:
    posterior, every = _posterior(), _everything()
    edges = posterior.edge_probabilities
    assert list(edges.index) == list(edges.columns) == list(_NAMES)
    assert (edges.index.name, edges.columns.name) == ("from", "to")
    torch.testing.assert_close(torch.tensor(edges.to_numpy()), every.edges(), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        torch.tensor(posterior.path_probabilities.to_numpy()), every.paths(), rtol=0, atol=1e-9
    )
    assert edges.loc["a", "b"] == pytest.approx(float(every.edges()[0, 1]))
    assert (posterior.edge_errors == 0).all(axis=None)
    assert (posterior.path_errors == 0).all(axis=None)
    assert posterior.log_evidence is not None
    assert float(posterior.log_evidence.value) == -12.5
    assert posterior.coefficients is None
    assert posterior.agent_probabilities is None


def test_parent_sets_are_named() -> None:
    posterior, every = _posterior(), _everything()
    found = posterior.parent_sets("c")
    assert found["probability"].is_monotonic_decreasing
    assert found["probability"].sum() == pytest.approx(1)
    with_b = found[[("b" in parents) for parents in found["parents"]]]["probability"].sum()
    assert with_b == pytest.approx(float(every.edges()[1, 2]))


def test_agents_and_coefficients_are_named() -> None:
    posterior = GraphPosterior(
        _NAMES,
        Learned(
            ExactSource(_SCORES, "uniform"),
            agent_probabilities=torch.rand(2, 4, generator=torch.Generator().manual_seed(0)),
            weighted_graph=torch.eye(4),
        ),
        agent_names=["x", "y"],
    )
    assert posterior.agent_probabilities is not None
    assert list(posterior.agent_probabilities.index) == ["x", "y"]
    assert posterior.coefficients is not None
    assert posterior.coefficients.loc["a", "a"] == 1
    assert len(posterior.plot().axes[0].get_yticklabels()) == 6
    assert len(posterior.plot(agents=False).axes[0].get_yticklabels()) == 4


@pytest.mark.parametrize("interventional", [False, True])
def test_compelled_probabilities_are_those_of_all_dags(interventional: bool) -> None:
    every = _everything()
    pattern = dags.interventional_cpdag(every.adjacency, [(), (1,)] if interventional else [()])
    share = torch.einsum("s,sij->ij", every.probabilities, (pattern & ~pattern.mT).double())
    lines = torch.einsum("s,sij->ij", every.probabilities, (pattern & pattern.mT).double())
    exact = _weighted().compelled_probabilities(interventional=interventional)
    drawn = _posterior().compelled_probabilities(interventional=interventional, num=4000, seed=1)
    assert list(exact.index) == list(itertools.combinations(_NAMES, 2))
    for i, j in itertools.combinations(range(4), 2):
        row = exact.loc[(_NAMES[i], _NAMES[j])]
        assert row["forward"] == pytest.approx(float(share[i, j]))
        assert row["backward"] == pytest.approx(float(share[j, i]))
        assert row["undirected"] == pytest.approx(float(lines[i, j]))
        assert row[["forward", "backward", "undirected", "absent"]].sum() == pytest.approx(1)
    for state in ("forward", "backward", "undirected", "absent"):
        values, errors = (torch.tensor(drawn[name].to_numpy()) for name in (state, f"{state}_error"))
        expected = torch.tensor(exact[state].to_numpy())
        assert_close_to(values, expected, errors)
        with pytest.raises(AssertionError):
            assert_close_to(values, expected * 0.5 + 0.3, errors)


def test_errors_of_class_probabilities() -> None:
    graphs = dags.enumerate_dags(3)[[0, 3, 3, 7, 9, 9]]
    weights = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.1], dtype=torch.float64)
    found = class_probabilities(
        WeightedGraphs(graphs, weights.log()), [()], torch.zeros(3, 3, dtype=torch.float64)
    )
    pattern = dags.cpdag(graphs)
    for event, mean, error in (
        (pattern & ~pattern.mT, found.compelled, found.compelled_error),
        (pattern & pattern.mT, found.undirected, found.undirected_error),
    ):
        expected = torch.einsum("s,sij->ij", weights, event.double())
        spread = (weights[:, None, None] ** 2 * (event.double() - expected) ** 2).sum(0).sqrt()
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(error, spread)
    # What the chains are unsure of is added.
    unsure = class_probabilities(
        WeightedGraphs(graphs, weights.log()), [()], torch.full((3, 3), 0.5, dtype=torch.float64)
    )
    torch.testing.assert_close(unsure.absent_error, torch.hypot(found.absent_error, torch.tensor(0.5)))


# -- graphs -----------------------------------------------------------------------------


def test_median_and_map_graphs() -> None:
    posterior, every = _posterior(), _everything()
    median = posterior.median_graph()
    likely = {(i, j) for i, j in (every.edges() > 0.5).nonzero().tolist()}
    assert {(_NAMES.index(i), _NAMES.index(j)) for i, j in median.edges} == likely
    assert median.graph == {"dropped": [], "threshold": 0.5}
    assert list(median) == list(_NAMES)
    best = every.adjacency[int(every.probabilities.argmax())]
    assert metrics.shd(best, posterior.map_graph()) == 0
    i, j = next(iter(posterior.map_graph().edges))
    assert posterior.map_graph().edges[i, j]["probability"] == posterior.edge_probabilities.loc[i, j]


def test_a_cyclic_median_graph_is_repaired() -> None:
    posterior = _cyclic()
    # a -> b .6, b -> c .65, c -> a .75
    with pytest.warns(DataWarning, match=r"dropped a -> b, the least probable"):
        graph = posterior.median_graph()
    assert set(graph.edges) == {("b", "c"), ("c", "a")}
    assert graph.graph["dropped"] == [("a", "b")]
    assert nx.is_directed_acyclic_graph(graph)
    assert not nx.is_directed_acyclic_graph(posterior.to_networkx(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(posterior.median_graph(0.7).edges) == {("c", "a")}
        posterior.plot()


def test_every_cycle_is_broken_at_its_weakest_edge() -> None:
    generator = torch.Generator().manual_seed(3)
    p = torch.rand(6, 6, generator=generator).fill_diagonal_(0)
    left, dropped = without_cycles(p > 0.4, p)
    assert dags.is_acyclic(left)
    assert len(dropped) > 2
    for i, j in dropped:
        assert not left[i, j]
        assert p[i, j] > 0.4
    assert int((p > 0.4).sum()) == int(left.sum()) + len(dropped)


def test_samples_have_the_posterior_probabilities() -> None:
    every = _everything()
    for posterior in (_posterior(), _weighted()):
        drawn = posterior.sample_adjacency(3000, seed=4)
        assert drawn.shape == (3000, 4, 4)
        unsure = (every.edges() > 0.01) & (every.edges() < 0.99)
        assert_mean(drawn[:, unsure].double(), every.edges()[unsure])
        with pytest.raises(AssertionError):
            assert_mean(drawn[:, unsure].double(), every.edges().T[unsure])
        assert torch.equal(posterior.sample_adjacency(3000, seed=4), drawn)
    graphs = _posterior().sample(5, seed=1)
    assert len(graphs) == 5
    assert all(isinstance(g, nx.DiGraph) and list(g) == list(_NAMES) for g in graphs)
    with pytest.raises(ConfigError, match="num: expected a positive"):
        _posterior().sample(0)


def test_poor_weights_are_told() -> None:
    graphs = dags.enumerate_dags(4)
    p = torch.full((543,), 1e-6, dtype=torch.float64)
    p[5] = 1 - 542e-6
    posterior = GraphPosterior(_NAMES, Learned(_Weighted(graphs, p)))
    with pytest.warns(SamplingWarning, match="worth 1 plain ones"):
        posterior.sample(3, seed=0)


def test_a_cpdag_has_the_likeliest_states() -> None:
    posterior = _weighted()
    table = posterior.compelled_probabilities()
    graph = posterior.cpdag()
    for (i, j), row in table.iterrows():
        best = row[["forward", "backward", "undirected"]].astype(float).idxmax()
        linked = row["absent"] < 0.5
        assert graph.has_edge(i, j) == (linked and best in ("forward", "undirected"))
        assert graph.has_edge(j, i) == (linked and best in ("backward", "undirected"))
        if graph.has_edge(i, j):
            assert graph.edges[i, j]["probability"] == pytest.approx(row[best])
            assert graph.edges[i, j]["compelled"] == (best != "undirected")
    assert metrics.shd(posterior.interventional_cpdag(), posterior.cpdag(interventional=True)) == 0
    assert posterior.cpdag(0.99).number_of_edges() < graph.number_of_edges()


def test_targets_come_from_the_table() -> None:
    clamped = torch.zeros(6, 4, dtype=torch.bool)
    clamped[2:4, 1] = clamped[4, 3] = clamped[4, 0] = True
    table = Table(
        tuple(Variable(name, (0, 1)) for name in _NAMES),
        torch.zeros(6, 4, dtype=torch.float64),
        clamped,
        Intervention.PERFECT,
    )
    problem = Problem(table, None, GraphPrior(), Constraints())
    posterior = GraphPosterior.from_problem(problem, Learned(ExactSource(_SCORES, "uniform")), method="exact")
    assert sorted(posterior.targets) == [(), (0, 3), (1,)]
    assert posterior.names == _NAMES


def test_a_variable_that_was_always_set_has_no_interventional_class() -> None:
    posterior = GraphPosterior(_NAMES, Learned(ExactSource(_SCORES, "uniform")), targets=[[1], [1, 3]])
    with pytest.raises(ConfigError, match="interventional: b was set in every row"):
        posterior.compelled_probabilities(interventional=True)
    with pytest.raises(ConfigError, match="interventional: b was set in every row"):
        posterior.interventional_cpdag()
    assert posterior.cpdag(num=10).number_of_nodes() == 4


# -- how it went ------------------------------------------------------------------------


def test_summary_lists_edges_by_probability() -> None:
    posterior = _posterior()
    table = posterior.summary()
    assert list(table.columns) == ["from", "to", "probability", "error"]
    assert table["probability"].is_monotonic_decreasing
    assert len(posterior.summary(0.5)) == posterior.to_networkx(0.5).number_of_edges()
    row = table.iloc[0]
    assert posterior.edge_probabilities.loc[row["from"], row["to"]] == row["probability"]


def test_summary_tells_of_chains() -> None:
    every = _everything()
    generator = torch.Generator().manual_seed(5)
    index = torch.multinomial(every.probabilities, 800, replacement=True, generator=generator)
    draws = every.adjacency[index].reshape(4, 200, 4, 4).clone()
    draws[0, :, 0, 1] = True  # one chain that is stuck
    draws[1:, :, 0, 1] = False
    draws[:, :, 1, 0] = True  # in all draws
    table = _posterior(draws=draws).summary().set_index(["from", "to"])
    assert table.loc[("a", "b"), "rhat"] > 1.5
    assert table.loc[("a", "b"), "ess"] < 20
    assert math.isnan(table.loc[("b", "a"), "rhat"])
    assert 0.9 < table.loc[("c", "d"), "rhat"] < 1.1
    assert _posterior(draws=draws).summary(0.999999).empty


def test_doubts_are_told() -> None:
    posterior = _posterior(warnings=("chains disagree",), attributes={"seconds": 1.5})
    assert not posterior.ok
    assert posterior.warnings == ("chains disagree",)
    assert posterior.attributes["seconds"] == 1.5
    assert "1 warnings" in repr(posterior)
    assert _posterior().ok
    assert repr(_posterior()).startswith("GraphPosterior of 4 variables by exact: ")
    assert "log evidence -12.5000" in repr(_posterior())


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a", "b", "c")], ids=["few", "twice"])
def test_names_must_fit(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="names: expected 4 different names"):
        GraphPosterior(names, Learned(ExactSource(_SCORES, "uniform")))


def test_unknown_names_and_thresholds_are_refused() -> None:
    posterior = _posterior()
    with pytest.raises(ConfigError, match="name: expected one of a, b, c, d; got 'z'"):
        posterior.parent_sets("z")
    with pytest.raises(ConfigError, match="threshold"):
        posterior.median_graph(1.0)
    with pytest.raises(ConfigError, match="got 'z'"):
        posterior.plot(nx.DiGraph([("a", "z")]))
    with pytest.raises(ConfigError, match="lacks 'b'"):
        posterior.plot(pd.DataFrame([[0]], index=["a"], columns=["a"]))
    with pytest.raises(ConfigError, match="reference: expected shape"):
        posterior.plot(torch.zeros(3, 3))
    with pytest.raises(ConfigError, match="num: expected"):
        posterior.compelled_probabilities(num=0)


# -- elsewhere --------------------------------------------------------------------------


def test_networkx_has_all_edges() -> None:
    graph = _weighted().to_networkx()
    assert all(0 < d["probability"] <= 1 and d["error"] == 0.01 for _, _, d in graph.edges(data=True))
    assert graph.number_of_edges() == int((_everything().edges() > 0).sum())


def test_pgmpy_gets_the_median_graph() -> None:
    pytest.importorskip("pgmpy")
    posterior = _posterior()
    theirs = posterior.to_pgmpy()
    assert set(theirs.edges) == set(posterior.median_graph().edges)
    assert set(theirs.nodes) == set(_NAMES)


def test_arviz_gets_draws_of_edges() -> None:
    pytest.importorskip("arviz")
    found = _posterior().to_arviz(50, seed=2)
    edges = found.posterior["edges"]
    assert edges.dims == ("chain", "draw", "from", "to")
    assert edges.shape == (1, 50, 4, 4)
    assert list(edges.coords["from"].values) == list(_NAMES)
    drawn = _posterior().sample_adjacency(50, seed=2)
    assert int(edges.sel({"from": "a", "to": "b"}).sum()) == int(drawn[:, 0, 1].sum())
    draws = drawn[:40].reshape(4, 10, 4, 4)
    assert _posterior(draws=draws).to_arviz().posterior["edges"].shape == (4, 10, 4, 4)


def test_plots_compare_with_a_reference() -> None:
    posterior = _posterior()
    reference = pd.DataFrame(0, index=list("dcba"), columns=list("abcd"))
    reference.loc["a", "b"] = 1
    as_graph = nx.DiGraph([("a", "b")])
    matrix = torch.zeros(4, 4)
    matrix[0, 1] = 1
    for given in (reference, as_graph, matrix):
        (frame,) = posterior.plot(given).axes[0].patches
        assert isinstance(frame, Rectangle)
        assert (round(frame.get_y() + 0.44), round(frame.get_x() + 0.44)) == (0, 1)
    assert posterior.plot(dark=True).get_facecolor() != posterior.plot().get_facecolor()


def test_metrics_take_a_posterior() -> None:
    posterior = _posterior()
    truth = posterior.map_graph()
    expected = metrics.auroc(truth, posterior.edge_probabilities)
    assert metrics.auroc(truth, posterior) == expected == metrics.auroc(truth, posterior.source)
    with pytest.raises(DataError, match="estimate: expected one graph, got a posterior"):
        metrics.shd(truth, posterior)


def test_save_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = dags.enumerate_dags(4)[:40].reshape(4, 10, 4, 4)
    agents = torch.rand(2, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    learned = {
        "draws": draws,
        "agent_probabilities": agents,
        "warnings": ("one",),
        "attributes": {"seconds": 2.0, "chain": (1, 2), "t": torch.ones(2), "other": Path("x")},
    }
    posterior = GraphPosterior(
        _NAMES,
        Learned(ExactSource(_SCORES, "order"), **learned),  # type: ignore[arg-type]
        agent_names=["x", "y"],
        targets=[[], [2, 0]],
        method="exact",
    )
    posterior.save(tmp_path / "saved")
    back = GraphPosterior.load(tmp_path / "saved")
    pd.testing.assert_frame_equal(back.edge_probabilities, posterior.edge_probabilities)
    pd.testing.assert_frame_equal(back.path_probabilities, posterior.path_probabilities)
    pd.testing.assert_frame_equal(back.summary(), posterior.summary())
    assert back.agent_probabilities is not None
    pd.testing.assert_frame_equal(back.agent_probabilities, posterior.agent_probabilities)
    assert torch.equal(back.sample_adjacency(30, seed=1), posterior.sample_adjacency(30, seed=1))
    assert (back.names, back.method, back.warnings) == (_NAMES, "exact", ("one",))
    assert back.targets == [(), (0, 2)]
    assert back.attributes["seconds"] == 2.0
    assert back.attributes["other"] == "x"
    assert torch.equal(back.attributes["t"], torch.ones(2))
    # A source of one's own cannot be named by a file.
    with pytest.raises(ConfigError, match="class _Weighted cannot be saved"):
        _weighted().save(tmp_path / "other")
    monkeypatch.setitem(posterior_files._SOURCES, "_Weighted", __name__)
    _weighted().save(tmp_path / "other")
    pd.testing.assert_frame_equal(
        GraphPosterior.load(tmp_path / "other").edge_probabilities, _weighted().edge_probabilities
    )
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="not a posterior of this version"):
        GraphPosterior.load(tmp_path / "other")


def test_sampled_graphs_are_saved_too(tmp_path: Path) -> None:
    draws = _posterior().sample_adjacency(80, seed=3).reshape(4, 20, 4, 4)
    posterior = GraphPosterior(_NAMES, Learned(SampledSource(draws), draws=draws))
    posterior.save(tmp_path / "saved")
    back = GraphPosterior.load(tmp_path / "saved")
    pd.testing.assert_frame_equal(back.summary(), posterior.summary())
    assert metrics.shd(back.map_graph(), posterior.map_graph()) == 0
    assert torch.equal(back.sample_adjacency(9, seed=1), posterior.sample_adjacency(9, seed=1))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    from ppgen.inference.checkpoint import write_bundle

    _posterior().save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        GraphPosterior.load(tmp_path / "nothing")
    write_bundle(tmp_path / "model", {"class": "ppgen.models:VAE"})
    with pytest.raises(CheckpointError, match="holds no posterior over graphs"):
        GraphPosterior.load(tmp_path / "model")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        _posterior().save(tmp_path / "file")
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text().replace("exact", "EXACT"))
    with pytest.raises(CheckpointError, match="damaged"):
        GraphPosterior.load(tmp_path / "saved")


def test_a_file_cannot_name_other_classes(tmp_path: Path) -> None:
    from ppgen.inference.checkpoint import read_bundle, write_bundle

    _posterior().save(tmp_path / "saved")
    tree = read_bundle(tmp_path / "saved")
    tree["source"]["class"] = "os:system"
    write_bundle(tmp_path / "evil", tree)
    with pytest.raises(CheckpointError, match="KeyError"):
        GraphPosterior.load(tmp_path / "evil")
    assert "os:system" in json.dumps((tmp_path / "evil" / "state.json").read_text())


@pytest.mark.cuda
def test_a_posterior_on_a_gpu(tmp_path: Path) -> None:
    here = _posterior()
    there = GraphPosterior(_NAMES, Learned(ExactSource(_SCORES.cuda(), "uniform")), targets=[[], [1]])
    pd.testing.assert_frame_equal(here.edge_probabilities, there.edge_probabilities)
    assert there.compelled_probabilities(interventional=True, num=50).shape == (6, 8)
    assert len(there.sample(3, seed=0)) == 3
    there.median_graph()
    there.plot()
    there.save(tmp_path / "saved")
    pd.testing.assert_frame_equal(
        GraphPosterior.load(tmp_path / "saved").edge_probabilities, here.edge_probabilities
    )
