"""What a training run writes down, so that another process goes on with the same numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import CheckpointError
from ppgen.inference.objectives.base import Stepper
from ppgen.inference.result import FitResult
from ppgen.inference.trainee import Trainee

_CHUNK = 1 << 26  # bytes of data that are hashed at a time


@dataclass
class Progress:
    """Where a run stands, beside its history.

    Attributes:
        position: batches done in the epoch under way.
        rows: data in those batches whose figures were finite.
        sums: sum of each figure over those data.
        rate_factor: what rollbacks have made of the learning rate.
        rollbacks: how many there were.
        seconds: time spent.
    """

    position: int = 0
    rows: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    rate_factor: float = 1.0
    rollbacks: int = 0
    seconds: float = 0.0


def data_digest(tensors: Iterable[Tensor]) -> str:
    """Hash of types, shapes and every number; the same on all devices."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        rows = max(1, _CHUNK * len(tensor) // max(1, tensor.numel() * tensor.element_size()))
        for chunk in tensor.detach().split(rows):
            digest.update(chunk.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def pack(
    fingerprint: dict[str, Any],
    progress: Progress,
    result: FitResult,
    trainee: Trainee,
    stepper: Stepper,
    best: dict[str, Tensor] | None,
    device: torch.device,
) -> dict[str, Any]:
    """A tree of tensors and JSON that holds the whole run."""
    rng = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(device)
    record = {
        "fingerprint": fingerprint,
        "progress": asdict(progress),
        "history": result.history,
        "steps": result.steps,
        "best_loss": result.best_loss,
        "best_epoch": result.best_epoch,
        "warnings": result.warnings,
    }
    return {
        "trainee": trainee.state(),
        "best": best,
        "stepper": stepper.state_dict(),
        "rng": rng,
        "record": json.dumps(record),
    }


def unpack(
    saved: dict[str, Any],
    fingerprint: dict[str, Any],
    result: FitResult,
    trainee: Trainee,
    stepper: Stepper,
    device: torch.device,
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Put the run that :func:`pack` wrote into ``result``, ``trainee``, ``stepper`` and the generators.

    A run saved on CUDA goes on elsewhere, from other random numbers.

    Returns:
        Where it stands, and its best state.

    Raises:
        CheckpointError: the run saved was another one, by its fingerprint; nothing is changed.
    """
    try:
        record = json.loads(saved["record"])
        different = [key for key in fingerprint if record["fingerprint"].get(key) != fingerprint[key]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint: what is saved there is no training run of this version "
            f"({type(error).__name__}: {error}); use another directory"
        ) from error
    if different:
        raise CheckpointError(
            f"checkpoint: the run saved there differs from this one in {', '.join(different)}; "
            "use another directory, or the same arguments"
        )
    trainee.restore(saved["trainee"])
    stepper.load_state_dict(saved["stepper"])
    for name in ("history", "steps", "best_loss", "best_epoch", "warnings"):
        setattr(result, name, record[name])
    torch.set_rng_state(saved["rng"]["cpu"])
    if device.type == "cuda" and "cuda" in saved["rng"]:
        torch.cuda.set_rng_state(saved["rng"]["cuda"], device)
    return Progress(**record["progress"]), saved["best"]
