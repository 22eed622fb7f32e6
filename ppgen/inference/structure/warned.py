"""Warnings that point at the line of the caller's own program, however deep below it they are found."""

from __future__ import annotations

import inspect
import warnings

from ppgen.errors import PpgenWarning


def warn(message: str, category: type[PpgenWarning]) -> None:
    """Issue a warning at the innermost line outside of ppgen.

    Python shows a warning once a line: one that several parts of a run come upon is seen once.
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ppgen":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
