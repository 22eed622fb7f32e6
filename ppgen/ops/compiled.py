"""Compiles C++ to shared libraries, and keeps them between processes.

A library is found again by all that made it: its source, its headers, the flags, the
compiler and the processor. It is kept in the user's cache folder (``PPGEN_CACHE``, else
``XDG_CACHE_HOME/ppgen``, else ``~/.cache/ppgen``; a folder under the temporary one where none of these
can be written). Files appear there whole or not at all, so processes may share it. A library is
loaded only from a folder and a file that belong to the user and that nobody else can write, and
only if its content has the checksum in its name.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ppgen.errors import CompilationError

# Fused multiply-adds and no errno, but infinities, NaN and the order of sums as written.
_FLAGS = ("-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_QUIET = ("-Wno-psabi",)
_COMPILERS = ("g++", "clang++", "c++")
_MAX_FILES = 512
_MAX_BYTES = 256 * 2**20
_STALE_SECONDS = 24 * 3600.0
_LINES_OF_ERROR = 15


@dataclass(frozen=True)
class Library:
    """A compiled program, loaded.

    Attributes:
        handle: through which its functions are called, without Python's lock.
        path: the shared library.
        source: the C++ file it was made from.
        compile_seconds: what compiling took; 0 where it was found ready.
        origin: ``"compiled"``, ``"disk"`` or ``"memory"``.
    """

    handle: ctypes.CDLL
    path: Path
    source: Path
    compile_seconds: float
    origin: str


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: how to call it, and its version as it says it."""

    command: tuple[str, ...]
    version: str


_LOADED: dict[str, Library] = {}
_LOCK = threading.Lock()


def build(source: str, *, headers: Path | None = None, flags: Sequence[str] = ("-O3",)) -> Library:
    """The library of a C++ program; compiled where it is not kept.

    Args:
        source: the program.
        headers: the folder of the headers that it includes.
        flags: for the compiler: optimisation, definitions.

    Raises:
        CompilationError: no compiler, or it failed, or the library could not be loaded.
    """
    compiler = find_compiler()
    flags = [*_FLAGS, *_machine_flags(), *flags]
    parts = (source, _contents(headers), "\0".join(flags), compiler.version, _processor())
    key = hashlib.sha256("\0\0".join(parts).encode()).hexdigest()[:32]
    with _LOCK:
        found = _LOADED.get(key)
        if found is None:
            found = _LOADED[key] = _from_disk(key) or _compile(key, source, compiler, flags, headers)
            return found
    return replace(found, compile_seconds=0.0, origin="memory")


def find_compiler() -> Compiler:
    """The compiler: ``$CXX``, else g++, clang++ or c++, whichever is on the path first.

    Raises:
        CompilationError: there is none.
    """
    wanted = os.environ.get("CXX")
    candidates = [shlex.split(wanted)] if wanted else [[name] for name in _COMPILERS]
    for command in candidates:
        path = shutil.which(command[0]) if command else None
        if path:
            return _described((path, *command[1:]), Path(path).stat().st_mtime_ns)
    names = f"CXX={wanted!r}" if wanted else ", ".join(_COMPILERS)
    raise CompilationError(f"no C++ compiler: {names} is not on the path; install g++ or clang++")


@functools.lru_cache(maxsize=8)
def _described(command: tuple[str, ...], changed: int) -> Compiler:
    """``changed`` is when the compiler's file did: a new version is asked again."""
    result = _run([*command, "--version"])
    return Compiler(command, f"{shlex.join(command)}\n{result.stdout}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise CompilationError(f"the C++ compiler {command[0]} could not be run: {error}") from error
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()[-_LINES_OF_ERROR:]
        raise CompilationError(
            f"the C++ compiler {command[0]} failed with status {result.returncode}:\n" + "\n".join(lines)
        )
    return result


def _machine_flags() -> tuple[str, ...]:
    arm_mac = sys.platform == "darwin" and platform.machine() == "arm64"
    return ("-mcpu=native",) if arm_mac else ("-march=native",)


def _contents(headers: Path | None) -> str:
    return "" if headers is None else "".join(path.read_text() for path in sorted(headers.glob("*.hpp")))


@functools.cache
def _processor() -> str:
    """What ``-march=native`` depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        kept = ("model", "vendor", "flags", "Features", "CPU ", "cpu family")
        return "\n".join(line for line in lines if line.startswith(kept))
    return f"{platform.machine()} {platform.processor()} {platform.node()}"


# --------------------------------------------------------------------------------------
# On disk
# --------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where libraries are kept: the first of the candidates that is the user's own and can be written."""
    for folder in _candidates():
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_private(folder) and os.access(folder, os.W_OK | os.X_OK):
                return folder
    raise CompilationError(
        "no folder for compiled programs is yours alone and can be written; "
        "set PPGEN_CACHE to one (not writable by others)"
    )


def _candidates() -> Iterator[Path]:
    if own := os.environ.get("PPGEN_CACHE"):
        yield Path(own).expanduser() / "native"
    elif shared := os.environ.get("XDG_CACHE_HOME"):
        yield Path(shared) / "ppgen" / "native"
    else:
        with contextlib.suppress(RuntimeError):
            yield Path.home() / ".cache" / "ppgen" / "native"
    yield Path(tempfile.gettempdir()) / f"ppgen-native-{_user()}"


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def is_private(path: Path) -> bool:
    """Whether ``path``, itself and not by a link, is the user's and writable by nobody else."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return False
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _from_disk(key: str) -> Library | None:
    folder = cache_folder()
    for path in folder.glob(f"{key}-*.so"):
        with contextlib.suppress(OSError):
            if is_private(path) and _checksum(path) == path.stem.rpartition("-")[2]:
                source = folder / f"{key}.cpp"
                for used in (path, source):  # what is in use stays longest
                    os.utime(used)
                return Library(ctypes.CDLL(str(path)), path, source, 0.0, "disk")
            path.unlink()
    return None


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _compile(key: str, source: str, compiler: Compiler, flags: list[str], headers: Path | None) -> Library:
    began = time.perf_counter()
    folder = cache_folder()
    try:
        _drop_oldest(folder)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch:
            unit, made = Path(scratch) / "unit.cpp", Path(scratch) / "unit.so"
            unit.write_text(source)
            include = () if headers is None else ("-I", str(headers))
            _run([*compiler.command, *flags, *_QUIET, *include, str(unit), "-o", str(made), "-lm"])
            made.chmod(0o700)
            path = folder / f"{key}-{_checksum(made)}.so"
            kept_source = folder / f"{key}.cpp"
            unit.replace(kept_source)
            made.replace(path)
        seconds = time.perf_counter() - began
        return Library(ctypes.CDLL(str(path)), path, kept_source, seconds, "compiled")
    except OSError as error:
        raise CompilationError(f"compiled programs cannot be kept or loaded in {folder}: {error}") from error


def _drop_oldest(folder: Path) -> None:
    """Keep the folder within bounds; files of others at work may vanish meanwhile."""
    found: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            status = path.stat()
            if path.is_dir():
                if path.name.startswith(".build-") and time.time() - status.st_mtime > _STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            else:
                found.append((status.st_mtime, status.st_size, path))
    found.sort(reverse=True)
    size = 0
    for number, (_, num_bytes, path) in enumerate(found):
        size += num_bytes
        if number >= _MAX_FILES or size > _MAX_BYTES:
            with contextlib.suppress(OSError):
                path.unlink()
