"""When warm-up learns what: windows as in Stan, shorter where many chains learn together.

A first window takes the chains to where the mass is, and learns only step sizes; mass windows, each
twice as long as the one before, end with a new mass matrix from their own draws; in the last window
the mass stays, and the step size and the trajectory length settle.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

#: From so many chains on, the draws of a few transitions tell the scale of every coordinate.
MANY_CHAINS = 8


class Window(NamedTuple):
    """The transitions up to ``stop`` (exclusive), from where the window before stopped."""

    kind: Literal["first", "mass", "last"]
    stop: int


def windows(num: int, num_chains: int, *, adapt_mass: bool) -> list[Window]:
    """The windows of ``num`` transitions.

    With fewer than :data:`MANY_CHAINS` chains they are Stan's: 75 first, 25 doubling, 50 last, in
    proportion where ``num`` is below 150. With more: 15% first (75 at most), 10 doubling, 25% last
    (200 at most). Below 20 transitions, or where no mass is learnt, there are no mass windows.
    """
    if num == 0:
        return []
    if num < 20:
        return [Window("last", num)]
    if num_chains >= MANY_CHAINS:
        first, base, last = min(75, num * 15 // 100), 10, min(200, num // 4)
    elif num < 150:
        first, last = num * 15 // 100, num // 10
        base = num - first - last
    else:
        first, base, last = 75, 25, 50
    result = [Window("first", first)]
    stop, length, end = first, base, num - last
    while adapt_mass and stop < end:
        # A next window that would not fit is joined to this one.
        stop = end if stop + 3 * length > end else stop + length
        result.append(Window("mass", stop))
        length *= 2
    return [*result, Window("last", num)]
