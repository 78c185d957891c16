"""`exitkit demo`: the whole journey, shortened, and its table of grades."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from exitkit.cli import app
from exitkit.demo import grades, mean_exit


def test_the_journey_writes_a_model_and_a_report_and_prints_one_object(tmp_path: Path) -> None:
    args = ["demo", "--output", str(tmp_path), "--set", "epochs=0.5", "--set", "max_train_samples=600", "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["train"]["exits"]) >= 8
    assert [one["policy"] for one in found["calibrate"]] == ["entropy", "confidence", "patience"]
    assert {one["grade"] for one in found["grades"]} == {"easy", "negated", "contrast"}
    assert sum(one["rows"] for one in found["grades"]) == 1200
    assert all(len(one["by_exit"]) == 8 for one in found["grades"])
    assert (tmp_path / "report/index.html").exists()
    assert (tmp_path / "model/config.json").exists()


def test_grades_are_told_from_where_their_rows_leave() -> None:
    def part(name: str, exits: list[int], score: float) -> dict:
        return {"name": name, "rows": sum(exits), "exits": exits, "score": score, "full_score": 1.0}

    report = {
        "runs": [{"breakdown": {"by_group": [part("hard", [1, 0, 3], 0.75), part("easy", [4, 0, 0], 1.0)]}}],
        "baselines": [
            {"name": "fixed exit 1", "by_group": [part("easy", [4, 0, 0], 1.0), part("hard", [4, 0, 0], 0.5)]},
            {"name": "packed full depth", "by_group": [part("easy", [0, 0, 4], 1.0), part("hard", [0, 0, 4], 1.0)]},
            {"name": "plain transformers, padded"},
        ],
    }
    easy, hard = grades(report)
    assert (easy["grade"], hard["grade"]) == ("easy", "hard")
    assert hard["by_exit"] == [0.5, 1.0]
    assert hard["exits"] == [1, 0, 3]
    assert mean_exit(hard["exits"]) == 2.5
