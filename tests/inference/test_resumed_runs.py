"""Checkpoints of a run: what resumes, what is refused, and faults of the disk that cost nothing learnt."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppgen.errors import CheckpointError, CheckpointWarning, TrainingWarning
from ppgen.inference import checkpoint, run
from ppgen.inference.checkpoint import CheckpointDirectory, read_bundle, write_bundle
from ppgen.inference.objectives.base import Program
from ppgen.inference.objectives.elbo import ELBO
from ppgen.inference.result import FitResult
from ppgen.inference.resume import data_digest
from ppgen.inference.svi import fit
from ppgen.models import VAE
from ppgen.ops.random import forked_rng

quiet: dict[str, Any] = {"device": "cpu", "progress": False}


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def data(num: int) -> Tensor:
    return torch.tensor([1.0, -2.0]) + torch.tensor([0.5, 2.0]) * torch.randn(num, 2)


def small_vae() -> VAE:
    with forked_rng(7):
        return VAE((2,), latent_dim=1, hidden=(8,))


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def numbers(result: FitResult) -> list[dict[str, float | None]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


class Ticking(ELBO):
    """The ELBO, each step of which takes a second of the clock ``now``."""

    def __init__(self, now: list[float]) -> None:
        super().__init__()
        self.now = now

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        self.now[0] += torch.is_grad_enabled()
        return super().loss(model, guide, *args, **kwargs)


class Clock:
    """A clock that only :class:`Ticking` moves."""

    def __init__(self, now: list[float]) -> None:
        self.now = now

    def perf_counter(self) -> float:
        return self.now[0]


# -- going on -----------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    x = data(32)
    first = fit(small_vae(), x, epochs=3, checkpoint=tmp_path, **quiet)
    vae = small_vae()
    again = fit(vae, x, epochs=3, checkpoint=tmp_path, **quiet)
    assert again.steps == first.steps
    assert again.epochs == 3
    longer = fit(small_vae(), x, epochs=5, checkpoint=tmp_path, **quiet)
    assert longer.epochs == 5


def test_a_run_cut_by_time_goes_on_with_more_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(run, "time", Clock(now))
    x = data(60)
    options: dict[str, Any] = {"validation": data(9), "epochs": 3, "batch_size": 10} | quiet
    whole = small_vae()
    expected = fit(whole, x, objective=Ticking(now), **options)

    parts = [small_vae() for _ in range(4)]
    limits = [8.5, 8.5, 11.0, None]
    found = [
        fit(vae, x, objective=Ticking(now), max_seconds=limit, checkpoint=tmp_path, **options)
        for vae, limit in zip(parts, limits, strict=True)
    ]
    assert [r.stopped for r in found] == ["time", "time", "time", "finished"]
    assert [r.steps for r in found] == [9, 9, 11, 18]
    assert [r.epochs for r in found] == [2, 2, 2, 3]  # the last one cut
    assert numbers(found[1]) == numbers(found[0]), "the same limit: nothing more is done"
    assert torch.equal(parameters(parts[3]), parameters(whole))
    assert numbers(found[3]) == numbers(expected)


def test_a_run_that_stopped_early_goes_on_with_more_patience(tmp_path: Path) -> None:
    x, held_out = data(30), -data(10)
    options: dict[str, Any] = {"validation": held_out, "epochs": 60, "learning_rate": 0.05} | quiet
    first = fit(small_vae(), x, patience=3, checkpoint=tmp_path, **options)
    assert first.stopped == "early"
    again = fit(small_vae(), x, patience=3, checkpoint=tmp_path, **options)
    assert again.stopped == "early"
    assert numbers(again) == numbers(first)
    longer = small_vae()
    found = fit(longer, x, patience=6, checkpoint=tmp_path, **options)
    assert found.epochs > first.epochs
    whole = small_vae()
    assert numbers(fit(whole, x, patience=6, **options)) == numbers(found)
    assert torch.equal(parameters(whole), parameters(longer))


def test_a_schedule_and_a_rollback_resume_to_the_same_numbers(tmp_path: Path) -> None:
    class Broken(ELBO):
        """One loss of NaN in the third step, and a signal to end in the sixth, if asked for."""

        def __init__(self, count: int, stop: bool) -> None:
            super().__init__()
            self.count, self.stop = count, stop

        def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
            self.count += torch.is_grad_enabled()
            if self.count == 6 and self.stop:
                signal.raise_signal(signal.SIGTERM)
            loss = super().loss(model, guide, *args, **kwargs)
            return loss * torch.nan if self.count == 3 else loss

    x = data(40)
    options: dict[str, Any] = {"epochs": 5, "batch_size": 20, "schedule": "cosine"} | quiet
    whole, resumed = small_vae(), small_vae()
    with pytest.warns(TrainingWarning, match="step 3"):
        expected = fit(whole, x, objective=Broken(0, False), **options)
    with pytest.warns(TrainingWarning, match="step 3"):
        fit(small_vae(), x, objective=Broken(0, True), checkpoint=tmp_path, **options)
    found = fit(resumed, x, objective=Broken(6, False), checkpoint=tmp_path, **options)
    assert found.warnings == expected.warnings
    assert numbers(found) == numbers(expected)
    assert torch.equal(parameters(resumed), parameters(whole))


def test_a_checkpoint_from_cuda_resumes_on_the_cpu(tmp_path: Path) -> None:
    """Its tensors name no device; what is left of CUDA in it is the state of its generator."""
    x, vae = data(32), small_vae()
    fit(small_vae(), x, epochs=2, checkpoint=tmp_path, **quiet)
    (path,) = tmp_path.glob("step-*")
    tree = read_bundle(path)
    tree["rng"]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    write_bundle(path, tree)
    assert fit(vae, x, epochs=4, checkpoint=tmp_path, **quiet).epochs == 4
    expected = small_vae()
    fit(expected, x, epochs=4, **quiet)
    assert torch.equal(parameters(vae), parameters(expected))


@pytest.mark.cuda
def test_a_run_on_cuda_resumes_on_the_cpu(tmp_path: Path) -> None:
    x, vae = data(32), small_vae()
    fit(small_vae(), x, epochs=2, checkpoint=tmp_path, device="cuda", progress=False)
    result = fit(vae, x, epochs=4, checkpoint=tmp_path, **quiet)
    assert result.epochs == 4
    assert vae.device.type == "cpu"


# -- what is refused ----------------------------------------------------------------------


def sgd(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"learning_rate": 0.5}, "in learning_rate;"),
        ({"clip_norm": 1.0}, "in clip_norm;"),
        ({"schedule": "cosine"}, "in schedule;"),
        ({"optimizer": sgd}, "in optimizer;"),
        ({"seed": 3}, "in seed;"),
        ({"batch_size": 8}, "in batch_size;"),
        ({"validation": torch.ones(4, 2)}, "in validation;"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    x, vae = data(32), small_vae()
    fit(small_vae(), x, epochs=1, checkpoint=tmp_path, **quiet)
    kept = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=match):
        fit(vae, x, epochs=2, checkpoint=tmp_path, **options, **quiet)
    assert sorted(tmp_path.iterdir()) == kept
    assert torch.equal(parameters(vae), parameters(small_vae())), "the model is as it was"


def test_a_checkpoint_of_other_data_of_the_same_size_is_refused(tmp_path: Path) -> None:
    x = data(32)
    fit(small_vae(), x, epochs=1, checkpoint=tmp_path, **quiet)
    changed = x.clone()
    changed[17, 1] += 1e-3
    with pytest.raises(CheckpointError, match="differs from this one in data; use another directory"):
        fit(small_vae(), changed, epochs=2, checkpoint=tmp_path, **quiet)


def test_the_digest_of_data_sees_types_shapes_and_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(24.0).reshape(6, 4)
    swapped = x.flip(0)
    kinds = [x, x.double(), x.bfloat16(), x.long(), x.reshape(4, 6), swapped, x > 3]
    digests = {data_digest([kind]) for kind in kinds}
    assert len(digests) == len(kinds)
    assert data_digest([swapped.flip(0).mT.contiguous().mT]) == data_digest([x]), "layout does not count"
    monkeypatch.setattr("ppgen.inference.resume._CHUNK", 20)
    assert {data_digest([kind]) for kind in kinds} == digests


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    CheckpointDirectory(tmp_path).write(3, {"step": 3})
    with pytest.raises(CheckpointError, match="no training run of this version"):
        fit(small_vae(), data(8), checkpoint=tmp_path, **quiet)


# -- the disk -----------------------------------------------------------------------------


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_after_training_costs_the_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, vae, expected = data(40), small_vae(), small_vae()
    options: dict[str, Any] = {"epochs": 3, "validation": data(10)} | quiet
    whole = fit(expected, x, **options)
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.warns(TrainingWarning, match=r"no checkpoint was written. .*No space left") as caught:
        result = fit(vae, x, checkpoint=tmp_path, checkpoint_seconds=0.0, **options)
    assert len(caught) == 1, "told once"
    assert not result.ok
    assert result.stopped == "finished"
    assert numbers(result) == numbers(whole)
    assert torch.equal(parameters(vae), parameters(expected))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = data(40)
    fit(small_vae(), x, epochs=2, checkpoint=tmp_path, **quiet)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.warns(TrainingWarning, match="step 4: no checkpoint was written"):
            fit(small_vae(), x, epochs=4, checkpoint=tmp_path, **quiet)
    resumed, expected = small_vae(), small_vae()
    assert fit(resumed, x, epochs=5, checkpoint=tmp_path, **quiet).ok
    fit(expected, x, epochs=5, **quiet)
    assert torch.equal(parameters(resumed), parameters(expected))


def test_a_directory_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    vae = small_vae()
    with pytest.raises(CheckpointError, match="checkpoint: cannot write to .*choose another directory"):
        fit(vae, data(8), checkpoint=tmp_path / "file" / "run", **quiet)
    assert torch.equal(parameters(vae), parameters(small_vae()))


def test_a_damaged_newest_checkpoint_falls_back_and_ends_at_the_same_numbers(tmp_path: Path) -> None:
    x = data(40)
    for epochs in (2, 4):
        fit(small_vae(), x, epochs=epochs, checkpoint=tmp_path, **quiet)
    newest = sorted(tmp_path.glob("step-*"))[-1] / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4])
    resumed, expected = small_vae(), small_vae()
    with pytest.warns(CheckpointWarning, match="step-0000000004.*damaged"):
        assert fit(resumed, x, epochs=6, checkpoint=tmp_path, **quiet).steps == 6
    fit(expected, x, epochs=6, **quiet)
    assert torch.equal(parameters(resumed), parameters(expected))


def test_a_poisoned_state_is_never_saved(tmp_path: Path) -> None:
    class Late(ELBO):
        """Finite losses; the parameters are poisoned behind its back."""

        def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().loss(model, guide, *args, **kwargs)
            if torch.is_grad_enabled():
                loss.register_hook(lambda grad: grad * torch.nan)
            return loss

    vae = small_vae()
    with pytest.warns(TrainingWarning, match="at the end; went back to step 0"):
        fit(vae, data(8), epochs=1, objective=Late(), checkpoint=tmp_path, **quiet)
    (path,) = tmp_path.glob("step-*")
    saved = read_bundle(path)["trainee"]
    assert all(bool(torch.isfinite(t).all()) for t in saved.values())
    assert bool(torch.isfinite(parameters(vae)).all())
