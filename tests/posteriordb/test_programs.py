r"""The programs have the densities of the Stan programs: their scores vanish on the reference draws.

For draws of the density :math:`\pi` on :math:`R^D` and its score :math:`s = \nabla \log \pi`,
:math:`E[s_i] = 0` and :math:`E[(z_i - c_i) s_i] = -1` (integration by parts). Any wrong prior, missing
Jacobian or wrong datum shows as a score that does not; no sampler is needed.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppgen.inference.mcmc.potential import Potential
from ppgen.inference.mcmc.transforms import bijection
from ppgen.testing import assert_close_to
from tests.posteriordb.declare import Posterior, Reference
from tests.posteriordb.programs import POSTERIORS

# Programs with loops in time are slow to trace.
_MANY = [pytest.param(p, id=p.name, marks=pytest.mark.slow if p.slow else ()) for p in POSTERIORS.values()]


def assert_score_vanishes(z: Tensor, score: Tensor) -> None:
    """Both identities, on draws (N, D)."""
    identities = torch.cat([score, (z - z.mean(0)) * score + 1.0], 1)
    assert_close_to(identities.mean(0), 0.0, identities.std(0) / math.sqrt(len(z)), "score identities")


def score_on_reference(posterior: Posterior, folder: Path, num: int) -> tuple[Potential, Tensor, Tensor]:
    """The potential, ``num`` reference draws in its coordinates (N, D), and the score there (N, D)."""
    reference = Reference.load(folder / posterior.name)
    potential = Potential(
        posterior.model, posterior.arguments(reference.data, torch.float64), dtype=torch.float64
    )
    values = posterior.from_reference(reference.values())
    values = {site.name: values[site.name][:: len(values[site.name]) // num] for site in potential.sites}
    if any(site.depends for site in potential.sites):
        rows = [{name: v[i] for name, v in values.items()} for i in range(num)]
        z = torch.stack([potential.unconstrain(row) for row in rows])
    else:
        pieces = [bijection(s.support, s.name).inv(values[s.name]) for s in potential.sites]
        z = torch.cat([piece.reshape(num, -1) for piece in pieces], 1)
    return potential, z, -potential.density().batched(z)[1].sum(1)


@pytest.mark.parametrize("posterior", _MANY)
def test_scores_vanish_on_reference_draws(posterior: Posterior, data_dir: Path) -> None:
    _, z, score = score_on_reference(
        posterior, data_dir / "posteriordb", num=100 if posterior.loops else 1000
    )
    assert_score_vanishes(z, score)


@pytest.mark.parametrize("name", ["gp_pois_regr-gp_regr", "eight_schools-eight_schools_noncentered"])
def test_a_missing_jacobian_is_rejected(name: str, data_dir: Path) -> None:
    potential, z, score = score_on_reference(POSTERIORS[name], data_dir / "posteriordb", num=1000)
    (scale,) = (site.slice for site in potential.sites if site.name in ("sigma", "tau"))
    wrong = score.clone()
    wrong[:, scale] -= 1.0  # what the logarithm's Jacobian adds to the score
    with pytest.raises(AssertionError, match="score identities"):
        assert_score_vanishes(z, wrong)


def test_another_prior_is_rejected(data_dir: Path) -> None:
    potential, z, score = score_on_reference(
        POSTERIORS["eight_schools-eight_schools_noncentered"], data_dir / "posteriordb", num=1000
    )
    (mu,) = (site.slice for site in potential.sites if site.name == "mu")
    wrong = score.clone()
    wrong[:, mu] += z[:, mu] / 5**2 - z[:, mu] / 6**2  # Normal(0, 6) instead of Normal(0, 5)
    with pytest.raises(AssertionError, match="score identities"):
        assert_score_vanishes(z, wrong)
