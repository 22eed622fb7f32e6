"""Data sets from files: read as numbers only, never executed."""

from __future__ import annotations

import csv
import importlib
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ppgen.datasets.arrays import from_arrays
from ppgen.datasets.split import DataSet
from ppgen.datasets.tensors import listed
from ppgen.errors import ConfigError, DataError, DataWarning

EXTENSIONS = (".npz", ".npy", ".csv", ".tsv", ".parquet")

_ROLES = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
_X_WORDS = ("x", "images", "data", "features", "samples")
_Y_WORDS = ("y", "labels", "label", "targets", "target")
_ROW_NUMBER_NAMES = ("", "Unnamed: 0", "rownames")

# Everything that reading a damaged archive or table was seen to raise.
_DAMAGE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, MemoryError, NotImplementedError)

Column = str | int


def from_file(
    path: str | Path,
    *,
    label: Column | None = None,
    drop: Sequence[Column] = (),
    header: bool | Literal["auto"] = "auto",
    sep: str | None = None,
    **options: Any,
) -> DataSet:
    """A data set from ``.npz``, ``.npy``, ``.csv``, ``.tsv`` or ``.parquet``.

    An ``.npz`` holds one array, or x and y, or train, validation and test parts of them, as in
    ``x_train`` or ``test_labels``. Tables have one datum a row. Nothing in a file is executed:
    pickled objects are refused.

    Args:
        path: the file; its extension says how to read it.
        label: for tables, the column of labels: name or position.
        drop: for tables, columns to leave out: names or positions.
        header: for text tables, whether the first row names the columns; by default it does
            where a cell of it is no number.
        sep: for text tables, the separator; by default tab in ``.tsv``, else the most frequent of
            comma, semicolon and tab in the first line.
        **options: as :func:`~ppgen.datasets.from_arrays`: levels, event_shape, validation, ...

    Raises:
        DataError: no such file, an unknown extension, a damaged file, pickled objects, or
            arrays under names that say nothing; the file is named.
        ConfigError: a column that is not there, or an option that the format does not have.
    """
    path = Path(path)
    if path.suffix.lower() not in EXTENSIONS:
        raise DataError(
            f"path: cannot read {path.name!r} by its extension {path.suffix!r}; supported are "
            f"{', '.join(EXTENSIONS)}; or read it yourself and use datasets.from_arrays"
        )
    if not path.is_file():
        raise DataError(f"path: no file at {path}; check the name, and the folder {path.resolve().parent}")
    options.setdefault("name", path.stem)
    kind = path.suffix.lower()
    if kind in (".npz", ".npy"):
        if label is not None or len(drop) or header != "auto" or sep is not None:
            raise ConfigError(
                f"label, drop, header, sep: these are for tables, {path.name} holds arrays; "
                "choose columns with datasets.from_arrays"
            )
        parts = _read_npz(path) if kind == ".npz" else {"train": (_read_npy(path), None)}
        x, y = parts.pop("train")
        return from_arrays(x, y, **parts, **_without(options, parts, path))
    frame = _read_parquet(path) if kind == ".parquet" else _read_text(path, header, sep)
    return _from_frame(frame, path, label, drop, options)


def _without(options: dict[str, Any], parts: dict[str, Any], path: Path) -> dict[str, Any]:
    clash = sorted(set(options) & set(parts))
    if clash:
        raise ConfigError(
            f"{', '.join(clash)}: {path.name} brings its own rows for that; leave the argument out, or split "
            "its arrays with datasets.from_arrays"
        )
    return options


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"path: {path} could not be read as {path.suffix.lower()} ({type(error).__name__}: {error}); it is "
        "damaged, cut short, or of another format: make or fetch it again"
    )


def _pickled(path: Path) -> DataError:
    return DataError(
        f"path: {path} holds pickled Python objects, which are never executed; save plain arrays of numbers "
        "of one shape instead"
    )


def _read_npy(path: Path) -> Any:
    try:
        array = np.load(path, allow_pickle=False)
    except _DAMAGE as error:
        raise (_pickled(path) if "allow_pickle" in str(error) else _damaged(path, error)) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"path: {path} is an archive of arrays, not one; rename it to .npz")
    return array


def _read_npz(path: Path) -> dict[str, tuple[Any, Any]]:
    """Parts by role, each (x, y)."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"path: {path} is one array, not an archive; rename it to .npy")
        with archive:
            chosen = _choose_keys(archive.files, path)
            read = {role: (archive[x], None if y is None else archive[y]) for role, (x, y) in chosen.items()}
        if any(isinstance(part, bytes) for pair in read.values() for part in pair):
            raise ValueError("a member is no array")
        return read
    except DataError:
        raise
    except _DAMAGE as error:
        raise (_pickled(path) if "allow_pickle" in str(error) else _damaged(path, error)) from error


def _choose_keys(keys: list[str], path: Path) -> dict[str, tuple[str, str | None]]:
    """Which array is x and which is y, by role."""
    if len(keys) == 1:
        return {"train": (keys[0], None)}
    found: dict[tuple[str, str], str] = {}
    for key in keys:
        words = key.lower().replace("-", "_").split("_")
        roles = [_ROLES[w] for w in words if w in _ROLES]
        rest = [w for w in words if w not in _ROLES]
        word = rest[0] if rest else "x"
        kind = "x" if word in _X_WORDS else "y" if word in _Y_WORDS else None
        if kind is not None and len(roles) <= 1 and len(rest) <= 1:
            found.setdefault((roles[0] if roles else "train", kind), key)
    roles_found = [r for r in ("train", "validation", "test") if (r, "x") in found]
    if "train" not in roles_found:
        raise DataError(
            f"path: {path.name} holds arrays {listed(sorted(keys))}, none of which is known as the data; "
            "expected x and y, or x_train, y_train, x_test, y_test (also x_validation; images and labels), "
            'or one array alone; or use datasets.from_arrays(numpy.load(path)["..."])'
        )
    return {role: (found[role, "x"], found.get((role, "y"))) for role in roles_found}


def _read_text(path: Path, header: bool | Literal["auto"], sep: str | None) -> Any:
    import pandas

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline()
        if not line.strip():
            raise DataError(f"path: {path} is empty or begins with an empty line; expected one datum a row")
        if sep is None:
            sep = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=line.count)
        first = next(csv.reader([line], delimiter=sep))
        named = not all(_is_number(cell) for cell in first) if header == "auto" else header
        frame = pandas.read_csv(
            path,
            sep=sep,
            header=0 if named else None,
            encoding="utf-8-sig",
            index_col=False,
            low_memory=False,
        )
    except DataError:
        raise
    except (*_DAMAGE, TypeError, csv.Error) as error:
        raise _damaged(path, error) from error
    if len(frame) == 0:
        raise DataError(f"path: {path} has column names and no rows; expected one datum a row")
    return frame


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> Any:
    import pandas

    try:
        importlib.import_module("pyarrow")
    except ImportError as error:
        raise DataError(
            f"path: reading {path.name} needs pyarrow; install it with: pip install 'ppgen[parquet]'"
        ) from error
    try:
        return pandas.read_parquet(path, engine="pyarrow")
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _from_frame(
    frame: Any, path: Path, label: Column | None, drop: Sequence[Column], options: dict[str, Any]
) -> DataSet:
    if isinstance(drop, str):
        raise ConfigError(f"drop: expected a list of columns, got the text {drop!r}; use drop=[{drop!r}]")
    gone = [_position(frame, column, "drop", path) for column in drop]
    target = None if label is None else _position(frame, label, "label", path)
    numbered = [
        i
        for i in range(min(1, frame.shape[1]))
        if str(frame.columns[i]) in _ROW_NUMBER_NAMES
        and i not in (*gone, target)
        and _counts_rows(frame.iloc[:, i])
    ]
    if numbered:
        warnings.warn(
            f"path: column {str(frame.columns[0])!r} of {path.name} numbers the rows and was left out; "
            "rename it to keep it",
            DataWarning,
            stacklevel=4,
        )
    keep = [i for i in range(frame.shape[1]) if i not in (*gone, *numbered, target)]
    if not keep:
        raise DataError(
            f"path: no columns of {path.name} are left as data; it has {listed(list(frame.columns))}"
        )
    y = None if target is None else frame.iloc[:, target]
    return from_arrays(frame.iloc[:, keep], y, **options)


def _counts_rows(column: Any) -> bool:
    values = column.to_numpy()
    if values.dtype.kind not in "iu":
        return False
    return bool((values == np.arange(len(values)) + values[0]).all()) and int(values[0]) in (0, 1)


def _position(frame: Any, column: Column, argument: str, path: Path) -> int:
    """Where a column stands, by its name or its position."""
    names = list(frame.columns)
    if column in names:
        return names.index(column)
    if isinstance(column, int) and -len(names) <= column < len(names):
        return column % len(names)
    close = get_close_matches(str(column), [str(n) for n in names])
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(f"{argument}: {path.name} has no column {column!r}, it has {listed(names)}{hint}")
