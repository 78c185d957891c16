"""Tags of words: reading and aligning them, strict spans, the two policies, and all commands."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from artifacts import byte_level, byte_level_checkpoint
from exitkit_policies.sentence import RANKS, Sentence, _groups, _mean, _quantile
from exitkit_policies.token_window import Rescored, TokenWindow
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)
from typer.testing import CliRunner

import exitkit
from exitkit.artifacts import artifact
from exitkit.calibration.layer_time import LayerTimes, Line, PredictedTime, _exit_step
from exitkit.calibration.study import Study
from exitkit.cli import app
from exitkit.data.batches import encode
from exitkit.data.catalogue import catalogue
from exitkit.data.columns import Columns
from exitkit.data.conll import conll, listed
from exitkit.data.sources import labelled, read
from exitkit.engine.cost import ReplayCost, flops, full_work, prices
from exitkit.engine.limits import Limits
from exitkit.engine.loop import run
from exitkit.engine.model import ExitModel
from exitkit.engine.replay import Outcome, record, replay
from exitkit.engine.schedule import off, schedule
from exitkit.engine.stream import Stream, halt, pack, resting
from exitkit.errors import ExitkitError, UsageError
from exitkit.measuring.runs import Sample, score
from exitkit.plugins import installed
from exitkit.policy import Shape, window_max
from exitkit.prediction.reading import read as read_inputs
from exitkit.prediction.words import batch_of
from exitkit.prediction.writing import open_writer
from exitkit.recipe import EveryExit
from exitkit.tasks import Tagging
from exitkit.tasks.metrics import interval, intervals_of_sums
from exitkit.tasks.tags import first_break, notation, scheme_of, sentences, span_f1, spans, word_f1_macro, words_in
from exitkit.testing import SHAPE, evidence, tiny_batch, tiny_model
from exitkit.training.losses import distillation
from exitkit.training.start import starting_model

REGISTRY = installed()
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Spans


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (BIO, "IOB2"),
        (("O", "B-X", "I-X", "E-X", "S-X"), "IOBES"),
        (("O", "B-X", "I-X", "L-X", "U-X"), "BILOU"),
        (("NOUN", "VERB", "X"), None),
        (("O", "PER", "LOC"), None),
        (("O", "B-X", "E-X", "L-X"), None),
    ],
)
def test_the_scheme_is_seen_from_the_tags(labels: tuple[str, ...], scheme: str | None) -> None:
    assert scheme_of(labels) == scheme
    assert Tagging(labels).default_metric == ("span_f1" if scheme else "accuracy")


@pytest.mark.parametrize(
    ("tags", "scheme", "place"),
    [
        (["O", "B-X", "I-X", "O"], "IOB2", None),
        (["O", "I-X"], "IOB2", 1),
        (["B-X", "I-Y"], "IOB2", 1),
        (["B-X", "B-X"], "IOB2", None),
        (["B-X", "I-X", "E-X"], "IOBES", None),
        (["B-X", "O"], "IOBES", 1),
        (["S-X", "B-X"], "IOBES", 1),
        (["U-X", "B-X", "L-X"], "BILOU", None),
        (["B-X", "L-Y"], "BILOU", 1),
        ([], "IOBES", None),
    ],
)
def test_the_first_tag_that_breaks_the_scheme_is_found(tags: list[str], scheme: str, place: int | None) -> None:
    assert first_break(tags, scheme) == place


def test_span_f1_is_strict_about_ends_kinds_and_schemes() -> None:
    truth = sentences([[0, 1, 2, 0], [3, 4], [0]])
    assert span_f1(BIO, "IOB2")(truth, truth) == 1
    assert span_f1(BIO, "IOB2")(truth, sentences([[0, 1, 0, 0], [3, 4], [0]])) == 0.5, "an end is wrong"
    assert span_f1(BIO, "IOB2")(truth, sentences([[0, 1, 2, 0], [1, 2], [0]])) == 0.5, "a kind is wrong"
    assert span_f1(BIO, "IOB2")(truth, sentences([[0, 2, 2, 0], [3, 4], [0]])) == pytest.approx(2 / 3), (
        "I- cannot begin"
    )
    assert span_f1(BIO, "IOB2", "LOC")(truth, sentences([[0, 0, 0, 0], [3, 4], [0]])) == 1
    assert spans([["O", "I-PER"]], "IOB2") == [set()]


def test_macro_f1_over_words_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth, given = (sentences([random.integers(0, 4, n) for n in (3, 0, 7, 12)]) for _ in range(2))
    expected = f1_score(np.concatenate(truth), np.concatenate(given), average="macro")
    assert word_f1_macro(5)(truth, given) == pytest.approx(expected), "a tag that occurs nowhere does not count"


def test_the_interval_of_sums_is_that_of_rows() -> None:
    right = np.random.default_rng(1).random(400) < 0.7
    counts = np.stack([right, np.ones(400)], axis=1)
    slow = interval(lambda rows: right[rows].mean(), 400, resamples=4000)
    (fast,) = intervals_of_sums(lambda sums: [sums[..., 0] / sums[..., 1]], counts, resamples=4000)
    assert fast == pytest.approx(slow, abs=0.005)


def test_the_interval_of_sums_holds_few_resamples_in_memory_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.stack([np.arange(50) % 3 == 0, np.ones(50)], axis=1).astype(float)
    shapes: list[tuple[int, ...]] = []

    def share_of(sums: np.ndarray) -> list[np.ndarray]:
        shapes.append(sums.shape)
        return [sums[..., 0] / sums[..., 1]]

    whole = intervals_of_sums(share_of, counts, resamples=100)
    monkeypatch.setattr("exitkit.tasks.metrics.DRAWN_AT_ONCE", 50 * 30)
    assert intervals_of_sums(share_of, counts, resamples=100) == whole
    assert shapes == [(100, 2), (30, 2), (30, 2), (30, 2), (10, 2)]


def test_the_loss_of_a_batch_without_words_is_zero() -> None:
    nobody = EveryExit(torch.zeros(2, 0, 5), torch.zeros(0, dtype=torch.long), layers=(1, 2), task=Tagging(BIO))
    assert float(nobody.loss(nobody.logits[0])) == 0
    assert float(distillation(nobody.logits[0], nobody.logits[1], nobody.task, 2.0)) == 0


def test_metrics_of_plain_tags_know_no_spans() -> None:
    with pytest.raises(UsageError, match="The tags are plain"):
        Tagging(("NOUN", "VERB")).metric("span_f1")
    with pytest.raises(UsageError, match="Did you mean 'PER'"):
        Tagging(BIO).metric("f1:PRE")
    assert Tagging(("NOUN", "VERB")).metric("f1:VERB")(sentences([[0, 1]]), sentences([[0, 1]])) == 1


# Reading


def test_words_and_tags_are_found_by_their_usual_names(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "train.jsonl", [{"id": 1, "tokens": ["a", "b c"], "ner_tags": ["O", "B-X"]}]))
    assert isinstance(rows.task, Tagging)
    assert rows.data[0] == {"text": "a b c", "words": ["a", "b c"], "label": [1, 0]}
    assert rows.labels == ("B-X", "O")


def test_strings_in_a_table_are_split_at_blanks_or_read_as_json(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('tokens,tags\nhe runs,PRON VERB\n"[""I"", ""am""]","[""PRON"", ""AUX""]"\n')
    rows = read(tmp_path / "train.csv")
    assert rows.data["words"][:] == [["he", "runs"], ["I", "am"]]


def test_lists_in_a_table_may_be_empty_or_numbers_but_not_as_python_prints_them(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text('tokens,tags\n"[""I"", ""am""]","[0, 2]"\n[],[]\n[ 7 ],1 1 1\n"a b",[2 1]\n')
    rows = read(file, task=Tagging(("B-X", "I-X", "O")))
    assert rows.data["words"][:] == [["I", "am"], [], ["[", "7", "]"], ["a", "b"]]
    assert rows.data["label"][:] == [[0, 2], [], [1, 1, 1], [2, 1]]
    file.write_text("tokens,tags\n\"['I', 'am']\",\"['X', 'Y']\"\n")
    with pytest.raises(UsageError, match="Write lists as JSON"):
        read(file)
    lines = list(read_inputs(file, expects_pair=False, keeps_words=True, text_column="tokens"))
    assert "write lists as JSON" in lines[0].reason
    file.write_text("tokens\n[]\n")
    assert [line.text for line in read_inputs(file, expects_pair=False, keeps_words=True)] == [[]]


@pytest.mark.parametrize("tags", [None, [-1, -1]])
def test_rows_whose_tags_are_kept_back_are_unlabelled(tags: list[int] | None, tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", [{"tokens": ["a", "b"], "tags": tags}] * 2)
    rows = read(file, task=Tagging(BIO), use_labels="optional")
    assert (rows.task, rows.data["words"][:]) == (None, [["a", "b"]] * 2)
    assert not labelled(catalogue(file), "test", Columns())
    with pytest.raises(UsageError, match="has no labels"):
        read(file, task=Tagging(BIO))


def test_tags_in_a_column_for_labels_are_found_for_a_tagger_too(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", [{"tokens": ["a"], "labels": ["O"]}])
    for task in (None, "tagging", Tagging(BIO)):
        assert read(file, task=task).data["label"][:] == [[0]]


def test_large_strings_are_words(tmp_path: Path) -> None:
    kind = pa.large_list(pa.large_string())
    table = pa.table({"tokens": pa.array([["a", "b"]], kind), "tags": pa.array([["O", "B-X"]], kind)})
    pq.write_table(table, tmp_path / "train.parquet")
    assert read(tmp_path / "train.parquet").data["words"][:] == [["a", "b"]]


def test_conll_and_conllu_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\n")
    assert read(tmp_path / "a.conll").data["words"][:] == [["EU", "rejects"], ["Peter"]]
    (tmp_path / "b.conllu").write_text(
        "# text = vámonos\n1-2\tvámonos\t_\t_\t_\n1\tvamos\tir\tVERB\tV\n2\tnos\tnosotros\tPRON\tP\n2.1\tx\tx\tX\tX\n"
    )
    rows = read(tmp_path / "b.conllu")
    assert rows.data["words"][:] == [["vamos", "nos"]]
    assert [rows.labels[tag] for tag in rows.data["label"][0]] == ["VERB", "PRON"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"tokens": ["a"], "tags": ["X"]}, {"tokens": ["a", "b"], "tags": ["X"]}], "row 2 .*: 2 words, but 1 tags"),
        ([{"tokens": ["a", None], "tags": ["X", "Y"]}], "row 1 .*: a word in column 'tokens' is missing"),
        ([{"tokens": ["a"], "tags": ["X"]}, {"tokens": None, "tags": ["X"]}], "row 2 .*'tokens' has no words"),
        ([{"tokens": [], "tags": []}], "empty lists only"),
    ],
)
def test_rows_that_do_not_fit_are_named(rows: list[dict], words: str, tmp_path: Path) -> None:
    with pytest.raises(ExitkitError, match=words):
        read(write(tmp_path / "train.jsonl", rows))


def test_a_line_that_is_no_word_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("EU B-ORG\nrejects\n")
    with pytest.raises(ExitkitError, match="line 2: 'rejects' is not a word with its tag"):
        read(tmp_path / "a.conll")


def test_words_without_any_tag_are_read_where_none_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("-DOCSTART-\n\nEU\nrejects\n\ncalls\n")
    rows = read(tmp_path / "a.conll", task="tagging", use_labels="optional")
    assert (rows.data["words"][:], rows.task) == ([["EU", "rejects"], ["calls"]], None)
    with pytest.raises(UsageError, match="no column looks like the label"):
        read(tmp_path / "a.conll")


def test_an_unseen_tag_is_named_with_its_row(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a"], "tags": ["B-PRE"]}])
    with pytest.raises(UsageError, match=r"row 2 .*'B-PRE'.*Did you mean 'B-PER'"):
        read(file, task=Tagging(BIO))


def test_tags_that_break_the_scheme_are_counted_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["B-X", "I-X"]}, {"tokens": ["a", "b"], "tags": ["O", "I-X"]}]
    with caplog.at_level(logging.WARNING, "exitkit"):
        read(write(tmp_path / "train.jsonl", rows))
    assert "1 sentences have tags that break the scheme IOB2" in caplog.text
    assert "row 2" in caplog.text
    assert "I-X after O" in caplog.text


# Alignment


@pytest.fixture
def tokenizer(encoder: Path):
    return AutoTokenizer.from_pretrained(encoder)


def test_words_without_a_token_get_the_fallback_tag_and_are_counted(
    tmp_path: Path, tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = ["the", "\u200b", "plot", "was", "good"]
    rows = read(write(tmp_path / "train.jsonl", [{"tokens": tokens, "tags": ["X", "O", "Y", "X", "Z"]}] * 2))
    encoded = encode(rows, tokenizer, 5, tagging=True)  # [CLS] the plot was [SEP]
    assert encoded[0]["words"] == [-1, 0, 2, 3, -1]
    assert [rows.labels[tag] for tag in encoded[0]["labels"]] == ["X", "Y", "X"], (
        "labels of the words that have a token"
    )
    with caplog.at_level(logging.WARNING, "exitkit"):
        sample = Sample(rows, tokenizer, 5, rows.task, torch.device("cpu"))
    assert sample.words.lost == 4
    assert "4 of 10 words have no token" in caplog.text
    assert "answered 'O'" in caplog.text
    said = torch.zeros(6, 4)
    said[:, rows.labels.index("Z")] = 1.0
    answers = [[rows.labels[tag] for tag in row] for row in sample.answers(said)]
    assert answers == [["Z", "O", "Z", "Z", "O"]] * 2
    assert sample.unit_labels().tolist() == [rows.labels.index(tag) for tag in "XYXXYX"]


def test_a_sentence_is_scored_as_a_whole_whatever_the_model_saw_of_it() -> None:
    task = Tagging(BIO)
    truth, given = sentences([[0, 1, 2], [3]]), sentences([[0, 1, 0], [3]])
    found = score(task, "span_f1", truth, given, truth)
    assert (found.score, found.full_score, found.agreement) == (0.5, 1.0, 0.75)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The plot was  bad", "The|plot|was|bad"),
        ("Anna\tSmith lives in Paris, near\u00a0Lyon.", "Anna|Smith|lives|in|Paris|,|near|Lyon|."),
        ("He doesn't e-mail U.S. people, e.g. J. Doe...", "He|doesn't|e-mail|U.S.|people|,|e.g.|J.|Doe|..."),
        ('"Well (really)!!"', '"|Well|(|really|)|!!|"'),
        ("thanks @anna :-) #fun $5 100%", "thanks|@anna|:-)|#fun|$|5|100|%"),
        ("她在北京 in 2024。", "她|在|北|京|in|2024|。"),
        ("good\U0001f44d\U0001f3fd!", "good|\U0001f44d\U0001f3fd|!"),
        (
            "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
            "\U0001f468\u200d\U0001f469\u200d\U0001f467|\u2764\ufe0f",
        ),
        ("\u2764\ufe0fgood\u2764\ufe0f\u2764\ufe0f", "\u2764\ufe0f|good|\u2764\ufe0f\u2764\ufe0f"),
        ("1\ufe0f\u20e3st #\ufe0f\u20e3tag", "1\ufe0f\u20e3|st|#\ufe0f\u20e3|tag"),
        ("in\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", "in|\U0001f1e9\U0001f1ea|\U0001f1eb\U0001f1f7"),
        (
            "go\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
            "go|\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        ),
        ("\u845b\U000e0100\u98fe \u4eba\u3005", "\u845b\U000e0100|\u98fe|\u4eba|\u3005"),
        (
            "\u05e9\u05c1\u05dc\u05d5\u05dd cafe\u0301 \u0d9a\u0dca\u200d\u0dc2 \u2460st",
            "\u05e9\u05c1\u05dc\u05d5\u05dd|cafe\u0301|\u0d9a\u0dca\u200d\u0dc2|\u2460st",
        ),
        (" ", ""),
        ("", ""),
    ],
)
def test_words_of_a_text_are_the_same_for_every_tokenizer(text: str, words: str) -> None:
    by_hand = words.split("|") if words else []
    assert [text[start:end] for start, end in words_in(text)] == by_hand
    batch, (read_of,) = batch_of([text], byte_level(), 90)
    assert [text[start:end] for start, end in read_of.offsets] == by_hand
    assert read_of.count == len(by_hand)
    assert set(batch["words"][0].tolist()) - {-1} == set(range(len(by_hand)))


texts = st.text(max_size=40) | st.text(
    "ab1#.\u200d\ufe0f\u20e3\u2764\u4eba\u0301 \U0001f44d\U0001f3fd\U0001f468\U0001f1e9\U0001f1ea\U000e0067",
    max_size=12,
)


@settings(deadline=None)
@given(texts, texts)
def test_words_of_two_texts_with_a_blank_between_are_those_of_each(first: str, second: str) -> None:
    behind = [(len(first) + 1 + start, len(first) + 1 + end) for start, end in words_in(second)]
    assert words_in(f"{first} {second}") == words_in(first) + behind


@given(texts)
def test_words_of_any_text_are_in_order_and_leave_out_nothing_but_white_space(text: str) -> None:
    places = words_in(text)
    assert all(start < end for start, end in places)
    assert all(before[1] <= after[0] for before, after in pairwise(places))
    assert "".join(text[start:end] for start, end in places) == "".join(text.split())


def test_texts_without_tags_are_read_in_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"Anna, in Paris."\n')
    rows = read(str(tmp_path / "a.csv"), task=Tagging(BIO), use_labels="optional")
    assert rows.data["words"][:] == [["Anna", ",", "in", "Paris", "."]]
    (tmp_path / "b.csv").write_text('tokens\n"[""Anna,"", ""in""]"\n')
    rows = read(str(tmp_path / "b.csv"), task=Tagging(BIO), use_labels="optional")
    assert rows.data["words"][:] == [["Anna,", "in"]]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_predict_reads_words_as_training_did(name: str, tmp_path: Path) -> None:
    """A string in the column that was trained on, or in one of words, is split as training splits it."""
    fields = ["he runs.", '["New York", "is"]']
    by_hand = [["he", "runs."], ["New York", "is"]]
    for column in ("mine", "tokens", "Tokens"):
        table = pa.table({column: fields})
        if name.endswith("csv"):
            pd.DataFrame({column: fields}).to_csv(tmp_path / name, index=False)
        elif name.endswith("jsonl"):
            (tmp_path / name).write_text("".join(json.dumps({column: field}) + "\n" for field in fields))
        else:
            pq.write_table(table, tmp_path / name)
        lines = read_inputs(
            tmp_path / name, text_column="mine" if column == "mine" else None, expects_pair=False, keeps_words=True,
            trained_on=("mine", None),
        )  # fmt: skip
        assert [line.input for line in lines] == by_hand


def test_bytes_that_are_no_text_make_one_bad_line(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, [*pa.array(["ok", "xy"]).buffers()[:2], pa.py_buffer(b"ok\xff\xfe")])
    pq.write_table(pa.table({"tokens": bad}), tmp_path / "a.parquet")
    first, second = read_inputs(tmp_path / "a.parquet", expects_pair=False, keeps_words=True)
    assert first.input == ["ok"]
    assert second.reason == "not UTF-8: byte 0xff in 'tokens'"


def test_parquet_has_spans_after_many_rows_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exitkit.prediction.writing.ROWS_PER_GROUP", 2)
    span = {"start": 0, "end": 4, "label": "PER", "text": "Anna", "score": 0.9}
    rows = [{"tags": ["O"], "score": [None], "exit": [None], "words": [[0, 4]], "spans": []}] * 2
    rows += [{"tags": ["B-PER"], "score": [0.9], "exit": [1], "words": [[0, 4]], "spans": [span]}]
    with open_writer(tmp_path / "out.parquet", source=None) as writer:
        writer.write(rows)
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('[ "a", "b" ]', ["a", "b"]),
        ('[\n  "a",\n  "b"\n]', ["a", "b"]),
        ("['a', 'b']", None),
        ('[ "a", 1]', None),
        ("[ ]", []),
        ("[ a b ]", ["[", "a", "b", "]"]),
        ("[1]", ["[1]"]),
    ],
)
def test_lists_in_a_field(field: str, words: list[str] | None) -> None:
    if words is None:
        with pytest.raises(ValueError):  # noqa: PT011  # json's own
            listed(field)
    else:
        assert listed(field) == words


def test_comments_of_conll_files_are_no_words() -> None:
    lines = [
        "# id 1\tdomain=en", "Anna\tB-PER", "5\u00a0000\tO", "", "# sent 2", "#\tO", "#x\tO", "",
    ]  # fmt: skip
    assert list(conll(lines, universal=False)) == [
        (2, ["Anna", "5\u00a0000"], ["B-PER", "O"]),
        (6, ["#", "#x"], ["O", "O"]),
    ]
    blanks = ["# id = 2 of some", "# O", "a  O", "", "5\u00a0000 O"]
    assert list(conll(blanks, universal=False)) == [(2, ["#", "a"], ["O", "O"]), (5, ["5\u00a0000"], ["O"])]


def test_a_word_of_a_text_that_the_tokenizer_does_not_know_is_counted() -> None:
    built = Tokenizer(models.BPE(vocab={"<pad>": 0, "a": 1, "b": 2}, merges=[]))  # no unknown token
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    batch, (read_of,) = batch_of(["a zz b"], PreTrainedTokenizerFast(tokenizer_object=built, pad_token="<pad>"), 40)
    assert batch["words"].tolist() == [[0, 2]]
    assert (read_of.count, read_of.seen, read_of.offsets) == (3, [0, 2], [(0, 1), (2, 4), (5, 6)])


@pytest.mark.parametrize("own_class", [False, True])
def test_byte_level_tokenizers_read_words_of_a_list_as_those_of_a_text(own_class: bool, tmp_path: Path) -> None:
    plain = byte_level()
    tokenizer = RobertaTokenizer(vocab=plain.get_vocab(), merges=[]) if own_class else plain
    folder = byte_level_checkpoint(tmp_path / "encoder", tokenizer)
    start = starting_model(str(folder), Tagging(BIO), None, "mean", REGISTRY)
    start.tokenizer.save_pretrained(tmp_path / "again")
    for read_by in (start.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "again")):
        both = batch_of([["The", "plot"], "The plot"], read_by, 40)[0]
        assert torch.equal(*both["input_ids"])
        assert torch.equal(*both["words"])


# Policies


def test_the_window_is_the_largest_value_around_a_word_in_its_own_sentence() -> None:
    values, sequence = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.8]), torch.tensor([0, 0, 0, 1, 1])
    assert window_max(values, sequence, 1).tolist() == values.tolist()
    assert window_max(values, sequence, 3).tolist() == pytest.approx([0.9, 0.9, 0.2, 0.8, 0.8])
    assert window_max(values, sequence, 15).tolist() == pytest.approx([0.9, 0.9, 0.9, 0.8, 0.8])


@example([[0.0] * 7, [0.0] * 7, [0.0] * 9, [0.0] * 9, [0.0, 1.0]], 1)  # rounding must not grow along a batch
@given(st.lists(st.lists(st.floats(0, 1), max_size=9), min_size=1, max_size=6), st.sampled_from([1, 3, 5, 15]))
def test_windows_and_pools_are_what_they_are_called(rows: list[list[float]], window: int) -> None:
    values = torch.tensor([value for row in rows for value in row])
    sequence = torch.tensor([number for number, row in enumerate(rows) for _ in row], dtype=torch.long)
    half = window // 2
    naive = [max(row[max(0, place - half) : place + half + 1]) for row in rows for place in range(len(row))]
    assert window_max(values, sequence, window).tolist() == pytest.approx(naive)
    group, there = _groups(sequence), [row for row in rows if row]
    for rank in (1.0, 0.9, 0.75):
        expected = [np.quantile(row, rank) for row in there]
        assert _quantile(values, group, rank)[: len(there)].tolist() == pytest.approx(expected, abs=1e-6)
    assert _mean(values, group)[: len(there)].tolist() == pytest.approx([np.mean(row) for row in there], abs=1e-6)


any_word = st.text(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1).filter(
    lambda word: not word.startswith("-DOCSTART-") and word.split() == [word]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.lists(st.lists(any_word, min_size=1, max_size=6), min_size=1, max_size=4))
def test_any_words_survive_a_conll_file(tmp_path: Path, written: list[list[str]]) -> None:
    text = "\n".join("".join(f"{word}\tX\n" for word in words) for words in written)
    (tmp_path / "a.conll").write_text(text, encoding="utf-8")
    assert read(tmp_path / "a.conll").data["words"][:] == written


def uncertain(*levels: str) -> torch.Tensor:
    """Logits of two classes that are sure, fairly sure (0.47) or undecided (1)."""
    return torch.tensor([{"sure": [9.0, -9.0], "fair": [2.2, 0.0], "none": [0.0, 0.0]}[level] for level in levels])


def test_a_word_waits_for_uncertain_neighbours_unless_they_have_left_or_it_may_pass_by() -> None:
    logits = uncertain("sure", "none", "sure", "sure")
    words = {"task": "tagging", "sequence": torch.zeros(4, dtype=torch.long), "position": torch.arange(4)}
    seen = evidence(logits, **words)
    assert TokenWindow(window=3, threshold=0.5).decide(seen, {})[0].tolist() == [False, False, False, True]
    assert TokenWindow(window=1, threshold=0.5).decide(seen, {})[0].tolist() == [True, False, True, True]
    assert TokenWindow(window=3, threshold=0.5, bypass=0.1).decide(seen, {})[0].tolist() == [True, False, True, True]
    left = evidence(logits, **words, live=torch.tensor([True, False, True, True]))
    assert TokenWindow(window=3, threshold=0.5).decide(left, {})[0].tolist() == [True, True, True, True]
    assert TokenWindow(window=3, threshold=0.5, answered="final").decide(left, {})[0].tolist()[0] is False


def test_growth_multiplies_the_threshold_from_exit_to_exit() -> None:
    policy, words = TokenWindow(window=1, threshold=0.2, growth=2.0), {"task": "tagging"}
    taken = [policy.decide(evidence(uncertain("fair"), exit=exit, **words), {})[0].item() for exit in (1, 2, 3)]
    assert taken == [False, False, True]  # 0.47 against 0.2, 0.4, 0.8


@pytest.mark.parametrize(("pool", "expected"), [("max", 1.0), ("mean", 0.4), ("q75", 0.4), ("q90", 0.76)])
def test_sentences_pool_the_uncertainty_of_their_words(pool: str, expected: float) -> None:
    values, sequence = torch.tensor([0.2, 0.0, 1.0, 0.4, 0.4, 0.7]), torch.tensor([1, 1, 1, 1, 1, 4])
    group = _groups(sequence)
    assert group.tolist() == [0, 0, 0, 0, 0, 1]
    pooled = _mean(values, group) if pool == "mean" else _quantile(values, group, RANKS[pool])
    assert pooled[:2].tolist() == pytest.approx([expected, 0.7])


def test_a_sentence_leaves_as_a_whole() -> None:
    seen = evidence(uncertain("sure", "none", "sure"), task="tagging", sequence=torch.tensor([0, 0, 1]))
    assert Sentence(threshold=0.5).decide(seen, {})[0].tolist() == [False, False, True]


def test_policies_of_words_refuse_other_tasks() -> None:
    for name in ("sentence", "token-window"):
        with pytest.raises(UsageError, match="does not work for classification"):
            schedule(name, REGISTRY.policy(name), {}, SHAPE)
    shape = Shape(exits=3, layers=3, labels=2, width=8, task="tagging")
    with pytest.raises(UsageError, match="answered is 'never'; allowed: certain, final"):
        schedule("token-window", TokenWindow, {"answered": "never"}, shape)


# The loop


def counted(model, rows, policy, name: str = "token-window", **settings):
    """A live run, and the queries that each layer really computed."""
    plan = schedule(name, policy, settings, model.shape)
    seen = [0] * model.shape.layers
    handles = [
        block.attention.self.query.register_forward_hook(lambda _, args, __, n=n: seen.__setitem__(n, len(args[0])))
        for n, block in enumerate(model.stock.base_model.encoder.layer)
    ]
    trace = run(model, rows, plan)
    for handle in handles:
        handle.remove()
    return trace, seen


@pytest.mark.parametrize("context_halts", [False, True])
def test_active_tokens_are_those_of_the_trace_and_of_the_replayed_cost(context_halts: bool) -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(task="tagging")
    trace, computed = counted(model, rows, TokenWindow, window=3, threshold=0.7, context_halts=context_halts)
    assert list(trace.work.queries) == computed
    assert len(set(trace.exit.tolist())) > 2, "words leave at several exits"
    price = prices(model)
    recording = record(model, [rows])
    plan = schedule("token-window", TokenWindow, {"context_halts": context_halts}, model.shape)
    cost = ReplayCost(recording, price, plan)
    found = cost.speedups(Outcome(trace.logits, trace.exit))
    full = flops(full_work(trace.work, len(trace.exit)), price)
    assert found["flops"] == pytest.approx(full / flops(trace.work, price), rel=1e-12)


def test_predicted_time_of_words_is_that_of_as_many_tokens_as_their_work_is_worth() -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(task="tagging")
    recording, price = record(model, [rows]), prices(model)
    one = np.array([1.0])
    times = LayerTimes(
        embed=Line(one, one, 0 * one), layer=Line(one, 2 * one, 0.1 * one), exit=Line(one, 0.5 * one, 0 * one),
        last=Line(one, 0.25 * one, 0.01 * one),
    )  # fmt: skip
    clock = PredictedTime(recording, [times], batch_size=24)
    cost = ReplayCost(recording, price, schedule("token-window", TokenWindow, {"context_halts": True}, model.shape))
    tokens, layers = float(recording.lengths.sum()), model.shape.layers
    full = 1 + layers * (2 + 0.1 * tokens) + 0.25 + 0.01 * tokens
    assert clock.full == pytest.approx(full)

    def speedup(exits: torch.Tensor) -> float:
        return clock.speedup_of_words(Outcome(recording.logits[-1], exits), cost)

    last, first = (torch.full_like(recording.sequence, exit) for exit in (layers, 1))
    assert speedup(last) == pytest.approx(full / (full + 0.5 * (layers - 1)))
    assert speedup(first) == pytest.approx(full / (1 + 2 + 0.1 * tokens + 0.5))
    waits = first.clone()
    waits[0] = 2  # one word goes on: its sentence is read by it, and by nothing else
    length, own = float(recording.lengths[0, 0]), float(recording.tokens[0])
    layer = price.layers[1]
    worth = (layer.key * length + layer.query * own) / (layer.key + layer.query)
    both = 1 + 2 + 0.1 * tokens + 0.5 + 2 + 0.1 * worth + 0.5
    assert speedup(waits) == pytest.approx(full / both)


@pytest.mark.parametrize(("currency", "expected"), [("flops", False), ("time", True)])
def test_searches_in_time_predict_the_time_of_words(currency: str, expected: bool, tagger: Path) -> None:
    registry = installed()
    study = Study(artifact.read(tagger, registry), registry, read("demo:tags", "validation[:40]"), "accuracy", 1)
    held = {"window": 1, "growth": 8.0}
    found = study.candidates("token-window", held, currency)
    assert any(one.speedup["time"] != one.speedup["flops"] for one in found) is expected


def test_words_are_not_asked_at_an_exit_that_is_off() -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(task="tagging")
    levels = ["off", 0.7, "off", 0.7, 0.7]
    for policy, name in ((TokenWindow, "token-window"), (Rescored, "token-window-rescored")):
        silent, _ = counted(model, rows, policy, name, window=3, threshold=levels)
        asked, _ = counted(model, rows, policy, name, window=3, threshold=[0.0, 0.7, 0.0, 0.7, 0.7])
        assert torch.equal(silent.exit, asked.exit)
        assert torch.allclose(silent.logits, asked.logits, atol=1e-5)
        assert [heads > 0 for heads in silent.work.heads[:4]] == [False, True, False, True]
        assert all(asked.work.heads[:4])
    recording, price = record(model, [rows]), prices(model)
    plan = schedule("token-window", TokenWindow, {"window": 3, "threshold": levels}, model.shape)
    trace = run(model, rows, plan)
    cost = ReplayCost(recording, price, plan).speedups(Outcome(trace.logits, trace.exit))
    full = flops(full_work(trace.work, len(trace.exit)), price)
    assert cost["flops"] == pytest.approx(full / flops(trace.work, price), rel=1e-12)


def test_context_that_halts_computes_less() -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(task="tagging")
    settings = {"window": 1, "threshold": 0.7}
    active, _ = counted(model, rows, TokenWindow, **settings, context_halts=False)
    halting, _ = counted(model, rows, TokenWindow, **settings)
    assert sum(halting.work.queries) < sum(active.work.queries)


def test_rescoring_pays_heads_for_answered_words_and_never_changes_their_answers() -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(task="tagging")
    plain, _ = counted(model, rows, TokenWindow, window=1, threshold=0.7)
    again, _ = counted(model, rows, Rescored, "token-window-rescored", window=1, threshold=0.7)
    assert torch.equal(plain.exit, again.exit), "with a window of one word nobody looks at those that left"
    assert torch.allclose(plain.logits, again.logits, atol=1e-5)
    assert sum(again.work.heads) > sum(plain.work.heads)


def test_a_replay_of_sentences_is_exact() -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(task="tagging")
    plan = schedule("sentence", Sentence, {"threshold": 0.25, "pool": "mean"}, model.shape)
    recording = record(model, [rows])
    outcome, trace = replay(recording, plan), run(model, rows, plan)
    assert torch.equal(outcome.exit, trace.exit)
    assert len(set(trace.exit.tolist())) > 1
    assert outcome.of_sequences(recording).shape == (24,)
    price = prices(model)
    found = ReplayCost(recording, price, plan).speedups(outcome)["flops"]
    assert found == pytest.approx(flops(full_work(trace.work, len(trace.exit)), price) / flops(trace.work, price))


def without_words(model: ExitModel) -> Stream:
    """Two sentences of context tokens only."""
    ids = torch.tensor([[2, 3, 0], [2, 4, 3]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "words": torch.full((2, 3), -1)}
    tokens, stream = pack(batch)
    return stream.carrying(model.encoder.embed(tokens))


def test_a_batch_without_a_word_runs_rests_and_is_timed() -> None:
    model = tiny_model(task="tagging")
    stream = without_words(model)
    nobody = torch.zeros(0, dtype=torch.bool)
    assert halt(stream, nobody) is None
    assert torch.equal(model.encoder.layer(0, resting(stream, nobody)), model.encoder.layer(0, stream)), (
        "context goes on"
    )
    _exit_step(model, stream)


def test_timing_an_exit_leaves_somebody_where_only_one_sentence_has_a_word() -> None:
    model = tiny_model(task="tagging")
    ids = torch.tensor([[2, 3, 0], [2, 4, 3]])
    words = torch.tensor([[-1, -1, -1], [-1, 0, -1]])
    tokens, stream = pack({"input_ids": ids, "attention_mask": (ids > 0).long(), "words": words})
    _exit_step(model, stream.carrying(model.encoder.embed(tokens)))


def test_a_sentence_waits_as_a_whole_for_a_word_that_may_not_leave_early() -> None:
    model, rows = tiny_model(task="tagging"), tiny_batch(task="tagging")
    plan = schedule("sentence", Sentence, {"threshold": 0.6, "pool": "mean"}, model.shape, Limits(never_early=(0,)))
    trace, recording = run(model, rows, plan), record(model, [rows])
    exits = [set(trace.exit[recording.sequence == number].tolist()) for number in range(recording.sequences)]
    assert all(len(of_sentence) <= 1 for of_sentence in exits)
    early = trace.exit < model.shape.exits
    assert early.any()
    assert not (trace.logits.argmax(dim=1)[early] == 0).any()
    assert torch.equal(replay(recording, plan).exit, trace.exit)


# All commands


def test_training_scores_spans_and_the_checkpoint_is_a_plain_tagger(tagger: Path) -> None:
    metrics = json.loads((tagger / "metrics.json").read_text())
    assert (metrics["task"], metrics["metric"]) == ("tagging", "span_f1")
    scores = [one["score"] for one in metrics["exits"]]
    assert scores[-1] > max(0.6, scores[0]), "the tag of praise depends on the words before it"
    model = artifact.read(tagger, REGISTRY)
    stock = AutoModelForTokenClassification.from_pretrained(tagger).eval()
    rows = read("demo:tags", "test[:8]", task=model.task)
    batch = Sample.of(rows, model).batches(8)[0]
    ours = run(model.model, batch, off("token-window", TokenWindow, model.model.shape))
    with torch.no_grad():
        theirs = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(ours.logits, theirs[batch["words"] >= 0], atol=1e-5), "every demo word is one piece"


def test_calibrate_benchmark_and_predict_by_words(tagger: Path, tmp_path: Path) -> None:
    tagger = shutil.copytree(tagger, tmp_path / "calibrated")  # others compare their folders with the shared one
    command = CliRunner()
    args = [
        "calibrate",
        str(tagger),
        "--target-speedup",
        "1.3x",
        "--currency",
        "layers",
        "--json",
        "--set",
        "policy.growth=1.0",
        "--split",
        "test[:80]",
    ]
    result = command.invoke(app, args)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["policy"], found["metric"]) == ("token-window", "span_f1")
    assert found["measured_speedup"]["layers"] >= 0.97 * 1.3
    assert found["full_score"] - found["score"] < 0.2
    assert (found["scheme"], found["words_lost"]) == ("IOB2", 0)
    report = tmp_path / "report"
    args = [
        "benchmark",
        str(tagger),
        "--policy",
        "token-window",
        "--policy",
        "sentence",
        "--speedups",
        "1x,1.3x",
        "--currency",
        "layers",
        "--calibration-split",
        "test[:80]",
    ]
    args += ["--split", "test[400:500]", "--set", "rounds=1", "--output", str(report), "--json"]
    result = command.invoke(app, args)
    assert result.exit_code == 0, result.output
    runs = json.loads(result.stdout)["runs"]
    assert {run["scheme"] for run in runs} == {"IOB2"}
    off_run = next(run for run in runs if run["policy"] == "token-window" and run["target"] == 1)
    assert (off_run["drop"], off_run["agreement"]) == (0, 1)
    words = sum(off_run["exit_histogram"])
    assert words > 100 == off_run["rows"], "the histogram counts words"
    shown = next(run for run in runs if run["policy"] == "token-window" and run["target"] == 1.3)["breakdown"][
        "changed"
    ]
    assert all("word" in one for one in shown["shown"])
    assert (report / "index.html").stat().st_size > 10_000
    answers = exitkit.load(tagger).predict([["the", "plot", "was", "not", "very", "good"], []])
    assert [len(answers[0][key]) for key in ("tags", "score", "exit")] == [6, 6, 6]
    assert answers[1] == {"tags": [], "score": [], "exit": []}


def test_raw_text_gets_spans_with_the_offsets_of_their_characters(tagger: Path) -> None:
    text = "The  plot was superb."
    answer = exitkit.load(tagger).predict([text], policy="fixed", probabilities=True)[0]
    assert [text[start:end] for start, end in answer["words"]] == ["The", "plot", "was", "superb", "."]
    assert len(answer["tags"]) == len(answer["probabilities"]) == 5
    thing = next(span for span in answer["spans"] if span["label"] == "THING")
    assert (thing["start"], thing["end"], thing["text"]) == (5, 9, "plot")
    with pytest.raises(UsageError, match="answers words"):
        exitkit.load(tagger).predict_proba([text])


def test_predict_reads_conll_and_refuses_a_mixture(tagger: Path, tmp_path: Path) -> None:
    (tmp_path / "in.conll").write_text("the\nplot\nwas\ngood\n\nthe\nmusic\n")
    command = CliRunner()
    args = ["predict", str(tagger), "--policy", "fixed", "--input"]
    result = command.invoke(app, [*args, str(tmp_path / "in.conll")])
    assert result.exit_code == 0, result.output
    assert [len(json.loads(line)["tags"]) for line in result.stdout.splitlines()] == [4, 2]
    mixed = write(tmp_path / "in.jsonl", [{"tokens": ["the", "plot"]}, {"text": "the plot"}])
    result = command.invoke(app, [*args, str(mixed)])
    assert result.exit_code == 1
    assert "line 2: a text, where the lines before are lists of words" in result.stderr


def test_words_that_are_lost_are_counted_by_predict(tagger: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good " * 300 + "\ngood\n")
    args = [
        "predict",
        str(tagger),
        "--input",
        str(tmp_path / "in.txt"),
        "--output",
        str(tmp_path / "out.jsonl"),
        "--json",
    ]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    longest = artifact.read(tagger, REGISTRY).card.max_length - 2  # special tokens
    assert json.loads(result.stdout)["words_lost"] == 300 - longest
    assert f"{300 - longest} words have no token" in result.stderr


def test_commands_say_how_tags_are_read(tagger: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(tagger)])
    assert "IOB2, scored by strict spans" in shown.stdout
    assert json.loads((tagger / "metrics.json").read_text())["scheme"] == "IOB2"
    assert "Tags are IOB2" in (tagger / "README.md").read_text()


@pytest.mark.parametrize(
    ("labels", "odd"),
    [
        (("B-X", "I-X", "O", "_"), "'_' do not fit"),
        (("B-X", "I-X", "B-Y", "O", "B_Z"), "'B_Z' do not fit"),
        (("B-X", "I-X", "O"), None),
        (("ADJ", "NOUN", "X-Y"), None),
        (("O", "S-X"), None),
    ],
)
def test_tags_that_spoil_a_scheme_are_named(labels: tuple[str, ...], odd: str | None) -> None:
    assert notation(labels) == odd


def test_a_sentence_of_ten_thousand_words_is_cut_and_answered_in_full(tagger: Path) -> None:
    answer = exitkit.load(tagger).predict([["good"] * 10_000], policy="fixed")[0]
    assert len(answer["tags"]) == 10_000
    assert answer["exit"][0] is not None
    assert (answer["exit"][-1], answer["score"][-1]) == (None, None)
    assert answer["tags"][-1] == "O"


def test_recipes_that_skip_whole_sequences_refuse_words(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'smartbert' lets sequences skip layers"):
        exitkit.train(model=str(encoder), data="demo:tags", output=tmp_path / "out", recipe="smartbert")
