"""What a label column is taken for, whatever writes it: classes, values, several classes, words to leave out."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exitkit.data.catalogue import catalogue
from exitkit.data.columns import Columns
from exitkit.data.kinds import listed
from exitkit.data.sources import Rows, labelled, read
from exitkit.data.splits import training_and_calibration
from exitkit.data.taken import taken
from exitkit.errors import ExitkitError, UsageError
from exitkit.tasks import Classification, MultiLabel, Tagging

VECTORS = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]]


def table(values: Sequence[Any], name: str = "label") -> list[dict[str, Any]]:
    return [{"text": f"t{number}", name: value} for number, value in enumerate(values)]


def csv(folder: Path, values: Sequence[Any]) -> Path:
    pd.DataFrame(table(values)).to_csv(folder / "train.csv", index=False)
    return folder / "train.csv"


def parquet(folder: Path, values: Sequence[Any], kind: pa.DataType) -> Path:
    texts = [f"t{number}" for number in range(len(values))]
    pq.write_table(pa.table({"text": texts, "label": pa.array(values, kind)}), folder / "train.parquet")
    return folder / "train.parquet"


def words(tags: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    return [{"tokens": [f"w{number}" for number in range(len(one))], "tags": one} for one in tags]


def names(rows: Rows) -> list[Any]:
    """The labels of all rows by name; None for a word that is left out."""
    found: list[Any] = rows.data["label"][:]
    if isinstance(rows.task, Tagging):
        return [[None if tag < 0 else rows.labels[tag] for tag in row] for row in found]
    if isinstance(rows.task, MultiLabel):
        return [[name for name, holds in zip(rows.labels, row, strict=True) if holds] for row in found]
    return [rows.labels[number] for number in found] if rows.labels else found


# Vectors


@pytest.mark.parametrize("kind", [int, float, bool, str])
@pytest.mark.parametrize("how", ["rows", "frame", "fixed-size lists", "csv", "numpy in csv"])
def test_vectors_of_zeros_and_ones_are_no_sets_of_class_numbers(how: str, kind: type, tmp_path: Path) -> None:
    values = [[kind(one) for one in row] for row in VECTORS]
    if how == "rows":
        source: Any = table(values, "labels")
    elif how == "frame":
        source = pd.DataFrame({"text": list("abcd"), "label": [np.array(row) for row in values]})
    elif how == "fixed-size lists":
        kinds = {int: pa.int64(), float: pa.float32(), bool: pa.bool_(), str: pa.string()}
        source = parquet(tmp_path, values, pa.list_(kinds[kind], 3))
    else:
        source = csv(tmp_path, values if how == "csv" else [str(np.array(row)) for row in values])
    rows = read(source)
    assert (rows.labels, rows.data["label"][:]) == (("0", "1", "2"), VECTORS)


def test_vectors_of_lists_of_one_length_may_have_two_places_and_miss_rows(tmp_path: Path) -> None:
    kind = pa.list_(pa.int64(), 2)
    assert read(parquet(tmp_path, [[1, 0], [0, 1]], kind)).data["label"][:] == [[1, 0], [0, 1]]
    with pytest.raises(ExitkitError, match=r"row 2 .* has no label"):
        read(parquet(tmp_path, [[1, 0], None], kind))


def test_class_names_of_a_dataset_name_the_places_of_vectors() -> None:
    features = datasets.Features(
        text=datasets.Value("string"), labels=datasets.List(datasets.ClassLabel(names=["z", "a", "m"]))
    )
    rows = read(datasets.Dataset.from_dict({"text": list("abcd"), "labels": VECTORS}, features=features))
    assert names(rows) == [["z"], ["a", "m"], [], ["z", "m"]]


def test_vectors_are_met_by_a_model_that_has_as_many_classes() -> None:
    task = MultiLabel(("a", "b", "c"))
    assert names(read(table(VECTORS, "labels"), task=task)) == [["a"], ["b", "c"], [], ["a", "c"]]
    with pytest.raises(UsageError, match=r"vectors of 3 zeros and ones, but the model knows 2 classes: 0, 1"):
        read(table(VECTORS, "labels"), task=MultiLabel(("0", "1")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1, 0], [0, 1]], "0 and 1 in every row"),
        ([[1, 0, 0], [0, 1]], "have 2 to 3 values"),
        ([[1, 0, 0], []], "have 0 to 3 values"),
        ([[0.5, 0.2, 0.3], [0, 1, 0]], "such as 0.5"),
    ],
)
def test_lists_that_may_be_vectors_or_sets_are_refused(values: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(table(values, "labels"))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sets(st.integers(0, 3) | st.sampled_from([0, 1])).map(list), min_size=1, max_size=6))
@example([[0], [1]])
def test_sets_of_class_numbers_are_never_taken_for_vectors(sets: list[list[int]]) -> None:
    if not any(sets):
        return
    if all(sorted(one) == [0, 1] for one in sets):
        with pytest.raises(UsageError, match="0 and 1 in every row"):
            read(table(sets, "labels"))
        return
    assert [set(one) for one in names(read(table(sets, "labels")))] == [set(map(str, one)) for one in sets]


# Lists written as text


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a' 'b']", ["a", "b"]),
        ("""["it's", 'x, y']""", ["it's", "x, y"]),
        ("[]", []),
        ("[0, 1]", [0, 1]),
        ("[0 1\n 0]", [0, 1, 0]),
        ("[0. 1.]", [0.0, 1.0]),
        ("[ True False]", [True, False]),
        ("[NEG]", None),
        ("[a b]", None),
        ("[[1], [2]]", None),
        ("a, b", None),
        ("[0 1 ... 0]", None),
    ],
)
def test_lists_as_text_are_read_as_json_python_and_numpy_write_them(text: str, values: list[Any] | None) -> None:
    assert listed(text) == values


def test_lists_written_as_text_are_several_classes_a_row(tmp_path: Path) -> None:
    rows = read(csv(tmp_path, [["a", "b"], ["c"]]))
    assert names(rows) == [["a", "b"], ["c"]]
    assert "because they are written as lists; --task classification" in taken(rows)
    assert names(read(csv(tmp_path, [["a", "b"], []]), task="multi-label")) == [["a", "b"], []]
    assert read(csv(tmp_path, ["[NEG]", "[POS]"])).labels == ("[NEG]", "[POS]")


def test_a_column_of_lists_and_names_is_refused_unless_all_are_names(tmp_path: Path) -> None:
    file = csv(tmp_path, ["['a']", "b"])
    with pytest.raises(UsageError, match="say with --task classification"):
        read(file)
    assert read(file, task="classification").labels == ("['a']", "b")


# Numbers


@pytest.mark.parametrize("values", [["0.0", "1.0", "2.0"], [0.0, 1.0, 2.0], [Decimal(0), Decimal(1), Decimal(2)]])
def test_whole_floats_and_decimals_are_values_unless_classes_are_asked_for(values: list[Any]) -> None:
    rows = read(table(values))
    assert rows.data["label"][:] == [0.0, 1.0, 2.0]
    assert taken(rows).startswith("regression, values from 0 to 2, because they are floats")
    assert taken(rows).endswith("--task classification takes them as classes")
    rows = read(table(values), task="classification")
    assert (rows.labels, rows.data["label"][:]) == (("0", "1", "2"), [0, 1, 2])
    assert read(table(values), task=Classification(("0", "1", "2", "3"))).data["label"][:] == [0, 1, 2]


def test_floats_with_places_are_no_classes() -> None:
    with pytest.raises(UsageError, match=r"such as 0\.5, which is not a class"):
        read(table([0.5, 1.0]), task="classification")


@pytest.mark.parametrize("written", ["NaN", "nan", " NaN", ""])
@pytest.mark.parametrize("others", [["0.0", "1.5"], ["0", "1"]])
def test_nan_among_numbers_is_a_missing_label_as_an_empty_field_is(
    written: str, others: list[str], tmp_path: Path
) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t,{one}\n" for one in [*others, f'"{written}"']))
    with pytest.raises(ExitkitError, match=r"row 3 of .* has no label"):
        read(tmp_path / "train.csv")


def test_words_for_nothing_are_class_names(tmp_path: Path) -> None:
    values = ["NA", "null", "None", "nan", "yes"]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t,{one}\n" for one in values))
    assert set(read(tmp_path / "train.csv").labels) == set(values)


def test_a_test_split_of_nan_has_no_label(tmp_path: Path) -> None:
    parquet(tmp_path, [float("nan")] * 2, pa.float64()).rename(tmp_path / "test.parquet")
    assert not labelled(catalogue(tmp_path), "test", Columns())


# Names


def test_blanks_around_a_label_make_no_other_class_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "exitkit"):
        assert names(read(table([" pos", "neg", "neg ", "pos"]))) == ["pos", "neg", "neg", "pos"]
    assert "blanks around 2 of the labels are no part of them (' pos', 'neg ')" in caplog.text


def test_labels_that_differ_by_case_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "exitkit"):
        assert read(table(["Pos", "pos"])).labels == ("Pos", "pos")
    assert "differ only in upper and lower case" in caplog.text


def test_a_model_meets_labels_as_it_knows_them() -> None:
    """One that was trained when blanks were part of a name goes on to have them."""
    assert read(table([" pos", "pos"]), task=Classification((" pos", "pos"))).data["label"][:] == [0, 1]
    assert read(table(["pos "]), task=Classification(("neg", "pos"))).data["label"][:] == [1]


label_lists = st.one_of(
    st.lists(st.sampled_from([0, 1, 2, 5, -1, 10]), min_size=1, max_size=6),
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.lists(
        st.text(st.sampled_from("aB1 .-,[]'_é"), min_size=1, max_size=4).filter(str.strip), min_size=1, max_size=6
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(label_lists)
@example(["1", "2"])
@example(["1.0", "2.5"])
@example(["01", "nan"])
@example(["['a']", "['b' 'c']"])
def test_labels_are_the_same_in_every_format(tmp_path: Path, values: list[Any]) -> None:
    frame = pd.DataFrame(table(values))
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    found = set()
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        try:
            rows = read(tmp_path / name)
            found.add(json.dumps([rows.task.kind if rows.task else "", rows.labels, names(rows)]))
        except ExitkitError as error:
            found.add(str(error).partition(" of ")[0])
    assert len(found) == 1, found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.0], r"split 'validation' of .*: label column 'label' holds double such as 0\.5"),
        ([["0"], ["1"]], r"split 'validation' of .*: label column 'label' holds list"),
        (["0", "x"], r"row 2 of split 'validation' of .*: unknown label 'x'"),
    ],
)
def test_a_split_with_other_labels_is_named(values: list[Any], message: str, tmp_path: Path) -> None:
    csv(tmp_path, [0, 1] * 6)
    pd.DataFrame(table(values)).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(UsageError, match=message):
        training_and_calibration(tmp_path)


def test_a_validation_split_without_the_label_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv(tmp_path, [0, 1] * 6)
    pd.DataFrame(table([0, 1], "sentiment")).to_parquet(tmp_path / "validation.parquet")
    with caplog.at_level(logging.WARNING, "exitkit"):
        assert training_and_calibration(tmp_path).evaluation.origin.split == "train"
    assert "validation has text, sentiment" in caplog.text


# Words to leave out


@pytest.mark.parametrize(
    "tags",
    [
        [[1, 0, 2, -100], [1]],
        [[1, 0, 2, -1], [1]],
        [[1, 0, 2, None], [1]],
        [[1.0, 0.0, 2.0, float("nan")], [1.0]],
        [["1", "0", "2", "-100"], ["1"]],
        ["[1, 0, 2, -100]", "[1]"],
    ],
)
def test_words_without_a_tag_are_left_out_and_told(tags: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"tokens": ["Anna", "in", "Ul", "##m"][: 4 - 3 * number], "tags": one} for number, one in enumerate(tags)]
    with caplog.at_level(logging.WARNING, "exitkit"):
        found = read(rows)
    assert (found.labels, names(found)) == (("0", "1", "2"), [["1", "0", "2", None], ["1"]])
    assert "1 words have no tag" in caplog.text
    assert "row 1 of split 'train' of in memory, word 4" in caplog.text


@pytest.mark.parametrize("mark", [-1, -100])
def test_words_without_a_tag_are_left_out_of_class_ids_too(mark: int) -> None:
    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")), tags=datasets.List(datasets.ClassLabel(names=["O", "B-X"]))
    )
    rows = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[1, mark]]}, features=features)
    assert names(read(rows)) == [["B-X", None]]
    assert names(read(words([[1, mark]]), task=Tagging(("O", "B-X")))) == [["B-X", None]]


def test_minus_one_is_a_tag_beside_other_negative_numbers_and_refused_where_it_may_be_either() -> None:
    assert read(words([[-2, -1, 0, 1, 2]])).labels == ("-2", "-1", "0", "1", "2")
    assert read(words([["-1", "O"]])).labels == ("-1", "O")
    with pytest.raises(UsageError, match="-1, 0 and 1: -1 may be a tag of its own"):
        read(words([[-1, 0, 1]]))
    known = Tagging(("-1", "0", "1"))
    assert names(read(words([[-1, 0, 1]]), task=known)) == [["-1", "0", "1"]]


def test_a_sentence_without_any_tag_has_no_label() -> None:
    with pytest.raises(ExitkitError, match=r"row 2 .* has no label"):
        read(words([[1, 0], [-100, -100]]))


def test_the_hash_of_rows_tells_words_that_are_left_out() -> None:
    assert read(words([["X", None]])).hash() != read(words([["X", "X"]])).hash()


# What is told


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (table([0, 1, 2]), "classification, 3 classes (0, 1, 2); --task changes this"),
        (table(["b", "a"]), "classification, 2 classes (a, b); --task changes this"),
        (
            table([1, 2, 3, 4, 5]),
            "classification, 5 classes (1, 2, 3, 4, 5); if they are ratings, --task regression takes them as values",
        ),
        (
            table(["x,y", "x", "z,y"]),
            "classification, 3 classes (x, x,y, z,y); --task multi-label takes ',' as between several",
        ),
        (table(["Arts, Culture", "Sports"]), "classification, 2 classes (Arts, Culture, Sports); --task changes this"),
        (
            table([0.5, 2.0]),
            "regression, values from 0.5 to 2, because they are floats or decimals; --task changes this",
        ),
        (table([["a"], ["b"]]), "multi-label, 2 classes (a, b), because they are lists; --task changes this"),
        (
            table(VECTORS),
            "multi-label, 3 classes (0, 1, 2), because they are vectors with a 0 or 1 for each class; "
            "--task changes this",
        ),
        (
            words([["O", "B-X"]]),
            "tagging, 2 tags (B-X, O), IOB2, scored by strict spans, because words have tags; --task changes this",
        ),
        (
            words([["N", "V"]]),
            "tagging, 2 tags (N, V), plain: no spans are seen in them, because words have tags; --task changes this",
        ),
    ],
)
def test_what_was_taken_is_said_in_a_line_with_the_flag_that_changes_it(source: Any, line: str) -> None:
    assert taken(read(source)) == line


def test_long_lists_of_classes_are_cut() -> None:
    line = taken(read(table([f"class {'x' * 50} {number}" for number in range(100)])), "as --task says")
    assert line.startswith("classification, 100 classes (class xxx")
    assert line.endswith("…, …), as --task says")
    assert len(line) < 400
