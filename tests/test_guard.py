"""The guard of conftest.py catches what it is there for: each planted leak fails its test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

_PLANTED = """
import contextlib, logging, os, random, signal, sys, warnings
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pytest
import torch
from ppgen.ops.random import forked_rng

@pytest.fixture(scope="module")
def drawn():
    return torch.rand(1)

def test_clean():
    with forked_rng(0):
        torch.rand(1)
    with pyro.get_param_store().scope():
        pyro.param("a", torch.ones(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
    np.random.default_rng(0).random()
    plt.close(plt.figure())

def test_leak_torch():
    torch.rand(1)

def test_leak_by_fixture(drawn):
    pass

def test_leak_numpy():
    np.random.random()

def test_leak_python():
    random.random()

def test_leak_dtype():
    torch.set_default_dtype(torch.float64)

def test_leak_device():
    torch.set_default_device("meta")

def test_leak_grad():
    torch.set_grad_enabled(False)

def test_leak_threads():
    torch.set_num_threads(2)

def test_leak_determinism():
    torch.use_deterministic_algorithms(True)

def test_leak_validation():
    pyro.enable_validation(False)

def test_leak_param():
    pyro.param("a", torch.ones(1))

def test_leak_filter():
    warnings.simplefilter("ignore")

def test_leak_logging():
    logging.getLogger().setLevel(logging.DEBUG)

def test_leak_figure():
    plt.figure()

def test_leak_settings():
    plt.rcParams["lines.linewidth"] = 7

def test_leak_signal():
    signal.signal(signal.SIGINT, lambda *_: None)

def test_leak_folder():
    os.chdir("/")
"""


def test_guard_catches_every_planted_leak(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_planted.py").write_text(_PLANTED)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-q", "--rootdir", "."]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [*command, "test_planted.py"], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    caught = set(re.findall(r"^ERROR \S*::(test_\w+)", done.stdout, re.MULTILINE))
    planted = set(re.findall(r"def (test_leak_\w+)", _PLANTED))
    assert caught == planted, done.stdout + done.stderr
