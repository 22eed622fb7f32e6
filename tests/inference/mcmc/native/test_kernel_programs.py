"""Compiled kernels against the same kernels as they are, step by step, with the same noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.kernel import NoiseSpec, State
from ppgen.inference.mcmc.mala import mala_kernel
from ppgen.inference.mcmc.native.executor import NativeExecutor
from ppgen.inference.mcmc.nuts import nuts_kernel
from ppgen.inference.mcmc.random_walk import random_walk_kernel
from tests.inference.mcmc.native.programs import compiled_steps

_DIMS = 3
_DTYPE = torch.float64
_LANES = 8


def _density() -> Density:
    """A correlated Gaussian that is cut off, so that some steps diverge."""
    precision = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.2]], dtype=_DTYPE)

    def single(z: Tensor) -> tuple[Tensor, Tensor]:
        g = precision @ z
        u = torch.where(z[0] < 3, 0.5 * (z @ g), torch.inf)
        return u[None], g[None]

    return Density(_DIMS, 1, single, torch.vmap(single))


def _params(scale: Tensor) -> dict[str, Tensor]:
    return {"scale": scale, "weights": torch.ones(1, dtype=_DTYPE), "num_steps": torch.tensor(5)}


def _noise(specs: dict[str, NoiseSpec], generator: torch.Generator) -> dict[str, Tensor]:
    draw = {"normal": torch.randn, "uniform": torch.rand}
    return {
        name: draw[spec.kind](_LANES, *spec.shape, generator=generator, dtype=_DTYPE)
        for name, spec in specs.items()
    }


KERNELS = {
    "hmc": (hmc_kernel(_DIMS), torch.tensor([1.0, 0.5, 2.0], dtype=_DTYPE)),
    "nuts": (nuts_kernel(_DIMS, 6), torch.tensor([1.0, 0.5, 2.0], dtype=_DTYPE)),
    "nuts_deep": (nuts_kernel(_DIMS, 10), torch.ones(_DIMS, dtype=_DTYPE)),
    "nuts_dense": (nuts_kernel(_DIMS, 3), torch.eye(_DIMS, dtype=_DTYPE) + 0.2 * torch.ones(3, 3).tril()),
    "mala": (mala_kernel(_DIMS), torch.ones(_DIMS, dtype=_DTYPE)),
    "random_walk": (random_walk_kernel(_DIMS), torch.ones(_DIMS, dtype=_DTYPE)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_steps_agree_with_the_kernel_as_it_is(name: str) -> None:
    """Both go on from the compiled state, so that what rounding changes does not grow."""
    kernel, scale = KERNELS[name]
    density, params, generator = _density(), _params(scale), torch.Generator().manual_seed(1)
    step = compiled_steps(kernel, density, _DTYPE, params)
    z = torch.randn(_LANES, _DIMS, generator=generator, dtype=_DTYPE)
    size = torch.linspace(0.15, 0.9, _LANES, dtype=_DTYPE)
    state = kernel.init(z, density.batched, size)
    advanced = 0
    for _ in range(4):
        noise = _noise(dict(kernel.begin_noise), generator)
        state = _same(step("begin", state, params, noise), kernel.begin(state, params, noise))
        while state["active"].any():
            noise = _noise(dict(kernel.advance_noise), generator)
            expected = kernel.advance(state, params, density.batched, noise)
            state = _same(step("advance", state, params, noise), expected)
            advanced += 1
        noise = _noise(dict(kernel.end_noise), generator)
        state = _same(step("end", state, params, noise), kernel.end(state, params, noise))
    assert advanced >= 4


def _same(found: State, expected: State) -> State:
    assert set(found) == set(expected)
    for name, value in expected.items():
        close = torch.allclose(found[name].double(), value.double(), rtol=1e-11, atol=1e-11)
        assert close, f"{name}: {found[name]} instead of {value}"
    return found


def test_the_check_rejects_a_kernel_that_differs() -> None:
    kernel, scale = KERNELS["nuts"]
    density, params, generator = _density(), _params(scale), torch.Generator().manual_seed(1)
    step = compiled_steps(kernel, density, _DTYPE, params)
    z = torch.randn(_LANES, _DIMS, generator=generator, dtype=_DTYPE)
    state = kernel.init(z, density.batched, torch.full((_LANES,), 0.3, dtype=_DTYPE))
    noise = _noise(dict(kernel.begin_noise), generator)
    state = kernel.begin(state, params, noise)
    noise = _noise(dict(kernel.advance_noise), generator)
    other = {key: value.roll(1) for key, value in noise.items()}
    with pytest.raises(AssertionError, match="direction|run_z|front|z:"):
        _same(step("advance", state, params, noise), kernel.advance(state, params, density.batched, other))


@pytest.mark.parametrize("dims", [2, 3], ids=["even", "odd"])
def test_draws_do_not_depend_on_how_transitions_are_spread_over_calls(dims: int) -> None:
    """Where a call does many transitions, chains do not wait for each other; the draws are the same."""

    def single(z: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * (z @ z)[None], z[None]

    density = Density(dims, 1, single, torch.vmap(single))
    num_chains, num = 21, 24
    params = {"scale": torch.ones(dims, dtype=_DTYPE), "weights": torch.ones(1, dtype=_DTYPE)}
    z = torch.randn(num_chains, dims, generator=torch.Generator().manual_seed(0), dtype=_DTYPE)
    kernel = nuts_kernel(dims, 6)
    record = ("z", "num_steps", "accept_prob", "diverging", "tree_depth")
    found = []
    for sizes in ([num], [1] * num, [5, 1, 18], [10, 14]):
        executor = NativeExecutor(kernel, density, num_chains=num_chains, seed=3, dtype=_DTYPE)
        state = executor.init(z, torch.linspace(0.1, 1.2, num_chains, dtype=_DTYPE))
        kept = []
        for size in sizes:
            state, records = executor.run(state, params, num=size, record=record)
            kept.append(records)
        ended = {name: state[name] for name in ("z", "u", "g", "num_steps")}
        found.append(({name: torch.cat([k[name] for k in kept]) for name in record}, ended, executor))
    steps = found[0][0]["num_steps"]
    assert len(steps.unique()) > 3  # so there is something to wait for
    for records, ended, executor in found[1:]:
        assert all(torch.equal(records[name], found[0][0][name]) for name in record)
        assert all(torch.equal(value, found[0][1][name]) for name, value in ended.items())
        assert torch.equal(executor.rng_state(), found[0][2].rng_state())
