"""Imports go down only, and help is quick because nothing heavy is imported for it."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "exitkit").rglob("*.py"))
LAYERS = [
    {"errors", "policy", "hookspecs", "notation", "config", "parsing", "progress", "metrics", "layout", "lfs"},
    {"limits", "tagging"},
    {"tasks", "settings", "contract", "stream", "attention", "encoders"},
    {"heads", "trace", "recipe", "distiller", "inside", "runtime", "clock"},
    {"loop", "data"},
    {"model"},
    {"plugins", "replay"},
    {"pretrained"},
    {"cost", "artifact", "testing"},
    {"measure", "memory", "model_card", "cascades"},
    {"training", "distillation", "calibration", "benchmarking", "prediction"},
    {"comparison"},
    {"report", "inspection"},
    {"demo"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> set[str]:
    """exitkit modules that a file imports when it is loaded or run, those for type checkers left out."""
    tree = ast.parse(file.read_text())
    checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0].startswith("exitkit"):
            names = [alias.name for alias in node.names] if node.module == "exitkit" else [node.module.split(".", 1)[1]]
            found |= {name.split(".")[0] for name in names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("exitkit_policies")}
    return found


def package(file: Path) -> str:
    return file.relative_to(ROOT / "exitkit").with_suffix("").parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down_only(file: Path) -> None:
    here = package(file)
    if here == "__init__" or (file.name == "__init__.py" and here == "encoders"):
        return
    for name in imports(file) - {here}:
        assert name in LEVEL, f"{name} has no place in the layers"
        assert LEVEL[name] <= LEVEL[here], f"{file.name} ({here}) imports {name}, which is above it"


def test_modules_of_one_level_import_each_other_in_one_direction_only() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        here = package(file)
        if here in LEVEL:
            found = {name for name in imports(file) - {here} if LEVEL.get(name) == LEVEL[here]}
            graph[here] = graph.get(here, set()) | found
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    "command", ["", "train", "distill", "cascade", "calibrate", "benchmark", "predict", "demo", "inspect", "plugins"]
)
def test_help_waits_for_nothing_heavy(command: str) -> None:
    heavy = ["torch", "transformers", "datasets", "matplotlib", "sklearn", "scipy", "pandas"]
    code = (
        "import sys\nfrom exitkit.cli import app\n"
        f"try:\n    app({[*command.split(), '--help']!r})\nexcept SystemExit:\n    pass\n"
        f"found = [name for name in {heavy!r} if name in sys.modules]\nassert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("file", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda file: file.name)
def test_shipped_policies_use_public_names_only(file: Path) -> None:
    import exitkit

    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("exitkit"):
            assert node.module == "exitkit"
            assert {alias.name for alias in node.names} <= set(exitkit.__all__)


def test_nothing_in_exitkit_names_the_policies_package() -> None:
    assert not [file for file in FILES if "exitkit_policies" in file.read_text()]


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, exitkit.cli; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_what_they_say_also_after_every_module_was_imported() -> None:
    code = (
        "import exitkit, exitkit.demo\n"
        "for name in exitkit.__all__:\n"
        "    assert type(getattr(exitkit, name)).__name__ != 'module', name\n"
        "    assert getattr(exitkit, name) is getattr(exitkit, name), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
