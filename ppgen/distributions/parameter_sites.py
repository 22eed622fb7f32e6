"""Parameters shown to Pyro as ``param`` sites that never enter its global store."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from pyro.poutine.runtime import effectful

#: Whether models tell Pyro of their parameters at present.
ANNOUNCED: ContextVar[bool] = ContextVar("ppgen_announce_parameters", default=True)


@contextlib.contextmanager
def unannounced_parameters() -> Iterator[None]:
    """Within, models do not tell Pyro of their parameters: faster, for loops that own an optimiser."""
    token = ANNOUNCED.set(False)
    try:
        yield
    finally:
        ANNOUNCED.reset(token)


class _Itself:
    """What Pyro calls to get from a parameter to its unconstrained leaf: the parameter itself.

    Weak, and empty after pickling, so that a parameter shown to Pyro stays picklable.
    """

    def __init__(self, parameter: torch.nn.Parameter | None = None) -> None:
        self.reference = (lambda: None) if parameter is None else weakref.ref(parameter)

    def __call__(self) -> torch.nn.Parameter | None:
        return self.reference()

    def __reduce__(self) -> tuple[type[_Itself], tuple[()]]:
        return _Itself, ()


def announce(name: str, parameter: torch.nn.Parameter) -> None:
    """Emit a Pyro ``param`` message that already holds its value."""
    parameter.unconstrained = _Itself(parameter)  # type: ignore[attr-defined]
    effectful(type="param")(lambda *_, **__: parameter)(name, parameter, name=name)
