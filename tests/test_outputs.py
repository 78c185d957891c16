"""What commands write: one writer at a time, nothing half, nothing of others."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from exitkit.artifacts import artifact
from exitkit.artifacts import cascade as cascades
from exitkit.artifacts.artifact import publish
from exitkit.calibration import calibrate as calibration
from exitkit.calibration.memory import Memory
from exitkit.cli import app, command
from exitkit.comparison import compare as comparison
from exitkit.configuration.config import TrainConfig
from exitkit.distillation.store import Store
from exitkit.errors import ExitkitError, UsageError
from exitkit.prediction.writing import open_writer
from exitkit.process import outputs
from exitkit.report import folder as reports
from exitkit.training.partial import RUN, TRAINING, check_output, open_partial, same_run

ROWS = {"source": "x", "split": "train", "revision": None, "columns": {}, "indices": None, "rows": 1, "hash": "x"}
POINT = {"settings": {}, "speedup": {"layers": 1.5}, "score": 0.9}
ENTRY = {
    **{"chosen": {**POINT, "target_speedup": 1.5}, "frontier": [POINT], "currency": "layers", "batch_size": 1},
    **{"precision": "fp32", "threads": 1, "calibration": ROWS},
}
MINE = "mine\n"


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def elsewhere(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs some code, says "ready" and waits; it is killed at the end."""
    start = "import sys, time\nfrom pathlib import Path\nfrom exitkit.process import outputs\n"
    end = "\nprint('ready', flush=True)\ntime.sleep(600)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", start + code + end, *map(str, args)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


HOLDS = "held = outputs.lock(Path(sys.argv[1]), sys.argv[2])"
SHARES = "held = outputs.lock(Path(sys.argv[1]), sys.argv[2], shared=True)"


# --- one writer


def test_an_output_has_one_holder_and_others_are_told_who_and_since_when(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with elsewhere(HOLDS, place, "train") as other:
        said = rf"out is in use by 'exitkit train' \(process {other.pid} on .*, since \d{{4}}-\d\d-\d\d .*\)\. Wait"
        with pytest.raises(ExitkitError, match=said):
            outputs.lock(place, "train")
        with pytest.raises(ExitkitError, match=said):
            outputs.lock(place, "calibrate", shared=True)
        with outputs.held(tmp_path / "another", "train"):
            pass
    with outputs.held(place, "train"):  # its holder was killed: nobody has to remove anything
        assert [path.name for path in tmp_path.iterdir()] == [".out.exitkit-lock"]
    assert not list(tmp_path.iterdir())


def test_those_who_share_an_output_keep_away_who_would_replace_it(tmp_path: Path) -> None:
    place = tmp_path / "model"
    with elsewhere(SHARES, place, "calibrate") as other:
        with outputs.held(place, "calibrate", shared=True):
            pass
        with pytest.raises(ExitkitError, match=rf"'exitkit calibrate' \(process {other.pid} "):
            outputs.lock(place, "train")
    with outputs.held(place, "train"):
        pass


def test_threads_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    place, rounds, inside, most = tmp_path / "out", 40, [0], [0]

    def work() -> None:
        for _ in range(rounds):
            with outputs.held(place, "calibrate", patience=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not list(tmp_path.iterdir())


def test_where_files_cannot_be_locked_that_is_said_once_and_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    outputs._tell_of_no_locks.cache_clear()
    with caplog.at_level(logging.WARNING, "exitkit"):
        for _ in range(2):
            with outputs.held(tmp_path / "out", "train"):
                outputs.write_text(tmp_path / "a", MINE)
    assert caplog.text.count("files cannot be locked here") == 1
    assert files(tmp_path) == {"a": MINE}


def test_a_lock_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text(MINE)
    (tmp_path / ".out.exitkit-lock").symlink_to("precious")
    with pytest.raises(UsageError, match="out: cannot write there"):
        outputs.lock(tmp_path / "out", "train")
    assert (tmp_path / "precious").read_text() == MINE


def test_folders_that_were_made_for_a_lock_go_with_it_if_nothing_came_of_it(tmp_path: Path) -> None:
    with outputs.held(tmp_path / "a/b/out", "train"):
        assert (tmp_path / "a/b").is_dir()
    assert not list(tmp_path.iterdir())
    with outputs.held(tmp_path / "a/b/out", "train"):
        (tmp_path / "a/b/out").mkdir()
    assert (tmp_path / "a/b/out").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write there"):
        outputs.lock(tmp_path / "file/out", "train")


def _train(place: Path) -> None:
    import exitkit

    exitkit.train(model="nowhere", data="demo:reviews", output=place)


def _distill(place: Path) -> None:
    import exitkit

    exitkit.distill(teacher="nowhere", data="demo:reviews", output=place)


def _compare(place: Path) -> None:
    import exitkit

    exitkit.compare(model="nowhere", data="demo:reviews", output=place)


def _calibrate(place: Path) -> None:
    import exitkit

    exitkit.calibrate(place, target_speedup=2)


def _cascade(place: Path) -> None:
    cascades.cascade("nowhere", "nowhere either", output=place)


def _benchmark(place: Path) -> None:
    from exitkit.cli.benchmark import run
    from exitkit.configuration.config import BenchmarkConfig

    run(BenchmarkConfig(artifacts=[place.with_name("nowhere")], output=place))


def _demo(place: Path) -> None:
    from exitkit.configuration.config import DemoConfig
    from exitkit.demo import demo

    demo(DemoConfig(output=place.parent))


@pytest.mark.parametrize("work", [_train, _distill, _compare, _calibrate, _cascade, _benchmark, _demo])
def test_every_command_refuses_at_once_what_another_one_writes(work: Callable[[Path], None], tmp_path: Path) -> None:
    place = tmp_path / "report"
    with (
        outputs.held(place, "train"),
        pytest.raises(ExitkitError, match=rf"report is in use by 'exitkit train' \(process {os.getpid()} "),
    ):
        work(place)
    assert not list(tmp_path.iterdir())


# --- nothing half


def test_a_text_is_replaced_in_one_step_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    for text in ("old", "neu ü\n"):
        outputs.write_text(file, text)
        assert files(tmp_path) == {"policy.yaml": text}
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_writers_of_one_file_never_meet_and_readers_see_whole_files(tmp_path: Path) -> None:
    file, failed = tmp_path / "policy.yaml", []
    outputs.write_text(file, "0" * 5000)

    def work(digit: str) -> None:
        try:
            for _ in range(60):
                outputs.write_text(file, digit * 5000)
                seen = file.read_text()
                assert seen == seen[0] * 5000
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(digit,)) for digit in "123"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [path.name for path in tmp_path.iterdir()] == ["policy.yaml"]


def test_a_full_disk_is_named_and_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(MINE)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExitkitError, match=rf"cannot write '{file}': the disk is full\."):
        outputs.write_text(file, "new")
    assert files(tmp_path) == {"policy.yaml": MINE}


def test_a_link_inside_a_folder_is_replaced_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text(MINE)
    (tmp_path / "policy.yaml").symlink_to("precious")
    outputs.write_text(tmp_path / "policy.yaml", "new")
    assert files(tmp_path) == {"policy.yaml": "new", "precious": MINE}


def test_what_a_killed_writer_left_is_removed_by_the_next_one_and_nothing_else_is(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("old")
    theirs = tmp_path / ".policy.yaml.backup01.partial"
    theirs.write_text(MINE)
    grows = "g = outputs.growing(Path(sys.argv[1])); out = g.__enter__(); out.write(b'half'); out.flush()"
    with elsewhere(grows, file) as other:
        assert len(list(tmp_path.iterdir())) == 3
        outputs.write_text(file, "new")
        assert len(list(tmp_path.iterdir())) == 3, "it is still being written"
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert file.read_text() == "new"
    outputs.write_text(file, "newer")
    assert files(tmp_path) == {"policy.yaml": "newer", theirs.name: MINE}


def test_a_search_names_its_file_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory({"search": 1}, tmp_path / "search.jsonl", lambda key, value: [key, value], tuple)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ExitkitError, match=r"search\.jsonl': the disk is full"):
        memory.recall("a", lambda: 1)


def test_a_teachers_outputs_are_whole_or_not_there(tmp_path: Path) -> None:
    import torch

    store = Store(tmp_path / "cache/teacher.f32", [2, 3], 1000)

    def dies(rows: list[int]) -> list[torch.Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fill(dies)
    assert not list((tmp_path / "cache").iterdir())
    store.fill(lambda rows: [torch.full((store.places[row][1] - store.places[row][0],), float(row)) for row in rows])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["teacher.f32"]
    record = store.read(1)
    assert record is not None
    assert record.tolist() == [1.0] * 3


# --- nothing of others: folders that are replaced


def own(folder: Path) -> set[str]:
    return {"model", "part/model"}


def a_folder(place: Path, text: str, **more: str) -> Path:
    (place / "part").mkdir(parents=True)
    for name in ("model", "part/model"):
        (place / name).write_text(text)
    for name, value in more.items():
        (place / name.replace("_", "/", 1)).parent.mkdir(exist_ok=True)
        (place / name.replace("_", "/", 1)).write_text(value)
    return place


def test_a_replaced_folder_keeps_what_is_not_exitkits(tmp_path: Path) -> None:
    folder, new = (
        a_folder(tmp_path / "f", "old", notes="n", part_mine="m", deep_mine="d"),
        a_folder(tmp_path / "g", "new"),
    )
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("deep")
    outputs.replace_folder(new, folder, own)
    assert files(folder) == {"model": "new", "part/model": "new", "notes": "n", "part/mine": "m", "deep/mine": "d"}
    assert (folder / "empty").is_dir()
    assert os.readlink(folder / "link") == "deep"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_file_of_somebody_that_the_new_folder_would_replace_stops_it(tmp_path: Path) -> None:
    folder, new = a_folder(tmp_path / "f", "old", notes="n"), a_folder(tmp_path / "g", "new", notes="other")
    with pytest.raises(ExitkitError, match=r"f/notes is not exitkit's, and .*g/notes would take its place"):
        outputs.replace_folder(new, folder, own)
    assert files(folder)["model"] == "old"
    assert files(new)["model"] == "new"


@pytest.mark.parametrize("at", range(1, 5))
def test_a_process_killed_while_it_replaces_a_folder_loses_nothing(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    calls = 0

    def dying(right: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return right(*args, **more)

        return step

    folder, new = a_folder(tmp_path / "f", "old", notes="n"), a_folder(tmp_path / "g", "new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", dying(os.link))
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(outputs.shutil, "rmtree", dying(outputs.shutil.rmtree))
        with pytest.raises(Killed):
            outputs.replace_folder(new, folder, own)
    outputs.settle(folder, own)
    whole = files(folder)
    assert whole in (
        {"model": "old", "part/model": "old", "notes": "n"},
        {"model": "new", "part/model": "new", "notes": "n"},
    )
    assert (whole["model"] == "new") == (at == 4)
    assert {path.name for path in tmp_path.iterdir()} == ({"f"} if at == 4 else {"f", "g"})


def test_a_folder_that_cannot_be_replaced_stands_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, new = a_folder(tmp_path / "f", "old"), a_folder(tmp_path / "g", "new")
    right = os.replace
    monkeypatch.setattr(os, "replace", lambda one, other: full() if one == new else right(one, other))
    with pytest.raises(OSError, match="No space"):
        outputs.replace_folder(new, folder, own)
    assert files(folder) == {"model": "old", "part/model": "old"}
    assert files(new) == {"model": "new", "part/model": "new"}


def test_a_link_that_a_person_names_is_followed_and_one_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("gone")
    assert outputs.target(tmp_path / "link") == (tmp_path / "real").resolve()
    assert outputs.target(tmp_path / "real") == tmp_path / "real"
    with pytest.raises(UsageError, match=r"dangling is a link to gone, which is not there\. Remove the link"):
        outputs.target(tmp_path / "dangling")


def test_the_working_folder_and_those_above_it_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", "..", str(tmp_path)):
        with pytest.raises(UsageError, match="Name a folder in it"):
            outputs.target(Path(name), whole_folder=True)
    assert outputs.target(Path("model"), whole_folder=True) == Path("model")


# --- train and distill


def a_model(folder: Path, name: str = "model") -> Path:
    folder.mkdir(exist_ok=True)
    for file in ("config.json", "model.safetensors", "exits.safetensors", "exitkit.yaml", "policy.yaml"):
        (folder / file).write_text(name)
    (folder / "README.md").write_text(f"{artifact.MARK}\n{name}")
    return folder


def test_a_model_that_came_meanwhile_is_not_replaced_without_being_asked(tmp_path: Path) -> None:
    partial, folder = a_model(tmp_path / "m.partial", "new"), a_model(tmp_path / "m", "theirs")
    with pytest.raises(ExitkitError, match=r"m holds a model that was not there before.*complete in .*m\.partial"):
        publish(partial, folder, overwrite=False)
    assert files(folder)["config.json"] == "theirs"
    assert files(partial)["config.json"] == "new"


def test_an_overwritten_model_leaves_its_own_files_and_keeps_those_of_people(tmp_path: Path) -> None:
    partial, folder = a_model(tmp_path / "m.partial", "new"), a_model(tmp_path / "m", "old")
    (partial / "policy.yaml").unlink()
    (folder / "search-skip-gate.jsonl").write_text("old")
    (folder / "NOTES.txt").write_text(MINE)
    (folder / "mydata").mkdir()
    (folder / "mydata/precious.csv").write_text(MINE)
    publish(partial, folder, overwrite=True)
    found = files(folder)
    assert {name for name, text in found.items() if text == MINE} == {"NOTES.txt", "mydata/precious.csv"}
    assert "policy.yaml" not in found
    assert "search-skip-gate.jsonl" not in found
    assert artifact.MARK in found["README.md"]
    assert "old" not in "".join(found.values())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_somebodys_own_model_card_survives_an_overwritten_model(tmp_path: Path) -> None:
    partial, folder = a_model(tmp_path / "m.partial", "new"), a_model(tmp_path / "m", "old")
    (folder / "README.md").write_text(MINE)
    publish(partial, folder, overwrite=True)
    assert files(folder)["README.md"] == MINE
    assert files(folder)["config.json"] == "new"


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)], ids=["plain", "resume", "overwrite"])
@pytest.mark.parametrize(
    "content",
    [
        {"training/labels.csv": "x", "thesis.tex": "y"},
        {"training/run.json": '{"what": "my own run"}'},
        {"training/run.json": "[]"},
        {"thesis.tex": "y"},
    ],
    ids=["a training folder", "another run.json", "a list", "no training folder"],
)
def test_a_folder_called_output_partial_that_is_not_ours_is_refused(
    content: dict[str, str], flags: tuple[bool, bool], tmp_path: Path
) -> None:
    partial = tmp_path / "proj.partial"
    for name, text in content.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(text)
    with pytest.raises(UsageError, match=r"proj\.partial, where the model is to grow, .* is not an interrupted run"):
        check_output(tmp_path / "proj", *flags)
    assert files(partial) == content


def test_an_interrupted_run_is_known_by_what_it_wrote_down(tmp_path: Path) -> None:
    settings = TrainConfig(model="m", data="demo:reviews", output=tmp_path / "proj")
    partial = check_output(tmp_path / "proj", False, False)
    open_partial(partial, False)
    assert check_output(tmp_path / "proj", False, False) == partial, "killed before it wrote anything"
    (partial / TRAINING / ".run.json.0123abcd.partial").write_text("{")
    assert check_output(tmp_path / "proj", False, False) == partial, "killed while it wrote"
    same_run(partial, settings, {"training rows": "abc"})
    assert json.loads((partial / TRAINING / RUN).read_text())["training rows"] == "abc"
    assert check_output(tmp_path / "proj", False, False) == partial
    (partial / TRAINING / "exits").mkdir()
    (partial / TRAINING / "exits/model.safetensors").touch()
    with pytest.raises(UsageError, match=r"holds an interrupted run\. Add --resume"):
        check_output(tmp_path / "proj", False, False)
    for flags in ((True, False), (False, True)):
        assert check_output(tmp_path / "proj", *flags) == partial


def test_a_link_called_output_partial_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "proj.partial").symlink_to("else")
    with pytest.raises(UsageError, match="not an interrupted run"):
        check_output(tmp_path / "proj", False, True)


# --- calibrate, cascade, compare


def test_calibrations_at_once_keep_what_each_has_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads what is there when it stores, and no other one stores meanwhile."""
    reading, stored = artifact.read_policies, threading.Event()

    def slow(folder: Path) -> dict[str, object]:
        found = reading(folder)
        stored.wait(0.2)  # another one has time to store, if nothing holds it back
        return found

    monkeypatch.setattr(artifact, "read_policies", slow)
    threads = [
        threading.Thread(target=calibration._store, args=(tmp_path, name, ENTRY))
        for name in ("entropy", "patience", "confidence")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reading(tmp_path)["policies"].keys() == {"entropy", "patience", "confidence"}
    assert [path.name for path in tmp_path.iterdir()] == ["policy.yaml"]


def test_calibrate_keeps_the_old_policies_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration._store(tmp_path, "entropy", ENTRY)
    before = files(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExitkitError, match=r"policy\.yaml': the disk is full"):
        calibration._store(tmp_path, "patience", ENTRY)
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, how: False)
    monkeypatch.setattr(calibration, "open_artifact", lambda *_: None)
    with pytest.raises(UsageError, match=r"cannot write there, and policy\.yaml belongs there"):
        calibration.calibrate(tmp_path, target_speedup=2)


def test_a_cascade_on_a_full_disk_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    cascades.write(folder, ["/a", "/b"])
    (folder / "policy.yaml").write_text("calibrated")
    before = files(folder)
    monkeypatch.setattr(cascades, "joined", lambda *_: None)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExitkitError, match=r"cascade\.yaml': the disk is full"):
        cascades.cascade("/c", "/d", output=folder, overwrite=True)
    assert files(folder) == before


@pytest.mark.parametrize("text", ["{", "[]", '{"speed": 3}'])
def test_a_run_json_of_somebody_is_not_a_comparison(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"holds a run\.json that is not a comparison's"):
        comparison._run_of(tmp_path / "run.json")


# --- benchmark


RESULT: dict[str, object] = {"runs": [], "baselines": [], "environment": {}}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with the files that they have, without drawing any."""
    names = {"index.html": b"page", "report.md": b"new", "pictures/flops.png": b"new"}

    def content(result: dict[str, object]) -> dict[str, bytes]:
        manifest = json.dumps({"format": 1, "files": [*names, "benchmark.json"]}).encode()
        return {**names, "benchmark.json": json.dumps(result).encode(), "report.json": manifest}

    monkeypatch.setattr(reports, "_content", content)


@pytest.mark.parametrize(
    "content",
    [
        {"pictures/holiday.png": "x", "index.html": MINE, "report.md": "notes"},
        {"benchmark.json": '{"mine": 1}'},
        {"benchmark.json": "no JSON", "a": "b"},
        {".hidden": "x"},
    ],
)
def test_a_folder_that_is_no_report_is_refused_before_anything_is_timed(
    content: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model-report"
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr("exitkit.benchmarking.benchmark.benchmark", full)
    for more in ([], ["--output", str(folder)]):  # the default folder, too
        result = CliRunner().invoke(app, ["benchmark", str(tmp_path / "model"), "--json", *more])
        assert result.exit_code == 2, result.output
        assert "holds files, and no report" in json.loads(result.stdout)["error"]
    assert files(folder) == content
    with pytest.raises(UsageError, match="no report"):
        reports.write(folder, RESULT)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("manifest", [True, False], ids=["with a manifest", "of 0.1.0"])
def test_a_report_replaces_its_own_files_and_no_other(manifest: bool, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    old = ["index.html", "report.md", "pictures/time-batch-8-2.png", "pictures/exits.png"]
    old += ["pictures/parts-1-entropy-1_5x.png", "pictures/milliseconds-batch-32.png"]
    mine = {
        "notes.txt": MINE,
        "pictures/holiday.png": MINE,
        "pictures/exits-mine.png": MINE,
        "sub/benchmark.json": MINE,
    }
    for name, text in {**dict.fromkeys(old, "old"), **mine}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "benchmark.json").write_text(json.dumps(RESULT))
    if manifest:
        (folder / "report.json").write_text(json.dumps({"format": 1, "files": [*old, "benchmark.json", "../x"]}))
    (tmp_path / "x").write_text(MINE)
    reports.write(folder, RESULT)
    found = files(folder)
    assert {name: text for name, text in found.items() if text == MINE} == mine
    assert "old" not in found.values()
    assert json.loads(found["benchmark.json"]) == RESULT
    assert set(json.loads(found["report.json"])["files"]) == found.keys() - mine.keys() - {"report.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "x"]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("name", ["index.html", "flops.png", "benchmark.json"])
def test_a_report_that_does_not_fit_on_the_disk_leaves_the_one_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "report"
    reports.write(folder, RESULT)
    before, right = files(folder), Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: full() if path.name == name else right(path, data))
    with pytest.raises(ExitkitError, match=rf"cannot write '{folder}.*{name}': the disk is full"):
        reports.write(folder, {**RESULT, "environment": {"new": 1}})
    assert files(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.usefixtures("drawn")
def test_what_a_killed_benchmark_left_goes_with_the_next_report(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    (tmp_path / ".report.0123abcd.partial/pictures").mkdir(parents=True)
    reports.write(folder, RESULT)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


# --- predict


ROW = {"label": "pos", "score": 0.5, "exit": 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_a_second_predict_is_refused_and_the_first_one_keeps_every_row(name: str, tmp_path: Path) -> None:
    target = tmp_path / name
    with open_writer(target) as first:
        first.write([ROW] * 5)
        with pytest.raises(ExitkitError, match=rf"{name} is in use by 'exitkit predict'"):
            open_writer(target)
        first.write([ROW])
    if name == "a.jsonl":
        assert [json.loads(line) for line in target.read_text().splitlines()] == [ROW] * 6
    with open_writer(target) as second:
        second.write([ROW])
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_partial_file_of_an_earlier_run_is_written_anew_and_somebodys_own_is_refused(
    name: str, tmp_path: Path
) -> None:
    target, partial = tmp_path / name, tmp_path / f"{name}.partial"
    partial.write_text(MINE)
    with pytest.raises(UsageError, match=rf"{name}\.partial', where answers are to grow, .* give another --output"):
        open_writer(target)
    assert files(tmp_path) == {partial.name: MINE}
    partial.unlink()

    def fails() -> None:
        with open_writer(target) as writer:
            writer.write([ROW])
            raise RuntimeError("a bad line")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fails()
        assert partial.stat().st_size > 0
    partial.unlink()
    (tmp_path / "other").write_text(MINE)
    (tmp_path / "other").rename(partial)
    with pytest.raises(UsageError, match="is not of an earlier run"):
        open_writer(target)
    partial.unlink()
    with open_writer(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_predict_killed_outright_blocks_nobody_and_its_partial_file_is_known(tmp_path: Path) -> None:
    target = tmp_path / "a.jsonl"
    target.write_text("the run before")
    writes = (
        "from exitkit.prediction.writing import open_writer\n"
        "writer = open_writer(Path(sys.argv[1])); writer.write([{'label': 'pos'}])"
    )
    with elsewhere(writes, target) as other:
        with pytest.raises(ExitkitError, match=rf"'exitkit predict' \(process {other.pid} "):
            open_writer(target)
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert target.read_text() == "the run before"
    assert (tmp_path / "a.jsonl.partial").read_text() == '{"label": "pos"}\n'
    with open_writer(target) as writer:
        writer.write([ROW])
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_predict_follows_a_link_and_refuses_one_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    with open_writer(tmp_path / "link.jsonl") as writer:
        writer.write([ROW])
    assert (tmp_path / "link.jsonl").is_symlink()
    assert json.loads((tmp_path / "real.jsonl").read_text()) == ROW
    (tmp_path / "dangling.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(UsageError, match="which is not there"):
        open_writer(tmp_path / "dangling.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UsageError, match="no regular file"):
        open_writer(tmp_path / "pipe.jsonl")


# --- stdout


def onto_full(code: str) -> subprocess.CompletedProcess[str]:
    with open("/dev/full", "w") as stdout:
        return subprocess.run(
            [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("as_json", "work"),
    [
        (False, "from exitkit.prediction.writing import open_writer\n    open_writer(None).write([{'label': 'pos'}])"),
        (True, "command.write_json({'a': 1})"),
        (False, "console.print('a table')"),
    ],
    ids=["predict", "json", "a table"],
)
def test_a_full_stdout_is_one_message_and_exit_code_1(as_json: bool, work: str) -> None:
    done = onto_full(
        "import sys, typer\nfrom exitkit.cli import command\n"
        f"try:\n  with command.reporting({as_json}, False) as console:\n    {work}\n"
        "except typer.Exit as end:\n  sys.exit(end.exit_code)\n"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: cannot write" in done.stderr
    assert "the disk is full" in done.stderr
    assert "file: No space" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_error_that_names_no_file_is_not_of_one_called_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), command.reporting(True, False):
        full()
    assert json.loads(capsys.readouterr().out)["error"] == "cannot write: the disk is full"


@pytest.mark.parametrize("card", ["exitkit.yaml", "cascade.yaml"])
def test_a_report_is_not_written_into_the_folder_of_a_model(card: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / card).write_text("format: 1\n")
    (folder / "benchmark.json").write_text(json.dumps(RESULT))  # as `benchmark --json > DIR/benchmark.json` leaves it
    before = files(folder)
    with pytest.raises(UsageError, match=f"holds a model \\({card}\\)"):
        reports.write(folder, RESULT)
    assert files(folder) == before
