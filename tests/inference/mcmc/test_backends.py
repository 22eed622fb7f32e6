"""Which backend is chosen, and what happens where it does not work."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ppgen.errors import CheckpointError, CompilationError, ConfigError, SamplingWarning
from ppgen.inference.mcmc.backends import ChosenExecutor, is_small, make_executor
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.kernel import State
from ppgen.inference.mcmc.native.layout import UnsupportedOperation
from tests.inference.mcmc.native.by_hand import gaussian

DENSITY = gaussian(torch.tensor([0.5, 2.0]))
PARAMS = {"scale": torch.ones(2), "weights": torch.ones(1), "num_steps": torch.tensor(3)}


def make(density: Density = DENSITY, **options: Any) -> ChosenExecutor:
    return make_executor(hmc_kernel(2), density, num_chains=5, seed=0, **options)


def start(executor: ChosenExecutor, dtype: torch.dtype = torch.float32) -> State:
    return executor.init(torch.ones(5, 2, dtype=dtype), torch.full((5,), 0.3, dtype=dtype))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any) -> None:
        raise UnsupportedOperation("aten.frobnicate has no compiled form")

    monkeypatch.setattr("ppgen.inference.mcmc.native.executor._generate", generate)


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({}, "native"),
        ({"work": 10}, "eager"),
        ({"work": 10_000}, "native"),
        ({"compile": False}, "eager"),
        ({"compile": "native"}, "native"),
        ({"compile": "native", "work": 1}, "native"),
        ({"compile": True, "work": 1}, "native"),
        ({"compile": "inductor"}, "inductor"),
        ({"device": "cuda"}, "inductor"),
        ({"device": "cuda", "work": 10}, "eager"),
        ({"device": "cuda", "compile": True}, "inductor"),
    ],
    ids=str,
)
def test_the_choice_is_by_counts_and_devices(options: dict[str, Any], backend: str) -> None:
    assert make(**options).backend == backend


def test_many_chains_make_work_large() -> None:
    assert is_small(20, 64)
    assert not is_small(20, 16_384)
    assert not is_small(None, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_native_draws(dtype: torch.dtype) -> None:
    executor = make(compile="native")
    state, kept = executor.run(start(executor, dtype), PARAMS, num=4, record=["z"])
    assert executor.backend == "native"
    assert executor.info["source"].exists()
    assert str(dtype) in executor.description
    assert kept["z"].dtype is dtype
    again = make(compile="native")
    assert torch.equal(again.run(start(again, dtype), PARAMS, num=4)[0]["z"], state["z"])


@pytest.mark.usefixtures("unsupported")
def test_an_operation_without_compiled_form_runs_uncompiled_and_says_so_once() -> None:
    executor = make()
    state = start(executor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = executor.run(state, PARAMS, num=2)[0]
        state = executor.run(state, PARAMS, num=2)[0]
    assert [str(w.message) for w in caught if w.category is SamplingWarning] == [
        "chains run without compiled code (native to eager), which is slower: "
        "aten.frobnicate has no compiled form"
    ]
    assert executor.backend == "eager"
    assert executor.description == "torch, uncompiled"
    other = make(compile=False)
    assert torch.equal(other.run(start(other), PARAMS, num=4)[0]["z"], state["z"])


@pytest.mark.usefixtures("unsupported")
def test_native_that_was_asked_for_does_not_fall_back() -> None:
    executor = make(compile="native")
    with pytest.raises(UnsupportedOperation, match="frobnicate"):
        executor.run(start(executor), PARAMS, num=1)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler() -> None:
    with pytest.raises(CompilationError, match="no C\\+\\+ compiler"):
        make(compile="native")
    executor = make()
    with pytest.warns(SamplingWarning, match="no C\\+\\+ compiler"):
        executor.run(start(executor), PARAMS, num=1)
    assert executor.backend == "eager"


def test_a_density_that_depends_on_values() -> None:
    density = replace(DENSITY, traceable=False)
    for compile in ("native", "inductor"):
        with pytest.raises(CompilationError, match="depends on values"):
            make(density, compile=compile)
    executor = make(density)
    with pytest.warns(SamplingWarning, match="depends on values"):
        start(executor)
    assert executor.backend == "eager"


def test_a_type_that_is_not_compiled() -> None:
    executor = make()
    with pytest.warns(SamplingWarning, match="bfloat16"):
        start(executor, torch.bfloat16)
    assert executor.backend == "eager"


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="compile: expected"):
        make(compile="xla")
    with pytest.raises(ConfigError, match="cuda"):
        make(compile="native", device="cuda")


@pytest.mark.parametrize("compile", ["native", False])
def test_going_on_from_a_random_state_set_before_the_first_call(compile: str | bool) -> None:
    executor = make(compile=compile)
    state = executor.run(start(executor), PARAMS, num=2)[0]
    saved = executor.rng_state()
    expected = executor.run(state, PARAMS, num=2)[0]["z"]
    resumed = make(compile=compile)
    resumed.set_rng_state(saved)
    assert torch.equal(resumed.rng_state(), saved)
    copies = {name: value.clone() for name, value in state.items()}
    assert torch.equal(resumed.run(copies, PARAMS, num=2)[0]["z"], expected)


def test_a_random_state_of_another_backend() -> None:
    eager, native = make(compile=False), make(compile="native")
    start(eager), start(native)
    for executor, other in ((eager, native), (native, eager)):
        with pytest.raises(CheckpointError, match="backend"):
            executor.set_rng_state(other.rng_state())


def test_a_random_state_before_anything_happened() -> None:
    executor, other = make(), make()
    other.set_rng_state(executor.rng_state())
    states = [e.run(start(e), PARAMS, num=1)[0]["z"] for e in (executor, other)]
    assert torch.equal(*states)
