"""The survey's tables as HTML: one for each view of the data."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ppgen.report.table import Number, Row

# Column heading, its unit, the field of a row, and where the best figure of a group lies.
_COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    ("Bits/dim ↓", "test", "bits_per_dim", "min"),
    ("NLL ↓", "test, nats", "nll", "min"),
    ("FID ↓", "samples", "fid", "min"),
    ("KID ↓", "samples", "kid", "min"),
    ("Precision ↑", "samples", "precision", "max"),
    ("Recall ↑", "samples", "recall", "max"),
)

_KINDS = {
    "exact": "exact",
    "lower_bound": "lower bound",
    "upper_bound": "upper bound",
    "estimate": "estimate",
    "unnormalised": "unnormalised",
    "implicit": "implicit",
    "data": "data",
}


def tables(rows: Sequence[Row]) -> str:
    """The legend of the kinds of density, and a table for each group of rows with the same values."""
    groups = list(dict.fromkeys(row.values for row in rows))
    parts = [_legend()]
    if len(groups) > 1:
        names = " and ".join(f"“{escape(values_title(g))}”" for g in groups)
        parts.append(
            f"<p>There is one table for each view of the data, {names}. <strong>Bits per dimension in one "
            "cannot be compared with those in the other</strong>: they are code lengths of different "
            "data.</p>"
        )
    parts += [_table(rows, group) for group in groups]
    return "\n".join(parts)


def _legend() -> str:
    def label(kind: str) -> str:
        return f'<span class="kind {kind}">{_KINDS[kind]}</span>:'

    return (
        '<p class="legend">What a family can say of its density: '
        f"{label('exact')} it can be computed; {label('lower_bound')} only a bound of the log-likelihood "
        f"from below can; {label('unnormalised')} it is known up to a constant, so no figure is shown "
        f"unless the constant is computed too; {label('implicit')} it can be sampled from and has no "
        "density at hand. The sign ≤ before bits or nats marks a bound: the true figure is no larger. "
        "An exact density of real numbers gives a bound too once the data are levels. After ± stands one "
        "standard error. Arrows say which way is better, and bold marks the best family of a column, which "
        "is no claim beyond that error.</p>"
    )


def _table(everything: Sequence[Row], group: str) -> str:
    rows = [r for r in everything if r.values == group]
    best = {name: _best(rows, name, direction) for _, _, name, direction in _COLUMNS}
    heads = "".join(
        f'<th scope="col">{head}<small>{unit}</small></th>'
        for head, unit in [
            *((head, unit) for head, unit, _, _ in _COLUMNS),
            ("Training", "seconds"),
            ("Sampling", "s for 1000"),
            ("Latent", "size"),
            ("Parameters", "number"),
        ]
    )
    body = "\n".join(_table_row(row, best) for row in rows)
    notes = [f"<li>{escape(line)}</li>" for line in _footnotes(rows)]
    title = values_title(group)
    slug = "table-" + group.replace(" ", "-")
    footnotes = f'<ul class="footnotes">{"".join(notes)}</ul>' if notes else ""
    return (
        f'<h3 id="{slug}">{escape(title)}</h3>\n<p class="note">{escape(_values_note(group))}</p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{slug}">\n'
        f'<table aria-labelledby="{slug}">\n'
        '<thead><tr><th scope="col">Family</th><th scope="col" class="text">Density</th>'
        f"{heads}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>\n{footnotes}"
    )


def _footnotes(rows: Sequence[Row]) -> list[str]:
    """Why figures are missing, each reason once, with the measures and rows that it holds for."""
    headings = {name: head.rstrip(" ↑↓") for head, _, name, _ in _COLUMNS}
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for row in rows:
        for name in headings:
            note = row.notes.get(name, "none")
            if not note.startswith(("none", "unnormalised")):
                titles, measures = found.setdefault(note, ({}, {}))
                titles[row.title] = measures[headings[name]] = None
    return [f"{', '.join(titles)} – no {', '.join(names)}: {note}" for note, (titles, names) in found.items()]


def _table_row(row: Row, best: dict[str, str | None]) -> str:
    name = escape(row.title)
    if row.group == "family":
        name = f'<a href="#family-{escape(row.name)}">{name}</a>'
    head = f'<th scope="row">{name}</th><td class="text">{badge(row)}</td>'
    if row.status != "done":
        span = len(_COLUMNS) + 4
        reason = f'<span class="status {row.status}">{row.status}</span> {escape(row.reason or "")}'
        return (
            f'<tr class="{row.group} unmeasured">{head}<td class="reason" colspan="{span}">{reason}</td></tr>'
        )
    cells = [_measure_cell(row, name, best[name] == row.name) for _, _, name, _ in _COLUMNS]
    cells += [
        _plain(row.train_seconds, "{:.1f}"),
        _plain(row.sample_seconds, "{:.3f}"),
        _plain(
            row.latent_dim, "{:,}" + (f" <small>{escape(row.latent_unit)}</small>" if row.latent_unit else "")
        ),
        _plain(row.num_parameters, "{:,}"),
    ]
    return f'<tr class="{row.group}">{head}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _measure_cell(row: Row, name: str, best: bool) -> str:
    number: Number | None = getattr(row, name)
    if number is None:
        note = row.notes.get(name, "")
        if note.startswith("none"):
            return f'<span class="absent">{escape(note)}</span>'
        if note.startswith("unnormalised"):
            return f'<span class="absent" title="{escape(note)}">unnormalised</span>'
        return '<span class="absent">–</span>'
    value, error = number.text()
    shown = f"<b>{value}</b>" if best else value
    return f"{shown} <small>± {error}</small>" if error else shown


def badge(row: Row) -> str:
    """The kind of density of a row as a small label."""
    return f'<span class="kind {escape(row.density)}">{escape(_KINDS.get(row.density, row.density))}</span>'


def _best(rows: Sequence[Row], name: str, direction: str) -> str | None:
    """Name of the family with the best figure, where there are two to compare."""
    found = [
        (getattr(row, name).value, row.name)
        for row in rows
        if row.group == "family" and getattr(row, name) is not None
    ]
    if len(found) < 2:
        return None
    return (min(found) if direction == "min" else max(found))[1]


def _plain(value: float | int | None, form: str) -> str:
    return '<span class="absent">–</span>' if value is None else form.format(value)


def values_title(values: str) -> str:
    """The heading of a group of rows."""
    if values.startswith("grid of "):
        return f"{values.removeprefix('grid of ').removesuffix(' levels')} levels"
    return {"binary": "Binary", "real": "Real values"}.get(values, values)


def _values_note(values: str) -> str:
    if values == "binary":
        return "Each coordinate is 0 or 1: models of probabilities, in bits of a coordinate."
    if values == "real":
        return "Densities of real numbers: bits per dimension depend on the unit of the data."
    return (
        "The data as they are. A density of real numbers is turned into a bound on the probability of the "
        "levels by uniform dequantisation, so that all rows of this table can be compared."
    )
