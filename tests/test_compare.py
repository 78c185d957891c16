"""`exitkit compare`: one table over recipes, policies and seeds, that goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import exitkit
from exitkit.cli import app
from exitkit.comparison import compare as module
from exitkit.comparison.compare import area
from exitkit.data.sources import read
from exitkit.errors import UsageError

FAST = {"learning_rate": 2e-3, "head_learning_rate": 2e-3}
GIVEN = {
    "data": "demo:reviews",
    "recipes": ["joint", "berxit"],
    "policies": ["entropy", "learned"],
    "speedups": "1.2x,1.5x",
    "seeds": 2,
    "epochs": 1,
    "max_train_samples": 400,
    "currency": "layers",
    "options": {"joint": FAST, "berxit": FAST},
}


@pytest.fixture(scope="module")
def compared(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """A comparison that was interrupted in the middle of its third model and then went on."""
    folder = tmp_path_factory.mktemp("compare") / "out"
    right, trained, resumed = module.train, [], []

    def interrupted(**fields):
        trained.append((fields["recipe"]["name"], fields["seed"]))
        if len(trained) < 3:
            return right(**fields)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr("exitkit.training.train.publish", stop)
            return right(**fields)

    def stop(*_: object):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            exitkit.compare(model=str(encoder), output=folder, **GIVEN)
        assert trained == [("joint", 42), ("berxit", 42), ("joint", 43)]

        def counted(**fields):
            resumed.append((fields["recipe"]["name"], fields["seed"], fields["resume"]))
            return right(**fields)

        patch.setattr(module, "train", counted)
        more = {"options": {**GIVEN["options"], "pabee": FAST}}  # options of recipes without results may be added
        result = exitkit.compare(model=str(encoder), output=folder, **{**GIVEN, **more})
        assert resumed == [("joint", 43, True), ("berxit", 43, False)], "what was done is not done again"
    return result, folder


def test_every_fitting_pair_has_a_row_per_target_with_its_spread(compared: tuple[dict, Path]) -> None:
    result, _ = compared
    pairs = {(row["recipe"], row["policy"]) for row in result["table"]}
    assert pairs == {("joint", "entropy"), ("berxit", "entropy"), ("berxit", "learned")}
    assert result["skipped"] == {
        "joint with learned": "needs a probe, which recipe 'berxit' trains unless its options leave that out"
    }
    assert len(result["table"]) == 6
    assert all(0 <= row["score"] <= 1 and row["score_std"] >= 0 for row in result["table"])
    assert len(result["exits"][0]["scores"]) == 4
    assert {(one["recipe"], one["policy"]) for one in result["areas"]} == pairs | {
        ("joint", "fixed exits"),
        ("berxit", "fixed exits"),
    }


def test_means_are_those_of_the_results_on_disk(compared: tuple[dict, Path]) -> None:
    result, folder = compared
    files = [json.loads((folder / f"results/joint-{seed}.json").read_text()) for seed in (42, 43)]
    scores = [one["folds"][0]["policies"]["entropy"]["targets"][1]["score"] for one in files]
    row = next(r for r in result["table"] if (r["recipe"], r["policy"], r["target"]) == ("joint", "entropy", 1.5))
    assert row["score"] == pytest.approx(np.mean(scores))
    assert row["score_std"] == pytest.approx(np.std(scores, ddof=1))
    assert not list((folder / "models").iterdir()), "models are removed unless they are to be kept"


def test_the_command_prints_one_object_and_writes_tables_and_curves(compared: tuple[dict, Path], encoder: Path) -> None:
    _, folder = compared
    args = ["compare", "--model", str(encoder), "--output", str(folder), "--recipes", "joint", "--json"]
    for key, value in GIVEN.items():
        if key not in ("recipes", "options", "seeds"):
            args += [f"--{key.replace('_', '-')}", ",".join(value) if isinstance(value, list) else str(value)]
    args += [f"--set=options={json.dumps(GIVEN['options'])}", "--seeds", "2"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {row["recipe"] for row in found["table"]} == {"joint"}
    assert (folder / "curves.png").stat().st_size > 0
    text = (folder / "compare.md").read_text()
    assert "| joint | entropy |" in text
    assert "joint with learned: left out" in text


def test_another_comparison_in_the_same_folder_is_refused(compared: tuple[dict, Path], encoder: Path) -> None:
    _, folder = compared
    with pytest.raises(UsageError, match=r"other settings \(--epochs\)"):
        exitkit.compare(model=str(encoder), output=folder, **{**GIVEN, "epochs": 2})
    with pytest.raises(UsageError, match=r"results of recipe 'joint' with other options"):
        exitkit.compare(model=str(encoder), output=folder, **{**GIVEN, "options": {"berxit": FAST}})


def test_bad_names_are_refused_before_anything_is_trained(encoder: Path, tmp_path: Path) -> None:
    given = {"model": str(encoder), "output": tmp_path / "out"}
    for change, words in (
        ({"recipes": ["jiont"]}, "Did you mean 'joint'"),
        ({"policies": ["entrpy"]}, "Did you mean 'entropy'"),
        ({"options": {"joint": {"rate": 1}}}, "unknown option of recipe 'joint'"),
    ):
        with pytest.raises(UsageError, match=words):
            exitkit.compare(**{**GIVEN, **given, **change})
    assert not (tmp_path / "out").exists()


def test_halves_choose_on_one_half_and_score_the_other_both_ways(encoder: Path, tmp_path: Path) -> None:
    result = exitkit.compare(
        model=str(encoder),
        output=tmp_path / "out",
        **{**GIVEN, "seeds": 1, "recipes": ["joint"], "policies": ["entropy"], "split": "test", "halves": True},
    )
    file = json.loads((tmp_path / "out/results/joint-42.json").read_text())
    one, other = file["folds"]
    assert one["rows"] + other["rows"] == file["rows"] == result["rows"]
    assert abs(one["rows"] - other["rows"]) <= 1
    assert one["exits"] != other["exits"], "other rows are scored"
    mean = np.mean([fold["policies"]["entropy"]["targets"][0]["score"] for fold in (one, other)])
    assert result["table"][0]["score"] == pytest.approx(mean)
    with pytest.raises(UsageError, match="leave out --calibration-split"):
        exitkit.compare(**{**GIVEN, "halves": True, "calibration_split": "test"})


def test_rows_that_choose_are_not_scored(encoder: Path, tmp_path: Path) -> None:
    same = {"split": "validation", "calibration_split": "validation[:50%]", "seeds": 1, "recipes": ["joint"]}
    with pytest.raises(UsageError, match=r"calibrate on are among those to score.*would flatter.*--calibration-split"):
        exitkit.compare(model=str(encoder), output=tmp_path / "out", **{**GIVEN, **same})
    assert not (tmp_path / "out").exists(), "before anything is trained"


@pytest.mark.parametrize("halves", [True, False])
def test_rows_that_were_trained_on_are_not_scored(halves: bool, encoder: Path, tmp_path: Path) -> None:
    rows = read("demo:reviews", "train[:200]")
    lines = [
        f"{text.replace(',', '')},{label}" for text, label in zip(rows.data["text"], rows.data["label"], strict=True)
    ]
    (tmp_path / "all.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    given = {**GIVEN, "data": str(tmp_path / "all.csv"), "halves": halves, "split": None if halves else "train[:50%]"}
    with pytest.raises(UsageError, match=r"rows to score are among the training rows"):
        exitkit.compare(model=str(encoder), output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_policies_of_words_are_refused_before_training(encoder: Path, tmp_path: Path) -> None:
    given = {**GIVEN, "data": "demo:tags", "policies": ["entropy", "token-window"], "recipes": ["joint"], "options": {}}
    with pytest.raises(UsageError, match=r"--policies entropy,token-window: .*--policies sentence"):
        exitkit.compare(model=str(encoder), output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_single_rows_that_occur_twice_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    rows, scored = read("demo:reviews", "validation[:20]"), read("demo:reviews", "validation[15:40]")
    left = module._rows_to_choose(rows, scored)
    assert list(left.data["text"]) == list(rows.data["text"][:15])
    assert "5 of the 20 rows to calibrate on are among those to score and are left out" in caplog.text


def test_the_area_under_a_curve_by_hand() -> None:
    points = [{"speedup": {"layers": s}, "score": v} for s, v in ((1.0, 0.9), (2.0, 0.8), (4.0, 0.6))]
    assert area(points[:1], "layers", 1.0, 0.5) == 0.9
    by_hand = (1 * 0.9 + 50 * 0.8 + 50 * 0.6) / 101  # a grid of 101 points; each takes the next faster setting
    assert area(points, "layers", 4.0, 0.5) == pytest.approx(by_hand)
    better_later = [{"speedup": {"layers": s}, "score": v} for s, v in ((1.0, 0.5), (2.0, 0.8))]
    by_hand = (1 * 0.5 + 100 * 0.8) / 101
    assert area(better_later, "layers", 2.0, 0.0) == pytest.approx(by_hand), "nothing is chosen by its score"
    by_hand = (1 * 0.9 + 50 * 0.8 + 50 * 0.5) / 101
    assert area(points[:2], "layers", 4.0, 0.5) == pytest.approx(by_hand), "what is not reached counts with exit 1"
