"""Which function lowers which aten operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

#: For each aten operation, a function of the lowering and the operation's arguments.
OPERATORS: dict[Any, Callable[..., Any]] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def lowers(*targets: Any) -> Callable[[Function], Function]:
    """Note the decorated function as the one that lowers these operations."""

    def note(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(targets, function))
        return function

    return note
