"""The example runs run."""

from __future__ import annotations

from pathlib import Path

from test_cli import run

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_example_files_are_a_journey_from_training_to_a_benchmark(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    short = ["--max-train-samples", 1500, "--epochs", 1, "--set", "recipe.learning_rate=2e-3", "--model", encoder]
    run("train", "--config", EXAMPLES / "train-demo.yaml", "--output", folder, *short)
    result = run("calibrate", folder, "--config", EXAMPLES / "calibrate-demo.yaml")
    assert result["currency"] == "flops"
    quick = ["--set", "rounds=1", "--set", "max_rows=64"]
    report = run("benchmark", folder, "--config", EXAMPLES / "benchmark-demo.yaml", *quick)
    assert {one["policy"] for one in report["runs"]} == {"entropy", "patience"}
    assert {one["settings"].get("patience") for one in report["runs"]} == {None, 2}
    assert len(list(EXAMPLES.glob("*.yaml"))) == 3, "every example is run here"
