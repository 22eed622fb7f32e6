"""Character text: windows by position, a vocabulary that goes there and back, faults that are named."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from ppgen import datasets
from ppgen.datasets import Vocabulary
from ppgen.errors import ConfigError, DataError, ShapeError

# Each character once, so that a window tells where it is from.
_EVERY = "".join(chr(0x100 + i) for i in range(1000))


def test_windows_are_split_by_position() -> None:
    data = datasets.text(_EVERY, length=10, validation=0.1, test=0.2)
    assert data.event_shape == (10,)
    assert data.values == datasets.grid(1000)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [70, 10, 20]
    decode = data.vocabulary.decode
    read = ["".join(map(decode, s.x)) for s in (data.train, data.validation, data.test)]
    assert "".join(read) == _EVERY
    assert "by position" in data.description


def test_overlapping_windows_stay_in_training() -> None:
    data = datasets.text(_EVERY, length=10, stride=3, validation=20, test=10)
    decode = data.vocabulary.decode
    starts = [_EVERY.index(decode(x)) for x in data.train.x]
    assert starts == list(range(0, 691, 3))
    assert _EVERY.index(decode(data.validation.x[0])) == 700
    assert [len(data.validation), len(data.test)] == [20, 10]
    assert _EVERY.endswith(decode(data.test.x[-1]))


def test_what_fills_no_window_is_left_out() -> None:
    data = datasets.text("ab" * 100 + "c", length=30, validation=0.2, test=0.2)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [4, 1, 1]


def test_a_file_and_its_text_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    content = "Zeile für Zeile,\nWort für Wort.\n" * 10
    path.write_bytes(("\N{ZERO WIDTH NO-BREAK SPACE}" + content.replace("\n", "\r\n")).encode())
    ours = datasets.text(content, length=8)
    for source in (path, str(path)):
        data = datasets.text(source, length=8)
        assert data.name == "poem"
        assert data.vocabulary == ours.vocabulary
        assert torch.equal(data.train.x, ours.train.x)


def test_vocabulary_goes_there_and_back() -> None:
    vocabulary = Vocabulary("hello world")
    assert vocabulary.characters == " dehlorw"
    assert len(vocabulary) == 8
    x = vocabulary.encode("low", dtype=torch.float64)
    assert x.dtype == torch.float64
    assert (x * 7).tolist() == pytest.approx([4, 5, 7])
    assert vocabulary.decode(x) == "low"
    assert vocabulary.decode(torch.cat([x, x.new_full((2,), torch.nan)])) == "low"
    assert vocabulary.decode(x[:0]) == vocabulary.decode(vocabulary.encode("")) == ""
    assert pickle.loads(pickle.dumps(vocabulary)) == Vocabulary(vocabulary.characters) == vocabulary
    assert Vocabulary("ab") != Vocabulary("ac")
    assert len({Vocabulary("ab"), Vocabulary("ba")}) == 1


def test_two_characters_are_binary() -> None:
    data = datasets.text("01" * 50, length=5)
    assert data.values == datasets.BINARY
    assert data.vocabulary.decode(data.train.x[0]) == "01010"


def test_unknown_characters_are_named() -> None:
    with pytest.raises(DataError, match=r"'x' \(2 times\), '!' \(1 times\).*first at position 2"):
        Vocabulary("abc").encode("abxax!")
    with pytest.raises(DataError, match="'ä'"):
        datasets.text("abä" * 50, length=5, vocabulary=Vocabulary("abc"))
    with pytest.raises(DataError, match="and 90 others"):
        Vocabulary("ab").encode(_EVERY[:100])


def test_bad_vocabularies() -> None:
    for characters, match in (("", "two different"), ("aaa", "two different"), (["ab", "c"], "single")):
        with pytest.raises(DataError, match=match):
            Vocabulary(characters)
    with pytest.raises(ShapeError, match="one text"):
        Vocabulary("ab").decode(torch.zeros(2, 3))
    with pytest.raises(DataError, match="grid"):
        Vocabulary("abc").decode(torch.tensor([0.3]))


def test_bad_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file at"):
        datasets.text(tmp_path / "none.txt", length=5)
    with pytest.raises(DataError, match="no file has that name"):
        datasets.text("imput.txt", length=128)
    (tmp_path / "empty.txt").touch()
    for source in (tmp_path / "empty.txt", str(tmp_path / "empty.txt"), ""):
        with pytest.raises(DataError, match=r"source: .* is empty"):
            datasets.text(source, length=5)
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(DataError, match="bring a longer text") as caught:
        datasets.text(str(tmp_path / "short.txt"), length=5)
    assert "no file" not in str(caught.value)
    (tmp_path / "latin.txt").write_bytes("für ".encode("latin-1") * 20)
    with pytest.raises(DataError, match="encoding"):
        datasets.text(tmp_path / "latin.txt", length=5)
    assert "ü" in datasets.text(tmp_path / "latin.txt", length=5, encoding="latin-1").vocabulary.characters
    with pytest.raises(DataError, match="encoding"):
        datasets.text(tmp_path / "latin.txt", length=5, encoding="no-such")
    with pytest.raises(DataError, match="encoding"):
        datasets.text(tmp_path, length=5)
    for options in ({"length": 0}, {"length": 5, "stride": 0}, {"length": 5, "test": 0.0}):
        with pytest.raises(ConfigError):
            datasets.text("ab" * 100, **options)
    with pytest.raises(DataError, match="two different"):
        datasets.text("a" * 100, length=5)


def test_tinyshakespeare(data_dir: Path) -> None:
    path = data_dir / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    data = datasets.text(path, length=256, validation=0.05, test=0.05)
    assert len(data.vocabulary) == 65
    assert data.vocabulary.decode(data.train.x[0]).startswith("First Citizen:\nBefore we proceed")
