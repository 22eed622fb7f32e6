"""Fewer possible parents: what the families may be made of where there are many variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ppgen.errors import ConfigError
from ppgen.inference.structure.listed_scores import listed_scores
from ppgen.inference.structure.problem import Problem


def restricted(problem: Problem, candidates: int | Mapping[str, Sequence[str]] | None) -> Problem:
    """The problem with all edges forbidden but those from candidates; required edges stay.

    Args:
        problem: the problem.
        candidates: a number K, for the K parents of each variable that score best as its only one; or
            names of the parents of some variables.

    Raises:
        ConfigError: unknown names.
    """
    names = problem.table.names
    if candidates is None or (isinstance(candidates, int) and candidates >= len(names) - 1):
        return problem
    allowed = _best(problem, candidates) if isinstance(candidates, int) else dict(candidates)
    unknown = {name for node, parents in allowed.items() for name in (node, *parents)} - set(names)
    if unknown:
        raise ConfigError(f"candidates: no variables {sorted(unknown)}; there are {', '.join(names)}")
    required = set(problem.constraints.required)
    out = [
        (parent, node)
        for node, parents in allowed.items()
        for parent in names
        if parent != node and parent not in parents and (parent, node) not in required
    ]
    forbidden = tuple(dict.fromkeys([*problem.constraints.forbidden, *out]))
    return replace(problem, constraints=replace(problem.constraints, forbidden=forbidden))


def _best(problem: Problem, num: int) -> dict[str, Sequence[str]]:
    required = {end for _, end in problem.constraints.required}
    names = problem.table.names
    alone = replace(problem, constraints=replace(problem.constraints, required=()), progress=False)
    listed = listed_scores(alone, max_parents=1, prune=0.0)
    best: dict[str, Sequence[str]] = {}
    for name, parents, scores in zip(names, listed.parents, listed.log_scores, strict=True):
        if parents.shape[1] == 0:
            continue
        ones = parents[:, 0] >= 0
        order = scores[ones].argsort(descending=True)[: num + (name in required)]
        best[name] = [names[p] for p in parents[ones, 0][order].tolist()]
    return best
