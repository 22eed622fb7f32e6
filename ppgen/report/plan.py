"""What a survey is asked to do: its families, its settings, and a digest that tells two runs apart."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from ppgen import __version__
from ppgen.contract import GenerativeModel
from ppgen.datasets.split import DataSet
from ppgen.errors import ConfigError
from ppgen.models import families as registered_families
from ppgen.models.family import Family
from ppgen.report.table import SCHEMA

# Networks for data of fewer coordinates gain little from a second thread, and lose many
# times over by it where other programs share the cores.
_ONE_THREAD_BELOW = 256


@dataclass(frozen=True)
class Settings:
    """What all families of a survey share.

    Attributes:
        budget: seconds of training over all of them.
        device: where they are trained.
        seed: of everything random.
        num_samples: draws a family.
        threads: threads of torch on the CPU.
        progress: whether lines and bars go to stderr.
    """

    budget: float
    device: torch.device
    seed: int
    num_samples: int
    threads: int
    progress: bool

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise ConfigError(f"budget: expected a positive number of seconds, got {self.budget}")
        if self.threads < 1:
            raise ConfigError(f"threads: expected a positive integer, got {self.threads}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed: expected an integer from 0 to 2**32 - 1, got {self.seed}")
        if self.num_samples < 2:
            raise ConfigError(f"num_samples: expected 2 or more, got {self.num_samples}")

    def environment(self, data: DataSet, seconds: float) -> dict[str, Any]:
        """Versions, machine and settings, for the foot of the page and for ``table.json``."""
        cuda = self.device.type == "cuda"
        return {
            "data": data.name,
            "ppgen": __version__,
            "torch": torch.__version__,
            "pyro": pyro.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(terse=True),
            "device": torch.cuda.get_device_name(self.device) if cuda else str(self.device),
            "threads": self.threads,
            "seed": self.seed,
            "budget": self.budget,
            "num_samples": self.num_samples,
            "seconds": round(seconds, 1),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def signature(self, family: Family, model: GenerativeModel, data: DataSet) -> str:
        """A sha256 of all that decides the figures of a row, short of the machine's speed."""
        config = {
            "schema": SCHEMA,
            "versions": [__version__, torch.__version__, pyro.__version__],
            "family": family.name,
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "config": model.config,
            "options": dict(family.fit_options),
            "budget": self.budget,
            "device": self.device.type,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "values": str(data.values),
        }
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=_name_of).encode())
        for split in (data.train, data.validation, data.test):
            digest.update(str((split.x.dtype, tuple(split.x.shape))).encode())
            digest.update(split.x.detach().cpu().contiguous().numpy().tobytes())
            # Features are made with the labels.
            if split.y is not None:
                digest.update(split.y.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def default_threads(num_dims: int) -> int:
    """How many threads suit networks for data of ``num_dims`` coordinates."""
    return 1 if num_dims < _ONE_THREAD_BELOW else torch.get_num_threads()


def choose(families: Sequence[str | Family] | None) -> list[Family]:
    """The families asked for, in the order given; those made for a survey for ``None``.

    A group's name (``"flow"``) stands for all its families, ``"all"`` for every one.

    Raises:
        ConfigError: an unknown name, none at all, or one twice.
    """
    if families is not None and all(isinstance(f, Family) for f in families):
        chosen = [f for f in families if isinstance(f, Family)]
    else:
        known = registered_families()
        names = [f.name for f in known.values() if f.surveyed] if families is None else list(families)
        groups = {
            f.group: [g for g in known.values() if g.group == f.group] for f in known.values() if f.group
        }
        groups["all"] = list(known.values())
        chosen = []
        for name in names:
            if isinstance(name, Family):
                chosen.append(name)
            elif name in known or name in groups:
                chosen.extend([known[name]] if name in known else groups[name])
            else:
                raise ConfigError(
                    f"families: expected names among {', '.join([*known, *groups])}; got {name!r}"
                )
    duplicates = len({f.name for f in chosen}) != len(chosen)
    if not chosen or duplicates:
        raise ConfigError(f"families: expected one or more, each once, got {[f.name for f in chosen]}")
    return chosen


def _name_of(value: Any) -> str:
    """A stable name of an option that JSON cannot hold: never an address in memory."""
    if isinstance(value, Mapping):
        return json.dumps(dict(value), sort_keys=True, default=_name_of)
    if isinstance(value, functools.partial):
        return json.dumps(
            [_name_of(value.func), value.args, value.keywords], sort_keys=True, default=_name_of
        )
    if callable(value):
        return (
            f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
        )
    fields = getattr(value, "__dict__", {})
    return f"{type(value).__qualname__}({json.dumps(fields, sort_keys=True, default=_name_of)})"
