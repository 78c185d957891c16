"""Checkpoints that people bring: what plain transformers answers otherwise is made right, or refused by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, REGISTRY, SMALL
from helpers import weights_of
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizerFast,
    EsmConfig,
    PreTrainedTokenizerBase,
)

import exitkit
from exitkit.data.batches import encode, padded
from exitkit.data.sources import read
from exitkit.engine.encoders.bert import BertEncoder
from exitkit.engine.loop import every_exit
from exitkit.errors import ExitkitError, UsageError
from exitkit.tasks import Classification, Tagging
from exitkit.training.checkpoint import check_config, fitting_tokenizer
from exitkit.training.start import Start, starting_model

TWO = Classification(("neg", "pos"))
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "fine", "dull", "film", *map(str, range(50))]
ROWS = [{"text": f"{word} film {number}", "label": label} for number in range(12) for word, label in
        (("good", "pos"), ("bad", "neg"))]  # fmt: skip
PAIRS = [{**row, "text_pair": "fine film"} for row in ROWS]
SMALL_STEPS = {"per_device_train_batch_size": 8}


def tokenizer() -> PreTrainedTokenizerBase:
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=60)


def checkpoint(
    folder: Path, family: str = "bert", auto: type = AutoModel, named: bool = True, **fields: object
) -> Path:
    """A small random model with large weights, in two layers, and a tokenizer that gives pairs two token types."""
    given = {**SMALL, **FAMILIES[family], "initializer_range": 0.4, "num_hidden_layers": 2, "num_labels": 2, **fields}
    if given["model_type"] == "distilbert":
        given = {key: value for key, value in given.items() if key not in ("hidden_size", "num_hidden_layers")}
    if named and given["num_labels"] == 2:
        given |= {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    torch.manual_seed(0)
    auto.from_config(AutoConfig.for_model(**given)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def edit(folder: Path, **fields: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return folder


def add_weights(folder: Path, *names: str) -> Path:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **{name: torch.zeros(2) for name in names}}, file, metadata={"format": "pt"})
    return folder


def begin(folder: Path, task: Classification | Tagging = TWO) -> Start:
    return starting_model(str(folder), task, None, "mean", REGISTRY)


def train(model: Path, output: Path, data: list[dict] = ROWS, recipe: str = "two-stage") -> None:
    exitkit.train(model=str(model), data=data, output=output, epochs=1, recipe=recipe, training=SMALL_STEPS)


def plain(folder: Path, *texts: str) -> torch.Tensor:
    """Logits [1, C] as whoever loads the folder in transformers gets them."""
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits: torch.Tensor = stock(**AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt")).logits
    return logits


HUB: dict[str, tuple[str, type, tuple[str, ...]]] = {
    "bert with the heads of pre-training": ("bert", AutoModelForPreTraining, ("bert.embeddings.position_ids",)),
    "MiniLM as sentence-transformers saves it": ("bert", AutoModel, ("embeddings.position_ids",)),
    "roberta with its language model": ("roberta", AutoModelForMaskedLM, ("roberta.embeddings.position_ids",)),
    "roberta with a pooler": ("roberta", AutoModel, ("pooler.dense.weight", "pooler.dense.bias")),
    "multilingual e5": ("xlm-roberta", AutoModel, ("pooler.dense.weight", "embeddings.position_ids")),
    "camembert": ("camembert", AutoModelForMaskedLM, ("roberta.pooler.dense.weight",)),
    "distilbert with its language model": ("distilbert", AutoModelForMaskedLM, ()),
    "albert with its predictions": ("albert", AutoModelForPreTraining, ("albert.embeddings.position_ids",)),
    "electra's discriminator": ("electra", AutoModelForPreTraining, ("electra.embeddings.position_ids",)),
    "electra's generator": ("electra with narrow embeddings", AutoModelForMaskedLM, ()),
    "mpnet as sentence-transformers saves it": ("mpnet", AutoModel, ("pooler.dense.weight", "embeddings.position_ids")),
    "mdeberta": ("deberta-v3", AutoModelForMaskedLM, ("deberta.embeddings.word_embeddings._weight",)),
    "deberta with heads": ("deberta", AutoModel, ("lm_predictions.lm_head.dense.weight", "mask_predictions.x")),
    "modernbert with its language model": ("modernbert", AutoModelForMaskedLM, ("decoder.weight",)),
}


@pytest.mark.parametrize("kind", HUB)
def test_heads_of_other_tasks_poolers_and_buffers_of_a_checkpoint_do_not_matter(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family, auto, more = HUB[kind]
    begun = begin(add_weights(checkpoint(tmp_path, family, auto), *more))
    assert not begun.fine_tuned
    assert begun.misfit is None
    assert not [record for record in caplog.records if record.name == "exitkit"]


STRANGE = (
    "encoder.layer.0.attention.self.distance_embedding.weight",
    "encoder.layer.0.mlp.gated_layers.weight",
    "encoder.layer.1.crossattention.self.query.weight",
    "encoder.layer.0.attention.self.query.lora_A.weight",
    "embeddings.rotary.weight",
)


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_encoder_weights_without_a_place_in_the_stock_class_are_refused(name: str, auto: type, tmp_path: Path) -> None:
    name = name if auto is AutoModel else f"bert.{name}"
    folder = add_weights(checkpoint(tmp_path, "bert", auto), name)
    with pytest.raises(UsageError, match=rf"has 1 encoder weights that BertForSeq\w+ has no place for, such as {name}"):
        begin(folder)


def test_a_teacher_with_weights_of_other_code_is_refused(tmp_path: Path) -> None:
    folder = add_weights(checkpoint(tmp_path / "t", "bert", AutoModelForSequenceClassification), f"bert.{STRANGE[0]}")
    with pytest.raises(UsageError, match=r"--teacher .* has no place for, such as bert\..*distance_embedding"):
        exitkit.distill(teacher=str(folder), data=ROWS, output=tmp_path / "s")


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_layers_past_those_of_the_config_are_left_out_with_a_word(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoint(tmp_path, family)
    edit(folder, **({"n_layers": 1} if family == "distilbert" else {"num_hidden_layers": 1}), layer_types=None)
    assert begin(folder).model.shape.layers == 1
    assert "its config has 1 layers, and weights of further ones" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_is_refused_in_every_family(family: str) -> None:
    config = AutoConfig.for_model(**{**SMALL, **FAMILIES[family]})
    encoder = REGISTRY.encoder(config.model_type)
    assert encoder.refusal(config) is None
    config.is_decoder = True
    why = encoder.refusal(config)
    assert why is not None
    assert "set is_decoder to false" in why


def test_decoders_are_refused_as_model_teacher_and_student(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "whole", "bert", AutoModelForSequenceClassification)
    decoder = edit(shutil.copytree(whole, tmp_path / "decoder"), is_decoder=True)
    config = edit(shutil.copytree(whole, tmp_path / "config"), is_decoder=True)
    (config / "model.safetensors").unlink()
    given = {"data": ROWS, "output": tmp_path / "s"}
    with pytest.raises(UsageError, match=r"--model .*decoder: its config says is_decoder: true"):
        train(decoder, tmp_path / "m")
    with pytest.raises(UsageError, match=r"--teacher .*decoder: its config says is_decoder: true"):
        exitkit.distill(teacher=str(decoder), **given)
    for student in (decoder, config):
        with pytest.raises(UsageError, match=r"--student .*: its config says is_decoder: true"):
            exitkit.distill(teacher=str(whole), student=str(student), **given)


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query", "alibi"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "albert"])
def test_positions_that_the_stock_class_does_not_have_are_refused(family: str, kind: str, tmp_path: Path) -> None:
    folder = edit(checkpoint(tmp_path, family), position_embedding_type=kind)
    with pytest.raises(UsageError, match=f"position_embedding_type is '{kind}', and transformers has only absolute"):
        begin(folder)


def test_positions_that_the_stock_class_has_are_its_own_affair() -> None:
    config = EsmConfig(vocab_size=60, position_embedding_type="rotary", pad_token_id=1)
    check_config("esm", config, BertEncoder, "--model")


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_angles_that_depend_on_batch_mates_are_refused(kind: str) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = AutoConfig.for_model(**{**SMALL, **FAMILIES["modernbert"]})
    config.rope_parameters = {"full_attention": {**rope, "rope_type": kind}, "sliding_attention": rope}
    why = REGISTRY.encoder("modernbert").refusal(config)
    assert why is not None
    assert f"rope_type for full_attention is '{kind}'" in why


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
def test_positions_that_count_from_no_padding_id_are_refused(family: str) -> None:
    config = AutoConfig.for_model(**{**SMALL, **FAMILIES[family], "pad_token_id": None})
    why = REGISTRY.encoder(family).refusal(config)
    assert why is not None
    assert "count from pad_token_id + 1" in why


def test_code_that_a_checkpoint_names_is_told_and_is_not_passed_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = edit(checkpoint(tmp_path / "e"), auto_map={"AutoModel": "someone/impl--modeling_bert.OtherModel"})
    begun = begin(folder)
    assert (
        "made for code of its own (auto_map: someone/impl--modeling_bert.OtherModel), which is not run" in caplog.text
    )
    begun.model.stock.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_a_config_that_asks_for_tuples_gives_a_model_that_names_its_logits(tmp_path: Path) -> None:
    stock = begin(edit(checkpoint(tmp_path), return_dict=False)).model.stock
    assert stock(torch.tensor([[2, 5, 3]])).logits.shape == (1, 2)


def added(folder: Path) -> Path:
    """With a tokenizer that somebody added a token to."""
    more = tokenizer()
    more.add_tokens(["zzqq"])
    more.save_pretrained(folder)
    return folder


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_everywhere(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "whole", "bert", AutoModelForSequenceClassification)
    short = added(checkpoint(tmp_path / "short", "bert", AutoModelForSequenceClassification))
    why = r"has embeddings for 60 tokens, and its tokenizer has 61\. .*resize_token_embeddings\(61\)"
    given = {"data": ROWS, "output": tmp_path / "s"}
    with pytest.raises(UsageError, match=rf"--model .*short: it {why}"):
        train(short, tmp_path / "m")
    with pytest.raises(UsageError, match=rf"--teacher .*short: it {why}"):
        exitkit.distill(teacher=str(short), **given)
    with pytest.raises(UsageError, match=rf"--student .*short: it {why}"):
        exitkit.distill(teacher=str(whole), student=str(short), **given)


def test_a_gap_in_the_ids_of_a_tokenizer_counts(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    vocab = {word: number for number, word in enumerate(WORDS)}
    BertTokenizerFast(vocab={**vocab, "49": 75}).save_pretrained(folder)
    with pytest.raises(UsageError, match="embeddings for 60 tokens, and its tokenizer has 76"):
        begin(folder)


def test_a_model_with_more_rows_than_its_tokenizer_has_tokens_is_fine(tmp_path: Path) -> None:
    begin(checkpoint(tmp_path, vocab_size=64))


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "albert"])
def test_token_types_that_a_model_does_not_have_are_left_out_here_and_in_what_is_saved(
    family: str, tmp_path: Path
) -> None:
    begun = begin(checkpoint(tmp_path / "e", family, type_vocab_size=1, pad_token_id=0))
    assert "token_type_ids" in tokenizer()("good", "bad")
    begun.model.stock.save_pretrained(tmp_path / "saved")
    begun.tokenizer.save_pretrained(tmp_path / "saved")
    encoded = encode(read(PAIRS[:1]), begun.tokenizer, 60)
    assert "token_type_ids" not in encoded.column_names
    batch = padded(encoded[:1], begun.tokenizer)
    with torch.no_grad():
        ours = every_exit(begun.model.eval(), {name: batch[name] for name in ("input_ids", "attention_mask")})[-1]
    theirs = plain(tmp_path / "saved", PAIRS[0]["text"], PAIRS[0]["text_pair"])
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_model_without_token_types_is_trained_on_pairs_and_answers_as_plain_transformers(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "e", "roberta", type_vocab_size=1, pad_token_id=0)
    train(model, tmp_path / "m", PAIRS)
    one = (PAIRS[0]["text"], PAIRS[0]["text_pair"])
    ours = torch.as_tensor(exitkit.load(tmp_path / "m").predict_proba([one])[0])
    assert torch.allclose(ours.float(), plain(tmp_path / "m", *one).softmax(-1)[0], atol=1e-5)


def test_a_teacher_without_token_types_teaches_on_pairs(tmp_path: Path) -> None:
    teacher = checkpoint(
        tmp_path / "t", "roberta", AutoModelForSequenceClassification, type_vocab_size=1, pad_token_id=0
    )
    given = {"data": PAIRS, "method": "logits", "epochs": 1, "student_layers": 1}
    exitkit.distill(teacher=str(teacher), output=tmp_path / "s", **given)
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "s")("good", "bad")


def test_a_borrowed_tokenizer_is_not_changed_for_its_owner(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "roberta", type_vocab_size=1, pad_token_id=0)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    spare = tokenizer()
    begun = starting_model(str(folder), TWO, None, "mean", REGISTRY, spare=spare)
    assert "token_type_ids" not in begun.tokenizer("good", "bad")
    assert "token_type_ids" in spare("good", "bad")


def test_more_token_types_than_a_model_that_has_some_are_refused(tmp_path: Path) -> None:
    three = tokenizer()
    three.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:2", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    stock = begin(checkpoint(tmp_path)).model.stock
    with pytest.raises(UsageError, match=r"has 2 token types .* gives a pair of texts 3"):
        fitting_tokenizer("somebody/model", three, stock, "--model")


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "mpnet"])
def test_a_text_that_holds_the_padding_token_is_answered_as_plain_transformers_answers_it(
    family: str, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / "e", family, AutoModelForSequenceClassification, pad_token_id=0)
    begun = begin(model)
    assert begun.fine_tuned
    text = "good [PAD] film 1 [UNK] 2 [PAD]"
    batch = padded(encode(read([{"text": text, "label": "neg"}, *ROWS]), begun.tokenizer, 60)[:4], begun.tokenizer)
    rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours = every_exit(begun.model.eval(), rows)[-1][:1]
        alone = (
            AutoModelForSequenceClassification.from_pretrained(model)
            .eval()(input_ids=torch.tensor([begun.tokenizer(text)["input_ids"]]))
            .logits
        )
    assert torch.allclose(ours, alone, atol=1e-5)


MISFITS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "for multi-label": (
        lambda folder: checkpoint(
            folder, "bert", AutoModelForSequenceClassification, problem_type="multi_label_classification"
        ),
        "its head is for multi-label with 2 labels",
    ),
    "for multi-label with other names": (
        lambda folder: checkpoint(
            folder, "bert", AutoModelForSequenceClassification, False, problem_type="multi_label_classification"
        ),
        "its head is for multi-label with 2 labels",
    ),
    "with one output": (
        lambda folder: checkpoint(folder, "bert", AutoModelForSequenceClassification, num_labels=1),
        "its head is for regression",
    ),
    "with more classes": (
        lambda folder: checkpoint(folder, "bert", AutoModelForSequenceClassification, num_labels=3),
        "its head is for classification with 3 labels",
    ),
    "of words": (
        lambda folder: checkpoint(folder, "bert", AutoModelForTokenClassification),
        "its head is for tagging with 2 tags",
    ),
    "without its weights": (
        lambda folder: edit(checkpoint(folder), architectures=["BertForSequenceClassification"]),
        "weights of its head are missing",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_two_stage_refuses_a_classifier_that_it_cannot_keep(kind: str, tmp_path: Path) -> None:
    make, why = MISFITS[kind]
    with pytest.raises(UsageError, match=rf"is a fine-tuned classifier, and {why}.*: recipe 'two-stage'.* joint"):
        train(make(tmp_path / "e"), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_other_recipes_say_that_a_head_is_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, why = MISFITS["for multi-label"]
    train(make(tmp_path / "e"), tmp_path / "m", recipe="joint")
    assert f"{why}: a new one is trained, and the encoder with it" in caplog.text


def test_two_stage_keeps_a_classifier_that_fits_and_tunes_an_encoder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = checkpoint(tmp_path / "whole", "bert", AutoModelForSequenceClassification)
    train(whole, tmp_path / "kept")
    kept = weights_of(tmp_path / "kept")
    assert all((kept[name] == value).all() for name, value in load_file(whole / "model.safetensors").items())
    caplog.clear()
    bare = checkpoint(tmp_path / "bare")
    train(bare, tmp_path / "tuned")
    query = "encoder.layer.0.attention.self.query.weight"
    assert (weights_of(tmp_path / "tuned")[f"bert.{query}"] != load_file(bare / "model.safetensors")[query]).any()
    assert "fine-tuned classifier" not in caplog.text


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 90868376\n")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "whole", "bert", AutoModelForSequenceClassification)
    folder = shutil.copytree(whole, tmp_path / "cloned")
    pointer(folder / name)
    why = rf"cloned: {name} is a Git LFS pointer, not the file itself: run 'git lfs pull'"
    with pytest.raises(UsageError, match=rf"--model .*{why}"):
        begin(folder)
    given = {"data": ROWS, "output": tmp_path / "s"}
    with pytest.raises(UsageError, match=rf"--teacher .*{why}"):
        exitkit.distill(teacher=str(folder), **given)
    with pytest.raises(UsageError, match=rf"--student .*{why}"):
        exitkit.distill(teacher=str(whole), student=str(folder), **given)


def test_pointers_that_nothing_is_read_from_do_not_matter(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    for name in ("pytorch_model.bin", "model.onnx", "spiece.model"):
        pointer(folder / name)
    begin(folder)


def test_an_artifact_whose_weights_are_a_pointer_is_named_so(tmp_path: Path) -> None:
    train(checkpoint(tmp_path / "e"), tmp_path / "m")
    pointer(tmp_path / "m" / "model.safetensors")
    with pytest.raises(ExitkitError, match=r"model\.safetensors is a Git LFS pointer"):
        exitkit.load(tmp_path / "m")


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_an_adapter_is_called_so_with_the_way_out(beside_a_model: bool, tmp_path: Path) -> None:
    if beside_a_model:
        checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "bert-base-uncased", "peft_type": "LORA"}'
    )
    with pytest.raises(UsageError, match=r"--model .*: it is a PEFT adapter to bert-base-uncased, .*merge_and_unload"):
        train(tmp_path, tmp_path / "m")


def test_an_adapter_that_does_not_say_to_what_is_called_so_too(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UsageError, match="it is a PEFT adapter, not a model"):
        begin(tmp_path)
