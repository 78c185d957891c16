"""What the documentation says is what the program does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_command_reference_is_what_the_program_says() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert (ROOT / "docs/commands.md").read_text() == reference.text(), "run: python docs/reference.py"


SHOWN = [
    ("margin", ["exitkit_margin.py", "pyproject.toml", "tests/test_margin.py"]),
    ("even", ["exitkit_even.py"]),
    ("ernie", ["exitkit_ernie.py", "tests/test_ernie.py"]),
    ("echo", ["exitkit_echo.py"]),
]


@pytest.mark.parametrize(("example", "file"), [(example, file) for example, files in SHOWN for file in files])
def test_the_plugin_guide_shows_the_example_packages_as_they_are(example: str, file: str) -> None:
    found = re.search(
        rf"<!-- {re.escape(file)} -->\n```\w+\n(.*?)\n```", (ROOT / "docs/plugins.md").read_text(), re.DOTALL
    )
    assert found is not None
    assert found[1] == (ROOT / f"examples/exitkit-{example}" / file).read_text().strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_that_pages_name_exist(page: Path) -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs/commands.md").read_text())) | {
        "--config",
        "--set",
        "--json",
    }
    commands = "train|distill|cascade|calibrate|benchmark|predict|demo"
    for block in re.findall(rf"exitkit (?:{commands})[^`\n]*", page.read_text()):
        for option in re.findall(r"(--[a-z][a-z-]+)", block):
            assert option in known, f"{option} in '{block}'"
