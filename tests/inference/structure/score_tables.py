"""Tables for the tests of scores, and scores by plain loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.inference.structure.problem import Problem
from ppgen.inference.structure.table import Intervention, Table, Variable

Family = tuple[int, tuple[int, ...]]


def discrete_table(
    cardinalities: Sequence[int], num_rows: int, *, seed: int = 0, clamp: float = 0.0, **fields: Any
) -> Table:
    """Dependent columns; each cell clamped with probability ``clamp``."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(num_rows, 1, generator=generator, dtype=torch.float64)
    own = torch.rand(num_rows, len(cardinalities), generator=generator, dtype=torch.float64)
    values = ((base + own) / 2 * torch.tensor(cardinalities)).floor()
    clamped = torch.rand(values.shape, generator=generator) < clamp
    variables = tuple(Variable(f"x{i}", tuple(range(c))) for i, c in enumerate(cardinalities))
    return Table(variables, values, clamped, **fields)


def agents(num_rows: int, num: int, *, seed: int = 1) -> torch.Tensor:
    """Which agents are at work, (num_rows, num)."""
    return torch.rand(num_rows, num, generator=torch.Generator().manual_seed(seed)) < 0.3


def mixed_table(
    cardinalities: Sequence[int], num_rows: int, *, seed: int = 0, clamp: float = 0.0, **fields: Any
) -> Table:
    """As :func:`discrete_table`, with a dependent continuous column where the cardinality is 0."""
    table = discrete_table([c or 2 for c in cardinalities], num_rows, seed=seed, clamp=clamp, **fields)
    generator = torch.Generator().manual_seed(seed + 1)
    values = table.values.clone()
    for column, cardinality in enumerate(cardinalities):
        if not cardinality:
            noise = torch.randn(num_rows, generator=generator, dtype=torch.float64)
            values[:, column] = 3 * values[:, : column + 1].sum(1) + noise
    variables = tuple(
        v if c else Variable(v.name) for v, c in zip(table.variables, cardinalities, strict=True)
    )
    return Table(variables, values, table.clamped, **fields)


def continuous_table(num: int, num_rows: int, **options: Any) -> Table:
    """Dependent continuous columns."""
    return mixed_table([0] * num, num_rows, **options)


def problem(table: Table, score: Any, prior: GraphPrior | None = None, **constraints: Any) -> Problem:
    """A problem without progress."""
    return Problem(table, score, prior or GraphPrior(), Constraints(**constraints), progress=False)


def random_families(num_nodes: int, largest: int, num: int, *, seed: int = 0) -> list[Family]:
    """Nodes with sets of parents in any order."""
    generator = torch.Generator().manual_seed(seed)
    families = []
    for _ in range(num):
        order = torch.randperm(num_nodes, generator=generator).tolist()
        size = int(torch.randint(0, largest + 1, (), generator=generator))
        families.append((order[0], tuple(order[1 : size + 1])))
    return families


def dirichlet_score(
    rows: torch.Tensor, node: int, parents: Sequence[int], levels: Sequence[int], alpha: Any
) -> float:
    """The marginal likelihood by loops over all cells, with pseudo-counts ``alpha(configuration, level)``."""
    result = 0.0
    for configuration in itertools.product(*(range(levels[p]) for p in parents)):
        mine = [r for r in rows.tolist() if tuple(int(r[p]) for p in parents) == configuration]
        alphas = [alpha(configuration, k) for k in range(levels[node])]
        result += math.lgamma(sum(alphas)) - math.lgamma(sum(alphas) + len(mine))
        for level, a in enumerate(alphas):
            result += math.lgamma(a + sum(int(r[node]) == level for r in mine)) - math.lgamma(a)
    return result


SOFT: dict[str, Any] = {"intervention": Intervention.SOFT, "push": 3.0}
