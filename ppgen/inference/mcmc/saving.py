"""What a run of MCMC writes down, so that another process goes on with the same draws.

A saved run is a bundle of :mod:`ppgen.inference.checkpoint` (safetensors, JSON and checksums): the
settings, the data where they are tensors, arrays and plain values, what has been drawn, and the exact
state of chains, adaptation and random numbers. The model is a function and is not saved; what is given
in its place must have the same latent sites.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import CheckpointError
from ppgen.inference.checkpoint import CheckpointDirectory, read_bundle
from ppgen.inference.resume import data_digest

_KIND = "mcmc"


class _CannotBeSavedError(Exception):
    """An argument of the model that is neither a tensor, an array nor a plain value."""


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a saved run, or the newest whole checkpoint of a directory of them.

    Raises:
        CheckpointError: damaged, missing, of a newer version, or not a run of MCMC.
    """
    place = Path(path)
    tree = read_bundle(place) if is_bundle(place) else CheckpointDirectory(place).read_latest()
    if tree is None:
        raise CheckpointError(f"path: {place} holds no saved run; check the path")
    return check_kind(tree, place)


def check_kind(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """``tree``, read from ``path``, if it is a run of MCMC.

    Raises:
        CheckpointError: it is something else.
    """
    if tree.get("kind") != _KIND:
        raise CheckpointError(f"path: {path} holds something else than a run of MCMC; check the path")
    return tree


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is one saved run, damaged or whole, rather than a directory of checkpoints."""
    return not any(Path(path).glob("step-*"))


def make_tree(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that is written: ``parts``, and what kind of thing they are."""
    return {"kind": _KIND, **parts}


def check_same(name: str, saved: object, given: object) -> None:
    """Raise :class:`~ppgen.errors.CheckpointError` unless the run was saved with what is given now."""
    if saved != given:
        raise CheckpointError(
            f"{name}: the saved run has {saved}, this one {given}; give what the run was started with, "
            "or start a new run elsewhere"
        )


def encode_data(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model's arguments as a tree for a bundle; ``None`` where some cannot be saved."""
    try:
        return {"args": _encode(args), "kwargs": _encode(dict(kwargs))}
    except _CannotBeSavedError:
        return None


def decode_data(tree: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What :func:`encode_data` encoded, tensors on the device where they were if it is there."""
    return _decode(tree["args"]), _decode(tree["kwargs"])


def digest_of_data(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A hash of all tensors, arrays and plain values; what else there is counts by its type only."""
    digest = hashlib.sha256()
    _update(digest, [list(args), dict(kwargs)])
    return digest.hexdigest()[:16]


def _encode(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"tensor": value.detach(), "device": str(value.device)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return {"array": torch.from_numpy(np.ascontiguousarray(value))}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    if type(value) in (tuple, list):
        return {"tuple" if type(value) is tuple else "list": [_encode(v) for v in value]}
    if type(value) is dict and all(type(k) in (str, int) for k in value):
        return {"dict": [[k, _encode(v)] for k, v in value.items()]}
    raise _CannotBeSavedError


def _decode(node: Mapping[str, Any]) -> Any:
    if "tensor" in node:
        there = not str(node["device"]).startswith("cuda") or torch.cuda.is_available()
        return node["tensor"].to(node["device"]) if there else node["tensor"]
    if "array" in node:
        return node["array"].numpy()
    if "tuple" in node:
        return tuple(_decode(v) for v in node["tuple"])
    if "list" in node:
        return [_decode(v) for v in node["list"]]
    if "dict" in node:
        return {k: _decode(v) for k, v in node["dict"]}
    return node["value"]


def _update(digest: Any, value: Any) -> None:
    """Add ``value`` to the digest."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        digest.update(data_digest([value.detach().reshape(-1)]).encode())
        digest.update(str(tuple(value.shape)).encode())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _update(digest, value[key])
    elif isinstance(value, tuple | list):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _update(digest, item)
    elif value is None or isinstance(value, bool | int | float | str):
        digest.update(f"{value!r};".encode())
    else:
        digest.update(type(value).__qualname__.encode())
