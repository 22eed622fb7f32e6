"""How the documentation is built: ``make docs``. Every warning and every failing cell ends the build."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from docutils.nodes import Element, SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

import ppgen
from ppgen.contract import (
    HasConditioning,
    HasEncoder,
    HasEnergy,
    HasResponsibilities,
    HasScore,
)
from ppgen.models import families
from ppgen.models.autoregressive import Autoregressive
from ppgen.ops.random import forked_rng
from ppgen.report.table import Number, Row, read_table
from ppgen.report.table_html import values_title

# For the processes that run the tutorials.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# tqdm asks for widgets in every notebook; pages show no progress bars.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")

project = "ppgen"
author = "The ppgen developers"
copyright = author
version = release = ppgen.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "conf.py", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]

# Tutorials are Python scripts in percent format, run by the build and by the tests.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_merge_streams = True
# Results are those of one version of the package and one size of the tutorials.
_sources = sorted(Path(ppgen.__file__).parent.rglob("*.py"))
_version = hashlib.sha256(b"".join(path.read_bytes() for path in _sources)).hexdigest()[
    :12
]
_size = "small" if "PPGEN_DOCS_SMALL" in os.environ else "full"
nb_execution_cache_path = str(
    Path(__file__).parent / "_build" / f"cache-{_size}-{_version}"
)

myst_enable_extensions = [
    "amsmath",
    "colon_fence",
    "deflist",
    "dollarmath",
    "substitution",
]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autosummary_generate = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Tables of speed.md, from the figures that `make bench` wrote on the machine that the page names.
_results = Path(__file__).parents[1] / "benchmarks" / "results"
_records = {
    name: json.loads((_results / f"{name}.json").read_text())
    for name in ("cpu", "families", "mcmc", "structure")
}
_rows = [row for record in _records.values() for row in record["rows"]]


def _ratio(value: float | None) -> str:
    """A ratio to two digits, or as one over a number where it is small."""
    if value is None:
        return ""
    return f"1/{1 / value:.0f}" if value < 0.1 else f"{value:.2f}"


def _ms(value: float) -> str:
    """Milliseconds to two decimals, or to two digits where they are few."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _benchmark_table(name: str, common: str = "") -> str:
    """The rows of one benchmark; what is common to all cases is left out."""
    lines = [
        "| case | against | ppgen, ms | peer, ms | ratio | target |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in _rows:
        if row["benchmark"] == name:
            figures = (
                f"{_ms(row['ours_ms'])} | {_ms(row['peer_ms'])} | "
                f"{_ratio(row['ratio'])} | {_ratio(row['target'])}"
            )
            lines.append(
                f"| {row['case'].removeprefix(common)} | {row['peer']} | {figures} |"
            )
    return "\n".join(lines)


def _figure(number: Number | None) -> str:
    return "" if number is None else str(number)


def _survey_line(row: Row) -> str:
    """A family or a reference with its figures, as a line of a table."""
    seconds = "" if row.train_seconds is None else f"{row.train_seconds:.1f}"
    name = row.title if row.group == "family" else f"*{row.title}*"
    if row.status != "done":
        return f"| {name} | {row.density.replace('_', ' ')} | {row.status} | | | | |"
    figures = [_figure(n) for n in (row.bits_per_dim, row.nll)]
    draws = "" if row.sample_seconds is None else f"{row.sample_seconds:.2g}"
    columns = [
        name,
        row.density.replace("_", " "),
        *figures,
        seconds,
        draws,
        _figure(row.fid),
    ]
    return f"| {' | '.join(columns)} |"


def _survey_table(path: Path) -> str:
    """What `ppgen survey` found, one table for each kind of values: only within one do figures compare."""
    if not path.exists():
        return "*There are no committed figures in this copy: `ppgen survey` measures them.*"
    rows, made = read_table(path)
    parts = [
        f"Measured by `ppgen survey` on {made['date'][:10]}: data {made['data']}, seed {made['seed']}, "
        f"a training budget of {made['budget']:.0f} seconds in all on {made['device'].upper()}, "
        f"torch {made['torch']}."
    ]
    for values in dict.fromkeys(row.values for row in rows):
        lines = [_survey_line(row) for row in rows if row.values == values]
        head = (
            f"| {values_title(values)} | density | bits/dim | nats a datum | training, s | "
            f"{made['num_samples']} draws, s | FID-like |",
            "|---|---|--:|--:|--:|--:|--:|",
        )
        parts.append("\n".join([*head, *lines]))
    return "\n\n".join(parts)


def _likelihood_table(path: Path) -> str:
    """Test figures on the standard data sets, as `python -m benchmarks.likelihood` wrote them."""
    lines = [
        "| model and data | test figure | kind | parameters | training, s | how |",
        "|---|--:|---|--:|--:|---|",
    ]
    for row in json.loads(path.read_text()):
        sign = {"upper_bound": "≤ ", "lower_bound": "≥ "}.get(row["kind"], "")
        lines.append(
            f"| {row['title']} | {sign}{row['value']:.2f} ± {row['std_error']:.2f} {row['unit']} "
            f"| {row['kind'].replace('_', ' ')} | {row['num_parameters']:,} "
            f"| {row['train_seconds']:.0f} ({row['device']}) | {row['note']} ({row['size']} size) |"
        )
    return "\n".join(lines)


def _capability_table() -> str:
    """What each family can be asked, as its class says."""
    lines = [
        "| family | its density | code of x | fills in | score | energy, log Z | context |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in families().values():
        with forked_rng(0):
            kind = type(family.example())
        fills = (
            "after a beginning, small gaps"
            if issubclass(kind, Autoregressive)
            else "any part"
        )
        facts = [
            fills if issubclass(kind, HasConditioning) else "",
            "yes" if issubclass(kind, HasScore) else "",
            "yes" if issubclass(kind, HasEnergy) else "",
            "yes" if family.conditional_example else "",
        ]
        code = "yes" if issubclass(kind, HasEncoder) else ""
        if issubclass(kind, HasResponsibilities):
            code = "which component"
        name = f"{{class}}`{kind.__name__} <{kind.__module__}.{kind.__name__}>`"
        density = str(family.density or "none").replace("_", " ")
        lines.append(f"| {name} | {density} | {code} | {' | '.join(facts)} |")
    return "\n".join(lines)


_machine = _records["cpu"]["machine"]
myst_substitutions = {
    "benchmark_machine": (
        f"measured on {_machine['time'][:10]} on an x86 CPU with {_machine['cores']} cores, of which "
        f"{_machine['threads']} was used, with Python {_machine['python']}, "
        f"torch {_machine['versions']['torch']}, scikit-learn {_machine['versions']['scikit-learn']} "
        f"and zuko {_machine['versions']['zuko']}"
    ),
    "benchmark_vae_step": _benchmark_table("vae_step"),
    "benchmark_gmm_em": _benchmark_table("gmm_em"),
    "benchmark_rbm": _benchmark_table("rbm PCD epoch", "1797x64, 128 hidden, "),
    "benchmark_flows": _benchmark_table("flows"),
    "benchmark_hmm": _benchmark_table("hmm"),
    "benchmark_autoregressive": _benchmark_table("autoregressive"),
    **{
        f"benchmark_structure_{part}": _benchmark_table(f"structure_{part}")
        for part in ("scores", "exact", "sachs", "sampled")
    },
    "benchmark_ais": _benchmark_table("ais"),
    "benchmark_mcmc_pyro": _benchmark_table("mcmc sampling, best against Pyro"),
    "benchmark_mcmc_best": _benchmark_table("mcmc sampling, best against best"),
    "benchmark_mcmc_tails": _benchmark_table(
        "mcmc sampling by bulk and tail, best against best"
    ),
    "benchmark_mcmc_warm": _benchmark_table("mcmc warm-up counted, best against best"),
    "benchmark_mcmc_nuts": _benchmark_table("mcmc sampling, NUTS against NumPyro's"),
    "benchmark_mcmc_cold": _benchmark_table("mcmc cold, best against best"),
    "benchmark_mcmc_chains": _benchmark_table("mcmc chains"),
    "survey_table": _survey_table(_results / "survey.json"),
    "likelihood_table": _likelihood_table(_results / "likelihood.json"),
    "capability_table": _capability_table(),
}

html_theme = "furo"
html_title = f"ppgen {release}"


# Formulas are written as MathML, which browsers show by themselves: pages need no network and no script.
# The converter lacks two commands: sizes of brackets, which MathML stretches anyway, and dots.
_SIZES = re.compile(r"\\[bB]igg?[lr]?(?![A-Za-z])")


def _mathml(as_block: bool):
    def visit(self: HTML5Translator, node: Element) -> None:
        tex = _SIZES.sub("", node.astext()).replace(r"\dots", r"\ldots")
        try:
            formula = tex2mathml(tex, as_block=as_block)
        except MathError as error:
            logging.getLogger(__name__).warning("formula: %s", error, location=node)
            raise SkipNode from error
        # A thin space between a function and its argument, as in print.
        applied = "<mo>&ApplyFunction;</mo>"
        formula = formula.replace(applied, f'{applied}<mspace width="0.17em"/>')
        self.body.append(f'<div class="math">{formula}</div>' if as_block else formula)
        raise SkipNode

    return visit


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (_mathml(False), None), (_mathml(True), None))


html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["cells.css"]
