"""CoNLL files: what is a sentence, which column holds the words, and the same at training and at prediction."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import cli

import exitkit
from exitkit.benchmarking.benchmark import scored_rows
from exitkit.benchmarking.breakdown import Judged, changed
from exitkit.calibration.rows import calibration_rows
from exitkit.configuration.config import BenchmarkConfig
from exitkit.configuration.parsing import parse
from exitkit.data.columns import Columns
from exitkit.data.sources import read
from exitkit.errors import ExitkitError, UsageError
from exitkit.measuring.runs import Sample, score
from exitkit.prediction.reading import read as read_inputs
from exitkit.tasks.tags import sentences

GERMEVAL = "#\tdoc [2009]\n1\tAnna\tB-PER\tO\n2\tin\tO\tO\n3\tUlm\tB-LOC\tB-ORG\n\n1\tBen\tB-PER\tO\n"
CONLL2012 = """#begin document (bc/x); part 000
bc/x 0 0 Anna NNP (TOP* - - - - (PERSON) * (1)
bc/x 0 1 lives VBZ * live 01 1 - * (V*) -

#end document
"""


def conll(folder: Path, text: str, name: str = "a.conll") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def predicted(file: Path, text_column: str | None = None, trained_on: tuple[str, None] | None = None) -> list[object]:
    lines = read_inputs(file, text_column=text_column, expects_pair=False, keeps_words=True, trained_on=trained_on)
    return [line.text for line in lines]


# Which column holds the words


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GERMEVAL, r"line 2: the first column counts the words.*--text-column 2 .*1 '1', 2 'Anna', 3 'B-PER', 4 'O'"),
        (GERMEVAL.replace("1\t", "0\t").replace("2\t", "1\t").replace("3\t", "2\t"), "counts the words"),
        (CONLL2012, r"line 2: the first column holds 'bc/x' all through.*--text-column 4 "),
        ("d1 Anna O\nd1 in O\n\nd2 Ben O\nd2 is O\n", "holds 'd1' all through"),
    ],
)
def test_numbers_and_names_of_documents_are_not_words(text: str, why: str, tmp_path: Path) -> None:
    file = conll(tmp_path, text)
    with pytest.raises(ExitkitError, match=why):
        read(file)
    with pytest.raises(ExitkitError, match=why):
        predicted(file)


def test_columns_are_chosen_by_number(tmp_path: Path) -> None:
    file = conll(tmp_path, GERMEVAL)
    rows = read(file, columns=Columns(text="2", label="3"))
    assert rows.data["words"][:] == [["Anna", "in", "Ulm"], ["Ben"]]
    assert [[rows.labels[tag] for tag in row] for row in rows.data["label"][:]] == [["B-PER", "O", "B-LOC"], ["B-PER"]]
    assert rows.origin.columns == Columns(text="2", label="3")
    assert read(file, columns=Columns(text="2")).labels == ("B-ORG", "O")
    assert read(file, columns=Columns(text="1", label="3")).data["words"][:][1] == ["1"]
    assert predicted(file, "2") == predicted(file, trained_on=("2", None)) == [["Anna", "in", "Ulm"], ["Ben"]]
    assert predicted(file, "1") == [["1", "2", "3"], ["1"]]
    assert read(conll(tmp_path, CONLL2012), columns=Columns(text="4", label="5")).data["words"][:] == [
        ["Anna", "lives"]
    ]


def test_columns_of_universal_dependencies_are_chosen_by_number_too(tmp_path: Path) -> None:
    text = "# text = vámonos\n1-2\tvámonos\t_\t_\n1\tvamos\tir\tVERB\n2\tnos\tnosotros\tPRON\n"
    file = conll(tmp_path, text, "a.conllu")
    assert read(file, columns=Columns(text="3")).data["words"][:] == [["ir", "nosotros"]]
    assert predicted(file, "3") == [["ir", "nosotros"]]
    assert predicted(file) == [["vamos", "nos"]]


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    file = conll(tmp_path, "a\tx\tO\nb\tO\n")
    with pytest.raises(UsageError, match=r"unknown column '9'.*Known: 1, 2, 3, tags, tokens"):
        read(file, columns=Columns(text="9"))
    with pytest.raises(ExitkitError, match="line 2 has no column 3"):
        read(file, columns=Columns(text="1", label="3"))
    with pytest.raises(ExitkitError, match=r"line 2: .* has no column 3"):
        predicted(file, "3")
    with pytest.raises(UsageError, match="columns by number, such as --text-column 2; there is no 'word'"):
        predicted(file, "word")


@pytest.mark.parametrize(
    "text", ["1\tCD\n2\tCD\n", "bye UH O\nbye UH O\n\nAnna NN O\nis V O\n", "1 CD\n\n1 CD\n\n1 CD\n"]
)
def test_numbers_and_repeated_words_may_be_words(text: str, tmp_path: Path) -> None:
    file = conll(tmp_path, text)
    assert read(file).data["words"][:] == predicted(file)


# What is a sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# Copyright\n# All rights\n\nAnna\tB-PER\nUlm\tB-LOC\n", [["Anna", "Ulm"]]),
        ("Anna\tB-PER\n\n# end of file\n", [["Anna"]]),
        ("Anna B-PER\nis O\n\n# Copyright\n", [["Anna", "is"]]),
        ("# Copyright\n\nAnna B-PER\nis O\n\n# O\n", [["Anna", "is"], ["#"]]),
        ("#\tO\n\nAnna\tB-PER\n", [["#"], ["Anna"]]),
        ("Anna\tB-PER\n\n# sent 2\n#\tO\n#x\tO\n", [["Anna"], ["#", "#x"]]),
        ("# Copyright\nAnna\tB-PER\n", [["Anna"]]),
        ("#\tO\n#x\tO\n", [["#", "#x"]]),
    ],
)
def test_lines_of_comments_are_no_sentence(text: str, words: list[list[str]], tmp_path: Path) -> None:
    file = conll(tmp_path, text)
    rows = read(file)
    assert rows.data["words"][:] == words
    assert {"Copyright", "rights", "file"}.isdisjoint(rows.labels)
    assert predicted(file) == words


@pytest.mark.parametrize(("blank", "word"), [(" ", " "), ("", ""), ("\u00a0", "\u00a0")])
def test_a_word_that_is_blank_is_one_at_training_and_at_prediction(blank: str, word: str, tmp_path: Path) -> None:
    file = conll(tmp_path, f"EU\tB-ORG\n{blank}\tO\nsays\tO\n")
    assert read(file).data["words"][:] == predicted(file) == [["EU", word, "says"]]


# Tags in another notation


@pytest.mark.parametrize(
    ("tags", "what"),
    [
        (["o", "b-per", "i-per", "b-loc"], "small letters"),
        (["O", "B_PER", "I_PER", "B_LOC"], "another sign than -"),
        (["O", "B|PER", "I|PER"], "another sign than -"),
        (["O", "PER-B", "PER-I", "LOC-B"], "the letter behind the kind"),
        (["O", "B", "I"], "letters without a kind"),
        (["O", "I-PER", "I-LOC"], "have I- only"),
        (["O", "B-X", "M-X", "E-X", "S-X"], "use the letters BEMS"),
        (["O", "B-X", "I-X", "I-Y", "X"], "'X' do not fit"),
    ],
)
def test_tags_that_write_spans_in_another_notation_are_told(
    tags: list[str], what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "exitkit"):
        rows = read(conll(tmp_path, "".join(f"w{number}\t{tag}\n" for number, tag in enumerate(tags))))
    assert rows.task.scheme is None
    assert what in caplog.text
    assert "write all tags as IOB2, IOBES or BILOU" in caplog.text


@pytest.mark.parametrize(
    "tags",
    [
        ["NOUN", "VERB", "X"],
        ["N", "V", "O"],
        ["S", "O", "V"],
        ["PER", "LOC", "O"],
        ["NN", "NN-S", "VB"],
        ["B", "C", "D", "O"],
        ["V_B", "O"],
        ["Case=Nom", "Case=Acc", "_"],
    ],
)
def test_other_tags_are_no_spans(tags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "exitkit"):
        read(conll(tmp_path, "".join(f"w{number}\t{tag}\n" for number, tag in enumerate(tags))))
    assert not caplog.text


# All commands


@pytest.fixture(scope="module")
def numbered(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger of column 2 with the tags in column 3, where -100 marks words to leave out."""
    folder = tmp_path_factory.mktemp("numbered")
    for split, first, count in (("train", 0, 24), ("validation", 24, 12), ("test", 36, 8)):
        sentence = ["1\tthe\tO\tx", "2\tplot\tB-THING\tx", "3\twas\t-100\tx", "4\tgood\tO\tx"]
        text = "".join(
            "\n".join([*sentence, f"5\tword{number}\tO\tx"]) + "\n\n" for number in range(first, first + count)
        )
        conll(folder, text, f"{split}.conll")
    args = ["--text-column", "2", "--label-column", "3", "--epochs", "1", "--output", folder / "model"]
    report = cli("train", "--model", encoder, "--data", folder, *args)
    assert report["label"].startswith("tagging, 2 tags (B-THING, O), IOB2")
    assert (report["words"], report["words_lost"]) == (12 * 4, 0)
    return folder


def test_the_artifact_remembers_columns_by_number(numbered: Path) -> None:
    card = yaml.safe_load((numbered / "model" / "exitkit.yaml").read_text())
    assert (card["data"]["columns"]["text"], card["data"]["columns"]["label"]) == ("2", "3")
    assert card["labels"] == ["B-THING", "O"]


def test_calibrate_and_benchmark_read_the_same_columns_again(numbered: Path) -> None:
    model = exitkit.load(numbered / "model").artifact
    to_choose = calibration_rows(model, None, None, Columns())
    to_score = scored_rows(model, parse(BenchmarkConfig, {"artifacts": [numbered / "model"]}))
    assert (len(to_choose), len(to_score)) == (12, 8)
    for rows in (to_choose, to_score):
        sample = Sample.of(rows, model)
        assert (sample.words.total, sample.words.lost) == (4 * len(rows), 0)
        answers = sample.answers(torch.eye(2)[torch.tensor([1, 0, 1, 1] * len(rows))])
        found = score(model.task, "span_f1", sample.truth, answers, answers)
        assert (found.score, found.agreement) == (1.0, 1.0)


def test_a_unit_knows_which_word_of_its_sentence_it_is(numbered: Path) -> None:
    model = exitkit.load(numbered / "model").artifact
    rows = read(numbered / "test.conll", columns=Columns(text="2", label="3"), task=model.task)
    sample = Sample.of(rows, model)
    assert sample.words.number.tolist() == [0, 1, 3, 4] * 8
    assert sample.words.seen.tolist() == list(range(8 * 4))
    full = sample.truth
    judged = Judged(rows, model.task, np.ones(8, dtype=int), full, full, sample.words)
    answers = [row.copy() for row in full]
    answers[3][2] = 0  # the third of the words that have a tag
    (shown,) = changed(judged, judged.by_unit(sentences(answers)), np.ones(8 * 4, dtype=int))["shown"]
    assert (shown["row"], shown["word"], shown["truth"], shown["answer"]) == (3, "good", "O", "B-THING")


def test_predict_answers_the_column_of_words_and_every_word(numbered: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    cli("predict", numbered / "model", "--policy", "fixed", "--input", numbered / "test.conll", "--output", out)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(answer["tags"]) for answer in answers] == [5] * 8
    assert (
        answers[0]["tags"]
        == exitkit.load(numbered / "model").predict([["the", "plot", "was", "good", "word0"]], policy="fixed")[0][
            "tags"
        ]
    )


def test_a_student_learns_nothing_of_words_that_are_left_out(numbered: Path, tmp_path: Path) -> None:
    args = ["--text-column", "2", "--label-column", "3", "--epochs", "1", "--student-layers", "2"]
    report = cli(
        "distill", "--teacher", numbered / "model", "--data", numbered, "--output", tmp_path / "student", *args
    )
    learned = report["learned_from"]
    assert (learned["words"], learned["words_lost"]) == (24 * 4, 0)
    assert report["label"].endswith("as the teacher has it")
