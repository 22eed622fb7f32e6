"""What learning a structure gives: a distribution over graphs, with names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataWarning, SamplingWarning
from ppgen.inference.structure.class_probabilities import ClassProbabilities, class_probabilities
from ppgen.inference.structure.problem import GraphSource, Learned, Problem, WeightedGraphs
from ppgen.inference.structure.table import Table
from ppgen.ops.dags import find_cycle

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    from matplotlib.figure import Figure

    from ppgen import contract

_DRAWS = 1000
_POOL = 10  # weighted draws for each plain one taken from them
_LEAST_SHARE = 0.01  # of effective draws among weighted ones


@final
class GraphPosterior:
    """A posterior over DAGs of named variables, whatever method found it.

    Matrices are pandas tables with rows from and columns to; graphs are ``networkx.DiGraph`` objects with
    the nodes in the order of the table's columns. Probabilities are of the kind that the method gives:
    exact, from a sampler with standard errors, frequencies over a bootstrap, or 0 and 1.

    Args:
        names: of the variables.
        learned: what the method returned.
        agent_names: of agents with unknown targets, in the order of ``learned.agent_probabilities``.
        targets: sets of variables, by number, that were set together in some rows; the empty set for rows
            where none was. ``None`` where no variable was set.
        method: name of the method.
        table: the data that it was learnt from, which a Bayesian network on these graphs starts from; not
            kept in files.
    """

    names: Final[tuple[str, ...]]

    def __init__(
        self,
        names: Sequence[str],
        learned: Learned,
        *,
        agent_names: Sequence[str] = (),
        targets: Sequence[Sequence[int]] | None = None,
        method: str = "",
        table: Table | None = None,
    ) -> None:
        if learned.source.num_nodes != len(names) or len(set(names)) < len(names):
            raise ConfigError(
                f"names: expected {learned.source.num_nodes} different names, one for each node, "
                f"got {names!r}"
            )
        self.names = tuple(names)
        self.learned = learned
        self.agent_names = tuple(agent_names)
        self.targets = [()] if targets is None else [tuple(sorted(target)) for target in targets]
        self.method = method
        self.table = table

    @classmethod
    def from_problem(cls, problem: Problem, learned: Learned, *, method: str = "") -> GraphPosterior:
        """The posterior of a learner's result, with the names and interventions of its table."""
        table = problem.table
        rows = table.clamped.unique(dim=0) if len(table.clamped) else table.clamped[:0]
        targets = [tuple(row.nonzero()[:, 0].tolist()) for row in rows.cpu()] or None
        return cls(
            table.names,
            learned,
            agent_names=table.agent_names,
            targets=targets,
            method=method,
            table=table,
        )

    # -- probabilities ------------------------------------------------------------------

    @property
    def source(self) -> GraphSource:
        """The distribution itself, on tensors."""
        return self.learned.source

    @cached_property
    def edge_probabilities(self) -> pd.DataFrame:
        """p(i -> j | data), rows from, columns to."""
        return self._table(self._probabilities)

    @cached_property
    def edge_errors(self) -> pd.DataFrame:
        """Monte-Carlo standard errors of :attr:`edge_probabilities`; 0 where these are exact."""
        return self._table(self.source.edge_errors())

    @cached_property
    def path_probabilities(self) -> pd.DataFrame:
        """Probability of a directed path from i to j: that i is an ancestor, or cause, of j."""
        return self._table(self._paths.value)

    @cached_property
    def path_errors(self) -> pd.DataFrame:
        """Monte-Carlo standard errors of :attr:`path_probabilities`."""
        return self._table(self._paths.std_error)

    @property
    def agent_probabilities(self) -> pd.DataFrame | None:
        """p(agent acts on variable | data), rows agents, columns variables; ``None`` without agents."""
        if self.learned.agent_probabilities is None:
            return None
        import pandas as pd

        values = self.learned.agent_probabilities.detach().cpu().numpy()
        return pd.DataFrame(
            values,
            index=pd.Index(self.agent_names, name="agent"),
            columns=pd.Index(self.names, name="to"),
        )

    @property
    def coefficients(self) -> pd.DataFrame | None:
        """Weights of the edges, for methods that fit any; rows from, columns to."""
        weighted = self.learned.weighted_graph
        return None if weighted is None else self._table(weighted)

    @property
    def log_evidence(self) -> contract.Estimate | None:
        """Log marginal likelihood of the data under the prior over graphs, in nats, where it is known."""
        return self.source.log_evidence

    def parent_sets(self, name: str) -> pd.DataFrame:
        """Sets of parents of a variable and their probabilities, the most probable first."""
        import pandas as pd

        sets, probabilities = self.source.parent_sets(self._number(name))
        parents = [tuple(self.names[i] for i in row.nonzero()[:, 0].tolist()) for row in sets.cpu()]
        return pd.DataFrame({"parents": parents, "probability": probabilities.cpu().numpy()})

    def compelled_probabilities(
        self, *, interventional: bool = False, num: int = _DRAWS, seed: int | None = 0
    ) -> pd.DataFrame:
        """For each pair, whether the equivalence class of the graph has an arrow, a line or nothing there.

        Found on the classes of drawn graphs. A line that is sure says that more data of the same kind
        will not tell the direction.

        Args:
            interventional: whether classes are those that the interventions in the table tell apart.
            num: how many graphs are drawn.
            seed: of the draws.

        Returns:
            One row a pair, indexed by both names: the probabilities of ``forward`` (first -> second
            compelled), ``backward``, ``undirected`` and ``absent``, which sum to one, and their standard
            errors ``forward_error``, ...
        """
        import pandas as pd

        found = self._classes(interventional, num, seed)
        i, j = torch.triu_indices(len(self.names), len(self.names), 1)
        matrices = {
            "forward": found.compelled,
            "backward": found.compelled.T,
            "undirected": found.undirected,
            "absent": found.absent,
            "forward_error": found.compelled_error,
            "backward_error": found.compelled_error.T,
            "undirected_error": found.undirected_error,
            "absent_error": found.absent_error,
        }
        pairs = [(self.names[a], self.names[b]) for a, b in zip(i.tolist(), j.tolist(), strict=True)]
        return pd.DataFrame(
            {name: matrix.cpu()[i, j].numpy() for name, matrix in matrices.items()},
            index=pd.MultiIndex.from_tuples(pairs, names=["first", "second"]),
        )

    # -- graphs -------------------------------------------------------------------------

    def median_graph(self, threshold: float = 0.5) -> nx.DiGraph:
        """All edges more probable than ``threshold``, each with its ``probability``.

        Such a graph may have cycles, as no one DAG need be behind it. Then the least probable edge of a
        cycle is dropped until none is left, with a :class:`~ppgen.errors.DataWarning`; the graph's attribute
        ``dropped`` lists these edges.
        """
        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold: expected a number from 0 to below 1, got {threshold}")
        adjacency, dropped = without_cycles(self._probabilities > threshold, self._probabilities)
        shown = [(self.names[i], self.names[j]) for i, j in dropped]
        if shown:
            warnings.warn(
                f"median_graph: the edges more probable than {threshold:g} have cycles; dropped "
                f"{', '.join(f'{i} -> {j}' for i, j in shown)}, the least probable of each cycle",
                DataWarning,
                stacklevel=2,
            )
        return self._graph(adjacency, dropped=shown, threshold=threshold)

    def map_graph(self) -> nx.DiGraph:
        """The most probable graph, of all or of those that the method saw."""
        return self._graph(self.source.map_graph())

    def sample(self, num: int = 1, *, seed: int | None = None) -> list[nx.DiGraph]:
        """Draw graphs from the posterior, each as probable as it is: no weights to mind."""
        return [self._graph(adjacency) for adjacency in self.sample_adjacency(num, seed=seed)]

    def sample_adjacency(self, num: int = 1, *, seed: int | None = None) -> Tensor:
        """:meth:`sample` as a bool tensor, shape (num, n, n), ``[s, i, j]`` the edge i -> j.

        Where the method's draws have weights, ten times as many are drawn and some are taken by weight.
        """
        if num < 1:
            raise ConfigError(f"num: expected a positive integer, got {num}")
        generator = torch.Generator()
        generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        inner, outer = torch.randint(2**62, (2,), generator=generator).tolist()
        drawn = self.source.sample(num, seed=inner)
        if _is_plain(drawn) and len(drawn.adjacency) == num:
            return drawn.adjacency
        pool = self.source.sample(max(_POOL * num, _DRAWS), seed=outer)
        weights = pool.log_weights.double().exp().cpu()
        effective = float(1 / (weights**2).sum())
        if effective < _LEAST_SHARE * len(weights):
            warnings.warn(
                f"sample: {len(weights)} weighted draws are worth {effective:.0f} plain ones only; "
                "the same graphs will come again and again",
                SamplingWarning,
                stacklevel=2,
            )
        chosen = torch.multinomial(weights, num, replacement=True, generator=generator)
        return pool.adjacency[chosen.to(pool.adjacency.device)]

    def cpdag(
        self,
        threshold: float = 0.5,
        *,
        interventional: bool = False,
        num: int = _DRAWS,
        seed: int | None = 0,
    ) -> nx.DiGraph:
        """Pairs more probable than ``threshold`` to be joined, with the likelier of arrow and line.

        Each edge has its ``probability``, that of an arrow or a line as it is, and ``compelled``; a line is
        both directions. The arguments are those of :meth:`compelled_probabilities`.
        """
        found = self._classes(interventional, num, seed)
        graph = self._empty()
        for i, first in enumerate(self.names):
            for j, second in enumerate(self.names[:i]):
                if float(found.absent[i, j]) >= 1 - threshold:
                    continue
                states = {
                    (first, second): float(found.compelled[i, j]),
                    (second, first): float(found.compelled[j, i]),
                    None: float(found.undirected[i, j]),
                }
                best = max(states, key=states.__getitem__)
                for edge in [(first, second), (second, first)] if best is None else [best]:
                    graph.add_edge(*edge, probability=states[best], compelled=best is not None)
        return graph

    def interventional_cpdag(
        self, threshold: float = 0.5, *, num: int = _DRAWS, seed: int | None = 0
    ) -> nx.DiGraph:
        """:meth:`cpdag` of the classes that the interventions in the table tell apart."""
        return self.cpdag(threshold, interventional=True, num=num, seed=seed)

    # -- how it went --------------------------------------------------------------------

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to doubt, one sentence each."""
        return self.learned.warnings

    @property
    def ok(self) -> bool:
        """Whether there is nothing to doubt about the run."""
        return not self.learned.warnings

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Figures of the run: seconds, chains, acceptance, ..."""
        return self.learned.attributes

    def summary(self, threshold: float = 0.0) -> pd.DataFrame:
        """Edges more probable than ``threshold``, the most probable first.

        Returns:
            Columns ``from``, ``to``, ``probability``, ``error`` (Monte-Carlo standard error) and, where
            there are chains, ``rhat`` and ``ess``, NaN for edges that are always or never there.
        """
        import pandas as pd

        errors = self.source.edge_errors().cpu()
        p = self._probabilities.cpu()
        i, j = ((p > threshold) & ~torch.eye(len(p), dtype=torch.bool)).nonzero(as_tuple=True)
        order = p[i, j].argsort(descending=True, stable=True)
        i, j = i[order], j[order]
        columns: dict[str, Any] = {
            "from": [self.names[k] for k in i.tolist()],
            "to": [self.names[k] for k in j.tolist()],
            "probability": p[i, j].numpy(),
            "error": errors[i, j].numpy(),
        }
        if self.learned.draws is not None:
            from ppgen.inference.mcmc.diagnostics import ess, rhat

            draws = self.learned.draws[:, :, i.to(self.learned.draws.device), j.to(self.learned.draws.device)]
            constant = (draws == draws[:1, :1]).flatten(0, 1).all(0)
            for name, figure in (("rhat", rhat), ("ess", ess)):
                values = figure(draws.double()) if draws.shape[2] else constant.double()
                columns[name] = values.masked_fill(constant, torch.nan).cpu().numpy()
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        num = int((self._probabilities > 0.5).sum())
        by = f" by {self.method}" if self.method else ""
        evidence = "" if self.log_evidence is None else f", log evidence {self.log_evidence}"
        doubts = "" if self.ok else f"; {len(self.warnings)} warnings"
        return f"GraphPosterior of {len(self.names)} variables{by}: {num} edges above .5{evidence}{doubts}"

    # -- elsewhere ----------------------------------------------------------------------

    def to_networkx(self, threshold: float = 0.0) -> nx.DiGraph:
        """All edges more probable than ``threshold`` with ``probability`` and ``error``; cycles are usual."""
        graph = self._graph(self._probabilities > threshold)
        errors = self.edge_errors
        for i, j in graph.edges:
            graph.edges[i, j]["error"] = float(errors.loc[i, j])
        return graph

    def to_pgmpy(self, threshold: float = 0.5) -> Any:
        """The median graph as a ``pgmpy.base.DAG``."""
        from ppgen.inference.pgmpy_adapter import dag_to_pgmpy

        return dag_to_pgmpy(self.names, self.median_graph(threshold).edges)

    def to_arviz(self, num: int = _DRAWS, *, seed: int | None = 0) -> Any:
        """Draws of the edges for ArviZ: a variable ``edges`` with dimensions chain, draw, from, to.

        The method's chains where it has some, else ``num`` draws of one chain.
        """
        from ppgen.inference.arviz_adapter import graphs_to_arviz

        draws = self.learned.draws
        if draws is None:
            draws = self.sample_adjacency(num, seed=seed)[None]
        return graphs_to_arviz(draws, self.names, {**self.attributes, "method": self.method})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to the directory ``path``: tensors and JSON, no code."""
        from ppgen.inference.structure.posterior_files import save_posterior

        save_posterior(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> GraphPosterior:
        """Read what :meth:`save` wrote; no code is read or run.

        Raises:
            CheckpointError: the directory is damaged, or holds something else.
        """
        from ppgen.inference.structure.posterior_files import load_posterior

        return load_posterior(path, device)

    def plot(
        self,
        reference: Any = None,
        *,
        threshold: float = 0.5,
        agents: bool = True,
        dark: bool = False,
    ) -> Figure:
        """Edge probabilities as a matrix and as a graph, side by side.

        Args:
            reference: a graph to compare with (adjacency, DataFrame or networkx graph with the same
                names): edges that only the posterior has are drawn in another colour, edges that it misses
                are dashed.
            threshold: edges more probable than this are drawn in the graph, wider where more probable.
            agents: whether to show agents with unknown targets, in their own colour.
            dark: for dark pages.
        """
        from ppgen.plots.canvas import DARK, LIGHT
        from ppgen.plots.graphs import edge_posterior

        shown = self.agent_probabilities if agents else None
        return edge_posterior(
            self._probabilities,
            self.names,
            reference=None if reference is None else self._reference(reference),
            threshold=threshold,
            agents=None if shown is None else shown.to_numpy(),
            agent_names=self.agent_names,
            theme=DARK if dark else LIGHT,
        )

    # -- helpers ------------------------------------------------------------------------

    @cached_property
    def _probabilities(self) -> Tensor:
        return self.source.edge_probabilities()

    @cached_property
    def _paths(self) -> contract.Estimate:
        return self.source.path_probabilities()

    def _classes(self, interventional: bool, num: int, seed: int | None) -> ClassProbabilities:
        if num < 1:
            raise ConfigError(f"num: expected a positive integer, got {num}")
        targets: Sequence[Sequence[int]] = self.targets if interventional else [()]
        if always := set.intersection(*map(set, targets)):
            names = ", ".join(self.names[i] for i in sorted(always))
            raise ConfigError(
                f"interventional: {names} was set in every row, so that its mechanism was never seen and "
                "classes are not defined; learn without the column, or leave interventional=False"
            )
        drawn = self.source.sample(num, seed=seed)
        return class_probabilities(drawn, targets, self.source.edge_errors())

    def _number(self, name: str) -> int:
        if name not in self.names:
            raise ConfigError(f"name: expected one of {', '.join(self.names)}; got {name!r}")
        return self.names.index(name)

    def _table(self, matrix: Tensor) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(
            matrix.detach().cpu().numpy(),
            index=pd.Index(self.names, name="from"),
            columns=pd.Index(self.names, name="to"),
        )

    def _empty(self) -> nx.DiGraph:
        import networkx as nx

        graph = nx.DiGraph()
        graph.add_nodes_from(self.names)
        return graph

    def _graph(self, adjacency: Tensor, **attributes: Any) -> nx.DiGraph:
        """A graph with the probabilities of its edges."""
        graph = self._empty()
        graph.graph.update(attributes)
        for i, j in adjacency.nonzero().tolist():
            graph.add_edge(self.names[i], self.names[j], probability=float(self._probabilities[i, j]))
        return graph

    def _reference(self, reference: Any) -> Tensor:
        """Adjacency of a graph to compare with, bool (n, n), in the order of the names."""
        import networkx as nx

        if isinstance(reference, list | tuple | set | frozenset) and all(
            isinstance(edge, tuple) and len(edge) == 2 for edge in reference
        ):
            reference = nx.DiGraph(list(reference))
        if isinstance(reference, nx.Graph):
            for name in reference.nodes:
                self._number(name)
            adjacency = torch.zeros(len(self.names), len(self.names), dtype=torch.bool)
            for i, j in reference.edges():
                adjacency[self._number(i), self._number(j)] = True
            return adjacency
        if hasattr(reference, "loc"):
            missing = [n for n in self.names if n not in reference.index or n not in reference.columns]
            if missing:
                raise ConfigError(f"reference: expected all of {', '.join(self.names)}; lacks {missing[0]!r}")
            reference = reference.loc[list(self.names), list(self.names)]
        matrix = reference if isinstance(reference, Tensor) else torch.tensor(np.array(reference))
        if matrix.shape != self._probabilities.shape:
            raise ConfigError(
                f"reference: expected shape {tuple(self._probabilities.shape)}, got {tuple(matrix.shape)}"
            )
        return matrix != 0


def without_cycles(adjacency: Tensor, probabilities: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Drop the least probable edge of a cycle until there is none.

    Args:
        adjacency: bool, shape (n, n).
        probabilities: of the edges, shape (n, n).

    Returns:
        The graph that is left, and the edges that went, in order.
    """
    adjacency = adjacency.clone()
    dropped: list[tuple[int, int]] = []
    while (cycle := find_cycle(adjacency)) is not None:
        edges = zip(cycle, [*cycle[1:], cycle[0]], strict=True)
        least = min(edges, key=lambda edge: float(probabilities[edge]))
        adjacency[least] = False
        dropped.append(least)
    return adjacency, dropped


def _is_plain(graphs: WeightedGraphs) -> bool:
    return float(graphs.log_weights.max() - graphs.log_weights.min()) < 1e-9
