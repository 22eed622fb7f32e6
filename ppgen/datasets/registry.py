"""Data sets by name or path: one function to load them all."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ppgen.datasets.split import DataSet
from ppgen.errors import ConfigError, DataError

_DIGITS = "1797 handwritten digits, 8 x 8 pixels, 17 grey levels, inside scikit-learn."


def available() -> dict[str, str]:
    """Names that :func:`load` knows, each with a sentence. Nothing is fetched.

    A path of a file works as well; see :func:`~ppgen.datasets.files.from_file`.
    """
    from ppgen.datasets.downloads import DOWNLOADS
    from ppgen.datasets.toys import TOYS

    return (
        {"digits": _DIGITS}
        | {name: what for name, (_, what) in TOYS.items()}
        | {name: f"{entry.description} Fetched on first use." for name, entry in DOWNLOADS.items()}
    )


def load(name_or_path: str | Path, **options: Any) -> DataSet:
    """The data set of a name, or of a file.

    Only the names of downloads touch the network, and only where the cache lacks the files.

    Args:
        name_or_path: a name of :func:`available`, or the path of a file (a text with a folder or
            an extension in it).
        **options: of that data set. Digits: ``seed``. Toys: ``num_train``, ``num_validation``,
            ``num_test``, ``seed`` and the toy's own shape. Downloads: ``base_url``, ``progress``.
            Files: ``label``, ``drop``, ``levels``, ``validation``, ``test``, ``seed``, ...

    Raises:
        DataError: no such name or file.
        ConfigError: an option that this data set does not have.
    """
    if isinstance(name_or_path, str):
        name = name_or_path.strip().lower().replace("_", "-")
        build = _builder(name)
        if build is not None:
            return _call(build, options, name)
    path = Path(name_or_path).expanduser()
    if isinstance(name_or_path, Path) or path.suffix or len(path.parts) > 1 or path.is_file():
        from ppgen.datasets.files import from_file

        return _call(functools.partial(from_file, path), options, path.name)
    close = get_close_matches(str(name_or_path).lower(), available(), cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise DataError(
        f"name_or_path: no data set is called {name_or_path!r}; {hint}"
        f"known names: {', '.join(available())}; or give the path of a file"
    )


def _builder(name: str) -> Callable[..., DataSet] | None:
    if name == "digits":
        from ppgen.datasets.builtin import digits

        return digits
    from ppgen.datasets.downloads import DOWNLOADS, load_download
    from ppgen.datasets.toys import TOYS, load_toy

    if name in TOYS:
        return functools.partial(load_toy, name)
    if name in DOWNLOADS:
        return functools.partial(load_download, DOWNLOADS[name])
    return None


def _call(build: Callable[..., DataSet], options: dict[str, Any], name: str) -> DataSet:
    """``build(**options)``, after a check that it knows every option."""
    known = _options(build)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no such option of {name}; it has {', '.join(known)}")
    return build(**options)


def _options(build: Callable[..., Any]) -> list[str]:
    """Keyword arguments of a builder, and of the function that it passes the others on to."""
    from ppgen.datasets.arrays import from_arrays
    from ppgen.datasets.files import from_file
    from ppgen.datasets.toys import TOYS, load_toy

    names = _keywords(build)
    if isinstance(build, functools.partial) and build.func is load_toy:
        names += _keywords(TOYS[build.args[0]][0])
    if isinstance(build, functools.partial) and build.func is from_file:
        names += [name for name in _keywords(from_arrays) if name != "max_items"]
    return names


def _keywords(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
