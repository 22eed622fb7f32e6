"""Order and partition MCMC as methods: agreement with exact sums, constraints, doubts, checkpoints."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError, SamplingError, SamplingWarning
from ppgen.inference.structure.exact.method import Exact
from ppgen.inference.structure.families import ListedScores
from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.sampled.method import OrderMCMC, PartitionMCMC
from ppgen.inference.structure.sampled.native import NativeEngine
from ppgen.inference.structure.sampled.packing import pack
from ppgen.inference.structure.sampled.starts import scattered_orders
from ppgen.inference.structure.sampled.torch_engine import TorchEngine
from ppgen.inference.structure.scores.discrete import BDeu
from ppgen.inference.structure.table import Table, Variable
from ppgen.ops.dags import is_acyclic
from ppgen.testing.statistics import assert_close_to, assert_mean

# Few draws are enough here, and leave doubts.
pytestmark = pytest.mark.filterwarnings("ignore::ppgen.errors.SamplingWarning")


def _problem(num_nodes: int, num_rows: int = 60, kind: Any = "uniform", **constraints: Any) -> Problem:
    """Binary variables; each one copies the one before, with errors."""
    generator = torch.Generator().manual_seed(num_nodes)
    values = torch.zeros(num_rows, num_nodes, dtype=torch.float64)
    values[:, 0] = (torch.rand(num_rows, generator=generator) < 0.5).double()
    for v in range(1, num_nodes):
        flip = torch.rand(num_rows, generator=generator) < 0.25
        values[:, v] = torch.where(flip, 1 - values[:, v - 1], values[:, v - 1])
    variables = tuple(Variable(f"x{v}", (0, 1)) for v in range(num_nodes))
    table = Table(variables, values, torch.zeros(values.shape, dtype=torch.bool))
    return Problem(table, BDeu(1.0), GraphPrior(kind=kind), Constraints(**constraints), progress=False)


def _method(kind: str) -> type[OrderMCMC] | type[PartitionMCMC]:
    return OrderMCMC if kind == "order" else PartitionMCMC


@pytest.mark.parametrize("kind", ["order", "uniform"])
@pytest.mark.parametrize("num_nodes", [5, 8, pytest.param(15, marks=pytest.mark.slow)])
def test_agrees_with_exact_sums(kind: str, num_nodes: int) -> None:
    problem = _problem(num_nodes, kind=kind, max_parents=3)
    exact = Exact().run(problem, seed=0).source
    learned = _method(kind)(num_chains=150, num_samples=150, warmup=50).run(problem, seed=1)
    edges, source = exact.edge_probabilities(), learned.source
    by_chain = _draws(learned).double().mean(1)
    assert_mean(by_chain, edges, "edges of graphs, chains apart")
    assert_close_to(source.edge_probabilities(), edges, source.edge_errors(), "edges given states")
    paths = source.path_probabilities()
    known = exact.path_probabilities()  # drawn themselves where there are many nodes
    assert_close_to(paths.value, known.value, torch.hypot(paths.std_error, known.std_error), "paths")
    if num_nodes <= 8:  # rare edges of many nodes would need more draws than agreement on the means does
        assert learned.attributes["max_rhat"] < 1.05
    other = Exact().run(replace(problem, prior=GraphPrior(kind=_other(kind))), seed=0).source
    with pytest.raises(AssertionError):  # the twin: the other prior is told apart
        assert_mean(by_chain, other.edge_probabilities(), "edges")


def _other(kind: str) -> Any:
    return "uniform" if kind == "order" else "order"


@pytest.mark.parametrize("kind", ["order", "uniform"])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_constraints_hold_in_every_draw(kind: str, backend: Any) -> None:
    problem = _problem(
        6, kind=kind, required=[("x3", "x0")], forbidden=[("x1", "x2")], tiers=[["x5"], ["x4"]], max_parents=2
    )
    method = _method(kind)(num_chains=2, num_samples=20, warmup=5, backend=backend)
    learned = method.run(problem, seed=0)
    draws = _draws(learned)
    assert draws.shape == (2, 20, 6, 6)
    assert bool(draws[:, :, 3, 0].all())
    assert not draws[:, :, 1, 2].any()
    assert not draws[:, :, 4, 5].any()
    assert int(draws.sum(2).max()) <= 2
    assert bool(is_acyclic(draws).all())


def _draws(learned: Learned) -> Tensor:
    assert learned.draws is not None
    return learned.draws


def test_no_graph_fits() -> None:
    sets = torch.tensor([[1], [0]])
    listed = ListedScores((sets[:1], sets[1:]), (torch.zeros(1), torch.zeros(1)))
    with pytest.raises(SamplingError, match="no graph fits"):
        scattered_orders(pack(listed), (1, 1), seed=0)


def test_the_other_prior_is_refused() -> None:
    with pytest.raises(ConfigError, match="partition_mcmc"):
        OrderMCMC().run(_problem(3), seed=0)
    with pytest.raises(ConfigError, match="order_mcmc"):
        PartitionMCMC().run(_problem(3, kind="order"), seed=0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_chains": 0}, "num_chains"),
        ({"num_samples": 1.5}, "num_samples"),
        ({"temperatures": (2.0, 1.0)}, "temperatures"),
        ({"temperatures": ()}, "temperatures"),
        ({"backend": "gpu"}, "backend"),
        ({"candidates": 0}, "candidates"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_are_checked(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        OrderMCMC(**options)


def test_candidates() -> None:
    problem = _problem(6, num_rows=300, kind="order", required=[("x5", "x0")])
    few = _draws(OrderMCMC(num_chains=2, num_samples=10, warmup=5, candidates=1).run(problem, seed=0))
    assert bool(few[:, :, 5, 0].all())
    assert int(few.any(0).any(0).sum(0).max()) <= 2
    named = OrderMCMC(num_chains=2, num_samples=10, warmup=5, candidates={"x2": ["x1"]})
    assert not _draws(named.run(problem, seed=0))[:, :, [0, 3, 4, 5], 2].any()
    with pytest.raises(ConfigError, match="y"):
        OrderMCMC(candidates={"y": []}).run(problem, seed=0)


def test_seeds_decide_and_leave_the_global_generator_alone() -> None:
    problem, method = _problem(4), PartitionMCMC(num_chains=2, num_samples=30, warmup=2)
    state = torch.get_rng_state()
    first, second, third = (_draws(method.run(problem, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_chains_that_disagree_are_named() -> None:
    problem = _problem(10, num_rows=2000, kind="order")
    with pytest.warns(SamplingWarning, match="R-hat is above") as caught:
        learned = OrderMCMC(num_chains=4, num_samples=8, warmup=0).run(problem, seed=0)
    assert [str(one.message) for one in caught] == list(learned.warnings)
    text = " ".join(learned.warnings)
    assert "R-hat" in text
    assert " -> x" in text
    assert learned.attributes["max_rhat"] > 1.05
    with pytest.warns(SamplingWarning, match="one chain"):
        one = OrderMCMC(num_chains=1, num_samples=8, warmup=0).run(problem, seed=0)
    assert any("one chain" in sentence for sentence in one.warnings)


def test_long_chains_leave_no_doubt() -> None:
    learned = OrderMCMC(num_samples=2000).run(_problem(3, kind="order"), seed=0)
    assert learned.warnings == ()


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_an_interrupted_run_goes_on_to_the_same_draws(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = _problem(4)
    plain = PartitionMCMC(num_chains=2, num_samples=60, warmup=5, backend=backend)
    whole = plain.run(problem, seed=0)
    saved = replace(plain, checkpoint=tmp_path)
    calls = 0
    engine: Any = NativeEngine if backend == "native" else TorchEngine
    advance = engine.advance

    def interrupting(self: Any, num_draws: int, *, keep: bool) -> Any:
        nonlocal calls
        calls += 1
        if calls == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self, num_draws, keep=keep)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "advance", interrupting)
        with pytest.warns(SamplingWarning, match="interrupted after"):
            part = saved.run(problem, seed=0)
    assert 0 < _draws(part).shape[1] < 60
    assert "interrupted" in part.warnings[0]
    assert torch.equal(_draws(part), _draws(whole)[:, : _draws(part).shape[1]])
    again = saved.run(problem, seed=None)
    assert torch.equal(_draws(again), _draws(whole))
    assert torch.equal(again.source.edge_probabilities(), whole.source.edge_probabilities())
    with pytest.raises(CheckpointError, match="num_chains"):
        replace(saved, num_chains=3).run(problem, seed=0)
    with pytest.raises(CheckpointError, match="scores"):
        saved.run(_problem(4, num_rows=61), seed=0)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.warns(SamplingWarning, match="compiled"):
        learned = PartitionMCMC(num_chains=2, num_samples=8, warmup=1).run(_problem(3), seed=0)
    assert learned.attributes["backend"] == "torch"
