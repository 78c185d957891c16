"""What every family can do besides giving the stock answer: exit, skip, be trained and saved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from families import FAMILIES, SMALL, batch, stock, with_exits
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import exitkit
from exitkit.cli import app
from exitkit.data.sources import read
from exitkit.engine.cost import prices
from exitkit.engine.loop import run
from exitkit.engine.schedule import schedule
from exitkit.engine.trace import Trace
from exitkit.errors import UsageError
from exitkit.plugins import installed
from exitkit.policy import ExitPolicy, knob, normalised_entropy

PADDED = ("deberta", "deberta-v2 with a convolution", "deberta-v3", "mpnet")
WHOLE = (*PADDED, "bilstm")
NEW = ("albert", "albert with two groups of two", "bilstm with narrow embeddings", *PADDED)


@dataclass(frozen=True)
class SkipsAndLeaves(ExitPolicy):
    """Layers are skipped by what the first state says, exits are taken by entropy."""

    rewrites: ClassVar[bool] = True
    threshold: float = knob(0.6, low=0.0, high=1.0, off=-1.0)

    def gate(self, before, state):
        return ((before.hidden[before.bounds[:-1], 0] * 997).floor().long() + before.layer) % 3 != 0

    def decide(self, seen, state):
        return normalised_entropy(seen.logits) < self.threshold, state


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_order_and_padding_change_nothing_in_any_family(family: str) -> None:
    model = with_exits(stock(family))
    rows = batch(model.stock)
    plan = schedule("both", SkipsAndLeaves, {}, model.shape)
    whole = run(model, rows, plan)
    assert whole.layers.min() < 4, "some layer was skipped"
    order = [3, 1, 4, 0, 2]
    lengths = rows["attention_mask"].sum(dim=1).tolist()
    single = [run(model, {k: v[i : i + 1, :n] for k, v in rows.items()}, plan) for i, n in enumerate(lengths)]
    alone = Trace.join(single)
    mixed = run(model, {k: v[order] for k, v in rows.items()}, plan)
    for other, same in ((alone, whole), (mixed, whole)):
        rows_of = order if other is mixed else list(range(5))
        assert torch.equal(other.exit, same.exit[rows_of])
        assert torch.equal(other.layers, same.layers[rows_of])
        assert torch.allclose(other.logits, same.logits[rows_of], atol=1e-4)


@pytest.mark.parametrize("family", WHOLE)
def test_words_that_leave_one_by_one_are_refused_where_they_cannot_halt(family: str) -> None:
    model = with_exits(stock(family, tags=True))
    with pytest.raises(UsageError, match=r"policy 'entropy' lets words leave one by one.*exitkit families"):
        schedule("entropy", installed().policy("entropy"), {}, model.shape)
    rows = batch(model.stock)
    words = torch.where(rows["attention_mask"].bool(), torch.arange(31), -1)
    plan = schedule("fixed", installed().policy("fixed"), {"exit": 2}, model.shape)
    assert (run(model, {**rows, "words": words}, plan).exit == 2).all()


@pytest.mark.parametrize(
    ("family", "key", "query", "pair"),
    [
        ("albert", 2048, 2048 + 3072, 64),
        ("albert with two groups of two", 4096, 2 * (2048 + 3072), 128),
        ("deberta", 2048, 2048 + 3072, 64 * 3),
        ("deberta-v3", 2048 + 12 * 32, 2048 + 3072 + 12 * 32, 64),
        ("mpnet", 2048, 2048 + 3072, 64),
        ("bilstm with narrow embeddings", 2 * 4 * 16 * (32 + 16), 0, 0),  # directions, gates, units, input and state
    ],
)
def test_multiply_adds_of_a_layer_by_hand(family: str, key: int, query: int, pair: int) -> None:
    cost = prices(with_exits(stock(family))).layers[0]
    assert (cost.key, cost.query, cost.pair) == (key, query, pair)


@pytest.mark.parametrize("family", NEW)
def test_a_family_is_trained_saved_and_read_by_plain_transformers(family: str, encoder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    given = {**SMALL, **FAMILIES[family], "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    start = tmp_path / "start"
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**given)).base_model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    folder = tmp_path / "model"
    exitkit.train(model=str(start), data="demo:reviews", output=folder, epochs=1, max_train_samples=96, max_length=40)
    texts = read("demo:reviews", "test[:3]").data["text"][:]  # no unknown words: MPNet counts them as padding
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        theirs = plain(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1).numpy()
    model = exitkit.load(folder)
    assert model.predict_proba(texts) == pytest.approx(theirs, abs=1e-5)
    assert model.artifact.model.shape.exits == 4


def test_families_says_what_each_can_do() -> None:
    found = json.loads(CliRunner().invoke(app, ["families", "--json"]).stdout)["families"]
    by_name = {row["name"]: row for row in found}
    assert by_name["albert"]["words_can_halt"] is True
    assert by_name["deberta-v2"] == {
        "name": "deberta-v2",
        "origin": by_name["bert"]["origin"],
        "how": "padded adapter",
        "sentences_exit": True,
        "layers_skip": True,
        "words_can_halt": False,
        "students_cut": False,
    }
    assert (by_name["exitkit-bilstm"]["how"], by_name["exitkit-bilstm"]["words_can_halt"]) == ("native", False)
