"""The floors of the package, read from its import statements, and other rules of the house.

Each place of the package may import the places below it and itself, nothing else. The rules
take the folder that they look at, so that a twin test can show a planted breach to be found.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Place -> the places that it may import beside itself.
_TENSORS = {"errors", "ops", "nn"}
_OBJECTS = _TENSORS | {"distributions", "datasets", "plots"}
_CONTRACT = _OBJECTS | {"contract"}
_KNOWS: dict[str, set[str]] = {
    "errors": set(),
    "ops": {"errors"},
    "nn": {"errors", "ops"},
    "distributions": _TENSORS,
    "datasets": {"errors", "ops"},
    "plots": {"errors", "ops"},
    "contract": _OBJECTS,
    "inference": _CONTRACT,
    "models": _CONTRACT | {"inference"},
    "metrics": _CONTRACT,
    "tasks": _CONTRACT | {"metrics"},
}
# The top floor sees everything: what users import, type and read. ``ppgen`` is the root module.
_TOP = {"ppgen", "__main__", "cli", "report", "testing"}
_EVERYTHING = {*_KNOWS, *_TOP}

# Slow to import, and not needed by everyone: imported inside the functions that use them.
_OPTIONAL = {"arviz", "matplotlib", "pandas", "pgmpy", "pooch", "pyarrow", "sklearn", "torchmetrics"}
_MAY_IMPORT_AT_ONCE = {"plots": {"matplotlib"}}

_MAX_LINES = 600


@dataclass(frozen=True)
class Import:
    """One imported module: by whom, on which line, and whether at the import of the importer."""

    importer: str
    line: int
    module: str
    at_once: bool


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _place(module: str) -> str:
    """The second component of a module's name; ``ppgen`` for the root itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import statement of a file, also those in functions and under ``TYPE_CHECKING``."""
    importer = _module_name(path, root)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]

    def visit(node: ast.AST, at_once: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, node.lineno, alias.name, at_once)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                file = root / Path(*whole.split("."))
                submodule = file.is_dir() or file.with_suffix(".py").is_file()
                yield Import(importer, node.lineno, whole if submodule else base, at_once)
        for child in ast.iter_child_nodes(node):
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            # The condition of `if TYPE_CHECKING` holds for its body, not for its else.
            typing_only = _is_type_checking(node) and isinstance(node, ast.If) and child in node.body
            yield from visit(child, at_once and not deferred and not typing_only)

    yield from visit(ast.parse(path.read_text(), str(path)), True)


def python_files(root: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def all_imports(root: Path) -> list[Import]:
    return [found for path in python_files(root, "ppgen") for found in imports_of(path, root)]


def upward_imports(root: Path) -> list[str]:
    """Imports of ppgen by ppgen that do not go down."""
    breaches = []
    for found in all_imports(root):
        if found.module.partition(".")[0] != "ppgen":
            continue
        importer, imported = _place(found.importer), _place(found.module)
        allowed = _EVERYTHING if importer in _TOP else _KNOWS.get(importer, set()) | {importer}
        if imported not in allowed:
            breaches.append(f"{found.importer}:{found.line} imports {found.module}")
    return breaches


def import_cycles(root: Path) -> list[list[str]]:
    """Modules that need one another in order to be imported."""
    graph = nx.DiGraph((i.importer, i.module) for i in all_imports(root) if i.at_once)
    return [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]


def eager_optional_imports(root: Path) -> list[str]:
    """Optional packages imported as soon as a module is."""
    return [
        f"{found.importer}:{found.line} imports {found.module}"
        for found in all_imports(root)
        if found.at_once
        and (package := found.module.partition(".")[0]) in _OPTIONAL
        and package not in _MAY_IMPORT_AT_ONCE.get(_place(found.importer), set())
    ]


# Imported under another name than they are installed by.
_INSTALLED_AS = {"pyro": "pyro-ppl", "sklearn": "scikit-learn"}


def undeclared_packages(root: Path, *, at_once: bool) -> list[str]:
    """Imports of packages that ``pyproject.toml`` does not declare.

    Args:
        root: folder of the project.
        at_once: look at the imports of modules, for which only dependencies count, or else at those in
            functions, for which the extras do as well.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    declared = list(project["dependencies"])
    if not at_once:
        declared += [line for extra in project["optional-dependencies"].values() for line in extra]
    known = {re.split(r"[^\w.-]", line)[0].lower() for line in declared} | sys.stdlib_module_names | {"ppgen"}
    return [
        f"{found.importer}:{found.line} imports {package}"
        for found in all_imports(root)
        if found.at_once == at_once
        and _INSTALLED_AS.get(package := found.module.partition(".")[0], package) not in known
    ]


def unknown_places(root: Path) -> list[str]:
    """Modules and folders of the package that stand on no floor."""
    inside = (p for p in (root / "ppgen").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists())
    return sorted({p.stem for p in inside} - _EVERYTHING - {"__init__"})


def long_files(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: {lines} lines"
        for path in python_files(root, "ppgen", "tests", "benchmarks", "docs")
        if (lines := len(path.read_text().splitlines())) > _MAX_LINES
    ]


def vague_names(root: Path) -> list[str]:
    """Files named after nothing."""
    vague = {"utils", "util", "helpers", "misc", "common"}
    return [str(p.relative_to(root)) for p in (root / "ppgen").rglob("*") if p.stem in vague]


def assertions(root: Path) -> list[str]:
    """``assert`` statements outside the test tools: python -O drops them."""
    return [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in python_files(root, "ppgen")
        if "testing" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.Assert)
    ]


_FOREIGN = re.compile(
    r"(?<![\w.:/~-])/(?:home|root|Users|work|opt|mnt|data)/\w"  # a path of one machine
    r"|pypi\.org|python[h]osted|-[-]?index-url|find[-]links|download\.pytorch\.org",  # a registry
    re.IGNORECASE,
)


def foreign_text(name: str, text: str) -> list[str]:
    """Lines of a file that name a machine's path or a package registry."""
    return [
        f"{name}:{n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if _FOREIGN.search(line)
    ]


def _repository_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_imports_go_down() -> None:
    assert upward_imports(ROOT) == []


def test_every_module_stands_on_a_floor() -> None:
    assert unknown_places(ROOT) == []


def test_no_import_cycles() -> None:
    assert import_cycles(ROOT) == []


def test_optional_packages_are_imported_where_they_are_used() -> None:
    assert eager_optional_imports(ROOT) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_imports_are_of_declared_packages(at_once: bool) -> None:
    assert undeclared_packages(ROOT, at_once=at_once) == []


def test_files_are_of_readable_length() -> None:
    assert long_files(ROOT) == []


def test_files_are_named_after_what_they_hold() -> None:
    assert vague_names(ROOT) == []


def test_no_assert_statements_outside_the_test_tools() -> None:
    assert assertions(ROOT) == []


def test_no_machine_paths_or_registries() -> None:
    found = []
    for path in _repository_files():
        try:
            found += foreign_text(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # a picture
    assert found == []


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A small package that breaks every rule once."""
    files = {
        "ppgen/__init__.py": "",
        "ppgen/errors.py": "",
        "ppgen/contract.py": "import typing\nif typing.TYPE_CHECKING:\n    import ppgen.inference\n",
        "ppgen/ops/__init__.py": "import ppgen.errors\n",
        "ppgen/ops/scan.py": "def f() -> None:\n    from ppgen.models import vae\n",
        "ppgen/nn/__init__.py": "from ..distributions import flow\n",
        "ppgen/distributions/__init__.py": "from ppgen import datasets\nimport matplotlib.pyplot\n",
        "ppgen/distributions/flow.py": "from ppgen.nn import anything\n",
        "ppgen/datasets/__init__.py": "def f() -> None:\n    import sklearn\n",
        "ppgen/models/__init__.py": "import ppgen.errors\nfrom ppgen.models.vae import VAE\n",
        "ppgen/models/vae.py": "import ppgen.models\n",
        "ppgen/metrics/__init__.py": "import ppgen\nimport ppgen.contract\n",
        "ppgen/inference/__init__.py": "assert True\n",
        "ppgen/plots/__init__.py": "import matplotlib\n",
        "ppgen/testing/__init__.py": "import ppgen.models\nassert True\n",
        "ppgen/utils.py": "\n" * 601,
    }
    files["pyproject.toml"] = """[project]
dependencies = ["pyro-ppl>=1.9,<2"]
optional-dependencies.plots = ["matplotlib>=3.8"]
"""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_planted_breaches_are_found(planted: Path) -> None:
    assert sorted(upward_imports(planted)) == [
        "ppgen.contract:3 imports ppgen.inference",
        "ppgen.distributions:1 imports ppgen.datasets",
        "ppgen.metrics:1 imports ppgen",
        "ppgen.nn:1 imports ppgen.distributions.flow",
        "ppgen.ops.scan:2 imports ppgen.models.vae",
    ]
    assert unknown_places(planted) == ["utils"]
    assert import_cycles(planted) == [
        ["ppgen.distributions.flow", "ppgen.nn"],
        ["ppgen.models", "ppgen.models.vae"],
    ]
    assert eager_optional_imports(planted) == ["ppgen.distributions:2 imports matplotlib.pyplot"]
    assert long_files(planted) == ["ppgen/utils.py: 601 lines"]
    assert undeclared_packages(planted, at_once=True) == [
        "ppgen.distributions:2 imports matplotlib",
        "ppgen.plots:1 imports matplotlib",
    ]
    assert undeclared_packages(planted, at_once=False) == ["ppgen.datasets:2 imports sklearn"]
    assert vague_names(planted) == ["ppgen/utils.py"]
    assert assertions(planted) == ["ppgen/inference/__init__.py:1"]


@pytest.mark.parametrize("folder", ["home", "root", "work"])
def test_planted_machine_path_is_found(folder: str) -> None:
    line = f"cache = '/{folder}/somebody/data'"
    assert foreign_text("a.py", f"ok\n{line}\n") == [f"a.py:2: {line}"]


def test_planted_registry_is_found() -> None:
    assert foreign_text("a.txt", "--index" + "-url https://example.org/simple") != []
    assert foreign_text("a.txt", "https://github.com/pyro-ppl/pyro/tree/dev/home/x") == []
