"""The page in a real browser, wide and narrow; where chromium is installed."""

import html
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.image import imread

from ppgen.report.survey import survey
from tests.report.stubs import Implicit, broken, family, images

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=2000",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(name="page", scope="module")
def survey_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser")
    long = family("long", title="A family with a name that is much longer than a phone is wide")
    families = [family("plain"), family("nameless", Implicit), long, family("broken", build=broken)]
    return survey(
        images(), families=families, budget=600, device="cpu", out=out, num_samples=40, progress=False
    ).path


def chromium(profile: Path, page: Path, *flags: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def framed(page: Path, width: int, place: Path) -> Path:
    """A page that shows ``page`` in a frame of the width given (windows have a smallest width)."""
    script = (
        "document.getElementById('f').onload = () => {"
        "const d = document.getElementById('f').contentDocument.documentElement;"
        "document.getElementById('o').textContent = `width ${d.scrollWidth} of ${d.clientWidth}`;}"
    )
    path = place / f"frame-{width}.html"
    path.write_text(
        f'<!DOCTYPE html><body style="margin:0"><p id="o"></p><script>addEventListener("DOMContentLoaded",'
        f'()=>{{{script}}})</script><iframe id="f" style="border:0;width:{width}px;height:1200px" '
        f'srcdoc="{html.escape(page.read_text())}"></iframe>'
    )
    return path


def overflow(page: Path, width: int, place: Path) -> tuple[int, int]:
    found = re.search(
        r"width (\d+) of (\d+)", chromium(place / "profile", framed(page, width, place), "--dump-dom")
    )
    assert found, "the frame did not report"
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_sideways(page: Path, width: int, tmp_path: Path) -> None:
    needed, there = overflow(page, width, tmp_path)
    assert there > 0.9 * width
    assert needed <= there


def test_a_page_that_sticks_out_would_be_noticed(page: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.html"
    wide.write_text(page.read_text().replace("overflow-x: auto", "overflow-x: visible"))
    needed, there = overflow(wide, 390, tmp_path)
    assert needed > there


@pytest.mark.parametrize(("scheme", "dark"), [("0", True), ("1", False)], ids=["dark", "light"])
def test_the_page_paints_in_light_and_dark(page: Path, scheme: str, dark: bool, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    chromium(
        tmp_path / "profile",
        page,
        f"--screenshot={shot}",
        "--window-size=1280,1600",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    pixels = imread(io.BytesIO(shot.read_bytes()), format="png")[..., :3]
    assert pixels.shape[:2] == (1600, 1280)
    assert pixels.std() > 0.02  # something stands on the ground
    assert (pixels[2, 2].mean() < 0.2) == dark  # the ground itself
