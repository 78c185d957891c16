"""The program itself, with plugins that print, end it or raise in it, with odd terminals, and with Control-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from exitkit.cli import app
from exitkit.errors import ExitkitError, shortage
from exitkit.process import interrupts, stdout

NOISY = """
import os
print("NOISE at import")
os.system("echo NOISE of a program")

from dataclasses import dataclass
from exitkit import ExitPolicy, hookimpl, knob


@dataclass(frozen=True)
class Noisy(ExitPolicy):
    threshold: float = knob(0.5, low=0.0, high=1.0, off=-1.0)

    def decide(self, seen, state):
        print("NOISE in decide")
        os.write(1, b"NOISE of a C library\\n")
        return seen.live, state


@dataclass(frozen=True)
class Ends(Noisy):
    def decide(self, seen, state):
        raise SystemExit(0)


@dataclass(frozen=True)
class Leaves(Noisy):
    def decide(self, seen, state):
        raise GeneratorExit


@hookimpl
def register_policies(register):
    print("NOISE when it registers")
    register("noisy", Noisy)
    register("ends", Ends)
    register("leaves", Leaves)
"""


@pytest.fixture(scope="session")
def installed_plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the distributions `noisy-rules` and `rude-rules`, to be put on the path."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "noisy_rules.py").write_text(NOISY)
    (folder / "rude_rules.py").write_text("raise GeneratorExit\n")
    for name in ("noisy", "rude"):
        about = folder / f"{name}_rules-1.2.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-rules\nVersion: 1.2\n")
        (about / "entry_points.txt").write_text(f"[exitkit]\n{name} = {name}_rules\n")
    return folder


def program(*args: object, path: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(one) for one in [path, *sys.path] if one])
    return subprocess.run(
        [sys.executable, "-c", "from exitkit.cli import main; main()", *(str(arg) for arg in args)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **env},
        input="the film was good\nthe plot was not good\n",
        encoding="utf-8",
        errors="replace",
    )


@pytest.fixture
def with_plugins(installed_plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two distributions, in this process."""
    monkeypatch.syspath_prepend(installed_plugins)
    for name in ("noisy_rules", "rude_rules"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], input="the film was good\nthe plot was not good\n")


def test_stdout_of_the_program_is_its_answers_only(installed_plugins: Path, trained: Path) -> None:
    done = program("predict", trained, "--policy", "noisy", path=installed_plugins)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["exit"] for line in done.stdout.splitlines()] == [1, 1]
    for noise in ("at import", "of a program", "when it registers", "in decide", "of a C library"):
        assert f"NOISE {noise}" in done.stderr


def test_listings_are_whole_json_and_broken_plugins_end_nothing(with_plugins: None) -> None:
    done = invoke("plugins", "--json")
    assert done.exit_code == 0, done.output
    found = {plugin["name"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    assert found["noisy"]["offers"] == {"policy": ["noisy", "ends", "leaves"]}
    assert found["rude"]["error"] == "GeneratorExit"
    assert "NOISE at import" in done.stderr


@pytest.mark.parametrize(("policy", "raised"), [("ends", "SystemExit: 0"), ("leaves", "GeneratorExit")])
def test_a_policy_cannot_end_the_program(policy: str, raised: str, with_plugins: None, trained: Path) -> None:
    done = invoke("predict", trained, "--policy", policy)
    assert (done.exit_code, done.stdout) == (1, "")
    said = f"policy '{policy}' of noisy-rules 1.2 breaks its contract: decide failed at exit 1: {raised}."
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [["train", "--epochs", "1", "--json"], ["--help"]])
def test_a_full_disk_behind_stdout_is_one_line(args: list[str]) -> None:
    code = "from exitkit.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code, *args], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_help_is_shown_on_a_terminal_that_lacks_some_letters(encoding: str) -> None:
    assert "Usage" in program("train", "--help", PYTHONIOENCODING=encoding).stdout


def test_paths_may_have_letters_that_the_locale_lacks() -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = program("train", "--config", "Übung 数据.yaml", "--json", **ascii_only)
    assert "Übung 数据.yaml" in json.loads(done.stdout)["error"], "not as surrogates, which libraries cannot open"


def test_writes_to_stdout_that_fail_say_so() -> None:
    with open("/dev/full", "w") as full, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(ExitkitError, match="cannot write to stdout: the disk is full"):
            stdout.write(b"x")
        patch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_control_c_while_the_program_starts_is_one_word() -> None:
    code = (
        "import os, signal, sys\n"
        "class Presses:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Presses())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from exitkit.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "plugins", "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
    assert json.loads(done.stdout) == {"error": "interrupted"}


def test_control_c_in_a_destructor_is_not_lost() -> None:
    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupts.heard():
            Swallows()
            with pytest.raises(KeyboardInterrupt):
                threading.Event().wait(20)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_keyboard_interrupt_without_control_c_is_nobodys_but_the_plugins() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert interrupts.by_user(), "nobody listens, so it may be"
        with interrupts.heard():
            assert not interrupts.by_user()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert interrupts.by_user()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory; use less"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:98] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (RuntimeError("can't start new thread"), "no more threads"),
        (RuntimeError("mat1 and mat2"), None),
        (ExitkitError("model.safetensors cannot be read"), None),
    ],
)
def test_memory_that_runs_out_is_told_from_other_failures(error: Exception, said: str | None) -> None:
    found = shortage(error, "use less")
    assert (found is None) if said is None else (said in str(found))
    wrapped = ExitkitError("model.safetensors cannot be read")
    wrapped.__cause__ = error
    assert shortage(wrapped, "use less") == found, "what failed is not to blame"


def test_torchs_own_error_counts_too() -> None:
    import torch

    assert shortage(torch.OutOfMemoryError("x"), "use less") == "out of memory; use less"


def test_loading_in_many_threads_leaves_transformers_as_it_was_and_quiet_meanwhile() -> None:
    from transformers.utils import logging as theirs

    from exitkit.progress import quiet

    before = (theirs.get_verbosity(), theirs.is_progress_bar_enabled())
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(20)
    with quiet():
        leave.set()
        thread.join()
        assert not theirs.is_progress_bar_enabled(), "the first thread to go does not turn bars on for the second"
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before


def test_an_error_that_a_library_makes_of_control_c_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def halfway(*_: object, **__: object) -> None:
        with interrupts.heard():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                raise ModuleNotFoundError("Could not import module") from error

    monkeypatch.setattr("exitkit.artifacts.inspection.inspect", halfway)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"])
    assert done.exit_code == 130
    assert json.loads(done.stdout) == {"error": "interrupted"}
    monkeypatch.setattr(interrupts, "_received", False)
