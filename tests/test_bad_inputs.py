"""What goes wrong with a command is one clear message, code 1 or 2, and nothing half-written: a table of cases."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from helpers import unsealed
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from exitkit.cli import app

ROOT_IGNORES_MODES = os.geteuid() == 0


@dataclass
class Room:
    """A folder to make a case in."""

    here: Path
    encoder: Path
    model: Path  # a trained artifact of its own
    made: dict[str, Path] = field(default_factory=dict)

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.here / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def csv(self, rows: int = 40, name: str = "rows.csv", header: str = "text,label") -> Path:
        return self.file(name, "\n".join([header, *(f"row {n},{'ab'[n % 2]}" for n in range(rows))]) + "\n")

    @property
    def output(self) -> Path:
        return self.here / "out"


Make = Callable[[Room], list[object]]


def train(*more: object, data: object = "demo:reviews") -> Make:
    return lambda room: ["train", "--model", room.encoder, "--data", data, "--output", room.output, *more]


def train_on(name: str, content: str | bytes, *more: object) -> Make:
    def make(room: Room) -> list[object]:
        file = room.file(name, content)
        return ["train", "--model", room.encoder, "--data", file, "--output", room.output, *more]

    return make


def calibrate(*args: object) -> Make:
    return lambda room: ["calibrate", room.model, *args]


def benchmark(*args: object) -> Make:
    return lambda room: ["benchmark", room.model, "--output", room.output, *args]


def predict(*args: object) -> Make:
    return lambda room: ["predict", room.model, "--output", room.here / "a.jsonl", *args]


def predict_on(name: str, content: str | bytes, *more: object) -> Make:
    return lambda room: [
        "predict", room.model, "--input", room.file(name, content), "--output", room.here / "a.jsonl", *more
    ]  # fmt: skip


def damaged(file: str, change: Callable[[Path], None], command: Callable[[Room], list[object]]) -> Make:
    def make(room: Room) -> list[object]:
        change(unsealed(room.model) / file)
        return command(room)

    return make


def nan(file: Path) -> None:
    weights = load_file(file)
    name = sorted(name for name in weights if weights[name].dim() == 2)[0]
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, file, metadata={"format": "pt"})


def write(content: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(content) and None


def encoder_with_nan(room: Room) -> list[object]:
    other = room.here / "encoder"
    shutil.copytree(room.encoder, other)
    nan(other / "model.safetensors")
    return ["train", "--model", other, "--data", "demo:reviews", "--output", room.output]


def existing(kind: str) -> Make:
    def make(room: Room) -> list[object]:
        if kind == "file":
            room.output.write_text("mine")
        elif kind == "folder":
            room.output.mkdir()
            (room.output / "thesis.txt").write_text("mine")
        else:
            shutil.copytree(room.model, room.output)
        return ["train", "--model", room.encoder, "--data", "demo:reviews", "--output", room.output]

    return make


def in_file(place: str) -> Make:
    def make(room: Room) -> list[object]:
        blocker = room.file("blocker", "x")
        return ["train", "--model", room.encoder, "--data", "demo:reviews", "--output", blocker / place]

    return make


def gpt2(room: Room) -> list[object]:
    other = room.here / "gpt"
    shutil.copytree(room.encoder, other)
    (other / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2Model"]}))
    return ["train", "--model", other, "--data", "demo:reviews", "--output", room.output]


def config_file(content: str, command: str = "train") -> Make:
    return lambda room: [command, "--config", room.file("run.yaml", content)]


ROWS = "".join(f"row {n},{'ab'[n % 2]}\n" for n in range(40))
ONE_CLASS = "text,label\n" + "".join(f"row {n},a\n" for n in range(40))

TAGGED = "".join(f'{{"tokens": ["a{n}", "b"], "tags": ["X", "Y"]}}\n' for n in range(20))


CASES: list[tuple[str, Make, int, str]] = [
    # training data
    ("no data", lambda room: ["train", "--model", room.encoder, "--output", room.output], 2, "missing --data"),
    ("no such file", train(data="missing.csv"), 2, "missing.csv"),
    ("unknown demo", train(data="demo:review"), 2, "Did you mean 'reviews'"),
    ("unknown hub name", train(data="nobody/none-such-set"), 1, "nobody/none-such-set"),
    ("empty file", train_on("rows.csv", ""), 1, "is empty"),
    ("header only", train_on("rows.csv", "text,label\n"), 1, "rows"),
    ("no text column", train_on("rows.csv", "a,b\n1,2\n"), 2, "--text-column"),
    ("two text columns", train_on("rows.csv", "text,sentence,label\nx,y,1\n"), 2, "more than one column"),
    ("no label column", train_on("rows.csv", "text,b\nx,2\n"), 2, "--label-column"),
    ("two label columns", train_on("rows.csv", "text,label,class\nx,1,2\n"), 2, "may be the label"),
    ("column misspelt", train_on("rows.csv", "text,label\n" + ROWS, "--text-column", "txt"), 2, "Did you mean 'text'"),
    ("a missing label", train_on("rows.csv", "text,label\n" + ROWS + "x,\n"), 1, "has no label"),
    ("a missing text", train_on("rows.jsonl", '{"text": "a", "label": 1}\n{"label": 0}\n'), 1, "has no text"),
    ("text is a number", train_on("rows.jsonl", '{"text": 1, "label": 1}\n'), 2, "not text"),
    ("label is an object", train_on("rows.jsonl", '{"text": "a", "label": {"a": 1}}\n'), 2, "Allowed"),
    ("not json", train_on("rows.jsonl", "{'text'\n"), 1, "line 1"),
    ("not parquet", train_on("rows.parquet", b"PAR1 nonsense"), 1, "Parquet"),
    ("unknown format", train_on("rows.dat", b"PK"), 2, "cannot tell the format"),
    ("utf-16", train_on("rows.csv", ("text,label\n" + ROWS).encode("utf-16")), 1, "iconv -f utf-16"),
    ("latin-1", train_on("rows.csv", ("text,label\ncaf\xe9,a\n" + ROWS).encode("latin-1")), 1, "iconv -f windows-1252"),
    ("one class", train_on("rows.csv", ONE_CLASS), 2, "at least two classes"),
    ("too few rows", train_on("rows.csv", "text,label\nx,a\ny,b\n"), 2, "at least 10"),
    ("ragged row", train_on("rows.csv", "text,label\n" + ROWS + "a,b,c\n"), 1, "line 42"),
    ("open quote", train_on("rows.csv", "text,label\n" + ROWS + '"a,b\n'), 1, "quote"),
    ("nothing to regress", train_on("rows.csv", "text,label\n" + "x,0.5\n" * 40), 2, "nothing to learn"),
    ("words as values", train_on("rows.csv", "text,label\n" + ROWS, "--task", "regression"), 2, "is not a number"),
    ("classes as lists", train_on("rows.csv", "text,label\n" + "x,1.5\ny,2.5\n" * 20, "--task", "classification"), 2,
     "not a class"),
    ("unknown task", train("--task", "ranking"), 2, "--task"),
    ("a slice that is none", lambda room: ["calibrate", room.model, "--target-speedup", "2", "--split", "test[:x%]"], 2,
     "cannot be understood"),
    # model and output
    ("no such model", lambda room: ["train", "--model", room.here / "no", "--data", "demo:reviews", "--output",
                                    room.output], 2, "no such folder"),
    ("unknown family", gpt2, 2, "gpt2"),
    ("model with NaN", encoder_with_nan, 1, "NaN"),
    ("output is a file", existing("file"), 2, "is a file"),
    ("output is somebody's folder", existing("folder"), 2, "not an exitkit model"),
    ("output is a model", existing("model"), 2, "--overwrite"),
    ("output inside a file", in_file("model"), 2, "cannot write there"),
    # options of train
    ("recipe misspelt", train("--recipe", "jiont"), 2, "Did you mean 'joint'"),
    ("recipe option misspelt", train("--set", "recipe.learning_rat=1"), 2, "Did you mean 'learning_rate'"),
    ("recipe option no number", train("--set", "recipe.learning_rate=fast"), 2, "not a number"),
    ("metric misspelt", train("--metric", "acuracy"), 2, "Did you mean 'accuracy'"),
    ("metric of another task", train("--metric", "pearson"), 2, "for classification"),
    ("metric of no label", train("--metric", "f1:meh"), 2, "unknown label 'meh'"),
    ("no epochs", train("--epochs", "0"), 2, "--epochs"),
    ("endless epochs", train("--epochs", "inf"), 2, "--epochs"),
    ("exit beyond the last layer", train("--exits", "2,9"), 2, "layers 1 to 4"),
    ("exits in words", train("--exits", "some"), 2, "neither 'all' nor a list of layers"),
    ("pooling misspelt", train("--pooling", "maen"), 2, "Did you mean 'mean'"),
    ("too long", train("--max-length", "9000"), 2, "at most"),
    ("training field misspelt", train("--set", "training.weigth_decay=1"), 2, "Did you mean 'weight_decay'"),
    ("training field of ours", train("--set", "training.seed=1"), 2, "setting of its own"),
    ("setting misspelt", train("--set", "epoch=1"), 2, "Did you mean 'epochs'"),
    ("set without value", train("--set", "epochs"), 2, "dotted.key=value"),
    ("weights for no label", train("--set", "class_weights.meh=2"), 2, "unknown label 'meh'"),
    ("unknown device", train("--device", "tpu9"), 2, "tpu9"),
    ("resume of nothing like it", train("--adversarial", "pgd"), 2, "--adversarial"),
    # configuration files
    ("no such file of settings", lambda room: ["train", "--config", room.here / "no.yaml"], 2, "no.yaml"),
    ("settings that are no YAML", config_file("a: [1"), 2, "not YAML"),
    ("settings that are a list", config_file("- a\n"), 2, "mapping"),
    ("an unknown setting in the file", config_file("modle: x\n"), 2, "Did you mean 'model'"),
    ("an empty file of settings", config_file(""), 2, "missing --model"),
    ("an empty list of speed-ups", config_file("speedups: []\nartifacts: [x]\n", "benchmark"), 2, "empty list"),
    # calibrate
    ("half speed", calibrate("--target-speedup", "0.5x"), 2, "smallest speed-up is 1x"),
    ("fast", calibrate("--target-speedup", "fast"), 2, "write it like 3x"),
    ("no target", calibrate(), 2, "exactly one of"),
    ("policy misspelt", calibrate("--target-speedup", "2", "--policy", "entrpy"), 2, "Did you mean 'entropy'"),
    ("setting of no policy", calibrate("--target-speedup", "2", "--set", "policy.tresh=1"), 2, "'threshold'"),
    ("threshold out of range", calibrate("--target-speedup", "2", "--set", "policy.threshold=7"), 2, "0 to 1"),
    ("threshold in words", calibrate("--target-speedup", "2", "--set", "policy.threshold=low"), 2, "not a number"),
    ("too many thresholds", calibrate("--target-speedup", "2", "--set", "policy.threshold=[0.1,0.2]"), 2, "needs 3"),
    ("label never early unknown", calibrate("--target-speedup", "2", "--never-early", "meh"), 2, "unknown label 'meh'"),
    ("exit that is not there", calibrate("--target-speedup", "2", "--min-exit", "9"), 2, "exits 1 to 4"),
    ("out of reach", calibrate("--target-speedup", "90x", "--currency", "layers"), 1, ""),
    ("unlabelled rows", lambda room: ["calibrate", room.model, "--target-speedup", "2", "--metric", "accuracy",
                                      "--data", room.file("t.csv", "text\na\nb\n")], 2, "needs labels"),
    ("unknown label at test time", lambda room: ["calibrate", room.model, "--target-speedup", "2", "--data",
                                                 room.csv()], 2, "unknown label 'a'"),
    # tagging
    ("more words than tags", train_on("t.jsonl", TAGGED + '{"tokens": ["a", "b"], "tags": ["X"]}\n'), 2,
     "row 21 of split 'train'"),
    ("tags of a pair", train_on("t.csv", "sentence1,sentence2,tags\n" + "a b,c d,X Y\n" * 20, "--task", "tagging"), 2,
     "one text per row"),
    ("a line that is no word", train_on("t.conll", "EU B-ORG\nrejects\n"), 1, "line 2"),
    ("spans of plain tags", train_on("t.jsonl", TAGGED, "--metric", "span_f1"), 2, "The tags are plain"),
    ("words that leave in a classifier", calibrate("--target-speedup", "2", "--policy", "token-window"), 2,
     "does not work for classification"),
    ("sentences in a classifier", calibrate("--target-speedup", "2", "--policy", "sentence"), 2,
     "does not work for classification"),
    # benchmark
    ("the rows that chose", benchmark("--data", "demo:reviews", "--split", "validation", "--speedups", "2x",
                                      "--currency", "layers"), 2, "chose the settings"),
    ("no rounds", benchmark("--set", "rounds=0"), 2, "--rounds"),
    ("group column misspelt", benchmark("--set", "group_column=grad"), 2, "Did you mean 'grade'"),
    # predict
    ("a speed-up never calibrated", predict("--speedup", "2x", "--input", "x.txt"), 2, "has not been calibrated"),
    ("two policies", predict("--set", "policy.name=[entropy,patience]"), 2, "one policy"),
    ("no such input", predict("--input", "missing.txt"), 2, "missing.txt"),
    ("output of unknown kind", lambda room: ["predict", room.model, "--input", room.file("i.txt", "a\n"), "--output",
                                             room.here / "a.xyz"], 2, ".jsonl"),
    ("input is the output", lambda room: ["predict", room.model, "--input", room.file("i.jsonl", '{"text":"a"}\n'),
                                          "--output", room.here / "i.jsonl"], 2, "i.jsonl"),
    ("a line that is no JSON", predict_on("i.jsonl", '{"text": "a"}\n{oops\n'), 1, "line 2"),
    ("a pair for a model of one", predict_on("i.jsonl", '["a", "b"]\n'), 1, "takes one text"),
    ("a deadline beyond the last exit", predict_on("i.txt", "a\n", "--max-exit", "9"), 2, "exits 1 to 4"),
    ("csv without a known column", predict_on("i.csv", "a,b\n1,2\n"), 2, "text"),
    ("not UTF-8", predict_on("i.txt", b"caf\xe9\n"), 1, "not UTF-8"),
    ("no such batch", predict_on("i.txt", "a\n", "--batch-size", "0"), 2, "--batch-size"),
    # damaged artifacts
    ("not an artifact", lambda room: ["inspect", room.here], 2, "not an exitkit model"),
    ("no weights", damaged("model.safetensors", Path.unlink, predict("--input", "-")), 1, "model.safetensors is mis"),
    ("no config", damaged("config.json", Path.unlink, predict("--input", "-")), 1, "config.json is missing"),
    ("no exits", damaged("exits.safetensors", Path.unlink, predict("--input", "-")), 1, "exits.safetensors is missing"),
    ("no card", damaged("exitkit.yaml", Path.unlink, predict("--input", "-")), 2, "no exitkit.yaml"),
    ("exits that are not numbers", damaged("exits.safetensors", nan, predict("--input", "-")), 1, "NaN"),
    ("card of another format", damaged("exitkit.yaml", write("format: 99\n"), calibrate("--target-speedup", "2")), 1,
     "format 99"),
    ("policies that are none", damaged("policy.yaml", write("[1]"), calibrate("--max-drop", "0.1")), 1, "policy.yaml"),
]  # fmt: skip


@pytest.fixture
def room(tmp_path: Path, encoder: Path, trained: Path) -> Room:
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    return Room(tmp_path, encoder, model)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("make", "code", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_one_clear_message_and_nothing_half_written(make: Make, code: int, words: str, room: Room) -> None:
    args = [str(part) for part in make(room)]
    before = files(room.here)
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == code, result.output
    said = json.loads(result.stdout)
    if code == 2 or "error" in said:
        assert words in said["error"], said["error"]
        assert "Traceback" not in result.output
        assert "a bug in exitkit" not in result.output
        assert "\n" not in said["error"].strip()
    new = {path.relative_to(room.here) for path in files(room.here) - before}
    assert not [path for path in new if str(path) not in ("a.jsonl.partial", ".a.jsonl.exitkit-lock")], new
    assert not (room.here / "out.partial").exists()


def test_there_are_sixty_cases() -> None:
    assert len(CASES) >= 60


# --- what is no error


GOOD = {
    "a class with one row": "text,label\n" + ROWS + "odd,c\n",
    "a byte-order mark": "\ufefftext,label\n" + ROWS,
    "a hundred thousand words in one row": f"text,label\n{ROWS}{'word ' * 100_000},a\n",
    "an empty text": f"text,label\n{ROWS},a\n",
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_rows_are_trained_on(name: str, room: Room) -> None:
    args = train_on("rows.csv", GOOD[name], "--epochs", "0.3", "--max-length", "32", "--json")(room)
    result = CliRunner().invoke(app, [str(part) for part in args])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["exits"]) == 4


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("i.txt", "a\n\n" + "word " * 100_000 + "\n", 3),
        ("i.tsv", 'text\tid\n"hello" she said\t1\nan "odd one\t2\n', 2),
        ("i.tsv", 'text\tid\n"a ""quoted"" text"\t1\n', 1),
        ("i.jsonl", '{"tokens": ["a", "good", "film"]}\n{"tokens": ["bad"]}\n', 2),
        ("i.csv", "Text,other\nx,1\n", 1),
    ],
)
def test_odd_inputs_are_answered(name: str, content: str, rows: int, room: Room) -> None:
    args = predict_on(name, content)(room)
    result = CliRunner().invoke(app, [*(str(part) for part in args), "--json"])
    assert result.exit_code == 0, result.output
    assert len((room.here / "a.jsonl").read_text().splitlines()) == rows


def test_words_and_texts_get_the_same_answer(trained: Path) -> None:
    import exitkit

    model = exitkit.load(trained)
    (words,), (text,) = model.predict([["the", "film", "was", "good"]]), model.predict(["the film was good"])
    assert words == text


# --- the machine gives out


def command(*args: object) -> list[str]:
    return [sys.executable, "-c", "from exitkit.cli import main; main()", *(str(arg) for arg in args)]


def test_a_full_disk_is_one_message_and_keeps_what_was_answered(room: Room) -> None:
    rows = room.file("i.txt", "the film was good\n" * 4000)
    limit = 64 * 1024

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        command("predict", room.model, "--input", rows, "--output", room.here / "a.jsonl"),
        capture_output=True, text=True, preexec_fn=small_files, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "a.jsonl" in done.stderr
    assert not (room.here / "a.jsonl").exists()
    assert (room.here / "a.jsonl.partial").stat().st_size > 0


@pytest.mark.parametrize("what", ["predict", "train"])
def test_control_c_ends_with_one_word_and_no_half_result(what: str, room: Room) -> None:
    rows = room.file("i.txt", "the film was good\n" * 200_000)
    args = {
        "predict": ["predict", room.model, "--input", rows, "--output", room.here / "a.jsonl"],
        "train": ["train", "--model", room.encoder, "--data", "demo:reviews", "--output", room.output],
    }[what]
    watched = {"predict": room.here / "a.jsonl.partial", "train": room.here / "out.partial/training/run.json"}[what]

    def hears() -> None:  # a shell starts what runs in the background deaf to Control-C, and children inherit it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command(*args), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=hears
    )
    for _ in range(1200):
        if watched.exists() and watched.stat().st_size > 0:
            break
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert not (room.here / "a.jsonl").exists()
    assert not room.output.exists()
