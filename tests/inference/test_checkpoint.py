"""Checkpoints: round trip, atomic writes, damage found, no code run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ppgen
from ppgen.errors import CheckpointError, CheckpointWarning, ConfigError, DeviceError
from ppgen.inference import checkpoint
from ppgen.inference.checkpoint import CheckpointDirectory, read_bundle, write_bundle
from ppgen.models import VAE
from ppgen.ops.random import forked_rng

TREE: dict[str, Any] = {
    "tensor": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "nested": {"list": [1, 2.5, None, True, "text"], 3: torch.tensor([True, False])},
}


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def test_round_trip(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", TREE)
    found = read_bundle(tmp_path / "a")
    assert torch.equal(found["tensor"], TREE["tensor"])
    assert found["half"].dtype == torch.bfloat16
    assert found["nested"]["list"] == [1, 2.5, None, True, "text"]
    assert torch.equal(found["nested"][3], TREE["nested"][3])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_the_previous_checkpoint_taken(tmp_path: Path, name: str, damage: str) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.write(1, {"step": 1, "w": torch.ones(4)})
    directory.write(2, {"step": 2, "w": torch.ones(4)})
    file = sorted(tmp_path.glob("step-*"))[-1] / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    with pytest.warns(CheckpointWarning, match="passed over"):
        found = directory.read_latest()
    assert found is not None
    assert found["step"] == 1


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.write(1, {"step": 1})
    (tmp_path / "step-0000000001" / "state.json").write_text("{}")
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match="all 1 checkpoints"):
        directory.read_latest()


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    assert directory.read_latest() is None
    for step in range(5):
        directory.write(step, {"step": step})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-0000000003", "step-0000000004"]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", TREE)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    manifest["format"] = checkpoint.FORMAT + 1
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="update ppgen"):
        read_bundle(tmp_path / "a")


def test_a_full_disk_leaves_the_old_file_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "a", {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left .* intact"):
        write_bundle(tmp_path / "a", {"step": 2})
    assert read_bundle(tmp_path / "a")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


class Malicious:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_malicious_pickle_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    pickle.loads(pickle.dumps(Malicious(trap)))
    assert trap.exists(), "the planted pickle is harmless and tests nothing"
    trap.unlink()
    write_bundle(tmp_path / "a", TREE)
    for name in ("tensors.safetensors", "state.json"):
        (tmp_path / "a" / name).write_bytes(pickle.dumps(Malicious(trap)))
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    for name in manifest["sha256"]:
        manifest["sha256"][name] = checkpoint._sha256(tmp_path / "a" / name)
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        read_bundle(tmp_path / "a")
    assert not trap.exists()


def test_a_model_is_saved_and_rebuilt_with_its_dtype(tmp_path: Path) -> None:
    vae = VAE((3,), latent_dim=2, hidden=(5, 4)).double()
    ppgen.save(vae, tmp_path / "vae")
    found = ppgen.load(tmp_path / "vae")
    assert isinstance(found, VAE)
    assert found.config == {"event_shape": (3,), "latent_dim": 2, "hidden": (5, 4)}
    assert torch.equal(found.sample(4, seed=1), vae.sample(4, seed=1))
    assert found.sample(1).dtype == torch.float64
    ppgen.save(vae, tmp_path / "vae")  # onto an existing one
    assert ppgen.load(tmp_path / "vae").config == found.config


def test_a_file_cannot_make_a_module_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unheard_of.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("unheard_of:Model", "pathlib:Path", "ppgen.errors:DataError", "nonsense"):
        write_bundle(tmp_path / "m", {"class": name, "config": {}, "state": {}})
        with pytest.raises(CheckpointError, match="no generative model known"):
            ppgen.load(tmp_path / "m")


def test_arguments_that_json_cannot_hold_are_named(tmp_path: Path) -> None:
    wrapped = ppgen.wrap(lambda x=None, num=None: None)
    with pytest.raises(ConfigError, match="cannot be saved"):
        ppgen.save(wrapped, tmp_path / "m")


def test_a_missing_directory_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        ppgen.load(tmp_path / "nowhere")


def test_a_newer_checkpoint_is_not_passed_over_for_an_older_one(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.write(1, {"step": 1})
    directory.write(2, {"step": 2})
    manifest = tmp_path / "step-0000000002" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {checkpoint.FORMAT}', '"format": 99'))
    with pytest.raises(CheckpointError, match=r"step-0000000002 has format 99.*update ppgen"):
        directory.read_latest()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_rename_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "a", {"step": 1})
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(CheckpointError, match=r"Input/output error.*intact"):
            write_bundle(tmp_path / "a", {"step": 2})
    assert read_bundle(tmp_path / "a")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_writer_killed_between_its_renames_leaves_the_old_one_readable(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", {"step": 1})
    (tmp_path / "a").rename(checkpoint._aside(tmp_path / "a"))
    assert read_bundle(tmp_path / "a")["step"] == 1
    write_bundle(tmp_path / "a", {"step": 2})
    assert read_bundle(tmp_path / "a")["step"] == 2


def test_an_interrupt_while_writing_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_bundle(tmp_path / "a", {"step": 1})
    monkeypatch.setattr(checkpoint, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "a", {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert read_bundle(tmp_path / "a")["step"] == 1


def test_a_loaded_model_is_in_evaluation_mode_on_a_device_that_exists(tmp_path: Path) -> None:
    ppgen.save(VAE((3,), latent_dim=2, hidden=(4,)), tmp_path / "vae")
    assert not ppgen.load(tmp_path / "vae").training
    with pytest.raises(DeviceError, match="'quantum'"):
        ppgen.load(tmp_path / "vae", device="quantum")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_loading_onto_cuda_that_is_absent(tmp_path: Path) -> None:
    ppgen.save(VAE((3,), latent_dim=2, hidden=(4,)), tmp_path / "vae")
    with pytest.raises(DeviceError, match="no CUDA device"):
        ppgen.load(tmp_path / "vae", device="cuda")


def test_arguments_of_another_version_are_said_so(tmp_path: Path) -> None:
    ppgen.save(VAE((3,), latent_dim=2, hidden=(4,)), tmp_path / "vae")
    tree = read_bundle(tmp_path / "vae")
    for change, match in (({"flavour": 1}, "flavour"), ({"latent_dim": 5}, "does not fit this VAE")):
        write_bundle(tmp_path / "other", tree | {"config": tree["config"] | change})
        with pytest.raises(CheckpointError, match=match):
            ppgen.load(tmp_path / "other")


def test_what_is_no_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data.csv").write_text("keep me too")
    for target in (tmp_path / "notes.txt", tmp_path / "folder", tmp_path):
        with pytest.raises(CheckpointError, match="exists and is no checkpoint"):
            write_bundle(target, TREE)
    assert (tmp_path / "notes.txt").read_text() == "keep me"
    assert (tmp_path / "folder" / "data.csv").read_text() == "keep me too"
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", {"step": 1})
    assert read_bundle(tmp_path / "empty")["step"] == 1
