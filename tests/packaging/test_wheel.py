"""The wheel holds the package and works where nothing else of the repository is."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import ppgen

ROOT = Path(__file__).resolve().parents[2]


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # The build tools are those of the test environment: no network.
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel in it, which borrows the dependencies of this one.

    That those are declared is another test's: ``test_imports_are_of_declared_packages``.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    _run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    _run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # A path line adds a folder without reading the .pth files in it, so an editable install
    # of ppgen here stays invisible there.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = (p for p in (ROOT / "ppgen").rglob("*") if p.is_file() and p.parent.name != "__pycache__")
    assert {n for n in names if n.startswith("ppgen/")} == {str(p.relative_to(ROOT)) for p in sources}
    assert "ppgen/py.typed" in names
    assert {n.partition("/")[0] for n in names} == {"ppgen", f"ppgen-{ppgen.__version__}.dist-info"}
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_wheel_is_imported_from_its_own_environment(elsewhere: Path) -> None:
    program = (
        "import importlib.metadata, ppgen, torch;"
        "print(ppgen.__file__); print(ppgen.__version__); print(importlib.metadata.version('ppgen'))"
    )
    python = elsewhere / "venv" / "bin" / "python"
    place, version, declared = _run(python, "-c", program, cwd=elsewhere).splitlines()
    assert Path(place).is_relative_to(elsewhere / "venv")
    assert version == declared == ppgen.__version__


def test_command_of_the_wheel_answers(elsewhere: Path) -> None:
    command = elsewhere / "venv" / "bin" / "ppgen"
    assert "survey" in _run(command, "--help", cwd=elsewhere)


def test_model_of_the_wheel_draws(elsewhere: Path) -> None:
    program = (
        "import ppgen; from ppgen.models import GaussianMixture;"
        "print(tuple(GaussianMixture((2,), num_components=3).sample(5, seed=0).shape))"
    )
    python = elsewhere / "venv" / "bin" / "python"
    assert _run(python, "-c", program, cwd=elsewhere) == "(5, 2)"


def test_sdist_holds_what_the_targets_of_make_need(tmp_path: Path) -> None:
    _run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "constraints.txt", "LICENSE", "docs/conf.py", "benchmarks/results/cpu.json"}
    assert wanted <= names
    for folder in ("ppgen", "tests", "benchmarks"):
        assert {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")} <= names
    assert not any(name.startswith((".venv", "build/", "docs/_build")) for name in names)
