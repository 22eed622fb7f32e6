"""Data sets that are fetched once, checked against published checksums, and kept in a cache."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import grid
from ppgen.errors import ConfigError, DataError, DataWarning, DownloadError

MIRROR_VARIABLE = "PPGEN_DATA_MIRROR"
CACHE_VARIABLE = "PPGEN_CACHE"


@dataclass(frozen=True)
class Download:
    """A published data set of byte images and labels in four gzipped idx files.

    Attributes:
        name: the name in the registry, and of the folder in the cache.
        description: a sentence: what it is, and its source.
        base_urls: folders that hold the files, tried in turn.
        files: file name and checksum (``"md5:..."`` or ``"sha256:..."``) of ``train_images``,
            ``train_labels``, ``test_images`` and ``test_labels``.
        num_validation: how many of the last training rows validate.
    """

    name: str
    description: str
    base_urls: tuple[str, ...]
    files: Mapping[str, tuple[str, str]]
    num_validation: int = 10_000


def _idx_files(*checksums: str) -> dict[str, tuple[str, str]]:
    names = {
        "train_images": "train-images-idx3-ubyte.gz",
        "train_labels": "train-labels-idx1-ubyte.gz",
        "test_images": "t10k-images-idx3-ubyte.gz",
        "test_labels": "t10k-labels-idx1-ubyte.gz",
    }
    return {role: (file, f"md5:{md5}") for (role, file), md5 in zip(names.items(), checksums, strict=True)}


DOWNLOADS = {
    entry.name: entry
    for entry in (
        Download(
            "mnist",
            "70,000 handwritten digits, 28 x 28 pixels, 256 grey levels (LeCun, Cortes, Burges 1998).",
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
            _idx_files(
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        Download(
            "fashion-mnist",
            "70,000 pictures of clothes, 28 x 28 pixels, 256 grey levels (Xiao, Rasul, Vollgraf 2017).",
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            ),
            _idx_files(
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        Download(
            "kmnist",
            "70,000 cursive Japanese characters, 28 x 28 pixels, 256 grey levels (Clanuwat et al. 2018).",
            ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
            _idx_files(
                "bdb82020997e1d708af4cf47b453dcf7",
                "e144d726b3acfaa3e44228e80efcd344",
                "5c965bf0a639b31b8f53240b1b52f4d7",
                "7320c461ea6c1c855c0b718fb2a4b134",
            ),
        ),
    )
}


def load_download(
    entry: Download,
    *,
    base_url: str | None = None,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
) -> DataSet:
    """The data set of ``entry``, from the cache, or fetched into it.

    Args:
        entry: what to fetch; a user's own works like those of :data:`DOWNLOADS`.
        base_url: folder to fetch from instead of the entry's own. The environment variable
            ``PPGEN_DATA_MIRROR`` names a mirror that holds a folder for each data set.
        progress: whether to show bars on standard error.
        dtype: floating-point type of x.

    Returns:
        x of shape ``(N, 1, H, W)`` with values k/255, labels y (int64). The test split is the
        published one; the last ``num_validation`` training rows validate.

    Raises:
        DownloadError: nothing could be fetched, or it is not what was published.
        DataError: a file that is no idx file.

    Warns:
        DataWarning: the cache cannot be written; files go to a temporary folder.
    """
    paths = fetch(entry, base_url=base_url, progress=progress)
    arrays = {role: read_idx(path) for role, path in paths.items()}

    def split(role: str, rows: slice, source: str) -> Split:
        x = torch.tensor(arrays[f"{source}_images"][rows]).to(dtype)[:, None] / 255
        y = torch.tensor(arrays[f"{source}_labels"][rows]).to(torch.int64)
        return Split(x, y, grid(256), f"{entry.name} {role}")

    cut = len(arrays["train_images"]) - entry.num_validation
    if cut < 1:
        raise ConfigError(
            f"num_validation: {entry.name} has {len(arrays['train_images'])} training rows, cannot spare "
            f"{entry.num_validation}; use fewer"
        )
    return DataSet(
        name=entry.name,
        train=split("train", slice(0, cut), "train"),
        validation=split("validation", slice(cut, None), "train"),
        test=split("test", slice(None), "test"),
        description=f"{entry.description} The last {entry.num_validation} training rows validate.",
    )


def fetch(entry: Download, *, base_url: str | None = None, progress: bool = True) -> dict[str, Path]:
    """Paths of the entry's files, by role, each with its published checksum."""
    folder = _cache_folder() / entry.name
    stored = {role: folder / file for role, (file, _) in entry.files.items()}
    if all(_is_good(stored[role], known) for role, (_, known) in entry.files.items()):
        return stored
    folder = _writable(folder)
    bases = _bases(entry, base_url)
    return {
        role: _fetch_file(entry, file, known, folder, bases, progress)
        for role, (file, known) in entry.files.items()
    }


def _bases(entry: Download, base_url: str | None) -> tuple[str, ...]:
    mirror = os.environ.get(MIRROR_VARIABLE)
    if base_url is not None:
        bases: tuple[str, ...] = (base_url,)
    elif mirror:
        bases = (f"{mirror.rstrip('/')}/{entry.name}",)
    else:
        bases = entry.base_urls
    for base in bases:
        if not base.startswith(("http://", "https://")):
            raise ConfigError(
                f"base_url: expected an address that begins with http:// or https://, got {base!r}; "
                f"files on this machine go into the cache, {_cache_folder() / entry.name}"
            )
    return bases


def _cache_folder() -> Path:
    import pooch

    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(pooch.os_cache("ppgen"))


def _writable(folder: Path) -> Path:
    """``folder``, made if need be, or a temporary one where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        spare = Path(tempfile.mkdtemp(prefix="ppgen-"))
        warnings.warn(
            f"cache: {folder} cannot be written ({error}); files go to {spare} and will be fetched again "
            f"next time; set {CACHE_VARIABLE} to a folder that can be written",
            DataWarning,
            stacklevel=5,
        )
        return spare


def _digest(path: Path, known: str) -> str:
    algorithm = known.partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _is_good(path: Path, known: str) -> bool:
    try:
        return _digest(path, known) == known
    except OSError:
        return False


def _fetch_file(
    entry: Download, file: str, known: str, folder: Path, bases: tuple[str, ...], progress: bool
) -> Path:
    import pooch

    target = folder / file
    if _is_good(target, known):
        return target
    failures = []
    for base in bases:
        url = f"{base.rstrip('/')}/{file}"
        partial = folder / f"{file}.{os.getpid()}.part"
        try:
            pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 16)(url, str(partial), None)
            found = _digest(partial, known)
            if found == known:
                partial.replace(target)
                return target
            failures.append(f"{url}: checksum mismatch, expected {known}, got {found}; the file was removed")
        except OSError as error:  # requests' errors are OSErrors too
            failures.append(f"{url}: {type(error).__name__}: {error}")
        finally:
            partial.unlink(missing_ok=True)
    # Reached only where nothing good came: what lies in the cache under this name is bad, too.
    target.unlink(missing_ok=True)
    raise DownloadError(
        f"{entry.name}: could not fetch {file}. Tried:\n  "
        + "\n  ".join(failures)
        + f"\nWithout a network, place the file by hand as {target} (checksum {known}), give base_url=, "
        f"or set {MIRROR_VARIABLE} to a mirror that holds {entry.name}/{file}."
    )


def read_idx(path: Path) -> Any:
    """The uint8 array in a gzipped idx file (the format of MNIST).

    Raises:
        DataError: damaged, of another type than bytes, or longer or shorter than its header says.
    """
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: could not be unpacked ({error}); remove it, so that it is fetched again"
        ) from error
    ndim = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * ndim
    if len(content) < start or content[:3] != b"\x00\x00\x08" or ndim == 0:
        raise DataError(
            f"{path}: expected an idx file of bytes (first three bytes 00 00 08), got {content[:4].hex(' ')}"
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", ndim, 4))
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path}: the header promises {math.prod(shape)} bytes in shape {shape}, {len(content) - start} "
            "are there; remove it, so that it is fetched again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
