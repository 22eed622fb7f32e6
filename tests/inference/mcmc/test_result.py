"""Posteriors: Pyro's face, and a fault each that must be found, beside a healthy twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.infer.mcmc.util as pyro_util
import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc import diagnostics, faults
from ppgen.inference.mcmc.result import Posterior


def healthy(num_chains: int = 4, num_draws: int = 500, seed: int = 0, **attributes: Any) -> Posterior:
    """Independent draws, as a perfect sampler would give them."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num_chains, num_draws, 4, generator=generator)
    ones = torch.ones(num_chains, num_draws)
    return Posterior(
        samples={"mu": z[..., 0], "theta": z[..., 1:], "scale": z[..., 0].exp()},
        statistics={
            "accept_prob": 0.8 * ones,
            "diverging": ones < 0,
            "num_steps": (7 * ones).long(),
            "energy": torch.randn(num_chains, num_draws, generator=generator),
            "tree_depth": (3 * ones).long(),
            "reached_max_depth": ones < 0,
        },
        unconstrained=z,
        attributes={"sampler": "NUTS"} | attributes,
    )


@pytest.mark.parametrize("num_chains", [1, 2, 4, 64, 512])
def test_a_healthy_run_is_ok(num_chains: int) -> None:
    posterior = healthy(num_chains, 40 if num_chains == 512 else 1000)
    if num_chains < 512:  # R-hat of 40 draws is above 1.01 where nothing is wrong
        assert posterior.warnings == []
        assert posterior.ok
    else:
        assert not any("stay where" in warning for warning in posterior.warnings)


def freeze(posterior: Posterior) -> None:
    for draws in (*posterior.samples.values(), posterior.unconstrained):
        assert draws is not None
        draws[1] = draws[1, :1]


def hardly_move(posterior: Posterior) -> None:
    for draws in (*posterior.samples.values(), posterior.unconstrained):
        assert draws is not None
        draws[1, 3:] = draws[1, 3:4]


def spoil(posterior: Posterior) -> None:
    posterior.samples["theta"][2, 7, 1] = float("nan")


def diverge(posterior: Posterior) -> None:
    posterior.statistics["diverging"][posterior.samples["mu"] < -2] = True


def saturate(posterior: Posterior) -> None:
    posterior.statistics["reached_max_depth"][:, ::10] = True


def walk(posterior: Posterior) -> None:
    posterior.statistics["energy"][2] = posterior.statistics["energy"][2].cumsum(0)


def move_apart(posterior: Posterior) -> None:
    posterior.samples["theta"][3, :, 2] += 8


def two_modes(posterior: Posterior) -> None:
    posterior.samples["theta"][::2, :, 0] += 10


def correlate(posterior: Posterior) -> None:
    """As slow as a funnel: an autocorrelation of 0.98."""
    x = posterior.samples["mu"]
    for s in range(1, x.shape[1]):
        x[:, s] = 0.98 * x[:, s - 1] + 0.2 * x[:, s]


def sink(posterior: Posterior) -> None:
    """A mode of lower density that looks alike in every coordinate."""
    lp = -0.5 * posterior.samples["theta"].square().sum(-1)
    lp[2] -= 30
    posterior.statistics["lp"] = lp


def interrupt(posterior: Posterior) -> None:
    posterior.attributes |= {"interrupted": True, "num_samples": 2000}


def restart(posterior: Posterior) -> None:
    posterior.attributes["restarted"] = [1, 3]


FAULTS: dict[str, tuple[Callable[[Posterior], None], str]] = {
    "frozen": (freeze, r"^chain 1 of 4 never moved: .*init_strategy"),
    "hardly_moving": (hardly_move, r"^chain 1 of 4 hardly moved"),
    "not_finite": (spoil, r"^site 'theta': 1 of 2000 draws are NaN or infinite \(in chain 2\)"),
    "divergences": (
        diverge,
        r"of 2000 transitions diverged.*mostly at small '(mu|scale)'.*target_accept_prob",
    ),
    "tree_depth": (saturate, r"^10% of the transitions .*max_tree_depth"),
    "energy": (walk, r"^E-BFMI is below 0.3 in chain 2 .*non-centred"),
    "apart": (move_apart, r"^chain 3 of 4 stay where the others do not go, most of all in 'theta\[2\]'"),
    "lower": (sink, r"^chain 2 of 4 stay where the others do not go, most of all in 'lp'"),
    "modes": (two_modes, r"^R-hat of 'theta\[0\]' is .*chains 0, 2 stand aside"),
    "correlated": (
        correlate,
        r"effective sample size of 'mu' is \d+, below 400 \(100 a chain\): draw \d+ times",
    ),
    "interrupted": (interrupt, r"^the run was interrupted after 500 of 2000 draws of each chain; extend"),
    "restarted": (restart, r"^chains 1, 3 of 4 were stuck in warm-up"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: str) -> None:
    import re

    plant, message = FAULTS[fault]
    assert healthy().ok
    posterior = healthy()
    plant(posterior)
    assert not posterior.ok
    found = [warning for warning in posterior.warnings if re.search(message, warning)]
    assert len(found) == 1, posterior.warnings


@pytest.mark.parametrize("planted", [True, False])
def test_one_stuck_chain_among_many_is_not_hidden(planted: bool) -> None:
    posterior = healthy(1024, 150)
    if planted:
        posterior.samples["theta"][17, :, 1] = 4 + 0.01 * posterior.samples["theta"][17, :, 1]
    assert diagnostics.rhat(posterior.samples["theta"]).max() < faults.MAX_RHAT
    assert posterior.ok is not planted
    if planted:
        assert (
            "chain 17 of 1024 stay where the others do not go, most of all in 'theta[1]'"
            in posterior.warnings[0]
        )


def test_heavy_tails_are_no_stuck_chains() -> None:
    posterior = healthy(64, 200)
    posterior.samples["heavy"] = torch.tan(
        torch.pi * (torch.rand(64, 200, generator=torch.Generator().manual_seed(1)) - 0.5)
    )
    assert posterior.ok


def test_many_chains_need_effective_draws_together() -> None:
    assert healthy(64, 100).ok
    few = healthy(8, 60)
    assert any("below 800 (100 a chain)" in warning for warning in few.warnings)
    short = healthy(64, 5)
    assert any("below 400 (in all)" in warning for warning in short.warnings) or not short.ok
    assert not healthy(64, 3).ok
    assert "no draws" in healthy(4, 0).warnings[0]


def test_constant_coordinates_are_no_fault() -> None:
    posterior = healthy()
    posterior.samples["factor"] = torch.cat([posterior.samples["theta"], torch.zeros(4, 500, 1)], -1)
    assert posterior.ok


def test_energies_without_trajectories_say_nothing() -> None:
    posterior = healthy(sampler="RandomWalk")
    walk(posterior)
    assert posterior.ok


@pytest.mark.parametrize("num_samples", [None, 7])
@pytest.mark.parametrize("group_by_chain", [False, True])
def test_samples_are_those_of_pyro(num_samples: int | None, group_by_chain: bool) -> None:
    posterior = healthy()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = pyro_util.select_samples(posterior.samples, num_samples, group_by_chain)
    found = posterior.get_samples(num_samples, group_by_chain, seed=3)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_diagnostics_have_the_form_of_pyro() -> None:
    posterior = healthy()
    posterior.statistics["diverging"][2, 5] = posterior.statistics["diverging"][2, 9] = True
    found = posterior.diagnostics()
    assert list(found["theta"])[:2] == ["n_eff", "ess_tail"]
    assert found["theta"]["r_hat"].shape == (3,)
    assert found["divergences"] == {"chain 0": [], "chain 1": [], "chain 2": [5, 9], "chain 3": []}
    assert found["acceptance rate"]["chain 3"] == pytest.approx(0.8)
    assert set(found["e_bfmi"]) == {f"chain {i}" for i in range(4)}
    assert posterior.divergences.tolist() == [[2, 5], [2, 9]]


def test_summary_is_a_table() -> None:
    posterior = healthy()
    summary = posterior.summary(prob=0.8)
    assert summary.rows == ["mu", "theta[0]", "theta[1]", "theta[2]", "scale"]
    table = summary.to_pandas()
    expected = ["mean", "sd", "median", "10.0%", "90.0%", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]
    assert list(table.columns) == expected
    np.testing.assert_allclose(table["mean"]["theta[1]"], posterior.samples["theta"][..., 1].double().mean())
    text = str(summary).splitlines()
    assert text[0] == "4 chains of 500 draws"
    assert text[1].split() == expected
    assert [line.split()[0] for line in text[2:]] == summary.rows
    with pytest.raises(ConfigError, match="prob"):
        posterior.summary(prob=2.0)


def test_long_summaries_are_cut_and_warnings_are_below() -> None:
    posterior = healthy()
    posterior.samples["many"] = torch.randn(4, 500, 30, 5, generator=torch.Generator().manual_seed(2))
    interrupt(posterior)
    text = str(posterior).splitlines()
    assert "... and 55 more rows" in text[-2]
    assert text[-1].startswith("warning: the run was interrupted")
    assert "many[0,4]" in posterior.summary().rows


def test_a_console_shows_a_line_and_not_the_tensors() -> None:
    posterior = healthy()
    assert repr(posterior) == "<Posterior: 4 chains of 500 draws of mu (), theta (3,), scale ()>"
    assert repr(posterior.summary()) == "<Summary of 5 rows: print it, or to_pandas()>"


def test_draws_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples"):
        _ = Posterior({}).num_chains


def test_effective_sample_size_counts_the_healthy_draws() -> None:
    draws: Tensor = healthy(4, 1000).samples["mu"]
    assert 3000 < diagnostics.ess(draws).item() < 5000
