"""Chains over orders and partitions against brute force over all DAGs, with planted bugs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.inference.structure.families import ListedScores
from ppgen.inference.structure.sampled.engine import COUNTS, Engine, Space
from ppgen.inference.structure.sampled.native import PROGRAM, NativeEngine
from ppgen.inference.structure.sampled.packing import pack
from ppgen.inference.structure.sampled.starts import layers, scattered_orders
from ppgen.inference.structure.sampled.torch_engine import TorchEngine
from ppgen.testing.statistics import assert_mean
from tests.inference.structure.sampled.laws import brute_force, random_families

_ENGINES = {"native": NativeEngine, "torch": TorchEngine}


def _engine(
    name: str,
    listed: ListedScores,
    space: Space,
    chains: int,
    temperatures: tuple[float, ...] = (1.0,),
    **options: Any,
) -> Engine:
    families = pack(listed)
    shape = (chains, len(temperatures))
    if space == "order":
        places = scattered_orders(families, shape, seed=1)
    else:
        places = torch.zeros(*shape, listed.num_nodes, dtype=torch.int64)
    engine: Engine = _ENGINES[name](families, space, places, temperatures, sweeps=1, seed=2, **options)
    return engine


def _check_law(listed: ListedScores, space: Space, engine: Engine, draws: int) -> None:
    """Means over each chain are independent between chains."""
    law = brute_force(listed, space)
    engine.advance(20, keep=False)
    drawn = engine.advance(draws, keep=True)
    assert drawn is not None
    off = ~torch.eye(listed.num_nodes, dtype=torch.bool)
    assert_mean((drawn.edges / draws)[:, off], law.edges[off], "edges given states")
    graphs = pack(listed).graphs(drawn.rows)
    likely = law.probabilities.topk(12)
    for dag, probability in zip(law.dags[likely.indices], likely.values, strict=True):
        share = (graphs == dag).all(-1).all(-1).double().mean(1)
        assert_mean(share, probability, "graphs")


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0)], ids=["cold", "tempered"])
@pytest.mark.parametrize("space", ["order", "partition"])
def test_compiled_chains_have_the_law(space: Space, temperatures: tuple[float, ...]) -> None:
    listed = random_families(4, seed=3)
    _check_law(listed, space, _engine("native", listed, space, 200, temperatures), 100)


@pytest.mark.parametrize("space", ["order", "partition"])
def test_torch_chains_have_the_law(space: Space) -> None:
    listed = random_families(4, seed=3)
    _check_law(listed, space, _engine("torch", listed, space, 500, (1.0, 2.0)), 15)


def test_five_nodes_with_few_parents() -> None:
    listed = random_families(5, seed=4, max_parents=2)
    _check_law(listed, "partition", _engine("native", listed, "partition", 200), 100)


# What is planted, and shares of the moves at which it shows: by way of orders, and among the others
# relocations, swaps of neighbours, and swaps of any two; the rest are splits and merges.
_BUGS = {
    "split without its proposal's probability": (
        "double log_hastings = -std::log(double(m)) - log_split(wide, k, c);",
        "double log_hastings = 0.0;",
        (0.0, 0.1, 0.1, 0.1),
    ),
    "merge without its proposal's probability": (
        "double log_hastings = log_split(wide_after, k, size[i]) + std::log(m - 1.0);",
        "double log_hastings = 0.0;",
        (0.0, 0.1, 0.1, 0.1),
    ),
    "orders not taken back": ("< after - before)", "< 0.0)", (0.9, 0.9, 0.9, 0.9)),
    "one place missing in relocations": (
        "int num = 2 * rest.m + 1",
        "int num = 2 * rest.m",
        (0.0, 0.9, 0.9, 0.9),
    ),
    "a swap scores one element too few": (
        "propose(random, beta, to, i, i + 3, 0.0)",
        "propose(random, beta, to, i, i + 2, 0.0)",
        (0.0, 0.2, 0.9, 0.9),
    ),
}


def _planted(folder: Path, shares: tuple[float, ...], right: str = "", wrong: str = "") -> Path:
    """The program with other shares of the moves, and something planted."""
    program = folder / "program"
    shutil.copytree(PROGRAM, program)
    text = (program / "partition.hpp").read_text()
    changes = [("JUMPS = 0.2", f"JUMPS = {shares[0]}")] + [(right, wrong)] * bool(right)
    thresholds = zip((0.9, 0.8, 0.7), shares[:0:-1], strict=True)
    changes += [(f"kind < {old}", f"kind < {new}") for old, new in thresholds]
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (program / "partition.hpp").write_text(text)
    return program


def _run_planted(program: Path) -> None:
    listed = random_families(4, seed=3, scale=1.0)
    _check_law(listed, "partition", _engine("native", listed, "partition", 400, program=program), 200)


@pytest.mark.slow
@pytest.mark.parametrize("bug", list(_BUGS))
def test_planted_bugs_are_found(bug: str, tmp_path: Path) -> None:
    right, wrong, shares = _BUGS[bug]
    program = _planted(tmp_path, shares, right, wrong)
    with pytest.raises(AssertionError):
        _run_planted(program)


@pytest.mark.slow
@pytest.mark.parametrize("shares", sorted({bug[2] for bug in _BUGS.values()}), ids=str)
def test_no_share_of_moves_changes_the_law(shares: tuple[float, ...], tmp_path: Path) -> None:
    _run_planted(_planted(tmp_path, shares))


@pytest.mark.parametrize("num_nodes", [3, 4])
def test_partitions_have_the_sum_over_their_graphs(num_nodes: int) -> None:
    listed = random_families(num_nodes, seed=5)
    law = brute_force(listed, "partition")
    partitions, number = layers(law.dags).unique(dim=0, return_inverse=True)
    expected = torch.zeros(len(partitions), dtype=torch.float64).index_add_(0, number, law.probabilities)
    engine = _engine("native", listed, "partition", 4000)
    engine.advance(60, keep=False)
    assert isinstance(engine, NativeEngine)
    found = (engine.places[:, 0, None] == partitions).all(-1).double()
    torch.testing.assert_close(found.sum(1), torch.ones(4000, dtype=torch.float64))
    likely = expected > 0.01
    assert_mean(found[:, likely], expected[likely], "partitions")


@pytest.mark.parametrize("num_nodes", [6, 70], ids=["one word", "two words"])
@pytest.mark.parametrize("space", ["order", "partition"])
def test_engines_score_states_alike(space: Space, num_nodes: int) -> None:
    listed = random_families(num_nodes, seed=6, max_parents=2 if num_nodes < 64 else 1)
    families = pack(listed)
    orders = scattered_orders(families, (2, 3), seed=7)
    places = orders if space == "order" else orders // 4
    ladder = (1.0, 2.0, 3.0)
    first = NativeEngine(families, space, places, ladder, sweeps=1, seed=0)
    second = TorchEngine(families, space, places, ladder, sweeps=1, seed=0)
    torch.testing.assert_close(first.node_scores, second.node_scores, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("space", ["order", "partition"])
def test_scores_kept_along_a_chain_are_those_of_its_states(space: Space) -> None:
    families = pack(random_families(70, seed=8, max_parents=1, scale=5.0))
    places = scattered_orders(families, (2, 2), seed=1)
    places = places if space == "order" else torch.zeros_like(places)
    engine = NativeEngine(families, space, places, (1.0, 1.5), sweeps=1, seed=3)
    engine.advance(10, keep=False)
    again = TorchEngine(families, space, engine.places, (1.0, 1.5), sweeps=1, seed=3)
    torch.testing.assert_close(engine.node_scores, again.node_scores, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["native", "torch"])
@pytest.mark.parametrize("space", ["order", "partition"])
def test_draws_do_not_depend_on_calls(name: str, space: Space) -> None:
    listed = random_families(5, seed=9)
    whole = _engine(name, listed, space, 3, (1.0, 2.0))
    once = whole.advance(12, keep=True)
    first = _engine(name, listed, space, 3, (1.0, 2.0))
    start = first.advance(5, keep=True)
    second = _engine(name, listed, space, 3, (1.0, 2.0))
    second.load_state(first.state())
    rest = second.advance(7, keep=True)
    assert once is not None
    assert start is not None
    assert rest is not None
    assert torch.equal(once.rows, torch.cat([start.rows, rest.rows], 1))
    assert torch.equal(once.log_scores, torch.cat([start.log_scores, rest.log_scores], 1))
    assert torch.equal(whole.counts, second.counts)


def test_chains_do_not_depend_on_their_number() -> None:
    families = pack(random_families(5, seed=9))
    places = scattered_orders(families, (4, 1), seed=1)
    many = NativeEngine(families, "order", places, (1.0,), sweeps=2, seed=3).advance(10, keep=True)
    few = NativeEngine(families, "order", places[:2], (1.0,), sweeps=2, seed=3).advance(10, keep=True)
    assert many is not None
    assert few is not None
    assert torch.equal(many.rows[:2], few.rows)


def test_graphs_fit_scores_and_moves_are_counted() -> None:
    listed = random_families(5, seed=10)
    engine = _engine("native", listed, "partition", 2, (1.0, 2.0))
    drawn = engine.advance(50, keep=True)
    assert drawn is not None
    families = pack(listed)
    expected = torch.stack([families.log_scores[v][drawn.rows[:, :, v].long()] for v in range(5)], -1).sum(-1)
    torch.testing.assert_close(drawn.log_scores, expected)
    counts = dict(zip(COUNTS, engine.counts.sum(0).tolist(), strict=True))
    moves = counts["relocations"] + counts["swaps"] + counts["splits_and_merges"] + counts["jumps"]
    assert moves == 2 * 50 * 5
    assert counts["exchanges"] == 2 * 50
    assert 0 < counts["jumps_taken"] < counts["jumps"]


@pytest.mark.parametrize("space", ["order", "partition"])
@pytest.mark.parametrize("name", ["native", "torch"])
def test_one_node(name: str, space: Space) -> None:
    listed = ListedScores((torch.empty(1, 0, dtype=torch.int64),), (torch.zeros(1, dtype=torch.float64),))
    drawn = _engine(name, listed, space, 2).advance(3, keep=True)
    assert drawn is not None
    assert not drawn.edges.any()


def test_layers_are_lengths_of_longest_paths() -> None:
    chain = torch.zeros(4, 4, dtype=torch.bool)
    chain[2, 0] = chain[0, 3] = chain[2, 3] = True
    expected: Tensor = torch.tensor([1, 0, 0, 2])
    assert torch.equal(layers(chain), expected)
