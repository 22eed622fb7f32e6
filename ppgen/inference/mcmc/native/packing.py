"""The state of all chains in the layout of compiled programs, and back."""

from __future__ import annotations

import ctypes
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc.kernel import State
from ppgen.inference.mcmc.native.layout import Entry

# As in `packing.hpp`.
_KINDS = {"float": 0, "int": 1, "bool": 2}
_CALLER_TYPES = {"int": torch.int64, "bool": torch.bool}


class Layout:
    """Where each entry of a state is in its packed form: ``(G, numel, W)`` each, one after the other.

    Packed forms are tensors of bytes, for their memory begins where a vector may.

    Args:
        entries: of the state.
        functions: the library, for ``ppgen_pack`` and ``ppgen_unpack``.
        num_chains: C.
        num_groups: G.
        lanes: W.
        dtype: of its floats.
    """

    def __init__(
        self,
        entries: tuple[Entry, ...],
        functions: ctypes.CDLL,
        *,
        num_chains: int,
        num_groups: int,
        lanes: int,
        dtype: torch.dtype,
    ) -> None:
        self.entries, self._functions = entries, functions
        self._num_chains = num_chains
        self.names = frozenset(e.name for e in entries)
        self._kinds = {e.name: _KINDS[e.kind] for e in entries}
        self._numels = {e.name: e.numel for e in entries}
        self._shapes = {e.name: (num_chains, *e.shape) for e in entries}
        self._dtypes = {e.name: _CALLER_TYPES.get(e.kind, dtype) for e in entries}
        # Integers are as wide as floats.
        self._sizes = {e.name: num_groups * e.numel * lanes * dtype.itemsize for e in entries}
        offsets = np.cumsum([0, *self._sizes.values()], dtype=np.uint64)
        self._offsets, self._num_bytes = offsets[:-1], int(offsets[-1])
        self._places = dict(zip(self._sizes, self._offsets.tolist(), strict=True))
        self._index = {e.name: i for i, e in enumerate(entries)}

    def pack(self, state: State) -> Tensor:
        """The packed form of ``state``, with memory of its own.

        Raises:
            ConfigError: an entry of another shape.
        """
        if isinstance(state, PackedState) and state.layout is self:
            packed, values = state.packed.clone(), state.unpacked()
        else:
            packed, values = torch.empty(self._num_bytes, dtype=torch.uint8), state
        address = packed.data_ptr()
        for name in values if values is not state else self._places:
            value = values[name]
            if tuple(value.shape) != self._shapes[name]:
                raise ConfigError(
                    f"state: expected {name!r} of shape {self._shapes[name]}, got {tuple(value.shape)}"
                )
            source = value.detach().to(self._dtypes[name]).contiguous()
            self._functions.ppgen_pack(
                self._kinds[name],
                source.data_ptr(),
                address + self._places[name],
                self._num_chains,
                self._numels[name],
            )
        return packed

    def unpack(self, packed: Tensor, name: str) -> Tensor:
        """An entry as a fresh tensor (C, ...)."""
        out = torch.empty(self._shapes[name], dtype=self._dtypes[name])
        self._functions.ppgen_unpack(
            self._kinds[name],
            packed.data_ptr() + self._places[name],
            out.data_ptr(),
            self._num_chains,
            self._numels[name],
            1,
        )
        return out

    def pointers(self, packed: Tensor) -> NDArray[np.uint64]:
        """To each entry."""
        pointers: NDArray[np.uint64] = self._offsets + np.uint64(packed.data_ptr())
        return pointers

    def room(self, name: str, num: int) -> Tensor:
        """Memory for ``num`` packed copies of an entry.

        Raises:
            ConfigError: there is no such entry.
        """
        if name not in self.names:
            raise ConfigError(f"record: the state has no entry {name!r}; it has {sorted(self.names)}")
        return torch.empty(num * self._sizes[name], dtype=torch.uint8)

    def records(self, rooms: Mapping[str, Tensor]) -> NDArray[np.uint64]:
        """Pointers to the rooms, null for entries that have none."""
        pointers = np.zeros(len(self.entries), dtype=np.uint64)
        for name, room in rooms.items():
            pointers[self._index[name]] = room.data_ptr()
        return pointers

    def recorded(self, name: str, room: Tensor, num: int) -> Tensor:
        """``num`` packed copies of an entry as ``(num, C, ...)``."""
        out = torch.empty((num, *self._shapes[name]), dtype=self._dtypes[name])
        self._functions.ppgen_unpack(
            self._kinds[name], room.data_ptr(), out.data_ptr(), self._num_chains, self._numels[name], num
        )
        return out


class PackedState(dict[str, Tensor]):
    """A state in packed form, whose tensors are unpacked when they are first read.

    It is what :class:`~ppgen.inference.mcmc.native.executor.NativeExecutor` gives and takes back without
    packing what nobody replaced or changed. Nothing else writes to its memory, so it stays as it is.
    """

    def __init__(self, layout: Layout, packed: Tensor) -> None:
        super().__init__()
        self.layout, self.packed = layout, packed
        # As they were unpacked; a tensor's version counts its changes in place.
        self._same: dict[str, tuple[Tensor, int]] = {}

    def unpacked(self) -> dict[str, Tensor]:
        """The tensors that are not the same as in the packed form."""
        found = {}
        for name, value in super().items():
            same = self._same.get(name)
            if same is None or same[0] is not value or same[1] != value._version:
                found[name] = value
        return found

    def __missing__(self, name: str) -> Tensor:
        if name not in self.layout.names:
            raise KeyError(name)
        value = self.layout.unpack(self.packed, name)
        self._same[name] = (value, value._version)
        self[name] = value
        return value

    def __or__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        if not self.layout.names >= other.keys():
            return dict(self) | dict(other)
        result = PackedState(self.layout, self.packed)
        result._same = dict(self._same)
        dict.update(result, dict.items(self))
        dict.update(result, other)
        return result

    def __ror__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(other) | dict(self)

    # What looks at the whole has all of it unpacked first. That `__iter__` is not the one of `dict` makes
    # `dict(state)` and `{**state}` come here too.

    def _whole(self) -> None:
        for entry in self.layout.entries:
            self[entry.name]

    def __iter__(self) -> Iterator[str]:
        self._whole()
        return super().__iter__()

    def __len__(self) -> int:
        return len(self.layout.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.names

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """As of a dict."""
        self._whole()
        return super().keys()

    def values(self) -> ValuesView[Tensor]:  # type: ignore[override]
        """As of a dict."""
        self._whole()
        return super().values()

    def items(self) -> ItemsView[str, Tensor]:  # type: ignore[override]
        """As of a dict."""
        self._whole()
        return super().items()

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        return self[name] if name in self.layout.names else default

    def copy(self) -> dict[str, Tensor]:
        """As of a dict."""
        return dict(self)

    def __reduce__(self) -> tuple[type[dict[str, Tensor]], tuple[dict[str, Tensor]]]:
        return dict, (dict(self),)
