"""Checkpoints and saved models: safetensors and JSON in a directory, written atomically.

Layout of a checkpoint directory::

    run/
      step-00000120/  tensors.safetensors  state.json  manifest.json
      step-00000240/  ...

``manifest.json`` holds the format's version and the sha256 of each other file. A checkpoint
is written beside its final name, flushed to disk, and renamed; the two newest are kept, so a
damaged newest one falls back to the one before. Reading executes no code.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppgen.contract import GenerativeModel
from ppgen.errors import CheckpointError, CheckpointWarning, ConfigError
from ppgen.inference.trainee import find_device
from ppgen.ops.random import forked_rng

FORMAT = 1
_KEPT = 2


class _NewerFormatError(CheckpointError):
    """Whole, but not for this version: going on from an older one would throw work away."""


def write_bundle(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a nested dict of tensors, numbers, strings, lists and dicts to the directory ``path``.

    Atomic: a failure (full disk, kill) leaves what stood at ``path`` as it was.

    Raises:
        CheckpointError: a leaf that is neither a tensor nor JSON; something else than a checkpoint
            stands at ``path``, and would be lost; or the disk refused.
    """
    path = path.absolute()
    foreign = path.is_dir() and not (path / "manifest.json").is_file() and any(path.iterdir())
    if path.is_file() or foreign:
        raise CheckpointError(
            f"path: {path} exists and is no checkpoint; it was left alone, choose a new directory"
        )
    tensors: dict[str, Tensor] = {}
    skeleton = _lift_tensors(tree, tensors, "")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "tensors.safetensors")
        (temporary / "state.json").write_text(json.dumps(skeleton))
        files = ("tensors.safetensors", "state.json")
        manifest = {"format": FORMAT, "sha256": {name: _sha256(temporary / name) for name in files}}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        for name in (*files, "manifest.json"):
            _flush(temporary / name)
        _swap(temporary, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"path: could not write {path} ({error}); what stood there before is intact; "
            "free some space or choose another directory"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_bundle(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what :func:`write_bundle` wrote, after checking every sha256.

    Raises:
        CheckpointError: a missing, truncated or altered file, or a newer format.
    """
    if not path.exists() and _aside(path).is_dir():
        path = _aside(path)  # the writer was killed between its two renames
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format"] > FORMAT:
            raise _NewerFormatError(
                f"path: {path} has format {manifest['format']}, this version reads up to {FORMAT}; "
                "update ppgen"
            )
        for name, digest in manifest["sha256"].items():
            if _sha256(path / name) != digest:
                raise CheckpointError(
                    f"path: {path / name} is damaged (its sha256 differs from the manifest)"
                )
        tensors = load_file(path / "tensors.safetensors", device=str(device))
        tree = _lower_tensors(json.loads((path / "state.json").read_text()), tensors)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"path: {path} is not a readable checkpoint ({type(error).__name__}: {error}); "
            "use another one or start afresh"
        ) from error
    return dict(tree)


class CheckpointDirectory:
    """The numbered checkpoints of one training run.

    Args:
        path: the directory; made when the first checkpoint is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def prepare(self) -> None:
        """Make the directory.

        Raises:
            CheckpointError: nothing can be written there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise CheckpointError(
                f"checkpoint: cannot write to {self.path} ({error}); choose another directory"
            ) from error

    def write(self, step: int, tree: Mapping[str, Any]) -> None:
        """Add the checkpoint of ``step`` and drop all but the newest two."""
        write_bundle(self.path / f"step-{step:010d}", tree)
        for old in self._steps()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def read_latest(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or ``None`` where there is none.

        A damaged one is passed over with a :class:`~ppgen.errors.CheckpointWarning`.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged, or the newest whole one is
                of a newer format.
        """
        steps = self._steps()
        for path in reversed(steps):
            try:
                return read_bundle(path, device)
            except _NewerFormatError:
                raise
            except CheckpointError as error:
                warnings.warn(f"passed over: {error}", CheckpointWarning, stacklevel=3)
        if steps:
            raise CheckpointError(
                f"checkpoint: all {len(steps)} checkpoints in {self.path} are damaged; "
                "remove the directory to start afresh"
            )
        return None

    def _steps(self) -> list[Path]:
        return sorted(self.path.glob("step-*")) if self.path.is_dir() else []


def save_model(model: GenerativeModel, path: str | os.PathLike[str]) -> None:
    """Save a model so that :func:`load_model` rebuilds it: its class, arguments and ``state_dict``.

    Raises:
        ConfigError: a constructor argument that JSON cannot hold (a function, a network).
    """
    cls = type(model)
    try:
        config = json.loads(json.dumps(model.config))
    except TypeError as error:
        raise ConfigError(
            f"model: the arguments of {cls.__name__} cannot be saved ({error}); save model.state_dict() "
            "and rebuild the model in code"
        ) from error
    tree = {"class": f"{cls.__module__}:{cls.__qualname__}", "config": config, "state": model.state_dict()}
    write_bundle(Path(path), tree)


def load_model(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> GenerativeModel:
    """Rebuild a model that :func:`save_model` wrote, on ``device``, in evaluation mode.

    It does not matter on which device it was saved.

    Only classes of modules that are installed are looked up by name; no code is read from the file.

    Raises:
        CheckpointError: the directory is damaged, or its class is not a generative model here.
        DeviceError: there is no such device here.
    """
    device = find_device(device)
    tree = read_bundle(Path(path), device)
    cls = _find_class(str(tree.get("class", "")), path)
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in tree["config"].items()}
    try:
        with forked_rng(0):  # what the constructor draws is overwritten below
            model: GenerativeModel = cls(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"path: {cls.__name__} cannot be built from the arguments in {path} ({error}); "
            "they are of another version of it"
        ) from error
    dtype = next((t.dtype for t in tree["state"].values() if t.is_floating_point()), None)
    model.to(device=device, dtype=dtype)
    try:
        model.load_state_dict(tree["state"])
    except RuntimeError as error:
        raise CheckpointError(f"path: {path} does not fit this {cls.__name__} ({error})") from error
    model.train(False)
    return model


def _find_class(name: str, path: str | os.PathLike[str]) -> Any:
    """The model class ``module:Class``: one of ppgen's, or of a module that is imported already.

    A file cannot make other modules be imported, which would run their code.
    """
    module, _, qualname = name.partition(":")
    if module.startswith("ppgen."):
        importlib.import_module(module)
    cls = getattr(sys.modules.get(module), qualname, None)
    if not (isinstance(cls, type) and issubclass(cls, GenerativeModel)):
        raise CheckpointError(
            f"path: {path} holds a model of class {name!r}, which is no generative model known here; "
            "import the module that defines it first"
        )
    return cls


def _lift_tensors(node: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """The tree with each tensor replaced by its number in ``tensors``; keys may be integers."""
    if isinstance(node, Tensor):
        tensors[str(len(tensors))] = node.detach().to("cpu").contiguous().clone()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(node, Mapping):
        return {"items": [[k, _lift_tensors(v, tensors, f"{where}.{k}")] for k, v in node.items()]}
    if isinstance(node, list | tuple):
        return {"list": [_lift_tensors(v, tensors, f"{where}[]") for v in node]}
    if node is None or isinstance(node, bool | int | float | str):
        return {"value": node}
    raise CheckpointError(f"state{where}: a checkpoint holds tensors and JSON, got {type(node).__name__}")


def _lower_tensors(node: Any, tensors: dict[str, Tensor]) -> Any:
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "items" in node:
        return {k: _lower_tensors(v, tensors) for k, v in node["items"]}
    if "list" in node:
        return [_lower_tensors(v, tensors) for v in node["list"]]
    return node["value"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _swap(temporary: Path, path: Path) -> None:
    """Put ``temporary`` where ``path`` stands; directories cannot be replaced in one call."""
    old = _aside(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _aside(path: Path) -> Path:
    """Where what stood at ``path`` waits while its successor moves in."""
    return path.with_name(f".{path.name}.old")
