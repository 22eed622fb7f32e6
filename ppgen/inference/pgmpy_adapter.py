"""The one place that imports pgmpy: networks and BIF files in and out, and its greedy searches.

pgmpy's searches take a table and give back a graph. What they would do silently wrong is closed here:

* Variables go in as numbers 0, 1, ..., so that ties fall the same way in every process (sets of strings
  come in another order in each) and any name will do; levels are declared, so that a level that the data
  lack counts, and integers are not taken for continuous.
* Scores are ours, :class:`~ppgen.inference.structure.scores.base.Score`: the equivalent sample size is the
  one that was asked for, interventions count, the order of parents does not, and neighbouring parent sets
  are scored in one call.
* Graphs come back as adjacency matrices, in which an undirected edge is both directions, never counted
  twice as an edge.
* One process, no progress bar, and no global setting of pgmpy is touched.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.inference.structure.network import DiscreteNetwork

if TYPE_CHECKING:
    from ppgen.inference.structure.table import Table

# -- networks -----------------------------------------------------------------------------


def example_names() -> list[str]:
    """Names of the discrete networks that come with pgmpy."""
    folder = resources.files("pgmpy") / "utils" / "example_models"
    return sorted(f.name.removesuffix(".bif.gz") for f in folder.iterdir() if f.name.endswith(".bif.gz"))


def example_network(name: str) -> DiscreteNetwork:
    """A network of the Bayesian network repository from the files in pgmpy's wheel; nothing is downloaded.

    Args:
        name: asia, cancer, earthquake, survey, sachs, child, insurance, alarm, hailfinder, ...

    Raises:
        ConfigError: a name that is not among :func:`example_names`.
    """
    if name not in (known := example_names()):
        raise ConfigError(f"name: expected one of {', '.join(known)}; got {name!r}")
    file = resources.files("pgmpy") / "utils" / "example_models" / f"{name}.bif.gz"
    return _parse_bif(gzip.decompress(file.read_bytes()).decode("utf-8"), name)


def read_bif(path: str | Path) -> DiscreteNetwork:
    """Read a network from a BIF file; levels are strings.

    Raises:
        DataError: a file that is missing or is no BIF, or whose tables are no distributions.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"path: {path} cannot be read ({error})") from error
    return _parse_bif(text, str(path))


def _parse_bif(text: str, source: str) -> DiscreteNetwork:
    from pgmpy.readwrite import BIFReader

    try:
        reader = BIFReader(string=text)
        names = list(reader.variable_names)
        parents = [[names.index(p) for p in reader.variable_parents[name]] for name in names]
        levels = [tuple(reader.variable_states[name]) for name in names]
        tables = [
            _from_columns(reader.variable_cpds[name], [len(levels[p]) for p in parents[number]])
            for number, name in enumerate(names)
        ]
    except Exception as error:  # the parser fails with whatever the text leads it to
        raise DataError(f"{source}: expected a network in BIF, could not read it ({error!r})") from error
    if not names:
        raise DataError(f"{source}: expected a network in BIF, found no variable in it")
    return DiscreteNetwork(tuple(names), tuple(levels), tuple(map(tuple, parents)), tuple(tables))


def write_bif(network: DiscreteNetwork, path: str | Path) -> dict[str, str]:
    """Write a network as a BIF file, which bnlearn, pgmpy, Hugin and others read.

    A BIF file lists variables in alphabetical order and levels as text. Names are made of letters, digits,
    ``_``, ``.`` and ``-``; levels have no blanks, brackets, commas, semicolons, quotes or bars. Any other
    character becomes ``_``, and where two names would then be the same (capitals count for nothing), a number
    is added.

    Returns:
        The names and levels that were changed, old to new.
    """
    from pgmpy.readwrite import BIFWriter

    names = _safe(network.names, r"[^A-Za-z0-9_.-]")
    levels = [_safe(list(map(str, found)), r"[\s,;(){}\[\]|\"']|/(?=[/*])") for found in network.levels]
    renamed = {old: new for old, new in zip(network.names, names, strict=True) if old != new}
    for old_levels, new_levels in zip(network.levels, levels, strict=True):
        renamed |= {str(o): n for o, n in zip(old_levels, new_levels, strict=True) if str(o) != n}
    plain = DiscreteNetwork(tuple(names), tuple(map(tuple, levels)), network.parents, network.tables)
    Path(path).write_text(str(BIFWriter(to_pgmpy(plain))), encoding="utf-8")
    return renamed


def _safe(labels: Sequence[str], unfit: str) -> list[str]:
    """Labels without what a pattern finds, all different also without regard to capitals."""
    found: list[str] = []
    taken: set[str] = set()
    for label in labels:
        stem = re.sub(unfit, "_", label) or "_"
        new, number = stem, 1
        while new.lower() in taken:
            number += 1
            new = f"{stem}_{number}"
        taken.add(new.lower())
        found.append(new)
    return found


def to_pgmpy(network: DiscreteNetwork) -> Any:
    """The network as a ``pgmpy.models.DiscreteBayesianNetwork``."""
    from pgmpy.factors.discrete import TabularCPD
    from pgmpy.models import DiscreteBayesianNetwork

    model = DiscreteBayesianNetwork()
    model.add_nodes_from(network.names)
    model.add_edges_from(network.edges)
    for node, (name, table) in enumerate(zip(network.names, network.tables, strict=True)):
        parents = network.parents[node]
        model.add_cpds(
            TabularCPD(
                name,
                len(network.levels[node]),
                table.reshape(-1, table.shape[-1]).T.cpu().numpy(),
                evidence=[network.names[p] for p in parents],
                evidence_card=[len(network.levels[p]) for p in parents],
                state_names={network.names[v]: list(network.levels[v]) for v in (*parents, node)},
            )
        )
    return model


def dag_to_pgmpy(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> Any:
    """A graph without tables as a ``pgmpy.base.DAG``; all names are nodes, also those without an edge.

    Raises:
        ConfigError: the edges have a cycle.
    """
    from pgmpy.base import DAG

    graph = DAG()
    graph.add_nodes_from(names)
    try:
        graph.add_edges_from(edges)
    except ValueError as error:
        raise ConfigError(f"edges: expected those of a DAG ({error})") from error
    return graph


def from_pgmpy(model: Any) -> DiscreteNetwork:
    """A network from a ``pgmpy.models.DiscreteBayesianNetwork``, its tables checked.

    Raises:
        DataError: another type, a variable without a table, or distributions that do not sum to one
            (pgmpy accepts them).
    """
    names = [str(node) for node in getattr(model, "nodes", [])]
    if not names or not hasattr(model, "get_cpds"):
        raise DataError(f"model: expected a pgmpy DiscreteBayesianNetwork with nodes, got {model!r}")
    levels, parents, tables = [], [], []
    for node in model.nodes:
        table = model.get_cpds(node)
        if table is None:
            raise DataError(f"model: {node} has no table; add one with add_cpds, or fit the model")
        # The first dimension is the variable's own, the others its parents'.
        parents.append(tuple(names.index(str(p)) for p in table.variables[1:]))
        levels.append(tuple(table.state_names[node]))
        values = torch.as_tensor(table.values, dtype=torch.float64)
        tables.append(values.movedim(0, -1).contiguous())
    return DiscreteNetwork(tuple(names), tuple(levels), tuple(parents), tuple(tables))


def _from_columns(columns: Any, cardinalities: Sequence[int]) -> Tensor:
    """A table from pgmpy's matrix, rows the variable's levels, columns its parents', the last fastest."""
    matrix = torch.as_tensor(columns, dtype=torch.float64)
    return matrix.T.reshape(*cardinalities, matrix.shape[0]).contiguous()


# -- searches -----------------------------------------------------------------------------

#: score of a variable with some parents, all by number, in nats
FamilyScore = Callable[[int, frozenset[int]], float]


def hill_climb(
    num_nodes: int,
    score: FamilyScore,
    *,
    forbidden: Iterable[tuple[int, int]] = (),
    required: Iterable[tuple[int, int]] = (),
    max_parents: int | None = None,
    start: Tensor | None = None,
    tabu_length: int = 100,
    min_improvement: float = 1e-4,
) -> Tensor:
    """Hill climbing by pgmpy: single edges added, removed and turned while the score gets better.

    Args:
        num_nodes: n.
        score: of a family; finite.
        forbidden: edges that the graph cannot have.
        required: edges that it must have.
        max_parents: the largest number of parents.
        start: the DAG to start from, bool, shape (n, n), with all required and no forbidden edges; the
            required edges alone where left out.
        tabu_length: how many of the latest steps may not be undone.
        min_improvement: the search stops at steps that gain less, in nats.

    Returns:
        A DAG, bool, shape (n, n), a local maximum of the score.
    """
    from pgmpy.base import DAG
    from pgmpy.causal_discovery import ExpertKnowledge, HillClimbSearch

    start_dag = DAG()
    start_dag.add_nodes_from(range(num_nodes))
    if start is not None:
        start_dag.add_edges_from(map(tuple, start.nonzero().tolist()))
    search = HillClimbSearch(
        scoring_method=_scoring(score),
        start_dag=start_dag,
        tabu_length=tabu_length,
        max_indegree=max_parents,
        expert_knowledge=ExpertKnowledge(forbidden_edges=set(forbidden), required_edges=set(required)),
        return_type="dag",
        epsilon=min_improvement,
        show_progress=False,
    )
    return _adjacency(search.fit(_no_data(num_nodes)).causal_graph_, num_nodes)


def ges(num_nodes: int, score: FamilyScore, *, min_improvement: float = 1e-6) -> Tensor:
    """Greedy equivalence search by pgmpy (Chickering 2002), with its turning phase.

    Args:
        num_nodes: n.
        score: of a family, finite, the same for all DAGs of an equivalence class.
        min_improvement: the search stops at steps that gain less, in nats.

    Returns:
        The graph of the class, bool, shape (n, n), an undirected edge as both directions.
    """
    from pgmpy.causal_discovery import GES

    search = GES(scoring_method=_scoring(score), return_type="pdag", min_improvement=min_improvement)
    return _adjacency(search.fit(_no_data(num_nodes)).causal_graph_, num_nodes)


def pc_skeleton(
    table: Table, *, test: str | None = None, significance: float = 0.01, max_conditioning: int = 5
) -> tuple[Tensor, dict[frozenset[int], frozenset[int]]]:
    """The first half of PC (pgmpy's stable variant): which pairs stay linked, and what separates the others.

    Args:
        table: categorical or continuous variables; clamped cells count as observed.
        test: pgmpy's name of a test of conditional independence; the one for the type of the data
            (chi-squared; Pearson's correlation; Pillai's trace, which fits random forests and takes a quarter
            of a second a test) where left out.
        significance: pairs with a p-value at or above it count as independent.
        max_conditioning: the largest number of variables to condition on.

    Returns:
        The links, bool, symmetric, shape (n, n), and the separating set of each pair that has no link.
    """
    from pgmpy.causal_discovery import PC

    search = PC(
        variant="stable",
        ci_test=_independence_test(table, test),
        significance_level=significance,
        max_cond_vars=max_conditioning,
        n_jobs=1,
        show_progress=False,
    )
    search.fit(_frame(table))
    links = torch.zeros(table.num_variables, table.num_variables, dtype=torch.bool)
    number = {f"x{column}": column for column in range(table.num_variables)}
    for i, j in search.skeleton_.edges():
        links[number[i], number[j]] = links[number[j], number[i]] = True
    separating = {
        frozenset(number[i] for i in pair): frozenset(number[i] for i in found)
        for pair, found in search.separating_sets_.items()
    }
    return links, separating


def pc_tests() -> dict[str, tuple[str, ...]]:
    """Names of pgmpy's tests of independence, each with the types of data that it is for."""
    from pgmpy import ci_tests

    found = {}
    for member in ci_tests.__all__:
        test: Any = getattr(ci_tests, member)
        # The list has a function too, which has no tags.
        name = test.get_class_tag("name") if hasattr(test, "get_class_tag") else None
        if name and test.get_class_tag("requires_data"):
            found[name] = tuple(test.get_class_tag("data_types"))
    return found


def _independence_test(table: Table, name: str | None) -> Any:
    """The test to give to PC, or its name, after a look at whether it is for these data."""
    kind = "discrete" if table.is_discrete else "continuous" if table.is_continuous else "mixed"
    if name is None:
        name = {"discrete": "chi_square", "continuous": "pearsonr", "mixed": "pillai"}[kind]
    known = pc_tests()
    if name not in known or kind not in known[name]:
        fitting = sorted(test for test, kinds in known.items() if kind in kinds)
        raise ConfigError(f"test: expected one of {', '.join(fitting)} for {kind} data, got {name!r}")
    return name


def _scoring(score: FamilyScore) -> Any:
    """A score as pgmpy's searches ask for it, answered by ``score`` whatever the order of the parents."""
    from pgmpy.structure_score import BaseStructureScore

    class Scoring(BaseStructureScore):
        def __init__(self) -> None:  # the base class would take and recode the data
            pass

        def local_score(self, variable: int, parents: Sequence[int]) -> float:
            return score(int(variable), frozenset(map(int, parents)))

    return Scoring()


def _no_data(num_nodes: int) -> Any:
    """Columns for a search whose score has the data already: pgmpy reads their names, and wants two rows."""
    import numpy as np
    import pandas as pd

    return pd.DataFrame(np.zeros((2, num_nodes)))


def _frame(table: Table) -> Any:
    """The values in columns x0, x1, ... (some tests want text); categorical ones with all their levels."""
    import pandas as pd

    values = table.values.cpu().numpy()
    columns = {}
    for number, cardinality in enumerate(table.cardinalities):
        column = values[:, number]
        columns[f"x{number}"] = (
            pd.Categorical.from_codes(column.astype(int), categories=range(cardinality))
            if cardinality
            else column
        )
    return pd.DataFrame(columns)


def _adjacency(graph: Any, num_nodes: int) -> Tensor:
    adjacency = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    for i, j in graph.edges():
        adjacency[int(i), int(j)] = True
    return adjacency
