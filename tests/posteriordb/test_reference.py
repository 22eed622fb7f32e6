"""Draws of the samplers agree with the reference draws of posteriordb: every mean and every sd."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from ppgen.errors import SamplingWarning
from ppgen.inference import MCMC, NUTS, ChEES
from ppgen.inference.mcmc import diagnostics
from tests.posteriordb.declare import Posterior, Reference
from tests.posteriordb.programs import POSTERIORS

SAMPLERS = {"NUTS": NUTS, "ChEES": ChEES}

# NUTS on all of them takes minutes.
_BOTH = {"arK-arK", "eight_schools-eight_schools_noncentered"}
_PAIRS = [
    pytest.param(
        posterior,
        sampler,
        id=f"{posterior.name}-{sampler}",
        marks=[pytest.mark.slow, pytest.mark.timeout(1800)]
        if posterior.slow or posterior.loops or (sampler == "NUTS" and posterior.name not in _BOTH)
        else (),
    )
    for posterior in POSTERIORS.values()
    for sampler in SAMPLERS
]

#: Effective draws of each mean and each sd before anything is compared.
ESS_FLOOR = 1000.0

#: Monte-Carlo standard errors, ours and the reference's combined.
MAX_ERRORS = 5.0


def assert_agrees(draws: Tensor, reference: Reference, ess_floor: float = ESS_FLOOR) -> None:
    """Assert that draws (C, S, P) have the reference's means and standard deviations.

    The Monte-Carlo errors of both count.
    """
    flat = draws.flatten(0, 1)
    _compare("mean", flat.mean(0), draws, reference.mean, reference.mcse_mean, reference.names, ess_floor)
    _compare("sd", flat.std(0), draws, reference.sd, reference.mcse_sd, reference.names, ess_floor)


def _compare(
    of: Literal["mean", "sd"],
    ours: Tensor,
    draws: Tensor,
    theirs: Tensor,
    their_error: Tensor,
    names: tuple[str, ...],
    ess_floor: float,
) -> None:
    ess = diagnostics.ess(draws, of)
    if not float(ess.min()) >= ess_floor:
        low = int(ess.argmin())
        raise AssertionError(
            f"{names[low]}: the {of} has an ESS of {float(ess[low]):.0f}, below {ess_floor:.0f}"
        )
    z = (ours - theirs) / (diagnostics.mcse(draws, of) ** 2 + their_error**2).sqrt()
    if not float(z.abs().max()) <= MAX_ERRORS:
        worst = int(z.abs().nan_to_num(nan=torch.inf).argmax())
        raise AssertionError(f"{names[worst]}: the {of} is off by {float(z[worst]):+.1f} standard errors")


def sample(posterior: Posterior, reference: Reference, sampler: str, seed: int = 1) -> Tensor:
    """Draws (C, S, P) of 64 chains, in the order of the reference."""
    arguments = posterior.arguments(reference.data, torch.float64)
    mcmc = MCMC(
        SAMPLERS[sampler](posterior.model, **posterior.sampler),
        **{"num_samples": 200, "warmup_steps": 300, "num_chains": 64, **posterior.mcmc},
        seed=seed,
        disable_progbar=True,
    )
    with warnings.catch_warnings():
        # What is asked of the draws is asked below.
        warnings.simplefilter("ignore", SamplingWarning)
        mcmc.run(*arguments)
    return posterior.flat(mcmc.get_samples(group_by_chain=True), batch_dims=2).double()


@pytest.mark.parametrize(("posterior", "sampler"), _PAIRS)
def test_samplers_agree_with_the_reference(posterior: Posterior, sampler: str, data_dir: Path) -> None:
    reference = Reference.load(data_dir / "posteriordb" / posterior.name)
    assert_agrees(sample(posterior, reference, sampler), reference)


def test_the_reference_agrees_with_itself_and_not_with_a_shift(data_dir: Path) -> None:
    reference = Reference.load(data_dir / "posteriordb" / "arK-arK")
    # Thinned draws are few: compared with an ESS floor of their own.
    assert_agrees(reference.draws, reference, ess_floor=500.0)
    with pytest.raises(AssertionError, match="mean is off"):
        assert_agrees(reference.draws + 0.3 * reference.sd, reference, ess_floor=500.0)
    with pytest.raises(AssertionError, match="sd is off"):
        assert_agrees(reference.mean + 1.3 * (reference.draws - reference.mean), reference, ess_floor=500.0)
    with pytest.raises(AssertionError, match="ESS"):
        assert_agrees(reference.draws[:, :10], reference)
