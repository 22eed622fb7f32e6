"""``import ppgen`` and ``ppgen --help`` are light: each looked at in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_HEAVY = ("arviz", "matplotlib", "numpy", "pandas", "pgmpy", "pooch", "pyro", "scipy", "sklearn", "torch")


def _heavy_after(program: str) -> tuple[list[str], str]:
    """The heavy packages that a program leaves loaded, and what it printed."""
    end = (
        f"import json as _json, sys as _sys; print(_json.dumps([n for n in {_HEAVY!r} if n in _sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{end}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    return json.loads(last), printed


def test_import_is_light() -> None:
    assert _heavy_after("import ppgen; ppgen.__version__; dir(ppgen)") == ([], "")


def test_looking_finds_what_is_loaded() -> None:
    assert _heavy_after("import numpy") == (["numpy"], "")


def test_import_of_the_public_packages_is_lazy() -> None:
    heavy, _ = _heavy_after("import ppgen.models, ppgen.errors; dir(ppgen.models)")
    assert heavy == []


@pytest.mark.parametrize("arguments", [["--help"], ["survey", "--help"], ["--version"]])
def test_help_answers_without_torch(arguments: list[str]) -> None:
    heavy, printed = _heavy_after(
        f"import runpy, sys\nsys.argv = ['ppgen', *{arguments!r}]\n"
        "try:\n    runpy.run_module('ppgen', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    assert heavy == []
    assert "ppgen" in printed


def test_the_public_face_has_the_errors() -> None:
    _, printed = _heavy_after("import ppgen; print(ppgen.errors.DataError.__name__)")
    assert printed == "DataError"
