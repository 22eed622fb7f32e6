"""DiBS from a table to graphs."""

from __future__ import annotations

import os
import signal
import warnings

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, SamplingWarning
from ppgen.inference.structure.gradient import dibs_stein, svgd
from ppgen.inference.structure.gradient.dibs import DiBS, log_evidence
from ppgen.inference.structure.gradient.latent_graph import hard_graphs
from ppgen.inference.structure.prior import Constraints
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.table import Table, Variable
from ppgen.ops.dags import enumerate_dags, is_acyclic
from tests.inference.structure.gradient.linear_sem import SEM, as_table, problem, random_sem, simulate

_SETTINGS = {
    "stein": DiBS(num_particles=8, num_steps=60, num_draws=8),
    "joint": DiBS(num_particles=8, num_steps=60, num_draws=8, marginal=False),
    "reparam": DiBS(num_particles=8, num_steps=60, num_draws=8, estimator="reparam"),
    "network": DiBS(num_particles=8, num_steps=60, num_draws=8, mechanism="network", num_hidden=3),
    "svi": DiBS(num_particles=8, num_steps=60, num_draws=8, inference="svi"),
}


def _run(method: DiBS, given: Problem, seed: int = 0) -> Learned:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        return method.run(given, seed=seed)


def _interventional() -> SEM:
    """x0 -> x1 -> x2, each variable set in a quarter of 800 rows."""
    chain = torch.diag(torch.ones(2), 1).bool()
    clamped = torch.zeros(800, 3, dtype=torch.bool)
    for j in range(3):
        clamped[200 * (j + 1) : 200 * (j + 2), j] = True
    return simulate(chain, 800, 0, clamped)


@pytest.mark.parametrize("estimator", ["score", "reparam"])
def test_interventions_leave_one_graph(estimator: str) -> None:
    sem = _interventional()
    method = DiBS(estimator=estimator, num_particles=10, num_steps=200, num_draws=16)  # type: ignore[arg-type]
    # By enumeration, the edges of the chain are certain, and the posterior of x0 -> x2 is 4%.
    dags = enumerate_dags(3)
    log_joint = log_evidence(method.model(problem(sem.table)), dags)
    exact = torch.einsum("g,gij->ij", log_joint.softmax(0), dags.double())
    certain = torch.ones(3, 3, dtype=torch.bool)
    certain[0, 2] = False
    torch.testing.assert_close(exact[certain], sem.adjacency.double()[certain], rtol=0, atol=1e-9)
    assert torch.equal(dags[log_joint.argmax()], sem.adjacency)
    learned = _run(method, problem(sem.table))
    assert torch.equal(learned.source.map_graph(), sem.adjacency)
    found = learned.source.edge_probabilities()
    torch.testing.assert_close(found[certain], exact[certain], rtol=0, atol=1e-9)
    # Of the other edge, the posterior itself, or nothing where no particle has it.
    assert float(found[0, 2]) < 1e-9 or abs(float(found[0, 2] - exact[0, 2])) < 1e-9


def test_weights_are_the_posterior_of_the_graphs_found() -> None:
    sem = random_sem(3, 2, 20, 1)
    method = DiBS(num_particles=64, num_steps=30, num_draws=8, alpha=2.0, beta=20.0)
    model = method.model(problem(sem.table))
    learned = _run(method, problem(sem.table))
    found = hard_graphs(method._infer(model, 0, progress=False).z, model.edges).adjacency.unique(dim=0)
    assert len(found) == learned.attributes["num_different_graphs"] > 1
    weights = log_evidence(model, found).softmax(0)
    torch.testing.assert_close(
        learned.source.edge_probabilities(), torch.einsum("g,gij->ij", weights, found.double())
    )


def test_equal_weights_count_particles() -> None:
    sem = random_sem(3, 2, 20, 1)
    method = DiBS(weights="equal", num_particles=8, num_steps=30, num_draws=8, alpha=2.0)
    edges = _run(method, problem(sem.table)).source.edge_probabilities()
    torch.testing.assert_close(edges * 8, (edges * 8).round())


@pytest.mark.parametrize("name", _SETTINGS)
def test_graphs_are_acyclic_and_constraints_hold(name: str) -> None:
    sem = random_sem(4, 2, 60, 3)
    constraints = Constraints(required=[("x2", "x0")], forbidden=[("x1", "x3")], max_parents=1)
    learned = _run(_SETTINGS[name], problem(sem.table, constraints))
    graphs = learned.source.sample(50, seed=0).adjacency
    assert bool(is_acyclic(graphs).all())
    assert bool(graphs[:, 2, 0].all())
    assert not bool(graphs[:, 1, 3].any())
    assert int(graphs.sum(1).max()) <= 1


@pytest.mark.parametrize("name", _SETTINGS)
def test_a_seed_gives_the_same_graphs(name: str) -> None:
    given = problem(random_sem(3, 2, 40, 0).table)
    first, second = (_run(_SETTINGS[name], given, seed=4) for _ in range(2))
    assert torch.equal(first.source.edge_probabilities(), second.source.edge_probabilities())
    assert first.attributes["seed"] == 4


def test_an_interrupted_run_keeps_its_particles(monkeypatch: pytest.MonkeyPatch) -> None:
    directions = svgd.stein_directions

    def interrupting(*arguments: object) -> list[Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return directions(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dibs_stein, "stein_directions", interrupting)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learned = _SETTINGS["stein"].run(problem(random_sem(3, 2, 40, 0).table), seed=0)
    assert any("interrupted after 1 of 60 steps" in str(w.message) for w in caught)
    assert all(issubclass(w.category, SamplingWarning) for w in caught)
    assert learned.attributes["steps"] == 1
    assert bool(is_acyclic(learned.source.map_graph()))


def test_one_variable() -> None:
    values = torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert not bool(_run(_SETTINGS["stein"], problem(as_table(values))).source.map_graph().any())


def test_refuses_what_it_cannot_take() -> None:
    values = torch.zeros(20, 2, dtype=torch.float64)
    clamped = torch.zeros(20, 2, dtype=torch.bool)
    with pytest.raises(ConfigError, match="categorical"):
        DiBS().run(problem(Table((Variable("a", (0, 1)), Variable("b")), values, clamped)))
    with pytest.raises(ConfigError, match="marginal"):
        DiBS(mechanism="network", marginal=True)
    with pytest.raises(ConfigError, match="num_particles"):
        DiBS(num_particles=0)
    with pytest.raises(ConfigError, match="weights"):
        DiBS(weights="both")  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.parametrize("name", _SETTINGS)
def test_cuda(name: str) -> None:
    learned = _run(_SETTINGS[name], problem(random_sem(4, 2, 60, 3).table.to("cuda")))
    graph = learned.source.map_graph()
    assert graph.device.type == "cuda"
    assert bool(is_acyclic(graph))
