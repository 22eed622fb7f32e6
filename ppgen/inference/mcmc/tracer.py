r"""Records the tensor operations that depend on given inputs, as a ``torch.fx`` graph.

It does what ``make_fx`` does, for real tensors of fixed shapes, and differs in what density programs need:
what does not depend on the inputs is computed and not recorded, so that it may be written to, looked at
(``int(y.max())``) and branched on; and it takes some tens of microseconds a node.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ppgen.errors import ConfigError

aten = torch.ops.aten
_INDEXINGS = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default, aten._index_put_impl_.default,
}  # fmt: skip


class Shape(NamedTuple):
    """What a node's ``meta["tensor_meta"]`` says of its value.

    ``is_plain``: it was row-major, from the beginning of its storage.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    is_plain: bool = True

    @classmethod
    def of(cls, value: Tensor) -> Shape:
        """Of a tensor."""
        is_plain = value.is_contiguous() and value.storage_offset() == 0
        return cls(value.shape, value.dtype, value.device, is_plain)


class Draft(torch.nn.Module):
    """A program that passes still change: its graph, and its constants as buffers."""

    graph: fx.Graph

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()


class WritesThroughViewError(RuntimeError):
    """A tensor was written to through a view, or while views of it exist."""


def record(
    function: Callable[..., Any], example: tuple[Tensor, ...], rules: Mapping[Any, Callable[..., Any]]
) -> Draft:
    """The program of ``function`` at the tensors ``example``.

    Args:
        function: from tensors to a tensor, or a tuple of tensors.
        example: inputs.
        rules: how composite operations are taken apart.

    Raises:
        WritesThroughViewError: see there; functionalise the function first.
        RuntimeError: a value or a shape that depends on the inputs' values is asked for.
        ConfigError: random numbers are drawn.
    """
    inputs = [value.detach().clone() for value in example]
    recorder = Recorder(rules)
    for position, value in enumerate(inputs):
        recorder.add_input(f"arg{position}", value)
    with recorder:
        outputs = function(*inputs)
    return recorder.finished(outputs)


class Recorder(TorchDispatchMode):
    """Sees every operation below autograd; see :func:`record`."""

    def __init__(self, rules: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._rules = rules
        self._draft = Draft()
        self._graph = self._draft.graph
        self._nodes: Any = WeakTensorKeyDictionary()
        self._constants: Any = WeakTensorKeyDictionary()
        # Tensors made inside of nothing but numbers, which are the same whatever the data.
        self._literals: Any = WeakTensorKeyDictionary()
        self._num_constants = 0
        # By storage: names in the program and originals.
        self._captured: dict[int, list[tuple[str, Tensor]]] = {}
        # Storages of tensors that have, or are, views.
        self._viewed: set[int] = set()
        self._kept: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch.compile sees nothing of this; its import would take most of a second

    def add_input(self, name: str, value: Tensor) -> None:
        """Declare an input."""
        node = self._graph.placeholder(name)
        self._set(value, node)

    def finished(self, outputs: Any) -> Draft:
        """The program that gives ``outputs``."""
        self._graph.output(self._named(outputs))
        return self._draft

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, and record it if it depends on the inputs."""
        kwargs = kwargs or {}
        tags = func.tags
        if torch.Tag.nondeterministic_seeded in tags and func not in self._rules:
            raise ConfigError(
                f"model: it draws random numbers ({func}) outside of its sample sites, or at sites that "
                "poutine.block hides; the density would differ at every evaluation. Draw them "
                "beforehand, and pass them as an argument"
            )
        if not self._depends(args) and not self._depends(kwargs.values()):
            self._before_constant(func, args)
            return self._noted(func(*args, **kwargs), (args, kwargs), func)
        if func is aten._linalg_check_errors.default:
            return None  # NaN shall tell of errors, and not an exception
        if func in _INDEXINGS:
            args = args[0], self._positions(args[1]), *args[2:]
        rule = self._rules.get(func)
        if rule is not None:
            with self:
                found = rule(*args, **kwargs)
            if found is not NotImplemented:
                return found
        else:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        if torch.Tag.data_dependent_output in tags or (
            torch.Tag.dynamic_output_shape in tags and not _is_by_position(func, args)
        ):
            raise RuntimeError(f"{func} asks for a value, or a shape, that depends on latents")
        if func._schema.is_mutable:
            return self._written(func, args, kwargs)
        found = func(*args, **kwargs)
        node = self._graph.call_function(func, self._named(args), self._named(kwargs))
        if func.is_view:
            self._note_view(args[0])
        if isinstance(found, Tensor):
            self._set(found, node)
        elif isinstance(found, (list, tuple)):
            for position, value in enumerate(found):
                if isinstance(value, Tensor):
                    item = self._graph.call_function(operator.getitem, (node, position))
                    self._set(value, item)
        else:
            raise RuntimeError(f"{func} asks for a value that depends on latents")
        return found

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target = args[0] if args else None
        functional = functional_form(func)
        if not isinstance(target, Tensor) or functional is None:
            raise WritesThroughViewError(str(func))
        if target not in self._nodes and target in self._constants:
            raise WritesThroughViewError(f"{func} changes a constant that was used before")
        if target._is_view() or target.untyped_storage()._cdata in self._viewed:
            raise WritesThroughViewError(str(func))
        named = self._named((target.clone() if target not in self._nodes else target, *args[1:]))
        func(*args, **kwargs)
        node = self._graph.call_function(functional, named, self._named(kwargs))
        self._set(target, node)
        return target

    def _positions(self, indices: Any) -> list[Any]:
        """Indices with masks that are constants as positions, which keep shapes and batch."""
        found: list[Any] = []
        for index in indices:
            if isinstance(index, Tensor) and index.dtype == torch.bool and index not in self._nodes:
                found.extend(index.nonzero(as_tuple=True))
            else:
                found.append(index)
        return found

    def _before_constant(self, func: Any, args: tuple[Any, ...]) -> None:
        """Constants that are in the program keep their values, also where the originals are written to."""
        if func.is_view:
            self._note_view(args[0])
        elif func._schema.is_mutable and args and isinstance(args[0], Tensor):
            for name, original in self._captured.pop(args[0].untyped_storage()._cdata, ()):
                setattr(self._draft, name, getattr(self._draft, name).clone())
                self._constants.pop(original, None)

    def _noted(self, found: Any, arguments: Any, func: Any) -> Any:
        """``found``, noted as literal if all that it was made of is."""
        if isinstance(found, Tensor):
            made_of = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
            if all(leaf in self._literals for leaf in made_of):
                self._literals[found] = True
            elif func._schema.is_mutable and found in self._literals:
                del self._literals[found]
        return found

    def _note_view(self, base: Any) -> None:
        if isinstance(base, Tensor):
            self._viewed.add(base.untyped_storage()._cdata)
            self._kept.append(base)  # or its storage's address may come again

    def _set(self, value: Tensor, node: fx.Node) -> None:
        node.meta["tensor_meta"] = Shape.of(value)
        self._nodes[value] = node

    def _depends(self, values: Any) -> bool:
        for value in values:
            if isinstance(value, Tensor):
                if value in self._nodes:
                    return True
            elif isinstance(value, (list, tuple)) and self._depends(value):
                return True
        return False

    def _named(self, value: Any) -> Any:
        """Arguments with nodes in place of tensors."""
        if isinstance(value, Tensor):
            node = self._nodes.get(value)
            return self._constant(value) if node is None else node
        if isinstance(value, (list, tuple)):
            return type(value)(self._named(v) for v in value) if type(value) in (list, tuple) else value
        if isinstance(value, dict):
            return {name: self._named(v) for name, v in value.items()}
        return value

    def _constant(self, value: Tensor) -> fx.Node:
        node: fx.Node | None = self._constants.get(value)
        if node is None:
            name = f"_{'literal' if value in self._literals else 'constant'}_{self._num_constants}"
            self._num_constants += 1
            self._draft.register_buffer(name, value.detach(), persistent=False)
            node = self._graph.get_attr(name)
            node.meta["tensor_meta"] = Shape.of(value)
            self._constants[value] = node
            self._captured.setdefault(value.untyped_storage()._cdata, []).append((name, value))
        return node


def _is_by_position(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether it is an indexing whose shape does not depend on values."""
    if func not in _INDEXINGS:
        return False
    return not any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])


def functional_form(target: Any) -> Any:
    """The same operation without writing, ``add`` for ``add_``; ``None`` if there is none."""
    namespace, _, name = target._schema.name.partition("::")
    if namespace != "aten" or not name.endswith("_"):
        return None
    packet = getattr(aten, name.removesuffix("_"), None)
    return getattr(packet, target._overloadname, None) if packet is not None else None
