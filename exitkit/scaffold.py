"""New plugin packages: an example package under another name.

The examples are packages that run and are tested as they are, so they hold no template syntax, and jinja2, which
reports are made with, has nothing to do here: the words that are the example's name are exchanged for the new one.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import exitkit
from exitkit.errors import ExitkitError, UsageError, one_of
from exitkit.plugins import NAME, installed
from exitkit.process import outputs

EXAMPLES = {
    "policy": ("margin", "policy"),
    "recipe": ("even", "recipe"),
    "family": ("ernie", "model type"),
    "distiller": ("echo", "method"),
}
"""By kind of plugin: the name of its example, and what the registry calls the kind."""

FILES = ("*.toml", "*.md", "*.py", "tests/*.py")
PACKAGEABLE = re.compile(r"[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
"""Names that can be part of a distribution's, a module's and a class's name as well."""


def new_plugin(name: str, kind: str, output: Path | None = None) -> dict[str, Any]:
    """Write the example package of a kind under another name.

    Args:
        name: what the plugin is to register; of a family, the `model_type` of its config.
        kind: a key of EXAMPLES.
        output: the folder of the package; None = exitkit-NAME in the working folder.

    Returns:
        folder, kind, name, and files: their paths in the folder.

    Raises:
        UsageError: the name cannot be used or is taken, or the folder holds something.
        ExitkitError: the folder cannot be written.
    """
    if kind not in EXAMPLES:
        raise UsageError(one_of("kind of plugin", kind, EXAMPLES))
    example, registered = EXAMPLES[kind]
    _check_name(name)
    _check_free(name, registered)
    files = rendered(example_folder(example), example, name)
    _check_class(name, files)
    folder = output or Path(f"exitkit-{name}")
    with outputs.naming(folder):
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"'{folder}' is not empty. Name a new folder with --output.")
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"'{folder}' is a file. Name a new folder with --output.")
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            outputs.write_text(folder / path, text)
    return {"folder": str(folder), "kind": kind, "name": name, "files": list(files)}


def example_folder(example: str) -> Path:
    """Where an example package is: inside exitkit where that was installed, beside it in a checkout."""
    package = Path(exitkit.__file__).parent
    for examples in (package / "examples", package.parent / "examples"):
        folder = examples / f"exitkit-{example}"
        if folder.is_dir():
            return folder
    raise ExitkitError(f"the example package exitkit-{example} is not installed with exitkit. Install exitkit anew.")


def rendered(source: Path, example: str, name: str) -> dict[str, str]:
    """The files of an example package, path by path, with another name in paths and contents."""
    found = sorted(file for pattern in FILES for file in source.glob(pattern))
    return {
        renamed(file.relative_to(source).as_posix(), example, name): renamed(
            file.read_text(encoding="utf-8"), example, name
        )
        for file in found
    }


def renamed(text: str, example: str, name: str) -> str:
    """A text with another name than the example's, wherever that is a word or a part of a longer name.

    Beside an underscore it is part of a Python name, where hyphens become underscores; with a capital it is a class.
    """
    cased = class_name(example)

    def other(found: re.Match[str]) -> str:
        if found[0] == cased:
            return class_name(name)
        return name.replace("-", "_") if "_" in (text[found.start() - 1], text[found.end() : found.end() + 1]) else name

    words = rf"(?<![A-Za-z0-9]){example}(?![A-Za-z0-9])|(?<![A-Za-z0-9_]){cased}(?![a-z0-9_])"
    return re.sub(words, other, text)


def class_name(name: str) -> str:
    """`my-rule` as CamelCase: MyRule."""
    return "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", name))


def _check_name(name: str) -> None:
    """Raise UsageError for a name that cannot be registered, or cannot be a package's."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no plain name: letters, digits, '-', '_' and '.', a letter or digit first. Give another."
        )
    if not PACKAGEABLE.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot name a package and a class: they need letters of ASCII, digits, '-' and '_', a letter "
            "first and a letter or digit last. Give another; what the package registers can be changed in it."
        )


def _check_class(name: str, files: dict[str, str]) -> None:
    """Raise UsageError for a name whose class could not be told from something that the package imports."""
    module = f"exitkit_{name.replace('-', '_')}"
    try:
        trees = {path: ast.parse(text) for path, text in files.items() if path.endswith(".py")}
    except SyntaxError:
        raise UsageError(f"'{name}' would be a class of Python itself. Give another name.") from None
    defined = {node.name for node in ast.walk(trees[f"{module}.py"]) if isinstance(node, ast.ClassDef)}
    imported = {
        alias.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != module
        for alias in node.names
    }
    if defined & imported:
        raise UsageError(f"'{name}' would be class {min(defined & imported)}, which it imports. Give another name.")


def _check_free(name: str, kind: str) -> None:
    """Raise UsageError for a name that an installed plugin has registered, or whose package is there already."""
    owners = [str(plugin) for plugin in installed().plugins if name in plugin.offers.get(kind, [])]
    if owners:
        raise UsageError(
            f"{kind} '{name}' is registered by plugin {' and '.join(owners)}; a second one of that name would make "
            "both unusable. Give another, or uninstall that one."
        )
    module = f"exitkit_{name.replace('-', '_')}"
    if importlib.util.find_spec(module) is not None:
        raise UsageError(f"a module {module} is installed, which the new one would hide. Give another name.")
