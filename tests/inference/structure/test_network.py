"""The record of a discrete network: what it refuses, and its draws against its own tables."""

import itertools

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.inference.structure.network import DiscreteNetwork
from ppgen.testing.statistics import assert_close_to

LEVELS = (("no", "yes"), (0, 1, 2), ("low", "high"))


def collider(tables: tuple[Tensor, ...] | None = None) -> DiscreteNetwork:
    """Two causes of c, which stands between them, so that the order of the columns is none of the edges."""
    made = tables or (
        torch.tensor([0.3, 0.7]),
        torch.tensor(
            [[[0.1, 0.2, 0.7], [0.6, 0.2, 0.2]], [[0.3, 0.3, 0.4], [0.05, 0.9, 0.05]]], dtype=torch.float64
        ),
        torch.tensor([0.4, 0.6]),
    )
    return DiscreteNetwork(("a", "c", "b"), LEVELS, ((), (0, 2), ()), made)


def joint(network: DiscreteNetwork) -> Tensor:
    """p(x) of every row, by the product of its table entries."""
    probabilities = [
        torch.stack(
            [t[tuple(row[q] for q in (*network.parents[v], v))] for v, t in enumerate(network.tables)]
        )
        for row in itertools.product(*(range(k) for k in network.cardinalities))
    ]
    return torch.stack(probabilities).prod(-1).reshape(network.cardinalities)


def frequencies(network: DiscreteNetwork, codes: Tensor) -> Tensor:
    counts = torch.zeros(network.cardinalities, dtype=torch.float64)
    counts.index_put_(tuple(codes.T), torch.ones(len(codes), dtype=torch.float64), accumulate=True)
    return counts / len(codes)


def test_draws_follow_the_tables_and_a_wrong_table_is_noticed() -> None:
    network, num = collider(), 20_000
    seen = frequencies(network, network.draw(num, torch.Generator().manual_seed(0)))
    expected = joint(network)
    error = (expected * (1 - expected) / num).sqrt()
    assert_close_to(seen, expected, error)
    wrong = joint(collider((network.tables[0].flip(0), *network.tables[1:])))
    with pytest.raises(AssertionError):
        assert_close_to(seen, wrong, (wrong * (1 - wrong) / num).sqrt())


def test_a_level_of_probability_zero_is_never_drawn() -> None:
    tables = (torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    network = DiscreteNetwork(("a", "b"), LEVELS[:2], ((), (0,)), tables)
    assert network.draw(1000, torch.Generator().manual_seed(0)).unique(dim=0).tolist() == [[1, 2]]


def test_a_table_of_draws_declares_the_levels_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    table = collider().table(50, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert tuple(v.levels for v in table.variables) == LEVELS
    assert table.names == ("a", "c", "b")
    assert not table.clamped.any()
    assert torch.equal(table.values, collider().table(50, seed=3).values)


def test_edges_and_order() -> None:
    network = collider()
    assert network.edges == [("a", "c"), ("b", "c")]
    assert network.adjacency.nonzero().tolist() == [[0, 1], [2, 1]]
    assert network.order == [0, 2, 1]


def test_another_order_of_the_variables_is_the_same_distribution() -> None:
    moved = collider().reordered(["c", "b", "a"])
    assert torch.allclose(joint(moved).permute(2, 0, 1), joint(collider()), rtol=0, atol=1e-15)
    with pytest.raises(ConfigError, match="names: expected a, c, b"):
        collider().reordered(["a", "b"])


def test_digits_of_a_file_are_normalised_and_more_is_refused() -> None:
    tables = collider().tables
    assert float(collider((torch.tensor([0.3, 0.700001]), *tables[1:])).tables[0].sum()) == 1
    with pytest.raises(DataError, match="a distribution of a is off by 0.1 from a sum of 1"):
        collider((torch.tensor([0.3, 0.6]), *tables[1:]))
    with pytest.raises(DataError, match="a has entries that are negative or not finite"):
        collider((torch.tensor([-0.3, 1.3]), *tables[1:]))
    with pytest.raises(DataError, match="not finite"):
        collider((torch.tensor([0.3, float("nan")]), *tables[1:]))


def test_what_makes_no_network_is_refused() -> None:
    a, b = torch.tensor([0.5, 0.5]), torch.full((2, 2), 0.5)
    pair, levels = ("a", "b"), ((0, 1), (0, 1))
    with pytest.raises(ConfigError, match="the edges form a cycle among a, b"):
        DiscreteNetwork(pair, levels, ((1,), (0,)), (b, b))
    with pytest.raises(ShapeError, match=r"b has shape \(2,\); its parents and levels need \(2, 2\)"):
        DiscreteNetwork(pair, levels, ((), (0,)), (a, a))
    with pytest.raises(ConfigError, match="expected different names"):
        DiscreteNetwork(("a", "a"), levels, ((), ()), (a, a))
    with pytest.raises(ConfigError, match="expected different numbers from 0 to 1"):
        DiscreteNetwork(pair, levels, ((), (2,)), (a, b))
    with pytest.raises(ConfigError, match="at least one level, all different"):
        DiscreteNetwork(pair, ((0, 0), (0, 1)), ((), ()), (a, a))
    with pytest.raises(ConfigError, match="num: expected a positive integer"):
        collider().draw(0)
