r"""Priors over DAGs, and what is known of their edges.

All are modular in families, :math:`p(G) \propto w(G) \prod_v \rho_v(P_v)`, with :math:`w = 1` for the uniform
prior over DAGs and :math:`w(G)` the number of linear extensions of G for the order-modular one.

:class:`GraphPrior` and :class:`Constraints` are what users write, in names; :func:`compile_prior` checks both
against the variables of a table, and against each other, and gives the
:class:`~ppgen.inference.structure.family_prior.FamilyPrior` that every
learner takes :math:`\log \rho_v(P)` from. Constraints are part of it: families that break one have ``-inf``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.ops.dags import closure, find_cycle

__all__ = ["Constraints", "FamilyPrior", "GraphPrior", "compile_prior"]


@dataclass(frozen=True)
class GraphPrior:
    r"""Prior over DAGs.

    Attributes:
        kind: ``"uniform"``: the same for every DAG, up to the factors below; ``"order"``: the same for
            every pair of an order and a DAG that fits it, which favours DAGs with many linear extensions.
        fan_in: ``None``: no preference; ``"cardinality"``: each number of parents alike, and alike within
            it, :math:`\rho_v(P) \propto 1 / \binom{n-1}{\#P}` (Koivisto & Sood 2004); or log weights by
            number of parents 0, 1, 2, ... (nats), where larger numbers than the list has are ruled out.
        edges: prior probabilities of the edges, shape (n, n), rows from, columns to, zeros on the
            diagonal: a tensor, an array, nested lists, or a pandas DataFrame whose rows and columns carry
            the names, in any order. The factor of a graph is the product of p for each edge in it and 1 - p
            for each edge not in it, so that 0 forbids an edge and 1 requires it.
    """

    kind: Literal["uniform", "order"] = "uniform"
    fan_in: Literal["cardinality"] | Sequence[float] | None = None
    edges: Any | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "order"):
            raise ConfigError(f"kind: expected 'uniform' or 'order', got {self.kind!r}")
        if isinstance(self.fan_in, str) and self.fan_in != "cardinality":
            raise ConfigError(
                "fan_in: expected None, 'cardinality' or log weights by number of parents, got "
                f"{self.fan_in!r}"
            )


@dataclass(frozen=True)
class Constraints:
    """What is known of the edges before seeing data.

    Attributes:
        required: edges (from, to) that every graph has.
        forbidden: edges that no graph has.
        tiers: groups of variables; no edge leads from a later group to an earlier one. Variables in no
            group are free, and a path through one of them is not excluded.
        max_parents: the largest number of parents; ``None`` for no limit.
    """

    required: Sequence[tuple[str, str]] = ()
    forbidden: Sequence[tuple[str, str]] = ()
    tiers: Sequence[Sequence[str]] = ()
    max_parents: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "required", _pairs(self.required, "required"))
        object.__setattr__(self, "forbidden", _pairs(self.forbidden, "forbidden"))
        object.__setattr__(self, "tiers", _groups(self.tiers))
        limit = self.max_parents
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ConfigError(
                f"max_parents: expected a whole number >= 0, or None for no limit, got {limit!r}"
            )

    def check(self, names: Sequence[str]) -> None:
        """Raise where the constraints do not fit the variables of these names, or contradict each other.

        Raises:
            ConfigError: an unknown name, an edge both required and forbidden, required against the tiers,
                more required parents than ``max_parents``, or required edges that make a cycle.
        """
        compile_prior(GraphPrior(), self, names)


def compile_prior(prior: GraphPrior, constraints: Constraints, names: Sequence[str]) -> FamilyPrior:
    """The prior and the constraints over the variables of these names, checked.

    Args:
        prior: over graphs.
        constraints: edges that must or cannot be there.
        names: of the variables, in the table's order.

    Raises:
        ConfigError: an unknown name (close ones are given); an edge both required and forbidden, by name,
            tier or prior probability; more required parents than ``max_parents`` or the fan-in weights
            allow; required edges that make a cycle, which is printed; a matrix of edge priors of another
            shape, outside [0, 1], or with a diagonal; fan-in weights that leave no graph.
    """
    names = tuple(names)
    n = len(names)
    probabilities = _edge_probabilities(prior.edges, names)
    reasons = _excluded(constraints, names)
    reasons |= {
        (i, j): f"edges gives {names[i]} -> {names[j]} probability 0"
        for i, j in (probabilities == 0).nonzero().tolist()
        if i != j
    }
    required = torch.zeros(n, n, dtype=torch.bool)
    for start, end in constraints.required:
        required[_position(start, names, "required"), _position(end, names, "required")] = True
    required |= probabilities == 1
    _check_cycle(required, names)
    for i, j in required.nonzero().tolist():
        if (i, j) in reasons:
            raise ConfigError(
                f"required: {names[i]} -> {names[j]} is required, but {reasons[i, j]}; take one of them out"
            )
    allowed = ~torch.eye(n, dtype=torch.bool)
    for i, j in reasons:
        allowed[i, j] = False
    # What a path of required edges leads to cannot lead back.
    allowed &= ~closure(required).T
    log_fan_in = _log_fan_in(prior.fan_in, constraints.max_parents, n)
    _check_counts(allowed, required, log_fan_in, constraints.max_parents, names)
    minus_inf = torch.tensor(-math.inf, dtype=torch.float64)
    known = probabilities.isfinite()
    return FamilyPrior(
        names=names,
        kind=prior.kind,
        allowed_edges=allowed,
        required_edges=required,
        max_parents=int(log_fan_in.isfinite().nonzero().max()),
        log_present=torch.where(allowed, torch.where(known, probabilities.log(), 0.0), minus_inf),
        log_absent=torch.where(required, minus_inf, torch.where(known, torch.log1p(-probabilities), 0.0)),
        log_fan_in=log_fan_in,
    )


def _pairs(edges: Any, argument: str) -> tuple[tuple[str, str], ...]:
    pairs = tuple(edges) if isinstance(edges, Iterable) and not isinstance(edges, str) else (edges,)
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Iterable) or len(tuple(pair)) != 2:
            raise ConfigError(
                f"{argument}: expected a list of pairs of names (from, to), got {edges!r}; "
                f'for a single edge write {argument}=[("A", "B")]'
            )
    return tuple((start, end) for start, end in pairs)


def _groups(tiers: Any) -> tuple[tuple[str, ...], ...]:
    groups = tuple(tiers) if isinstance(tiers, Iterable) and not isinstance(tiers, str) else (tiers,)
    if any(isinstance(group, str) or not isinstance(group, Iterable) for group in groups):
        raise ConfigError(
            f"tiers: expected a list of groups of names, got {tiers!r}; a group of one is written ['A']"
        )
    return tuple(tuple(group) for group in groups)


def _position(name: str, names: Sequence[str], argument: str) -> int:
    if name in names:
        return names.index(name)
    close = get_close_matches(str(name), names)
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; known are {', '.join(names)}"
    raise ConfigError(f"{argument}: no variable is called {name!r}{hint}")


def _excluded(constraints: Constraints, names: Sequence[str]) -> dict[tuple[int, int], str]:
    """Edges that the constraints rule out, each with the reason."""
    reasons = {}
    tier: dict[int, int] = {}
    for number, group in enumerate(constraints.tiers):
        for name in group:
            node = _position(name, names, "tiers")
            if tier.setdefault(node, number) != number:
                raise ConfigError(f"tiers: {name} is in groups {tier[node] + 1} and {number + 1}; keep one")
    for i, of_i in tier.items():
        for j, of_j in tier.items():
            if of_i > of_j:
                reasons[i, j] = f"tiers put {names[i]} (group {of_i + 1}) after {names[j]} (group {of_j + 1})"
    for start, end in constraints.forbidden:
        i, j = _position(start, names, "forbidden"), _position(end, names, "forbidden")
        reasons[i, j] = f"forbidden has {start} -> {end}"
    return reasons


def _check_cycle(required: Tensor, names: Sequence[str]) -> None:
    cycle = find_cycle(required)
    if cycle is None:
        return
    closed = cycle if len(cycle) > 1 and cycle[0] == cycle[-1] else [*cycle, cycle[0]]
    raise ConfigError(
        f"required: these edges make a cycle, {' -> '.join(names[i] for i in closed)}, and no DAG has it; "
        "take one of them out"
    )


def _check_counts(
    allowed: Tensor, required: Tensor, log_fan_in: Tensor, max_parents: int | None, names: Sequence[str]
) -> None:
    """Raise where a node has no number of parents that both edges and fan-in allow."""
    if not log_fan_in[0].isfinite():
        raise ConfigError("fan_in: 0 parents have weight -inf, but some node of every DAG has none; raise it")
    for node, name in enumerate(names):
        least, most = int(required[:, node].sum()), int(allowed[:, node].sum())
        if max_parents is not None and least > max_parents:
            parents = ", ".join(names[i] for i in required[:, node].nonzero()[:, 0].tolist())
            raise ConfigError(
                f"max_parents: {name} has {least} required parents ({parents}), the limit is {max_parents}; "
                f"use max_parents={least} or more"
            )
        if not log_fan_in[least : most + 1].isfinite().any():
            raise ConfigError(
                f"fan_in: {name} has {least} required and at most {most} allowed parents, and every such "
                "number has weight -inf; change the weights or the edges"
            )


def _log_fan_in(fan_in: Any, max_parents: int | None, n: int) -> Tensor:
    """Log factor of 0..n-1 parents, shape (n,)."""
    if fan_in is None:
        result = torch.zeros(n, dtype=torch.float64)
    elif isinstance(fan_in, str):
        result = torch.tensor([-math.log(math.comb(n - 1, k)) for k in range(n)], dtype=torch.float64)
    else:
        try:
            weights = torch.as_tensor(fan_in, dtype=torch.float64).cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"fan_in: expected log weights by number of parents, got {fan_in!r}") from error
        if weights.ndim != 1 or not len(weights) or weights.isnan().any() or (weights == math.inf).any():
            raise ConfigError(
                "fan_in: expected a list of log weights by number of parents 0, 1, 2, ..., finite or -inf, "
                f"got {fan_in!r}"
            )
        result = torch.full((n,), -math.inf, dtype=torch.float64)
        result[: len(weights)] = weights[:n]
    if max_parents is not None:
        result[max_parents + 1 :] = -math.inf
    return result


def _edge_probabilities(edges: Any, names: Sequence[str]) -> Tensor:
    """Prior probabilities of the edges, shape (n, n); NaN where there is no preference."""
    n = len(names)
    if edges is None:
        return torch.full((n, n), math.nan, dtype=torch.float64)
    if hasattr(edges, "columns") and hasattr(edges, "index"):
        edges = _in_order(edges, names)
    try:
        # Copied: a frame's array may be read-only, which torch warns of.
        if not isinstance(edges, Tensor):
            edges = np.array(edges, dtype=float)
        matrix = torch.as_tensor(edges, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"edges: expected a matrix of probabilities, got {edges!r}") from error
    if matrix.shape != (n, n):
        raise ConfigError(
            f"edges: expected shape ({n}, {n}), one row and one column for each of {', '.join(names)}, got "
            f"{tuple(matrix.shape)}"
        )
    wrong = ~((matrix >= 0) & (matrix <= 1))
    if wrong.any():
        i, j = wrong.nonzero()[0].tolist()
        raise ConfigError(
            f"edges: expected probabilities in [0, 1], got {matrix[i, j].item():g} for {names[i]} -> "
            f"{names[j]} ({int(wrong.sum())} such entries)"
        )
    if matrix.diagonal().any():
        i = int(matrix.diagonal().nonzero()[0])
        raise ConfigError(
            f"edges: expected zeros on the diagonal, got {matrix[i, i].item():g} for {names[i]} -> {names[i]}"
        )
    return matrix.clone()


def _in_order(frame: Any, names: Sequence[str]) -> Any:
    """The values of a DataFrame with these names on rows and columns, in this order."""
    for axis, labels in (("rows", list(frame.index)), ("columns", list(frame.columns))):
        if sorted(map(str, labels)) != sorted(names):
            missing = [name for name in names if name not in labels]
            unknown = [str(label) for label in labels if label not in names]
            raise ConfigError(
                f"edges: the {axis} must carry each variable's name once; missing: "
                f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )
    return frame.loc[list(names), list(names)].to_numpy(dtype=float)
