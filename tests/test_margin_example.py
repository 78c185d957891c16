"""A third party's package brings a policy without a line of exitkit changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "examples" / "exitkit-margin"


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


def policies(listing: dict) -> dict[str, str]:
    return {
        name: plugin["distribution"] for plugin in listing["plugins"] for name in plugin["offers"].get("policy", [])
    }


def test_margin_is_found_once_it_is_installed_and_works_in_calibrate_and_benchmark(
    python: Path, trained: Path, tmp_path: Path
) -> None:
    assert "margin" not in policies(run(python, "plugins"))

    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels = tmp_path / "wheels"
    quiet = {"check": True, "capture_output": True}
    build = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source]
    subprocess.run([*pip, *build], **quiet)
    site = next((python.parent.parent).glob("lib/python*/site-packages"))
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--target", site, *wheels.glob("*.whl")], **quiet)

    assert policies(run(python, "plugins"))["margin"] == "exitkit-margin"
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


def test_the_packages_own_tests_pass(python: Path) -> None:
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", PACKAGE / "tests"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
