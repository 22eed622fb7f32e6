"""Compiling, and what is kept between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ppgen.errors import CompilationError
from ppgen.ops import compiled as module
from ppgen.ops.compiled import Library, build, cache_folder, find_compiler

SOURCE = 'extern "C" int answer() {{ return {}; }}\n'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and a process that has loaded nothing."""
    monkeypatch.setenv("PPGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    forget(monkeypatch)
    return tmp_path / "cache" / "native"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOADED", {})


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    folder = tmp_path / "headers"
    folder.mkdir()
    (folder / "plain.hpp").write_text("inline int same(int number) { return number; }\n")
    return folder


def answer(number: int) -> Library:
    library = build(SOURCE.format(number))
    assert library.handle.answer() == number
    return library


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so"))


def test_compiled_once_then_from_memory_then_from_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answer(7)
    assert first.origin == "compiled"
    assert first.compile_seconds > 0
    assert first.source.read_text() == SOURCE.format(7)
    again = answer(7)
    assert (again.origin, again.compile_seconds) == ("memory", 0.0)
    forget(monkeypatch)
    assert answer(7).origin == "disk"
    assert libraries(cache) == [first.path]
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("change", ["source", "flags", "compiler", "processor", "headers"])
def test_all_that_matters_is_in_the_key(
    change: str, cache: Path, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, flags = '#include "plain.hpp"\nextern "C" int answer() { return same(7); }\n', ["-O2"]
    assert build(source, headers=headers, flags=flags).handle.answer() == 7
    if change == "source":
        source += "//\n"
    elif change == "flags":
        flags.append("-g0")
    elif change == "compiler":
        other = module.Compiler(find_compiler().command, "another version")
        monkeypatch.setattr(module, "find_compiler", lambda: other)
    elif change == "processor":
        monkeypatch.setattr(module, "_processor", lambda: "another")
    else:
        (headers / "plain.hpp").write_text("inline int same(int number) { return number + 1; }\n")
    assert build(source, headers=headers, flags=flags).origin == "compiled"
    assert len(libraries(cache)) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_library_is_built_again(damage: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = answer(7).path
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    # A new file: the old one is mapped into this process.
    path.unlink()
    path.write_bytes(content[: {"truncated": len(content) // 2, "flipped": len(content), "empty": 0}[damage]])
    path.chmod(0o700)
    forget(monkeypatch)
    assert answer(7).origin == "compiled"
    forget(monkeypatch)
    assert answer(7).origin == "disk"


def test_a_library_that_others_can_write_is_not_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(7).path.chmod(0o777)
    forget(monkeypatch)
    assert answer(7).origin == "compiled"


def test_a_folder_that_others_can_write_is_not_used(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert cache_folder() != cache
    assert answer(7).path.parent != cache


def test_a_folder_behind_a_link_is_not_used(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    assert cache_folder() != cache


def test_folders_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPGEN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "ppgen" / "native"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "ppgen" / "native"
    # A home that cannot be made: something else is in its place.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert cache_folder().parent == tmp_path
    assert cache_folder().stat().st_mode & 0o777 == 0o700


def test_no_folder_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PPGEN_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(CompilationError, match="PPGEN_CACHE"):
        answer(7)


def test_the_folder_stays_within_bounds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_FILES", 4)
    oldest, older = answer(1).path, answer(2).path
    for age, path in enumerate((older, oldest)):
        os.utime(path, (1e9 - age, 1e9 - age))
    stale = cache / ".build-left"
    stale.mkdir()
    os.utime(stale, (1e9, 1e9))
    newest = [answer(number).path for number in (3, 4, 5)]
    assert not oldest.exists()
    assert newest[-1].exists()
    assert not stale.exists()
    assert sum(1 for _ in cache.iterdir()) <= 6  # four and the two that were just made


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilationError, match=r"g\+\+, clang\+\+, c\+\+ is not on the path"):
        answer(7)
    monkeypatch.setenv("CXX", "no-such-compiler -O7")
    with pytest.raises(CompilationError, match="CXX='no-such-compiler -O7'"):
        answer(7)


def test_cxx_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    command = find_compiler().command
    monkeypatch.setenv("CXX", f"{command[0]} -DWITH_CXX")
    assert find_compiler().command == (command[0], "-DWITH_CXX")
    assert answer(7).origin == "compiled"


def test_a_failing_compiler_says_why() -> None:
    with pytest.raises(CompilationError, match="not_declared") as caught:
        build("int f() { return not_declared; }")
    assert "status 1" in str(caught.value)


def test_threads_build_the_same_at_once(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, [7] * 4))
    assert {library.path for library in found} == {found[0].path}
    assert len(libraries(cache)) == 1


def test_processes_build_the_same_at_once(cache: Path) -> None:
    program = (
        "from ppgen.ops.compiled import build\n"
        f"library = build({SOURCE.format(7)!r})\n"
        "assert library.handle.answer() == 7\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert answer(7).origin == "disk"
