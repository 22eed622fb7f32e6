"""What is trained: a pair of programs, its parameters and state, and the batches it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ppgen.contract import GenerativeModel
from ppgen.datasets import as_split
from ppgen.datasets.declare import column_warnings
from ppgen.datasets.split import Split
from ppgen.datasets.tensors import as_tensor, check_finite, collate
from ppgen.datasets.values import Values, bridge
from ppgen.errors import ConfigError, DataError, DeviceError, ShapeError
from ppgen.inference.objectives.base import Program
from ppgen.inference.objectives.pair import check_pair

_MANY_COLUMNS = 100  # above, collinear columns are not looked for before training


class Trainee:
    """The model and guide programs, with every tensor that training changes.

    Args:
        model: a :class:`~ppgen.contract.GenerativeModel`, or a plain Pyro model.
        guide: the guide of a plain Pyro model; left out for a generative model.
    """

    def __init__(self, model: Program | GenerativeModel, guide: Program | None = None) -> None:
        self.generative = model if isinstance(model, GenerativeModel) else None
        if self.generative is not None:
            if guide is not None:
                raise ConfigError("guide: a GenerativeModel brings its own guide; leave it out")
            self.model: Program = self.generative.model
            self.guide: Program = self.generative.guide
        elif callable(model):
            self.model, self.guide = model, guide or _empty_guide
        else:
            raise ConfigError(
                f"model: expected a GenerativeModel or a Pyro function, got {type(model).__name__}"
            )
        modules = {"model": model, "guide": guide} if self.generative is None else {"model": model}
        self.modules = {k: m for k, m in modules.items() if isinstance(m, nn.Module)}
        self._site_parameters: dict[str, nn.Parameter] = {}

    def check(self, *args: Any) -> None:
        """Run the pair once, validated, and take up the parameters that it declares by ``pyro.param``."""
        report = check_pair(self.model, self.guide, *args)
        owned = {id(p) for m in self.modules.values() for p in m.parameters()}
        self._site_parameters = {n: p for n, p in report.parameters.items() if id(p) not in owned}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that wants a gradient, once."""
        found = {id(p): p for m in self.modules.values() for p in m.parameters() if p.requires_grad}
        found.update({id(p): p for p in self._site_parameters.values()})
        return list(found.values())

    def state(self) -> dict[str, Tensor]:
        """Every tensor that training may change, by name, not copied."""
        state = {f"{k}.{n}": t for k, m in self.modules.items() for n, t in m.state_dict().items()}
        state.update({f"param.{n}": p.detach() for n, p in self._site_parameters.items()})
        return state

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of :meth:`state`."""
        return {name: tensor.clone() for name, tensor in self.state().items()}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Write a snapshot back in place."""
        for name, tensor in self.state().items():
            tensor.copy_(snapshot[name])

    def train(self, mode: bool = True) -> None:
        """Set the training mode of the networks."""
        for module in self.modules.values():
            module.train(mode)

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        for module in self.modules.values():
            module.to(device)


class Batches:
    """The training or validation data as arguments of the pair, on its device.

    For a generative model, data become ``(x,)``, or ``(x, context)`` with the labels as
    context where it is conditional or takes them; discrete values meet densities through uniform
    dequantisation, with fresh noise each time. For a plain pair, a tuple holds its positional
    arguments, cut along the first dimension.

    Args:
        data: as :func:`ppgen.fit` takes them.
        trainee: what they are for.
        batch_size: rows a batch; ``None`` for all.
        device: where they are kept.
        name: the argument's name, for messages.

    Attributes:
        remarks: sentences on constant or collinear columns of real data.
    """

    def __init__(
        self,
        data: Any,
        trainee: Trainee,
        batch_size: int | None,
        device: torch.device,
        *,
        name: str = "data",
    ) -> None:
        self.name, self.remarks = name, list[str]()
        self.context: Tensor | None = None
        self.arguments: tuple[Tensor, ...]
        self.values: Values | None = None
        self.prepare: Callable[[Tensor], Tensor] = _same
        model = trainee.generative
        if model is not None:
            split = as_split(data, name=name, values=None if isinstance(data, Split) else model.support)
            self._check_event(split, model)
            self.values = split.values
            self.prepare = bridge(split.values, model.support, name)
            dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), split.x.dtype)
            self.arguments = (split.x.to(device=device, dtype=dtype),)
            if split.values.kind == "real" and not split.values.missing:
                self.remarks = column_warnings(split.x, None, name, max_columns=_MANY_COLUMNS)
            if model.context_dim > 0:
                if split.y is None:
                    raise DataError(f"{name}: a conditional model needs y beside x, got none; pass (x, y)")
                # Whole numbers in rows of as many as there are features are features, else labels of items.
                features = split.y.is_floating_point() or split.y.shape[1:] == (model.context_dim,)
                self.context = split.y.to(device=device, dtype=dtype if features else None)
            elif model.takes_labels and _are_labels(split.y):
                self.context = split.y.to(device)
        else:
            found = enumerate(_as_tuple(data))
            self.arguments = tuple(_tensor(a, f"{name}: argument {i}").to(device) for i, a in found)
        self.size = len(self.arguments[0])
        if any(len(a) != self.size for a in self.arguments):
            raise ShapeError(
                f"{name}: arguments are cut along their first dimension, which differs: "
                f"{[tuple(a.shape) for a in self.arguments]}"
            )
        self.batch_size = min(batch_size or self.size, self.size)
        self._may_halve = model is not None and not model.has_priors

    def check_like(self, train: Batches) -> None:
        """Raise where these data are of another kind than the training data."""
        if len(self.arguments) != len(train.arguments):
            raise DataError(
                f"{self.name}: the training data have {len(train.arguments)} arguments, got "
                f"{len(self.arguments)}; pass the same ones"
            )
        if (self.context is None) != (train.context is None):
            raise DataError(
                f"{self.name}: either both these and the training data have labels, or neither; their losses "
                "mean different things"
            )
        if self.values != train.values:
            raise DataError(
                f"{self.name}: the training data are {train.values} values, got {self.values}; "
                "declare both alike, or their losses mean different things"
            )

    def halve(self) -> bool:
        """Halve the batch, where the sum over batches does not depend on it; whether that could be done."""
        if self.batch_size == 1 or not self._may_halve:
            return False
        self.batch_size = -(-self.batch_size // 2)
        torch.cuda.empty_cache()
        return True

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All data, as they came."""
        return self.arguments if self.context is None else (*self.arguments, self.context)

    @property
    def per_epoch(self) -> int:
        """Number of batches in one pass."""
        return -(-self.size // self.batch_size)

    def everything(self) -> tuple[Tensor, ...]:
        """All data as one batch."""
        return self._batch(None)

    def in_order(self) -> Iterator[tuple[Tensor, ...]]:
        """One pass in order."""
        for start in range(0, self.size, self.batch_size):
            yield self._batch(slice(start, start + self.batch_size))

    def shuffled(self, seed: int, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """One pass in the order that ``seed`` and ``epoch`` fix, without its first ``skip`` batches."""
        if self.batch_size == self.size:
            if skip == 0:
                yield self._batch(None)
            return
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 62))
        order = torch.randperm(self.size, generator=generator).to(self.arguments[0].device)
        for start in range(skip * self.batch_size, self.size, self.batch_size):
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, rows: Tensor | slice | None) -> tuple[Tensor, ...]:
        args = self.arguments if rows is None else tuple(a[rows] for a in self.arguments)
        if self.prepare is not _same:
            args = (self.prepare(args[0]), *args[1:])
        if self.context is None:
            return args
        return (*args, self.context if rows is None else self.context[rows])

    def _check_event(self, split: Split, model: GenerativeModel) -> None:
        # A wrapped model that has seen no data yet has no event shape.
        if model.event_shape and split.event_shape != model.event_shape:
            raise ShapeError(
                f"{self.name}: {type(model).__name__} is built for event_shape={tuple(model.event_shape)}, "
                f"the data have {tuple(split.event_shape)}; build it with event_shape=data.event_shape"
            )


def find_device(device: str | torch.device) -> torch.device:
    """The device named; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        DeviceError: CUDA was asked for and there is none, or the name is unknown.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device: {device!r} was asked for and torch finds no CUDA device; use device='auto' or 'cpu'"
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device: {device!r} was asked for and there are {torch.cuda.device_count()} CUDA devices"
        )
    return found


def _empty_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model without latents."""


def _are_labels(y: Tensor | None) -> TypeGuard[Tensor]:
    return y is not None and y.ndim == 1 and not y.is_floating_point()


def _same(x: Tensor) -> Tensor:
    return x


def _as_tuple(data: Any) -> tuple[Any, ...]:
    if isinstance(data, Dataset):
        x, y = collate(data)
        return (x,) if y is None else (x, y)
    if isinstance(data, Split):
        return (data.x,) if data.y is None else (data.x, data.y)
    return tuple(data) if isinstance(data, tuple | list) else (data,)


def _tensor(value: Any, name: str) -> Tensor:
    tensor, columns = as_tensor(value, name)
    if tensor.ndim == 0 or len(tensor) == 0:
        raise DataError(
            f"{name} holds no data, got shape {tuple(tensor.shape)}; expected a first dimension of 1 or more"
        )
    check_finite(tensor, name, columns)
    return tensor
