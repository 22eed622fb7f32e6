"""Draws of Markov random fields, exact and by chains, and annealing, against enumerated laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

from ppgen.contract import Kind
from ppgen.distributions.pairwise import clusters
from ppgen.inference.partition import PartitionEstimate
from ppgen.models import MarkovRandomField
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to
from tests.models.fields import (
    CRITICAL,
    FIELDS,
    NUM,
    SMALL,
    assert_drawn_from,
    attractive,
    conditional_law,
    every_state,
    kaufman,
    log_weights,
    randomised,
    torus_log_partition,
)

# -- draws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [*SMALL.values(), FIELDS["pairwise-tied"]], ids=[*SMALL, "pairwise"])
def test_exact_draws_follow_the_enumerated_law(make: Callable[[], MarkovRandomField]) -> None:
    mrf = make()
    law = log_weights(mrf, every_state(mrf)).softmax(0)
    assert_drawn_from(mrf, mrf.sample(NUM, seed=1), law, "exact draws")


@pytest.mark.parametrize("sampler", ["gibbs", "swendsen-wang", None])
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_chains_end_in_the_enumerated_law(make: Callable[[], MarkovRandomField], sampler: Any) -> None:
    mrf = make()
    law = log_weights(mrf, every_state(mrf)).softmax(0)
    assert_drawn_from(mrf, mrf.sample(NUM, sampler=sampler, num_steps=15, seed=2), law, "chains")


@pytest.mark.parametrize("moves", ["gibbs", "swendsen_wang"])
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_moves_leave_the_law_as_it_is(make: Callable[[], MarkovRandomField], moves: str) -> None:
    """Started from exact draws, one move changes the states and not their law (a Geweke test)."""
    mrf = make()
    law = log_weights(mrf, every_state(mrf)).softmax(0)
    start = mrf.sample(NUM, seed=3)
    after = getattr(mrf, moves)(start, 1, seed=4)
    assert not torch.equal(start, after)
    assert_drawn_from(mrf, after, law, moves)


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_a_wrong_bond_probability_is_found(
    make: Callable[[], MarkovRandomField], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted defect: 1 - exp(-J) for Ising, whose spins ask for 1 - exp(-2 J); the like for Potts."""
    mrf = make()
    law = log_weights(mrf, every_state(mrf)).softmax(0)
    right = clusters.attraction
    monkeypatch.setattr(clusters, "attraction", lambda field: right(field) / 2)
    with pytest.raises(AssertionError, match="off by"):
        assert_drawn_from(mrf, mrf.swendsen_wang(mrf.sample(NUM, seed=3), 1, seed=4), law, "twin")


def test_drawing_neighbours_together_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect: a colouring that lets neighbours be drawn at once."""
    mrf = SMALL["ising"]()
    law = log_weights(mrf, every_state(mrf)).softmax(0)
    start = mrf.sample(NUM, seed=3)
    monkeypatch.setitem(mrf.graph.__dict__, "colours", (torch.arange(6),))
    with pytest.raises(AssertionError, match="off by"):
        assert_drawn_from(mrf, mrf.gibbs(start, 1, seed=4), law, "twin")


def autocorrelation_time(series: Tensor) -> float:
    """Integrated autocorrelation time of (steps, chains), summed up to 5 times itself (Sokal's window)."""
    centred = series - series.mean()
    time, variance = 1.0, float(centred.square().mean())
    for lag in range(1, len(series)):
        time += 2 * float((centred[lag:] * centred[:-lag]).mean()) / variance
        if lag >= 5 * time:
            break
    return time


def test_clusters_forget_faster_than_sites_at_the_critical_point() -> None:
    mrf = MarkovRandomField((12, 12), graph="torus", tied=True).requires_grad_(False)
    mrf.coupling.fill_(CRITICAL)
    times = {}
    for name in ("gibbs", "swendsen_wang"):
        x = mrf.sample(40, sampler="swendsen-wang", num_steps=40, seed=0)
        series = []
        for step in range(200):
            x = getattr(mrf, name)(x, 1, seed=step)
            series.append((2 * x - 1).mean((1, 2)).square())
        times[name] = autocorrelation_time(torch.stack(series).double())
    assert times["swendsen_wang"] < times["gibbs"] / 4, times


def test_components_are_those_of_networkx() -> None:
    graph = nx.gnm_random_graph(300, 250, seed=0)
    graph.add_edges_from(nx.path_graph(range(100, 160)).edges)
    ends = torch.tensor(list(graph.edges))
    expected = torch.empty(300, dtype=torch.int64)
    for part in nx.connected_components(graph):
        expected[list(part)] = min(part)
    assert torch.equal(clusters.components(ends[:, 0], ends[:, 1], 300), expected)


def test_a_seed_repeats_chains_and_moves() -> None:
    mrf = MarkovRandomField((5, 5))
    assert torch.equal(mrf.sample(3, num_steps=5, seed=1), mrf.sample(3, num_steps=5, seed=1))
    x = mrf.sample(3, seed=1)
    assert torch.equal(mrf.gibbs(x, 2, seed=1), mrf.gibbs(x, 2, seed=1))
    assert torch.equal(mrf.swendsen_wang(x, 2, seed=1), mrf.swendsen_wang(x, 2, seed=1))


# -- conditionals ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_steps": 15}, {"sampler": "swendsen-wang", "num_steps": 15}])
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_conditioning_follows_the_enumerated_conditional(
    make: Callable[[], MarkovRandomField], options: dict[str, Any]
) -> None:
    mrf = make()
    x = mrf.sample(2, seed=0)
    mask = torch.zeros(mrf.event_shape, dtype=torch.bool)
    mask.view(-1)[:2] = True
    drawn = mrf.condition(torch.where(mask, x, math.nan), mask, NUM, seed=1, **options)
    assert drawn.shape == (NUM, *x.shape)
    for n in range(2):
        assert torch.equal(drawn[:, n][:, mask], x[n][mask].expand(NUM, -1))
        assert_drawn_from(mrf, drawn[:, n], conditional_law(mrf, x[n], mask), "conditional")


def test_conditioning_many_patterns_at_once() -> None:
    mrf = FIELDS["ising-complete"]()
    x = mrf.sample(40, seed=0)
    with forked_rng(1):
        mask = torch.rand(x.shape) < 0.5
    drawn = mrf.condition(x, mask, 4000, seed=2)
    for n in range(0, 40, 13):
        assert_drawn_from(mrf, drawn[:, n], conditional_law(mrf, x[n], mask[n]), "conditional")


def test_conditioning_is_exact_where_the_unknown_part_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    mrf = randomised(MarkovRandomField((20, 20)))
    x = (mrf.start_logits[:, 0] == 1).double().view(1, 20, 20)
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[3:5, 3:5] = False
    monkeypatch.setattr("ppgen.distributions.pairwise.conditional.move", None)  # no chain is run
    drawn = mrf.condition(x, mask, NUM, seed=0)[:, 0]
    block = x.repeat(16, 1, 1)
    block[:, 3:5, 3:5] = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(16, 2, 2)
    law = (-mrf.energy(block)).softmax(0)
    places = 2 ** torch.arange(3, -1, -1)
    seen = torch.nn.functional.one_hot((drawn[:, 3:5, 3:5].flatten(1).long() * places).sum(-1), 16)
    assert_close_to(seen.double().mean(0), law, (law * (1 - law) / NUM).sqrt() + 1e-12, "block")


# -- annealing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ising", "potts", "pairwise", "attractive"])
def test_annealing_bounds_log_z_from_both_sides(name: str) -> None:
    mrf = attractive(FIELDS["ising"]()) if name == "attractive" else FIELDS[name]()
    exact = mrf.log_partition().value
    found = mrf.log_partition(method="ais", num_chains=400, num_temperatures=60, seed=1)
    assert isinstance(found, PartitionEstimate)
    assert found.upper is not None
    assert (found.kind, found.upper.kind) == (Kind.LOWER_BOUND, Kind.UPPER_BOUND)
    assert_close_to(found.value, exact, found.std_error, "from below")
    assert_close_to(found.upper.value, exact, found.upper.std_error, "from above")
    likelihood = mrf.log_likelihood(every_state(mrf)[:2], method="ais", num_temperatures=20, num_chains=50)
    assert likelihood.kind is Kind.UPPER_BOUND
    assert likelihood.shared_error is not None


def test_annealing_a_lattice_beyond_elimination_at_the_critical_point() -> None:
    mrf = MarkovRandomField((10, 10), graph="torus", tied=True).double().requires_grad_(False)
    assert mrf.density is Kind.UNNORMALISED
    mrf.coupling.fill_(CRITICAL)
    found = mrf.log_partition(method="ais", num_chains=50, num_temperatures=80, num_gibbs_steps=40, seed=0)
    assert isinstance(found, PartitionEstimate)
    assert found.upper is not None
    assert found.upper.kind is Kind.ESTIMATE
    exact = kaufman(10, CRITICAL)
    assert_close_to(found.value, exact, found.std_error, "from below")
    assert_close_to(found.upper.value, exact, found.upper.std_error, "from above")


@pytest.mark.parametrize("size", [4, 6])
def test_kaufman_s_formula_is_the_transfer_matrix(size: int) -> None:
    for coupling in (0.3, CRITICAL, 0.6):
        assert kaufman(size, coupling) == pytest.approx(torus_log_partition(size, coupling), abs=1e-9)


@pytest.mark.cuda
def test_cuda_gives_the_same() -> None:
    mrf = SMALL["potts"]()
    x = every_state(mrf)
    law = log_weights(mrf, x).softmax(0)
    mrf.to("cuda")
    torch.testing.assert_close(mrf.log_likelihood(x.cuda()).value.exp().cpu(), law)
    chains: list[dict[str, Any]] = [{}, {"sampler": "gibbs"}, {"sampler": "swendsen-wang"}]
    for options in chains:
        drawn = mrf.sample(NUM, seed=0, **(options and {**options, "num_steps": 20}))
        assert drawn.device.type == "cuda"
        assert_drawn_from(mrf, drawn.cpu(), law, "CUDA draws")
