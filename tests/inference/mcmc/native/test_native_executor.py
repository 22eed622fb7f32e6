"""The native executor, on a program written by hand whose answers are known."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.errors import CheckpointError, CompilationError, ConfigError
from ppgen.inference.mcmc.executor import EagerExecutor
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.kernel import Kernel, Params, State
from ppgen.inference.mcmc.native.executor import NativeExecutor
from ppgen.inference.mcmc.native.streams import streams
from ppgen.inference.mcmc.nuts import nuts_kernel
from ppgen.ops import compiled
from ppgen.testing.statistics import assert_mean, assert_same_distribution
from tests.inference.mcmc.native.by_hand import gaussian, hand_written

PRECISION = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
DTYPES = [torch.float32, torch.float64]


def executor(
    num_chains: int = 20, *, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> NativeExecutor:
    return NativeExecutor(
        hmc_kernel(3),
        gaussian(PRECISION),
        num_chains=num_chains,
        seed=seed,
        dtype=dtype,
        make_program=options.pop("make_program", hand_written(PRECISION)),
        **options,
    )


def first_state(ready: NativeExecutor | EagerExecutor, num_chains: int, dtype: torch.dtype) -> State:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2000, 3, generator=generator, dtype=torch.float64) / PRECISION.sqrt()
    return ready.init(z[:num_chains].to(dtype), torch.full((num_chains,), 0.4, dtype=dtype))


def params(dtype: torch.dtype, num_steps: int = 4) -> Params:
    return {
        "scale": torch.tensor([1.0, 0.8, 0.7], dtype=dtype),
        "weights": torch.ones(1, dtype=dtype),
        "num_steps": torch.tensor(num_steps),
    }


def draws(num: int, num_chains: int = 20, **options: Any) -> Tensor:
    ready = executor(num_chains, **options)
    dtype = options.get("dtype", torch.float32)
    return ready.run(first_state(ready, num_chains, dtype), params(dtype), num=num, record=["z"])[1]["z"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_chains", [1, 16, 37])
def test_a_state_has_the_types_and_shapes_of_the_kernel(num_chains: int, dtype: torch.dtype) -> None:
    ready = executor(num_chains, dtype=dtype)
    state = first_state(ready, num_chains, dtype)
    after, kept = ready.run(state, params(dtype), num=3, record=["z", "diverging", "num_steps"])
    assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
        k: (v.shape, v.dtype) for k, v in state.items()
    }
    assert {k: (v.shape, v.dtype) for k, v in kept.items()} == {
        "z": ((3, num_chains, 3), dtype),
        "diverging": ((3, num_chains), torch.bool),
        "num_steps": ((3, num_chains), torch.int64),
    }
    assert torch.equal(kept["z"][-1], after["z"])
    assert bool((kept["num_steps"] == 4).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_transition_is_that_of_the_kernel_with_the_same_momenta(dtype: torch.dtype) -> None:
    """The momenta are in the record; the eager functions, given them, must end where the program does."""
    num_chains = 20
    ready, kernel, energy = executor(num_chains, dtype=dtype), hmc_kernel(3), gaussian(PRECISION).batched
    state, now = first_state(ready, num_chains, dtype), params(dtype)
    # No step leaves momenta as they were drawn.
    seen, _ = executor(num_chains, dtype=dtype).run(state, params(dtype, 0), num=1)
    after, _ = ready.run(state, now, num=1)
    expected = kernel.begin(state, now, {"momentum": seen["momentum"]})
    for _ in range(4):
        expected = kernel.advance(expected, now, energy, {})
    for name in ("new_z", "momentum", "new_u", "new_g"):
        torch.testing.assert_close(after[name], expected[name])
    accepted = (after["z"] == after["new_z"]).all(1)
    expected = kernel.end(expected, now, {"accept": (~accepted).to(dtype)})
    torch.testing.assert_close(after["accept_prob"], expected["accept_prob"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after["z"], torch.where(accepted[:, None], after["new_z"], state["z"]))


def test_draws_follow_the_target_and_those_of_torch() -> None:
    num_chains = 2000
    native = draws(30, num_chains)[-1]
    eager = EagerExecutor(hmc_kernel(3), gaussian(PRECISION).batched, seed=3)
    state = first_state(eager, num_chains, torch.float32)
    other = eager.run(state, params(torch.float32), num=30)[0]["z"]
    assert_same_distribution(native, other)
    assert_mean(native**2, 1 / PRECISION)
    with pytest.raises(AssertionError):
        assert_mean((1.2 * native) ** 2, 1 / PRECISION)


@pytest.mark.parametrize("make_kernel", [hmc_kernel, nuts_kernel])
def test_generated_programs_follow_the_target_as_torch_does(make_kernel: Callable[[int], Kernel]) -> None:
    """Kernels through the generator of code, from starts far too narrow."""
    num_chains, dtype = 1000, torch.float64
    kernel, density = make_kernel(3), gaussian(PRECISION)
    native = NativeExecutor(kernel, density, num_chains=num_chains, seed=0, dtype=dtype)
    eager = EagerExecutor(kernel, density.batched, seed=1)
    shared = {name: params(dtype)[name] for name in ("scale", "weights")}
    if kernel.ends_together:
        shared["num_steps"] = torch.tensor(4)
    z, step_size = torch.full((num_chains, 3), 0.1, dtype=dtype), torch.full((num_chains,), 0.6, dtype=dtype)
    ends = [e.run(e.init(z, step_size), shared, num=20)[0] for e in (native, eager)]
    for name in ("z", "accept_prob", "u"):
        first, second = (end[name].view(num_chains, -1) for end in ends)
        assert_same_distribution(first, second, name)
    assert_mean(ends[0]["z"] ** 2, 1 / PRECISION)
    # Energies and gradients of the end points are those of the density.
    u, g = density.batched(ends[0]["z"])
    torch.testing.assert_close(ends[0]["u"], u)
    torch.testing.assert_close(ends[0]["g"], g)


def test_what_cannot_be_traced_is_an_error_of_compiling() -> None:
    def single(z: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("not today")

    density = replace(gaussian(PRECISION), single=single)
    native = NativeExecutor(hmc_kernel(3), density, num_chains=20, seed=0, dtype=torch.float32)
    with pytest.raises(CompilationError, match="ValueError: not today"):
        native.run(first_state(native, 20, torch.float32), params(torch.float32), num=1)


def test_same_seed_same_draws() -> None:
    assert torch.equal(draws(5), draws(5))
    assert not bool((draws(5) == draws(5, seed=1)).all(2).any())


def test_a_chain_does_not_depend_on_how_many_there_are_or_where_they_are() -> None:
    """Not on the number of chains, nor on the width of vectors."""
    many, few, narrow = draws(5, 40), draws(5, 3), draws(5, 40, lanes=4)
    assert torch.equal(many[:, :3], few)
    torch.testing.assert_close(narrow, many)


def test_one_call_or_many() -> None:
    whole = draws(6)
    ready = executor()
    state, parts = first_state(ready, 20, torch.float32), []
    for num in (1, 0, 2, 3):
        state, kept = ready.run(state, params(torch.float32), num=num, record=["z"])
        parts.append(kept["z"])
    assert torch.equal(torch.cat(parts), whole)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr("ppgen.inference.mcmc.native.executor._THREADS_PAY_SECONDS", -1.0)
    in_threads = draws(5, 200)
    monkeypatch.undo()
    assert torch.equal(in_threads, draws(5, 200))


def test_what_the_caller_replaced_or_changed_is_taken_over() -> None:
    """Against an executor that sees every state for the first time."""
    ready, now = executor(), params(torch.float32)
    state = ready.run(first_state(ready, 20, torch.float32), now, num=2)[0]
    state = state | {"step_size": torch.full((20,), 0.2)}
    state["z"][3:5] = 0.25
    copies = {name: value.clone() for name, value in state.items()}
    fresh = executor()
    fresh.set_rng_state(ready.rng_state())
    expected, found = fresh.run(copies, now, num=2)[0], ready.run(state, now, num=2)[0]
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_states_that_were_handed_out_stay_as_they_are() -> None:
    ready, now = executor(), params(torch.float32)
    before = ready.run(first_state(ready, 20, torch.float32), now, num=1)[0]
    copies = {name: value.clone() for name, value in before.items()}
    after = ready.run(before, now, num=1)[0]
    assert all(torch.equal(before[name], copies[name]) for name in copies)
    assert not torch.equal(after["z"], before["z"])
    # Going back to an older state.
    ready.set_rng_state(streams(0, 20))
    again = ready.run(before, now, num=1)[0]
    other = executor()
    assert torch.equal(again["z"], other.run(copies, now, num=1)[0]["z"])


def test_a_state_is_a_dictionary_however_it_is_read() -> None:
    """Its tensors are unpacked when they are first read."""

    def made() -> State:
        ready = executor()
        return ready.run(first_state(ready, 20, torch.float32), params(torch.float32), num=1)[0]

    names = set(first_state(executor(), 20, torch.float32))
    expected = {name: made()[name] for name in names}
    ways: list[Callable[[State], Mapping[str, Tensor]]] = [
        dict,
        copy.copy,
        copy.deepcopy,
        lambda state: {**state},
        lambda state: state.copy(),
        lambda state: dict(state.items()),
        lambda state: dict(zip(state.keys(), state.values(), strict=True)),
        lambda state: {} | state,
        lambda state: state | {},
        lambda state: state | {"z": state["z"]},
        lambda state: {name: state.get(name, state["z"]) for name in state},
        lambda state: pickle.loads(pickle.dumps(state)),
    ]
    for way in ways:
        found = way(made())
        assert len(found) == len(names)
        assert set(found) == names
        assert all(torch.equal(found[name], expected[name]) for name in names)
    state = made()
    assert "z" in state
    assert "nothing" not in state
    assert state.get("nothing") is None
    assert (state | {"other": expected["z"]}).keys() == names | {"other"}
    with pytest.raises(KeyError, match="nothing"):
        state["nothing"]


def test_a_schedule_is_the_same_as_one_call_each() -> None:
    steps = torch.tensor([1, 5, 3])
    weights = torch.tensor([[0.0], [0.5], [1.0]])
    ready = executor()
    state = first_state(ready, 20, torch.float32)
    fixed = {"scale": params(torch.float32)["scale"]}
    found, kept = ready.run(
        state, fixed, num=3, schedule={"num_steps": steps, "weights": weights}, record=["num_steps"]
    )
    assert kept["num_steps"][:, 0].tolist() == [1, 5, 3]
    other, expected = executor(), state
    for count, weight in zip(steps, weights, strict=True):
        expected = other.run(expected, fixed | {"num_steps": count, "weights": weight}, num=1)[0]
    assert torch.equal(found["z"], expected["z"])


def test_going_on_from_a_saved_random_state() -> None:
    ready, now = executor(), params(torch.float32)
    state = ready.run(first_state(ready, 20, torch.float32), now, num=2)[0]
    saved = ready.rng_state()
    resumed = executor(seed=99)
    resumed.set_rng_state(saved)
    copies = {name: value.clone() for name, value in state.items()}
    expected = ready.run(state, now, num=3)[0]["z"]
    assert torch.equal(resumed.run(copies, now, num=3)[0]["z"], expected)
    assert torch.equal(resumed.rng_state(), ready.rng_state())


def test_a_random_state_of_something_else() -> None:
    with pytest.raises(CheckpointError, match="uint8"):
        executor().set_rng_state(torch.Generator().get_state())
    with pytest.raises(CheckpointError, match=r"\(20, 4\)"):
        executor().set_rng_state(executor(21).rng_state())


def test_streams_depend_on_the_seed_and_the_chain_only() -> None:
    assert torch.equal(streams(5, 100)[:7], streams(5, 7))
    words = torch.cat([streams(seed, 200) for seed in range(20)])
    assert len(words.unique(dim=0)) == len(words)
    bits = (words[..., None] >> torch.arange(32)) & 1
    assert_mean(bits.flatten(1).double(), 0.5)
    neighbours = (words[1:] ^ words[:-1])[..., None] >> torch.arange(32) & 1
    assert_mean(neighbours.flatten(1).double(), 0.5)


def test_compiled_once_for_params_of_one_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "_LOADED", {})
    ready = executor()
    state = ready.run(first_state(ready, 20, torch.float32), params(torch.float32), num=1)[0]
    seconds = ready.info["trace_seconds"]
    assert seconds > 0
    assert ready.info["source"].exists()
    state = ready.run(state, params(torch.float32, 9), num=1)[0]
    # Scheduled or not.
    now = params(torch.float32)
    ready.run(state, now, num=2, schedule={"num_steps": torch.tensor([3, 4])}, record=["z"])
    del now["num_steps"]
    ready.run(state, now, num=1, schedule={"num_steps": torch.tensor([3])})
    assert ready.info["trace_seconds"] == seconds
    assert "float32" in ready.description


def test_a_wrong_program_is_found_out() -> None:
    ready = executor(make_program=hand_written(PRECISION, sign=-1.0))
    state = first_state(ready, 20, torch.float32)
    with pytest.raises(CompilationError, match="compiled energy is not the density's own"):
        ready.run(state, params(torch.float32), num=1)


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="num_chains"):
        executor(0)
    with pytest.raises(CompilationError, match="float16"):
        executor(dtype=torch.float16)
    ready = executor()
    state = first_state(ready, 20, torch.float32)
    with pytest.raises(ConfigError, match="no entry 'nothing'"):
        ready.run(state, params(torch.float32), num=1, record=["nothing"])
    with pytest.raises(ConfigError, match="step_size"):
        ready.run(state | {"step_size": torch.ones(3)}, params(torch.float32), num=1)


def test_memory_that_runs_out_is_said() -> None:
    ready = executor()
    state = ready.run(first_state(ready, 20, torch.float32), params(torch.float32), num=1)[0]
    program = next(iter(ready._programs.values()))

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return (lambda *_: 1) if name == "ppgen_run" else getattr(program.functions, name)

    object.__setattr__(program, "functions", Failing())
    with pytest.raises(MemoryError):
        ready.run(state, params(torch.float32), num=1)


def test_globals_stay_as_they_are() -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws(2)
    assert torch.equal(torch.get_rng_state(), before)
