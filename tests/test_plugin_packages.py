"""Third parties' packages bring plugins of every kind without a line of exitkit changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from helpers import cli

from exitkit.plugins import installed
from exitkit.scaffold import EXAMPLES as KINDS

EXAMPLES = Path(__file__).parent.parent / "examples"
NEW = {"policy": "two-best", "recipe": "same_weight", "family": "data2vec-text", "distiller": "Best-Class"}
"""By kind, the name of a new plugin; the family's is a model type of transformers whose layers are BERT's."""
FIXTURES = """
from exitkit import testing

def test_fixtures(tiny_model, tiny_batch, check_policy, check_recipe, check_family, check_distiller):
    assert tiny_model is testing.tiny_model
    assert tiny_batch is testing.tiny_batch
    assert check_policy is testing.check_policy
    assert check_recipe is testing.check_recipe
    assert check_family is testing.check_family
    assert check_distiller is testing.check_distiller
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own that sees the packages of this one."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    parents = [path for path in sys.path if path.endswith("site-packages")]
    # addsitedir also runs the .pth files there, which is how editable installs are found.
    lines = [f"import site; site.addsitedir({path!r})" for path in parents]
    (site / "parent.pth").write_text("\n".join(lines) + "\n")
    return folder / "bin" / "python"


def run(python: Path, *args: str | Path) -> dict:
    done = subprocess.run(
        [python, "-c", "from exitkit.cli import main; main()", *args, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=python.parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def install(python: Path, *sources: Path) -> None:
    """Build packages, all at once, and put them into the environment."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = {"check": True, "capture_output": True}
    wheels = sources[0].parent / "wheels"
    build = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, *sources]
    subprocess.run([*pip, *build], **quiet)
    site = next((python.parent.parent).glob("lib/python*/site-packages"))
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--target", site, *wheels.glob("*.whl")], **quiet)


def origins(listing: dict, kind: str) -> dict[str, str]:
    """Distributions by what they offer of a kind."""
    return {name: plugin["distribution"] for plugin in listing["plugins"] for name in plugin["offers"].get(kind, [])}


def test_margin_is_found_once_it_is_installed_and_works_in_calibrate_and_benchmark(
    python: Path, trained: Path, tmp_path: Path
) -> None:
    assert "margin" not in installed().names("policy")

    install(python, shutil.copytree(EXAMPLES / "exitkit-margin", tmp_path / "source"))

    assert origins(run(python, "plugins"), "policy")["margin"] == "exitkit-margin"
    artifact = tmp_path / "model"
    shutil.copytree(trained, artifact)
    target = ["--policy", "margin", "--currency", "layers"]
    result = run(python, "calibrate", artifact, "--target-speedup", "1.5x", *target)
    assert result["feasible"]
    assert result["policy"] == "margin"
    assert sum(1 for count in result["exit_histogram"] if count) >= 2
    report = run(
        python, "benchmark", artifact, *target, "--speedups", "1.5x", "--set", "rounds=1", "--set", "max_rows=128"
    )
    assert [one["policy"] for one in report["runs"]] == ["margin"]
    assert report["runs"][0]["speedup"]["layers"] > 1.2


def test_new_packages_of_every_kind_are_found_once_installed_and_pass_their_own_tests(
    python: Path, tmp_path: Path
) -> None:
    made = [
        Path(cli("new-plugin", name, "--kind", kind, "--output", tmp_path / kind)["folder"])
        for kind, name in NEW.items()
    ]
    install(python, *made)

    listing = run(python, "plugins")
    assert not [plugin for plugin in listing["plugins"] if plugin["error"]]
    for kind, name in NEW.items():
        assert origins(listing, KINDS[kind][1])[name] == f"exitkit-{name}"

    (tmp_path / "test_fixtures.py").write_text(FIXTURES)
    ernie = EXAMPLES / "exitkit-ernie"  # the others are the new ones but for names; a family is what its name says
    tests = [*(folder / "tests" for folder in (*made, ernie)), tmp_path / "test_fixtures.py"]
    path = os.pathsep.join([str(ernie), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=python.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
