from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc.adaptation.mass import Moments
from ppgen.inference.mcmc.adaptation.step_size import DualAveraging, Search
from ppgen.inference.mcmc.adaptation.stuck import restart, stuck_chains
from ppgen.inference.mcmc.adaptation.trajectory import (
    MOST_STEPS,
    ChEES,
    chees_gradients,
    halton,
    num_steps,
    whitened,
)
from ppgen.inference.mcmc.adaptation.tuning import Tuning
from ppgen.inference.mcmc.adaptation.windows import windows
from ppgen.testing.statistics import assert_close_to
from tests.inference.mcmc.exact import DOUBLE, correlated, generator

_CPU = torch.device("cpu")


class TestWindows:
    def test_of_one_chain_are_those_of_stan(self) -> None:
        found = windows(1000, 1, adapt_mass=True)
        assert [w.stop for w in found] == [75, 100, 150, 250, 450, 950, 1000]
        assert [w.kind for w in found] == ["first", *["mass"] * 5, "last"]

    def test_of_few_transitions_are_those_of_stan(self) -> None:
        assert [tuple(w) for w in windows(100, 1, adapt_mass=True)] == [
            ("first", 15),
            ("mass", 90),
            ("last", 100),
        ]

    def test_of_many_chains_are_shorter(self) -> None:
        assert [w.stop for w in windows(200, 64, adapt_mass=True)] == [30, 40, 60, 150, 200]

    @pytest.mark.parametrize("num_chains", [1, 64])
    @pytest.mark.parametrize("num", [1, 19, 20, 21, 57, 149, 150, 151, 333, 5000])
    def test_cover_all_transitions_in_order(self, num: int, num_chains: int) -> None:
        found = windows(num, num_chains, adapt_mass=True)
        stops = [w.stop for w in found]
        assert stops == sorted(set(stops))
        assert found[-1] == ("last", num)

    def test_without_mass_or_transitions(self) -> None:
        assert [w.kind for w in windows(200, 1, adapt_mass=False)] == ["first", "last"]
        assert windows(0, 1, adapt_mass=True) == []


class TestMoments:
    @pytest.mark.parametrize("full", [False, True], ids=["diagonal", "dense"])
    def test_covariance_is_that_of_all_draws(self, full: bool) -> None:
        z = correlated().draw(300, 1) + 1e6
        moments = Moments(3, full=full, device=_CPU)
        for part in z.split(50):
            moments.add(part)
        expected = torch.cov(z.T)
        torch.testing.assert_close(
            moments.covariance(), expected if full else expected.diagonal(), rtol=1e-6, atol=1e-6
        )

    def test_scale_tends_to_the_covariance(self) -> None:
        moments, target = Moments(3, full=True, device=_CPU), correlated()
        n = 50_000
        moments.add(target.draw(n, 1))
        scale = moments.scale()
        assert torch.equal(scale, scale.tril())
        variances = target.covariance.diagonal()
        error = ((variances[:, None] * variances + target.covariance**2) / n).sqrt()
        # The shrinkage moves entries by less than (3 + 5) / n of the variances.
        shrinkage = 8 / n * (variances[:, None] * variances).sqrt()
        assert_close_to(scale @ scale.T, target.covariance, error + shrinkage)

    def test_shrinkage_of_a_diagonal_is_that_of_stan(self) -> None:
        z = correlated().draw(20, 1)
        moments = Moments(3, full=False, device=_CPU)
        moments.add(z)
        torch.testing.assert_close(moments.scale() ** 2, 20 / 25 * z.var(0) + 1e-3 * 5 / 25)

    def test_fewer_draws_than_dimensions_give_a_usable_scale(self) -> None:
        moments = Moments(40, full=True, device=_CPU)
        moments.add(torch.randn(10, 40, generator=generator(1), dtype=DOUBLE))
        scale = moments.scale()
        assert torch.isfinite(scale).all()
        assert (scale.diagonal() > 0).all()

    def test_state_goes_on(self) -> None:
        z = correlated().draw(100, 1)
        one, other = (Moments(3, full=True, device=_CPU) for _ in range(2))
        one.add(z[:50])
        other.load_state_dict(one.state_dict())
        one.add(z[50:])
        other.add(z[50:])
        assert torch.equal(one.scale(), other.scale())


class TestStepSize:
    @pytest.mark.parametrize(
        ("num_chains", "start"), [(1, 1e-6), (1, 1.0), (1, 1e4), (4, 0.02), (4, 2.0), (64, 0.1), (64, 0.5)]
    )
    def test_dual_averaging_solves_for_the_target(self, num_chains: int, start: float) -> None:
        """Acceptance exp(-step) with noise: the target .8 is reached at -log .8."""
        averaging = DualAveraging(start, 0.8, num_chains)
        noise = 0.1 * torch.randn(2000, generator=generator(1), dtype=DOUBLE) / math.sqrt(num_chains)
        for e in noise.tolist():
            averaging.update(min(max(math.exp(-averaging.now) + e, 0.0), 1.0))
        assert float(averaging.average) == pytest.approx(-math.log(0.8), rel=0.1)

    def test_first_update_is_that_of_stan(self) -> None:
        averaging = DualAveraging(0.5, 0.8, 1)
        averaging.update(0.3)
        expected = math.log(5.0) - 1 / 0.05 * (0.8 - 0.3) / 11
        assert math.log(averaging.now) == pytest.approx(expected)
        assert math.log(averaging.average) == pytest.approx(expected)

    def test_each_of_several_step_sizes_learns_on_its_own(self) -> None:
        together = DualAveraging(np.array([0.5, 2.0]), 0.8, 4)
        alone = DualAveraging(2.0, 0.8, 4)
        for accept in (0.3, 0.9, 0.7):
            together.update(np.array([0.1, accept]))
            alone.update(accept)
        assert np.asarray(together.average)[1] == alone.average

    def test_limits(self) -> None:
        averaging = DualAveraging(1.0, 0.8, 1, limits=(0.01, 10))
        for _ in range(20):
            averaging.update(0.0)
        assert float(averaging.now) == pytest.approx(0.01)

    def test_search_stops_within_a_factor_of_two(self) -> None:
        best = np.array([1e-5, 0.3, 1.0, 700.0])  # where acceptance crosses the target
        search = Search(np.ones(4), 0.5)
        while not search.done:
            search.update(np.where(search.step_size < best, 1.0, 0.0))
        assert (np.abs(np.log2(search.step_size / best)) <= 1.0 + 1e-9).all()
        assert search.count < Search.LONGEST


class TestTrajectory:
    def test_halton(self) -> None:
        assert [halton(i) for i in range(7)] == [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]

    def test_halton_fills_every_interval_alike(self) -> None:
        values = torch.tensor([halton(i) for i in range(1, 1025)], dtype=DOUBLE)
        counts = torch.histc(values, 16, 0, 1)
        assert ((counts - 64).abs() <= 1).all()

    def test_num_steps_is_rounded_up_and_bounded(self) -> None:
        assert num_steps(1.0, 0.3) == 4
        assert num_steps(0.01, 0.3) == 1
        assert num_steps(1e9, 0.3) == MOST_STEPS

    def test_whitening_undoes_a_dense_scale(self) -> None:
        scale = torch.linalg.cholesky(correlated().covariance)
        w = torch.randn(10, 3, generator=generator(1), dtype=DOUBLE)
        torch.testing.assert_close(whitened(scale, w @ scale.T), w)

    def test_gradient_is_the_derivative_of_the_criterion(self) -> None:
        """For free flight, z' = z + t L p, against a difference quotient; all proposals accepted."""
        scale = torch.linalg.cholesky(correlated().covariance)
        z = correlated().draw(500, 1)
        p = torch.randn(500, 3, generator=generator(2), dtype=DOUBLE)

        def proposals(t: float) -> Tensor:
            return z + t * p @ scale.T

        def criterion(t: float) -> float:
            new, old = whitened(scale, proposals(t)), whitened(scale, z)
            change = ((new - new.mean(0)) ** 2).sum(1) - ((old - old.mean(0)) ** 2).sum(1)
            return float((change**2).mean() / 4)

        # The mean momentum is held at zero in the formula, as it is in expectation.
        p -= p.mean(0)
        quotients = [(criterion(t + 1e-4) - criterion(t - 1e-4)) / 2e-4 for t in (0.7, 0.3)]
        recorded = {
            "z": torch.stack([z, z]),
            "new_z": torch.stack([proposals(0.7), proposals(0.3)]),
            "momentum": torch.stack([p, p]),
            "accept_prob": torch.ones(2, 500, dtype=DOUBLE),
        }
        assert chees_gradients(z, recorded, scale) == pytest.approx(quotients, rel=1e-6)

    def test_rejected_and_undefined_proposals_do_not_count(self) -> None:
        z = correlated().draw(50, 1)
        p = torch.randn(50, 3, generator=generator(2), dtype=DOUBLE)
        accept = torch.rand(50, generator=generator(3), dtype=DOUBLE)
        accept[:10] = 0
        recorded = {"z": z[None], "new_z": (z + p)[None], "momentum": p[None], "accept_prob": accept[None]}
        scale = torch.ones(3, dtype=DOUBLE)
        (clean,) = chees_gradients(z, recorded, scale)
        recorded["new_z"][0, :10], recorded["momentum"][0, :10] = torch.nan, torch.inf
        assert chees_gradients(z, recorded, scale) == pytest.approx([clean], rel=1e-12)
        assert math.isfinite(clean)

    def test_no_accepted_proposal_leaves_the_length(self) -> None:
        z = correlated().draw(50, 1)
        length = ChEES(1.5)
        recorded = dict.fromkeys(("z", "new_z", "momentum"), z[None])
        recorded["accept_prob"] = torch.zeros(1, 50, dtype=DOUBLE)
        length.update(chees_gradients(z, recorded, torch.ones(3, dtype=DOUBLE)), [0.5], 0.1)
        assert length.now == pytest.approx(1.5)


class TestStuck:
    def test_draws_of_one_distribution_are_not_stuck(self) -> None:
        for num_dims in (1, 10, 1000):
            chi = torch.distributions.Chi2(torch.tensor(float(num_dims), dtype=DOUBLE))
            probabilities = (torch.arange(10_000, dtype=DOUBLE) + 0.5) / 10_000
            normal = torch.distributions.Normal(0.0, 1.0).icdf(probabilities)
            # Wilson and Hilferty's quantiles, far into the tails
            u = 0.5 * num_dims * (1 - 2 / (9 * num_dims) + normal * (2 / (9 * num_dims)) ** 0.5) ** 3
            assert u.mean() == pytest.approx(float(chi.mean) / 2, rel=0.05)
            for found in stuck_chains(u, torch.full_like(u, 0.7), num_dims).values():
                assert not found.any()

    def test_reasons(self) -> None:
        u = torch.tensor([5.0, 6, 4, 5, 1e9, torch.inf, torch.nan, 5], dtype=DOUBLE)
        accept = torch.tensor([0.8, 0.7, 0.9, 0.8, 0.8, 0.8, 0.8, 0.0], dtype=DOUBLE)
        far, worse, still = stuck_chains(u, accept, 4).values()
        assert far.nonzero()[:, 0].tolist() == [4, 5, 6]
        assert not worse.any()
        assert still.nonzero()[:, 0].tolist() == [7]

    def test_chains_that_stay_in_a_worse_mode(self) -> None:
        u = torch.tensor([5.0, 6, 4, 5, 40, 40, 5, 5], dtype=DOUBLE)
        passing = u.clone()
        passing[5] = 6.0  # was low in this window: on its way
        _, worse, _ = stuck_chains(u, torch.full_like(u, 0.7), 8, passing).values()
        assert worse.nonzero()[:, 0].tolist() == [4]
        _, worse, _ = stuck_chains(u, torch.full_like(u, 0.7), 20, passing).values()
        assert not worse.any()  # in twenty dimensions draws spread wider

    def test_three_chains_cannot_tell(self) -> None:
        assert stuck_chains(torch.tensor([1.0, 2, 1e9]), torch.ones(3), 1) == {}

    def test_restart_copies_healthy_chains_whole(self) -> None:
        state = {"z": torch.arange(12.0).view(6, 2), "u": torch.arange(6.0)[:, None]}
        stuck = torch.tensor([False, True, False, True, False, False])
        healthy = torch.tensor([True, False, True, False, False, False])
        after, chains, donors = restart(state, stuck, healthy, generator(1))
        assert chains.tolist() == [1, 3]
        assert healthy[donors].all()
        assert torch.equal(after["z"][chains], state["z"][donors])
        assert torch.equal(after["u"][chains], state["u"][donors])
        assert torch.equal(after["z"][~stuck], state["z"][~stuck])


_BAD: list[tuple[str, dict[str, object]]] = [
    ("step_size", {"step_size": 0.0}),
    ("step_size", {"step_size": math.nan}),
    ("num_steps", {"num_steps": 0}),
    ("trajectory_length", {"trajectory_length": -1.0}),
    ("trajectory_length", {"trajectory_length": "cheese"}),
    ("target_accept_prob", {"target_accept_prob": 1.0}),
    ("both", {"num_steps": 3, "trajectory_length": 1.0}),
]


@pytest.mark.parametrize(("name", "arguments"), _BAD, ids=[f"{n}-{i}" for i, (n, _) in enumerate(_BAD)])
def test_bad_tuning(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=name):
        Tuning(**arguments)  # type: ignore[arg-type]
