"""Data sets from files: what is understood, what is refused, and that nothing is executed."""

import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ppgen import datasets
from ppgen.datasets import DataSet, grid
from ppgen.errors import ConfigError, DataError, DataWarning

TABLE = np.random.default_rng(0).normal(size=(50, 3)).round(6)
IMAGES = np.random.default_rng(1).integers(0, 256, (50, 4, 4)).astype(np.uint8)
LABELS = np.arange(50) % 5


def rows(data: DataSet) -> torch.Tensor:
    """All rows, sorted."""
    return torch.cat([data.train.x, data.validation.x, data.test.x]).unique(dim=0)


def expected_rows() -> torch.Tensor:
    """The rows of TABLE, sorted."""
    return torch.tensor(TABLE).float().unique(dim=0)


# -- understood ---------------------------------------------------------------------------------


def test_npy(tmp_path: Path) -> None:
    """One array, named after the file."""
    np.save(tmp_path / "table.npy", TABLE)
    data = datasets.load(tmp_path / "table.npy", seed=4)
    assert data.name == "table"
    assert torch.equal(rows(data), expected_rows())
    assert torch.equal(data.train.x, datasets.from_arrays(TABLE, seed=4).train.x)


@pytest.mark.parametrize("keys", [("x", "y"), ("X", "Y"), ("images", "labels"), ("data", "target")])
def test_npz_of_one_split(tmp_path: Path, keys: tuple[str, str]) -> None:
    """Arrays x and y under their usual names; bytes are images."""
    arrays: dict[str, Any] = {keys[0]: IMAGES, keys[1]: LABELS}
    np.savez(tmp_path / "d.npz", **arrays)
    data = datasets.load(str(tmp_path / "d.npz"))
    assert data.event_shape == (1, 4, 4)
    assert data.values == grid(256)
    assert data.test.y is not None
    assert data.test.y.bincount().tolist() == [1] * 5


@pytest.mark.parametrize("form", ["x_train", "train_images", "train"])
def test_npz_of_several_splits(tmp_path: Path, form: str) -> None:
    """The archive's own splits are kept as they are."""
    parts = {"train": IMAGES[:30], "val": IMAGES[30:40], "test": IMAGES[40:]}
    arrays: dict[str, Any] = {form.replace("train", role): part for role, part in parts.items()}
    np.savez_compressed(tmp_path / "d.npz", **arrays)
    data = datasets.load(tmp_path / "d.npz")
    for split, part in (
        (data.train, IMAGES[:30]),
        (data.validation, IMAGES[30:40]),
        (data.test, IMAGES[40:]),
    ):
        torch.testing.assert_close(split.x[:, 0], torch.tensor(part / 255).float())
    with pytest.raises(ConfigError, match="validation: d.npz brings its own rows"):
        datasets.load(tmp_path / "d.npz", validation=0.2)


def test_npz_with_labels_and_no_validation(tmp_path: Path) -> None:
    """As mnist.npz of Keras: train and test with labels; validation is taken of train."""
    np.savez(
        tmp_path / "d.npz", x_train=IMAGES[:40], y_train=LABELS[:40], x_test=IMAGES[40:], y_test=LABELS[40:]
    )
    data = datasets.load(tmp_path / "d.npz")
    assert [len(data.train), len(data.validation), len(data.test)] == [36, 4, 10]
    assert data.test.y is not None
    assert data.test.y.tolist() == LABELS[40:].tolist()


def test_npz_of_one_array_under_any_name(tmp_path: Path) -> None:
    """A single array needs no name."""
    np.savez(tmp_path / "d.npz", TABLE)
    assert torch.equal(rows(datasets.load(tmp_path / "d.npz")), expected_rows())


@pytest.mark.parametrize(
    ("name", "sep", "header"), [("d.csv", ",", True), ("d.csv", ";", False), ("d.tsv", "\t", True)]
)
def test_text_tables(tmp_path: Path, name: str, sep: str, header: bool) -> None:
    """Comma, semicolon, tab; with names and without."""
    frame = pd.DataFrame(TABLE, columns=["height", "weight", "age"])
    frame.to_csv(tmp_path / name, sep=sep, header=header, index=False, encoding="utf-8-sig")
    assert torch.equal(rows(datasets.load(tmp_path / name)), expected_rows())


@pytest.mark.parametrize(("label", "drop"), [("kind", ["note"]), (-1, [3]), (4, [-2])])
@pytest.mark.parametrize("name", ["d.csv", "d.parquet"])
def test_label_and_dropped_columns(tmp_path: Path, name: str, label: Any, drop: list[Any]) -> None:
    """By name and by position; text labels are encoded."""
    frame = pd.DataFrame(TABLE, columns=["a", "b", "c"])
    frame["note"], frame["kind"] = "some text", np.array(["u", "v"])[LABELS % 2]
    if name.endswith("csv"):
        frame.to_csv(tmp_path / name, index=False)
    else:
        frame.to_parquet(tmp_path / name)
    data = datasets.load(tmp_path / name, label=label, drop=drop)
    assert torch.equal(rows(data), expected_rows())
    assert data.train.y is not None
    assert data.train.y.unique().tolist() == [0, 1]
    assert "Labels: u = 0, v = 1." in data.description


def test_a_column_of_row_numbers_is_left_out_and_said(tmp_path: Path) -> None:
    """What pandas and R write in front of a table is no datum."""
    pd.DataFrame(TABLE, columns=["a", "b", "c"]).to_csv(tmp_path / "d.csv")
    with pytest.warns(DataWarning, match="'Unnamed: 0' of d.csv numbers the rows and was left out"):
        data = datasets.load(tmp_path / "d.csv")
    assert torch.equal(rows(data), expected_rows())


def test_declared_levels(tmp_path: Path) -> None:
    """Options of arrays go through."""
    np.save(tmp_path / "d.npy", np.arange(64).reshape(16, 4) % 17)
    data = datasets.load(tmp_path / "d.npy", levels=17, event_shape=(1, 2, 2), dtype=torch.float64)
    assert (data.values, data.event_shape, data.train.x.dtype) == (grid(17), (1, 2, 2), torch.float64)


def test_old_faithful(data_dir: Path) -> None:
    """A published table, its column of row numbers left out."""
    path = data_dir / "old_faithful" / "faithful.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with pytest.warns(DataWarning, match="rownames"):
        data = datasets.load(path)
    assert sum(map(len, (data.train, data.validation, data.test))) == 272
    assert data.event_shape == (2,)
    assert float(data.train.joined(data.validation).joined(data.test).x[:, 1].mean()) == pytest.approx(
        70.897, abs=0.001
    )


@pytest.mark.slow
def test_mnist(data_dir: Path) -> None:
    """A published archive: the usual mean and spread of its training pixels."""
    path = data_dir / "mnist" / "mnist.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    data = datasets.load(path)
    assert [len(data.train), len(data.validation), len(data.test)] == [50_000, 10_000, 10_000]
    pixels = data.train.joined(data.validation).x
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert float(pixels.std()) == pytest.approx(0.3081, abs=1e-4)


# -- refused ------------------------------------------------------------------------------------


class Bomb:
    """An object whose unpickling writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.target,)


def test_a_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    """Object arrays in .npy and .npz, and a bare pickle, are refused unread."""
    mark = tmp_path / "it ran"
    bomb = np.array([Bomb(mark), Bomb(mark)], dtype=object)
    np.save(tmp_path / "d.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "d.npz", x=bomb)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(bomb))
    for name in ("d.npy", "d.npz", "bare.npy"):
        with pytest.raises(
            DataError, match=rf"{name} holds pickled Python objects, which are never executed"
        ):
            datasets.load(tmp_path / name)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))  # the twin: it would have run
    assert mark.exists()


@pytest.mark.parametrize("name", ["d.npy", "d.npz", "d.parquet"])
@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.95])
def test_truncated_files(tmp_path: Path, name: str, keep: float) -> None:
    """A file cut short is named, whatever the reader says of it."""
    path = tmp_path / name
    if name == "d.npy":
        np.save(path, TABLE)
    elif name == "d.npz":
        np.savez_compressed(path, x=TABLE)
    else:
        pd.DataFrame(TABLE, columns=["a", "b", "c"]).to_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(DataError, match=rf"{name} (could not be read|holds pickled)"):
        datasets.load(path)


def test_a_flipped_bit_in_an_archive(tmp_path: Path) -> None:
    """The archive's own checksum is heeded."""
    path = tmp_path / "d.npz"
    np.savez(path, x=TABLE)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d.npz could not be read as .npz \(BadZipFile"):
        datasets.load(path)


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    """A header of a petabyte fails as damage, not as a crash."""
    path = tmp_path / "d.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (2**47,)}
        )
        file.write(b"\0" * 64)
    with pytest.raises(DataError, match="d.npy could not be read"):
        datasets.load(path)


def test_unknown_keys_are_listed(tmp_path: Path) -> None:
    """The message lists what is there and what was expected."""
    np.savez(tmp_path / "d.npz", weights=TABLE, bias=TABLE)
    with pytest.raises(DataError, match="holds arrays bias, weights, none of which.*x_train"):
        datasets.load(tmp_path / "d.npz")


def test_archives_and_arrays_under_each_others_name(tmp_path: Path) -> None:
    """The message says which extension it should have."""
    with (tmp_path / "d.npy").open("wb") as file:
        np.savez(file, x=TABLE)
    with (tmp_path / "d.npz").open("wb") as file:
        np.save(file, TABLE)
    with pytest.raises(DataError, match="rename it to .npz"):
        datasets.load(tmp_path / "d.npy")
    with pytest.raises(DataError, match="rename it to .npy"):
        datasets.load(tmp_path / "d.npz")


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    """A zip file without arrays."""
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x", "not an array")
        archive.writestr("y", "not an array")
    with pytest.raises(DataError, match="d.npz could not be read as .npz .ValueError: a member is no array"):
        datasets.load(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        (b"", {}, DataError, "d.csv is empty"),
        (b"a,b\n", {}, DataError, "column names and no rows"),
        (b"a,b\n1,2\n3,x\n", {}, DataError, r"other types in b \("),
        (b"a,b\n1.5,2\n3,\n", {}, DataError, r"1 NaN .* in column\(s\) b and row\(s\) 1"),
        (b"a,b\n1,2,3,4\n1,2,3,4,5\n", {}, DataError, "d.csv could not be read as .csv"),
        (b"a,b\n\xff\xfe\xfa,2\n", {}, DataError, "d.csv could not be read as .csv .UnicodeDecodeError"),
        (b"height,b\n1,2\n", {"label": "heigth"}, ConfigError, "did you mean height?"),
        (b"a,b\n1,2\n", {"label": 2}, ConfigError, "label: d.csv has no column 2, it has a, b"),
        (b"a,b\n1,2\n", {"drop": "a"}, ConfigError, r"use drop=\['a'\]"),
        (b"a,b\n1,2\n", {"drop": ["a"], "label": "b"}, DataError, "no columns of d.csv are left"),
        (b"a,b\n1,2\n", {"colour": 1}, ConfigError, "colour: no such option of d.csv; it has label, drop"),
    ],
)
def test_bad_tables(
    tmp_path: Path, content: bytes, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message names the file or the column."""
    path = tmp_path / "d.csv"
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        datasets.load(path, **options)


def test_array_files_have_no_columns(tmp_path: Path) -> None:
    """Options of tables are refused for arrays rather than ignored."""
    np.save(tmp_path / "d.npy", TABLE)
    with pytest.raises(ConfigError, match="these are for tables, d.npy holds arrays"):
        datasets.load(tmp_path / "d.npy", label=0)


def test_missing_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra that brings it."""
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'ppgen\[parquet\]'"):
        datasets.load(tmp_path / "d.parquet")


@pytest.mark.parametrize("name", ["d.xlsx", "d.pkl", "d.CSVX", "d"])
def test_unknown_extension(tmp_path: Path, name: str) -> None:
    """The supported ones are listed."""
    (tmp_path / name).write_bytes(b"1,2")
    with pytest.raises(DataError, match=r"supported are \.npz, \.npy, \.csv, \.tsv, \.parquet"):
        datasets.load(tmp_path / name)


def test_missing_file(tmp_path: Path) -> None:
    """The message says where it was looked for."""
    with pytest.raises(DataError, match=r"no file at .*gone\.npy"):
        datasets.load(tmp_path / "gone.npy")
