"""Bad input to MCMC: each fault is named, with what to do."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

from ppgen.errors import (
    ConfigError,
    DataError,
    DeviceError,
    PpgenError,
    SamplingError,
    SamplingWarning,
    ShapeError,
)
from ppgen.inference import HMC, MALA, MCMC, NUTS
from ppgen.inference.mcmc.target import split_energy

Y = torch.tensor([1.0, 0.0, 1.0, 1.0])
quiet: dict[str, Any] = {"disable_progbar": True, "compile": False, "seed": 0}


def model(y: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def potential(values: dict[str, Tensor]) -> Tensor:
    return (values["x"] ** 2).sum() / 2


def run(what: Any, *args: Any, num: int = 5, **options: Any) -> MCMC:
    mcmc = MCMC(HMC(what, num_steps=2), num, **quiet | options)
    mcmc.run(*args)
    return mcmc


# -- arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples: expected an integer of 1 or more, got 0"),
        ({"num_samples": 2.0}, "num_samples: expected an integer of 1 or more, got 2.0"),
        ({"num_chains": 0}, "num_chains: expected an integer of 1 or more, got 0"),
        ({"warmup_steps": -1}, "warmup_steps: expected an integer of 0 or more, got -1"),
        ({"seed": -1}, "seed: expected an integer of 0 or more, got -1"),
        ({"seed": 2**63}, "seed: expected an integer from 0 to"),
        ({"dtype": torch.float16}, "dtype: expected torch.float32, torch.float64 or None"),
        ({"compile": "maybe"}, "compile: expected 'auto'"),
        ({"hook_fn": 3}, "hook_fn: expected a function, got int"),
        ({"save_params": "p"}, "save_params: expected a list of site names, got the string 'p'"),
        ({"transforms": {}}, "transforms: draws of a model come back in the supports"),
        ({"checkpoint_seconds": 0}, "checkpoint_seconds: expected a positive number"),
        ({"initial_params": [torch.zeros(2)]}, "initial_params: expected a dictionary of unconstrained"),
        ({"kernel": model}, "kernel: expected a sampler of ppgen.inference, got function"),
        ({"kernel": pyro.infer.NUTS(model)}, "got NUTS; import NUTS from ppgen.inference"),
        ({"kernel": NUTS()}, "kernel: NUTS has neither a model nor a potential_fn"),
        ({"kernel": NUTS(potential_fn=potential)}, "initial_params: a potential_fn needs them"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"kernel": NUTS(model), "num_samples": 5, **quiet, **arguments}
    with pytest.raises(ConfigError, match=message):
        MCMC(**given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="device: 'cuda'"):
        MCMC(NUTS(model), 5, device="cuda")


@pytest.mark.parametrize("method", ["get_samples", "diagnostics", "summary", "to_arviz"])
def test_results_before_run(method: str) -> None:
    with pytest.raises(ConfigError, match=r"call run\(\.\.\.\) first"):
        getattr(MCMC(NUTS(model), 5), method)()


def test_numbers_of_numpy_are_taken() -> None:
    two: Any = np.int64(2)
    mcmc = MCMC(NUTS(model, max_tree_depth=two), 10 * two, 10 * two, num_chains=two, **quiet)
    mcmc.run(Y)
    assert mcmc.get_samples(group_by_chain=True)["p"].shape == (2, 20)
    assert json.dumps(mcmc.kernel.arguments)


@pytest.mark.parametrize("method", ["diagnostics", "summary", "to_arviz"])
def test_results_of_a_run_that_ended_in_warm_up(method: str) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    mcmc = MCMC(HMC(model, num_steps=2), 5, hook_fn=stop, **quiet)
    with pytest.warns(SamplingWarning, match="interrupted in warm-up"):
        mcmc.run(Y)
    assert mcmc.get_samples()["p"].shape == (0,)
    assert "0 draws" in str(mcmc.posterior)
    assert not mcmc.ok
    with pytest.raises(ConfigError, match="no draws yet"):
        getattr(mcmc, method)()


def test_a_site_to_save_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"save_params: no latent site is called \['q'\].*\['p'\]"):
        run(model, Y, save_params=["q"])


def test_an_unknown_init_strategy() -> None:
    mcmc = MCMC(NUTS(model, init_strategy="nowhere"), 5, **quiet)
    with pytest.raises(ConfigError, match="init_strategy: .*'nowhere'"):
        mcmc.run(Y)


@pytest.mark.parametrize(
    ("given", "num_chains", "kind", "message"),
    [
        ({"p": torch.zeros(3)}, 2, ShapeError, "'p' needs 2 as its first dimension.*\\(3,\\)"),
        ({"p": torch.zeros(2, 3)}, 2, ShapeError, "'p' needs the unconstrained shape \\(\\).*\\(2, 3\\)"),
        ({"q": torch.zeros(2)}, 2, ConfigError, "'q'"),
        ({"p": torch.full((2,), math.nan)}, 2, SamplingError, "initial_params"),
    ],
    ids=["chains", "shape", "name", "not finite"],
)
def test_bad_initial_params(
    given: dict[str, Tensor], num_chains: int, kind: type[PpgenError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(model, Y, initial_params=given, num_chains=num_chains)


def test_arguments_for_a_potential_function() -> None:
    mcmc = MCMC(NUTS(potential_fn=potential), 5, initial_params={"x": torch.zeros(2)}, **quiet)
    with pytest.raises(ConfigError, match="run: a potential_fn takes no arguments"):
        mcmc.run(Y)


# -- data and models ----------------------------------------------------------------------


def test_nan_data_are_counted_and_the_site_is_named() -> None:
    with pytest.raises(DataError, match="'y'.*2"):
        run(model, torch.tensor([1.0, math.nan, 0.0, math.nan]))


def test_data_out_of_support() -> None:
    with pytest.raises(DataError, match="'y'"):
        run(model, torch.tensor([1.0, 0.0, 3.0]))


def test_no_latent_sites() -> None:
    with pytest.raises(ConfigError, match="no latent|nothing to sample"):
        run(lambda y: pyro.sample("y", dist.Normal(0.0, 1.0), obs=y), torch.tensor(1.0))


def test_all_latents_discrete() -> None:
    with pytest.raises(ConfigError, match="discrete"):
        run(lambda: pyro.sample("k", dist.Bernoulli(0.5)))


def test_no_finite_start_names_the_site() -> None:
    def nowhere(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        pyro.factor("wall", torch.where(x < 1e6, -math.inf, 0.0))

    with pytest.raises(SamplingError, match="'wall'"):
        run(nowhere, torch.tensor(1.0))


# -- chains -------------------------------------------------------------------------------


def test_a_step_size_that_collapses() -> None:
    def jagged(values: dict[str, Tensor]) -> Tensor:
        # Finite only at the start: every proposal is rejected, whatever the step size.
        return torch.where(values["x"] == 0, 0.0, math.inf).sum() + 0 * values["x"].sum()

    mcmc = MCMC(MALA(potential_fn=jagged), 5, 100, initial_params={"x": torch.zeros(())}, **quiet)
    with pytest.raises(SamplingError, match="step_size: it fell to"):
        mcmc.run()


def test_chains_that_never_move() -> None:
    steep = HMC(model, step_size=1e4, num_steps=3, adapt_step_size=False, adapt_mass_matrix=False)
    mcmc = MCMC(steep, 60, 0, num_chains=3, **quiet)
    with pytest.raises(SamplingError, match=r"none of the 3 chains moved in .* step size of 1e\+04"):
        mcmc.run(torch.ones(4000))


def test_one_chain_that_never_moves_is_not_hidden() -> None:
    def trap(values: dict[str, Tensor]) -> Tensor:
        x = values["x"]
        return torch.where(x > 50, 1e6 * (x - 100) ** 2, 0.5 * x**2)

    start = torch.tensor([0.0, 0.5, -0.5, 1.0, 100.0])
    mcmc = MCMC(
        HMC(potential_fn=trap, step_size=0.5, num_steps=3, adapt_step_size=False, adapt_mass_matrix=False),
        60,
        0,
        initial_params={"x": start},
        num_chains=5,
        **quiet,
    )
    mcmc.run()
    assert not mcmc.ok
    assert any("4" in w and "never moved" in w for w in mcmc.posterior.warnings)


# -- memory -------------------------------------------------------------------------------


def test_draws_that_do_not_fit_fail_before_the_first() -> None:
    mcmc = MCMC(HMC(model), 10**12, 0, **quiet)
    with pytest.raises(SamplingError, match=r"out of memory: 1000000000000 draws of 1 chains .* GiB"):
        mcmc.run(Y)


def test_a_single_chain_that_does_not_fit() -> None:
    def energy(z: Tensor) -> tuple[Tensor, Tensor]:
        raise MemoryError

    with pytest.raises(SamplingError, match="out of memory on cpu with one chain at a time"):
        split_energy(energy, 4)(torch.zeros(9, 2))


def test_other_errors_of_the_density_are_its_own() -> None:
    def energy(z: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        split_energy(energy, 4)(torch.zeros(9, 2))
