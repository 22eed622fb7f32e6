"""Downloads: fetched once from a server on this machine, checked, cached; every failure explained."""

import gzip
import hashlib
import os
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppgen.datasets import Download, grid, load_download
from ppgen.datasets.downloads import CACHE_VARIABLE, DOWNLOADS, MIRROR_VARIABLE, read_idx
from ppgen.errors import ConfigError, DataError, DataWarning, DownloadError
from tests.datasets.server import Server

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 4)).astype(np.uint8)
LABELS = (np.arange(30) % 3).astype(np.uint8)
ARRAYS = {
    "train_images": IMAGES[:20],
    "train_labels": LABELS[:20],
    "test_images": IMAGES[20:],
    "test_labels": LABELS[20:],
}


def zipped(content: bytes) -> bytes:
    """Gzip that does not hold the time, so that every process collects the same tests."""
    return gzip.compress(content, mtime=0)


def idx(array: Any) -> bytes:
    """The array in gzipped idx form."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return zipped(header + array.tobytes())


@dataclass
class Site(Server):
    """A server with a tiny data set in its folder."""

    entry: Download = field(init=False)

    def __post_init__(self) -> None:
        files = {}
        for role, array in ARRAYS.items():
            content = idx(array)
            (self.folder / f"{role}.gz").write_bytes(content)
            files[role] = (f"{role}.gz", f"md5:{hashlib.md5(content).hexdigest()}")
        self.entry = Download("tiny", "Thirty tiny images.", (self.url,), files, num_validation=4)


@pytest.fixture
def site(server: Server) -> Site:
    """The server of this test, with the data set in it."""
    return Site(server.url, server.folder, server.requests)


def test_what_comes_is_what_was_published(cache: Path, site: Site) -> None:
    """Images with a channel, k / 255; labels; the last training rows validate."""
    data = load_download(site.entry, progress=False)
    assert data.event_shape == (1, 5, 4)
    assert data.values == grid(256)
    for split, part in (
        (data.train, slice(0, 16)),
        (data.validation, slice(16, 20)),
        (data.test, slice(20, 30)),
    ):
        torch.testing.assert_close(
            split.x[:, 0].double(), torch.tensor(IMAGES[part] / 255), rtol=1e-6, atol=0
        )
        assert split.y is not None
        assert split.y.dtype == torch.int64
        assert split.y.tolist() == LABELS[part].tolist()
    assert data.test.name == "tiny test"
    assert data.description.startswith("Thirty tiny images.")
    assert sorted(p.name for p in (cache / "tiny").iterdir()) == sorted(f"{r}.gz" for r in ARRAYS)


def test_fetched_once(cache: Path, site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    """The second load asks nobody; progress is shown on standard error, or not."""
    load_download(site.entry)
    assert "100%" in capfd.readouterr().err
    assert len(site.requests) == 4
    load_download(site.entry)
    assert len(site.requests) == 4
    assert capfd.readouterr() == ("", "")


def test_sha256_works_as_well(cache: Path, site: Site) -> None:
    """The algorithm stands in front of the checksum."""
    files = {
        role: (file, f"sha256:{hashlib.sha256((site.folder / file).read_bytes()).hexdigest()}")
        for role, (file, _) in site.entry.files.items()
    }
    assert len(load_download(replace(site.entry, files=files), progress=False).test) == 10


def test_other_addresses(
    cache: Path, site: Site, nowhere: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The next address is tried; base_url and the environment's mirror come before the entry's."""
    load_download(replace(site.entry, base_urls=(nowhere, site.url)), progress=False)
    deaf = replace(site.entry, base_urls=(nowhere,))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "second"))
    load_download(deaf, base_url=site.url.rstrip("/"), progress=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "third"))
    (site.folder / "tiny").symlink_to(site.folder)
    monkeypatch.setenv(MIRROR_VARIABLE, site.url)
    load_download(deaf, progress=False)
    assert site.requests[-1].startswith("/tiny/")
    with pytest.raises(ConfigError, match="base_url: expected an address that begins with http"):
        load_download(replace(site.entry, name="other"), base_url="ftp://127.0.0.1/")


def test_checksum_mismatch(cache: Path, site: Site) -> None:
    """Both hashes are named, and the bad file is gone."""
    bad = idx(IMAGES[:19])
    (site.folder / "train_images.gz").write_bytes(bad)
    known = site.entry.files["train_images"][1]
    with pytest.raises(DownloadError, match="checksum mismatch") as caught:
        load_download(site.entry, progress=False)
    assert f"expected {known}, got md5:{hashlib.md5(bad).hexdigest()}" in str(caught.value)
    assert list((cache / "tiny").iterdir()) == []


def test_a_damaged_cache_heals(cache: Path, site: Site) -> None:
    """A flipped bit in a cached file is noticed, and the file fetched again."""
    load_download(site.entry, progress=False)
    path = cache / "tiny" / "train_images.gz"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    load_download(site.entry, progress=False)
    assert path.read_bytes() == good
    assert site.requests.count("/train_images.gz") == 2


def test_a_transfer_that_breaks_off(cache: Path, site: Site) -> None:
    """Half a file is not taken for the whole; what came before it is kept."""
    path = site.folder / "test_labels.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DownloadError, match="could not fetch test_labels.gz"):
        load_download(site.entry, progress=False)
    assert len(list((cache / "tiny").iterdir())) == 3
    path.write_bytes(whole)
    load_download(site.entry, progress=False)
    assert site.requests.count("/train_images.gz") == 1


def test_offline(cache: Path, site: Site, nowhere: str) -> None:
    """The message says what was tried and how to do without a network; doing so works."""
    deaf = replace(site.entry, base_urls=(nowhere, site.url + "gone/"))
    with pytest.raises(DownloadError) as caught:
        load_download(deaf, progress=False)
    message = str(caught.value)
    for part in (
        f"{nowhere}train_images.gz: ConnectionError",
        "gone/train_images.gz: HTTPError: 404",
        f"place the file by hand as {cache / 'tiny' / 'train_images.gz'} (checksum md5:",
        "base_url=",
        MIRROR_VARIABLE,
    ):
        assert part in message
    for file, _ in deaf.files.values():
        (cache / "tiny" / file).write_bytes((site.folder / file).read_bytes())
    assert len(load_download(deaf, progress=False).train) == 16


def test_a_cache_that_cannot_be_written(
    cache: Path, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A temporary folder serves, and a warning says so."""
    (tmp_path / "plain file").touch()
    (tmp_path / "spare").mkdir()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "plain file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    with pytest.warns(DataWarning, match=f"cannot be written.*set {CACHE_VARIABLE}"):
        data = load_download(site.entry, progress=False)
    assert len(data.train) == 16
    (folder,) = (tmp_path / "spare").iterdir()
    assert len(list(folder.iterdir())) == 4


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_that_is_full_will_do(cache: Path, site: Site) -> None:
    """Nothing needs writing where everything is there."""
    load_download(site.entry, progress=False)
    (cache / "tiny").chmod(0o500)
    try:
        assert len(load_download(site.entry, progress=False).train) == 16
    finally:
        (cache / "tiny").chmod(0o700)


def test_too_many_rows_to_validate(cache: Path, site: Site) -> None:
    """The entry itself is wrong."""
    with pytest.raises(ConfigError, match="tiny has 20 training rows, cannot spare 20"):
        load_download(replace(site.entry, num_validation=20), progress=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "could not be unpacked"),
        (idx(IMAGES)[:-20], "could not be unpacked"),
        (zipped(b"\0\0\x08"), "expected an idx file"),
        (zipped(b"\0\0\x0d\x01" + bytes(4)), "expected an idx file of bytes .* got 00 00 0d 01"),
        (zipped(struct.pack(">BBBBI", 0, 0, 8, 1, 7) + bytes(6)), "promises 7 bytes .* 6 are there"),
        (zipped(struct.pack(">BBBBI", 0, 0, 8, 1, 7) + bytes(8)), "promises 7 bytes .* 8 are there"),
    ],
    ids=["not gzip", "truncated", "short", "wrong type", "too few bytes", "too many bytes"],
)
def test_damaged_idx_files(tmp_path: Path, content: bytes, message: str) -> None:
    """The message names the file and what is wrong with it."""
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"images\.gz: .*{message}"):
        read_idx(path)


def test_published_entries() -> None:
    """Each has four files, each with a whole checksum, and addresses to try."""
    assert list(DOWNLOADS) == ["mnist", "fashion-mnist", "kmnist"]
    for entry in DOWNLOADS.values():
        assert set(entry.files) == set(ARRAYS)
        for _, known in entry.files.values():
            algorithm, _, digest = known.partition(":")
            assert algorithm == "md5"
            assert len(bytes.fromhex(digest)) == 16
        assert len({known for _, known in entry.files.values()}) == 4
        assert all(url.startswith("http") and url.endswith("/") for url in entry.base_urls)
