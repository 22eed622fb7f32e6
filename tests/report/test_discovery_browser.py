"""The page of a discovery in a real browser: nothing sticks out, and headings sort."""

import re
from pathlib import Path

import pytest

from ppgen.inference.pgmpy_adapter import example_network
from ppgen.report.discovery import discover
from tests.report.test_browser import CHROMIUM, chromium, overflow

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(name="page", scope="module")
def discovery_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser")
    rows = example_network("asia").table(300, seed=0)
    return discover(rows, out=out, device="cpu", progress=False).path


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_sideways(page: Path, width: int, tmp_path: Path) -> None:
    needed, there = overflow(page, width, tmp_path)
    assert there > 0.9 * width
    assert needed <= there


def test_headings_sort(page: Path, tmp_path: Path) -> None:
    click = (
        "<script>document.querySelectorAll('th button')[1].click();"
        "document.querySelectorAll('th button')[1].click();</script></body>"
    )
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</body>", click))
    dom = chromium(tmp_path / "profile", clicked, "--dump-dom")
    targets = re.findall(r'<tr><th scope="row">.*?<td class="text">(\w+)</td>', dom)
    assert len(targets) > 10
    assert targets == sorted(targets)
    assert re.search(r'aria-sort="ascending"[^>]*><button type="button">To<', dom)
    before = re.findall(r'<tr><th scope="row">.*?<td class="text">(\w+)</td>', page.read_text())
    assert sorted(before) == targets
    assert before != targets
