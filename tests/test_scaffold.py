"""A new plugin's package is its example under another name; names and folders that cannot be used are refused."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import cli
from typer.testing import CliRunner

import exitkit
from exitkit.cli import app
from exitkit.errors import UsageError
from exitkit.scaffold import EXAMPLES, example_folder, new_plugin, renamed, rendered

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("kind", EXAMPLES)
def test_nothing_in_a_new_package_names_the_example(kind: str) -> None:
    example, _ = EXAMPLES[kind]
    files = rendered(example_folder(example), example, "my-own_2")
    assert "exitkit_my_own_2.py" in files
    assert "tests/test_my_own_2.py" in files
    for path, text in files.items():
        assert example not in f"{path} {text}".lower()
        if path.endswith(".py"):
            ast.parse(text)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_example_under_its_own_name_stays_as_it_is(kind: str) -> None:
    example, _ = EXAMPLES[kind]
    folder = example_folder(example)
    files = rendered(folder, example, example)
    assert files == {path: (folder / path).read_text() for path in files}
    tracked = [path for path in folder.rglob("*") if path.is_file() and not {"__pycache__", "build"} & set(path.parts)]
    assert len(files) == len([path for path in tracked if "egg-info" not in str(path)])


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("exitkit-margin", "my-rule", "exitkit-my-rule"),
        ("exitkit_margin.py", "my-rule", "exitkit_my_rule.py"),
        ("test_margin_keeps", "my-rule", "test_my_rule_keeps"),
        ('margin = "margin"', "my-rule", 'my-rule = "my-rule"'),
        ("class Margin(ExitPolicy)", "my-rule", "class MyRule(ExitPolicy)"),
        ("class MarginEncoder", "my_rule", "class MyRuleEncoder"),
        ("margins, Margins, AMargin, marginal", "my-rule", "margins, Margins, AMargin, marginal"),
        ("margin Margin exitkit_margin", "wide-Margin", "wide-Margin WideMargin exitkit_wide_Margin"),
        ("margin", "margin-margin", "margin-margin"),
    ],
)
def test_names_are_exchanged_as_words(text: str, name: str, expected: str) -> None:
    assert renamed(text, "margin", name) == expected


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("-x", "policy", "no plain name"),
        ("a b", "policy", "no plain name"),
        ("../x", "policy", "no plain name"),
        ("v1.5", "policy", "cannot name a package"),
        ("3rd", "policy", "cannot name a package"),
        ("größe", "policy", "cannot name a package"),
        ("mine-", "policy", "cannot name a package"),
        ("none", "policy", "a class of Python"),
        ("state", "policy", "class State, which it imports"),
        ("phase", "recipe", "class Phase, which it imports"),
        ("every-exit", "recipe", "class EveryExit, which it imports"),
        ("entropy", "policy", "registered by plugin 'entropy' of exitkit"),
        ("bert", "family", "registered by plugin 'encoders' of exitkit"),
        ("logits", "distiller", "registered by plugin 'logits' of exitkit"),
        ("policies", "recipe", "module exitkit_policies is installed"),
        ("mine", "kernel", "Known: distiller, family, policy, recipe"),
    ],
)
def test_names_that_cannot_be_used_are_refused(name: str, kind: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        new_plugin(name, kind, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_name_of_another_kind_is_free(tmp_path: Path) -> None:
    assert new_plugin("entropy", "recipe", tmp_path / "new")["name"] == "entropy"


def test_what_stands_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place, reason in (("full", "is not empty"), ("file", "is a file"), ("full/mine.txt/x", "cannot write|a file")):
        with pytest.raises(exitkit.ExitkitError, match=reason):
            new_plugin("mine", "policy", tmp_path / place)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["file", "full", "mine.txt"]


def test_an_empty_folder_is_filled_and_json_says_with_what(tmp_path: Path) -> None:
    made = cli("new-plugin", "mine", "--kind", "recipe", "--output", tmp_path)
    assert made == {
        "folder": str(tmp_path),
        "kind": "recipe",
        "name": "mine",
        "files": sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()),
    }


def test_people_are_told_how_to_install_list_and_test_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new-plugin", "mine", "--kind", "family"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-3:] == [
        "python -m pip install --editable ./exitkit-mine",
        "exitkit families",
        "python -m pytest ./exitkit-mine",
    ]


def test_a_wheel_of_exitkit_has_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    for folder in ("exitkit", "plugins", "examples"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("*.egg-info", "build"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = ["pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True)
    here = {kind: rendered(example_folder(example), example, "new") for kind, (example, _) in EXAMPLES.items()}
    with zipfile.ZipFile(next(tmp_path.glob("exitkit-*.whl"))) as wheel:
        assert not [name for name in wheel.namelist() if "__pycache__" in name]
        wheel.extractall(tmp_path / "site")
    monkeypatch.setattr(exitkit, "__file__", str(tmp_path / "site/exitkit/__init__.py"))
    for kind, (example, _) in EXAMPLES.items():
        assert example_folder(example).is_relative_to(tmp_path)
        assert rendered(example_folder(example), example, "new") == here[kind]
