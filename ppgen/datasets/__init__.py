"""Data with what is known of its values: built-in, generated, downloaded, or the user's own.

``load(name_or_path)`` gives a :class:`DataSet`; ``available()`` lists the names;
``from_arrays``, ``sequences``, ``text`` and ``as_split`` take the user's own data. ``load_table`` gives
tables with named columns, as pandas frames, and ``available_tables()`` lists them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.datasets.arrays import as_split, from_arrays
    from ppgen.datasets.character_text import TextDataSet, Vocabulary, text
    from ppgen.datasets.companding import mu_law, mu_law_inverse
    from ppgen.datasets.downloads import Download, load_download
    from ppgen.datasets.files import from_file
    from ppgen.datasets.ragged import sequences
    from ppgen.datasets.registry import available, load
    from ppgen.datasets.split import DataSet, Split
    from ppgen.datasets.tables import available_tables, load_table
    from ppgen.datasets.values import BINARY, REAL, Values, grid

# Public name -> the module that defines it, imported on first use.
_HOMES = {
    "load": "registry",
    "available": "registry",
    "from_arrays": "arrays",
    "as_split": "arrays",
    "from_file": "files",
    "Download": "downloads",
    "load_download": "downloads",
    "DataSet": "split",
    "Split": "split",
    "available_tables": "tables",
    "load_table": "tables",
    "sequences": "ragged",
    "text": "character_text",
    "TextDataSet": "character_text",
    "Vocabulary": "character_text",
    "mu_law": "companding",
    "mu_law_inverse": "companding",
    "Values": "values",
    "REAL": "values",
    "BINARY": "values",
    "grid": "values",
}

__all__ = [
    "BINARY",
    "REAL",
    "DataSet",
    "Download",
    "Split",
    "TextDataSet",
    "Values",
    "Vocabulary",
    "as_split",
    "available",
    "available_tables",
    "from_arrays",
    "from_file",
    "grid",
    "load",
    "load_download",
    "load_table",
    "mu_law",
    "mu_law_inverse",
    "sequences",
    "text",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
