"""How the documentation is built: ``make docs``. Every warning and every failing cell ends the build."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import ppgen

# For the processes that run the tutorials.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# tqdm asks for widgets in every notebook; pages show no progress bars.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")

project = "ppgen"
author = "The ppgen developers"
copyright = author
version = release = ppgen.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "conf.py", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]

# Tutorials are Python scripts in percent format, run by the build and by the tests.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_merge_streams = True
# Results are those of one version of the package and one size of the tutorials.
_sources = sorted(Path(ppgen.__file__).parent.rglob("*.py"))
_version = hashlib.sha256(b"".join(path.read_bytes() for path in _sources)).hexdigest()[:12]
_size = "small" if "PPGEN_DOCS_SMALL" in os.environ else "full"
nb_execution_cache_path = str(Path(__file__).parent / "_build" / f"cache-{_size}-{_version}")

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autosummary_generate = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"ppgen {release}"
