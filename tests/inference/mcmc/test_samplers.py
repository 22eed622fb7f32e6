"""Samplers as the user names them: Pyro's arguments, and what each stands for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pyro.infer
import pytest
import torch
from pyro.infer.mcmc.rwkernel import RandomWalkKernel as PyroRandomWalk

from ppgen.errors import ConfigError
from ppgen.inference import HMC, MALA, MCMC, NUTS, ChEES, RandomWalk
from ppgen.inference.mcmc import RandomWalkKernel
from ppgen.inference.mcmc.samplers import Sampler, rebuild_sampler

SAMPLERS = [NUTS, HMC, ChEES, MALA, RandomWalk]


def model() -> None: ...


def potential(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return (values["x"] ** 2).sum() / 2


def signature(cls: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults of the arguments, in order."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()]


# -- Pyro's arguments ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(NUTS, pyro.infer.NUTS), (HMC, pyro.infer.HMC)],
    ids=["NUTS", "HMC"],
)
def test_a_sampler_has_pyros_arguments(ours: type[Sampler], theirs: type) -> None:
    assert signature(ours) == signature(theirs)


def test_mcmc_has_pyros_arguments_first() -> None:
    ours, theirs = signature(MCMC), signature(pyro.infer.MCMC)
    assert ours[: len(theirs)] == theirs
    assert {kind for _, kind, _ in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}


def test_random_walk_has_pyros_arguments_and_name() -> None:
    assert RandomWalkKernel is RandomWalk
    ours, theirs = signature(RandomWalk), signature(PyroRandomWalk)
    # A potential_fn instead of a model: ours may be left out, as everywhere else.
    assert [name for name, _, _ in ours[:3]] == [name for name, _, _ in theirs]
    assert ours[1:3] == theirs[1:]


def test_what_only_concerns_pyros_machinery_is_accepted() -> None:
    options: dict[str, Any] = {"jit_compile": True, "jit_options": {"a": 1}, "ignore_jit_warnings": True}
    NUTS(model, use_multinomial_sampling=False, **options)
    HMC(model, **options)


# -- what a sampler stands for ------------------------------------------------------------


@pytest.mark.parametrize("cls", SAMPLERS)
def test_a_kernel_of_its_own(cls: type[Sampler]) -> None:
    sampler = cls(model)  # type: ignore[call-arg]
    assert sampler.kernel(3).begin_noise
    assert sampler.name == cls.__name__


def test_nuts_passes_its_depth_on() -> None:
    z = torch.zeros(2, 3)
    states = [
        NUTS(model, max_tree_depth=depth).kernel(3).init(z, lambda z: (z[:, :1], z[:, None]), z[:, 0])
        for depth in (3, 7)
    ]
    assert sum(v.numel() for v in states[0].values()) < sum(v.numel() for v in states[1].values())


@pytest.mark.parametrize(
    ("sampler", "target"),
    [(NUTS(), 0.8), (HMC(), 0.8), (ChEES(), 0.9), (MALA(), 0.574), (RandomWalk(), 0.234)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_default_targets(sampler: Sampler, target: float) -> None:
    assert sampler.tuning.target_accept_prob == target


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        ({}, 2 * math.pi),
        ({"num_steps": 4, "step_size": 0.25}, 1.0),
        ({"trajectory_length": 3.0, "num_steps": 4}, 3.0),
    ],
    ids=["default", "num_steps", "both"],
)
def test_trajectory_length_as_in_pyro(arguments: dict[str, Any], length: float) -> None:
    assert HMC(model, **arguments).tuning.trajectory_length == length
    assert pyro.infer.HMC(model, **arguments).trajectory_length == length


def test_step_sizes_of_hmc_are_bounded() -> None:
    tuning = HMC(model, min_stepsize=0.01, max_stepsize=2.0).tuning
    assert (tuning.min_step_size, tuning.max_step_size) == (0.01, 2.0)


@pytest.mark.parametrize(
    ("full_mass", "dense"),
    [(False, False), (True, True), ([], False), ([("a", "b")], True)],
    ids=["diagonal", "dense", "no blocks", "blocks"],
)
def test_full_mass(full_mass: Any, dense: bool) -> None:
    assert NUTS(model, full_mass=full_mass).tuning.full_mass is dense


def test_a_transition_needs_no_model() -> None:
    assert HMC(num_steps=10).num_steps == 10


@pytest.mark.parametrize("cls", SAMPLERS)
def test_a_sampler_is_rebuilt_from_its_arguments(cls: type[Sampler]) -> None:
    sampler = cls(model, adapt_mass_matrix=False, target_accept_prob=0.7, full_mass=[("a", "b")])  # type: ignore[call-arg]
    again = rebuild_sampler(sampler.name, sampler.arguments, potential, "potential_fn")
    assert again.arguments == sampler.arguments
    assert again.tuning == sampler.tuning
    assert again.potential_fn is potential


# -- bad arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (NUTS, {"model": model, "potential_fn": potential}, "model, potential_fn: NUTS takes one of them"),
        (NUTS, {"model": 3}, "model: expected a function, got int"),
        (NUTS, {"potential_fn": "x"}, "potential_fn: expected a function, got str"),
        (NUTS, {"step_size": 0}, "step_size: expected a positive number, got 0"),
        (NUTS, {"step_size": math.inf}, "step_size: expected a positive number, got inf"),
        (NUTS, {"target_accept_prob": 1.0}, "target_accept_prob: expected a number between 0 and 1"),
        (NUTS, {"target_accept_prob": -0.1}, "target_accept_prob: expected a positive number"),
        (NUTS, {"max_tree_depth": 0}, "max_tree_depth: expected an integer of 1 or more"),
        (NUTS, {"max_tree_depth": 40}, "max_tree_depth: expected at most 20, got 40"),
        (NUTS, {"max_plate_nesting": -1}, "max_plate_nesting: expected an integer of 0 or more"),
        (NUTS, {"init_strategy": 3}, "init_strategy: expected a strategy"),
        (NUTS, {"full_mass": ["a"]}, "full_mass: expected True, False or a list of tuples"),
        (HMC, {"num_steps": 0}, "num_steps: expected an integer of 1 or more"),
        (HMC, {"num_steps": 2.5}, "num_steps: expected an integer of 1 or more"),
        (HMC, {"trajectory_length": -1.0}, "trajectory_length: expected a positive number"),
        (HMC, {"min_stepsize": 0.0}, "min_stepsize: expected a positive number"),
        (RandomWalk, {"init_step_size": -1.0}, "init_step_size: expected a positive number"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_bad_arguments(cls: type[Sampler], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        cls(**arguments)


def test_an_unknown_sampler_is_not_rebuilt() -> None:
    with pytest.raises(ConfigError, match="'SGLD'"):
        rebuild_sampler("SGLD", {}, model, "model")
