"""What all tests share: one thread, the guard over global state, and where real data are.

The guard fails any test that leaves a global of the process changed. It looks before the
first fixture of a test is built and after the last one is torn down, so that fixtures are
watched as well.
"""

from __future__ import annotations

import os

# Before torch and matplotlib are imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import logging
import random
import signal
import sys
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


def _cuda_rng() -> object:
    """States of the CUDA generators; looking must not start CUDA."""
    if not torch.cuda.is_initialized():
        return None
    return [tuple(state.tolist()) for state in torch.cuda.get_rng_state_all()]


def _matplotlib() -> object:
    pyplot = sys.modules.get("matplotlib.pyplot")
    return None if pyplot is None else (pyplot.get_fignums(), {**pyplot.rcParams})


_GLOBALS: dict[str, Callable[[], object]] = {
    "torch's random generator (draw inside ppgen.ops.random.forked_rng)": lambda: (
        torch.get_rng_state().numpy().tobytes()
    ),
    "the CUDA random generators": _cuda_rng,
    "numpy's random generator": lambda: repr(np.random.get_state(legacy=False)),
    "Python's random generator": random.getstate,
    "torch's default dtype": torch.get_default_dtype,
    "torch's default device": torch.get_default_device,
    "torch's grad mode": torch.is_grad_enabled,
    "torch's number of threads": torch.get_num_threads,
    "torch's determinism": lambda: (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.is_anomaly_enabled(),
    ),
    "Pyro's settings, validation among them": pyro.settings.get,
    "Pyro's parameter store": lambda: sorted(pyro.get_param_store().keys()),
    "Pyro's handler stack": lambda: len(_PYRO_STACK),
    "the warnings filters": lambda: list(warnings.filters),
    "the logging levels": lambda: (logging.root.level, logging.getLogger("ppgen").level),
    "ppgen's log handlers": lambda: list(logging.getLogger("ppgen").handlers),
    "matplotlib's open figures and settings": _matplotlib,
    "the signal handlers": lambda: (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
    "the working directory": Path.cwd,
}

# What the import of another library may set, once, in the test that first needs it.
_SET_BY_IMPORTS = ("the warnings filters", "matplotlib's open figures and settings")


def _packages() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules}


_BEFORE = pytest.StashKey[tuple[dict[str, object], set[str]]]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Note the globals before the fixtures of a test are built."""
    item.stash[_BEFORE] = {name: read() for name, read in _GLOBALS.items()}, _packages()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Fail the test if it, or a fixture of its, left a global changed."""
    result = yield
    before, packages = item.stash[_BEFORE]
    imported = _packages() - packages
    changed = [
        name
        for name, read in _GLOBALS.items()
        if read() != before[name] and not (imported and name in _SET_BY_IMPORTS)
    ]
    if changed:
        pytest.fail(f"{item.nodeid} left changed: {'; '.join(changed)}", pytrace=False)
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs CUDA where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data sets: ``PPGEN_DATA``, else ``../shared/data`` beside the repository."""
    folder = Path(os.environ.get("PPGEN_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data sets are not at {folder}; set PPGEN_DATA to their folder")
    return folder
