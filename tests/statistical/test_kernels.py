"""Every kernel leaves posteriors invariant and draws from them; planted defects are rejected."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import Tensor

from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.executor import Executor
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.kernel import Kernel, Params
from ppgen.inference.mcmc.mala import mala_kernel
from ppgen.inference.mcmc.native.executor import NativeExecutor
from ppgen.inference.mcmc.nuts import nuts_kernel
from ppgen.inference.mcmc.random_walk import random_walk_kernel
from ppgen.testing.calibration import Calibration, sbc
from ppgen.testing.geweke import assert_leaves_invariant, assert_same_scores
from ppgen.testing.joint import Joint, MakeExecutor, eager, run_on_parameters
from tests.inference.mcmc.exact import run, skewed
from tests.statistical.joints import (
    accepting_runs_squared,
    accepting_squared,
    constrained_joint,
    drifting,
    one_sided,
    turning_at_swaps,
)

MakeKernel = Callable[[int], Kernel]
Change = Callable[[Kernel], Kernel]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def native(kernel: Kernel, density: Density, start: Tensor, seed: int) -> Executor:
    return NativeExecutor(kernel, density, num_chains=len(start), seed=seed, dtype=start.dtype)


@dataclass(frozen=True)
class Case:
    """A kernel, how to run it on :func:`constrained_joint`, and what breaks it."""

    make: MakeKernel
    step_size: float  # proposals are rejected now and then: what follows from acceptance is tested
    sure_step_size: float  # mixes well for all data
    between: int  # transitions between two draws that count as independent
    num_steps: tuple[int, ...] = ()  # of a transition, in turn
    num_transitions: int = 10  # between two draws of the data
    defects: Mapping[str, Change] = field(default_factory=dict)

    def schedule(self, num: int) -> Params | None:
        if not self.num_steps:
            return None
        return {"num_steps": torch.tensor([self.num_steps[t % len(self.num_steps)] for t in range(num)])}


_METROPOLIS = {"reversal": one_sided, "acceptance": accepting_squared}

KERNELS = {
    "HMC": Case(hmc_kernel, 0.4, 0.15, between=8, num_steps=(3,), defects=_METROPOLIS),
    # Trajectory lengths that change from one transition to the next, as ChEES jitters them.
    "ChEES": Case(hmc_kernel, 0.4, 0.15, between=8, num_steps=(2, 5, 1, 4, 3), defects=_METROPOLIS),
    "NUTS": Case(
        partial(nuts_kernel, max_tree_depth=3),
        0.4,
        0.2,
        between=2,
        num_transitions=4,
        defects={"reversal": one_sided, "acceptance": accepting_runs_squared},
    ),
    "MALA": Case(mala_kernel, 0.4, 0.2, between=40, num_steps=(1,), defects=_METROPOLIS),
    "random walk": Case(
        random_walk_kernel,
        0.5,
        0.3,
        between=40,
        num_steps=(1,),
        defects={"reversal": drifting, "acceptance": accepting_squared},
    ),
}

_DEFECTS = [(name, defect) for name, case in KERNELS.items() for defect in case.defects]
_SLOWER = {"ChEES", "MALA", "random walk"}


def _some_slow(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.slow if name in _SLOWER else ()) for name in names]


def check_invariance(
    case: Case, joint: Joint, change: Change = lambda kernel: kernel, make_executor: MakeExecutor = eager
) -> None:
    assert_leaves_invariant(
        lambda num_dims: change(case.make(num_dims)),
        joint,
        step_size=case.step_size,
        num_transitions=case.num_transitions,
        schedule=case.schedule(case.num_transitions),
        params={"num_steps": torch.tensor(1)} if case.num_steps else None,
        make_executor=make_executor,
    )


def calibrate(case: Case, joint: Joint, make_executor: MakeExecutor = eager) -> Calibration:
    """Chains start at draws of the prior that know nothing of the data."""
    num_draws, warmup = 15, 10 * case.between
    num = warmup + num_draws * case.between

    def simulate(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        v = joint.draw(num, generator)
        return v[:, joint.moves], v

    def posterior_draws(v: Tensor, generator: torch.Generator) -> Tensor:
        points = run_on_parameters(
            case.make,
            joint,
            torch.where(joint.moves, joint.draw(len(v), generator), v),
            step_size=case.sure_step_size,
            schedule=case.schedule(num),
            params={"num_steps": torch.tensor(1)} if case.num_steps else None,
            num=num,
            record=True,
            make_executor=make_executor,
        )
        return points[warmup + case.between - 1 :: case.between, :, joint.moves].transpose(0, 1)

    return sbc(simulate, posterior_draws, names=("mu", "log sigma", "logit p"))


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_leave_the_posterior_invariant(name: str) -> None:
    check_invariance(KERNELS[name], constrained_joint())


@pytest.mark.parametrize(("name", "defect"), _DEFECTS)
def test_broken_kernels_are_rejected(name: str, defect: str) -> None:
    with pytest.raises(AssertionError):
        check_invariance(KERNELS[name], constrained_joint(), KERNELS[name].defects[defect])


@pytest.mark.parametrize("name", KERNELS)
def test_a_missing_jacobian_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_invariance(KERNELS[name], constrained_joint(jacobian=False))


@pytest.mark.parametrize("change", [lambda kernel: kernel, turning_at_swaps], ids=["right", "turning"])
def test_nuts_keeps_its_momentum_where_it_goes_on_at_the_other_end(change: Change) -> None:
    """A trajectory that retraces its way is symmetric but for the weights of its points.

    So the defect shows only where these differ much: long steps on a skewed density, short trees, many
    chains. Here the mean energy is off by more than ten standard errors, and with the step sizes of the other
    tests by none.
    """
    target, num = skewed(), 32_000
    state, _ = run(change(nuts_kernel(3, 3)), target, target.draw(num, 1), step_size=0.9, num=10)

    def views(z: Tensor) -> Tensor:
        return torch.cat([z, target(z)[0]], 1)

    found, fresh, yardstick = map(views, (state["z"], target.draw(4 * num, 2), target.draw(4 * num, 3)))
    if change is turning_at_swaps:
        with pytest.raises(AssertionError, match="means and second moments"):
            assert_same_scores(found, fresh, yardstick)
    else:
        assert_same_scores(found, fresh, yardstick)


@pytest.mark.parametrize("name", _some_slow(list(KERNELS)))
def test_kernels_are_calibrated(name: str) -> None:
    calibrate(KERNELS[name], constrained_joint()).check()


@pytest.mark.parametrize("name", _some_slow(list(KERNELS)))
def test_a_missing_jacobian_is_not_calibrated(name: str) -> None:
    with pytest.raises(AssertionError, match="not calibrated"):
        calibrate(KERNELS[name], constrained_joint(jacobian=False)).check()


@needs_compiler
@pytest.mark.parametrize("name", _some_slow(list(KERNELS)))
def test_compiled_kernels_leave_the_posterior_invariant(name: str) -> None:
    check_invariance(KERNELS[name], constrained_joint(), make_executor=native)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("name", "defect"), _DEFECTS)
def test_broken_compiled_kernels_are_rejected(name: str, defect: str) -> None:
    with pytest.raises(AssertionError):
        check_invariance(KERNELS[name], constrained_joint(), KERNELS[name].defects[defect], native)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_kernels_are_calibrated(name: str) -> None:
    calibrate(KERNELS[name], constrained_joint(), native).check()
    with pytest.raises(AssertionError, match="not calibrated"):
        calibrate(KERNELS[name], constrained_joint(jacobian=False), native).check()
