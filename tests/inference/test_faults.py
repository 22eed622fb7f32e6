"""Faults while training: what is said of each, and what is kept."""

from __future__ import annotations

import math
import signal
import types
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ppgen.datasets.split import Split
from ppgen.datasets.values import grid
from ppgen.errors import ConfigError, DataError, ShapeError, TrainingError, TrainingWarning
from ppgen.inference import run
from ppgen.inference.interrupts import Interrupts
from ppgen.inference.objectives.base import Program
from ppgen.inference.objectives.elbo import ELBO
from ppgen.inference.objectives.pair import check_pair
from ppgen.inference.svi import fit
from ppgen.models import VAE, RealNVP
from ppgen.ops.random import forked_rng

quiet: dict[str, Any] = {"device": "cpu", "progress": False}


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def data(num: int) -> Tensor:
    return torch.tensor([1.0, -2.0]) + torch.tensor([0.5, 2.0]) * torch.randn(num, 2)


def small_vae(**options: Any) -> VAE:
    with forked_rng(7):
        return VAE((2,), latent_dim=1, hidden=(8,), **options)


def small_flow() -> RealNVP:
    """Its loss draws no random numbers."""
    with forked_rng(7):
        return RealNVP((2,), num_layers=2, hidden=(8,))


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def is_finite(model: nn.Module) -> bool:
    return bool(torch.isfinite(parameters(model)).all())


# -- batches ------------------------------------------------------------------------------


def test_the_loss_of_an_epoch_is_a_mean_over_data_whatever_the_batches() -> None:
    x = data(9)
    x[8] += 5  # wherever the shuffle puts it, one batch of three sizes differs from the others
    still: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-30} | quiet
    whole = fit(small_flow(), x, batch_size=None, **still).history[0]["loss"]
    ragged = fit(small_flow(), x, batch_size=4, **still)
    assert ragged.steps == 3
    assert ragged.history[0]["loss"] == pytest.approx(whole, rel=1e-5)


def test_a_step_that_was_rolled_back_does_not_count_in_the_mean() -> None:
    x = data(8)
    still: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-30, "batch_size": 1} | quiet
    expected = fit(small_flow(), x.repeat(2, 1), **still).history[0]["loss"]
    with pytest.warns(TrainingWarning, match="rate"):
        found = fit(small_flow(), x[:1].repeat(4, 1), objective=Poisoned(2), **still).history[0]["loss"]
    with forked_rng(0):
        alone = fit(small_flow(), x[:1].repeat(4, 1), **still).history[0]["loss"]
    assert found == pytest.approx(alone, rel=1e-5)
    assert expected != pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize(("num", "batch_size"), [(1, 128), (3, 1)])
def test_batches_of_one(num: int, batch_size: int) -> None:
    for model in (small_vae(), small_flow()):
        result = fit(model, data(num), validation=data(1), epochs=2, batch_size=batch_size, **quiet)
        assert result.steps == 2 * num
        assert math.isfinite(result.history[-1]["loss"] or math.nan)


def test_a_context_takes_the_models_type() -> None:
    model = small_vae(context_dim=1).double()
    x = data(10)
    result = fit(model, (x, x[:, :1]), epochs=1, **quiet)
    assert math.isfinite(result.history[-1]["loss"] or math.nan)


def test_a_second_fit_goes_on_from_the_first() -> None:
    x, model = data(40), small_flow()
    first = fit(model, x, epochs=30, learning_rate=1e-2, **quiet)
    second = fit(model, x + 0.01, epochs=1, learning_rate=1e-2, **quiet)
    start, end = first.history[0]["loss"], first.history[-1]["loss"]
    again = second.history[0]["loss"]
    assert start is not None
    assert end is not None
    assert again is not None
    assert abs(again - end) < 0.2 * (start - end)


# -- memory -------------------------------------------------------------------------------


class Hungry(ELBO):
    """The ELBO on a device whose memory holds so many rows."""

    def __init__(self, rows: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.rows, self.error = rows, error

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if len(args[0]) > self.rows:
            text = "DefaultCPUAllocator: can't allocate memory" if self.error is RuntimeError else "no memory"
            raise self.error(text)
        return super().loss(model, guide, *args, **kwargs)

    def validation_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor | None:
        return self.loss(model, guide, *args, **kwargs)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_batch_too_large_for_memory_is_cut_with_the_same_result(error: type[Exception]) -> None:
    x, held_out = data(37), data(30)
    fixed = {"validation": held_out, "epochs": 3, "batch_size": 16, "clip_norm": 1.0}
    options: dict[str, Any] = fixed | quiet
    model, other = small_flow(), small_flow()
    expected = fit(model, x, **options)
    with pytest.warns(TrainingWarning, match=r"out of memory on a batch of 16: .* parts of 8") as caught:
        found = fit(other, x, objective=Hungry(5, error), **options)
    assert [w for w in caught if "parts of 4" in str(w.message)], "8 rows do not fit either"
    assert len(caught) == 2, "what fits is remembered"
    assert found.ok
    assert torch.allclose(parameters(model), parameters(other), atol=1e-5)
    for ours, theirs in zip(found.history, expected.history, strict=True):
        for name in ("loss", "validation_loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


@pytest.mark.parametrize("fits", [0, 20])
def test_memory_too_small_to_cut_is_an_error_and_the_state_is_kept(fits: int) -> None:
    """Latents outside the plate would be counted once a part."""

    def model(y: Tensor) -> None:
        loc = pyro.param("test_faults_loc", torch.zeros(()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    with pyro.get_param_store().scope():
        doing = "step 1 on a batch of 20" if fits == 0 else "validation on a batch of 30"
        with pytest.raises(TrainingError, match=rf"out of memory on cpu in {doing}.*batch_size.* of step 0"):
            fit(model, torch.ones(20), validation=torch.ones(30), objective=Hungry(fits), **quiet)
        assert pyro.param("test_faults_loc").item() == 0.0


def test_one_datum_that_does_not_fit_is_an_error() -> None:
    flow = small_flow()
    before = [t.clone() for t in fit_start(flow).values()]
    with (
        pytest.warns(TrainingWarning, match="parts of 1"),
        pytest.raises(TrainingError, match="cannot be cut further"),
    ):
        fit(flow, data(4), objective=Hungry(0), **quiet)
    assert all(torch.equal(a, b) for a, b in zip(before, flow.state_dict().values(), strict=True))
    assert not flow.training


def fit_start(flow: RealNVP) -> dict[str, Tensor]:
    flow.initialise(torch.randn(50, 2))
    flow.initialised.fill_(True)
    return flow.state_dict()


def test_an_initialiser_that_runs_out_of_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialise(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    flow = small_flow()
    monkeypatch.setattr(RealNVP, "initialise", initialise)
    with pytest.raises(TrainingError, match=r"RealNVP.initialise looked at all 10 data"):
        fit(flow, data(10), **quiet)
    assert not flow.initialised


def test_no_memory_in_the_first_check_is_no_matter_of_shapes() -> None:
    def model(x: Tensor) -> None:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        check_pair(model, lambda x: None, data(3))


# -- numbers that overflow ----------------------------------------------------------------


class _PassNaN(torch.autograd.Function):
    """Zero, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * math.nan


class Poisoned(ELBO):
    """The ELBO with, at one step, a finite value and a gradient of NaN."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.bad, self.count = step, 0

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().loss(model, guide, *args, **kwargs)
        if torch.is_grad_enabled():
            self.count += 1
            if self.count == self.bad:
                return loss + _PassNaN.apply(loss)
        return loss


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("step", [3, 6, 100])  # within, at the end, and where a state is kept
def test_a_gradient_of_nan_under_a_finite_loss_is_rolled_back(clip_norm: float | None, step: int) -> None:
    vae = small_vae()
    epochs = 60 if step == 100 else 3
    match = rf"the norm of the gradient was nan|step {step + 1}: the loss was nan"
    if clip_norm is None and step == 6:
        match = "step 6: '.*' has values that are not finite at the end; went back to step 0"
    if clip_norm is None and step == 100:
        match = "step 100: '.*' has values that are not finite"
    with pytest.warns(TrainingWarning, match=match):
        result = fit(
            vae,
            data(20),
            batch_size=10,
            epochs=epochs,
            objective=Poisoned(step),
            clip_norm=clip_norm,
            **quiet,
        )
    assert is_finite(vae)
    assert not result.ok
    assert result.epochs == epochs


def test_a_model_with_an_infinite_buffer_is_rolled_back_as_well() -> None:
    vae = small_vae()
    vae.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    with pytest.warns(TrainingWarning, match="went back to step 0"):
        fit(vae, data(20), batch_size=10, epochs=3, objective=Poisoned(3), **quiet)
    assert is_finite(vae)


def test_a_rollback_keeps_the_ratios_of_an_optimisers_rates() -> None:
    vae = small_vae()
    built: list[torch.optim.Optimizer] = []

    def optimizer(parameters: Any, rate: float) -> torch.optim.Optimizer:
        first, *rest = parameters
        groups = [{"params": [first], "lr": 10 * rate}, {"params": rest, "lr": rate}]
        built.append(torch.optim.SGD(groups, lr=rate))
        return built[-1]

    with pytest.warns(TrainingWarning, match="halved"):
        fit(vae, data(20), epochs=3, objective=Poisoned(1), optimizer=optimizer, learning_rate=1e-4, **quiet)
    assert [group["lr"] for group in built[0].param_groups] == pytest.approx([5e-4, 5e-5])


class NoValidation(ELBO):
    """The ELBO, whose validation loss overflows."""

    def validation_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor | None:
        return torch.tensor(math.nan)


def test_patience_ends_where_the_validation_loss_is_nan() -> None:
    x = data(20)
    with pytest.warns(TrainingWarning, match="epoch 1: the validation loss is nan") as caught:
        result = fit(small_vae(), x, validation=x, patience=4, epochs=50, objective=NoValidation(), **quiet)
    assert result.stopped == "early"
    assert result.epochs == 4
    assert result.best_loss is None
    assert len(caught) == 1


# -- interruption -------------------------------------------------------------------------


class Impatient(ELBO):
    """The ELBO, with two Ctrl-C in the middle of one step."""

    count = 0

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        self.count += torch.is_grad_enabled()
        if self.count == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return super().loss(model, guide, *args, **kwargs)


def test_a_second_ctrl_c_stops_at_once_with_a_good_state() -> None:
    vae = small_vae()
    before = signal.getsignal(signal.SIGINT)
    result = fit(vae, data(20), validation=data(5), batch_size=10, objective=Impatient(), **quiet)
    assert result.stopped == "interrupted"
    assert result.steps == 4
    assert result.best_epoch == 2
    assert is_finite(vae)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert not interrupts.requested
            signal.raise_signal(signal.SIGTERM)
            assert interrupts.requested
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# -- limits -------------------------------------------------------------------------------


class Clock:
    """Time that passes by one second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


def test_the_first_of_two_limits_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "time", Clock())
    x = data(40)
    short = fit(small_vae(), x, epochs=1000, max_seconds=100, batch_size=10, **quiet)
    assert short.stopped == "time"
    assert short.epochs < 1000
    few = fit(small_vae(), x, epochs=2, max_seconds=10_000, batch_size=10, **quiet)
    assert few.stopped == "finished"
    assert few.epochs == 2


def test_an_epoch_cut_by_the_time_limit_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "time", Clock())
    result = fit(small_vae(), data(1000), validation=data(9), max_seconds=30, batch_size=10, **quiet)
    assert result.stopped == "time"
    assert 0 < result.steps < 100
    assert result.epochs == 1
    assert result.best_loss == result.history[0]["validation_loss"]


def test_networks_that_cannot_be_compiled_train_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def compile_badly(self: nn.Module) -> None:
        def call(*_: Any, **__: Any) -> None:
            raise TorchDynamoException("no C++ compiler")

        self._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compile_badly)
    vae = small_vae()
    with pytest.warns(TrainingWarning, match=r"compile: .*no C\+\+ compiler.*goes on without"):
        result = fit(vae, data(20), epochs=2, compile=True, **quiet)
    assert result.epochs == 2
    assert not result.ok
    assert all(m._compiled_call_impl is None for m in vae.children())


# -- data ---------------------------------------------------------------------------------


def test_constant_and_collinear_columns_are_said_in_the_result() -> None:
    x = torch.randn(30, 2)
    with pytest.warns(TrainingWarning, match=r"column\(s\) 1 are constant"):
        result = fit(small_vae(), torch.stack([x[:, 0], torch.ones(30)], 1), epochs=1, **quiet)
    assert not result.ok
    with pytest.warns(TrainingWarning, match=r"column\(s\) 1 \(from 0\) are linear"):
        assert not fit(small_vae(), torch.stack([x[:, 0], 2 * x[:, 0]], 1), epochs=1, **quiet).ok
    assert fit(small_vae(), x, epochs=1, **quiet).ok
    with pytest.warns(TrainingWarning, match="0, 1 are constant"):
        fit(small_vae(), torch.ones(30, 2), epochs=1, **quiet)
    black = Split(torch.zeros(30, 2), values=grid(3))
    assert fit(small_vae(), black, epochs=1, **quiet).ok, "grey levels that never occur are no fault"


def test_bad_validation_data_are_named_and_nothing_is_trained() -> None:
    x, model = data(10), small_flow()
    before = parameters(model)
    poisoned = x.clone()
    poisoned[2, 0] = math.inf
    with pytest.raises(ShapeError, match=r"validation: RealNVP is built for event_shape=\(2,\).*\(3,\)"):
        fit(model, x, validation=torch.randn(4, 3), **quiet)
    with pytest.raises(DataError, match="validation: expected finite numbers, got 1 NaN or infinite"):
        fit(model, x, validation=poisoned, **quiet)
    levels = Split(torch.ones(4, 2), values=grid(3))
    with pytest.raises(DataError, match="validation: the training data are real values, got grid of 3"):
        fit(model, x, validation=levels, **quiet)
    with pytest.raises(DataError, match="validation: a conditional model needs y"):
        fit(small_vae(context_dim=1), (x, x[:, :1]), validation=x, **quiet)
    assert torch.equal(before, parameters(model))


def test_bad_validation_data_of_a_plain_pair_are_named_before_the_first_step() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Gamma(x.exp().sum(-1), 1.0), obs=y)

    x, y = torch.randn(6, 2), torch.ones(6)
    with pytest.raises(DataError, match="validation: the training data have 2 arguments, got 1"):
        fit(model, (x, y), validation=x, **quiet)
    with pytest.raises(DataError, match="validation: .*site 'y'"):
        fit(model, (x, y), validation=(x, -y), **quiet)
    with pytest.raises(DataError, match="validation: .*site 'y' cannot be evaluated .*broadcastable"):
        fit(model, (x, y), validation=(x, torch.ones(6, 5)), **quiet)
    with pytest.raises(DataError, match="data: argument 1: expected numbers"):
        fit(model, (x, ["a"] * 6), **quiet)


class Stream(IterableDataset[Tensor]):
    """Data without end."""

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.randn(2)


class Torn(Dataset[Tensor]):
    """A data set with one item that cannot be read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 5:
            raise OSError("bad sector")
        return torch.randn(2)


def test_torch_data_are_taken_or_refused_with_what_to_do() -> None:
    vae = small_vae()
    before = parameters(vae)
    with pytest.raises(DataError, match="item 5 of Torn could not be read .OSError: bad sector"):
        fit(vae, Torn(), **quiet)
    with pytest.raises(ConfigError, match="Stream is iterable .*as_split"):
        fit(vae, Stream(), **quiet)
    with pytest.raises(DataError, match="got a torch DataLoader; pass its dataset"):
        fit(vae, DataLoader(TensorDataset(data(8))), **quiet)
    with pytest.raises(DataError, match="item 5 of Torn"):
        fit(lambda x: None, Torn(), **quiet)
    with pytest.raises(DataError, match="data: argument 0: expected numbers, got .*DataLoader"):
        fit(lambda x: None, DataLoader(TensorDataset(data(8))), **quiet)
    assert torch.equal(before, parameters(vae))
    assert fit(vae, TensorDataset(data(8)), epochs=1, **quiet).epochs == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 1.5}, "epochs: expected a positive integer, got 1.5"),
        ({"batch_size": True}, "batch_size: expected a positive integer, got True"),
        ({"learning_rate": "fast"}, "learning_rate: expected a positive number, got 'fast'"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"autocast": torch.float32}, "autocast: expected torch.bfloat16"),
    ],
)
def test_options_of_another_type_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        fit(small_vae(), data(10), **(quiet | options))


def test_the_model_is_left_in_evaluation_mode_after_an_error_too() -> None:
    vae = small_vae()
    fit(vae, data(10), epochs=1, **quiet)
    assert not vae.training
    broken = types.SimpleNamespace(count=0)

    class Failing(ELBO):
        def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
            broken.count += 1
            if broken.count == 3:
                raise RuntimeError("planted")
            return super().loss(model, guide, *args, **kwargs)

    with pytest.raises(RuntimeError, match="planted"):
        fit(vae, data(10), epochs=9, objective=Failing(), **quiet)
    assert not vae.training
    assert is_finite(vae)
