"""The documentation does what it says: tutorials, README and how-to run, and the site holds them executed."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

import ppgen
from ppgen.cli import _parser
from ppgen.ops.random import forked_rng
from ppgen.report.plan import choose
from ppgen.testing.contract import check_contract

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
PAGES = [ROOT / "README.md"] + sorted(
    page for page in (ROOT / "docs").rglob("*.md") if not {"_build", "generated"} & {*page.parts}
)


def _blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page in a language; commands have none."""
    fences = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for named, block in fences if named == language]


def _environment() -> dict[str, str]:
    """This process's, at the tutorials' small size; notebooks choose how they show figures."""
    kept = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return {**kept, "PPGEN_DOCS_SMALL": "1", "OMP_NUM_THREADS": "1"}


def _code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def test_there_are_tutorials() -> None:
    assert {"first_steps", "your_own_model"} <= {path.stem for path in TUTORIALS}


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_asserts_its_claims(tutorial: Path) -> None:
    cells = _code_cells(jupytext.read(tutorial))
    assert sum(cell.source.count("assert ") for cell in cells) >= 5


@pytest.mark.parametrize(
    "name",
    ["autoregressive", "graphical_models", "normalizing_flows", "random_fields", "text_and_series"],
)
def test_tutorials_of_families_have_the_same_headings(name: str) -> None:
    text = (ROOT / "docs" / "tutorials" / f"{name}.py").read_text()
    assert re.findall(r"^# ## (.+)$", text, re.MULTILINE)[:7] == [
        "The story",
        "The pair",
        "Fit",
        "Look",
        "What its likelihood means",
        "When to choose it",
        "Exercises",
    ]


def test_how_to_choose_names_every_family() -> None:
    page = (ROOT / "docs" / "how-to" / "choose-a-family.md").read_text()
    assert [name for name in ppgen.models.__all__ if name[0].isupper() and f"`{name}`" not in page] == []


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs_as_a_script(tutorial: Path, tmp_path: Path) -> None:
    """Elsewhere than in the repository, so that it needs nothing of it."""
    environment = {**_environment(), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-W", "error::UserWarning:__main__", str(tutorial)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _blocks(page, "python")], ids=lambda path: path.stem
)
def test_python_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every Python block of a page, in order and in one namespace, with fits of one epoch."""
    short = functools.partial(ppgen.fit, epochs=1, progress=False)
    monkeypatch.setitem(vars(ppgen), "fit", short)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    with forked_rng(0):
        for block in _blocks(page, "python"):
            exec(compile(block, str(page), "exec"), namespace)


def test_commands_of_the_pages_are_understood() -> None:
    """Every line that starts with ``ppgen`` is parsed, and its families exist; every make target too."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    surveyed = 0
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for line in "".join(_blocks(page)).splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                assert {word for word in words[1:] if "=" not in word} <= targets, line
            if words[:1] == ["ppgen"]:
                options = _parser().parse_args(words[1:])
                if getattr(options, "families", None):
                    assert choose(options.families.split(","))
                surveyed += 1
    assert surveyed >= 3


def test_family_of_the_how_to_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = ROOT / "docs" / "how-to" / "add-a-family.md"
    (block,) = _blocks(page, "python")
    (tmp_path / "family_of_the_how_to.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    family = importlib.import_module("family_of_the_how_to").DiagonalGaussian
    try:
        check_contract(lambda: family((3,)))
    finally:
        del sys.modules["family_of_the_how_to"]


def test_reference_lists_every_place_of_the_package() -> None:
    listed = set(
        re.findall(r"^   (ppgen\.\w+)$", (ROOT / "docs" / "api" / "index.md").read_text(), re.MULTILINE)
    )
    places = {
        f"ppgen.{path.stem}"
        for path in (ROOT / "ppgen").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.stem.startswith("__")
    }
    assert listed == places - {"ppgen.cli"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site built from a copy of the sources, warnings fatal, tutorials at the small size."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(
        ROOT / "docs", folder / "docs", ignore=lambda _, names: {"_build", "generated"} & {*names}
    )
    shutil.copytree(ROOT / "benchmarks" / "results", folder / "benchmarks" / "results")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, folder / "docs", folder / "html"],
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.timeout(1500)
def test_every_cell_of_the_site_was_executed(site: Path) -> None:
    """A page without a notebook header is passed over in silence: so the cells are counted."""
    for tutorial in TUTORIALS:
        expected = len(_code_cells(jupytext.read(tutorial)))
        executed = nbformat.read(site / "jupyter_execute" / "tutorials" / f"{tutorial.stem}.ipynb", 4)
        counts = [cell.execution_count for cell in _code_cells(executed)]
        assert counts == list(range(1, expected + 1)), tutorial.stem
        page = (site / "html" / "tutorials" / f"{tutorial.stem}.html").read_text()
        assert page.count('class="cell_input') == expected, tutorial.stem


@pytest.mark.timeout(1500)
def test_cells_of_the_site_print_no_warnings(site: Path) -> None:
    """What a cell writes to stderr would stand on the page, paths of the building machine included."""
    for tutorial in TUTORIALS:
        executed = nbformat.read(site / "jupyter_execute" / "tutorials" / f"{tutorial.stem}.ipynb", 4)
        outputs = [output for cell in _code_cells(executed) for output in cell.outputs]
        assert [o.text for o in outputs if o.get("name") == "stderr"] == [], tutorial.stem


@pytest.mark.timeout(1500)
def test_site_shows_the_figures(site: Path) -> None:
    page = (site / "html" / "tutorials" / "first_steps.html").read_text()
    assert page.count("<img") >= 5


@pytest.mark.timeout(1500)
def test_site_has_the_reference(site: Path) -> None:
    page = (site / "html" / "api" / "generated" / "ppgen.contract.html").read_text()
    assert 'id="ppgen.contract.GenerativeModel"' in page
    assert 'id="ppgen.fit"' in (site / "html" / "api" / "ppgen.html").read_text()


@pytest.mark.timeout(1500)
def test_pages_need_no_network(site: Path) -> None:
    """Formulas are MathML, and no page loads a script, a style or a font from elsewhere."""
    pages = [path.read_text() for path in (site / "html").rglob("*.html")]
    assert sum(page.count("<math ") for page in pages) >= 20
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]* src=\"https?:|<link[^>]* rel=\"stylesheet\"[^>]* href=\"https?:"
    )
    assert [page[:200] for page in pages if loaded.search(page)] == []


@pytest.mark.timeout(1500)
def test_speed_shows_the_committed_figures(site: Path) -> None:
    page = re.sub(r"<[^>]+>", " ", (site / "html" / "explanation" / "speed.html").read_text())
    words = " ".join(page.split())
    assert "{{" not in words
    results = ROOT / "benchmarks" / "results"
    rows = json.loads((results / "cpu.json").read_text())["rows"]
    assert {row["benchmark"] for row in rows} == {"gmm_em", "rbm PCD epoch", "vae_step"}
    for row in rows:
        figures = f"{row['peer']} {row['ours_ms']:.2f} {row['peer_ms']:.2f} {row['ratio']:.2f}"
        assert figures in words
        assert row["ratio"] == pytest.approx(row["ours_ms"] / row["peer_ms"], rel=5e-3)
    for name in ("families", "mcmc", "structure"):
        for row in json.loads((results / f"{name}.json").read_text())["rows"]:
            assert row["case"] in words
