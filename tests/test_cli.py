"""The command line: results, exit codes, and one clean line for every mistake."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ppgen import __version__
from ppgen.cli import main
from ppgen.datasets import load
from ppgen.inference.checkpoint import save_model
from ppgen.models import GaussianMixture
from ppgen.ops.random import forked_rng
from ppgen.report.survey import DEFAULT_BUDGET
from ppgen.report.table import read_table
from tests.report.stubs import Normal


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    """Networks draw their start from torch's generators, which a command owns and a test does not."""
    with forked_rng(0):
        yield


@pytest.fixture(name="saved")
def saved_model(tmp_path: Path) -> Path:
    model = GaussianMixture((1, 8, 8), num_components=2, covariance="diagonal")
    model.initialise(load("digits").train.x)
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    """What was written to stderr, which must be one line."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from ppgen.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'pyro', 'numpy', 'matplotlib', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for command in ("survey", "fit", "sample", "evaluate"):
        assert command in done.stdout


def test_version_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ppgen", "--version"], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"ppgen {__version__}\n"


def test_fit_sample_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mixture"
    arguments = [
        "--family",
        "gaussian-mixture",
        "--out",
        str(out),
        "--epochs",
        "2",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert main(["fit", "digits", *arguments]) == 0
    assert "2 epochs" in capsys.readouterr().out
    draws = tmp_path / "draws.npy"
    assert main(["sample", str(out), "--num", "5", "--seed", "1", "--out", str(draws)]) == 0
    first = np.load(draws)
    assert first.shape == (5, 1, 8, 8)
    assert main(["sample", str(out), "--num", "5", "--seed", "1", "--out", str(draws)]) == 0
    assert np.array_equal(np.load(draws), first)
    assert main(["sample", str(out), "--num", "5", "--out", str(draws)]) == 0
    assert not np.array_equal(np.load(draws), first)
    picture = tmp_path / "draws.png"
    assert main(["sample", str(out), "--num", "5", "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["evaluate", str(out), "digits"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bits_per_dim"]["kind"] == "upper_bound"
    assert found["num"] == 360
    assert 0 < found["bits_per_dim"]["value"] < 4.1


def test_a_binary_model_sees_binary_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mixture"
    arguments = ["--family", "bernoulli-mixture", "--out", str(out), "--epochs", "1", "--quiet"]
    assert main(["fit", "digits", *arguments]) == 0
    assert "binarised" in errors(capsys)
    assert main(["evaluate", str(out), "digits"]) == 0
    found = capsys.readouterr()
    assert "binarised" in found.err
    assert json.loads(found.out)["values"] == "binary"


def test_survey_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    arguments = ["--families", "gaussian-mixture", "--budget", "1", "--device", "cpu", "--quiet"]
    assert main(["survey", "digits", *arguments, "--out", str(out), "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert str(out / "index.html") in printed.out
    assert printed.err == ""
    _, environment = read_table(out / "table.json")
    assert environment["seed"] == 3
    assert environment["budget"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["survey", "digits", "--families", "vae,nope", "--quiet"], "'nope'"),
        (["survey", "digits", "--budget", "-1", "--quiet"], "budget"),
        (["survey", "digits", "--label", "x", "--quiet"], "label"),
        (["survey", "digits", "--device", "abacus", "--quiet"], "abacus"),
        (["survey", "no-such-data", "--families", "vae", "--quiet"], "no-such-data"),
        (["fit", "digits", "--family", "nope", "--out", "x"], "'nope'"),
        (["sample", "missing", "--out", "x.npy"], "missing"),
        (["sample", "missing", "--out", "x.gif"], "x.gif"),
        (["evaluate", "missing", "digits"], "missing"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = errors(capsys)
    assert message in line
    assert line.startswith(f"ppgen {arguments[0]}: ")


def test_a_model_takes_the_place_of_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "one.txt").write_text("dear")
    for out in (letters, letters / "one.txt"):
        assert main(["fit", "digits", "--family", "gan", "--out", str(out), "--quiet"]) == 2
        assert "no saved model" in errors(capsys)
    assert (letters / "one.txt").read_text() == "dear"


def test_columns_of_a_table_are_told_and_doubts_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    rows = "".join(f"{i % 7}.5,3.25,{'xy'[i % 2]},{i}\n" for i in range(60))
    table.write_text("a,flat,kind,row\n" + rows)
    out = ["--out", str(tmp_path / "model"), "--epochs", "1", "--quiet", "--family", "vae"]
    assert main(["fit", str(table), *out, "--label", "kind", "--drop", "row,flat"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["fit", str(table), *out, "--label", "kind", "--drop", "row"]) == 0
    line = errors(capsys)
    assert line.startswith("ppgen fit: warning: ")
    assert "flat" in line
    assert main(["fit", str(table), *out]) == 2
    assert "kind" in errors(capsys)


@pytest.mark.parametrize("seed", ["-1", "4294967296", "one"])
def test_seeds_that_no_generator_takes(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["sample", "model", "--out", "x.npy", "--seed", seed])
    assert end.value.code == 2
    assert "0 to 2**32 - 1" in capsys.readouterr().err


def test_a_pipe_gets_lines_and_no_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--families", "gan", "--budget", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["survey", "digits", *arguments]) == 0
    printed = capsys.readouterr().err
    assert "training on" in printed
    assert "step/s" not in printed
    assert "\r" not in printed


def test_help_names_the_default_budget(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["survey", "--help"])
    assert f"(default: {DEFAULT_BUDGET:g})" in " ".join(capsys.readouterr().out.split())


def test_debug_shows_where(tmp_path: Path) -> None:
    from ppgen.errors import CheckpointError

    with pytest.raises(CheckpointError):
        main(["evaluate", str(tmp_path / "missing"), "digits", "--debug"])


def test_data_of_another_shape(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(100, 2)))
    assert main(["evaluate", str(saved), str(tmp_path / "points.npy")]) == 2
    assert "(B, 1, 8, 8)" in errors(capsys)


def test_a_picture_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(Normal((2,)), tmp_path / "model")
    assert main(["sample", str(tmp_path / "model"), "--out", str(tmp_path / "x.png")]) == 2
    assert ".npy" in errors(capsys)
    assert not (tmp_path / "x.png").exists()


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["survey", "--nonsense"])
    assert end.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


def test_ctrl_c_is_130(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: object, **__: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(GaussianMixture, "sample", press)
    assert main(["sample", str(saved), "--out", str(tmp_path / "x.npy")]) == 130
    assert errors(capsys) == "interrupted\n"
