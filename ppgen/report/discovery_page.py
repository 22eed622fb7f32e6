"""A structure discovery as one HTML file: findings, the picture, edges, doubts, how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ppgen.inference.structure.table import Table
from ppgen.report.discovery_doubts import Figures, doubts, findings, rounded
from ppgen.report.discovery_files import NetworkFile, ranked_edges
from ppgen.report.pieces import day, document, facts, figure, section, unbroken

# Edges below this are in the file and not on the page.
_LISTED = 0.01
_MOST_LISTED = 400

# Rows of a table by the column whose heading is pressed; text by name, numbers by size.
_SORTING = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const down = head.getAttribute("aria-sort") !== "descending";
    const key = row => row.children[column].dataset.value ?? row.children[column].textContent;
    const numeric = head.dataset.kind === "number";
    const sign = down ? -1 : 1;
    const rows = [...body.rows].sort((a, b) => sign * (numeric ? key(a) - key(b) :
    key(a).localeCompare(key(b)))); for (const other of head.parentNode.children)
    other.removeAttribute("aria-sort"); head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  });
}
"""


@dataclass(frozen=True)
class DiscoveryPage:
    """What the page tells.

    Attributes:
        figures: what the sentences, the table and the picture are made of.
        table: the data.
        attributes: figures of the method's run.
        environment: table, method, settings, versions, device, seed, times.
        out: directory that holds the pictures.
        network: what became of the BIF file.
    """

    figures: Figures
    table: Table
    attributes: Mapping[str, Any]
    environment: Mapping[str, Any]
    out: Path
    network: NetworkFile


def render(page: DiscoveryPage) -> str:
    """The whole HTML document."""
    title = f"Structure of {Path(page.environment['table']).name}"
    body = "\n".join(
        [
            _header(page, title),
            "<main>",
            section("findings", "What came out", _sentences(findings(page.figures))),
            section("graph", "The graph", _picture(page)),
            section("edges", "Edges and their probabilities", _edges(page.figures)),
            section("doubts", "What to doubt", _sentences(doubts(page.figures))),
            section("method", "How this was made", _method(page)),
            "</main>",
            _footer(page),
            f"<script>{_SORTING}</script>",
        ]
    )
    return document(title, body)


def _header(page: DiscoveryPage, title: str) -> str:
    env, table = page.environment, page.table
    kind = (
        "discrete"
        if table.is_discrete
        else "continuous"
        if table.is_continuous
        else "discrete and continuous"
    )
    items: list[tuple[str, object]] = [
        ("rows", f"{table.num_rows:,}"),
        ("variables", f"{table.num_variables}, {kind}"),
        ("method", env["method"].replace("_", " ")),
        ("this run took", _seconds(env["seconds"])),
        ("device", env["device"]),
        ("seed", env["seed"]),
        ("date", day(env["date"])),
    ]
    notice = ""
    if env["interrupted"]:
        notice = (
            '<p class="notice" role="status">The run was interrupted. What stands here is made of the part '
            "that was done.</p>"
        )
    lead = "How probable each direct connection between the variables is, given the table."
    return (
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="lead">{lead}</p>\n{notice}{facts(items)}\n</header>'
    )


def _sentences(sentences: list[str]) -> str:
    items = "".join(f"<li>{unbroken(escape(sentence))}</li>" for sentence in sentences)
    return f'<ul class="findings">{items}</ul>'


def _picture(page: DiscoveryPage) -> str:
    figures = page.figures
    caption = (
        "Left: probability of each edge, from the row to the column. Right: edges above one half, wider "
        "where more probable."
    )
    if figures.reference is not None:
        caption += " Frames and dashes: the reference graph."
    if figures.agents is not None:
        caption += " Squares: agents, with what they act on."
    alt = (
        f"A matrix of the probabilities of all edges, and a graph of {int(figures.median.sum())} edges; the "
        "table below has the same figures."
    )
    shown = figure(page.out / "graph", caption, alt, "", "discovered")
    return f'<div class="scroll" role="region" tabindex="0" aria-labelledby="graph">{shown}</div>'


def _edges(figures: Figures) -> str:
    p = figures.probabilities
    listed = [edge for edge in ranked_edges(p) if float(p[edge]) >= _LISTED][:_MOST_LISTED]
    if not listed:
        return f"<p>No edge has a probability of {_LISTED} or more.</p>"
    exact = not bool(figures.errors.any())
    heads = [
        _head("From", "text"),
        _head("To", "text"),
        _head("Probability", "number", "descending"),
        *([] if exact else [_head("Standard error", "number")]),
        _head("The other way", "number"),
        _head("Either way", "number"),
        *([] if figures.reference is None else [_head("Reference", "text")]),
    ]
    rows = []
    for i, j in listed:
        probability, reverse = float(p[i, j]), float(p[j, i])
        cells = [
            f'<th scope="row">{escape(figures.names[i])}</th>',
            f'<td class="text">{escape(figures.names[j])}</td>',
            _number(probability, bar=True),
            *(
                []
                if exact
                else [
                    f'<td data-value="{float(figures.errors[i, j])}">{float(figures.errors[i, j]):.3f}</td>'
                ]
            ),
            _number(reverse),
            _number(min(probability + reverse, 1.0)),
        ]
        if figures.reference is not None:
            known = "yes" if figures.reference[i, j] else "reversed" if figures.reference[j, i] else "–"
            cells.append(f'<td class="text">{known}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    rest = sum(1 for edge in ranked_edges(p)) - len(listed)
    note = f' <a href="edges.csv">edges.csv</a> has {rest} more, less probable.' if rest > 0 else ""
    return (
        f'<p class="note">Press a heading to sort by it.{note}</p>\n'
        '<div class="scroll edges" role="region" tabindex="0" aria-labelledby="edges">\n'
        f'<table aria-labelledby="edges">\n<thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>\n</div>"
    )


def _head(text: str, kind: str, sort: str = "") -> str:
    sorted_by = f' aria-sort="{sort}"' if sort else ""
    css = ' class="text"' if kind == "text" else ""
    return f'<th scope="col" data-kind="{kind}"{css}{sorted_by}><button type="button">{text}</button></th>'


def _number(value: float, *, bar: bool = False) -> str:
    """A probability; the whole number for sorting, and a bar of its length behind it."""
    style = f' class="bar" style="--share: {100 * value:.1f}%"' if bar else ""
    return f'<td data-value="{value!r}"{style}>{escape(rounded(value))}</td>'


def _method(page: DiscoveryPage) -> str:
    env = page.environment
    items = [("Table", f"{env['table']}: {page.table.num_rows:,} rows; {_variables(page.table)}.")]
    if page.figures.intervention != "none" and bool(page.figures.clamped.any()):
        which = [
            f"{name} in {int(number):,}"
            for name, number in zip(page.figures.names, page.figures.clamped.tolist(), strict=True)
            if number
        ]
        items.append(
            ("Interventions", f"{page.figures.intervention.capitalize()}: rows that set {', '.join(which)}.")
        )
    if page.figures.agents is not None:
        items.append(("Agents", f"{', '.join(page.figures.agents[0])}; what they act on is learnt."))
    settings = ", ".join(f"{name} {value}" for name, value in env["settings"].items()) or "all by default"
    items.append(("Settings", f"{settings}."))
    run = ", ".join(
        f"{str(k).replace('_', ' ')} {_short(v)}" for k, v in page.attributes.items() if _short(v)
    )
    if run:
        items.append(("The run", f"{run}."))
    items.append(("Network", _about_network(page.network)))
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items)
    return f'<dl class="method">{rows}</dl>'


def _variables(table: Table) -> str:
    shown = [
        f"{v.name} ({v.cardinality} levels)" if v.levels is not None else f"{v.name} (continuous)"
        for v in table.variables
    ]
    return ", ".join(shown)


def _about_network(network: NetworkFile) -> str:
    if not network.written:
        return f"There is no graph.bif: {network.reason}."
    text = (
        "graph.bif holds the median graph with the posterior means of its tables (equivalent sample size 1)."
    )
    if network.renamed:
        text += f" The format made {len(network.renamed)} names or levels change, such as “" + (
            "” to “".join(next(iter(network.renamed.items())))
        )
        text += "”."
    return text


def _footer(page: DiscoveryPage) -> str:
    env = page.environment
    versions = f"ppgen {env['ppgen']}, torch {env['torch']}, Python {env['python']}, {env['date']}"
    files = ["edges.csv", "graph.json", *(["graph.bif"] if page.network.written else [])]
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
    return f"<footer>\n<p>{escape(versions)}.</p>\n<p>The same figures as files: {links}.</p>\n</footer>"


def _short(value: Any) -> str:
    """A figure of the run in a few characters; empty where it is no single figure."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else ""


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"
