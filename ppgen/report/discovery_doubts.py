"""What came out of a structure discovery and what to doubt of it, in sentences computed from the figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.contract import Estimate

# From here to one less it, an edge counts as open.
_OPEN = 0.1
_NAMED = 6


@dataclass(frozen=True)
class Figures:
    """The figures that the sentences are made of.

    Attributes:
        names: of the variables.
        probabilities: of the edges, shape (n, n), float64, CPU.
        errors: Monte-Carlo standard errors, same shape.
        median: edges of the median graph, shape (n, n), bool.
        dropped: edges above one half that the median graph lost to cycles.
        log_evidence: where the method gives it, in nats.
        num_rows: N.
        clamped: how many rows had each variable set, shape (n,).
        intervention: what setting does: ``"none"``, ``"perfect"``, ...
        agents: probabilities that agents act on variables, shape (A, n), and the agents' names.
        warnings: what the method said of itself.
        reference: a graph to compare with, bool, shape (n, n).
    """

    names: tuple[str, ...]
    probabilities: Tensor
    errors: Tensor
    median: Tensor
    dropped: tuple[tuple[str, str], ...]
    log_evidence: Estimate | None
    num_rows: int
    clamped: Tensor
    intervention: str = "none"
    agents: tuple[tuple[str, ...], Tensor] | None = None
    warnings: tuple[str, ...] = ()
    reference: Tensor | None = None


def findings(figures: Figures) -> list[str]:
    """What came out."""
    p = figures.probabilities
    n = len(figures.names)
    sure = int((p > 0.95).sum())
    above = int((p > 0.5).sum())
    of_them = f", {sure} of them above .95" if 0 < sure < above else ", all above .95" if sure else ""
    found = [
        f"{_count(above, 'edge')} of {n * (n - 1)} possible {_are(above)} more probable than not{of_them}; "
        f"{float(p.sum()):.1f} are expected in all."
    ]
    if figures.log_evidence is not None:
        value, error = float(figures.log_evidence.value), float(figures.log_evidence.std_error)
        shown = f"{value:.2f}" + (f" ± {error:.2g}" if error > 0 else "")
        found.append(
            f"The log evidence of the table, over all graphs, is {shown} nats. Differences of it between "
            "priors, scores or kinds of intervention on the same rows are log Bayes factors."
        )
    if figures.agents is not None:
        names, acts = figures.agents
        likely = [
            f"{agent} acts on {_listed([figures.names[v] for v in (row > 0.5).nonzero()[:, 0].tolist()])}"
            for agent, row in zip(names, acts, strict=True)
            if bool((row > 0.5).any())
        ]
        if likely:
            found.append("More probable than not: " + "; ".join(likely) + ".")
    if figures.reference is not None:
        found.append(_against(figures.reference, figures.median, figures.names))
    return found


def doubts(figures: Figures) -> list[str]:
    """What to doubt."""
    found = [_sentence(text) for text in figures.warnings]
    found += _open_edges(figures)
    found += _open_directions(figures)
    if figures.dropped:
        shown = _listed([f"{i} → {j}" for i, j in figures.dropped])
        found.append(
            f"The edges above one half make cycles, as no single graph need stand behind them; {shown} "
            f"{'is' if len(figures.dropped) == 1 else 'are'} left out of the picture and the network."
        )
    worst = float(figures.errors.max())
    if worst > 0.005:
        i, j = divmod(int(figures.errors.argmax()), len(figures.names))
        found.append(
            f"Probabilities are Monte-Carlo estimates: the largest standard error is {worst:.2f}, of "
            f"{figures.names[i]} → {figures.names[j]}. Longer runs make it smaller."
        )
    found += _about_rows(figures)
    found.append(
        "To read an arrow as a cause takes for granted that no common cause of two variables is missing from "
        "the table, that nothing feeds back, and that rows were not selected by what they hold."
    )
    return found


def _open_edges(figures: Figures) -> list[str]:
    p = figures.probabilities
    joined = (p + p.T).triu(1)
    open_pairs = ((joined > _OPEN) & (joined < 1 - _OPEN)).nonzero().tolist()
    if not open_pairs:
        return []
    open_pairs.sort(key=lambda pair: abs(float(joined[pair[0], pair[1]]) - 0.5))
    shown = [f"{figures.names[i]} – {figures.names[j]} ({float(joined[i, j]):.2f})" for i, j in open_pairs]
    return [
        f"Whether there is an edge is open for {_count(len(open_pairs), 'pair')} (probability between "
        f"{_OPEN:.1f} and {1 - _OPEN:.1f}): {_listed(shown)}."
    ]


def _open_directions(figures: Figures) -> list[str]:
    p = figures.probabilities
    joined, larger = (p + p.T).triu(1), torch.maximum(p, p.T).triu(1)
    either = ((joined >= 1 - _OPEN) & (larger < 0.9 * joined)).nonzero().tolist()
    if not either:
        return []
    shown = [f"{figures.names[i]} – {figures.names[j]} ({_split(p, i, j)})" for i, j in either]
    return [
        f"The direction is open for {_count(len(either), 'edge')} that are there almost surely: "
        f"{_listed(shown)}. Observational data alone often cannot tell it; interventions on one end can."
    ]


def _split(p: Tensor, i: int, j: int) -> str:
    return f"{float(p[i, j]):.2f} against {float(p[j, i]):.2f}"


def _about_rows(figures: Figures) -> list[str]:
    found = []
    n = len(figures.names)
    always = [v for v in range(n) if int(figures.clamped[v]) == figures.num_rows]
    few = [v for v in range(n) if 0 < figures.num_rows - int(figures.clamped[v]) < 20]
    if figures.intervention == "perfect" and always:
        found.append(
            f"{_listed([figures.names[v] for v in always])} {_are(len(always))} set in every row: nothing is "
            "learnt of what acts on them, and edges into them have their prior probability."
        )
    elif figures.intervention == "perfect" and few:
        found.append(f"Fewer than 20 rows tell what acts on {_listed([figures.names[v] for v in few])}.")
    per_variable = figures.num_rows / n
    if per_variable < 10:
        found.append(
            f"{figures.num_rows} rows for {n} variables are few; the prior over graphs weighs in. Compare "
            "with the other prior."
        )
    return found


def _against(reference: Tensor, median: Tensor, names: tuple[str, ...]) -> str:
    right = int((median & reference).sum())
    turned = int((median & reference.T & ~reference).sum())
    extra = median & ~reference & ~reference.T
    missed = reference & ~median & ~median.T
    parts = [f"{right} of its {int(reference.sum())} edges are found"]
    if turned:
        parts.append(f"{turned} the other way round")
    for graph, word in ((missed, "missed"), (extra, "found that it lacks")):
        number = int(graph.sum())
        if number:
            shown = _listed([f"{names[i]} → {names[j]}" for i, j in graph.nonzero().tolist()])
            parts.append(f"{number} {word} ({shown})")
    return "Against the reference graph, of the median graph: " + ", ".join(parts) + "."


def _listed(items: list[str]) -> str:
    shown, rest = items[:_NAMED], len(items) - _NAMED
    if rest > 0:
        return f"{', '.join(shown)} and {rest} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def rounded(probability: float) -> str:
    """A probability as text that says 0 and 1 only where it is."""
    if math.isnan(probability):
        return "–"
    if 0 < probability < 0.001:
        return "< .001"
    if 0.999 < probability < 1:
        return "> .999"
    return f"{probability:.3f}"
