"""What ``ppgen discover`` is told in text: edges, tiers, levels, options, a graph to compare with."""

from __future__ import annotations

import argparse
import ast
import csv
import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.inference.structure.interventions import Imperfect, Perfect, Soft, Uncertain
from ppgen.inference.structure.learning import learn
from ppgen.inference.structure.prior import Constraints
from ppgen.inference.structure.scores.bde import BDe
from ppgen.inference.structure.scores.conditional_gaussian import ConditionalGaussianBIC
from ppgen.inference.structure.scores.discrete import AIC, BIC, K2, BDeu
from ppgen.inference.structure.scores.gaussian import BGe, GaussianBIC

_SCORES: tuple[Any, ...] = (BDeu, BDe, K2, BIC, AIC, BGe, GaussianBIC, ConditionalGaussianBIC)
_ARROW = re.compile(r"\s*(?:->|→)\s*")


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
    """The command's options as arguments of :func:`~ppgen.inference.structure.learning.learn`."""
    method_options = parse_options(options.option)
    taken = sorted(set(method_options) & set(inspect.signature(learn).parameters))
    if taken:
        raise ConfigError(f"--option: {', '.join(taken)} is no option of a method; see ppgen discover --help")
    continuous = [] if options.continuous is None else _parts([options.continuous], ",")
    return {
        "interventions": _interventions(options),
        "levels": parse_levels(options.levels),
        "continuous": continuous,
        "discretise": options.discretise,
        "missing": options.missing,
        "method": options.method,
        "score": _score(options.score, parse_options(options.score_option, "--score-option")),
        "prior": options.prior,
        "constraints": Constraints(
            required=parse_edges(options.require, "--require"),
            forbidden=parse_edges(options.forbid, "--forbid"),
            tiers=parse_tiers(options.tiers),
            max_parents=options.max_parents,
        ),
        **method_options,
    }


def _interventions(options: argparse.Namespace) -> Any:
    column, kind = options.interventions, options.intervention_kind
    for name, belongs in (("push", "soft"), ("push_to", "soft"), ("max_agents", "uncertain")):
        if getattr(options, name) not in (None, []) and kind != belongs:
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for --intervention-kind {belongs}, got {kind!r}"
            )
    if column is None:
        if kind != "perfect":
            raise ConfigError(
                f"--intervention-kind: {kind} needs the column that tells it; add --interventions COLUMN"
            )
        return None
    if kind == "soft":
        if options.push is None:
            raise ConfigError("--push: soft interventions need the pseudo-counts of the push; add --push 10")
        return Soft(column, push=options.push, levels=_pushed_to(options.push_to))
    if kind == "uncertain":
        return Uncertain(column, max_agents=1 if options.max_agents is None else options.max_agents)
    return (Perfect if kind == "perfect" else Imperfect)(column)


def _pushed_to(texts: Sequence[str]) -> dict[str, Any]:
    """``["A=high"]`` as levels by name."""
    levels = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name.strip() or not value.strip():
            raise ConfigError(f"--push-to: expected COLUMN=LEVEL, such as PKA=high, got {text!r}")
        levels[name.strip()] = _value(value)
    return levels


def _score(name: str | None, options: dict[str, Any]) -> Any:
    """A score by name, or an object where it has options."""
    if not options:
        return name
    if name is None:
        raise ConfigError("--score-option: which score has it? add --score NAME")
    kind = next((score for score in _SCORES if score.name == name.lower().replace("-", "_")), None)
    if kind is None:
        raise ConfigError(f"--score: expected one of {', '.join(s.name for s in _SCORES)}; got {name!r}")
    known = sorted(field.name for field in dataclasses.fields(kind) if field.init)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"--score-option: {name} has no {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    return kind(**options)


def parse_edges(texts: Sequence[str], argument: str) -> list[tuple[str, str]]:
    """``["A->B, C->D", "E->F"]`` as pairs; a name may not hold an arrow or a comma."""
    edges = []
    for part in _parts(texts, ","):
        ends = _ARROW.split(part)
        if len(ends) != 2 or not all(ends):
            raise ConfigError(f"{argument}: expected edges such as 'A->B' or 'A->B,C->D', got {part!r}")
        edges.append((ends[0], ends[1]))
    return edges


def parse_tiers(text: str | None) -> list[list[str]]:
    """``"A,B/C"`` as groups, causes first."""
    if text is None:
        return []
    groups = [_parts([group], ",") for group in text.split("/")]
    if not all(groups):
        raise ConfigError(f"--tiers: expected groups such as 'A,B/C,D', causes first, got {text!r}")
    return groups


def parse_levels(texts: Sequence[str]) -> dict[str, list[Any]] | list[Any] | None:
    """``["A=low,high"]`` as levels by name, or ``["1,2,3"]`` as those of every column."""
    if not texts:
        return None
    by_name: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.rpartition("=")
        levels = [_value(v) for v in _parts([values], ",")]
        if len(levels) < 2 or bool(equals) != bool(name) or (not equals and len(texts) > 1):
            raise ConfigError(
                f"--levels: expected 'COLUMN=a,b,c' for each column, or one 'a,b,c' for all, got {text!r}"
            )
        if not equals:
            return levels
        by_name[name.strip()] = levels
    return by_name


def parse_options(texts: Sequence[str], argument: str = "--option") -> dict[str, Any]:
    """``["num_chains=8"]`` as keyword arguments; Python's numbers, ``True``, ``None``, tuples, else text."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigError(f"{argument}: expected NAME=VALUE, such as num_chains=8, got {text!r}")
        options[name.strip()] = _value(value)
    return options


def read_reference(path: str | Path, names: Sequence[str]) -> Tensor:
    """A graph to compare with: a BIF file, or lines ``from,to`` with or without a heading.

    Returns:
        bool, shape (n, n), in the order of ``names``.

    Raises:
        DataError: a file that cannot be read, or edges of other variables.
    """
    path = Path(path)
    if path.suffix == ".bif":
        from ppgen.inference.pgmpy_adapter import read_bif

        edges = read_bif(path).edges
    else:
        edges = _edges_of_file(path)
    adjacency = torch.zeros(len(names), len(names), dtype=torch.bool)
    for start, end in edges:
        for name in (start, end):
            if name not in names:
                raise DataError(
                    f"--reference: {path} has an edge {start} -> {end}, and no variable of the table is "
                    f"called {name!r}; known are {', '.join(names)}"
                )
        adjacency[names.index(start), names.index(end)] = True
    return adjacency


def _edges_of_file(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--reference: {path} cannot be read ({error})") from error
    rows = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells = _ARROW.split(line.strip()) if _ARROW.search(line) else _cells(line)
        if len(cells) < 2 or not all(cells[:2]):
            raise DataError(f"--reference: expected lines 'from,to' in {path}, got {line!r}")
        rows.append((cells[0], cells[1]))
    heading = rows and (rows[0][0].lower(), rows[0][1].lower()) in {("from", "to"), ("source", "target")}
    return rows[1:] if heading else rows


def _cells(line: str) -> list[str]:
    mark = next((m for m in (",", ";", "\t") if m in line), " ")
    return [cell.strip() for cell in next(csv.reader([line.strip()], delimiter=mark, skipinitialspace=True))]


def _parts(texts: Sequence[str], mark: str) -> list[str]:
    return [part.strip() for text in texts for part in text.split(mark) if part.strip()]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
