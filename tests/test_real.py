"""The main job on real data and real pre-trained weights, in miniature."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import exitkit
from exitkit.artifacts.plans import full_model
from exitkit.data.sources import read
from exitkit.engine.loop import run
from exitkit.engine.schedule import schedule
from exitkit.engine.trace import Trace
from exitkit.measuring.runs import Sample

FOLDER = Path(os.environ.get("EXITKIT_REAL_DATA", ""))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("EXITKIT_REAL_DATA" not in os.environ, reason="EXITKIT_REAL_DATA is not set"),
]


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "sst2"
    report = exitkit.train(
        model=str(FOLDER / "models/all-MiniLM-L6-v2"),
        data=str(FOLDER / "data/sst2"),
        output=folder,
        max_train_samples=1200,
        epochs=1,
        recipe={"name": "joint", "learning_rate": 1e-4, "head_learning_rate": 1e-3},
    )
    assert report["exits"][-1]["score"] > 0.7
    assert report["split"] == "validation"
    return folder


def validation(predictor: exitkit.prediction.predictor.Predictor, batch_size: int) -> list[dict[str, torch.Tensor]]:
    rows = read(str(FOLDER / "data/sst2"), "validation[:96]", task=predictor.artifact.task)
    return Sample.of(rows, predictor.artifact).batches(batch_size)


def test_the_saved_folder_is_a_plain_checkpoint_that_answers_like_the_last_exit(sst2: Path) -> None:
    predictor = exitkit.load(sst2)
    plain = AutoModelForSequenceClassification.from_pretrained(sst2, dtype=torch.float32).eval()
    full = full_model(predictor.artifact, predictor.registry)
    for batch in validation(predictor, 32):
        with torch.inference_mode():
            theirs = plain(**batch).logits
        assert torch.allclose(run(predictor.artifact.model, batch, full).logits, theirs, atol=2e-5)


@pytest.mark.parametrize("policy", ["entropy", "confidence", "patience", "fixed"])
def test_answers_and_exits_do_not_depend_on_the_batch(sst2: Path, policy: str) -> None:
    predictor = exitkit.load(sst2)
    model = predictor.artifact.model
    settings = {"entropy": {"threshold": 0.9}, "confidence": {"threshold": 0.7}, "patience": {"patience": 2}}
    plan = schedule(policy, predictor.registry.policy(policy), settings.get(policy, {"exit": 3}), model.shape)
    traces = {
        size: Trace.join([run(model, batch, plan) for batch in validation(predictor, size)]) for size in (1, 7, 32)
    }
    for size in (7, 32):
        same = traces[size].exit == traces[1].exit
        assert same.float().mean() >= 0.98, "only a tie within rounding of the threshold may move"
        assert torch.allclose(traces[size].logits[same], traces[1].logits[same], atol=5e-5)
    if policy != "fixed":
        assert len(set(traces[1].exit.tolist())) >= 3


def test_calibrating_in_layers_reaches_the_target_and_predict_uses_it(sst2: Path) -> None:
    result = exitkit.calibrate(
        sst2, data=str(FOLDER / "data/sst2"), split="validation[:50%]", target_speedup=1.5, currency="layers"
    )
    assert result["feasible"]
    assert 0.98 * 1.5 <= result["measured_speedup"]["layers"] <= 1.6
    answers = exitkit.load(sst2).predict(["a gripping , moving film", "dull , stupid and far too long"])
    assert [answer["label"] for answer in answers] == ["positive", "negative"]
