from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc import nuts
from ppgen.inference.mcmc.executor import EagerExecutor
from ppgen.inference.mcmc.hmc import leapfrog
from ppgen.inference.mcmc.kernel import Energy, Kernel, Noise, Params, State
from ppgen.inference.mcmc.nuts import nuts_kernel
from ppgen.testing.statistics import assert_same_distribution
from tests.inference.mcmc.exact import (
    DOUBLE,
    Gaussian,
    LogGamma,
    correlated,
    generator,
    make_params,
    run,
    skewed,
)

_CHAINS, _TRANSITIONS = 4000, 5
_LOWER = torch.tensor([[0.7, 0, 0], [0.4, 0.8, 0], [-1.0, 0.3, 2.0]], dtype=DOUBLE)


def _check_invariance(
    kernel: Kernel, energy: Energy, target: Gaussian | LogGamma, step_size: float, params: Params
) -> None:
    """Chains that start at exact draws must stay draws; many chains, few transitions."""
    state, _ = run(
        kernel,
        energy,
        target.draw(_CHAINS, 10),
        step_size=step_size,
        num=_TRANSITIONS,
        params=params,
    )
    assert_same_distribution(state["z"], target.draw(4 * _CHAINS, 20))


@pytest.mark.parametrize("step_size", [0.2, 0.5])
@pytest.mark.parametrize("target", [correlated(), skewed()], ids=["gaussian", "skewed"])
def test_exact_draws_stay_exact(target: Gaussian | LogGamma, step_size: float) -> None:
    _check_invariance(nuts_kernel(3, 6), target, target, step_size, make_params(3))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_exact_draws_stay_exact_where_trees_are_cut_off(depth: int) -> None:
    target = skewed()
    _check_invariance(nuts_kernel(3, depth), target, target, 0.4, make_params(3))


def test_exact_draws_stay_exact_with_a_dense_scale_and_weighted_parts() -> None:
    target = correlated()

    def halves(z: Tensor) -> tuple[Tensor, Tensor]:
        u, g = target(z)
        return torch.cat([u, 2 * u], 1), torch.cat([g, 2 * g], 1)

    params: Params = {"scale": _LOWER, "weights": torch.tensor([0.4, 0.3], dtype=DOUBLE)}
    _check_invariance(nuts_kernel(3, 6), halves, target, 0.5, params)


def _biased_acceptance(kernel: Kernel) -> Kernel:
    """The newest point of a run is always taken."""

    def advance(state: State, params: Params, energy: Energy, noise: Noise) -> State:
        return kernel.advance(state, params, energy, noise | {"step": torch.zeros_like(noise["step"])})

    return replace(kernel, advance=advance)


def _always_joins(kernel: Kernel) -> Kernel:
    """The point of the newest run is always taken, whatever its weight."""

    def advance(state: State, params: Params, energy: Energy, noise: Noise) -> State:
        half = torch.where(noise["run"] < 0.5, 0.0, 0.5).to(noise["run"])
        return kernel.advance(state, params, energy, noise | {"run": half})

    return replace(kernel, advance=advance)


_DEFECTS: dict[str, tuple[Callable[[Kernel], Kernel], Gaussian | LogGamma, Gaussian | LogGamma]] = {
    "biased_acceptance": (_biased_acceptance, correlated(), correlated()),
    "biased_run": (_always_joins, correlated(), correlated()),
    "missing_jacobian": (lambda kernel: kernel, skewed(without_jacobian=True), skewed()),
}


@pytest.mark.parametrize("defect", list(_DEFECTS))
def test_the_check_rejects(defect: str) -> None:
    spoil, energy, target = _DEFECTS[defect]
    with pytest.raises(AssertionError, match="Kolmogorov"):
        _check_invariance(spoil(nuts_kernel(3, 6)), energy, target, 0.55, make_params(3))


def test_the_check_rejects_runs_that_are_not_checked_within(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trajectory that could not have grown from each of its points is not reversible."""
    blocks = nuts._blocks

    def unchecked(state: State, index: Tensor, p: Tensor, rho: Tensor) -> tuple[State, Tensor, Tensor]:
        found, turned, across = blocks(state, index, p, rho)
        return found, torch.zeros_like(turned), across

    monkeypatch.setattr(nuts, "_blocks", unchecked)
    with pytest.raises(AssertionError, match="Kolmogorov"):
        _check_invariance(nuts_kernel(3, 6), correlated(), correlated(), 0.45, make_params(3))


def test_statistics_agree_with_each_other() -> None:
    depth = 4
    state, kept = run(
        nuts_kernel(3, depth),
        correlated(),
        correlated().draw(300, 1),
        step_size=0.2,
        num=5,
        record=("num_steps", "tree_depth", "reached_max_depth", "accept_prob", "energy", "u", "diverging"),
    )
    steps, depths = kept["num_steps"], kept["tree_depth"]
    # Completed doublings took 2^depth - 1 steps; one that was given up, at most 2^depth more.
    assert (steps >= 2**depths - 1).all()
    assert (steps <= 2 ** (depths + 1) - 1).all()
    assert torch.equal(kept["reached_max_depth"], depths == depth)
    assert (steps[kept["reached_max_depth"]] == 2**depth - 1).all()
    assert kept["reached_max_depth"].any()
    assert not kept["reached_max_depth"].all()
    assert ((kept["accept_prob"] > 0) & (kept["accept_prob"] <= 1)).all()
    assert (kept["energy"] >= kept["u"][..., 0]).all()  # the kinetic energy is positive
    assert not kept["diverging"].any()
    assert not state["active"].any()


def test_the_state_belongs_to_its_point() -> None:
    target = skewed()
    state, _ = run(nuts_kernel(3, 6), target, target.draw(200, 1), step_size=0.5, num=3)
    u, g = target(state["z"])
    torch.testing.assert_close(state["u"], u)
    torch.testing.assert_close(state["g"], g)


def test_divergences_end_a_tree_and_leave_the_chain() -> None:
    target = correlated()
    z = target.draw(50, 1)
    state, _ = run(nuts_kernel(3, 6), target, z, step_size=1e4, num=1)
    assert state["diverging"].all()
    assert (state["num_steps"] == 1).all()
    assert torch.equal(state["z"], z)
    assert (state["accept_prob"] == 0).all()


def test_a_density_that_ends_diverges_there() -> None:
    def half_line(z: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.where(z > 0, z, torch.nan)
        return u, torch.where(z > 0, 1.0, torch.nan)[:, None].to(z)

    z = torch.full((100, 1), 1.0, dtype=DOUBLE)
    state, kept = run(nuts_kernel(1, 6), half_line, z, step_size=0.3, num=20, record=("z", "diverging"))
    assert (kept["z"] > 0).all()
    assert kept["diverging"].any()
    assert torch.isfinite(state["energy"]).all()


def test_inactive_chains_do_not_change() -> None:
    kernel, target = nuts_kernel(3, 6), correlated()
    executor = EagerExecutor(kernel, target, seed=0)
    params = make_params(3)
    state = executor.init(target.draw(100, 1), torch.full((100,), 0.4, dtype=DOUBLE))
    noise = {
        "momentum": torch.randn(100, 3, generator=generator(1), dtype=DOUBLE),
        "direction": torch.rand(100, generator=generator(2), dtype=DOUBLE),
    }
    state = kernel.begin(state, params, noise)
    seen = 0
    for step in range(20):
        uniform = torch.rand(2, 100, generator=generator(3 + step), dtype=DOUBLE)
        after = kernel.advance(state, params, target, {"step": uniform[0], "run": uniform[1]})
        idle = ~state["active"]
        seen += int(idle.sum())
        for name, value in after.items():
            assert torch.equal(value[idle], state[name][idle]), name
        state = after
    assert seen > 0


def test_entries_keep_shape_and_type() -> None:
    kernel, target = nuts_kernel(3, 5), correlated()
    z = target.draw(10, 1)
    first = kernel.init(z, target, torch.full((10,), 0.4, dtype=DOUBLE))
    last, _ = run(kernel, target, z, step_size=0.4, num=1)
    assert {n: (v.shape, v.dtype) for n, v in first.items()} == {
        n: (v.shape, v.dtype) for n, v in last.items()
    }
    assert set(kernel.statistics) <= set(first)


def _turns(p: list[Tensor]) -> bool:
    rho = torch.stack(p).sum(0)
    return bool((rho @ p[0] <= 0) | (rho @ p[-1] <= 0))


def _block_turns(p: list[Tensor]) -> bool:
    """The criterion in its recursive form, of a block and of all blocks within."""
    half = len(p) // 2
    if half == 0:
        return False
    return (
        _block_turns(p[:half])
        or _block_turns(p[half:])
        or _turns(p)
        or _turns(p[: half + 1])
        or _turns(p[half - 1 :])
    )


def test_blocks_turn_where_recursion_says_so() -> None:
    """The masks of a run of 16 steps against recursion over its momenta, for the steps of random walks."""
    levels, length, found = 4, 16, 0
    for seed in range(200):
        noise = torch.randn(length, 2, generator=generator(seed), dtype=DOUBLE)
        p = list((noise * 0.35).cumsum(0) + torch.tensor([1.5, 0.0], dtype=DOUBLE))
        zeros = torch.zeros(1, levels, 2, dtype=DOUBLE)
        state = {"first": zeros, "last": zeros, "before": zeros, "active": torch.tensor([True])}
        state |= {"run_size": torch.tensor([length]), "front_p": torch.zeros(1, 2, dtype=DOUBLE)}
        turned = False
        for i in range(length):
            rho = torch.stack(p[: i + 1]).sum(0)[None]
            blocks, now, _ = nuts._blocks(state, torch.tensor([i]), p[i][None], rho)
            state |= blocks | {"front_p": p[i][None]}
            turned = turned or bool(now)
        assert turned == _block_turns(p)
        found += turned
    assert 20 < found < 180


def test_a_trajectory_on_a_circle_ends_with_the_doubling_that_turns() -> None:
    """Before its last doubling the path was at most one period long, and then it takes one run more."""
    target = Gaussian(torch.eye(2, dtype=DOUBLE))
    step = 0.1
    _, kept = run(
        nuts_kernel(2, 10), target, target.draw(500, 1), step_size=step, num=1, record=("num_steps",)
    )
    length = kept["num_steps"] * step
    assert (length < 4 * torch.pi).all()


def test_leapfrog_is_reversible_under_a_dense_scale() -> None:
    target = skewed()
    z = target.draw(50, 1)
    momentum = torch.randn(50, 3, generator=generator(2), dtype=DOUBLE)
    step = torch.full((50,), 0.3, dtype=DOUBLE)
    params = make_params(3) | {"scale": _LOWER}
    there = leapfrog(z, momentum, target(z)[1], step, params, target)
    back = leapfrog(there[0], there[1], there[3], -step, params, target)
    torch.testing.assert_close(back[0], z)
    torch.testing.assert_close(back[1], momentum)


@pytest.mark.parametrize("depth", [0, 21])
def test_depth_out_of_range(depth: int) -> None:
    with pytest.raises(ConfigError, match="max_tree_depth"):
        nuts_kernel(2, depth)
