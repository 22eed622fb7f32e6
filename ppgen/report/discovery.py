"""Structure discovery from the command line: learn a graph from a table, and write what came out."""

from __future__ import annotations

import datetime
import inspect
import os
import platform
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen import __version__
from ppgen.errors import ConfigError, PpgenWarning
from ppgen.inference.structure.learning import find_method, learn
from ppgen.inference.structure.posterior import GraphPosterior
from ppgen.inference.structure.prior import Constraints
from ppgen.inference.structure.reading import read_table
from ppgen.inference.structure.table import Table
from ppgen.inference.trainee import find_device
from ppgen.report.discovery_arguments import read_reference
from ppgen.report.discovery_doubts import Figures, doubts, findings
from ppgen.report.discovery_files import draw, write_edges, write_graph, write_network
from ppgen.report.discovery_page import DiscoveryPage, render
from ppgen.report.table import write_atomically

#: arguments of ``learn`` that say how to read the table
_READING = ("interventions", "levels", "continuous", "discretise", "missing", "names")
_OF_LEARN = set(inspect.signature(learn).parameters)


@dataclass(frozen=True)
class DiscoveryResult:
    """What a discovery found and where it wrote it.

    Attributes:
        path: the page.
        posterior: the posterior over graphs.
        findings: what came out, in sentences.
        doubts: what to doubt, in sentences.
        interrupted: whether Ctrl-C ended the method before its end.
    """

    path: Path
    posterior: GraphPosterior
    findings: list[str]
    doubts: list[str]
    interrupted: bool = False

    def __str__(self) -> str:
        return "\n".join([*self.findings, f"the report is at {self.path}"])


def discover(
    table: Any,
    *,
    out: str | os.PathLike[str] = "ppgen-discovery",
    reference: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = True,
    **arguments: Any,
) -> DiscoveryResult:
    """Learn the graph behind a table and write it as a page, a table of edges, JSON and BIF.

    Writes ``index.html`` (complete in itself), ``edges.csv``, ``graph.json``, ``graph.bif`` (of discrete
    tables: the median graph with the posterior means of its tables) and two pictures.

    Args:
        table: as for :func:`~ppgen.inference.structure.learning.learn`.
        out: directory of the report; files of an earlier one are replaced.
        reference: a graph to compare with: a BIF file, or lines ``from,to``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        seed: of everything random.
        progress: whether to show progress on stderr.
        arguments: further ones of :func:`~ppgen.inference.structure.learning.learn`.

    Raises:
        DataError: a table or reference that cannot be used.
        ConfigError: arguments that make no sense, or a place that is no directory.
        KeyboardInterrupt: interrupted before there was anything to write.
    """
    place, started = Path(out), time.perf_counter()
    if place.exists() and not place.is_dir():
        raise ConfigError(f"out: {place} is a file; choose a directory")
    where = find_device(device)
    options = {name: arguments.pop(name) for name in set(arguments) - _OF_LEARN}
    method = find_method(arguments.pop("method", "exact"), options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reading = {name: arguments.pop(name) for name in _READING if name in arguments}
        read = read_table(table, device=where, **reading)
        truth = None if reference is None else read_reference(Path(reference), read.names)
        posterior = learn(read, method=method, device=where, seed=seed, progress=progress, **arguments)
        median, dropped = _median(posterior)
    remarks = _reissue(caught, posterior)
    figures = _figures(read, posterior, median, dropped, truth, remarks)
    interrupted = bool(posterior.attributes.get("interrupted", False))
    environment: dict[str, Any] = {
        "table": str(table) if isinstance(table, str | os.PathLike) else type(table).__name__,
        "method": posterior.method,
        "settings": _shown({**reading, **arguments, **options}),
        "device": str(where),
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "ppgen": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "interrupted": interrupted,
    }
    place.mkdir(parents=True, exist_ok=True)
    write_edges(place / "edges.csv", figures)
    network = write_network(place / "graph.bif", read, median)
    write_graph(place / "graph.json", figures, posterior, read, environment)
    draw(place, figures)
    page = DiscoveryPage(figures, read, posterior.attributes, environment, place, network)
    write_atomically(place / "index.html", render(page).encode("utf-8"))
    return DiscoveryResult(place / "index.html", posterior, findings(figures), doubts(figures), interrupted)


def _median(posterior: GraphPosterior) -> tuple[Tensor, tuple[tuple[str, str], ...]]:
    graph = posterior.median_graph()
    adjacency = torch.zeros(len(posterior.names), len(posterior.names), dtype=torch.bool)
    for start, end in graph.edges:
        adjacency[posterior.names.index(start), posterior.names.index(end)] = True
    return adjacency, tuple(graph.graph["dropped"])


def _reissue(caught: list[warnings.WarningMessage], posterior: GraphPosterior) -> tuple[str, ...]:
    """Warn again of what was warned of, and give the sentences that the posterior does not have itself."""
    remarks = []
    for found in caught:
        warnings.warn_explicit(found.message, found.category, found.filename, found.lineno)
        text = str(found.message)
        # Cycles of the median graph have a sentence of their own.
        if issubclass(found.category, PpgenWarning) and not text.startswith("median_graph"):
            remarks.append(text)
    return tuple(dict.fromkeys(r for r in remarks if r not in posterior.warnings))


def _figures(
    table: Table,
    posterior: GraphPosterior,
    median: Tensor,
    dropped: tuple[tuple[str, str], ...],
    reference: Tensor | None,
    remarks: tuple[str, ...],
) -> Figures:
    acts = posterior.learned.agent_probabilities
    return Figures(
        names=posterior.names,
        probabilities=posterior.source.edge_probabilities().double().cpu(),
        errors=posterior.source.edge_errors().double().cpu(),
        median=median,
        dropped=dropped,
        log_evidence=posterior.log_evidence,
        num_rows=table.num_rows,
        clamped=table.clamped.sum(0).cpu(),
        intervention=table.intervention.value,
        agents=None if acts is None else (posterior.agent_names, acts.double().cpu()),
        warnings=(*remarks, *posterior.warnings),
        reference=reference,
    )


def _shown(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as text; those left at nothing are left out."""
    return {
        name: value if isinstance(value, str) else repr(value)
        for name, value in settings.items()
        if value is not None and value != Constraints() and value not in ([], (), {})
    }
