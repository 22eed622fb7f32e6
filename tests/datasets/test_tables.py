"""Tables by name, fetched from a server on this machine, and from files of every shape."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ppgen import datasets
from ppgen.datasets import available_tables, load_table
from ppgen.datasets.downloads import MIRROR_VARIABLE
from ppgen.datasets.tables import TABLES
from ppgen.errors import ConfigError, DataError, DataWarning, DownloadError
from tests.datasets.server import Server

PROTEINS = ["Raf", "Mek", "Plcg", "PIP2", "PIP3", "Erk", "Akt", "PKA", "PKC", "P38", "Jnk"]
FILE = "sachs.interventional.txt"


def small_table() -> bytes:
    """A file in the form of the published one, with its nine blocks of 600 rows."""
    header = " ".join(f'"{name}"' for name in [*PROTEINS, "INT"])
    blocks = (8, 0, 7, 9, 4, 2, 0, 9, 0)
    rows = [
        " ".join([*(str(1 + (k + i) % 3) for i in range(11)), str(t)]) for t in blocks for k in range(600)
    ]
    return "\n".join([header, *rows, ""]).encode()


@pytest.fixture
def small(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server with such a file, known as the published one by its own checksum."""
    content = small_table()
    (server.folder / FILE).write_bytes(content)
    known = f"sha256:{hashlib.sha256(content).hexdigest()}"
    entry = replace(
        TABLES["sachs"],
        download=replace(TABLES["sachs"].download, base_urls=(server.url,), files={"table": (FILE, known)}),
    )
    monkeypatch.setitem(TABLES, "sachs", entry)
    return server


def test_sachs_by_name(cache: Path, small: Server) -> None:
    """Levels as numbers, what was set by name; asked for once; agents only where wanted."""
    frame = load_table("sachs", progress=False)
    assert list(frame.columns) == [*PROTEINS, "INT"]
    assert len(frame) == 5400
    assert frame["INT"].value_counts().to_dict() == {
        "": 1800, "PKC": 1200, "PKA": 600, "Akt": 600, "PIP2": 600, "Mek": 600
    }  # fmt: skip
    assert sorted(frame["Raf"].unique()) == [1, 2, 3]
    with_agents = load_table("Sachs", conditions=True, progress=False)
    assert small.requests == [f"/{FILE}"]
    agents = with_agents.groupby("condition", sort=False)["INT"].agg(["first", "size"])
    assert agents.to_dict("index") == {
        "b2cAMP": {"first": "PKA", "size": 600},
        "": {"first": "", "size": 1800},
        "Akt inhibitor": {"first": "Akt", "size": 600},
        "G06976": {"first": "PKC", "size": 600},
        "Psitectorigenin": {"first": "PIP2", "size": 600},
        "U0126": {"first": "Mek", "size": 600},
        "PMA": {"first": "PKC", "size": 600},
    }
    assert (cache / "sachs" / FILE).is_file()


def test_sachs_from_the_real_file(
    cache: Path, server: Server, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published checksum is that of the real file; a mirror serves it."""
    (server.folder / "sachs").mkdir()
    shutil.copyfile(data_dir / "sachs" / FILE, server.folder / "sachs" / FILE)
    monkeypatch.setenv(MIRROR_VARIABLE, server.url)
    frame = load_table("sachs", conditions=True, progress=False)
    assert frame.shape == (5400, 13)
    # G06976 lowers PKC, PMA raises it: the block order is right only one way round.
    means = frame[frame["INT"] == "PKC"].groupby("condition")["PKC"].mean()
    assert means["G06976"] < 1.5 < 2.5 < means["PMA"]
    plain = load_table(data_dir / "sachs" / FILE)
    assert plain["INT"].tolist()[:2] == [8, 8]


def test_bad_checksum_and_offline(cache: Path, small: Server, nowhere: str) -> None:
    """The rules are those of all downloads."""
    with pytest.raises(DownloadError, match=f"sachs: could not fetch {FILE}.*"):
        load_table("sachs", base_url=nowhere, progress=False)
    (small.folder / FILE).write_bytes(small_table()[:-1])
    with pytest.raises(DownloadError, match="checksum mismatch, expected sha256:"):
        load_table("sachs", progress=False)
    (cache / "sachs" / FILE).write_bytes(small_table())
    assert len(load_table("sachs", base_url=nowhere, progress=False)) == 5400


def test_names() -> None:
    """Nothing is fetched to list them; they are no data sets of images."""
    assert list(available_tables()) == ["sachs"]
    assert available_tables()["sachs"].endswith("Fetched on first use.")
    assert set(available_tables()).isdisjoint(datasets.available())
    (known,) = [known for _, known in TABLES["sachs"].download.files.values()]
    assert len(bytes.fromhex(known.removeprefix("sha256:"))) == 32


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("t.csv", "a,b,c\n1,x y,2.5\n3,,4\n"),
        ("t.csv", '\ufeff"a","b","c"\r\n1,"x y",2.5\r\n3,NA,4\r\n'),
        ("t.txt", "a;b;c\n1;x y;2.5\n3;;4\n"),
        ("t.tsv", "a\tb\tc\n1\tx y\t2.5\n3\t\t4\n"),
        ("t.txt", '"a"  "b" "c"\n1 "x y" 2.5\n3 NA  4\n'),
        ("t", "a b c\n1 'x 2.5\n3 NA 4\n"),
    ],
    ids=["comma", "byte order mark", "semicolon", "tab", "spaces", "no extension"],
)
def test_separators(tmp_path: Path, file: str, content: str) -> None:
    """Each is recognised by the first line."""
    (tmp_path / file).write_text(content, newline="")
    frame = load_table(tmp_path / file)
    assert list(frame.columns) == ["a", "b", "c"]
    assert frame["a"].tolist() == [1, 3]
    assert frame["b"].isna().tolist() == [False, True]
    assert frame["c"].tolist() == [2.5, 4.0]


@pytest.mark.parametrize(
    "content", ['"a" "b"\n"1" 0 1\n"2" 1 0\n', ",a,b\n1,0,1\n2,1,0\n"], ids=["R", "unnamed"]
)
def test_row_names_are_left_out(tmp_path: Path, content: str) -> None:
    """And this is said."""
    (tmp_path / "t.txt").write_text(content)
    with pytest.warns(DataWarning, match="t.txt: the first column has no name"):
        frame = load_table(str(tmp_path / "t.txt"))
    pd.testing.assert_frame_equal(frame, pd.DataFrame({"a": [0, 1], "b": [1, 0]}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty or begins with an empty line"),
        (b"\n\n1,2\n", "empty or begins with an empty line"),
        (b"a,b,a\n1,2,3\n", "column names come more than once: 'a'"),
        (b"1,2\n3,4\n", "the first line has numbers only, expected the names"),
        (b"a,b\n1,2,3,4\n", "the first row has 4 cells, the line above names 2"),
        (b"a,b\n1,2,\n3,4,\n", "the first row has 3 cells, the line above names 2"),
        (b"a,b\n1,2\n1,2,3\n", "could not be read as a table of text"),
        (b"\x00\x01\x02", "could not be read as a table of text .*zero bytes"),
        (b"a,b\n\xff\xfe,1\n", "could not be read as a table of text .*UnicodeDecodeError"),
    ],
    ids=[
        "empty",
        "empty line",
        "twice",
        "no names",
        "too many cells",
        "trailing",
        "ragged",
        "binary",
        "encoding",
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    """The file is named, and what is wrong with it."""
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"t\.csv: .*{message}"):
        load_table(tmp_path / "t.csv")


def test_bad_names_and_options(tmp_path: Path) -> None:
    """Unknown names, missing files, options that files do not have."""
    with pytest.raises(DataError, match="no table is called 'sach'; did you mean 'sachs'"):
        load_table("sach")
    with pytest.raises(DataError, match="no file at .*gone.csv"):
        load_table("gone.csv")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="conditions, base_url: these are for published tables"):
        load_table(tmp_path / "t.csv", conditions=True)
