"""What the tests of downloads share: a cache and a server of their own."""

import http.server
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppgen.datasets.downloads import CACHE_VARIABLE, MIRROR_VARIABLE
from tests.datasets.server import Server, serving


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and no mirror or proxy from the environment."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that lives as long as the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    with serving(folder) as found:
        yield found


@pytest.fixture
def nowhere() -> str:
    """An address at which nobody listens."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}/"
