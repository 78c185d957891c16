"""Rows from every source, their labels, what is set aside, and their tokens."""

from __future__ import annotations

import csv
import json
import logging
import random
import shutil

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, RobertaConfig, XLNetConfig

from exitkit.data import demo
from exitkit.data.batches import batches, encode, limit
from exitkit.data.columns import Columns, find_columns
from exitkit.data.sources import Origin, read, reread, splits
from exitkit.data.splits import scoring_split, training_and_calibration
from exitkit.errors import ExitkitError, UsageError
from exitkit.tasks import Classification

FRAME = pd.DataFrame({"text": ["a b", "c", "", 'd, "e"\nf'], "label": ["no", "yes", "no", "yes"]})


def write(path, frame):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix in (".jsonl", ".json"):
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl")
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def texts(rows):
    return list(rows.data["text"])


def labels(rows):
    return [rows.labels[i] for i in rows.data["label"]]


# --- sources


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl", ".json"])
def test_every_file_format_gives_the_same_rows_and_the_same_hash(tmp_path, suffix):
    rows = read(write(tmp_path / f"data{suffix}", FRAME))
    assert texts(rows) == list(FRAME["text"])
    assert labels(rows) == list(FRAME["label"])
    assert rows.labels == ("no", "yes")
    assert rows.hash() == read(FRAME).hash()


@pytest.mark.parametrize(
    "source",
    [
        FRAME,
        datasets.Dataset.from_pandas(FRAME),
        datasets.DatasetDict(train=datasets.Dataset.from_pandas(FRAME)),
        FRAME.to_dict("records"),
        list(zip(FRAME["text"], FRAME["label"], strict=True)),
        FRAME.astype({"label": "category"}),
    ],
    ids=["frame", "dataset", "dict-of-splits", "list-of-dicts", "list-of-tuples", "categories"],
)
def test_every_kind_of_data_in_memory_gives_the_same_rows(source):
    rows = read(source)
    assert (texts(rows), labels(rows)) == (list(FRAME["text"]), list(FRAME["label"]))
    assert rows.origin.source == "in memory"


def test_a_list_of_texts_has_no_labels():
    rows = read(["a", "b"], use_labels="optional")
    assert (texts(rows), rows.labels, rows.data.column_names) == (["a", "b"], (), ["text"])


def test_labels_change_the_hash_and_so_does_where_a_text_ends():
    assert read([("a", "x")]).hash() != read([("a", "y")]).hash()
    first, second = ([{"text": a, "text_pair": b}] for a, b in (("ab", "c"), ("a", "bc")))
    assert read(first, use_labels="ignored").hash() != read(second, use_labels="ignored").hash()


def test_a_folder_has_one_split_per_file_and_dev_means_validation(tmp_path):
    for name in ("train.csv", "dev.tsv", "test.jsonl"):
        write(tmp_path / name, FRAME)
    (tmp_path / "README.md").write_text("no data")
    assert splits(tmp_path) == {"validation": 4, "test": 4, "train": 4}
    assert texts(read(tmp_path, "validation[:50%]")) == texts(read(tmp_path, "dev[:2]")) == ["a b", "c"]


def test_a_folder_with_one_file_of_any_name_has_the_split_train(tmp_path):
    write(tmp_path / "reviews.csv", FRAME)
    assert splits(tmp_path) == {"train": 4}


def test_shards_as_the_hub_names_them_are_one_split(tmp_path):
    for i in range(2):
        write(tmp_path / f"train-0000{i}-of-00002.parquet", FRAME)
    assert splits(tmp_path) == {"train": 8}
    assert texts(read(tmp_path)) == 2 * list(FRAME["text"])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train", range(20)),
        ("train[:10%]+train[-10%:]", [0, 1, 18, 19]),
        ("train[5:8]", [5, 6, 7]),
        ("test[1:] + train[:1]", [101, 0]),
        ("train[:1]+test[1:1]", [0]),
    ],
)
def test_a_split_may_be_any_slice(spec, expected):
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"text": [str(i) for i in range(20)], "label": [0] * 20}),
        test=datasets.Dataset.from_dict({"text": ["100", "101"], "label": [1, 1]}),
    )
    assert texts(read(both, spec)) == [str(i) for i in expected]


def test_the_classes_are_those_of_the_whole_split_even_when_a_slice_has_fewer():
    assert read([("a", "x"), ("b", "y")], "train[1:]").labels == ("x", "y")


def test_a_tsv_without_quoting_keeps_its_quotation_marks(tmp_path):
    (tmp_path / "x.tsv").write_text('text\tlabel\n"good" film\t1\nthe "b\t0\n"open\t1\n')
    assert texts(read(tmp_path / "x.tsv")) == ['"good" film', 'the "b', '"open']


def test_a_byte_order_mark_and_a_very_long_text_are_read(tmp_path):
    long, before = "x" * 300_000, csv.field_size_limit()
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + f"text,label\n{long},a\n".encode())
    assert texts(read(tmp_path / "x.csv")) == [long]
    assert csv.field_size_limit() == before, "the setting is global and must be put back"


any_text = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=any_text)
def test_any_text_survives_every_format(tmp_path, suffix, written):
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": written}), path)
    elif suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t", quoting=csv.QUOTE_ALL)
            writer.writerows([["text"], *([text] for text in written)])
    else:
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in written]
        content = "\n".join(rows) if suffix == ".jsonl" else f"[{','.join(rows)}]"
        path.write_bytes(content.encode())
    assert texts(read(path, use_labels="ignored")) == written


BAD_FILES = [
    ("empty.csv", b"", "is empty"),
    ("header.csv", b"text,label\n", "no rows"),
    ("wide.csv", b"text,label\na,1\nb,2,3\n", "line 3: 3 fields where the first line has 2 columns"),
    ("narrow.csv", b"text,label\na\n", "line 2: 1 fields"),
    ("quote.csv", b'text,label\n"a,1\n', "line 2: a quote opened in this row is not closed"),
    ("quote.tsv", b'text\tlabel\n"a"b\tc\t1\n', "line 2"),
    ("twice.csv", b"text,text,label\na,b,1\n", "names a column twice"),
    ("latin.csv", "text,label\ncafé,1\n".encode("latin-1"), "not UTF-8.*iconv -f windows-1252"),
    ("wide.tsv", "text\tlabel\na\t1\n".encode("utf-16"), "iconv -f utf-16"),
    ("x.parquet", b"PAR1 this is not it PAR1", "cannot be read as Parquet"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "line 2: .* is not a JSON object"),
    ("list.jsonl", b'{"text": "a", "label": 1}\n["b", 1]\n', "line 2"),
    ("x.json", b'[{"text": "a"}, 5]', "row 2: 5 is not an object"),
    ("broken.json", b'[{"text": "a"},', "not valid JSON"),
    (
        "null.jsonl",
        b'{"text": "a", "label": 1}\n{"label": 1}\n',
        "row 2 of split 'train' .*'text' has no text",
    ),
    ("gap.csv", b"text,label\na,x\nb,\n", "row 2 of split 'train' of .* has no label"),
    ("mixed.jsonl", b'{"text": "a", "label": 1}\n{"text": "a", "label": "b"}\n', "mixes int and str.*row 2"),
    ("lone.jsonl", b'{"text": "\\ud800", "label": 1}\n', "not valid Unicode"),
    ("number.jsonl", b'{"text": 5, "label": 1}\n', "holds int64, not text"),
    ("objects.jsonl", b'{"text": "a", "label": {"x": 2}}\n', "Allowed: one string, integer or boolean"),
    ("infinite.jsonl", b'{"text": "a", "label": 0.5}\n{"text": "b", "label": 1e999}\n', "row 2 .* infinite"),
    ("x.xlsx", b"PK", "an Excel workbook; save the sheet as csv"),
    ("x.txt", b"a", "cannot tell the format"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_a_bad_file_is_refused_with_the_place_and_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExitkitError, match=f"(?s){message}"):
        read(tmp_path / name)


BAD_SOURCES = [
    ("trian.csv", "Did you mean '.*train.csv'"),
    ("elsewhere.csv", "no file or folder"),
    ("no such thing", "no file or folder"),
    ("bare-name", "owner/name"),
    ("demo:nothing", "unknown demo dataset 'nothing'"),
]


@pytest.mark.parametrize(("name", "message"), BAD_SOURCES, ids=[row[0] for row in BAD_SOURCES])
def test_a_source_that_is_not_there_is_a_usage_error(tmp_path, monkeypatch, name, message):
    write(tmp_path / "train.csv", FRAME)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        read(name)


@pytest.mark.parametrize("value", [[], [1, 2], ["a", ("b", 1)], "", 5, [("a", "b", "c")]])
def test_data_in_memory_of_the_wrong_shape_is_a_usage_error(value):
    with pytest.raises(UsageError):
        read(value)


def test_a_folder_without_data_and_one_with_two_files_for_a_split_are_refused(tmp_path):
    with pytest.raises(UsageError, match="has no data files"):
        read(tmp_path)
    for name in ("train.csv", "dev.csv", "validation.jsonl"):
        write(tmp_path / name, FRAME)
    with pytest.raises(UsageError, match="more than one file for split 'validation'"):
        read(tmp_path, "train")


def test_the_hub_out_of_reach_is_told_with_a_way_around(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ExitkitError, match=r"cannot be reached.*use a folder") as caught:
        read("owner/name:config", "train")
    assert caught.value.exit_code == 1


def test_a_hub_dataset_is_asked_for_by_name_and_config_and_its_commit_is_kept(monkeypatch):
    commit = 40 * "a"
    asked = []

    def load_dataset(*args, revision):
        asked.append((*args, revision))
        data = datasets.Dataset.from_pandas(FRAME)
        data.info.download_checksums = {f"hf://datasets/owner/name@{commit}/train.parquet": {}}
        return datasets.DatasetDict(train=data)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read("owner/name:config")
    assert (rows.origin.source, rows.origin.revision) == ("owner/name:config", commit)
    assert reread(rows.origin, rows.task, rows.hash()).hash() == rows.hash()
    assert asked == [("owner/name", "config", None), ("owner/name", "config", commit)]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("dev", "unknown split 'dev'.*Known: test, train"),
        ("tset[:5]", "Did you mean 'test'"),
        ("train[", "cannot be understood"),
        ("train[:150%]", "cannot be understood"),
        ("+", "cannot be understood"),
        (None, "has the splits train, test"),
        ("train[3:3]", "no rows"),
    ],
)
def test_a_split_that_cannot_be_had_names_what_can(split, message):
    both = {name: datasets.Dataset.from_pandas(FRAME) for name in ("train", "test")}
    with pytest.raises(ExitkitError, match=message):
        read(datasets.DatasetDict(both), split)


# --- columns


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (["text", "label"], Columns(), ("text", None, "label")),
        (["idx", "sentence", "label"], Columns(), ("sentence", None, "label")),
        (["sentence1", "sentence2", "label", "idx"], Columns(), ("sentence1", "sentence2", "label")),
        (["premise", "hypothesis", "label"], Columns(), ("premise", "hypothesis", "label")),
        (["question", "sentence", "label"], Columns(), ("question", "sentence", "label")),
        (["text", "text_pair", "class"], Columns(), ("text", "text_pair", "class")),
        (["Text", "Label"], Columns(), ("Text", None, "Label")),
        (["title", "content", "label"], Columns(), ("content", None, "label")),
        (["text", "content", "label"], Columns(), ("text", None, "label")),
        (["question", "sentence", "label"], Columns(text="sentence"), ("sentence", None, "label")),
        (["a", "b", "c"], Columns("a", "b", "c"), ("a", "b", "c")),
        (["text", "answer", "label"], Columns(text_pair="answer"), ("text", "answer", "label")),
        (["text", "label", "target"], Columns(label="target"), ("text", None, "target")),
    ],
)
def test_columns_are_found_by_their_usual_names_and_as_told(names, asked, expected):
    assert find_columns(names, asked, "needed") == Columns(*expected)


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (["text", "sentence", "label"], Columns(), "'text' or 'sentence'.*--text-column"),
        (["premise", "hypothesis", "text", "label"], Columns(), "'premise', 'hypothesis' or 'text'"),
        (["body", "label"], Columns(), "Columns there are: 'body', 'label'.*--text-column"),
        (["sentence1", "label"], Columns(), "no column looks like the text"),
        (["text", "stars"], Columns(), "Columns there are: 'text', 'stars'.*--label-column"),
        (["text", "label", "target"], Columns(), "'label', 'target'.*--label-column"),
        (["text", "label"], Columns(text="txt"), "unknown column 'txt'. Did you mean 'text'"),
        (["text", "label"], Columns(text="text", text_pair="text"), "asked for twice"),
    ],
)
def test_a_choice_of_columns_that_is_not_clear_is_refused_with_the_option_that_decides(names, asked, message):
    with pytest.raises(UsageError, match=message):
        find_columns(names, asked, "needed")


# --- labels


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["yes", "no", "yes"], ("no", "yes")),
        ([3, 10, 2], ("2", "3", "10")),
        (["3", "10", "2"], ("2", "3", "10")),
        ([-1, 1, 0], ("-1", "0", "1")),
        ([True, False, True], ("False", "True")),
        (["1", "x", "2"], ("1", "2", "x")),
        (["01", "1", "2"], ("01", "1", "2")),
    ],
)
def test_class_names_are_sorted_integers_by_size_and_ids_are_dense(values, names):
    rows = read([("t", value) for value in values])
    assert rows.labels == names
    assert labels(rows) == [str(value) for value in values]


def test_class_names_of_a_dataset_keep_their_order_also_through_parquet(tmp_path):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["z", "a", "m"]))
    data = datasets.Dataset.from_dict({"text": ["1", "2"], "label": [1, 0]}, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    for rows in (read(data), read(tmp_path)):
        assert rows.labels == ("z", "a", "m")
        assert labels(rows) == ["a", "z"]


@pytest.mark.parametrize(
    ("known", "values", "ids"),
    [
        (("pos", "neg"), ["neg", "pos"], [1, 0]),
        (("pos", "neg"), [0, 1], [0, 1]),
        (("2", "3", "10"), [10, 2], [2, 0]),
        (("pos", "neg"), ["1", "0"], [1, 0]),
        (("1", "x"), ["1", "1"], [0, 0]),
    ],
)
def test_the_labels_of_a_trained_model_are_met_by_name_or_by_index(known, values, ids):
    assert list(read([("t", value) for value in values], task=Classification(tuple(known))).data["label"]) == ids


@pytest.mark.parametrize(("known", "value"), [(("neg", "pos"), "neutral"), (("neg", "pos"), 2), (("0", "1"), 2)])
def test_an_unknown_label_is_refused_with_row_and_value_and_the_known_names(known, value):
    first = 0 if isinstance(value, int) else "neg"
    with pytest.raises(UsageError, match=f"row 2 of split 'train' .*unknown label '{value}'.*Known: {known[0]}"):
        read([("t", first), ("t", value)], task=Classification(known))


def test_rows_are_counted_from_the_start_of_the_split_also_in_a_slice():
    with pytest.raises(UsageError, match="row 3 of split 'train'"):
        read([("t", "a"), ("t", "a"), ("t", "b")], "train[1:]", task=Classification(("a",)))


@pytest.mark.parametrize("values", [[-1, -1], [None, None], ["", ""], ["-1", "-1"]])
def test_a_split_whose_labels_are_kept_back_is_unlabelled(values):
    source = [{"text": "t", "label": value} for value in values]
    with pytest.raises(UsageError, match="has no labels"):
        read(source)
    assert read(source, use_labels="optional").labels == ()
    assert read(source, use_labels="ignored").labels == ()


def test_ignored_labels_may_be_anything():
    assert read([{"text": "t", "label": 0.5, "target": 1}], use_labels="ignored").labels == ()


# --- the same rows again


@pytest.fixture
def stored(tmp_path):
    """Rows of a file, chosen out of a slice, with their origin as it comes back from YAML."""
    write(tmp_path / "train.csv", FRAME)
    rows = read(tmp_path, "train[1:]").select([2, 0])
    return rows, Origin.from_dict(yaml.safe_load(yaml.safe_dump(rows.origin.as_dict()))), tmp_path


def test_rows_can_be_read_again_from_their_origin(stored):
    rows, origin, _ = stored
    assert origin == rows.origin
    again = reread(origin, rows.task, rows.hash())
    assert (texts(again), labels(again)) == (['d, "e"\nf', "c"], ["yes", "yes"])


def test_the_origin_of_a_selection_of_a_selection_counts_from_the_split(stored):
    assert stored[0].select([1]).origin.indices == (0,)


def test_rows_that_are_gone_or_changed_or_were_in_memory_ask_for_data(stored):
    rows, origin, folder = stored
    write(folder / "train.csv", FRAME.replace("c", "C"))
    with pytest.raises(ExitkitError, match=r"have changed.*--data"):
        reread(origin, rows.task, rows.hash())
    write(folder / "train.csv", FRAME[:2])
    with pytest.raises(ExitkitError, match=r"fewer rows now.*--data"):
        reread(origin, rows.task, rows.hash())
    shutil.rmtree(folder)
    with pytest.raises(ExitkitError, match=r"cannot be read again.*--data"):
        reread(origin, rows.task, rows.hash())
    memory = read(FRAME)
    with pytest.raises(ExitkitError, match=r"in memory.*--data"):
        reread(memory.origin, memory.task, memory.hash())


# --- what is set aside


def sets(**sizes):
    """Splits of the given sizes with distinct texts, a third of them of class b."""
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {"text": [f"{name} {i}" for i in range(size)], "label": ["aab"[i % 3] for i in range(size)]}
            )
            for name, size in sizes.items()
        }
    )


def unlabelled(size):
    return datasets.Dataset.from_dict({"text": [f"t {i}" for i in range(size)], "label": [None] * size})


def test_calibration_is_validation_when_there_is_a_test_split_too():
    data = training_and_calibration(sets(train=60, validation=20, test=20))
    assert (len(data.train), data.calibration.origin.split, data.evaluation.origin.split) == (
        60, "validation", "validation",
    )  # fmt: skip


def test_a_test_split_without_labels_does_not_count():
    """Else GLUE's validation rows would be both calibrated and scored on."""
    source = sets(train=60, validation=20)
    source["test"] = unlabelled(20)
    data = training_and_calibration(source)
    assert (len(data.train), len(data.calibration), data.calibration.origin.split) == (54, 6, "train")
    assert data.evaluation.origin.split == "validation"
    assert scoring_split(source) == "validation"


def test_rows_set_aside_are_a_tenth_stratified_and_apart_from_training():
    data = training_and_calibration(sets(train=600), seed=3)
    assert len(data.calibration) == 60
    assert labels(data.calibration).count("b") == 20
    assert not set(texts(data.calibration)) & set(texts(data.train))
    assert data.evaluation is data.calibration


def test_rows_set_aside_are_at_most_two_thousand():
    assert len(training_and_calibration(sets(train=30_000)).calibration) == 2000


def test_rows_set_aside_do_not_depend_on_max_train_samples_and_are_never_trained_on():
    source = sets(train=600)
    full, small = training_and_calibration(source), training_and_calibration(source, max_train_samples=50)
    assert len(small.train) == 50
    assert full.calibration.hash() == small.calibration.hash()
    assert set(texts(small.train)) <= set(texts(full.train))
    assert small.train.hash() != training_and_calibration(source, seed=1, max_train_samples=50).train.hash()


def test_all_copies_of_a_text_are_on_one_side():
    source = [(f"t {i // 2}", "ab"[i % 2]) for i in range(200)]
    data = training_and_calibration(source)
    assert not set(texts(data.calibration)) & set(texts(data.train))
    assert (len(data.train), len(data.calibration)) == (180, 20)


def test_the_same_first_text_with_another_pair_is_another_row():
    source = [{"text": "t", "text_pair": str(i), "label": i % 2} for i in range(100)]
    assert len(training_and_calibration(source).calibration) == 10


def test_a_class_with_one_row_does_not_stop_the_setting_aside():
    source = [*((f"t {i}", "ab"[i % 2]) for i in range(40)), ("lonely", "c")]
    assert training_and_calibration(source).task.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (sets(train=9), {}, "has 9 rows to train on; at least 10"),
        ([(f"t {i}", "a") for i in range(20)], {}, "all have the label 'a'"),
        ([("same", "ab"[i % 2]) for i in range(20)], {}, "only 1 different text,"),
        (sets(train=60), {"max_train_samples": 1}, "--max-train-samples is 1"),
        (sets(test=60), {}, "unknown split 'train'"),
    ],
)
def test_too_little_to_train_on_is_refused(source, options, message):
    with pytest.raises(UsageError, match=message):
        training_and_calibration(source, **options)


def test_scores_come_from_test_else_validation_else_from_what_the_user_says():
    assert scoring_split(sets(train=5, validation=5, test=5)) == "test"
    assert scoring_split(sets(train=5, validation=5)) == "validation"
    with pytest.raises(UsageError, match="--split"):
        scoring_split(sets(train=5))


# --- tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    demo.build_model(folder, layers=1, width=16, heads=2)
    return AutoTokenizer.from_pretrained(folder)


def test_rows_become_tokens_cut_at_the_limit_and_an_empty_text_is_legal(tokenizer, caplog):
    rows = read([("", 0), ("the film was good", 1), ("good " * 500, 0)])
    with caplog.at_level(logging.WARNING):
        encoded = encode(rows, tokenizer, 8)
    assert encoded.column_names == ["input_ids", "token_type_ids", "attention_mask", "labels"]
    assert encoded[0]["input_ids"] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert [len(ids) for ids in encoded["input_ids"]] == [2, 6, 8]
    assert list(encoded["labels"]) == [0, 1, 0]
    assert not caplog.records


def test_a_pair_is_cut_at_its_longer_text(tokenizer):
    rows = read([{"text": "good film", "text_pair": "bad " * 50}], use_labels="optional")
    tokens = tokenizer.convert_ids_to_tokens(encode(rows, tokenizer, 8)[0]["input_ids"])
    assert tokens == ["[CLS]", "good", "film", "[SEP]", "bad", "bad", "bad", "[SEP]"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_hold_every_row_in_order_padded_on_the_right_with_nothing_lost(tokenizer, side):
    rng = random.Random(0)
    rows = read([(" ".join(["good"] * rng.randrange(9)), i % 2) for i in range(23)])
    encoded = encode(rows, tokenizer, 128)
    tokenizer.padding_side = side
    got = list(batches(encoded, tokenizer, 5))
    assert tokenizer.padding_side == side
    tokenizer.padding_side = "right"
    assert [len(batch["labels"]) for batch in got] == [5, 5, 5, 5, 3]
    assert all(tensor.dtype == torch.int64 for batch in got for tensor in batch.values())
    unpadded = [
        ids[: mask.sum()].tolist()
        for batch in got
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert unpadded == list(encoded["input_ids"])
    assert torch.cat([batch["labels"] for batch in got]).tolist() == list(encoded["labels"])


def test_a_batch_size_below_one_is_refused(tokenizer):
    with pytest.raises(UsageError, match="--batch-size is 0"):
        next(batches(encode(read(FRAME), tokenizer, 8), tokenizer, 0))


ROBERTA = RobertaConfig(max_position_embeddings=514, pad_token_id=1)
BERT = BertConfig(max_position_embeddings=64)


@pytest.mark.parametrize(
    ("config", "known", "asked", "expected"),
    [
        (BERT, 128, None, 64),
        (BERT, 32, None, 32),
        (BERT, int(1e30), None, 64),
        (BERT, 32, 50, 50),
        (ROBERTA, int(1e30), None, 512),
        (XLNetConfig(), int(1e30), None, 512),
        (XLNetConfig(), int(1e30), 2000, 2000),
    ],
)
def test_the_limit_is_what_tokenizer_and_positions_allow(tokenizer, config, known, asked, expected):
    before, tokenizer.model_max_length = tokenizer.model_max_length, known
    try:
        assert limit(tokenizer, config, asked) == expected
    finally:
        tokenizer.model_max_length = before


@pytest.mark.parametrize(
    ("config", "asked", "message"),
    [(BERT, 65, "at most 64"), (ROBERTA, 513, "at most 512"), (BERT, 2, "Ask for 3 or more")],
)
def test_a_length_that_the_model_cannot_take_is_refused(tokenizer, config, asked, message):
    with pytest.raises(UsageError, match=message):
        limit(tokenizer, config, asked)


def test_progress_bars_of_datasets_stay_as_the_user_set_them(capfd, tokenizer):
    before = datasets.are_progress_bars_disabled()
    encode(read("demo:reviews", "validation"), tokenizer, 32)
    assert datasets.are_progress_bars_disabled() == before
    assert capfd.readouterr() == ("", "")


def test_indices_may_be_numpy_integers():
    assert texts(read(FRAME).select(np.array([1]))) == ["c"]
