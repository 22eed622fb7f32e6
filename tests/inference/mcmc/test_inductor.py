"""The executor on ``torch.compile``: the draws of the eager one, and a way out where compiling fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ppgen.errors import SamplingWarning
from ppgen.inference.mcmc.executor import EagerExecutor
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.inductor import InductorExecutor
from ppgen.inference.mcmc.kernel import State
from tests.inference.mcmc.native.by_hand import gaussian

DENSITY = gaussian(torch.tensor([0.5, 2.0]))
PARAMS = {"scale": torch.ones(2), "weights": torch.ones(1), "num_steps": torch.tensor(3)}


def start(executor: EagerExecutor) -> State:
    return executor.init(torch.ones(5, 2), torch.full((5,), 0.3))


def depends_on_values(function: Callable[..., State]) -> Any:
    """The same function, with a branch that no graph can hold."""

    def call(state: State, *args: Any) -> State:
        if bool(state["z"].isnan().any()):
            raise ValueError("z is NaN")
        return function(state, *args)

    return call


@pytest.mark.slow
def test_draws_are_those_of_the_eager_executor() -> None:
    compiled = InductorExecutor(hmc_kernel(2), DENSITY, seed=0)
    eager = EagerExecutor(hmc_kernel(2), DENSITY.batched, seed=0)
    found, kept = compiled.run(start(compiled), PARAMS, num=5, record=["z"])
    expected, reference = eager.run(start(eager), PARAMS, num=5, record=["z"])
    assert compiled.failures == {}
    assert compiled.description == "torch.compile on cpu"
    torch.testing.assert_close(kept["z"], reference["z"])
    torch.testing.assert_close(found["accept_prob"], expected["accept_prob"])


@pytest.mark.slow
def test_many_programs_in_one_process() -> None:
    """More than the compiler takes for one function."""
    for number in range(10):
        density = gaussian(torch.tensor([0.5 + number, 2.0]))
        compiled = InductorExecutor(hmc_kernel(2), density, seed=0)
        compiled.run(start(compiled), PARAMS, num=1)
        assert compiled.failures == {}


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once() -> None:
    kernel = hmc_kernel(2)
    odd = replace(
        kernel,
        begin=depends_on_values(kernel.begin),
        advance=depends_on_values(kernel.advance),
        end=depends_on_values(kernel.end),
    )
    compiled = InductorExecutor(odd, DENSITY, seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compiled.run(start(compiled), PARAMS, num=5)[0]["z"]
    assert [w.category for w in caught if issubclass(w.category, SamplingWarning)] == [SamplingWarning]
    assert set(compiled.failures) == {"begin", "advance", "end"}
    assert "except advance, begin, end" in compiled.description
    eager = EagerExecutor(kernel, DENSITY.batched, seed=0)
    assert torch.equal(found, eager.run(start(eager), PARAMS, num=5)[0]["z"])


def test_errors_of_the_program_itself_come_through() -> None:
    kernel = hmc_kernel(2)
    compiled = InductorExecutor(replace(kernel, begin=depends_on_values(kernel.begin)), DENSITY, seed=0)
    state = start(compiled)
    with pytest.warns(SamplingWarning, match="'begin'"), pytest.raises(ValueError, match="z is NaN"):
        compiled.run(state | {"z": torch.full((5, 2), torch.nan)}, PARAMS, num=1)
