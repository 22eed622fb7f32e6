"""Variable elimination against the whole joint table."""

from __future__ import annotations

import itertools

import pytest
import torch

from ppgen.errors import ConfigError
from ppgen.ops.elimination import (
    Factor,
    Plan,
    categorical,
    check_size,
    draw,
    eliminate,
    plan,
    product,
)
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to

SIZES = {0: 2, 1: 3, 2: 2, 3: 4, 4: 2, 5: 3}
SCOPES = [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (1, 4, 5), (5,)]


def random_factors(seed: int, rows: int = 3) -> list[Factor]:
    with forked_rng(seed):
        return [
            Factor(s, torch.randn(1 if i % 2 else rows, *(SIZES[v] for v in s), dtype=torch.float64))
            for i, s in enumerate(SCOPES)
        ]


@pytest.mark.parametrize("kept", [(), (2,), (1, 4), (0, 1, 2, 3, 4, 5)], ids=str)
def test_equals_the_sum_of_the_joint(kept: tuple[int, ...]) -> None:
    factors = random_factors(1)
    joint = product(factors)
    gone = [v for v in SIZES if v not in kept]
    expected = joint.log_values.logsumexp([1 + v for v in gone]) if gone else joint.log_values
    found, _ = eliminate(factors, plan(SCOPES, SIZES, gone).order)
    assert found.scope == kept
    torch.testing.assert_close(found.log_values.expand_as(expected), expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_marginals() -> None:
    factors = random_factors(2, rows=1)
    for f in factors:
        f.log_values.requires_grad_()
    total, _ = eliminate(factors, plan(SCOPES, SIZES, SIZES).order)
    (gradient,) = torch.autograd.grad(total.log_values.sum(), factors[2].log_values)
    joint = product([Factor(f.scope, f.log_values.detach()) for f in factors]).log_values[0]
    expected = joint.flatten().softmax(0).reshape(joint.shape).sum((0, 1, 4, 5))
    torch.testing.assert_close(gradient[0], expected, rtol=1e-10, atol=1e-12)


def test_draws_follow_the_joint() -> None:
    factors = random_factors(3, rows=2)
    _, steps = eliminate(factors, plan(SCOPES, SIZES, SIZES).order)
    joint = product(factors).log_values
    num = 20_000
    with forked_rng(4):
        drawn = draw(steps, torch.ones(num, dtype=torch.int64))

    def check(row: int) -> None:
        probability = joint[row].flatten().softmax(0).reshape(joint.shape[1:])
        for a, b in itertools.combinations(SIZES, 2):
            expected = probability.sum([v for v in SIZES if v not in (a, b)])
            cell = drawn[a] * SIZES[b] + drawn[b]
            found = cell.bincount(minlength=expected.numel()).double() / num
            error = (expected * (1 - expected) / num).sqrt().flatten()
            assert_close_to(found, expected.flatten(), error)

    check(1)
    with pytest.raises(AssertionError):
        check(0)  # the planted defect: draws of another row


def test_the_order_of_a_chain_keeps_tables_small() -> None:
    scopes = [(i, i + 1) for i in range(40)]
    found = plan(scopes, dict.fromkeys(range(41), 3), range(41))
    assert sorted(found.order) == list(range(41))
    assert found.entries == 9


def test_the_cost_is_known_before_a_table_is_made() -> None:
    star = [(*range(40), 40)]
    found: Plan = plan(star, dict.fromkeys(range(41), 3), range(41))
    with pytest.raises(ConfigError, match="GiB"):
        check_size(found.entries, "x")


def test_levels_of_probability_zero_are_never_drawn() -> None:
    with forked_rng(0):
        drawn = categorical(torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0]).expand(5000, 5))
    assert set(drawn.tolist()) == {1, 3}


def test_impossible_rows_have_no_mass_and_no_nan() -> None:
    certain = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    opposite = torch.tensor([[-torch.inf, 0.0]], dtype=torch.float64)
    found, _ = eliminate([Factor((0,), certain), Factor((0,), opposite)], [0])
    assert found.log_values.tolist() == [-torch.inf]
