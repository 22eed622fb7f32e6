r"""Exact densities, conditionals and draws of the rows of a Bayesian network.

Rows are worked on in groups that know the same variables. Within a group, unknown variables without
known descendants drop out, unknown continuous variables are integrated in closed form given the
discrete ones, and unknown discrete variables are summed out by elimination. A row costs what the largest
table of its elimination costs; whether that is too much is found before any table is made.

Rows are float64, shape (N, n): level numbers of discrete variables, numbers of continuous ones, and NaN
where unknown. Where a variable was set by intervention, its family is left out of the product: then the
density is that of the rest given what was set, the truncated factorisation (Pearl, *Causality*, 2009,
section 1.3).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.distributions.network.mechanisms import (
    Block,
    Discrete,
    Gaussian,
    Mechanism,
    Rows,
    discrete_factor,
    gaussian_block,
    known_factor,
)
from ppgen.distributions.network.structure import NetworkStructure
from ppgen.ops.elimination import MAX_ENTRIES, Factor, Plan, categorical, check_size, draw, eliminate, plan

# Entries of the largest temporary of a chunk of rows.
_CHUNK_ENTRIES = 2**22


@dataclass(frozen=True)
class _Work:
    """What is left to do for a group of rows in one graph.

    Attributes:
        rows: the group.
        active: nodes whose families count: those with known descendants, themselves among them.
        block_members: the continuous ones that are unknown or have unknown continuous parents.
        plan: how the unknown discrete variables are summed out.
    """

    rows: Rows
    active: tuple[int, ...]
    block_members: tuple[int, ...]
    plan: Plan


@dataclass(frozen=True)
class NetworkDensity:
    """One or more graphs over the same variables, with the mechanisms of all their families.

    Attributes:
        structure: nodes, families and graphs.
        mechanisms: one a family.
        log_weights: log-probabilities of the graphs, shape (K,).
    """

    structure: NetworkStructure
    mechanisms: tuple[Mechanism, ...]
    log_weights: Tensor

    # -- densities ---------------------------------------------------------------------------

    def log_prob(self, values: Tensor, is_set: Tensor | None = None) -> Tensor:
        """Log density of what is known of each row in each graph, shape (N, K), in nats.

        Args:
            values: rows, shape (N, n).
            is_set: bool, same shape: what was set by intervention; known everywhere.

        Raises:
            ConfigError: the unknown variables of a row need too large a table.
        """
        parts, numbers = [], []
        for index, rows in self._groups(values, is_set):
            if len(rows.known) == self.structure.num_nodes:
                parts.append(self._complete(rows))
            else:
                columns = [self._log_evidence(rows, graph) for graph in range(self.structure.num_graphs)]
                parts.append(torch.stack(columns, -1))
            numbers.append(index)
        if len(parts) == 1:
            return parts[0]
        back = torch.cat(numbers).argsort()
        return torch.cat(parts)[back]

    def _complete(self, rows: Rows) -> Tensor:
        """Rows without gaps: sums of family terms, each worked out once for all graphs."""
        terms = self._family_terms(rows)
        # Summed by index: a product with a 0/1 matrix would turn -inf into NaN.
        return torch.stack([terms[:, list(graph)].sum(-1) for graph in self.structure.graphs], -1)

    def family_terms(self, values: Tensor, is_set: Tensor | None = None) -> Tensor:
        """Log p(node given parents) of complete rows by family, shape (N, F); 0 where the node was set."""
        found = values.new_zeros(len(values), len(self.structure.families))
        parts = [(index, self._family_terms(rows)) for index, rows in self._groups(values, is_set)]
        return found.index_copy(0, torch.cat([i for i, _ in parts]), torch.cat([t for _, t in parts]))

    def _family_terms(self, rows: Rows) -> Tensor:
        terms = []
        for number, (node, parents) in enumerate(self.structure.families):
            if node in rows.set:
                terms.append(torch.zeros_like(rows.values[:, node]))
            else:
                terms.append(
                    self._known_term(number, node, parents, rows).log_values.expand(len(rows.values))
                )
        return torch.stack(terms, -1)

    def _known_term(self, number: int, node: int, parents: Sequence[int], rows: Rows) -> Factor:
        mechanism = self.mechanisms[number]
        if isinstance(mechanism, Discrete):
            return discrete_factor(mechanism, node, parents, rows)
        return known_factor(
            mechanism,
            node,
            self.structure.discrete_parents(number),
            self.structure.continuous_parents(number),
            rows,
        )

    def _log_evidence(self, rows: Rows, graph: int) -> Tensor:
        work = self._work(rows, graph, targets=())
        parts = []
        for chunk in self._chunks(work):
            left, _ = eliminate(self._factors(chunk, graph, work)[0], work.plan.order)
            parts.append(left.log_values.expand(len(chunk.values)))
        return torch.cat(parts)

    # -- exact tables ------------------------------------------------------------------------

    def log_table(self, values: Tensor, is_set: Tensor, targets: Sequence[int]) -> Tensor:
        """Log joint density of unknown discrete ``targets`` and what is known of each row, by graph.

        Args:
            values: rows that know the same variables, shape (N, n), NaN where unknown.
            is_set: bool, same shape: what was set by intervention, the same in all rows.
            targets: distinct unknown discrete variables.

        Returns:
            Shape (K, N, L_t1, ...), the last dimensions in the order of ``targets``; in nats.
        """
        ordered = tuple(sorted(targets))
        ((_, rows),) = self._groups(values, is_set)
        tables = []
        for graph in range(self.structure.num_graphs):
            work = self._work(rows, graph, targets=ordered)
            left, _ = eliminate(self._factors(rows, graph, work)[0], work.plan.order)
            shape = [self.structure.cardinalities[t] for t in ordered]
            tables.append(left.log_values.expand(len(values), *shape))
        return torch.stack(tables).permute(0, 1, *(2 + ordered.index(t) for t in targets))

    # -- draws -------------------------------------------------------------------------------

    def sample(self, graph_of_row: Tensor, held: Mapping[int, float] | None = None) -> Tensor:
        """Ancestral draws, float64 (M, n), from torch's global generator.

        Args:
            graph_of_row: the graph of each draw, int64 (M,).
            held: values of variables that are set.
        """
        held = {} if held is None else held
        shape = len(graph_of_row), self.structure.num_nodes
        values = torch.full(shape, math.nan, dtype=torch.float64, device=graph_of_row.device)
        for node, value in held.items():
            values[:, node] = value
        used = [0] if self.structure.num_graphs == 1 else graph_of_row.unique().tolist()
        for graph in used:
            rows = torch.nonzero(graph_of_row == graph)[:, 0]
            values[rows] = self._ancestral(values[rows], graph, held)
        return values

    def draw_unknown(self, values: Tensor, is_set: Tensor | None, graph_of_draw: Tensor) -> Tensor:
        """Exact draws of what is unknown given what is known.

        Args:
            values: rows, shape (N, n), each of positive density.
            is_set: as for :meth:`log_prob`.
            graph_of_draw: the graph of each draw of each row, int64 (S, N), drawn from its posterior.

        Returns:
            Shape (S, N, n), equal to ``values`` where known.
        """
        drawn = values.expand(len(graph_of_draw), *values.shape).clone()
        for index, rows in self._groups(values, is_set):
            if len(rows.known) == self.structure.num_nodes:
                continue
            graphs = graph_of_draw[:, index]
            for graph in graphs.unique().tolist():
                draws, places = torch.nonzero(graphs == graph, as_tuple=True)
                drawn[draws, index[places]] = self._draw_group(rows, graph, places)
        return drawn

    def _draw_group(self, rows: Rows, graph: int, places: Tensor) -> Tensor:
        work = self._work(rows, graph, targets=())
        found = rows.values[places].clone()
        start = 0
        for chunk in self._chunks(work):
            here = torch.nonzero((places >= start) & (places < start + len(chunk.values)))[:, 0]
            local = places[here] - start
            start += len(chunk.values)
            factors, block = self._factors(chunk, graph, work)
            _, steps = eliminate(factors, work.plan.order)
            drawn = draw(steps, local)
            for variable, codes in drawn.items():
                found[here, variable] = codes.to(found.dtype)
            if block is not None and block.variables:
                found[here[:, None], torch.tensor(block.variables, device=here.device)] = block.draw(
                    local, drawn
                )
        done = rows.known | set(work.active)
        return self._ancestral(found, graph, done)

    def _ancestral(self, values: Tensor, graph: int, done: Collection[int]) -> Tensor:
        """Draw all nodes that are not ``done``, parents first."""
        values = values.clone()
        for node in self.structure.orders[graph]:
            if node in done:
                continue
            number = self.structure.graphs[graph][node]
            mechanism = self.mechanisms[number]
            at = tuple(values[:, p].long() for p in self.structure.discrete_parents(number))
            if isinstance(mechanism, Discrete):
                table = mechanism.log_table.exp()
                rows = table[at] if at else table.expand(len(values), -1)
                values[:, node] = categorical(rows).to(values.dtype)
            else:
                ones = torch.ones_like(values[:, :1])
                u = torch.cat([ones, values[:, list(self.structure.continuous_parents(number))]], -1)
                mean, scale = mechanism.moments(u, at)
                values[:, node] = mean + scale * torch.randn_like(values[:, node])
        return values

    # -- private -----------------------------------------------------------------------------

    def _groups(self, values: Tensor, is_set: Tensor | None) -> Iterator[tuple[Tensor, Rows]]:
        """Rows that know the same variables, with their numbers."""
        unknown = values.isnan()
        everything = torch.arange(len(values), device=values.device)
        if is_set is None and not bool(unknown.any()):
            yield everything, Rows(values, frozenset(range(values.shape[1])), frozenset())
            return
        is_set = torch.zeros_like(unknown) if is_set is None else is_set
        patterns, which = torch.unique(torch.cat([unknown, is_set], -1), dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            index = everything if len(patterns) == 1 else torch.nonzero(which == number)[:, 0]
            gaps, held = pattern.chunk(2)
            known = frozenset(torch.nonzero(~gaps)[:, 0].tolist())
            chosen = frozenset(torch.nonzero(held)[:, 0].tolist())
            yield index, Rows(values if len(patterns) == 1 else values[index], known, chosen)

    def _work(self, rows: Rows, graph: int, targets: Sequence[int]) -> _Work:
        """Plan a group in one graph, and refuse it if it is too much."""
        s = self.structure
        parents = [() if v in rows.set else s.parents(graph, v) for v in range(s.num_nodes)]
        # Unknown nodes that nothing known descends from sum to one.
        needed: set[int] = set()
        for v in reversed(s.orders[graph]):
            if v in needed or v in rows.known or v in targets:
                needed.update((v, *parents[v]))
        active = tuple(v for v in sorted(needed) if v not in rows.set)
        members = tuple(
            v
            for v in active
            if not s.cardinalities[v]
            and any(u not in rows.known and not s.cardinalities[u] for u in (v, *parents[v]))
        )
        scopes = []
        chosen: set[int] = set()
        for v in active:
            unknown = [u for u in (*parents[v], v) if u not in rows.known and s.cardinalities[u]]
            if v in members:
                chosen.update(unknown)
            else:
                scopes.append(unknown)
        if members:
            scopes.append(sorted(chosen))
        discrete = [v for v in active if v not in rows.known and s.cardinalities[v] and v not in targets]
        found = plan(scopes, dict(enumerate(s.cardinalities)), discrete)
        size = sum(v not in rows.known for v in members)
        block = math.prod(s.cardinalities[v] for v in chosen) * max(1, size**2) if members else 1
        left = math.prod(s.cardinalities[t] for t in targets)
        entries = max(found.entries, block, left)
        check_size(entries, f"x: summing out {len(discrete)} unknown variables", MAX_ENTRIES)
        return _Work(rows, active, members, Plan(found.order, entries))

    def _chunks(self, work: _Work) -> Iterator[Rows]:
        size = max(1, _CHUNK_ENTRIES // work.plan.entries)
        for part in work.rows.values.split(size):
            yield Rows(part, work.rows.known, work.rows.set)

    def _factors(self, rows: Rows, graph: int, work: _Work) -> tuple[list[Factor], Block | None]:
        """The factors of rows in a graph; that of the unknown continuous variables also as a block."""
        s = self.structure
        factors, members = [Factor((), rows.values.new_zeros(1))], []
        for node in work.active:
            number = s.graphs[graph][node]
            mechanism = self.mechanisms[number]
            if node in work.block_members and isinstance(mechanism, Gaussian):
                inputs = s.discrete_parents(number), s.continuous_parents(number)
                members.append((node, *inputs, mechanism))
            else:
                factors.append(self._known_term(number, node, s.families[number][1], rows))
        if not members:
            return factors, None
        block = gaussian_block(members, s.cardinalities, rows)
        return [*factors, block.evidence], block
