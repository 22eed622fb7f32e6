"""The files of a structure discovery: edges as CSV, everything as JSON, the network as BIF, pictures."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ppgen.inference.pgmpy_adapter import write_bif
from ppgen.inference.structure.posterior import GraphPosterior
from ppgen.inference.structure.table import Table
from ppgen.models.bayesian_network import BayesianNetwork
from ppgen.plots.canvas import DARK, LIGHT, to_png
from ppgen.plots.graphs import edge_posterior
from ppgen.report.discovery_doubts import Figures
from ppgen.report.table import write_atomically

SCHEMA = "ppgen.discovery/1"


@dataclass(frozen=True)
class NetworkFile:
    """What became of ``graph.bif``.

    Attributes:
        written: whether there is one.
        reason: why not.
        renamed: names and levels that the format made change, old to new.
    """

    written: bool
    reason: str = ""
    renamed: Mapping[str, str] | None = None


def write_edges(path: Path, figures: Figures) -> None:
    """All edges with a probability above 0, the most probable first."""
    lines = io.StringIO()
    out = csv.writer(lines, lineterminator="\n")
    heading = ["from", "to", "probability", "std_error", "reverse_probability", "in_median_graph"]
    out.writerow([*heading, *(["in_reference"] if figures.reference is not None else [])])
    for i, j in ranked_edges(figures.probabilities):
        row = [figures.names[i], figures.names[j]]
        row += [
            f"{float(m[i, j]):.6g}" for m in (figures.probabilities, figures.errors, figures.probabilities.T)
        ]
        row.append(str(int(figures.median[i, j])))
        if figures.reference is not None:
            row.append(str(int(figures.reference[i, j])))
        out.writerow(row)
    write_atomically(path, lines.getvalue().encode("utf-8"))


def ranked_edges(probabilities: Tensor) -> list[tuple[int, int]]:
    """Edges with a probability above 0, the most probable first."""
    edges = [(i, j) for i, j in (probabilities > 0).nonzero().tolist() if i != j]
    return sorted(edges, key=lambda edge: -float(probabilities[edge]))


def write_graph(
    path: Path, figures: Figures, posterior: GraphPosterior, table: Table, environment: Mapping[str, Any]
) -> None:
    """The posterior and how it was made, as JSON."""
    evidence = figures.log_evidence
    tree = {
        "schema": SCHEMA,
        "variables": [
            {"name": v.name, "levels": None if v.levels is None else [_plain(x) for x in v.levels]}
            for v in table.variables
        ],
        "num_rows": table.num_rows,
        "intervention": figures.intervention,
        "rows_set": figures.clamped.tolist(),
        "edge_probabilities": figures.probabilities.tolist(),
        "edge_errors": figures.errors.tolist(),
        "median_graph": _edges(figures.median, figures.names),
        "dropped_for_cycles": [list(edge) for edge in figures.dropped],
        "map_graph": _edges(posterior.source.map_graph().cpu(), figures.names),
        "log_evidence": None
        if evidence is None
        else {
            "nats": float(evidence.value),
            "std_error": float(evidence.std_error),
            "kind": str(evidence.kind),
        },
        "agents": None
        if figures.agents is None
        else {"names": list(figures.agents[0]), "probabilities": figures.agents[1].tolist()},
        "reference": None if figures.reference is None else _edges(figures.reference, figures.names),
        "warnings": list(figures.warnings),
        "attributes": {str(k): _plain(v) for k, v in posterior.attributes.items()},
        "environment": {k: _plain(v) for k, v in environment.items()},
    }
    write_atomically(path, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode("utf-8"))


def write_network(path: Path, table: Table, median: Tensor) -> NetworkFile:
    """The median graph with the posterior means of its tables, where all variables are discrete."""
    path.unlink(missing_ok=True)  # that of an earlier run is not this one's
    if not table.is_discrete:
        kind = "all" if table.is_continuous else "some"
        return NetworkFile(False, f"the format is for discrete variables, and {kind} of these are continuous")
    cells = max(
        math.prod(table.cardinalities[v] for v in (node, *median[:, node].nonzero()[:, 0].tolist()))
        for node in range(table.num_variables)
    )
    if cells > 2**22:
        return NetworkFile(False, f"its largest table would have {cells:,} entries")
    network = BayesianNetwork.from_graph(median, table.to("cpu")).to_network()
    return NetworkFile(True, renamed=write_bif(network, path))


def draw(place: Path, figures: Figures) -> None:
    """Write ``graph.png`` and ``graph-dark.png``: the matrix, and the median graph."""
    names, acts = figures.agents if figures.agents is not None else ((), None)
    shown = figures.probabilities.clamp(0, 1)
    for suffix, theme in (("", LIGHT), ("-dark", DARK)):
        figure = edge_posterior(
            shown, figures.names, reference=figures.reference, agents=acts, agent_names=names, theme=theme
        )
        write_atomically(place / f"graph{suffix}.png", to_png(figure))


def _edges(adjacency: Tensor, names: tuple[str, ...]) -> list[list[str]]:
    return [[names[i], names[j]] for i, j in adjacency.nonzero().tolist()]


def _plain(value: Any) -> Any:
    """A value as JSON has it; what it has no form for becomes its text."""
    if isinstance(value, Tensor):
        value = value.tolist() if value.ndim else value.item()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
