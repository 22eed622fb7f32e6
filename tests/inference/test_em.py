"""Expectation-maximisation: monotone, equal to scikit-learn, robust, and at home in the trainer."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import SVI
from pyro.optim.optim import PyroOptim
from torch import Tensor

from ppgen.contract import GenerativeModel
from ppgen.errors import CapabilityError, ConfigError, DataError, TrainingWarning
from ppgen.inference.em import EMStepper, ExpectationMaximisation, HasExpectationMaximisation
from ppgen.inference.svi import fit
from ppgen.models.bernoulli_mixture import BernoulliMixture
from ppgen.models.gaussian_mixture import Covariance, GaussianMixture
from ppgen.ops.random import forked_rng

COVARIANCES: tuple[Covariance, ...] = ("full", "tied", "diagonal", "spherical")


def blobs(num: int = 400, dim: int = 3, seed: int = 0) -> Tensor:
    """Overlapping clusters with correlated coordinates, float64."""
    with forked_rng(seed):
        centres = 3 * torch.randn(4, dim, dtype=torch.float64)
        mix = torch.randn(dim, dim, dtype=torch.float64)
        noise = torch.randn(num, dim, dtype=torch.float64) @ mix
        return centres[torch.randint(4, (num,))] + noise + 5


def mixture(covariance: Covariance, x: Tensor, **options: Any) -> GaussianMixture:
    """A float64 mixture started from data."""
    with forked_rng(1):
        model = GaussianMixture((x.shape[1],), covariance=covariance, **options).double()
        model.initialise(x)
    return model


def climb(model: GaussianMixture | BernoulliMixture, x: Tensor, num_steps: int = 30) -> Tensor:
    """What EM maximises, before each step, as a mean a datum."""
    stepper = EMStepper(model, [])
    rows = [stepper.step(x) for _ in range(num_steps)]
    return torch.stack([-row["loss"] - row["penalty"] for row in rows])


def assert_never_falls(values: Tensor) -> None:
    assert (values.diff() > -1e-9).all(), values.diff().min()
    assert values[-1] > values[0] + 1e-3


@pytest.mark.parametrize("prior_count", [0.0, 3.0])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gaussian_em_never_falls(covariance: Covariance, prior_count: float) -> None:
    x = blobs()
    model = mixture(covariance, x, num_components=5, prior_count=prior_count)
    assert_never_falls(climb(model, x))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_variance_floor_keeps_em_monotone(covariance: Covariance) -> None:
    # The floor is above the variance of many directions, so that it binds.
    x = blobs()
    model = mixture(covariance, x, num_components=5, min_variance=2.0)
    assert_never_falls(climb(model, x))
    assert torch.linalg.eigvalsh(model.covariances).min() >= 2.0


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_never_falls_on_singular_data(covariance: Covariance) -> None:
    for seed in range(4):
        with forked_rng(seed):
            x = torch.randint(0, 2, (50, 4), dtype=torch.float64)
        model = mixture(covariance, x, num_components=5)
        values = climb(model, x)
        assert (values.diff() > -1e-6).all(), values.diff().min()
        # A combination of zeros and ones has a variance of at most a quarter in each coordinate.
        assert model.covariances.diagonal(dim1=1, dim2=2).max() < 0.2500021


def test_a_wrong_step_is_caught() -> None:
    x = blobs()
    model = mixture("full", x, num_components=3)
    for _ in range(20):
        model.em_step(x)
    values = []
    for _ in range(10):
        values.append(model.em_step(x).log_likelihood / len(x))
        model.log_scales.data += 0.05  # a variance that is 10% too large
    with pytest.raises(AssertionError):
        assert_never_falls(torch.stack(values))


def test_a_step_that_changes_nothing_settles_and_a_faulty_one_does_not() -> None:
    x = blobs(50).float()
    with forked_rng(0):
        alone = BernoulliMixture((3,), num_components=1)
        model = GaussianMixture((3,), num_components=2)
    stepper = EMStepper(alone, [])
    settled = []
    for _ in range(3):  # a single component is counted: once to get there, and once to see that it is
        stepper.step((x > 5).float())
        settled.append(stepper.settled)
    assert settled == [False, True, True]
    resumed = EMStepper(alone, [])
    resumed.load_state_dict(stepper.state_dict())
    assert resumed.settled
    faulty = EMStepper(model, [])
    before = [p.detach().clone() for p in model.parameters()]
    assert not torch.isfinite(faulty.step(x * 1e30)["loss"])
    assert all(map(torch.equal, before, model.parameters()))
    assert not faulty.settled


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_bernoulli_em_never_falls(smoothing: float) -> None:
    with forked_rng(2):
        x = (torch.rand(300, 8) < torch.rand(3, 8)[torch.randint(3, (300,))]).double()
        model = BernoulliMixture((8,), num_components=4, smoothing=smoothing).double()
        model.initialise(x)
    assert_never_falls(climb(model, x))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_is_scikit_learns(covariance: Covariance) -> None:
    from sklearn.mixture import GaussianMixture as Peer

    x = blobs()
    num_steps, floor = 7, 1e-9
    with forked_rng(0), torch.no_grad():
        start = GaussianMixture((3,), num_components=4, covariance=covariance, min_variance=floor).double()
        start.locs.copy_(x[:4])
        start.log_scales.fill_(0.3)
    variance = float(start.covariances[0, 0, 0].detach())
    name = "diag" if covariance == "diagonal" else covariance
    shapes = {
        "full": np.tile(np.eye(3), (4, 1, 1)),
        "tied": np.eye(3),
        "diag": np.ones((4, 3)),
        "spherical": np.ones(4),
    }
    peer = Peer(
        4,
        covariance_type=name,
        reg_covar=0.0,
        tol=0.0,
        max_iter=num_steps,
        weights_init=np.full(4, 0.25),
        means_init=x[:4].numpy(),
        precisions_init=shapes[name] / variance,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it has not converged
        peer.fit(x.numpy())
    climb(start, x, num_steps)
    ours = start.log_likelihood(x).value
    np.testing.assert_allclose(ours.detach().numpy(), peer.score_samples(x.numpy()), atol=1e-6)
    np.testing.assert_allclose(
        start.responsibilities(x).detach().numpy(), peer.predict_proba(x.numpy()), atol=1e-6
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("prior_count", [0.0, 2.0])
def test_one_component_is_fitted_in_closed_form(covariance: Covariance, prior_count: float) -> None:
    """Rounding in float32 moves the parameters for ever; the second step reports the maximum."""
    x = (30 * blobs(2000) + 500).float()
    with forked_rng(0):
        model = GaussianMixture((3,), num_components=1, covariance=covariance, prior_count=prior_count)
        result = fit(model, x, progress=False, device="cpu")
    assert (result.stopped, result.epochs <= 2) == ("finished", True)
    exact = mixture(covariance, x.double(), num_components=1, prior_count=prior_count)
    reached = sum(result.history[-1][name] or 0.0 for name in ("loss", "penalty"))
    assert reached == pytest.approx(-float(climb(exact, x.double(), 5)[-1]), rel=1e-5)


def test_one_component_resumes_where_its_first_step_ended() -> None:
    x = blobs()
    model = mixture("full", x, num_components=1)
    stepper = EMStepper(model, [])
    stepper.step(x)
    again = EMStepper(model, [])
    again.load_state_dict(stepper.state_dict())
    for each in (stepper, again):
        model.locs.data += 1e-9  # as rounding does
        each.step(x)
        assert each.settled
    two = mixture("full", x, num_components=2)
    stepper = EMStepper(two, [])
    for _ in range(2):
        stepper.step(x)
        assert not stepper.settled


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_singular_data_are_held_and_said_once(covariance: Covariance) -> None:
    x = blobs(60).float()
    x[:, 1] = 2.0  # constant
    x[:, 2] = x[:, 0]  # collinear
    x[:20] = x[0]  # duplicates
    with forked_rng(0):
        model = GaussianMixture((3,), num_components=6, covariance=covariance)
    with pytest.warns(TrainingWarning) as caught:
        result = fit(model, x, epochs=15, progress=False, device="cpu")
    about = [w for w in caught if "singular covariance" in str(w.message)]
    assert len(about) == 1
    assert "min_variance" in str(about[0].message)
    assert not result.ok
    assert torch.isfinite(model.log_likelihood(x).value).all()


def test_an_empty_component_keeps_its_parameters() -> None:
    x = blobs()
    model = mixture("diagonal", x, num_components=3)
    with torch.no_grad():
        model.locs[1] = 1e6
    found = model.em_step(x)
    assert "empty: 1 of 3" in found.notes[0]
    assert (model.locs[1] == 1e6).all()
    assert_never_falls(climb(model, x))
    assert model.weights[1] < 1e-9
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_bad_data_leave_the_parameters_as_they_were() -> None:
    x = blobs()
    model = mixture("full", x, num_components=3)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    bad = x.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(DataError, match="1 NaN or infinite of 1200"):
        model.em_step(bad)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppgen.ops import gaussian

    x = blobs(500)
    for covariance in COVARIANCES:
        one, other = mixture(covariance, x, num_components=3), mixture(covariance, x, num_components=3)
        one.em_step(x)
        with monkeypatch.context() as patch:
            patch.setattr(gaussian, "rows_per_chunk", lambda *_: 7)
            other.em_step(x)
            torch.testing.assert_close(one.log_likelihood(x).value, other.log_likelihood(x).value)


def test_the_trainer_steps_by_em() -> None:
    x = blobs()
    with forked_rng(0):
        model = GaussianMixture((3,), num_components=4, covariance="full")
    result = fit(model, x.float(), validation=x.float(), epochs=20, progress=False, device="cpu")
    losses = [row["loss"] for row in result.history]
    assert result.steps == 20
    assert all(
        b is not None and a is not None and b <= a + 1e-4 for a, b in zip(losses, losses[1:], strict=False)
    )
    value = -float(model.log_likelihood(x.float()).value.mean())
    assert result.best_loss == pytest.approx(value, abs=1e-4)


def test_as_a_pyro_loss_it_climbs_by_gradients() -> None:
    x = blobs()
    model = mixture("full", x, num_components=4, prior_count=1.0)
    objective = model.default_objective()
    svi = SVI(model.model, model.guide, PyroOptim(torch.optim.Adam, {"lr": 1e-2}), loss=objective)
    losses = [svi.step(x) for _ in range(30)]
    assert losses[-1] < losses[0]
    expected = -(model.log_likelihood(x).value.sum() + model.log_prior())
    assert float(objective(model.model, model.guide, x)) == pytest.approx(float(expected))
    scaled = objective.validation_loss(model.model, model.guide, x, num=4000)
    assert float(scaled) == pytest.approx(-10 * float(model.log_likelihood(x).value.sum()))


def test_steps_resume() -> None:
    x = blobs()
    model = mixture("full", x, num_components=3)
    stepper = EMStepper(model, [])
    stepper.step(x)
    state = stepper.state_dict()
    again = EMStepper(model, [])
    again.load_state_dict(state)
    assert again.num_steps == 1


class Plain(GenerativeModel):
    """A model without EM."""


def test_models_without_em_are_told() -> None:
    plain = Plain((2,))
    with pytest.raises(CapabilityError, match="em_step"):
        ExpectationMaximisation().loss(plain.model, plain.guide, torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="plain Pyro functions"):
        ExpectationMaximisation().loss(lambda x: x, lambda x: None, torch.zeros(3, 2))
    assert not isinstance(plain, HasExpectationMaximisation)
    with forked_rng(0):
        assert isinstance(BernoulliMixture((2,)), HasExpectationMaximisation)
