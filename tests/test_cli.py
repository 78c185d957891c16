"""The commands through their JSON, exit codes and messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from datasets import Dataset
from typer.testing import CliRunner

import exitkit
from exitkit.cli import app
from exitkit.errors import ExitkitError, UsageError

TEXTS = ["the plot was good", "the plot was not good", "a dull film", "hardly a bad scene"] * 5


def invoke(*args: object, code: int = 0, stdin: str | None = None):
    done = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    assert done.exit_code == code, f"{done.stdout}\n{done.stderr}\n{done.exception!r}"
    assert "Traceback" not in done.stderr
    return done


def run(*args: object, code: int = 0) -> dict:
    """The JSON of a command: one object and nothing else on stdout."""
    return json.loads(invoke(*args, "--json", code=code).stdout)


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_writes_what_it_prints(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    printed = run(
        "train", "-m", encoder, "--data", "demo:reviews", "-o", folder, "--max-train-samples", 64, "--epochs", 1
    )
    assert printed == json.loads((folder / "metrics.json").read_text())
    assert {"task", "recipe", "metric", "split", "exits", "train_seconds", "samples_per_second"} <= printed.keys()
    assert [exit["layer"] for exit in printed["exits"]] == [1, 2, 3, 4]
    assert {"exit", "layer", "score", "accuracy"} <= printed["exits"][0].keys()
    assert not folder.with_name("model.partial").exists()


def test_flags_go_over_the_file_and_set_over_both(encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    recipe = {"name": "joint", "learning_rate": 1e-3, "head_learning_rate": 1e-3}
    given = {"model": str(encoder), "data": "demo:reviews", "epochs": 3, "exits": [2], "recipe": recipe, "seed": 1}
    file.write_text(yaml.safe_dump({**given, "max_train_samples": 64, "output": str(tmp_path / "model")}))
    result = run(
        "train", "--config", file, "--epochs", 1, "--seed", 2, "--set", "seed=3", "--set", "recipe.learning_rate=2e-3"
    )
    assert [exit["layer"] for exit in result["exits"]] == [2, 4]
    card = yaml.safe_load((tmp_path / "model" / "exitkit.yaml").read_text())
    assert card["recipe"]["epochs"] == 1
    assert card["recipe"]["seed"] == 3
    assert card["recipe"]["learning_rate"] == 2e-3
    assert card["recipe"]["head_learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "demo:reviews"], "missing --model, --output"),
        (["--model", "ENCODER", "--output", "OUT"], "missing --data"),
        (["--recipe", "jiont"], "Did you mean 'joint'"),
        (["--set", "recipe.learning_rat=1"], "Did you mean 'learning_rate'"),
        (["--set", "recipe.learning_rate=fast"], "'fast' is not a number"),
        (["--set", "training.num_train_epoch=1"], "Did you mean 'num_train_epochs'"),
        (["--set", "training.seed=1"], "a setting of its own"),
        (["--set", "epoch=1"], "Did you mean 'epochs'"),
        (["--set", "epochs"], "not of the form"),
        (["--epochs", "-1"], "--epochs"),
        (["--exits", "1,9"], "it has layers 1 to 4"),
        (["--exits", "some"], "neither 'all' nor a list"),
        (["--pooling", "max"], "unknown pooling 'max'"),
        (["--metric", "acuracy"], "Did you mean 'accuracy'"),
        (["--metric", "f1:good"], "unknown label 'good'"),
        (["--device", "gpu"], "is not a device"),
        (["--precision", "fp8"], "--precision"),
        (["--max-length", "4096"], "takes at most"),
        (["--data", "demo:review"], "Did you mean 'reviews'"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--model", "./nowhere"], "there is no such folder"),
        (["--text-column", "txt"], "txt"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_bad_request_to_train_ends_with_code_2_and_a_message(
    args: list[str], message: str, encoder: Path, tmp_path: Path
) -> None:
    usual = {"--model": str(encoder), "--data": "demo:reviews", "--output": str(tmp_path / "out")}
    args = [str(encoder) if arg == "ENCODER" else str(tmp_path / "o") if arg == "OUT" else arg for arg in args]
    if "missing" not in message:
        args += [part for flag, value in usual.items() if flag not in args for part in (flag, value)]
    error = run("train", *args, code=2)["error"]
    assert message in error
    assert not (tmp_path / "out").exists()


def test_an_existing_model_is_replaced_only_when_asked(artifact: Path, encoder: Path) -> None:
    args = ["train", "-m", encoder, "--data", "demo:reviews", "-o", artifact, "--max-train-samples", 64, "--epochs", 1]
    before = (artifact / "metrics.json").read_text()
    assert "add --overwrite" in run(*args, code=2)["error"]
    assert (artifact / "metrics.json").read_text() == before
    run(*args, "--overwrite")
    assert (artifact / "metrics.json").read_text() != before


def test_a_folder_of_somebody_elses_is_never_touched(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    args = ["train", "-m", encoder, "--data", "demo:reviews", "-o", tmp_path, "--overwrite"]
    assert "not an exitkit model" in run(*args, code=2)["error"]


# --- calibrate -------------------------------------------------------------------------------------------------------

CALIBRATED = {
    "policy", "settings", "currency", "batch_size", "target_speedup", "predicted_speedup", "measured_speedup", "score",
    "full_score", "agreement", "metric", "feasible", "better", "exit_histogram",
}  # fmt: skip


@pytest.mark.parametrize("policy", ["entropy", "confidence"])
@pytest.mark.parametrize("currency", ["layers", "flops"])
def test_calibrate_reaches_its_target(policy: str, currency: str, artifact: Path) -> None:
    result = run("calibrate", artifact, "--target-speedup", "1.5x", "--policy", policy, "--currency", currency)
    assert result.keys() >= CALIBRATED
    assert result["feasible"]
    assert 1.455 <= result["measured_speedup"][currency] <= 1.7
    assert result["measured_speedup"][currency] == pytest.approx(result["predicted_speedup"], rel=1e-3)
    stored = yaml.safe_load((artifact / "policy.yaml").read_text())
    assert stored["default"] == policy
    entry = stored["policies"][policy]
    assert entry["chosen"]["settings"] == result["settings"]
    assert {"frontier", "currency", "batch_size", "precision", "threads", "calibration"} <= entry.keys()
    assert {"settings", "speedup", "score"} == entry["frontier"][0].keys()


def test_calibrate_in_time_measures_and_stores(artifact: Path) -> None:
    result = json.loads(
        CliRunner().invoke(app, ["calibrate", str(artifact), "--target-speedup", "1.2", "--json"]).stdout
    )
    assert result["currency"] == "time"
    assert result["measured_speedup"]["time"] > 0
    assert len(result["measured_speedup_ci"]["time"]) == 2


def test_calibrate_replaces_its_own_policys_entry_only(artifact: Path) -> None:
    args = ["calibrate", artifact, "--currency", "layers"]
    run(*args, "--target-speedup", "1.5x", "--policy", "entropy")
    first = yaml.safe_load((artifact / "policy.yaml").read_text())["policies"]["entropy"]
    run(*args, "--target-speedup", "1.3", "--policy", "confidence")
    both = yaml.safe_load((artifact / "policy.yaml").read_text())
    assert both["policies"]["entropy"] == first
    assert both["default"] == "confidence"


def test_a_target_out_of_reach_leaves_everything_as_it_was(artifact: Path) -> None:
    run("calibrate", artifact, "--target-speedup", "1.5x", "--currency", "layers")
    before = (artifact / "policy.yaml").read_bytes()
    result = run("calibrate", artifact, "--target-speedup", "50x", "--currency", "layers", code=1)
    assert result["feasible"] is False
    assert "fastest setting of 'entropy' is" in result["advice"]
    assert (artifact / "policy.yaml").read_bytes() == before


@pytest.mark.parametrize(("high", "warns"), [(0.9, True), (1.1, False)])
def test_a_setting_that_saves_work_but_no_time_is_said(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, high: float, warns: bool
) -> None:
    monkeypatch.setattr("exitkit.measuring.clock.Times.speedup_interval", lambda *_: (0.8, high))
    given = [str(part) for part in ("calibrate", artifact, "--target-speedup", "1.2x", "--currency", "layers")]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0
    assert ("takes longer than the full model" in done.stderr) == warns


def test_max_drop_gives_the_fastest_setting_within_it(artifact: Path) -> None:
    result = run("calibrate", artifact, "--max-drop", 0.02, "--currency", "layers")
    assert result["feasible"]
    assert result["full_score"] - result["score"] <= 0.02
    assert result["measured_speedup"]["layers"] > 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "exactly one of --target-speedup"),
        (["--target-speedup", "2x", "--max-drop", "0.1"], "exactly one of --target-speedup"),
        (["--target-speedup", "0.5x"], "smallest speed-up is 1x"),
        (["--target-speedup", "fast"], "write it like 3x"),
        (["--target-speedup", "2x", "--policy", "entropi"], "Did you mean 'entropy'"),
        (["--target-speedup", "2x", "--set", "policy.treshold=1"], "Did you mean 'threshold'"),
        (["--target-speedup", "2x", "--currency", "joules"], "--currency"),
        (["--target-speedup", "2x", "--data", "demo:reviews", "--split", "dev2"], "dev2"),
        (["--target-speedup", "2x", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_a_bad_request_to_calibrate_ends_with_code_2(args: list[str], message: str, trained: Path) -> None:
    assert message in run("calibrate", trained, *args, code=2)["error"]


def test_a_folder_that_is_no_artifact_is_said_so(tmp_path: Path) -> None:
    for command in (["calibrate", tmp_path, "--target-speedup", "2x"], ["benchmark", tmp_path], ["predict", tmp_path]):
        args = [*command, "--output", tmp_path / "o.jsonl"] if command[0] == "predict" else command
        assert "is not an exitkit model" in run(*args, code=2)["error"]


@pytest.mark.parametrize("target", ["2x", "2", "2.0x"])
def test_speedups_are_written_in_three_ways(target: str) -> None:
    from exitkit.configuration.config import CalibrateConfig
    from exitkit.configuration.parsing import parse

    assert parse(CalibrateConfig, {"target_speedup": target}).target_speedup == 2.0


# --- benchmark -------------------------------------------------------------------------------------------------------


def test_benchmark_reports_runs_baselines_and_environment(artifact: Path) -> None:
    result = run(
        "benchmark", artifact, "--policy", "entropy", "--policy", "patience", "--speedups", "1x,1.5x",
        "--currency", "layers", "--batch-size", "1,32", "--set", "rounds=1", "--set", "max_rows=96",
    )  # fmt: skip
    assert {"runs", "baselines", "environment"} <= result.keys()
    assert {(one["policy"], one["target"], one["batch_size"]) for one in result["runs"]} == {
        (policy, target, size) for policy in ("entropy", "patience") for target in (1.0, 1.5) for size in (1, 32)
    }
    keys = {"artifact", "policy", "target", "currency", "settings", "batch_size", "speedup", "score", "full_score"}
    assert result["runs"][0].keys() >= keys | {"agreement", "latency_ms", "throughput", "exit_histogram"}
    assert result["runs"][0]["latency_ms"].keys() == {"p50", "p95", "p99"}
    off = [one for one in result["runs"] if one["target"] == 1.0]
    assert all(one["exit_histogram"] == [0, 0, 0, 96] for one in off)
    assert all(one["agreement"] == 1.0 for one in off)
    names = [one["name"] for one in result["baselines"] if one["batch_size"] == 32]
    assert names == ["fixed exit 1", "fixed exit 2", "fixed exit 3", "packed full depth", "plain transformers, padded"]
    report = artifact.with_name("model-report")
    assert json.loads((report / "benchmark.json").read_text())["runs"] == result["runs"]
    assert "| |score|" in (report / "report.md").read_text()


def test_settings_given_by_hand_are_run_as_they_are(trained: Path, tmp_path: Path) -> None:
    args = [
        "benchmark",
        trained,
        "--policy",
        "entropy",
        "--policy",
        "confidence",
        "--set",
        "rounds=1",
        "-o",
        tmp_path / "r",
    ]
    result = run(*args, "--set", "policy.entropy.threshold=0.2", "--set", "policy.confidence.threshold=off")
    assert [one["settings"] for one in result["runs"]] == [{"threshold": 0.2}, {"threshold": 2.0}]


def test_benchmark_refuses_rows_that_chose_the_setting(artifact: Path) -> None:
    run("calibrate", artifact, "--target-speedup", "1.5x", "--currency", "layers")
    error = run("benchmark", artifact, "--data", "demo:reviews", "--split", "validation", code=2)["error"]
    assert "chose the settings" in error


def test_benchmark_warns_when_rows_leave_elsewhere_than_calibrated(artifact: Path) -> None:
    run("calibrate", artifact, "--target-speedup", "1.5x", "--currency", "layers")
    args = ["benchmark", artifact, "--set", "rounds=1", "--set", "max_rows=200"]
    warning = "leave at other exits"
    assert warning not in " ".join(invoke(*args).stderr.split())
    stored = yaml.safe_load((artifact / "policy.yaml").read_text())
    stored["policies"]["entropy"]["chosen"]["exit_histogram"] = [600, 0, 0, 0]  # as if the traffic had been easier
    (artifact / "policy.yaml").write_text(yaml.safe_dump(stored))
    assert warning in " ".join(invoke(*args).stderr.split())


# --- predict ---------------------------------------------------------------------------------------------------------


def answers(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(form: str, folder: Path) -> Path:
    file = folder / f"in.{form}"
    if form == "txt":
        file.write_text("\n".join(TEXTS) + "\n")
    elif form == "jsonl":
        file.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    else:
        pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS}).to_csv(file, index=False)
    return file


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("size", [1, 7, 32])
def test_predict_answers_in_order_whatever_the_format_and_batch_size(
    form: str, size: int, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    args = ["predict", trained, "-i", write(form, tmp_path), "-o", out, "--batch-size", size]
    summary = run(*args, "--policy", "entropy", "--set", "policy.threshold=0.6")
    assert summary["rows"] == len(TEXTS)
    expected = exitkit.load(trained).predict(TEXTS, policy={"name": "entropy", "threshold": 0.6})
    found = answers(out)
    assert [(one["label"], one["exit"]) for one in found] == [(one["label"], one["exit"]) for one in expected]
    assert found[0].keys() == {"label", "score", "exit"}


def test_predict_reads_stdin_and_says_once_that_nothing_is_calibrated(trained: Path) -> None:
    done = invoke("predict", trained, stdin="a good film\na bad film\n")
    assert [json.loads(line)["exit"] for line in done.stdout.splitlines()] == [4, 4]
    assert " ".join(done.stderr.split()).count("has not been calibrated") == 1


def test_a_bad_line_is_named_and_what_came_before_is_answered(trained: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"text": "good"}\n{"text": "bad"}\n{"texd": "x"}\n{"text": "fine"}\n')
    error = run("predict", trained, "-i", file, "-o", out, code=1)["error"]
    assert "in.jsonl, line 3" in error
    assert not out.exists()
    assert len(answers(tmp_path / "out.jsonl.partial")) == 2
    summary = run("predict", trained, "-i", file, "-o", out, "--on-error", "skip")
    assert summary["rows"] == 3
    assert [line["line"] for line in summary["skipped_lines"]] == [3]
    assert len(answers(out)) == 3


def test_predict_with_json_needs_a_file_for_the_answers(trained: Path, tmp_path: Path) -> None:
    assert "--output" in run("predict", trained, "-i", write("txt", tmp_path), code=2)["error"]


def test_probabilities_of_all_labels(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("predict", trained, "-i", write("txt", tmp_path), "-o", out, "--probabilities")
    assert sum(answers(out)[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_a_speedup_needs_calibration_and_must_be_within_reach(artifact: Path) -> None:
    with pytest.raises(UsageError, match="calibrate"):
        exitkit.load(artifact).predict(["x"], speedup=2)
    exitkit.calibrate(artifact, target_speedup=1.5, currency="layers")
    early = exitkit.load(artifact).predict(TEXTS, speedup=2)
    assert {one["exit"] for one in early} != {4}
    with pytest.raises(UsageError, match="not 40x"):
        exitkit.load(artifact).predict(["x"], speedup=40)


def test_predict_proba_gives_a_row_per_text_and_a_column_per_label(trained: Path) -> None:
    shares = exitkit.load(trained).predict_proba(TEXTS)
    assert shares.shape == (len(TEXTS), 2)
    assert shares.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_single_string_is_refused_not_taken_apart(trained: Path) -> None:
    with pytest.raises(UsageError, match=r"predict\(\[text\]\)"):
        exitkit.load(trained).predict("a good film")


# --- the rest --------------------------------------------------------------------------------------------------------


def test_python_takes_data_in_memory(encoder: Path, artifact: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "label": "bad" if number % 2 else "good"} for number, text in enumerate(TEXTS)]
    rows = [{**row, "text": f"{row['text']} {number}"} for number, row in enumerate(rows * 4)]
    for number, data in enumerate([rows, pd.DataFrame(rows), Dataset.from_list(rows)]):
        report = exitkit.train(model=str(encoder), data=data, output=tmp_path / str(number), epochs=1)
        assert len(report["exits"]) == 4
    with pytest.raises(ExitkitError, match="--data"):
        exitkit.calibrate(tmp_path / "0", target_speedup=1.2)
    labelled = [{"text": text, "label": "positive"} for text in TEXTS]
    result = exitkit.calibrate(artifact, data=labelled, target_speedup=1.2, currency="layers", metric="agreement")
    assert result["metric"] == "agreement"


def test_rows_without_labels_are_scored_by_agreement(artifact: Path) -> None:
    result = exitkit.calibrate(artifact, data=TEXTS, target_speedup=1.2, currency="layers")
    assert result["metric"] == "agreement"
    assert result["full_score"] == 1.0


@pytest.mark.parametrize("listing", ["plugins", "families", "recipes"])
def test_listings(listing: str) -> None:
    rows = run(listing)[listing]
    assert rows
    assert "name" in rows[0]


def test_every_command_has_help_for_every_option() -> None:
    from exitkit.configuration import config

    for model in (config.TrainConfig, config.CalibrateConfig, config.BenchmarkConfig, config.PredictConfig):
        assert all(field.description for field in model.model_fields.values())
    for command in ("train", "calibrate", "benchmark", "predict", "demo"):
        assert "--config" in invoke(command, "--help").stdout


# --- what a new user runs into ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        (["train", "--data", "demo:reviews"], "--model, --output"),
        (["distill", "--data", "demo:reviews"], "--teacher, --output"),
        (["calibrate", "--target-speedup", "2x"], "DIR"),
        (["benchmark", "--batch-size", "1"], "DIR"),
        (["predict", "--batch-size", "1"], "DIR"),
        (["compare", "--epochs", "1"], "--model, --data, --output"),
    ],
)
def test_a_missing_option_is_said_before_torch_is_loaded(args: list[str], missing: str) -> None:
    program = (
        "import atexit, sys; from exitkit.cli import main;"
        "atexit.register(lambda: print('torch' in sys.modules)); sys.argv[0] = 'exitkit'; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"missing {missing}." in done.stderr
    assert done.stdout.strip() == "False"


def test_a_folder_that_is_not_there_and_one_without_a_model_are_told_apart(tmp_path: Path) -> None:
    assert "there is no folder" in run("predict", tmp_path / "nowhere", "-o", tmp_path / "out", code=2)["error"]
    error = run("predict", tmp_path, "-o", tmp_path / "out", code=2)["error"]
    assert "it has no exitkit.yaml; give a folder that exitkit train or distill made" in error


def test_help_shows_no_empty_default() -> None:
    assert "[default: ]" not in invoke("calibrate", "--help").stdout
