"""From a table to a posterior over graphs, in one call."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ppgen.errors import ConfigError
from ppgen.inference.structure.bootstrap import Bootstrap
from ppgen.inference.structure.posterior import GraphPosterior
from ppgen.inference.structure.prior import Constraints, GraphPrior, compile_prior
from ppgen.inference.structure.problem import Method, Problem
from ppgen.inference.structure.reading import Missing, read_table
from ppgen.inference.structure.scores.base import Score
from ppgen.inference.structure.scores.registry import score_from
from ppgen.inference.structure.table import Table
from ppgen.inference.trainee import find_device

#: methods by name: the class of its options, exported by ``ppgen.inference.structure``
METHODS = {
    "exact": "Exact",
    "order_mcmc": "OrderMCMC",
    "partition_mcmc": "PartitionMCMC",
    "dibs": "DiBS",
    "notears": "NOTEARS",
    "dagma": "DAGMA",
    "hill_climb": "HillClimb",
    "ges": "GES",
    "pc": "PC",
    "bootstrap": "Bootstrap",
}


_WITHOUT_SCORE = {"pc", "dibs", "notears", "dagma"}


def learn(
    table: Any,
    *,
    interventions: Any = None,
    score: str | Score | None = None,
    method: str | Method = "exact",
    prior: Literal["uniform", "order"] | GraphPrior = "uniform",
    constraints: Constraints | None = None,
    levels: Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    continuous: Sequence[str] | bool = (),
    discretise: Any = None,
    missing: Missing = "error",
    names: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    seed: int | None = 0,
    progress: bool = True,
    **options: Any,
) -> GraphPosterior:
    """Learn the graph behind a table: how probable each edge is, given the data.

    Everything that can be told to be wrong before the work starts is told before it starts.

    Args:
        table: a pandas DataFrame, the path of a CSV file, an array or tensor of shape (N, n), or a
            :class:`~ppgen.inference.structure.table.Table`.
        interventions: what was set in each row, see :func:`~ppgen.inference.structure.reading.read_table`.
        score: of families: an object such as ``structure.BDeu(1.0)``, or its name; by default the one for
            the data (BDeu for discrete, BGe for continuous, conditional-Gaussian BIC for mixed tables).
        method: a name of :data:`METHODS`, with ``options`` for it, or an object with its options inside.
            ``"bootstrap:ges"`` is the bootstrap of GES; options go to both.
        prior: over DAGs, by its kind or a :class:`~ppgen.inference.structure.prior.GraphPrior`.
        constraints: edges that must or cannot be there.
        levels: values of categorical columns, in order; they may be absent in the data.
        continuous: columns that are continuous although they look categorical.
        discretise: how to cut continuous columns into levels.
        missing: what to do where cells are missing: ``"error"``, ``"drop"`` or ``"level"``.
        names: of the columns, for arrays.
        device: ``"cpu"``, ``"cuda"``, ``"auto"``; by default where the data are, else the CPU.
        seed: of everything random; ``None`` to draw from torch's global generator.
        progress: whether to show progress on stderr.
        options: of the method, where it is given by name: ``num_chains=32``.

    Raises:
        DataError: a table that cannot be used.
        ConfigError: arguments, or a combination of them, that make no sense.
        DeviceError: a device that this machine does not have.
    """
    chosen = find_method(method, options)
    where = None if device is None else find_device(device)
    read = read_table(
        table,
        interventions=interventions,
        names=names,
        levels=levels,
        continuous=continuous,
        discretise=discretise,
        missing=missing,
        device=where,
    )
    graph_prior = GraphPrior(kind=prior) if isinstance(prior, str) else prior
    if not isinstance(graph_prior, GraphPrior):
        raise ConfigError(f"prior: expected 'uniform', 'order' or a GraphPrior, got {prior!r}")
    known = Constraints() if constraints is None else constraints
    if not isinstance(known, Constraints):
        raise ConfigError(f"constraints: expected a Constraints object, got {known!r}")
    compile_prior(graph_prior, known, read.names)
    problem = Problem(read, _score(score, chosen, read), graph_prior, known, progress)
    return GraphPosterior.from_problem(problem, chosen.run(problem, seed=seed), method=chosen.name)


def find_method(method: str | Method, options: Mapping[str, Any]) -> Method:
    """A method by its name, or the object itself, checked.

    Raises:
        ConfigError: an unknown name; options that the method does not have, or beside an object.
    """
    if not isinstance(method, str):
        if isinstance(method, type) or not isinstance(method, Method):
            raise ConfigError(
                f"method: expected one of {', '.join(METHODS)}, or an object such as "
                f"structure.Exact(), got {method!r}"
            )
        if options:
            raise ConfigError(
                f"{', '.join(options)}: options go into the method object, {type(method).__name__}(...)"
            )
        return method
    name, _, inner = method.partition(":")
    if name not in METHODS or (inner and (name != "bootstrap" or inner not in METHODS)):
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, or bootstrap:NAME, got {method!r}")
    kind = _kind(name)
    if not inner:
        _check_options(name, _options_of(kind), options)
        return kind(**options)
    outer_names = _options_of(kind) - {"method"}
    inner_kind = _kind(inner)
    _check_options(method, outer_names | _options_of(inner_kind), options)
    resampled = inner_kind(**{k: v for k, v in options.items() if k not in outer_names})
    return kind(method=resampled, **{k: v for k, v in options.items() if k in outer_names})


def _score(score: str | Score | None, method: Method, table: Table) -> Score | None:
    """The score to use; none for a method that has no use for one."""
    inner = method.method if isinstance(method, Bootstrap) else method
    if inner.name not in _WITHOUT_SCORE:
        return score_from(score, table)
    if score is not None:
        raise ConfigError(f"score: method {inner.name!r} uses none, got {score!r}; leave it out")
    return None


def _kind(name: str) -> Any:
    return getattr(importlib.import_module("ppgen.inference.structure"), METHODS[name])


def _options_of(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind) if field.init}


def _check_options(method: str, known: set[str], options: Mapping[str, Any]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown)}: method {method!r} has no such option; it has {', '.join(sorted(known))}"
        )
