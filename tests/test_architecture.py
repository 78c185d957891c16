"""Imports go down only, and help is quick because nothing heavy is imported for it."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "exitkit").rglob("*.py"))
FLOORS = [
    {"errors", "moved", "progress"},
    {"process"},
    {"containment"},
    {"policy", "configuration"},
    {"tasks"},
    {"engine", "data"},
    {"recipe"},
    {"distiller"},
    {"hookspecs"},
    {"families", "plugins"},
    {"artifacts", "scaffold"},
    {"measuring"},
    {"calibration", "prediction", "training"},
    {"distillation", "testing"},
    {"benchmarking", "comparison", "pytest_plugin"},
    {"report"},
    {"demo"},
    {"cli"},
]
"""Folders of the package, and files at its door, from the ground up. What stands on one floor does not know each other,
so that a file's place says what it may import."""
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def imports(file: Path) -> set[str]:
    """Rooms of exitkit that a file imports, those for type checkers included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "exitkit":
            parts = node.module.split(".")
            found |= {alias.name for alias in node.names} if len(parts) == 1 else {parts[1]}
        if isinstance(node, ast.Import):
            found |= {part[1] for alias in node.names if (part := alias.name.split("."))[0] == "exitkit" and part[1:]}
            found |= {alias.name for alias in node.names if alias.name.startswith("exitkit_policies")}
    return found


def room(file: Path) -> str:
    return file.relative_to(ROOT / "exitkit").with_suffix("").parts[0]


def modules(file: Path) -> set[str]:
    """Modules of exitkit that a file imports, by their dotted names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "exitkit":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                path = ROOT.joinpath(*inner.split("."))
                found.add(inner if path.with_suffix(".py").exists() or path.is_dir() else node.module)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down_only(file: Path) -> None:
    here = room(file)
    if here == "__init__":  # of the package: names are loaded when they are first used
        return
    assert here in FLOOR, f"{here} has no floor"
    for name in imports(file) - {here}:
        assert name in FLOOR, f"{name} has no floor"
        assert FLOOR[name] < FLOOR[here], f"{file.relative_to(ROOT)} imports {name}, which is not below {here}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if name != "exitkit.__init__":
            graph[name.removesuffix(".__init__")] = modules(file) - {name.removesuffix(".__init__")}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_the_page_shows_the_rooms_from_the_ground_up() -> None:
    page = (ROOT / "docs/architecture.md").read_text().split("## The rooms", 1)[1].split("\n## ", 1)[0]
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    shown = [{Path(name).stem for name in re.findall(r"`([\w.]+)/?`", row)} for row in rows]
    assert shown == FLOORS


def test_files_and_folders_that_the_page_names_exist() -> None:
    named = re.findall(r"`([\w./]+(?:\.py|/))`", (ROOT / "docs/architecture.md").read_text())
    assert len(named) > 60
    assert [name for name in named if not (ROOT / "exitkit" / name).exists() and not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name == "__init__.py"], ids=lambda file: file.parent.name
)
def test_every_room_says_what_it_is_for(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "distill",
        "cascade",
        "calibrate",
        "benchmark",
        "predict",
        "demo",
        "inspect",
        "plugins",
        "new-plugin",
    ],
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
