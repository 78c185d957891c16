"""The report folder, breakdowns, comparing artifacts, `inspect`, and the model card."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from helpers import unsealed
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import exitkit
from exitkit.artifacts import inspection, model_card
from exitkit.benchmarking.breakdown import MOST_SHOWN, Judged, breakdown, changed
from exitkit.cli import app
from exitkit.data.columns import Columns
from exitkit.data.sources import read
from exitkit.errors import ExitkitError, UsageError
from exitkit.report import pictures
from exitkit.report.folder import write
from exitkit.tasks import Classification, Regression

EVIL = "<script>alert('x')</script> & <b>bold</b>"


class Page(HTMLParser):
    """Tags, what they load, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [
            value for key, value in attrs if key in ("src", "href", "xlink:href") and not value.startswith("#")
        ]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    rows = read("demo:reviews", "test[:80]", Columns(group="grade")).data
    texts = [EVIL if number == 3 else text for number, text in enumerate(rows["text"][:])]
    labels = ["negative" if label == 0 else "positive" for label in rows["label"][:]]
    data = datasets.Dataset.from_dict({"text": texts, "label": labels, "grade": rows["group"][:]})
    result = exitkit.benchmark(
        trained,
        data=data,
        rounds=1,
        policy=["entropy", "patience"],
        speedups="1x,1.5x",
        currency="layers",
        batch_size="8,1",
        calibration_data="demo:reviews",
        calibration_split="validation[:200]",
    )
    folder = tmp_path_factory.mktemp("report")
    write(folder, result)
    return result, folder


def test_the_page_stands_alone_and_holds_every_picture(report: tuple[dict, Path]) -> None:
    result, folder = report
    page = Page((folder / "index.html").read_text())
    assert page.loads == []
    assert "script" not in page.tags
    names = {file.name for file in (folder / "pictures").iterdir()}
    assert {"time-batch-8.png", "time-batch-1.png", "flops.png", "exits.png"} <= names
    parts = [name for name in names if name.startswith("parts-")]
    assert len(parts) == 2, "one for each run that lets rows leave"
    assert page.tags.count("svg") == len(names)
    assert json.loads((folder / "benchmark.json").read_text()) == json.loads(json.dumps(result))


def test_rows_that_hold_html_are_shown_as_text(trained: Path, tmp_path: Path) -> None:
    texts = [f"{EVIL} {number}" for number in range(40)]
    labels = ["positive", "negative"] * 20
    data = datasets.Dataset.from_dict({"text": texts, "label": labels})
    result = exitkit.benchmark(trained, data=data, rounds=1, policy={"name": "fixed", "exit": 1})
    run = result["runs"][0]
    run["breakdown"]["changed"]["shown"] = [
        {"row": 0, "text": texts[0], "full": EVIL, "answer": EVIL, "truth": EVIL, "exit": 1}
    ]
    write(tmp_path, result)
    html = (tmp_path / "index.html").read_text()
    assert "<script>" not in html
    assert "<b>bold" not in html
    assert EVIL in Page(html).text


@pytest.mark.parametrize("name", [r"$\frac$", "$5-$10"])
def test_dollars_in_names_are_dollars_in_pictures(name: str) -> None:
    part = {"name": name, "rows": 3, "exits": [1, 2], "score": 0.5, "full_score": 0.5}
    parts = {"measure": "accuracy", "by_class": [part], "by_length": [], "by_group": [part]}
    figure = pictures.parts({"breakdown": parts})
    assert pictures.svg(figure).count(f"{name} (3)") >= 2
    assert pictures.png(figure).startswith(b"\x89PNG")
    curve = {"recipe": name, "policy": name, "points": [[1.0, 0.5], [30.0, 0.4]]}
    drawn = pictures.svg(pictures.curves([curve], "flops", "accuracy"))
    assert name in drawn
    assert "mathdefault" not in drawn


def test_runs_say_where_rows_of_each_part_left(report: tuple[dict, Path]) -> None:
    result, _ = report
    run = result["runs"][1]
    found = run["breakdown"]
    assert sum(part["rows"] for part in found["by_exit"]) == 80
    assert sum(part["rows"] for part in found["by_length"]) == 80
    assert {part["name"] for part in found["by_class"]} == {"negative", "positive"}
    assert {part["name"] for part in found["by_group"]} == {"easy", "negated", "contrast"}
    for parts in (found["by_class"], found["by_group"], found["by_length"]):
        assert np.sum([part["exits"] for part in parts], axis=0).tolist() == run["exit_histogram"]
        right = sum(part["rows"] * part["score"] for part in parts)
        assert right / 80 == pytest.approx(run["score"])
    assert [("breakdown" in run) for run in result["runs"]] == [True] * 4 + [False] * 4, "once, not per batch size"
    assert run["ms_per_row"] == pytest.approx(1000 / run["throughput"])


def _judged(full: list[int], truth: list[int] | None) -> Judged:
    rows = read([{"text": f"row {number}", "label": "ab"[one]} for number, one in enumerate(truth or full)])
    lengths = np.arange(1, len(full) + 1)
    return Judged(rows, Classification(("a", "b")), lengths, np.array(full), None if truth is None else np.array(truth))


def test_changed_answers_are_counted_both_ways() -> None:
    judged = _judged(full=[0, 0, 1, 1, 0], truth=[0, 1, 1, 0, 0])
    found = changed(judged, np.array([1, 1, 1, 1, 0]), np.array([1, 1, 2, 2, 2]))
    assert (found["rows"], found["became_wrong"], found["became_right"]) == (2, 1, 1)
    assert [row["text"] for row in found["shown"]] == ["row 0", "row 1"]
    assert found["shown"][0]["truth"] == "a"
    assert found["shown"][0]["answer"] == "b"
    unlabelled = changed(_judged([0, 0], None), np.array([1, 0]), np.array([1, 1]))
    assert (unlabelled["rows"], unlabelled["became_wrong"]) == (1, None)
    assert unlabelled["shown"][0]["truth"] is None


def test_shown_changes_are_capped_and_the_cap_is_told() -> None:
    judged = _judged(full=[0] * 250 + [1], truth=[0] * 250 + [1])
    found = changed(judged, np.array([1] * 250 + [1]), np.ones(251, dtype=int))
    assert found["rows"] == 250
    assert len(found["shown"]) == MOST_SHOWN


def test_parts_by_hand() -> None:
    judged = _judged(full=[0, 0, 1, 1], truth=[0, 1, 1, 0])
    found = breakdown(judged, np.array([0, 1, 0, 0]), np.array([1, 1, 3, 3]), 3)
    by_class = {part["name"]: part for part in found["by_class"]}
    assert by_class["a"] == {"name": "a", "rows": 2, "exits": [1, 0, 1], "score": 1.0, "full_score": 0.5}
    assert by_class["b"]["score"] == 0.5
    assert [part["name"] for part in found["by_exit"]] == ["exit 1", "exit 3"]
    assert found["by_group"] == []


def test_regression_is_broken_down_by_error() -> None:
    rows = read([{"text": str(n), "label": n / 2} for n in range(4)])
    judged = Judged(rows, Regression(), np.arange(1, 5), np.arange(4) / 2, np.arange(4) / 2)
    found = breakdown(judged, np.array([0.0, 0.5, 2.0, 1.5]), np.array([1, 1, 1, 2]), 2)
    assert found["measure"] == "mean absolute error"
    assert found["by_exit"][0]["score"] == pytest.approx(1 / 3)
    assert found["changed"]["shown"][0]["row"] == 2


def test_a_group_column_is_read_only_where_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label,part\na,x,1\nb,y,2\n")
    assert "group" not in read(str(file)).data.column_names
    assert read(str(file), columns=Columns(group="part")).data["group"][:] == ["1", "2"]
    with pytest.raises(UsageError, match="'parts'"):
        read(str(file), columns=Columns(group="parts"))


# --- several artifacts


def test_artifacts_are_compared_in_milliseconds_on_the_same_rows(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    result = exitkit.benchmark(trained, other, rounds=1, max_rows=60, policy={"name": "fixed", "exit": 1})
    assert [run["artifact"] for run in result["runs"]] == [str(trained), str(other)]
    write(tmp_path / "report", result)
    assert (tmp_path / "report/pictures/milliseconds-batch-32.png").exists()


def test_artifacts_that_answer_different_questions_are_refused(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    card = yaml.safe_load((other / "exitkit.yaml").read_text())
    (unsealed(other) / "exitkit.yaml").write_text(yaml.safe_dump({**card, "labels": ["no", "yes"]}))
    config = json.loads((other / "config.json").read_text())
    named = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    (other / "config.json").write_text(json.dumps({**config, **named}))
    with pytest.raises(UsageError, match=r"different questions: classification of negative, positive .* of no, yes"):
        exitkit.benchmark(trained, other, rounds=1)


# --- inspect and the card


def test_inspect_tells_what_an_artifact_is(artifact: Path) -> None:
    exitkit.calibrate(artifact, target_speedup=1.2, currency="layers", min_exit=2)
    found = json.loads(CliRunner().invoke(app, ["inspect", str(artifact), "--json"]).stdout)
    assert (found["task"], found["family"], found["layers"]) == ("classification", "bert", 4)
    assert [one["layer"] for one in found["exits"]] == [1, 2, 3, 4]
    metrics = json.loads((artifact / "metrics.json").read_text())
    assert [one["score"] for one in found["exits"]] == [one["score"] for one in metrics["exits"]]
    stock = AutoModelForSequenceClassification.from_pretrained(artifact)
    assert found["parameters"]["model.safetensors"] == sum(p.numel() for p in stock.parameters())
    (policy,) = found["policies"]
    assert policy["limits"] == {"min_exit": 2}
    assert policy["calibration"]["there"]
    shown = CliRunner().invoke(app, ["inspect", str(artifact)]).stdout
    assert "entropy (default) for 1.2x in layers" in " ".join(shown.split())
    (artifact / "exits.safetensors").unlink()
    broken = CliRunner().invoke(app, ["inspect", str(artifact), "--json"])
    assert broken.exit_code == 1
    assert "exits.safetensors is missing" in json.loads(broken.stdout)["error"]


def test_inspect_refuses_what_is_no_artifact(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"])
    assert result.exit_code == 2
    assert str(tmp_path) in json.loads(result.stdout)["error"]


def test_the_card_has_the_hubs_front_matter_and_measured_figures(artifact: Path) -> None:
    text = (artifact / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "exitkit"
    assert front["pipeline_tag"] == "text-classification"
    metrics = json.loads((artifact / "metrics.json").read_text())
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == round(metrics["exits"][-1]["score"], 4)
    assert f"| 4 | 4 | {100 * metrics['exits'][-1]['score']:.1f} |" in text
    assert "## Calibrated" not in text
    found = exitkit.calibrate(artifact, target_speedup=1.2, currency="layers")
    again = (artifact / "README.md").read_text()
    assert f"| entropy | 1.2x in layers | {found['measured_speedup']['layers']:.2f}x |" in again


def test_somebodys_own_readme_is_never_overwritten(artifact: Path) -> None:
    (artifact / "README.md").write_text("mine\n")
    exitkit.calibrate(artifact, target_speedup=1.2, currency="layers")
    assert (artifact / "README.md").read_text() == "mine\n"


def test_a_damaged_metrics_file_does_not_stop_the_card_from_being_left_alone(artifact: Path) -> None:
    before = (artifact / "README.md").read_text()
    (artifact / "metrics.json").write_text("{")
    model_card.refresh(artifact)
    assert (artifact / "README.md").read_text() == before
    with pytest.raises(ExitkitError, match=r"metrics\.json is damaged"):
        inspection.inspect(artifact)
