"""A campaign of faults against the commands: kills, cuts, flipped bits, races, full disks, broken plugins, odd inputs.

    python tests/campaign.py --minutes 60 --seed 1
    python tests/campaign.py --only artifact-flipped --trial 17 --seed 1      one trial again, with what it printed

Trials are drawn by seed and kind in turn until the time is up. A trial that breaks a rule is printed with what repeats
it; the table at the end counts outcomes. Exit code 1 if a rule was broken. Not part of the test suite: it runs as long
as it is let.

Commands run in forks of this process, so that a trial costs what its command does and not the import of torch;
`interrupted` starts the real program.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml

LIMIT = 180  # seconds that a command may take
KEPT = "kept.txt"  # the user's own file in a folder that commands write to
BUG = "a bug in exitkit"


class Broken(Exception):
    """A rule that does not hold."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int  # exit code; below zero, the signal that ended it
    out: bytes
    err: str

    @property
    def said(self) -> str:
        """Its last words, on one line."""
        return " ".join(self.err.split())[-600:]


@dataclass(frozen=True)
class Arena:
    """What trials share: nobody changes it, every trial copies what it needs."""

    root: Path
    encoder: Path
    model: Path
    other: Path
    cascade: Path
    lines: Sequence[str]
    answers: bytes  # of `lines` by `model`

    def copy(self, place: Path, what: str = "model") -> Path:
        """A copy of one of the folders, to be changed."""
        target = place / what
        shutil.copytree(self.root / what, target)
        return target


class Running:
    """A command in a fork of this process."""

    def __init__(
        self,
        *args: object,
        stdin: bytes = b"",
        path: Path | None = None,
        size: int | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="exitkit-run-"))
        (self.folder / "in").write_bytes(stdin)
        self.reading, self.writing = os.pipe()  # stderr: no limit on the size of files keeps it from speaking
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 1 << 20)
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._child([str(one) for one in args], path, size, cwd)

        os.close(self.writing)

    def _child(self, args: list[str], path: Path | None, size: int | None, cwd: Path | None) -> None:
        code = 99
        try:
            os.dup2(os.open(self.folder / "in", os.O_RDONLY), 0)
            os.dup2(os.open(self.folder / "out", os.O_WRONLY | os.O_CREAT, 0o600), 1)
            os.dup2(self.writing, 2)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "r" if n == 0 else "w") for n in range(3))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if cwd is not None:
                os.chdir(cwd)
            if path is not None:
                sys.path.insert(0, str(path))
            if size is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            from exitkit.cli import main

            sys.argv = ["exitkit", *args]
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    code = code or 1
            os._exit(code)

    def wait(self, after: float | None = None, number: int = signal.SIGKILL) -> Done:
        """Its end; after so many seconds it is sent a signal."""
        sent = False
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                break
            age = time.monotonic() - self.started
            if after is not None and not sent and age >= after:
                os.kill(self.pid, number)
                sent = True
            if age > LIMIT:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise Broken(f"it runs for more than {LIMIT} s: {self._err()[-400:]!r}")
            time.sleep(0.005)
        done = Done(os.waitstatus_to_exitcode(status), self._out(), self._err())
        shutil.rmtree(self.folder, ignore_errors=True)
        return done

    def _out(self) -> bytes:
        file = self.folder / "out"
        return file.read_bytes() if file.exists() else b""

    def _err(self) -> str:
        with os.fdopen(self.reading, "rb") as err:
            return err.read().decode("utf-8", "replace")


def run(*args: object, **more: Any) -> Done:
    """A command, to its end."""
    return Running(*args, **more).wait()


def must(condition: object, rule: str, done: Done | None = None) -> None:
    """Raise Broken unless a rule holds."""
    if not condition:
        raise Broken(rule if done is None else f"{rule}: exit code {done.code}, {done.said!r}")


def parsed(done: Done) -> Any:
    """The JSON on stdout."""
    try:
        return json.loads(done.out)
    except ValueError:
        raise Broken(f"stdout holds one JSON object, not {done.out[:200]!r}: {done.said!r}") from None


def rows_of(done: Done) -> list[dict[str, Any]]:
    """The answers on stdout."""
    try:
        rows = [json.loads(line) for line in done.out.splitlines()]
    except ValueError:
        raise Broken(f"stdout holds answers only, not {done.out[:200]!r}: {done.said!r}") from None
    must(all(row.keys() >= {"label", "score", "exit"} for row in rows), "stdout holds answers only", done)
    return rows


def no_crash(done: Done) -> None:
    """What holds for every command whatever it is given."""
    must("Traceback (most recent call last)" not in done.err, "no traceback without --debug", done)
    must(BUG not in done.err, "what people bring is never called a bug", done)


def without_leftovers(folder: Path, known: set[str]) -> None:
    """Nothing lies about that was not there before."""
    left = {entry.name for entry in folder.iterdir()} - known
    must(not left, f"nothing is left behind, but {sorted(left)}")


# What is killed


def predict_killed(arena: Arena, place: Path, rng: random.Random) -> str:
    """The old file stands until the new one is whole; a second run does not mind what the first one left."""
    suffix, number = rng.choice([".jsonl", ".csv", ".tsv", ".parquet"]), rng.choice([9, 15, 2])
    out = place / f"answers{suffix}"
    out.write_bytes(b"old")
    command = ("predict", arena.model, "--input", _lines(place, arena.lines), "--output", out, "--batch-size", 8)
    done = Running(*command).wait(rng.uniform(0, 1.5), number)
    whole = done.code == 0
    if not whole:
        must(out.read_bytes() == b"old", "an interrupted predict leaves the old file as it was", done)
    again = run(*command)
    no_crash(again)
    must(again.code == 0, "predict runs again after it was killed", again)
    if suffix == ".jsonl":
        must(out.read_bytes() == arena.answers, "the second run answers as an uninterrupted one")
    without_leftovers(place, {"lines.txt", out.name})
    return f"{suffix}: {'ended first' if whole else 'killed'}"


def train_killed(arena: Arena, place: Path, rng: random.Random) -> str:
    """A resumed training gives the bits of an uninterrupted one; an older model stands until then."""
    kind, number = rng.choice(["joint", "two-stage", "distill"]), rng.choice([9, 15, 2])
    rows = ["--data", "demo:reviews", "--max-train-samples", 120, "--epochs", 1, "--set", "training.save_steps=2"]
    if kind == "distill":
        command = ["distill", "--teacher", arena.model, *rows, "--student-layers", 2]
    else:
        command = ["train", "--model", arena.encoder, *rows, "--recipe", kind]
    straight, out = place / "straight", place / "model"
    done = run(*command, "--output", straight)
    must(done.code == 0, "training works", done)
    older = rng.random() < 0.5
    if older:
        arena.copy(place)
    before = _weights(out) if older else b""
    done = Running(*command, "--output", out, *(["--overwrite"] if older else [])).wait(rng.uniform(0, 6), number)
    if done.code != 0 and older:
        must(_weights(out) == before, "an older model stands until the new one is whole", done)
    if done.code != 0:
        done = run(*command, "--output", out, "--resume", *(["--overwrite"] if older else []))
        no_crash(done)
        must(done.code == 0, "training goes on with --resume", done)
        kind += " resumed"
    must(_weights(out) == _weights(straight), "a resumed training has the bits of an uninterrupted one")
    without_leftovers(place, {"straight", "model"})
    return kind


def calibrate_killed(arena: Arena, place: Path, rng: random.Random) -> str:
    """policy.yaml is the old one or the new one, whole."""
    model = arena.copy(place)
    old = (model / "policy.yaml").read_bytes()
    command = ("calibrate", model, "--target-speedup", 1.5, "--currency", "layers", "--policy", "confidence")
    done = Running(*command).wait(rng.uniform(0, 2.5), rng.choice([9, 15, 2]))
    now = (model / "policy.yaml").read_bytes()
    must(now == old or done.code == 0 or "confidence" in yaml.safe_load(now)["policies"], "policy.yaml is whole", done)
    again = run(*command)
    no_crash(again)
    must(again.code == 0, "calibrate runs again after it was killed", again)
    must(
        {"entropy", "confidence"} <= yaml.safe_load((model / "policy.yaml").read_bytes())["policies"].keys(),
        "both stand",
    )
    without_leftovers(model, {file.name for file in arena.model.iterdir()})
    return "ended first" if done.code == 0 else "killed"


def benchmark_killed(arena: Arena, place: Path, rng: random.Random) -> str:
    """A report is the old one or the new one, whole, and files beside it are the user's."""
    report, rows = place / "report", ["--batch-size", 8, "--set", "rounds=1", "--max-rows", 24]
    command = ("benchmark", arena.model, "--policy", "entropy", "--speedups", "1x", *rows, "--output", report)
    first = run(*command)
    must(first.code == 0, "benchmark works", first)
    (report / KEPT).write_text("mine")
    before = {name: (report / name).read_bytes() for name in ("benchmark.json", "report.md", "index.html")}
    done = Running(*command).wait(rng.uniform(0, 4), rng.choice([9, 15, 2]))
    must((report / KEPT).read_text() == "mine", "a file beside a report is left alone", done)
    now = {name: (report / name).read_bytes() for name in before}
    old = [name for name in before if now[name] == before[name]]
    if done.code != 0 and "benchmark.json" in old:
        must(len(old) == 3, f"pages and figures of a report belong together; old are {old}", done)
    again = run(*command)
    no_crash(again)
    must(again.code == 0, "benchmark runs again after it was killed", again)
    must((report / KEPT).read_text() == "mine", "a file beside a report is left alone", again)
    without_leftovers(place, {"report"})
    return "ended first" if done.code == 0 else "killed"


# What is damaged


def artifact_flipped(arena: Arena, place: Path, rng: random.Random) -> str:
    """Damage to a file that exitkit wrote is named, or does not matter to answers."""
    model = arena.copy(place)
    file = rng.choice(sorted(file for file in model.iterdir() if file.is_file()))
    data = bytearray(file.read_bytes())
    how = rng.choice(["flipped", "cut", "emptied", "filled"])
    if how == "flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "emptied":
        data.clear()
    else:
        at = rng.randrange(len(data))
        data[at : at + 64] = bytes(min(64, len(data) - at))
    file.write_bytes(data)
    return f"{how}: {_answers_or_names(arena, model, file)}"


def artifact_edited(arena: Arena, place: Path, rng: random.Random) -> str:
    """A value of another kind in a file of ours is named with the file, also where nothing is sealed."""
    model = arena.copy(place)
    sealed = rng.random() < 0.3
    if not sealed:
        (model / "manifest.json").unlink(missing_ok=True)
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "exitkit.yaml", "policy.yaml", "metrics.json"]
    file = model / rng.choice(names)
    loaded = yaml.safe_load(file.read_text()) if file.suffix == ".yaml" else json.loads(file.read_text())
    where = _mutate(loaded, rng)
    file.write_text(yaml.safe_dump(loaded) if file.suffix == ".yaml" else json.dumps(loaded))
    try:
        found = _answers_or_names(arena, model, file, strict=sealed)
        done = run("inspect", model, "--json")
        no_crash(done)
    except Broken as error:
        raise Broken(f"{file.name} {where}: {error}") from None
    return f"{'sealed' if sealed else 'unsealed'}: {found}"


def cascade_damaged(arena: Arena, place: Path, rng: random.Random) -> str:
    """A member of a cascade is read as carefully as a model."""
    for what in ("model", "other", "cascade"):
        arena.copy(place, what)
    file = place / rng.choice(["model", "other"]) / rng.choice(["model.safetensors", "exits.safetensors"])
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    done = run("predict", place / "cascade", stdin=b"a fine film\n")
    no_crash(done)
    must(done.code == 1 and file.name in done.err, "a damaged member is named", done)
    return "named"


# What is done twice at once


def raced(arena: Arena, place: Path, rng: random.Random) -> str:
    """Of two commands with one output, each is whole or is refused."""
    what = rng.choice(["predict", "parquet", "train", "calibrate", "benchmark"])
    if what in ("predict", "parquet"):
        out, source = place / ("a.jsonl" if what == "predict" else "a.parquet"), _lines(place, arena.lines)
        commands = [
            ("predict", arena.model, "--input", source, "--output", out, "--batch-size", size) for size in (8, 16)
        ]
    elif what == "train":
        rows = ("--data", "demo:reviews", "--max-train-samples", 60, "--epochs", 1, "--output", place / "m")
        commands = [("train", "--model", arena.encoder, *rows, "--seed", seed) for seed in (1, 2)]
    elif what == "calibrate":
        model = arena.copy(place)
        speed = ("--target-speedup", 1.5, "--currency", "layers")
        commands = [("calibrate", model, *speed, "--policy", policy) for policy in ("confidence", "patience")]
    else:
        rows = ("--batch-size", 8, "--set", "rounds=1", "--max-rows", 24, "--output", place / "report")
        commands = [
            ("benchmark", arena.model, "--policy", name, "--speedups", "1x", *rows) for name in ("entropy", "vote")
        ]
    first = Running(*commands[0])
    time.sleep(rng.uniform(0, 1))
    second = Running(*commands[1])
    ends = [first.wait(), second.wait()]
    for done in ends:
        no_crash(done)
    codes = [done.code for done in ends]
    must(0 in codes, f"one of two succeeds ({codes})", ends[0])
    must(set(codes) <= {0, 1, 2}, f"the other one is refused or whole ({codes})", ends[1])
    if what == "predict":
        must(out.read_bytes() == arena.answers, "what stands is whole", ends[1])
    if what == "parquet":
        import pyarrow.parquet as pq

        must(pq.read_table(out).num_rows == len(arena.lines), "what stands is whole", ends[1])
    if what == "train":
        must(codes.count(0) == 1, "two trainings into one folder without --overwrite cannot both succeed", ends[1])
    if what == "calibrate":
        stored = yaml.safe_load((model / "policy.yaml").read_bytes())["policies"]
        wanted = {name for name, code in zip(("confidence", "patience"), codes, strict=True) if code == 0}
        must(wanted <= stored.keys(), f"what succeeded is stored: {wanted} in {sorted(stored)}")
    return f"{what}: {'both' if codes == [0, 0] else 'one refused'}"


# What has no room


def disk_full(arena: Arena, place: Path, rng: random.Random) -> str:
    """One line that names what could not be written; what stood there stands."""
    what = rng.choice(["predict", "parquet", "calibrate", "benchmark", "train", "cascade"])
    size = rng.choice([0, 100, 4_000, 20_000, 60_000])
    old = b""
    if what in ("predict", "parquet"):
        out = place / ("a.jsonl" if what == "predict" else "a.parquet")
        out.write_bytes(b"old")
        old = b"old"
        command: tuple[object, ...] = ("predict", arena.model, "--input", _lines(place, arena.lines), "--output", out)
    elif what == "calibrate":
        out = arena.copy(place) / "policy.yaml"
        old = out.read_bytes()
        command = ("calibrate", out.parent, "--target-speedup", 1.5, "--currency", "layers", "--policy", "confidence")
    elif what == "benchmark":
        out = place / "report"
        rows = ("--batch-size", 8, "--set", "rounds=1", "--max-rows", 24, "--output", out)
        command = ("benchmark", arena.model, "--policy", "entropy", "--speedups", "1x", *rows)
    elif what == "train":
        out = place / "m"
        rows = ("--data", "demo:reviews", "--max-train-samples", 60, "--epochs", 1)
        command = ("train", "--model", arena.encoder, *rows, "--output", out)
    else:
        out = place / "c"
        command = ("cascade", arena.other, arena.model, "--output", out)
    done = run(*command, size=size, cwd=place)
    no_crash(done)
    if done.code == 0:
        return f"{what}: fits"
    must(done.code in (1, 2), "a full disk is a failure with a message", done)
    must(str(out.name) in done.err, "the message names what could not be written", done)
    if old:
        must(out.read_bytes() == old, "what stood there stands", done)
    if what == "benchmark":
        must(not (out / "index.html").exists() or (out / "benchmark.json").exists(), "no half report", done)
    return f"{what}: refused"


# What others bring

_POLICY = """
import sys, torch
from dataclasses import dataclass
from exitkit import ExitPolicy, hookimpl, knob
{top}
@dataclass(frozen=True)
class P(ExitPolicy):
    '''A policy.'''
    threshold: float = knob(0.5, low=0.0, high=1.0, off=2.0, raising="later")
    {body}
{register}
"""
_DECIDE = """def decide(self, seen, state):
        {0}
        return seen.logits.float().softmax(-1).amax(-1) > self.threshold, state"""
_HOOK = "@hookimpl\ndef register_policies(register):\n    {0}\n    register('odd', P)"
_ENDS = ["raise ValueError('odd')", "sys.exit(0)", "sys.exit(3)", "raise GeneratorExit", "1/0"]
_TAMPERS = ["seen.logits.mul_(-1)", "seen.logits.zero_()", "seen.live.fill_(False)"]
_ANSWERS = [
    "return None",
    "return seen.live, None",
    "return seen.live.float(), state",
    "return seen.live[:0], state",
    "return torch.ones_like(seen.live, device='meta'), state",
    "return seen.live, {'new': seen.live}",
]


def plugin_broken(arena: Arena, place: Path, rng: random.Random) -> str:
    """A broken plugin is named, stops nobody else, and keeps off stdout."""
    kind = rng.choice(["import", "registration", "decide", "tampers", "answers", "start", "conclude", "gate", "prints"])
    end = rng.choice(
        [*_ENDS, *(["raise KeyboardInterrupt", "raise MemoryError"] if kind in ("import", "registration") else [])]
    )
    top, fault, hook, body = "", "pass", "pass", ""
    if kind == "import":
        top = end
    elif kind == "registration":
        hook = end
    elif kind == "prints":
        top, fault, end = "print('noise')", "print('noise')", "prints"
    elif kind in ("tampers", "answers"):
        end = fault = rng.choice(_TAMPERS if kind == "tampers" else _ANSWERS)
    elif kind == "decide":
        fault = end
    elif kind == "start":
        body = f"def start(self, units, device):\n        {end}\n    "
    elif kind == "conclude":
        body = f"def conclude(self, seen, state):\n        {end}\n    "
    else:
        body = f"def gate(self, before, state):\n        {end}\n    "
    path = _distribution(place, _POLICY.format(top=top, body=body + _DECIDE.format(fault), register=_HOOK.format(hook)))
    listed = run("plugins", "--json", path=path)
    no_crash(listed)
    must(
        listed.code == 0 and any(one["name"] == "odd" for one in parsed(listed)["plugins"]),
        "it is listed",
        listed,
    )
    others = run("predict", arena.model, "--policy", "entropy", path=path, stdin=_text(arena.lines))
    must(others.code == 0 and others.out == arena.answers, "other policies answer as ever", others)
    own = run(
        "predict", arena.model, "--policy", "odd", "--set", "policy.threshold=0.99", path=path, stdin=_text(arena.lines)
    )
    must("Traceback" not in own.err and BUG not in own.err, "a broken plugin is no bug of ours", own)
    if kind == "prints":
        must(own.code == 0 and rows_of(own), "stdout holds answers only", own)
    else:
        must(
            own.code in (1, 2) and "odd" in own.err, f"a policy that breaks its contract ({kind}: {end}) is named", own
        )
        must(not own.out.strip(), "nobody takes its answers for good ones", own)
    return kind


def input_odd(arena: Arena, place: Path, rng: random.Random) -> str:
    """Whatever bytes a file holds: answers for its rows, or a message that names the file."""
    suffix = rng.choice(
        [".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".csv.gz", ".CSV", ".xlsx", ""]
    )
    rows = rng.sample(list(arena.lines), 12)
    if ".parquet" in suffix:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": rows}), place / "made.parquet")
        data = (place / "made.parquet").read_bytes()
    elif "json" in suffix or ".ndjson" in suffix:
        data = _text([json.dumps({"text": row}) for row in rows])
    else:
        data = _text(["text", *rows] if "sv" in suffix.lower() else rows)
    data = _spoilt(data, rng)
    if suffix.endswith(".gz"):
        data = gzip.compress(data)
    file = place / f"in{suffix}"
    file.write_bytes(data)
    skips = rng.random() < 0.5
    done = run("predict", arena.model, "--input", file, *(["--on-error", "skip"] if skips else []))
    no_crash(done)
    must(done.code in (0, 1, 2), "a file is read or refused", done)
    rows_of(done)
    if done.code:
        must(len(done.err) < 4000, "a message is no longer than a screen", done)
        must(file.name in done.err, "the message names the file", done)
    return f"{'read' if done.code == 0 else 'refused'}"


def call_odd(arena: Arena, place: Path, rng: random.Random) -> str:
    """Python's door: an answer per text, or exitkit's own error."""
    texts: list[Any] = [
        ["fine", ""],
        ("fine",),
        [],
        ["\ud800"],
        None,
        5,
        b"fine",
        "fine",
        {"text": ["fine"]},
        [None],
        [5],
        [["a", "b"]],
        [("a", "b")],
        Path("fine"),
        ["a" * 100_000],
        ["\x00"],
        iter(["fine", "bad"]),
        {"fine"},
        [["\ud800", "b"]],
    ]
    given, size = rng.choice(texts), rng.choice([32, 1, 0, -1, True, None, 2.5])
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        import exitkit
        from exitkit.errors import ExitkitError

        signal.alarm(60)
        try:
            found = exitkit.load(arena.model).predict(given, batch_size=size)
            said = f"{len(found)} answers" if all("label" in one for one in found) else "no answers"
        except ExitkitError:
            said = "refused"
        except BaseException as error:
            said = f"foreign {type(error).__name__}: {error}"
        os.write(writing, said.encode("utf-8", "replace"))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read().decode()
    _, status = os.waitpid(pid, 0)
    must(status == 0 and said, f"predict({given!r:.60}, batch_size={size}) returns")
    must(not said.startswith("foreign"), f"predict({given!r:.60}, batch_size={size}): {said}")
    return said


def interrupted(arena: Arena, place: Path, rng: random.Random) -> str:
    """Control-C at any moment of the real program ends it with one word."""
    commands = [["--help"], ["plugins"], ["inspect", str(arena.model)], ["predict", str(arena.model)]]
    command = rng.choice(commands)
    program = [sys.executable, "-c", "from exitkit.cli import main; main()", *command]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(rng.uniform(0.1, 8))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(_text(arena.lines), timeout=LIMIT)
    done = Done(process.returncode, out, err.decode("utf-8", "replace"))
    early = done.code == -signal.SIGINT and "exitkit" not in done.err  # before a line of ours had run
    must(early or "Traceback" not in done.err, "Control-C gives no traceback", done)
    must(early or done.code in (0, 130), "Control-C ends with 130", done)
    return f"{command[0]}: {'ended first' if done.code == 0 else 'interrupted'}"


def many_rows(arena: Arena, place: Path, rng: random.Random, rows: int) -> str:
    """Memory does not grow with rows; answers are in order, one a row."""
    peaks = []
    for count in (rows // 20, rows):
        source, out = place / "in.txt", place / "out.jsonl"
        with source.open("w") as file:
            file.writelines(arena.lines[number % len(arena.lines)] + "\n" for number in range(count))
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            from exitkit.configuration.config import PredictConfig
            from exitkit.prediction.predict import predict

            predict(PredictConfig(artifact=arena.model, input=str(source), output=out, batch_size=256))
            os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            peaks.append(int(answer.read() or 0) / 1024)
        os.waitpid(pid, 0)
        whole = arena.answers.splitlines()
        with out.open("rb") as file:
            for number, line in enumerate(file):
                expected, found = json.loads(whole[number % len(whole)]), json.loads(line)
                must(
                    (found["label"], found["exit"]) == (expected["label"], expected["exit"]),
                    f"row {number} is in its place",
                )
        must(number + 1 == count, f"{count} rows have {number + 1} answers")
    must(
        peaks[1] < peaks[0] + 64,
        f"memory does not grow: {peaks[0]:.0f} MB for {rows // 20} rows, {peaks[1]:.0f} for {rows}",
    )
    return f"{rows} rows: {peaks[0]:.0f} MB at {rows // 20} rows, {peaks[1]:.0f} MB at all"


# What trials do


def _lines(place: Path, lines: Sequence[str]) -> Path:
    file = place / "lines.txt"
    file.write_bytes(_text(lines))
    return file


def _text(lines: Sequence[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes() + (folder / "exits.safetensors").read_bytes()


def _answers_or_names(arena: Arena, model: Path, file: Path, strict: bool = True) -> str:
    done = run("predict", model, "--policy", "entropy", stdin=_text(arena.lines))
    no_crash(done)
    if done.code == 0:
        same = done.out == arena.answers
        must(
            same or not strict or file.name == "policy.yaml",
            f"damage in {file.name} changes no answer in silence",
            done,
        )
        return "same answers" if same else "other answers"
    must(done.code in (1, 2), "damage is a failure with a message", done)
    must(file.name in done.err, f"damage in {file.name} is named", done)
    return "named"


def _mutate(loaded: Any, rng: random.Random) -> str:
    """Put something else into one place of a nested value. Returns where and what."""
    places: list[tuple[Any, Any, str]] = []

    def walk(value: Any, path: str) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in list(items)[:40]:
            places.append((value, key, f"{path}/{key}"))
            walk(inner, f"{path}/{key}")

    walk(loaded, "")
    holder, key, path = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
        return f"{path} removed"
    new = rng.choice([None, "x", "", -1, 0, 1.5, 10**9, [], {}, True, ["x"], {"x": 1}, "2024-13-45"])
    holder[key] = new
    return f"{path}: {new!r}"


def _spoilt(data: bytes, rng: random.Random) -> bytes:
    how = rng.choice(
        ["nothing", "byte", "cut", "nul", "utf16", "latin", "quote", "double", "zip", "return", "bom", "long"]
    )
    at = rng.randrange(len(data))
    match how:
        case "byte":
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case "cut":
            return data[:at]
        case "nul":
            return data[:at] + b"\0" + data[at:]
        case "utf16":
            return data.decode("utf-8", "replace").encode("utf-16")
        case "latin":
            return data[:at] + "é".encode("latin-1") + data[at:]
        case "quote":
            return data[:at] + b'"' + data[at:]
        case "double":
            return data + data
        case "zip":
            return b"PK\x03\x04" + data
        case "return":
            return data.replace(b"\n", rng.choice([b"\r", b"\r\n", b"\n\n"]))
        case "bom":
            return b"\xef\xbb\xbf" + data
        case "long":
            return data[:at] + b"x" * 2_000_000 + data[at:]
    return data


def _distribution(place: Path, source: str) -> Path:
    """An installed distribution with one entry point."""
    path = place / "site"
    (path / "odd_thing-1.0.dist-info").mkdir(parents=True)
    (path / "odd_thing-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-thing\nVersion: 1.0\n")
    (path / "odd_thing-1.0.dist-info" / "entry_points.txt").write_text("[exitkit]\nodd = odd_thing\n")
    (path / "odd_thing.py").write_text(source)
    return path


Trial = Callable[[Arena, Path, random.Random], str]
TRIALS: dict[str, Trial] = {
    "predict-killed": predict_killed,
    "train-killed": train_killed,
    "calibrate-killed": calibrate_killed,
    "benchmark-killed": benchmark_killed,
    "artifact-flipped": artifact_flipped,
    "artifact-edited": artifact_edited,
    "cascade-damaged": cascade_damaged,
    "raced": raced,
    "disk-full": disk_full,
    "plugin-broken": plugin_broken,
    "input-odd": input_odd,
    "call-odd": call_odd,
    "interrupted": interrupted,
}


def prepare(root: Path) -> Arena:
    """Train what trials are tried on."""
    from exitkit.data import demo

    demo.build_model(root / "encoder", layers=4, width=32, heads=2)
    rates = ["--set", "recipe.learning_rate=2e-3", "--set", "recipe.head_learning_rate=2e-3"]
    common = ["--data", "demo:reviews", "--epochs", 1, "--max-train-samples", 1000, *rates]
    steps = [
        ("train", "--model", root / "encoder", *common, "--output", root / "model"),
        ("distill", "--teacher", root / "model", *common[:6], "--student-layers", 2, "--output", root / "other"),
        ("cascade", "other", "model", "--output", "cascade"),  # by relative names, so that copies stay together
        ("calibrate", root / "model", "--target-speedup", 1.5, "--currency", "layers", "--policy", "entropy"),
    ]
    for step in steps:
        done = run(*step, cwd=root)
        must(done.code == 0, f"{step[0]} works", done)
    lines = [str(text) for text, _ in zip(demo.reviews()["test"]["text"], range(300), strict=False)]
    done = run("predict", root / "model", stdin=_text(lines))
    must(done.code == 0, "predict works", done)
    return Arena(root, root / "encoder", root / "model", root / "other", root / "cascade", lines, done.out)


def main() -> int:
    """Run trials until the time is up; print counts."""
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=sorted(TRIALS), action="append", help="these kinds; may be given again")
    options.add_argument("--trial", type=int, help="run just this trial of --only")
    options.add_argument("--rows", type=int, default=0, help="at first, answer so many rows and watch memory")
    asked = options.parse_args()
    torch.set_num_threads(1)
    import exitkit.cli
    import exitkit.distillation.distill
    import exitkit.prediction.predict
    import exitkit.report.page
    import exitkit.training.train  # noqa: F401  # loaded once, for all forks

    kinds = asked.only or list(TRIALS)
    counts: dict[str, Counter[str]] = {}
    broken = 0
    with tempfile.TemporaryDirectory(prefix="exitkit-campaign-") as root:
        arena = prepare(Path(root))
        if asked.rows:
            with tempfile.TemporaryDirectory(dir=root) as place:
                try:
                    print("many-rows", many_rows(arena, Path(place), random.Random(0), asked.rows), flush=True)
                except Broken as error:
                    broken += 1
                    print("BROKEN many-rows:", error, flush=True)
        end = time.monotonic() + 60 * asked.minutes
        number = asked.trial or 0
        while time.monotonic() < end:
            for kind in kinds:
                with tempfile.TemporaryDirectory(dir=root) as place:
                    try:
                        outcome = TRIALS[kind](arena, Path(place), random.Random(f"{asked.seed}/{kind}/{number}"))
                    except Broken as error:
                        broken, outcome = broken + 1, "BROKEN"
                        print(f"BROKEN --only {kind} --trial {number} --seed {asked.seed}: {error}", flush=True)
                counts.setdefault(kind, Counter())[outcome] += 1
            number += 1
            if asked.trial is not None:
                break
    for kind, found in counts.items():
        print(f"{kind} ({found.total()}): " + ", ".join(f"{name} {count}" for name, count in sorted(found.items())))
    print(f"{broken} broken of {sum(found.total() for found in counts.values())}, seed {asked.seed}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
