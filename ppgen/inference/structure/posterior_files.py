"""Posteriors over graphs on disk: safetensors and JSON, nothing that is executed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError
from ppgen.inference.checkpoint import read_bundle, write_bundle
from ppgen.inference.structure.problem import Learned
from ppgen.inference.trainee import find_device

if TYPE_CHECKING:
    from ppgen.inference.structure.posterior import GraphPosterior

_KIND = "ppgen.GraphPosterior"
# Classes of distributions over graphs and their modules. A file can name these and no others.
_SOURCES = {
    "ExactSource": "ppgen.inference.structure.exact.source",
    "SampledSource": "ppgen.inference.structure.graph_samples",
}


def save_posterior(posterior: GraphPosterior, path: str | os.PathLike[str]) -> None:
    """Write a posterior to the directory ``path``, atomically.

    Raises:
        CheckpointError: the place cannot be written, or holds something else.
        ConfigError: a source of a class that is not ppgen's own.
    """
    learned = posterior.learned
    kind = type(learned.source).__name__
    if kind not in _SOURCES:
        raise ConfigError(
            f"posterior: a source of class {kind} cannot be saved, only {', '.join(_SOURCES)}; "
            "save graphs drawn from it"
        )
    tensors, values = learned.source.state()
    write_bundle(
        Path(path),
        {
            "kind": _KIND,
            "names": list(posterior.names),
            "agent_names": list(posterior.agent_names),
            "targets": [list(target) for target in posterior.targets],
            "method": posterior.method,
            "source": {"class": kind, "tensors": tensors, "values": _plain(values)},
            "warnings": list(learned.warnings),
            "attributes": _plain(learned.attributes),
            "agent_probabilities": learned.agent_probabilities,
            "draws": learned.draws,
            "weighted_graph": learned.weighted_graph,
        },
    )


def load_posterior(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> GraphPosterior:
    """Read what :func:`save_posterior` wrote, on ``device``.

    Raises:
        CheckpointError: the directory is damaged, or holds something else.
        DeviceError: there is no such device here.
    """
    from ppgen.inference.structure.posterior import GraphPosterior

    tree = read_bundle(Path(path), find_device(device))
    if tree.get("kind") != _KIND:
        raise CheckpointError(f"path: {path} holds no posterior over graphs; load it by what it is")
    try:
        source = tree["source"]
        module = importlib.import_module(_SOURCES[source["class"]])
        cls = getattr(module, source["class"])
        learned = Learned(
            source=cls.from_state(source["tensors"], source["values"]),
            warnings=tuple(tree["warnings"]),
            attributes=tree["attributes"],
            agent_probabilities=tree["agent_probabilities"],
            draws=tree["draws"],
            weighted_graph=tree["weighted_graph"],
        )
        return GraphPosterior(
            tree["names"],
            learned,
            agent_names=tree["agent_names"],
            targets=tree["targets"],
            method=tree["method"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"path: {path} is not a posterior of this version ({type(error).__name__}: {error}); "
            "learn it anew"
        ) from error


def _plain(value: Any) -> Any:
    """A value as tensors and JSON; what is neither becomes its text."""
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return str(value)
