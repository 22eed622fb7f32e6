"""Seeds: draws repeat, the global generator goes on as if nothing had been."""

from __future__ import annotations

import pytest
import torch

from ppgen.errors import ConfigError
from ppgen.ops.random import forked_rng


def test_a_seed_repeats_and_leaves_the_generator() -> None:
    with forked_rng(0):
        before = torch.get_rng_state()
        draws = []
        for _ in range(2):
            with forked_rng(5):
                draws.append(torch.rand(3))
        assert torch.equal(*draws)
        assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generator_is_used() -> None:
    draws = []
    for fork in (True, False):
        with forked_rng(1):
            if fork:
                with forked_rng(None):
                    draws.append(torch.rand(3))
            else:
                draws.append(torch.rand(3))
            after = torch.rand(1)
        draws.append(after)
    assert torch.equal(draws[0], draws[2])
    assert torch.equal(draws[1], draws[3])


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_named(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed: expected an integer from 0"), forked_rng(seed):
        pass
