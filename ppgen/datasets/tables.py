"""Tables with named columns, for structure discovery: published ones by name, the user's own by path."""

from __future__ import annotations

import csv
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ppgen.datasets.downloads import Download, fetch
from ppgen.errors import ConfigError, DataError, DataWarning

_ROWS_PER_CONDITION = 600
_BLANK = r"\s+"

# In the order of the file's blocks; "" where no agent acts on a protein of the table. Of the three blocks
# without, the file does not say which of anti-CD3/CD28, the same with ICAM-2, and with LY294002 they are.
_CONDITIONS = (
    "b2cAMP",
    "",
    "Akt inhibitor",
    "G06976",
    "Psitectorigenin",
    "U0126",
    "",
    "PMA",
    "",
)


@dataclass(frozen=True)
class PublishedTable:
    """A table that is fetched once, checked against its checksum, and kept in the cache.

    Attributes:
        description: a sentence: what it is, and its source.
        download: where from; its one file has the role ``"table"``.
    """

    description: str
    download: Download


TABLES = {
    "sachs": PublishedTable(
        "5400 single cells, 11 proteins in levels 1, 2, 3, interventions by six agents (Sachs et al. 2005, "
        "discretised by Eaton & Murphy 2007).",
        Download(
            "sachs",
            "The table of Sachs et al. 2005, as it comes with bnlearn.",
            (
                "https://raw.githubusercontent.com/snarles/causal/"
                "2f4c6ab8a17c46e6429d0616c72466397cd27618/bnlearn_files/",
            ),
            {
                "table": (
                    "sachs.interventional.txt",
                    "sha256:b4414fdc268c28cc48ecce2c38078caa57fd436dd77d78d6e778e3ab5bbadf26",
                )
            },
        ),
    )
}


def available_tables() -> dict[str, str]:
    """Names that :func:`load_table` knows, each with a sentence. Nothing is fetched."""
    return {name: f"{table.description} Fetched on first use." for name, table in TABLES.items()}


def load_table(
    name_or_path: str | Path,
    *,
    conditions: bool = False,
    base_url: str | None = None,
    progress: bool = True,
) -> Any:
    """A table by name, or from a text file, as a pandas DataFrame.

    ``"sachs"``: 5400 rows; 11 columns of levels 1, 2, 3 (low, average, high), named by protein, and
    ``INT``, the protein that was set in the row, ``""`` where none. Rows come in nine blocks of 600. In
    two of them PKC was set, by different agents: G06976 lowers it, PMA raises it; so the six agents, which
    uncertain interventions are about, cannot be read from ``INT``, and ``conditions=True`` adds them. The
    assignment of agents to blocks follows from ``INT`` and the levels' means.

    A file is read as it is: its first line has the names, separated by commas, semicolons, tabs or
    spaces, quoted or not. A first column without a name (row names, as R writes them) is left out.

    Args:
        name_or_path: a name of :func:`available_tables`, or the path of a file (a text with a folder or
            an extension in it).
        conditions: for ``"sachs"``, whether to add the column ``condition``: the agent at work, ``""``
            in the three blocks without one that acts on a protein of the table.
        base_url: for names, folder to fetch from instead of the published one; the environment
            variables are those of :func:`~ppgen.datasets.load_download`.
        progress: for names, whether to show a bar on standard error.

    Raises:
        DataError: no such name or file; an empty, damaged or binary file; a line without names; names
            that come twice.
        DownloadError: nothing could be fetched, or it is not what was published.
        ConfigError: an option that files do not have.

    Warns:
        DataWarning: row names were left out; the cache cannot be written.
    """
    name = str(name_or_path).strip().lower()
    if isinstance(name_or_path, str) and name in TABLES:
        path = fetch(TABLES[name].download, base_url=base_url, progress=progress)["table"]
        return _sachs(_read_text(path), conditions)
    path = Path(name_or_path).expanduser()
    if not (isinstance(name_or_path, Path) or path.suffix or len(path.parts) > 1 or path.is_file()):
        close = get_close_matches(name, TABLES, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(
            f"name_or_path: no table is called {name_or_path!r}; {hint}known names: {', '.join(TABLES)}; or "
            "give the path of a file"
        )
    if conditions or base_url is not None:
        raise ConfigError(
            f"conditions, base_url: these are for published tables ({', '.join(TABLES)}), {path.name} is a "
            "file; leave them out"
        )
    if not path.is_file():
        raise DataError(
            f"name_or_path: no file at {path}; check the name, and the folder {path.resolve().parent}"
        )
    return _read_text(path)


def _sachs(frame: Any, conditions: bool) -> Any:
    import numpy as np

    proteins = list(frame.columns[:-1])
    frame["INT"] = np.array(["", *proteins], dtype=object)[frame["INT"].to_numpy()]
    if conditions:
        frame["condition"] = np.repeat(np.array(_CONDITIONS, dtype=object), _ROWS_PER_CONDITION)
    return frame


def _read_text(path: Path) -> Any:
    import pandas

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line, first = (file.readline().rstrip("\r\n") for _ in range(2))
        if "\0" in line:
            raise ValueError("it holds zero bytes")
        if not line.strip():
            raise DataError(
                f"{path}: the file is empty or begins with an empty line; expected names of columns"
            )
        separator = _separator(line, path)
        header = _cells(line, separator)
        _check_header(header, path)
        cells = _cells(first, separator)
        if len(cells) > len(header) + 1 or (len(cells) > len(header) and not cells[-1].strip()):
            raise DataError(
                f"{path}: the first row has {len(cells)} cells, the line above names {len(header)}; expected "
                "as many names as cells"
            )
        # Cells are data, also where they look like a missing intervention: only these stand for missing.
        frame = pandas.read_csv(
            path,
            sep=separator,
            encoding="utf-8-sig",
            low_memory=False,
            keep_default_na=False,
            na_values=["", "NA", "NaN", "nan"],
        )
    except DataError:
        raise
    except (OSError, ValueError, csv.Error, pandas.errors.ParserError, MemoryError) as error:
        raise DataError(
            f"{path}: could not be read as a table of text ({type(error).__name__}: {error}); expected one "
            "row a line, separated by commas, semicolons, tabs or spaces, with names of columns first"
        ) from error
    # Row names: a column of their own without a name, or cells for which the first line has none.
    if len(cells) > len(header):
        frame = frame.reset_index(drop=True)
    elif not header[0].strip():
        frame = frame.iloc[:, 1:]
    else:
        return frame
    warnings.warn(
        f"{path.name}: the first column has no name, was taken for names of rows and left out; name it to "
        "keep it",
        DataWarning,
        stacklevel=3,
    )
    return frame


def _separator(line: str, path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    most = max(",;\t", key=line.count)
    return most if most in line else _BLANK


def _cells(line: str, separator: str) -> list[str]:
    if separator == _BLANK:
        line, separator = " ".join(line.split()), " "
    return next(csv.reader([line], delimiter=separator), [])


def _check_header(header: list[str], path: Path) -> None:
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: column names come more than once: {', '.join(map(repr, twice))}; rename them"
        )
    if all(_is_number(name) for name in names):
        raise DataError(
            f"{path}: the first line has numbers only, expected the names of the columns; add a line of "
            "names, or read the file yourself and give names"
        )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
