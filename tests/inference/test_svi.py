"""The trainer: what it learns, what it keeps when things go wrong, and that it resumes exactly."""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.optim.optim import PyroOptim
from torch import Tensor, nn

import ppgen
from ppgen.contract import GenerativeModel
from ppgen.datasets.split import Split
from ppgen.datasets.values import BINARY, grid
from ppgen.errors import (
    ConfigError,
    DataError,
    DeviceError,
    ShapeError,
    TrainingError,
    TrainingWarning,
)
from ppgen.inference.objectives.base import Program
from ppgen.inference.objectives.elbo import ELBO
from ppgen.inference.svi import fit
from ppgen.inference.trainee import Batches, Trainee
from ppgen.models import VAE, RealNVP, Transformer
from ppgen.ops.random import forked_rng

quiet: dict[str, Any] = {"device": "cpu", "progress": False}


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


class Gaussian(GenerativeModel):
    """One normal with learnt mean and scale: its maximum likelihood is known."""

    density = ppgen.Kind.EXACT

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        with self.data_plate(x, num, context):
            return pyro.sample("x", dist.Normal(self.loc, self.log_scale.exp()).to_event(1), obs=x)


def data(num: int = 200) -> Tensor:
    return torch.tensor([1.0, -2.0]) + torch.tensor([0.5, 2.0]) * torch.randn(num, 2)


def small_vae() -> VAE:
    with forked_rng(7):
        return VAE((2,), latent_dim=1, hidden=(8,))


# -- it learns ----------------------------------------------------------------------------


def test_reaches_the_maximum_likelihood_in_closed_form() -> None:
    x, model = data(), Gaussian((2,))
    result = fit(model, x, epochs=400, batch_size=None, learning_rate=0.05, schedule="cosine", **quiet)
    assert torch.allclose(model.loc, x.mean(0), atol=3e-3)
    assert torch.allclose(model.log_scale.exp(), x.std(0, correction=0), atol=3e-3)
    assert result.ok
    assert result.stopped == "finished"
    best = (x.std(0, correction=0).log() + 0.5 * math.log(2 * math.pi) + 0.5).sum()
    assert result.history[-1]["loss"] == pytest.approx(float(best), abs=1e-3)


def test_a_plain_pair_with_an_autoguide_reaches_the_conjugate_posterior() -> None:
    y = 2.0 + torch.randn(50)

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    guide = AutoNormal(model)
    options: dict[str, Any] = {
        "guide": guide,
        "epochs": 1500,
        "batch_size": None,
        "schedule": "cosine",
    } | quiet
    with pyro.get_param_store().scope():  # an AutoGuide keeps its parameters there
        result = fit(model, y, learning_rate=0.02, **options)
        assert result.epochs == 1500
        precision = 1 + len(y)
        assert guide.median()["mu"].item() == pytest.approx(y.sum().item() / precision, abs=0.02)
        assert guide.scales.mu.item() == pytest.approx(precision**-0.5, rel=0.15)


def test_a_plain_pair_may_declare_parameters_in_pyros_store() -> None:
    y = torch.randn(40) + 3

    def model(y: Tensor) -> None:
        loc = pyro.param("test_svi_loc", torch.zeros(()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    with pyro.get_param_store().scope():
        fit(model, y, epochs=300, batch_size=None, learning_rate=0.05, schedule="cosine", **quiet)
        assert pyro.param("test_svi_loc").item() == pytest.approx(y.mean().item(), abs=5e-3)


@pytest.mark.parametrize(
    "objective",
    [pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO(), pyro.infer.RenyiELBO(num_particles=3)],
)
def test_any_pyro_elbo_serves_as_objective(objective: Any) -> None:
    vae, x = small_vae(), data(60)
    before = {n: p.clone() for n, p in vae.named_parameters()}
    result = fit(vae, x, objective=objective, epochs=2, **quiet)
    assert math.isfinite(result.history[-1]["loss"] or math.nan)
    assert all(not torch.equal(before[n], p) for n, p in vae.named_parameters())


def test_pyros_own_svi_works_beside_the_trainer() -> None:
    vae, x = small_vae(), data(60)
    svi = pyro.infer.SVI(
        vae.model, vae.guide, PyroOptim(torch.optim.Adam, {"lr": 1e-2}), pyro.infer.Trace_ELBO()
    )
    first = sum(svi.step(x) for _ in range(5))
    fit(vae, x, epochs=100, learning_rate=1e-2, **quiet)
    assert sum(svi.step(x) for _ in range(5)) < first
    assert not list(pyro.get_param_store().keys())


def test_compiled_networks_give_the_same_first_loss_and_keep_their_names() -> None:
    plain, compiled = small_vae(), small_vae()
    x = data(32)
    expected = fit(plain, x, epochs=1, **quiet).history[0]["loss"]
    found = fit(compiled, x, epochs=1, compile=True, **quiet).history[0]["loss"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert all(m._compiled_call_impl is None for m in compiled.children())


def test_autocast_trains_in_lower_precision() -> None:
    result = fit(small_vae(), data(64), epochs=2, autocast=torch.bfloat16, **quiet)
    assert math.isfinite(result.history[-1]["loss"] or math.nan)


def test_discrete_data_are_dequantised_for_a_density() -> None:
    seen: list[Tensor] = []

    class Spy(Gaussian):
        def model(
            self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
        ) -> Tensor:
            if x is not None:
                seen.append(x)
            return super().model(x, num=num)

    levels = torch.randint(0, 3, (50, 2)) / 2
    fit(Spy((2,)), Split(levels, values=grid(3)), epochs=2, batch_size=None, **quiet)
    for x in seen:
        assert torch.equal((x * 3).floor() / 2, levels)
    assert not torch.equal(seen[-1], seen[-2])  # fresh noise each time


# -- options ------------------------------------------------------------------------------


def test_a_context_that_is_a_sequence_of_labels_trains() -> None:
    """Whole numbers in rows stay labels, one an item, on the way from the data to the model."""
    with forked_rng(0):
        model = Transformer((2,), num_layers=1, num_heads=1, dim=8, context_dim=3, context_length=4)
        x, labels = torch.randint(2, (20, 2)).float(), torch.randint(3, (20, 4))
    result = fit(model, (x, labels), epochs=1, device="cpu", progress=False)
    assert math.isclose(float(result.history[0]["loss"] or 0.0), 2 * math.log(2), rel_tol=0.5)


def test_whole_numbers_in_rows_as_wide_as_the_context_are_features() -> None:
    with forked_rng(0):
        model = RealNVP((2,), num_layers=1, hidden=(4,), context_dim=3)
        x, counts = torch.randn(20, 2), torch.randint(5, (20, 3))
    batches = Batches((x, counts), Trainee(model), None, torch.device("cpu"))
    assert batches.context is not None
    assert torch.equal(batches.context, counts.float())


def test_early_stopping_keeps_the_best_epoch() -> None:
    x, model = data(40), Gaussian((2,))
    result = fit(
        model, x, validation=data(40), epochs=2000, learning_rate=0.05, patience=20, batch_size=None, **quiet
    )
    assert result.stopped == "early"
    assert result.epochs == (result.best_epoch or 0) + 20
    losses = [row["validation_loss"] for row in result.history]
    assert result.best_loss == min(x for x in losses if x is not None)


def test_the_time_limit_stops_and_history_is_kept() -> None:
    result = fit(Gaussian((2,)), data(), max_seconds=0.2, **quiet)
    assert result.stopped == "time"
    assert result.history


def test_schedules_set_the_rate() -> None:
    def rates(schedule: Any) -> list[float]:
        result = fit(Gaussian((2,)), data(10), epochs=10, learning_rate=1.0, schedule=schedule, **quiet)
        return [row["learning_rate"] or 0.0 for row in result.history]

    assert rates("constant") == [1.0] * 10
    assert rates("cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 10)) for t in range(10)])
    assert rates(lambda progress: 1 - progress) == pytest.approx([1 - t / 10 for t in range(10)])


def test_clipping_bounds_the_step_of_plain_gradient_descent() -> None:
    model, x = Gaussian((2,)), 1000 * torch.ones(20, 2)
    fit(
        model,
        x,
        epochs=1,
        batch_size=None,
        clip_norm=1.0,
        learning_rate=0.1,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        **quiet,
    )
    moved = torch.cat([model.loc.detach(), model.log_scale.detach()]).norm()
    assert moved.item() == pytest.approx(0.1, rel=1e-4)


def test_a_seed_fixes_the_run_and_the_global_generators_are_left_alone() -> None:
    x = data(50)
    state = torch.get_rng_state()
    runs = [small_vae() for _ in range(3)]
    for vae, seed in zip(runs, (1, 1, 2), strict=True):
        fit(vae, x, epochs=2, seed=seed, batch_size=16, **quiet)
    assert torch.equal(state, torch.get_rng_state())
    first, same, other = (torch.cat([p.flatten() for p in vae.parameters()]) for vae in runs)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# -- checkpoints and interruption -----------------------------------------------------------


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop_after", [1, 4, 7])  # within an epoch, at its end, in a later one
def test_an_interrupted_run_resumes_to_the_same_numbers(
    tmp_path: Path, stop_after: int, number: signal.Signals
) -> None:
    x, kept_out = data(64), data(30)
    options: dict[str, Any] = {
        "validation": kept_out,
        "epochs": 4,
        "batch_size": 16,
        "clip_norm": 1.0,
    } | quiet
    whole = small_vae()
    expected = fit(whole, x, **options)

    broken = small_vae()
    interrupting = InterruptAfter(stop_after, number)
    first = fit(broken, x, objective=interrupting, checkpoint=tmp_path, **options)
    assert first.stopped == "interrupted"
    assert not first.ok
    resumed = small_vae()
    second = fit(resumed, x, objective=InterruptAfter(10**9), checkpoint=tmp_path, **options)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert second.stopped == "finished"
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in second.history]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in expected.history]


class InterruptAfter(ELBO):
    """The ELBO, with a signal in the middle of one step."""

    def __init__(self, steps: int, number: signal.Signals = signal.SIGINT) -> None:
        super().__init__()
        self.left, self.number = steps, number

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(self.number)
        return super().loss(model, guide, *args, **kwargs)


def test_ctrl_c_keeps_the_best_so_far_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    vae = small_vae()
    result = fit(
        vae, data(64), validation=data(20), objective=InterruptAfter(9), batch_size=16, epochs=50, **quiet
    )
    assert result.stopped == "interrupted"
    assert result.best_epoch is not None
    assert signal.getsignal(signal.SIGINT) is before
    assert not vae.training


# -- numbers that overflow ------------------------------------------------------------------


class Overflow(ELBO):
    """The ELBO, with a loss that is not finite on chosen steps."""

    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.bad, self.count = steps, 0

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().loss(model, guide, *args, **kwargs)
        if torch.is_grad_enabled():
            self.count += 1
            if self.count in self.bad:
                return loss * math.nan
        return loss


def test_a_loss_that_is_not_finite_is_rolled_back_and_reported() -> None:
    model = Gaussian((2,))
    with pytest.warns(TrainingWarning, match="step 3: .*halved the learning rate"):
        result = fit(model, data(40), objective=Overflow(3), epochs=4, batch_size=20, **quiet)
    assert not result.ok
    assert bool(torch.isfinite(parameters(model)).all())
    assert result.history[-1]["learning_rate"] == pytest.approx(0.5e-3)


def test_a_loss_that_stays_not_finite_is_an_error_with_step_and_site_and_the_state_is_kept() -> None:
    class Broken(Gaussian):
        """Its scale underflows as soon as the mean has moved."""

        def model(
            self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
        ) -> Tensor:
            scale = torch.where(self.loc.abs().max() > 0.5, math.nan, 1.0)
            with self.data_plate(x, num, context):
                return pyro.sample("x", dist.Normal(self.loc, scale).to_event(1), obs=x)

    model = Broken((2,))
    with (
        pytest.warns(TrainingWarning, match="site 'x'"),
        pytest.raises(TrainingError, match=r"step \d+: the loss is nan .*site 'x' .*its state of step"),
    ):
        fit(model, data(20), learning_rate=10.0, epochs=50, batch_size=None, **quiet)
    assert bool((model.loc.abs() <= 0.5).all())


# -- bad input ------------------------------------------------------------------------------


def test_bad_data_are_named() -> None:
    x = data(10)
    poisoned = x.clone()
    poisoned[3, 1] = math.nan
    model = Gaussian((2,))
    with pytest.raises(DataError, match="1 NaN or infinite"):
        fit(model, poisoned, **quiet)
    with pytest.raises(DataError):
        fit(model, x[:0], **quiet)
    with pytest.raises(ShapeError, match=r"event_shape=\(2,\), the data have \(3,\)"):
        fit(model, torch.randn(4, 3), **quiet)
    with pytest.raises(DataError, match="model is for binary values"):
        fit(VAE((2,), likelihood="bernoulli"), Split(x), **quiet)
    with pytest.raises(DataError, match="needs y"):
        fit(VAE((2,), context_dim=3), x, **quiet)
    with pytest.raises(
        DataError, match="argument 0: expected finite numbers, got 1 NaN .* column\\(s\\) 1 and row\\(s\\) 3"
    ):
        fit(lambda y: None, poisoned, **quiet)
    assert torch.equal(model.loc, torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs"),
        ({"max_seconds": -1.0}, "max_seconds"),
        ({"patience": 3}, "patience"),
        ({"schedule": "linear"}, "schedule"),
        ({"objective": "elbo"}, "objective"),
        ({"guide": print}, "guide"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        fit(Gaussian((2,)), data(10), **(quiet | options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(DeviceError, match="no CUDA device"):
        fit(Gaussian((2,)), data(10), device="cuda", progress=False)


def test_unknown_device() -> None:
    with pytest.raises(DeviceError, match="'quantum'"):
        fit(Gaussian((2,)), data(10), device="quantum", progress=False)


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _guide(x: Tensor, *, site: str, size: int) -> None:
    with pyro.plate("data", size, subsample=torch.arange(len(x))):
        pyro.sample(site, dist.Normal(torch.zeros(len(x)), 1.0))


@pytest.mark.parametrize(
    ("guide", "match"),
    [
        (lambda x: None, r"latent sites \['z'\] are not sampled in the guide"),
        (functools.partial(_guide, site="w", size=10), "not sampled in the guide"),
        (
            functools.partial(_guide, site="z", size=30),
            "model has size 10 .* guide size 30",
        ),
    ],
)
def test_pairs_that_cannot_be_trained_are_refused(guide: Program, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        fit(_model, torch.randn(10), guide=guide, **quiet)


def test_an_extra_guide_site_is_refused() -> None:
    def guide(x: Tensor) -> None:
        _guide(x, site="z", size=len(x))
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ConfigError, match=r"samples \['w'\], which the model does not have"):
        fit(_model, torch.randn(10), guide=guide, **quiet)


def test_a_value_out_of_support_names_the_site() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(torch.ones(len(x))), obs=x)

    with pytest.raises(DataError, match="site 'x' cannot be evaluated .*Exponential"):
        fit(model, -torch.ones(5), **quiet)


# -- the objective --------------------------------------------------------------------------


def test_the_lean_pass_is_trace_elbo_on_the_same_random_numbers() -> None:
    vae, x = small_vae(), data(20)
    gradients = []
    for estimator in (ELBO(), pyro.infer.Trace_ELBO()):
        vae.zero_grad()
        with forked_rng(3):
            if isinstance(estimator, ELBO):
                loss = estimator.loss(vae.model, vae.guide, x)
            else:
                loss = estimator.differentiable_loss(vae.model, vae.guide, x)
        loss.backward()
        gradients.append(
            (loss.detach(), torch.cat([p.grad.flatten() for p in vae.parameters() if p.grad is not None]))
        )
    assert torch.allclose(gradients[0][0], gradients[1][0], rtol=1e-5)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-5)


def test_beta_weights_the_latent_terms() -> None:
    vae, x = small_vae(), data(20)

    def at(beta: float) -> Tensor:
        with forked_rng(3):
            return ELBO(beta=beta).loss(vae.model, vae.guide, x)

    assert torch.allclose(at(2.0) - at(1.0), at(1.0) - at(0.0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(at(2.0), at(1.0))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_a_collapsed_posterior_is_told_from_a_noisy_estimate(
    known: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A posterior with its KL of 0.1 nats has one-draw estimates below zero in many small batches."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, loc: float = 0.2**0.5) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full((len(x),), loc), 1.0))

    def unknown(*_: object) -> None:
        raise NotImplementedError

    if not known:
        monkeypatch.setattr("ppgen.inference.objectives.elbo.kl_divergence", unknown)
    x, collapsed = torch.zeros(rows), functools.partial(guide, loc=0.0)
    assert not any(ELBO().diagnose(model, guide, x) for _ in range(50))
    if known or rows > 1:
        assert "site 'z': posterior collapse" in ELBO().diagnose(model, collapsed, x)[0]


def test_binary_data_on_a_bernoulli_vae() -> None:
    x = (torch.rand(40, 2) > 0.5).float()
    result = fit(
        VAE((2,), latent_dim=1, likelihood="bernoulli", hidden=(4,)),
        Split(x, values=BINARY),
        epochs=2,
        **quiet,
    )
    assert result.epochs == 2


def test_small_data_get_enough_steps_by_default() -> None:
    x = data(256)
    result = fit(Gaussian((2,)), x, **quiet)
    assert result.steps == 3000
    assert result.epochs == 1500
