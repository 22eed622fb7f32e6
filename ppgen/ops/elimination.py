r"""Variable elimination over tables in the log domain, for many data at once.

A :class:`Factor` is a table over some discrete variables, one for each of B rows that share a pattern of
what is known. :func:`eliminate` sums variables out of a product of factors,

.. math:: \log \sum_{v} \prod_f \phi_f ,

one after the other in an order from :func:`plan`, which keeps the tables in between small; what it
leaves behind serves :func:`draw` for exact joint draws of the variables that were summed out.
All of it is differentiable: gradients of a log partition function are expected counts.

References: Zhang & Poole, *A simple approach to Bayesian network computations*, 1994; Koller & Friedman,
*Probabilistic Graphical Models*, 2009, chapter 9 (min-fill in 9.4.3).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError

#: Entries of the largest table of one row that is made, half a GiB of float64.
MAX_ENTRIES = 2**26


@dataclass(frozen=True)
class Factor:
    """A table of log values.

    Attributes:
        scope: the variables of its dimensions, in increasing order.
        log_values: shape ``(B, L_1, ..., L_k)``, or with 1 for B where all rows have the same.
    """

    scope: tuple[int, ...]
    log_values: Tensor


@dataclass(frozen=True)
class Plan:
    """An order of elimination and what it costs.

    Attributes:
        order: the variables, first eliminated first.
        entries: entries of the largest table of one row.
    """

    order: tuple[int, ...]
    entries: int


def plan(
    scopes: Collection[Sequence[int]], cardinalities: Mapping[int, int], variables: Collection[int]
) -> Plan:
    """An order that adds few edges to the graph of the factors (greedy min-fill, then smallest table).

    Args:
        scopes: variables of each factor.
        cardinalities: number of levels by variable.
        variables: those to eliminate.
    """
    neighbours: dict[int, set[int]] = {v: set() for v in variables}
    for scope in scopes:
        for v in scope:
            neighbours.setdefault(v, set()).update(scope)
    for v, found in neighbours.items():
        found.discard(v)
    left, order, entries = set(variables), list[int](), 1
    for scope in scopes:
        entries = max(entries, math.prod(cardinalities[v] for v in scope))

    def cost(v: int) -> tuple[int, int, int]:
        around = neighbours[v]
        fill = sum(len(around - neighbours[u]) - 1 for u in around)
        return fill, cardinalities[v] * math.prod(cardinalities[u] for u in around), v

    costs = {v: cost(v) for v in left}
    while left:
        best = min(left, key=costs.__getitem__)
        entries = max(entries, costs[best][1])
        around = neighbours.pop(best)
        for u in around:
            neighbours[u].update(around - {u})
            neighbours[u].discard(best)
        left.discard(best)
        order.append(best)
        touched = around.union(*(neighbours[u] for u in around)) & left
        costs.update({u: cost(u) for u in touched})
    return Plan(tuple(order), entries)


def check_size(entries: int, what: str, limit: int = MAX_ENTRIES) -> None:
    """Refuse tables that would not fit, before one is made.

    Raises:
        ConfigError: more than ``limit`` entries.
    """
    if entries > limit:
        raise ConfigError(
            f"{what}: needs a table of {entries:.3g} entries ({8 * entries / 2**30:.3g} GiB), more than the "
            f"limit of {limit:.3g}; use fewer parents or levels, know more of the variables, or ask for "
            "fewer at once"
        )


def product(factors: Sequence[Factor]) -> Factor:
    """The product of factors; the empty product is the number 1 (needs at least one factor for a device)."""
    scope = tuple(sorted({v for f in factors for v in f.scope}))
    total: Tensor | None = None
    for f in factors:
        sizes = dict(zip(f.scope, f.log_values.shape[1:], strict=True))
        aligned = f.log_values.reshape(len(f.log_values), *(sizes.get(v, 1) for v in scope))
        total = aligned if total is None else total + aligned
    if total is None:
        raise ConfigError("factors: expected one or more, got none")
    return Factor(scope, total)


def sum_out(factor: Factor, variable: int) -> Factor:
    """The factor summed over one of its variables."""
    place = factor.scope.index(variable)
    scope = factor.scope[:place] + factor.scope[place + 1 :]
    return Factor(scope, factor.log_values.logsumexp(place + 1))


def eliminate(factors: Sequence[Factor], order: Sequence[int]) -> tuple[Factor, list[tuple[int, Factor]]]:
    """Sum variables out of a product.

    Returns:
        The factor over the variables that are left, and for each eliminated variable the product that it was
        summed out of, which :func:`draw` reads backwards.
    """
    remaining, steps = list(factors), list[tuple[int, Factor]]()
    for v in order:
        touching = [f for f in remaining if v in f.scope]
        joint = product(touching)
        steps.append((v, joint))
        remaining = [f for f in remaining if v not in f.scope] + [sum_out(joint, v)]
    return product(remaining), steps


def draw(steps: Sequence[tuple[int, Factor]], rows: Tensor) -> dict[int, Tensor]:
    """Exact joint draws of the eliminated variables, from torch's global generator.

    Args:
        steps: as :func:`eliminate` returns them, of an elimination that left no variable over.
        rows: for each draw the number of its row, int64, shape (M,); rows may repeat.

    Returns:
        Level numbers by variable, int64, shape (M,).
    """
    drawn: dict[int, Tensor] = {}
    for v, joint in reversed(steps):
        place = joint.scope.index(v)
        table = joint.log_values.movedim(place + 1, -1)
        first = rows if len(table) > 1 else torch.zeros_like(rows)
        logits = table[(first, *(drawn[u] for u in joint.scope if u != v))]
        drawn[v] = categorical(logits.softmax(-1))
    return drawn


def categorical(probabilities: Tensor) -> Tensor:
    """One draw a row from probabilities ``(M, L)``, int64 ``(M,)``; levels of probability 0 never come."""
    cumulative = probabilities.cumsum(-1)
    # 1 - U is in (0, 1], so that a leading level of probability 0 is passed over.
    u = (1 - torch.rand(len(cumulative), 1, dtype=cumulative.dtype, device=cumulative.device)) * cumulative[
        :, -1:
    ]
    return torch.searchsorted(cumulative, u)[:, 0].clamp_max(cumulative.shape[-1] - 1)
