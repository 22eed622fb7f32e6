"""Collections of graphs as distributions: frequencies, honest errors, and what is kept."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import CheckpointError, ConfigError, ShapeError
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.problem import GraphSource
from ppgen.ops.dags import closure, random_dag
from ppgen.testing.statistics import assert_close_to


def _dags(num: int, seed: int = 0, num_nodes: int = 5) -> Tensor:
    return random_dag(num_nodes, 0.4, torch.Generator().manual_seed(seed), num)


def _sticky(num_chains: int, num_draws: int, stay: float, seed: int) -> Tensor:
    """Chains over two nodes whose edge, there half of the time, stays as it is with probability ``stay``."""
    generator = torch.Generator().manual_seed(seed)
    edge = torch.rand(num_chains, generator=generator) < 0.5
    graphs = torch.zeros(num_chains, num_draws, 2, 2, dtype=torch.bool)
    for s in range(num_draws):
        edge = edge ^ (torch.rand(num_chains, generator=generator) > stay)
        graphs[:, s, 0, 1] = edge
    return graphs


def test_independent_graphs() -> None:
    graphs = _dags(200)
    source = SampledSource(graphs)
    assert isinstance(source, GraphSource)
    share = graphs.double().mean(0)
    torch.testing.assert_close(source.edge_probabilities(), share)
    expected = (share * (1 - share) / 200).sqrt()
    off = ~torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(source.edge_errors()[off], expected[off])
    paths = source.path_probabilities()
    torch.testing.assert_close(paths.value, closure(graphs).double().mean(0))
    assert paths.kind is Kind.ESTIMATE


def test_weights() -> None:
    graphs = _dags(50)
    log_weights = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    source = SampledSource(graphs, log_weights + 3.0)
    w = log_weights.softmax(0)
    share = torch.einsum("s,sij->ij", w, graphs.double())
    torch.testing.assert_close(source.edge_probabilities(), share)
    error = torch.einsum("s,sij->ij", w.square(), (graphs.double() - share).square()).sqrt()
    varying = (share > 0) & (share < 1)
    torch.testing.assert_close(source.edge_errors()[varying], error[varying])
    best = source.map_graph()
    assert (graphs == best).all(-1).all(-1).any()
    drawn = source.sample(20_000, seed=0).adjacency.double().mean(0)
    assert_close_to(drawn, share, (share * (1 - share) / 20_000).sqrt() + 1e-12)


@pytest.mark.parametrize("stay", [0.5, 0.95], ids=["independent", "sticky"])
def test_errors_of_chains_cover(stay: float) -> None:
    """z-scores over many runs have a variance of about 1, and far more when stickiness is not looked at."""
    z, naive = [], []
    for seed in range(60):
        graphs = _sticky(4, 500, stay, seed)
        source = SampledSource(graphs)
        gap = float(source.edge_probabilities()[0, 1]) - 0.5
        z.append(gap / float(source.edge_errors()[0, 1]))
        naive.append(gap / float(SampledSource(graphs.flatten(0, 1)).edge_errors()[0, 1]))
    variance = torch.tensor(z).square().mean()
    assert 0.4 < variance < 2.0  # chi-square of 60 over 60: beyond 0.4 and 2.0 with probability 1e-5
    if stay > 0.9:
        assert torch.tensor(naive).square().mean() > 5.0


def test_averages_given_states_replace_frequencies() -> None:
    graphs = _sticky(3, 40, 0.5, 0)
    means = torch.rand(3, 8, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source = SampledSource(graphs, edge_means=means)
    torch.testing.assert_close(source.edge_probabilities(), means.mean((0, 1)))
    plain = means.flatten(0, 1).std(0) / math.sqrt(24)
    assert bool((source.edge_errors() < 2 * plain).all())
    assert bool((source.edge_errors() > plain / 2).all())


def test_one_graph_has_no_errors() -> None:
    graph = _dags(1)
    source = SampledSource(graph)
    assert torch.equal(source.edge_probabilities(), graph[0].double())
    assert not source.edge_errors().any()
    assert torch.equal(source.map_graph(), graph[0])
    assert source.path_probabilities().kind is Kind.EXACT
    assert torch.equal(source.sample(3, seed=0).adjacency, graph.expand(3, -1, -1))


def test_listed_graphs_have_no_errors() -> None:
    source = SampledSource(_dags(4), torch.tensor([0.1, 0.2, 0.3, 0.4]).log(), listed=True)
    assert not source.edge_errors().any()
    assert not source.path_probabilities().std_error.any()


def test_what_no_draw_has_is_not_impossible() -> None:
    graphs = torch.zeros(100, 3, 3, dtype=torch.bool)
    graphs[:50, 0, 1] = True
    errors = SampledSource(graphs).edge_errors()
    p = 0.5 / 101
    assert float(errors[1, 2]) == pytest.approx(math.sqrt(p * (1 - p) / 100))
    assert not errors.diagonal().any()


def test_few_draws_of_chains() -> None:
    source = SampledSource(_dags(6).unflatten(0, (3, 2)))
    assert bool(source.edge_errors().isfinite().all())


def test_parent_sets() -> None:
    graphs = _dags(300, num_nodes=4)
    sets, shares = SampledSource(graphs).parent_sets(2)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert bool((shares.diff() <= 0).all())
    for members, share in zip(sets, shares, strict=True):
        assert float(share) == pytest.approx(float((graphs[:, :, 2] == members).all(1).double().mean()))
    with pytest.raises(ConfigError, match="node"):
        SampledSource(graphs).parent_sets(4)


def test_the_best_graph_is_that_of_the_highest_score() -> None:
    graphs = _dags(30)
    scores = torch.arange(30, dtype=torch.float64).roll(7)
    best = SampledSource(graphs.unflatten(0, (3, 10)), log_scores=scores.reshape(3, 10)).map_graph()
    assert torch.equal(best, graphs[6])


def test_plain_draws_are_not_repeated() -> None:
    graphs = _dags(64)
    state = torch.get_rng_state()
    drawn = SampledSource(graphs).sample(64, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn.adjacency.sum(0), graphs.sum(0))
    assert float(drawn.log_weights.logsumexp(0)) == pytest.approx(0.0)


def test_state_makes_the_source_again() -> None:
    chains = _dags(40).unflatten(0, (4, 10))
    evidence = Estimate.of(torch.tensor(-3.0), Kind.ESTIMATE, torch.tensor(0.1))
    sources = [
        SampledSource(_dags(9), torch.linspace(-1, 0, 9), log_evidence=evidence),
        SampledSource(
            chains,
            log_scores=torch.rand(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
            edge_means=torch.rand(
                4, 6, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
            ),
        ),
    ]
    for source in sources:
        again = SampledSource.from_state(*source.state())
        for name in ("edge_probabilities", "edge_errors", "map_graph"):
            assert torch.equal(getattr(again, name)(), getattr(source, name)())
        assert torch.equal(again.sample(5, seed=1).adjacency, source.sample(5, seed=1).adjacency)
    assert SampledSource.from_state(*sources[0].state()).log_evidence == evidence
    tensors, plain = sources[0].state()
    with pytest.raises(CheckpointError):
        SampledSource.from_state({"packed": tensors["packed"]}, plain)
    with pytest.raises(CheckpointError):
        SampledSource.from_state(tensors | {"number": tensors["number"] + 100}, plain)


def test_memory_is_a_bit_an_edge_and_graph() -> None:
    graphs = _dags(8, num_nodes=60).repeat(1000, 1, 1)
    tensors, _ = SampledSource(graphs).state()
    assert tensors["packed"].shape == (8, 450)


def test_what_does_not_fit_is_told() -> None:
    graphs = _dags(6)
    with pytest.raises(ShapeError, match="adjacency"):
        SampledSource(graphs[0])
    with pytest.raises(ShapeError, match="log_weights"):
        SampledSource(graphs, torch.zeros(5))
    with pytest.raises(ConfigError, match="weights"):
        SampledSource(graphs, torch.full((6,), -torch.inf))
    with pytest.raises(ConfigError, match="chains"):
        SampledSource(graphs[None], torch.zeros(6))
    with pytest.raises(ShapeError, match="log_scores"):
        SampledSource(graphs, log_scores=torch.zeros(2))
    with pytest.raises(ShapeError, match="edge_means"):
        SampledSource(graphs, edge_means=torch.zeros(6, 5, 5))
    with pytest.raises(ConfigError, match="num"):
        SampledSource(graphs).sample(0)
