"""`check_family` passes every family that is installed, and catches what authors get wrong; training refuses it too."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, config
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import exitkit
from exitkit.engine.encoders.base import Encoder, LayerCost, first_tokens
from exitkit.engine.encoders.bert import BertEncoder
from exitkit.engine.encoders.modernbert import ModernBertEncoder
from exitkit.engine.encoders.padded import MPNetEncoder
from exitkit.engine.model import ExitModel
from exitkit.engine.stream import Stream, Tokens
from exitkit.errors import PluginError
from exitkit.plugins import installed
from exitkit.testing import check_family
from exitkit.training import parity


@pytest.mark.parametrize("family", FAMILIES)
def test_every_installed_family_passes(family: str) -> None:
    given = config(family)
    tolerance = 2e-5 if family.startswith("modernbert") else parity.EXACT  # turns queries and keys in fp32
    check_family(installed().encoder(given.model_type), given, family, tolerance)


class NoPositions(BertEncoder):
    def embed(self, tokens: Tokens) -> Tensor:
        return super().embed(Tokens(tokens.ids, tokens.types, torch.zeros_like(tokens.position)))


class NoTypes(BertEncoder):
    def embed(self, tokens: Tokens) -> Tensor:
        return super().embed(Tokens(tokens.ids, None, tokens.position))


class LeavesOutAlayer(BertEncoder):
    def layer(self, index: int, stream: Stream) -> Tensor:
        return stream.hidden if index == 2 else super().layer(index, stream)


class ReadsTheLastToken(BertEncoder):
    def pooled(self, stream: Stream, units: Tensor | None = None) -> Tensor:
        last = stream.hidden[stream.bounds[1:] - 1] if stream.whole else first_tokens(stream)
        return last if units is None else last[units]


class LooksAtBatchMates(BertEncoder):
    def layer(self, index: int, stream: Stream) -> Tensor:
        return super().layer(index, stream) + 1e-6 * stream.hidden.mean()


class TeachesNoEmbedding(BertEncoder):
    def embed(self, tokens: Tokens) -> Tensor:
        return super().embed(tokens).detach()


class MovesHaltedWords(BertEncoder):
    def layer(self, index: int, stream: Stream) -> Tensor:
        return super().layer(index, stream.having(active=None, asking=stream.lengths))


class CostsNothing(BertEncoder):
    def layer_cost(self, index: int) -> LayerCost:
        return LayerCost(0, 0, 0)


class NoWindow(ModernBertEncoder):
    def layer(self, index: int, stream: Stream) -> Tensor:
        block = self.base.layers[index].attn
        kept, block.sliding_window = block.sliding_window, None
        try:
            return super().layer(index, stream)
        finally:
            block.sliding_window = kept


class NoMask(MPNetEncoder):
    def padded_layer(self, index: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        return super().padded_layer(index, hidden, None)


@pytest.mark.parametrize(
    ("family", "like", "message"),
    [
        (NoPositions, "bert", "states behind the last layer differ from the stock model's"),
        (NoTypes, "bert", "states behind the last layer differ"),
        (LeavesOutAlayer, "bert", "states behind the last layer differ"),
        (ReadsTheLastToken, "bert", "logits differ from the stock model's"),
        (LooksAtBatchMates, "bert", "differ|depend on the other rows"),
        (TeachesNoEmbedding, "bert", "word_embeddings.weight gets no gradient"),
        (MovesHaltedWords, "bert", "layer 1 changes words that halted"),
        (CostsNothing, "bert", "layer 1 costs nothing"),
        (NoWindow, "modernbert", "states behind the last layer differ"),
        (NoMask, "mpnet", "states behind the last layer differ"),
    ],
)
def test_a_planted_mistake_is_found(family: type[Encoder], like: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_family(family, config(like), tolerance=2e-5 if like == "modernbert" else parity.EXACT)


def test_without_a_config_every_model_type_of_a_family_is_tried() -> None:
    class Named(NoPositions):
        model_types = frozenset({"ernie"})

        def embed(self, tokens: Tokens) -> Tensor:
            return BertEncoder.embed(self, tokens)

    check_family(Named)
    with pytest.raises(AssertionError, match=r"bert: states behind the last layer differ"):
        check_family(NoPositions)


def as_initialised(like: str, family: type[Encoder]) -> ExitModel:
    """With weights so small that logits hardly tell positions apart."""
    torch.manual_seed(0)
    return ExitModel(AutoModelForSequenceClassification.from_config(config(like)), family, [4], "mean")


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lets_every_installed_family_begin_and_changes_nothing(family: str) -> None:
    model = as_initialised(family, installed().encoder(config(family).model_type))
    model.stock.train()
    random = torch.get_rng_state()
    parity.check(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.stock.modules())


@pytest.mark.parametrize(
    ("family", "like"),
    [
        (NoPositions, "bert"),
        (NoTypes, "bert"),
        (LeavesOutAlayer, "bert"),
        (ReadsTheLastToken, "bert"),
        (NoWindow, "modernbert"),
        (NoMask, "mpnet"),
    ],
)
def test_training_refuses_a_family_that_differs_even_with_fresh_weights(family: type[Encoder], like: str) -> None:
    with pytest.raises(PluginError, match=rf"family '.*{family.__name__}' differs from the stock model .*check_family"):
        parity.check(as_initialised(like, family))


@pytest.mark.parametrize("command", ["train", "distill"])
def test_commands_refuse_it_before_they_begin(command: str, encoder, tmp_path, monkeypatch) -> None:
    registry = installed()
    where = {"train": "exitkit.training.train", "distill": "exitkit.distillation.work"}[command]
    monkeypatch.setattr(registry, "encoder", lambda model_type: NoPositions)
    monkeypatch.setattr(f"{where}.installed", lambda: registry)
    output = tmp_path / "model"
    start = {"model": str(encoder)}
    if command == "distill":
        labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
        stock = AutoModelForSequenceClassification.from_pretrained(encoder, **labels)
        stock.save_pretrained(tmp_path / "teacher")
        AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "teacher")
        start = {"teacher": [str(tmp_path / "teacher")], "student_layers": 2}
    with pytest.raises(PluginError, match="NoPositions' differs from the stock model"):
        getattr(exitkit, command)(data="demo:reviews", output=output, **start)
    assert not list(tmp_path.glob("model*"))
