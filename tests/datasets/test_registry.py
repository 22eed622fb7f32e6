"""Loading by name; and what an import of the package costs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppgen import datasets
from ppgen.errors import ConfigError, DataError


def test_available_names_all_load_without_a_network() -> None:
    """Every name but the downloads loads; each has a sentence."""
    names = datasets.available()
    assert list(names)[0] == "digits"
    assert all(text.endswith(".") for text in names.values())
    fetched = {name for name, text in names.items() if "Fetched on first use" in text}
    assert fetched == {"mnist", "fashion-mnist", "kmnist"}
    for name in set(names) - fetched:
        data = datasets.load(name)
        assert data.name == name
        assert data.description


@pytest.mark.parametrize("name", ["two_moons", "Two-Moons", " two-moons "])
def test_names_are_forgiving(name: str) -> None:
    """Case, underscores and spaces around do not matter."""
    assert datasets.load(name, num_train=2).name == "two-moons"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "no data set is called 'digit'; did you mean 'digits'?"),
        ("mnits", "did you mean 'mnist'"),
        ("zzzzzz", "known names: digits, two-moons"),
        ("folder/thing", "cannot read 'thing' by its extension"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    """Close names are offered."""
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        datasets.load(name)


def test_unknown_option() -> None:
    """The options that there are, are listed."""
    with pytest.raises(ConfigError, match="levels: no such option of digits; it has seed, dtype"):
        datasets.load("digits", levels=17)
    with pytest.raises(ConfigError, match="base_urls: no such option of mnist; it has base_url, progress"):
        datasets.load("mnist", base_urls="")


def test_a_name_comes_before_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Path, or a text with an extension, is a file; "digits" alone is the name."""
    np.save(tmp_path / "digits.npy", np.random.default_rng(0).normal(size=(20, 2)))
    monkeypatch.chdir(tmp_path)
    assert datasets.load("digits").event_shape == (1, 8, 8)
    assert datasets.load("digits.npy").event_shape == (2,)


def test_the_public_face() -> None:
    """Every public name resolves and is listed; others are refused as usual."""
    for name in datasets.__all__:
        assert getattr(datasets, name) is not None
        assert name in dir(datasets)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = datasets.nothing


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import ppgen.datasets", "torch pyro sklearn pandas pooch matplotlib scipy"),
        ("from ppgen.datasets import load, from_arrays, Download", "sklearn pandas pooch matplotlib scipy"),
        ("from ppgen import datasets; datasets.load('rings')", "sklearn pandas pooch matplotlib"),
    ],
)
def test_imports_stay_light(statement: str, absent: str) -> None:
    """Heavy packages are imported only when their data are asked for."""
    code = f"{statement}; import sys; print(*sorted(set({absent.split()!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""
