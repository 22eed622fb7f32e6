"""BDe: the marginal likelihood of categorical variables under a given prior network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.scores.counting import Rows, cell_codes, check_cells, distinct, elements, runs
from ppgen.inference.structure.scores.discrete import check_positive, check_pushed, pushed_parts
from ppgen.inference.structure.scores.functions import (
    Advance,
    SetFunction,
    cardinalities,
    columns,
    silent,
)
from ppgen.inference.structure.scores.parts import Part, PartScore, check_discrete, mechanisms
from ppgen.inference.structure.table import Table


@dataclass(frozen=True, eq=False)
class BDe(PartScore):
    r"""Marginal likelihood with :math:`\alpha_{jk}` = ess p(parents = j, node = k) under a prior network.

    Score-equivalent (Heckerman, Geiger & Chickering 1995); BDeu is the case of a uniform prior network.

    Args:
        equivalent_sample_size: ess, > 0.
        prior: of the cells. A mapping from the names of variables to the probabilities of their levels: the
            prior network without edges, uniform where a variable is not named. Or the joint probabilities
            of all variables, an array with one dimension for each variable in the table's order. Agents
            are uniform and independent of the variables. All probabilities must be > 0.
    """

    equivalent_sample_size: float = 1.0
    prior: Mapping[str, Any] | Any = None
    name = "bde"

    def __post_init__(self) -> None:
        check_positive(self.equivalent_sample_size, "equivalent_sample_size")

    def check(self, table: Table) -> None:
        """See :meth:`Score.check`."""
        check_discrete(table, self.name)
        check_pushed(table)
        self.probabilities(table)

    def parts(self, table: Table, node: int) -> list[Part]:
        """See :meth:`PartScore.parts`."""
        cell = _Term(self, 0.0)
        parts = [
            part
            for rows in mechanisms(table, node)
            for part in (Part(1, rows, True, cell), Part(-1, rows, False, cell))
        ]
        pushed = _Term(self, table.push)
        return parts + pushed_parts(table, node, cell, pushed, pushed)

    def probabilities(self, table: Table) -> list[Tensor] | Tensor:
        """Probabilities of the levels of each column, agents among them, or of all cells of the variables.

        Raises:
            ConfigError: another shape than the table's, a probability that is not positive, a sum that
                is not 1, an unknown name.
        """
        prior = {} if self.prior is None else self.prior
        if not isinstance(prior, Mapping):
            return _distribution(prior, table.cardinalities, "of all variables").to(table.device)
        if unknown := set(prior) - set(table.names):
            raise ConfigError(
                f"prior: no variable is called {', '.join(sorted(map(str, unknown)))}; "
                f"known are {', '.join(table.names)}"
            )
        marginals = [
            _distribution(prior.get(variable.name, [1 / levels] * levels), (levels,), f"of {variable.name}")
            for variable in table.variables
            for levels in [variable.cardinality]
        ]
        agents = len(cardinalities(table)) - table.num_variables
        marginals += [torch.full((2,), 0.5, dtype=torch.float64)] * agents
        return [marginal.to(table.device) for marginal in marginals]


def _distribution(values: Any, shape: tuple[int, ...], what: str) -> Tensor:
    result = torch.as_tensor(values, dtype=torch.float64)
    if result.shape != shape:
        raise ConfigError(f"prior: expected probabilities {what} of shape {shape}, got {tuple(result.shape)}")
    if not bool((result > 0).all()) or not math.isclose(float(result.sum()), 1.0, abs_tol=1e-6):
        raise ConfigError(
            f"prior: expected positive probabilities {what} that sum to 1, got a smallest of "
            f"{float(result.min()):g} and a sum of {float(result.sum()):g}"
        )
    return result / result.sum()


@dataclass(frozen=True)
class _Term:
    score: BDe
    per_cell: float

    def function(self, table: Table, rows: Tensor) -> SetFunction:
        """See :meth:`Term.function`."""
        codes = columns(table)[rows].long()
        return _Function(self, distinct(codes, cardinalities(table)), table)


class _Function(SetFunction):
    """Sums over cells of lgamma(N + a) - lgamma(a), where a differs from cell to cell."""

    def __init__(self, term: _Term, rows: Rows, table: Table) -> None:
        self.rows, self.device, self.term = rows, table.device, term
        self.num_variables = table.num_variables
        self.joint: Tensor | None = None
        probabilities = term.score.probabilities(table)
        if isinstance(probabilities, Tensor):
            self.joint = probabilities
        else:
            # Of the level that each row has, one line for each column.
            self.levels = torch.stack([p[c] for p, c in zip(probabilities, rows.codes.T, strict=True)])

    def sets(self, sets: Tensor, advance: Advance = silent) -> Tensor:
        """See :meth:`SetFunction.sets`."""
        levels = torch.tensor(self.rows.cardinalities, dtype=torch.float64, device=self.device)
        check_cells(levels[sets].prod(-1))
        result = torch.zeros(len(sets), dtype=torch.float64, device=self.device)
        for index in torch.arange(len(sets), device=self.device).split(
            max(1, elements(self.device) // len(self.rows.codes))
        ):
            counts, owner, row = runs(cell_codes(self.rows, sets[index]), self.rows.weights)
            probability = self._of_rows(sets[index])[owner, row]
            alpha = self.term.score.equivalent_sample_size * probability + self.term.per_cell
            values = torch.lgamma(counts + alpha) - torch.lgamma(alpha)
            result[index] = torch.zeros(len(index), dtype=torch.float64, device=self.device).index_add_(
                0, owner, values
            )
            advance(len(index))
        return result

    def _of_rows(self, sets: Tensor) -> Tensor:
        """Prior probability of the cell that each row is in, for each set; shape (F, U)."""
        if self.joint is not None:
            return torch.stack([self._of_joint(self.joint, one) for one in sets.tolist()])
        result = torch.ones(len(sets), len(self.rows.codes), dtype=torch.float64, device=self.device)
        for member in sets.T:
            result *= self.levels[member]
        return result

    def _of_joint(self, joint: Tensor, members: Sequence[int]) -> Tensor:
        variables = sorted(m for m in members if m < self.num_variables)
        others = [d for d in range(self.num_variables) if d not in variables]
        marginal = joint.sum(others) if others else joint
        cells = marginal[tuple(self.rows.codes[:, v] for v in variables)]
        return (cells * 0.5 ** (len(members) - len(variables))).expand(len(self.rows.codes))
