"""Public names, and what was written for exitkit 0.1.0 and imports from where things stood then."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import exitkit
from exitkit import moved
from exitkit.testing import check_family

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs/plugins.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(path for path in (ROOT / "examples").rglob("*") if path.suffix in {".md", ".py"}),
]

OLD_FAMILY = """
from exitkit import hookimpl
from exitkit.encoders.base import Encoder, LayerCost
from exitkit.encoders.bert import BertEncoder


class ErnieEncoder(BertEncoder):
    model_types = frozenset({"ernie"})

    def layer_cost(self, index):
        cost = super().layer_cost(index)
        return LayerCost(cost.key, cost.query, cost.pair)


@hookimpl
def register_encoders(register):
    assert issubclass(ErnieEncoder, Encoder)
    register("ernie", ErnieEncoder)
"""
OLD_RECIPE = """
from dataclasses import dataclass

from exitkit import hookimpl
from exitkit.model import ExitModel
from exitkit.recipe import EveryExit, Group, Passed, Phase, Recipe
from exitkit.stream import Stream


@dataclass(frozen=True)
class Upward(Recipe):
    learning_rate: float = 1e-4

    def phases(self, model: ExitModel, epochs: float):
        parts = model.parts()
        return [Phase("all", epochs, [Group(parts["encoder"], self.learning_rate), Group(parts["heads"], 1e-3)])]

    def between(self, phase, model, index, before: Stream, after: Stream, progress=0.0):
        return Passed(after)

    def losses(self, phase, seen: EveryExit):
        return {f"exit_{exit}": seen.loss(logits) for exit, logits in enumerate(seen.logits, start=1)}


@hookimpl
def register_recipes(register):
    register("upward", Upward)
"""
OLD_METHOD = """
from dataclasses import dataclass

from exitkit import hookimpl
from exitkit.distillation.losses import hidden_loss
from exitkit.distiller import Distiller, Lesson, Reads
from exitkit.recipe import Group, Phase


@dataclass(frozen=True)
class LastStates(Distiller):
    learning_rate: float = 5e-5

    def reads(self, phase, student, teacher):
        return Reads(answers=False, hidden=((student.layers, teacher.layers),))

    def phases(self, model, epochs):
        return [Phase("states", epochs, [Group(model.parts()["encoder"], self.learning_rate)])]

    def losses(self, phase, seen):
        assert isinstance(seen.lesson, Lesson)
        ((own, theirs),) = seen.lesson.hidden
        return {"last": hidden_loss(own, theirs, None)}


@hookimpl
def register_distillers(register):
    register("last-states", LastStates)
"""
OLD_POLICY = """
from dataclasses import dataclass

from exitkit import Decision, ExitPolicy, hookimpl, knob
from exitkit.policy import normalised_entropy
import exitkit.loop


@dataclass(frozen=True)
class Sure(ExitPolicy):
    threshold: float = knob(0.1, low=0.0, high=1.0, off=-1.0)

    def decide(self, seen, state):
        assert exitkit.loop.run
        return Decision(normalised_entropy(seen.logits) < self.threshold), state


@hookimpl
def register_policies(register):
    register("sure", Sure)
"""
PLUGINS = {"old_family": OLD_FAMILY, "old_recipe": OLD_RECIPE, "old_method": OLD_METHOD, "old_policy": OLD_POLICY}
CHECKS = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", DeprecationWarning)
    import exitkit.encoders
    from transformers import AutoConfig
    AutoConfig.for_model("exitkit-bilstm")  # as docs said of 0.1.0: known once this was imported
    from exitkit.plugins import installed
    registry = installed()
from exitkit.testing import check_family, check_recipe
check_family(registry.encoder("ernie"))
check_recipe(registry.recipe("upward"), "upward")
print(json.dumps({
    "offers": {one.name: [one.error, one.offers] for one in registry.plugins if one.name.startswith("old_")},
    "warned": [[one.filename, str(one.message)] for one in caught if "exitkit" in str(one.message)],
}))
"""


@pytest.fixture(scope="module")
def old_plugins(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What became of the distribution `old-rules` 1.0 and of its checks, in a process of its own."""
    folder = tmp_path_factory.mktemp("old")
    about = folder / "old_rules-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: old-rules\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[exitkit]\n" + "".join(f"{name} = {name}\n" for name in PLUGINS))
    for name, code in PLUGINS.items():
        (folder / f"{name}.py").write_text(code)
    paths = os.pathsep.join([str(folder), *(path for path in sys.path if path)])
    done = subprocess.run(
        [sys.executable, "-c", CHECKS], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_plugins_written_for_0_1_0_are_registered_and_keep_their_contracts(old_plugins: Any) -> None:
    assert old_plugins["offers"] == {
        "old_family": [None, {"model type": ["ernie"]}],
        "old_recipe": [None, {"recipe": ["upward"]}],
        "old_method": [None, {"method": ["last-states"]}],
        "old_policy": [None, {"policy": ["sure"]}],
    }


def test_an_old_path_warns_where_it_is_imported_and_names_the_new_one(old_plugins: Any) -> None:
    warned = {
        (Path(file).stem, *re.findall(r"exitkit\.[a-z_.]*[a-z]", text)[:2]) for file, text in old_plugins["warned"]
    }
    assert warned == {
        ("<string>", "exitkit.encoders", "exitkit.engine.encoders"),
        ("old_family", "exitkit.encoders.base", "exitkit.engine.encoders.base"),
        ("old_family", "exitkit.encoders.bert", "exitkit.engine.encoders.bert"),
        ("old_recipe", "exitkit.model", "exitkit.engine.model"),
        ("old_recipe", "exitkit.stream", "exitkit.engine.stream"),
        ("old_policy", "exitkit.loop", "exitkit.engine.loop"),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_old_path_gives_the_module_of_the_new_one() -> None:
    inner = [f"encoders.{file.stem}" for file in (ROOT / "exitkit/engine/encoders").glob("[a-z]*.py")]
    for old, new in {**moved.MOVED, **{name: f"engine.{name}" for name in inner}}.items():
        module = import_module(f"exitkit.{old}")
        assert module is import_module(f"exitkit.{new}")
        assert module.__spec__ is not None
        assert module.__spec__.name == f"exitkit.{new}"


def test_exitkit_itself_uses_no_old_path() -> None:
    old = re.compile(rf"\bexitkit\.(?:{'|'.join(moved.MOVED)})\b(?!\()")
    files = [*(ROOT / "exitkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py"), *PAGES]
    assert [(file.name, found) for file in files for found in old.findall(file.read_text())] == []


@pytest.mark.parametrize("name", ["exitkit.nothing", "exitkit.engine.nothing", "exitkit.encoders.nothing"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_path_that_never_was_is_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        import_module(name)


def test_the_guide_lists_every_public_name_once() -> None:
    table = GUIDE.split("## Names", 1)[1].split("\n## ", 1)[0]
    listed = [name for row in re.findall(r"^\| .*$", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(exitkit.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_and_examples_import_public_names_only(page: Path) -> None:
    for module, names in re.findall(
        r"^\s*from (exitkit(?:\.[\w.]+)?) import ([^\n(]+|\([^)]+\))", page.read_text(), re.M
    ):
        assert module in {"exitkit", "exitkit.testing"}, f"from {module} import {names}"
        for name in re.findall(r"\w+", names):
            exec(f"from {module} import {name}", {})
            assert module != "exitkit" or name in exitkit.__all__, name


def test_the_family_that_the_guide_shows_keeps_its_contract() -> None:
    (code,) = re.findall(r"```python\n((?:(?!```).)*class ErnieEncoder.*?)```", GUIDE, re.DOTALL)
    shown: dict[str, Any] = {"__name__": "guide"}
    exec(code, shown)
    check_family(shown["ErnieEncoder"])
