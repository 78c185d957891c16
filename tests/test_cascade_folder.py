"""The folder of a cascade: every command takes it as it takes a model's, and says what does not fit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import unsealed
from test_cli import TEXTS, invoke, run

import exitkit
from exitkit.artifacts.cascade import models_of, open_artifact, read
from exitkit.data import demo
from exitkit.errors import ExitkitError, UsageError
from exitkit.plugins import installed

TRAINING = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 2000}
RECIPE = {"name": "joint", "learning_rate": 2e-3, "head_learning_rate": 2e-3}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer, narrower than the large one's."""
    folder = tmp_path_factory.mktemp("small")
    demo.build_model(folder / "encoder", layers=1, width=16, heads=2)
    exitkit.train(model=str(folder / "encoder"), output=folder / "small", recipe=RECIPE, **TRAINING)
    return folder / "small"


@pytest.fixture
def both(small: Path, trained: Path, tmp_path: Path) -> Path:
    exitkit.cascade(small, trained, output=tmp_path / "both")
    return tmp_path / "both"


def named(folder: Path, *models: Path | str) -> Path:
    """A folder with a cascade.yaml that somebody wrote."""
    folder.mkdir(exist_ok=True)
    (folder / "cascade.yaml").write_text(yaml.safe_dump({"models": [str(model) for model in models]}))
    return folder


def changed(model: Path, folder: Path, **fields: object) -> Path:
    """A copy of a model whose card says something else."""
    shutil.copytree(model, folder)
    card = yaml.safe_load((folder / "exitkit.yaml").read_text())
    (folder / "exitkit.yaml").write_text(yaml.safe_dump({**card, **fields}))
    return unsealed(folder)


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_file_names_its_models_from_the_folder_or_from_the_root(
    small: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small, tmp_path / "runs" / "small")
    shutil.copytree(trained, tmp_path / "runs" / "large")
    monkeypatch.chdir(tmp_path)
    told = run("cascade", "runs/small", tmp_path / "runs" / "large", "--output", "runs/both")
    written = yaml.safe_load(Path("runs/both/cascade.yaml").read_text())
    assert written == {"format": 1, "models": ["../small", str(tmp_path / "runs" / "large")]}
    assert [one["layers"] for one in told["models"]] == [1, 4]
    assert [one["exit"] for one in told["models"]] == [1, 2]
    first, last = told["models"]
    assert first["speedup"] == pytest.approx(last["flops"] / first["flops"])
    assert last["speedup"] == pytest.approx(last["flops"] / (first["flops"] + last["flops"]))
    assert last["speedup"] < 1, "whoever goes on pays for the small model too"
    monkeypatch.chdir("/")
    assert read(tmp_path / "runs" / "both", installed()).model.shape.layers == 5
    assert models_of(tmp_path / "runs" / "both")[1] == tmp_path / "runs" / "large"


def test_a_file_that_somebody_wrote_is_as_good(both: Path, small: Path, trained: Path, tmp_path: Path) -> None:
    by_hand = named(tmp_path / "hand", small, trained)
    ours, theirs = (exitkit.load(folder).predict_proba(TEXTS, policy="cascade") for folder in (both, by_hand))
    assert np.array_equal(ours, theirs)


def test_a_cascade_is_replaced_only_when_asked_and_without_what_was_calibrated_for_it(
    both: Path, small: Path, trained: Path
) -> None:
    (both / "policy.yaml").write_text("of the old one")
    with pytest.raises(UsageError, match="--overwrite"):
        exitkit.cascade(small, trained, output=both)
    exitkit.cascade(small, trained, output=both, overwrite=True)
    assert not (both / "policy.yaml").exists()
    with pytest.raises(UsageError, match="not a cascade; name another folder"):
        exitkit.cascade(small, trained, output=trained, overwrite=True)


# --- commands --------------------------------------------------------------------------------------------------------


def test_calibrate_benchmark_and_predict_take_a_cascade(both: Path, tmp_path: Path) -> None:
    found = run("calibrate", both, "--target-speedup", "1.5x", "--currency", "flops")
    assert found["policy"] == "cascade"
    assert found["feasible"]
    assert found["measured_speedup"]["flops"] == pytest.approx(found["predicted_speedup"], rel=1e-6)
    assert len(found["exit_histogram"]) == 2
    assert sum(found["exit_histogram"]) == found["rows"]
    layers = 4 * found["rows"] / (found["rows"] + 4 * found["exit_histogram"][1])
    assert found["measured_speedup"]["layers"] == pytest.approx(layers), "whoever goes on has run both"
    report = run(
        "benchmark", both, "--policy", "cascade", "--policy", "entropy", "--speedups", "1x,1.5x",
        "--max-rows", 200, "-o", tmp_path / "report",
    )  # fmt: skip
    names = [one["name"] for one in report["baselines"]]
    assert names == ["fixed exit 1", "packed full depth", "plain transformers, padded"]
    small, full, _ = report["baselines"]
    assert small["speedup"]["layers"] == 4
    assert full["speedup"]["layers"] == full["speedup"]["flops"] == 1
    never = report["runs"][0]
    assert never["exit_histogram"][0] == 0
    assert never["speedup"]["layers"] == 4 / 5, "slower than the full model, and said so"
    assert never["score"] == full["score"]
    assert (tmp_path / "report/index.html").exists()
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    told = run("predict", both, "--input", texts, "--output", tmp_path / "out.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert told["policy"] == "cascade"
    assert told["exit_histogram"] == [sum(one["exit"] == exit for one in answers) for exit in (1, 2)]
    assert all(answer.keys() == {"label", "score", "exit"} for answer in answers)
    again = exitkit.load(both).predict(TEXTS, speedup=1.5)
    assert [(one["label"], one["exit"]) for one in again] == [(one["label"], one["exit"]) for one in answers]


def test_a_cascade_is_compared_with_its_largest_model_on_the_same_rows(
    both: Path, trained: Path, tmp_path: Path
) -> None:
    report = run(
        "benchmark", both, trained, "--policy", "entropy", "--speedups", "1x", "--set", "max_rows=200",
        "-o", tmp_path / "report",
    )  # fmt: skip
    assert [one["artifact"] for one in report["runs"]] == [str(both), str(trained)]
    full = [one for one in report["baselines"] if one["name"] == "packed full depth"]
    assert [one["score"] for one in full] == [full[0]["score"]] * 2
    assert [one["exit_histogram"] for one in full] == [[0, 200], [0, 0, 0, 200]]


def test_temperatures_of_models_are_fitted_and_kept(both: Path) -> None:
    found = run("calibrate", both, "--target-speedup", "1.2x", "--currency", "flops", "--temperature")
    assert len(found["temperature"]["values"]) == 2
    stored = yaml.safe_load((both / "policy.yaml").read_text())["policies"]["cascade"]
    assert stored["limits"]["temperatures"] == found["temperature"]["values"]
    answers = exitkit.load(both).predict(TEXTS)
    assert {answer["exit"] for answer in answers} <= {1, 2}


def test_without_a_policy_the_largest_model_answers_alone(both: Path, trained: Path) -> None:
    alone = exitkit.load(trained).predict_proba(TEXTS)
    assert np.allclose(exitkit.load(both).predict_proba(TEXTS), alone, atol=1e-5)
    assert {answer["exit"] for answer in exitkit.load(both).predict(TEXTS)} == {2}


def test_a_target_beyond_the_smallest_model_is_out_of_reach(both: Path) -> None:
    found = run("calibrate", both, "--target-speedup", "500x", "--currency", "flops", code=1)
    assert not found["feasible"]
    assert found["exit_histogram"][1] == 0
    assert not (both / "policy.yaml").exists()


def test_models_read_rows_in_their_own_way_and_alike_where_they_can(
    both: Path, small: Path, trained: Path, tmp_path: Path
) -> None:
    registry = installed()
    assert not open_artifact(both, registry).others
    apart = changed(small, tmp_path / "cut", max_length=4)
    cascade = exitkit.load(named(tmp_path / "apart", apart, trained))
    assert cascade.artifact.others["0/"].max_length == 4
    for exit, alone in ((1, exitkit.load(apart)), (2, exitkit.load(trained))):
        asked = {"name": "fixed", "exit": exit}
        assert np.allclose(cascade.predict_proba(TEXTS, policy=asked), alone.predict_proba(TEXTS), atol=1e-5)


def test_rows_set_aside_are_used_only_where_all_models_did_so(small: Path, trained: Path, tmp_path: Path) -> None:
    card = yaml.safe_load((small / "exitkit.yaml").read_text())
    other = changed(small, tmp_path / "other", calibration={**card["calibration"], "hash": "0" * 16})
    cascade = named(tmp_path / "both", other, trained)
    said = invoke("calibrate", cascade, "--target-speedup", "1.2x", code=2).stderr
    assert "set aside different rows" in " ".join(said.split())
    found = run(
        "calibrate", cascade, "--target-speedup", "1.2x", "--currency", "flops", "--data", "demo:reviews",
        "--split", "validation",
    )  # fmt: skip
    assert found["split"] == "validation"


@pytest.mark.parametrize("name", ["learned", "skip-gate"])
def test_policies_that_do_not_fit_are_refused_by_the_command(both: Path, name: str) -> None:
    said = invoke("calibrate", both, "--policy", name, "--target-speedup", "2x", code=2).stderr
    assert "does not work on a cascade" in " ".join(said.split())


def test_inspect_tells_the_models_and_what_was_calibrated(both: Path) -> None:
    assert "not calibrated" in invoke("inspect", both).stdout
    run("calibrate", both, "--target-speedup", "1.2x", "--currency", "flops")
    found = run("inspect", both)
    assert [one["layers"] for one in found["models"]] == [1, 4]
    assert [one["policy"] for one in found["policies"]] == ["cascade"]
    shown = invoke("inspect", both).stdout
    assert "a cascade for classification of negative, positive" in shown
    assert "cascade (default) for 1.2x in flops" in shown


def test_a_model_that_was_trained_anew_makes_calibrated_settings_doubtful(
    small: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = changed(small, tmp_path / "own")
    both = named(tmp_path / "both", own, trained)
    run("calibrate", both, "--target-speedup", "1.2x", "--currency", "flops")
    monkeypatch.setattr(logging.getLogger("exitkit"), "propagate", True)  # commands turn it off
    shutil.move(own, tmp_path / "elsewhere")
    named(both, tmp_path / "elsewhere", trained)
    exitkit.load(both)
    assert "have changed" not in caplog.text, "a model may be moved"
    metrics = json.loads((small / "metrics.json").read_text())
    (tmp_path / "elsewhere" / "metrics.json").write_text(json.dumps({**metrics, "train_seconds": 1.5}))
    exitkit.load(both)
    assert "have changed since policy 'cascade' was calibrated" in caplog.text


# --- what does not fit -----------------------------------------------------------------------------------------------


def refused(folder: Path, kind: type[ExitkitError] = UsageError) -> str:
    with pytest.raises(kind) as error:
        exitkit.load(folder)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_models_that_are_not_there_or_are_none_are_named(trained: Path, encoder: Path, tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path}/both/../gone" in refused(named(tmp_path / "both", "../gone", trained))
    assert "it has no exitkit.yaml" in refused(named(tmp_path / "both", encoder, trained))


def test_one_model_is_no_cascade(trained: Path, tmp_path: Path) -> None:
    assert "names 1 of the two or more" in refused(named(tmp_path / "both", trained))
    with pytest.raises(UsageError, match="two or more"):
        exitkit.cascade(trained, output=tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_a_cascade_in_a_cascade_is_refused(both: Path, trained: Path, tmp_path: Path) -> None:
    assert f"{both} is a cascade itself" in refused(named(tmp_path / "outer", both, trained))


def test_models_must_rise_in_cost(small: Path, trained: Path, tmp_path: Path) -> None:
    assert "smallest first" in refused(named(tmp_path / "falling", trained, small))
    assert "million multiply-adds" in refused(named(tmp_path / "twice", trained, trained))


ORIGIN = {"source": "demo:reviews", "split": "train", "revision": None, "indices": None}
DIFFERENT = {
    "another task": ({"task": "multi-label"}, "is for multi-label, and"),
    "a tagger": ({"task": "tagging"}, "is a tagger"),
    "other labels": ({"labels": ["bad", "good"]}, "has the labels bad, good, and"),
    "another order": ({"labels": ["positive", "negative"]}, "in the order positive, negative, and"),
    "pairs": ({"data": {**ORIGIN, "columns": {"text_pair": "question"}}}, "takes pairs of texts, and"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_models_must_answer_the_same_question(what: str, small: Path, trained: Path, tmp_path: Path) -> None:
    fields, message = DIFFERENT[what]
    other = changed(small, tmp_path / "other", **fields)
    assert message in refused(named(tmp_path / "both", other, trained))
    with pytest.raises(UsageError, match="other"):
        exitkit.cascade(other, trained, output=tmp_path / "written")
    assert not (tmp_path / "written").exists()


BROKEN = {
    "models: [": (ExitkitError, "is damaged"),
    "[]": (ExitkitError, "does not hold a mapping"),
    "models: ../small": (UsageError, "must be a list of folders"),
    "models: [1, 2]": (UsageError, "must be a list of folders"),
    "format: 1": (UsageError, "must be a list of folders, such as [../small, ../large], not None"),
    "format: 2\nmodels: [a, b]": (ExitkitError, "has format 2; this exitkit reads format 1"),
    "models: [a, b]\nthreshold: 0.5": (UsageError, "'threshold' is not known"),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "cascade.yaml").write_text(text)
    kind, message = BROKEN[text]
    assert message in refused(tmp_path, kind)


def test_a_model_and_a_cascade_do_not_share_a_folder(artifact: Path, small: Path, trained: Path) -> None:
    assert "holds both" in refused(named(artifact, small, trained))
