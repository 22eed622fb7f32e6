"""The survey as one HTML file that needs nothing beside it: styles inline, pictures as data URIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ppgen.datasets.split import DataSet
from ppgen.plots.images import is_image
from ppgen.report.measure import View
from ppgen.report.pieces import day, document, facts, figure, section, unbroken
from ppgen.report.table import Row
from ppgen.report.table_html import badge, tables, values_title


@dataclass(frozen=True)
class Page:
    """What the page tells.

    Attributes:
        data: the data set as given.
        views: the data as the families saw them.
        rows: the table, rows of one view together.
        findings: sentences computed from it.
        environment: versions, device, seed, times.
        out: directory that holds the pictures.
        interrupted: whether something is missing because the run was stopped.
        remarks: what is doubtful about the data.
    """

    data: DataSet
    views: Sequence[View]
    rows: Sequence[Row]
    findings: Sequence[str]
    environment: dict[str, Any]
    out: Path
    interrupted: bool = False
    remarks: Sequence[str] = ()


def render(page: Page) -> str:
    """The whole HTML document."""
    title = f"Survey of generative models on {page.data.name}"
    body = "\n".join(
        [
            _header(page, title),
            "<main>",
            section("findings", "What came out", _findings(page)),
            section("table", "The table, measured", tables(page.rows)),
            section("families", "Family by family", "\n".join(_family(page, r) for r in _families(page))),
            section("method", "How this was measured", _method(page)),
            "</main>",
            _footer(page),
        ]
    )
    return document(title, body)


# -- the parts, from top to bottom ----------------------------------------------------------


def _header(page: Page, title: str) -> str:
    env, data = page.environment, page.data
    items = [
        ("families", len(_families(page))),
        ("training budget", f"{env['budget']:g} s"),
        ("this run took", f"{env['seconds']:.0f} s"),
        ("device", env["device"]),
        ("seed", env["seed"]),
        ("date", day(env["date"])),
    ]
    links = "".join(f'<a href="#family-{escape(r.name)}">{escape(r.title)}</a>' for r in _families(page))
    lead = data.description or f"{len(data.train)} training data of shape {_shape(data.event_shape)}."
    notice = ""
    if page.interrupted:
        notice = (
            '<p class="notice" role="status">This survey was interrupted. The same command goes on from '
            "where it stopped and keeps what is measured.</p>"
        )
    notice += "".join(f'<p class="notice">{escape(remark)}</p>' for remark in page.remarks)
    return (
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{notice}'
        f'{facts(items)}\n<nav aria-label="Families">{links}</nav>\n</header>'
    )


def _findings(page: Page) -> str:
    if not page.findings:
        return "<p>Too few families have figures to be compared.</p>"
    items = "".join(f"<li>{unbroken(escape(sentence))}</li>" for sentence in page.findings)
    return (
        f'<ul class="findings">{items}</ul>\n'
        "<p>Differences carry the standard error of paired differences over the same test data. One run "
        "with one seed: the spread over training runs is not in these errors.</p>"
    )


def _family(page: Page, row: Row) -> str:
    place = page.out / "families" / row.name
    facts = " · ".join(_key_facts(row))
    parts = [
        f'<article class="family" id="family-{escape(row.name)}">',
        f'<div class="title"><h3>{escape(row.title)}</h3>{badge(row)}</div>',
        f'<p class="key">{facts}</p>' if facts else "",
        f"<p>{escape(row.reading)}</p>" if row.reading else "",
    ]
    if row.status == "done":
        parts.append(_pictures(page, row, place))
    else:
        parts.append(
            f'<p><span class="status {row.status}">{row.status}</span>: {escape(row.reason or "")}</p>'
        )
    if row.warnings:
        items = "".join(f"<li>{escape(w)}</li>" for w in row.warnings)
        parts.append(f'<ul class="warnings" aria-label="Warnings of the training">{items}</ul>')
    parts.append("</article>")
    return "\n".join(p for p in parts if p)


def _pictures(page: Page, row: Row, place: Path) -> str:
    shape = page.data.event_shape
    values = values_title(row.values).lower()
    if is_image(shape):
        figures = [
            figure(
                place / "samples",
                f"Samples of {row.title}",
                f"{row.title}: a grid of images drawn from the model.",
                "pixels",
            ),
            figure(
                place / "data",
                f"Test data, {values}",
                f"A grid of real images of the test split ({values}), to compare the samples with.",
                "pixels",
            ),
        ]
        layout = "pictures"
    else:
        figures = [
            figure(
                place / "samples",
                "Test data and samples on the same axes",
                f"{row.title}: two scatter plots, test data on the left, samples on the right.",
            )
        ]
        layout = "pictures plane"
    curve = figure(
        place / "curves",
        "Loss by epoch",
        f"{row.title}: line plot of the losses of the training against the epoch.",
        "",
        "curve",
    )
    return f'<div class="{layout}">{"".join(figures)}{curve}</div>'


def _method(page: Page) -> str:
    data, env = page.data, page.environment
    sizes = f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test data"
    compared = min(int(env["num_samples"]), len(data.test))
    items = [
        (
            "Data",
            f"{data.description} {sizes}, each of shape {_shape(data.event_shape)}; {data.values} values.",
        ),
        (
            "Training",
            f"On the training split, within {env['budget']:g} s for all families together: each gets an "
            "equal share of what is left. Where an objective can be validated, the epoch with the smallest "
            "validation loss is kept; the test split is used for the table alone. A time limit makes "
            "figures depend on the machine.",
        ),
        (
            "Bits per dimension",
            "Test negative log-likelihood divided by the number of coordinates and by log 2. A density of "
            "real numbers meets levels through uniform dequantisation, averaged over several draws of the "
            "noise, which bounds the log-probability of the levels from below. The standard error is that of "
            "the mean over test data."
            if data.values.discrete
            else "Test negative log-density divided by the number of coordinates and by log 2. The data are "
            "real numbers, so it is a differential code length: it depends on their unit and may be "
            "negative. The standard error is that of the mean over test data.",
        ),
        *(
            (f"Features, {values_title(str(v.data.values)).lower()}", f"{_sentence(v.description)}")
            for v in page.views
        ),
        (
            "FID and KID",
            f"Fréchet and kernel distance between features of {compared} samples and of {compared} test "
            "data. They can be compared within a table, not with figures of other features. The Fréchet "
            "distance of few data is too large, even between equal distributions; the kernel distance is "
            "right on average, and so falls below 0 by chance. The row “Training data” says what as many "
            "real data score. Standard errors by a jackknife over 20 groups.",
        ),
        (
            "Precision and recall",
            "Share of samples within the manifold of the data, and of data within that of the samples, by "
            "the third nearest neighbours in feature space. High precision with low recall is mode collapse.",
        ),
        (
            "Latent size",
            "Dimensions (dims) of a continuous latent, hidden units of a Boltzmann machine, or components of "
            "a mixture. A flow has a latent of the size of the data, which is not counted.",
        ),
        (
            "Seconds",
            f"Wall clock on {env['device']} with {_threads(env)}. Samples: {env['num_samples']} "
            "draws after a first small one, scaled to 1000.",
        ),
    ]
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v.strip())}</dd>" for k, v in items)
    return f'<dl class="method">{rows}</dl>'


def _footer(page: Page) -> str:
    env = page.environment
    versions = f"ppgen {env['ppgen']}, torch {env['torch']}, pyro {env['pyro']}, Python {env['python']}"
    run = (
        f"{env['device']} ({env['platform']}, {_threads(env)}), seed {env['seed']}, budget "
        f"{env['budget']:g} s, {env['seconds']:g} s in all, {env['date']}"
    )
    return (
        f"<footer>\n<p>{escape(versions)}.</p>\n<p>{escape(run)}.</p>\n<p>The same figures as files: "
        '<a href="table.json">table.json</a>, <a href="table.csv">table.csv</a>.'
        f"{_reload(page)}</p>\n</footer>"
    )


def _reload(page: Page) -> str:
    """How to have a model back, on the example of the first that was saved; from this folder."""
    saved = [row.name for row in _families(page) if row.status == "done"]
    if not saved:
        return ""
    code = escape(f'ppgen.load("families/{saved[0]}/model").sample(64)', quote=False)
    return f" Every model is saved beside this page; from this folder: <code>{code}</code>"


# -- pieces -------------------------------------------------------------------------------


def _key_facts(row: Row) -> list[str]:
    facts = [escape(values_title(row.values))]
    if row.bits_per_dim is not None:
        facts.append(f"{row.bits_per_dim} bits/dim")
    if row.fid is not None:
        facts.append(f"FID {row.fid}")
    if row.train_seconds is not None:
        stopped = {"finished": "all epochs done", "early": "stopped early", "time": "out of time"}
        why = stopped.get(row.stopped or "", row.stopped or "")
        facts.append(f"trained {row.train_seconds:.1f} s, {row.epochs} epochs ({escape(why)})")
    return facts


def _families(page: Page) -> list[Row]:
    return [row for row in page.rows if row.group == "family"]


def _threads(env: dict[str, Any]) -> str:
    return f"{env['threads']} thread{'s' if env['threads'] > 1 else ''}"


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
