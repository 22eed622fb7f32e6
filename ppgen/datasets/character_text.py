"""Character text as a data set: windows of a plain file, and the vocabulary that goes with them."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ppgen.datasets.partition import Share, count_rows
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import Values, grid
from ppgen.errors import ConfigError, DataError, ShapeError

# Messages name no more characters than these.
_SHOWN = 10


class Vocabulary:
    """A numbering of characters: text to grid values and back.

    A saved model has the number of levels and not their meaning. Keep ``vocabulary.characters``, a string,
    beside it: ``Vocabulary(characters)`` is the same vocabulary again.

    Args:
        characters: any text or collection of characters; repeated ones count once, their order is by code
            point.

    Raises:
        DataError: fewer than two characters, or items that are not single characters.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        known = sorted(set(characters))
        if any(not isinstance(c, str) or len(c) != 1 for c in known):
            raise DataError(
                "characters: expected single characters, such as those of a text; join longer items first"
            )
        if len(known) < 2:
            raise DataError(
                f"characters: expected two different characters or more, got {len(known)}; "
                "a text of one character says nothing"
            )
        self.characters = "".join(known)
        self._numbers = {c: i for i, c in enumerate(known)}

    def __len__(self) -> int:
        return len(self.characters)

    def __repr__(self) -> str:
        return f"Vocabulary({self.characters!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and other.characters == self.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    @property
    def values(self) -> Values:
        """The grid that characters are values of."""
        return grid(len(self))

    def encode(self, text: str, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """The characters as grid values k / (V - 1), shape ``(len(text),)``.

        Raises:
            DataError: characters that the vocabulary does not have; they are named, with the place of the
                first.
        """
        unknown = collections.Counter(c for c in text if c not in self._numbers)
        if unknown:
            first = next(i for i, c in enumerate(text) if c in unknown)
            shown = ", ".join(f"{c!r} ({count} times)" for c, count in unknown.most_common(_SHOWN))
            more = f" and {len(unknown) - _SHOWN} others" if len(unknown) > _SHOWN else ""
            raise DataError(
                f"text: {shown}{more} not in the vocabulary of {len(self)} characters, first at position "
                f"{first}; replace or remove them, or make the vocabulary from all texts together"
            )
        numbers = torch.tensor([self._numbers[c] for c in text], dtype=torch.int64)
        return numbers.to(dtype) / (len(self) - 1)

    def decode(self, x: Tensor) -> str:
        """The text that grid values ``(T,)`` stand for; NaN at the end, as in ragged data, ends it.

        Raises:
            ShapeError: more than one text.
            DataError: values that are not of the grid.
        """
        if x.ndim != 1:
            raise ShapeError(f"x: expected one text of shape (T,), got {tuple(x.shape)}; decode(x[0])")
        beyond = x.isnan().nonzero()
        x = x[: int(beyond[0, 0])] if len(beyond) else x
        if not len(x):
            return ""
        self.values.check(x, "x")
        return "".join(self.characters[k] for k in self.values.indices(x).tolist())


@dataclass(frozen=True)
class TextDataSet(DataSet):
    """A data set of windows of text, of shape ``(N, length)``.

    Attributes:
        vocabulary: turns text into values of the data and back.
    """

    vocabulary: Vocabulary = field(default=Vocabulary("01"), kw_only=True)


def text(
    source: str | Path,
    *,
    length: int,
    stride: int | None = None,
    validation: Share = 0.1,
    test: Share = 0.1,
    vocabulary: Vocabulary | None = None,
    encoding: str = "utf-8-sig",
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextDataSet:
    """A data set of windows of characters, from a plain file or from a text itself.

    The beginning of the text is for training, what follows for validation, the end for testing, so that no
    character of a split is in another. Only the set of characters is that of the whole text.

    Args:
        source: a path, or a text; a text that is the path of a file is taken for the path.
        length: characters of a window, T.
        stride: characters from the start of a training window to that of the next one; ``length`` by default,
            which leaves no overlap. Windows for validation and testing never overlap.
        validation: the share for validation: a fraction of the characters, or a number of windows.
        test: the same for the test split.
        vocabulary: the characters; by default those of the text.
        encoding: of the file; line ends become newlines.
        name: for messages and reports; the file's by default.
        dtype: floating-point type of x.

    Returns:
        Splits with x of shape ``(N, length)``, values k / (V - 1); what does not fill a window at the end of
        a split is left out.

    Raises:
        DataError: no such file, one that is empty or not of the encoding, a text too short for a window in
            each split, characters that a given vocabulary does not have.
        ConfigError: a length or stride below 1, or shares that are none.
    """
    if length < 1 or (stride is not None and stride < 1):
        raise ConfigError(f"length, stride: expected positive integers, got {length}, {stride}")
    content, name, path = _read(source, encoding, name)
    if not content:
        raise DataError(f"source: {path or 'the text'} is empty; bring a text of many windows of {length}")
    sizes = [
        share * length
        if isinstance(share, int) and not isinstance(share, bool)
        else count_rows(share, len(content), role)
        for share, role in ((validation, "validation"), (test, "test"))
    ]
    cuts = (len(content) - sum(sizes), len(content) - sizes[1])
    if min(cuts[0], *sizes) < length:
        hint = (
            "; no file has that name" if path is None and "\n" not in content and len(content) < 256 else ""
        )
        raise DataError(
            f"{name}: {len(content)} characters give parts of {cuts[0]}, {sizes[0]} and {sizes[1]} for "
            f"training, validation and testing, of which some hold no window of {length}; bring a longer "
            f"text or take a smaller length{hint}"
        )
    vocabulary = vocabulary or Vocabulary(content)
    encoded = vocabulary.encode(content, dtype=dtype)
    parts = {
        "train": encoded[: cuts[0]].unfold(0, length, stride or length),
        "validation": encoded[cuts[0] : cuts[1]].unfold(0, length, length),
        "test": encoded[cuts[1] :].unfold(0, length, length),
    }
    train, held_out, last = (
        Split(x.contiguous(), values=vocabulary.values, name=f"{name} {role}") for role, x in parts.items()
    )
    return TextDataSet(
        name=name,
        train=train,
        validation=held_out,
        test=last,
        description=(
            f"{len(content)} characters, {len(vocabulary)} different ones, in windows of {length}: "
            f"{len(train)} train, {len(held_out)} validation, {len(last)} test, by position."
        ),
        vocabulary=vocabulary,
    )


def _read(source: str | Path, encoding: str, name: str | None) -> tuple[str, str, Path | None]:
    """The text, what to call it, and its file if it is of one."""
    path = Path(source) if isinstance(source, Path) or _is_path(source) else None
    if path is None:
        return str(source), name or "text", None
    try:
        return path.read_text(encoding=encoding), name or path.stem, path
    except FileNotFoundError:
        raise DataError(
            f"source: no file at {path}; check the name, and the folder {path.resolve().parent}"
        ) from None
    except (OSError, UnicodeError, LookupError) as error:
        raise DataError(
            f"source: {path} could not be read as {encoding} text ({type(error).__name__}: {error}); "
            "name its encoding with encoding=..."
        ) from error


def _is_path(source: str) -> bool:
    try:
        return len(source) < 4096 and Path(source).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False
