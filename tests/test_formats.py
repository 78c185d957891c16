"""Files as people bring them: one table of formats, and the same rows for training and for prediction."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from exitkit.cli import app
from exitkit.data import opening
from exitkit.data.columns import Columns
from exitkit.data.delimited import find_delimiter
from exitkit.data.formats import COMPRESSIONS, FORMATS
from exitkit.data.sources import read, splits
from exitkit.errors import ExitkitError, UsageError
from exitkit.prediction.lines import BadLine, Line
from exitkit.prediction.reading import read as read_inputs

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}
TABLES = {"a.csv": ",", "semicolons.csv": ";", "tabs.csv": "\t", "pipes.csv": "|", "a.tsv": "\t", "B.CSV": ","}
WORDS = ("tokens", "tags")


def content_of(name: str, rows: list[tuple[str, str]]) -> bytes:
    """Texts and labels as the format that the name says."""
    suffix = Path(name).suffix.lower()
    if name in TABLES:
        table = io.StringIO(newline="")
        quoting = csv.QUOTE_ALL if suffix == ".tsv" else csv.QUOTE_MINIMAL
        csv.writer(table, delimiter=TABLES[name], quoting=quoting).writerows([("text", "label"), *rows])
        return table.getvalue().encode()
    objects = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    if suffix == ".json":
        return f"[{', '.join(objects)}]\n".encode()
    if suffix in (".jsonl", ".ndjson"):
        return "".join(f"{one}\n" for one in objects).encode()
    if suffix == ".parquet":
        into = io.BytesIO()
        pq.write_table(pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]}), into)
        return into.getvalue()
    columns = "1\t{}\t_\t{}\n" if suffix == ".conllu" else "{}\t{}\n"
    return "".join(columns.format(text, label) + "\n" for text, label in rows).encode()


def trained_on(path: Path) -> tuple[list[Any], list[str]]:
    rows = read(str(path))
    labels = [rows.labels[one if isinstance(one, int) else one[0]] for one in rows.data["label"]]
    return list(rows.data["text"]), labels


def answered(path: Path, **options: Any) -> list[Any]:
    lines = list(read_inputs(path, expects_pair=False, **options))
    assert all(isinstance(line, Line) for line in lines), lines
    return [line.text for line in lines if isinstance(line, Line)]


def refusal(path: Path) -> tuple[str, str]:
    """What training and prediction say."""
    said = []
    for reading in (lambda: read(str(path)), lambda: list(read_inputs(path, expects_pair=False))):
        with pytest.raises(ExitkitError) as caught:
            reading()
        said.append(str(caught.value))
        assert len(said[-1]) < 1000
    return said[0], said[1]


NAMES = [*TABLES, *(f"a{suffix}" for suffix in FORMATS if suffix not in (".csv", ".tsv"))]
ANY = st.text(st.characters(exclude_categories=["Cs"]))
WORD = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(ANY, min_size=1, max_size=4), words=st.lists(WORD, min_size=1, max_size=4), mark=st.booleans())
def test_one_data_set_in_every_format_and_compression_is_read_alike_by_both_readers(
    name: str, texts: list[str], words: list[str], mark: bool
) -> None:
    in_words = FORMATS[Path(name).suffix.lower()].startswith("conll")
    rows = [(text, f"l{at % 2}") for at, text in enumerate(words if in_words else texts)]
    binary = name.endswith(".parquet")
    with TemporaryDirectory() as folder:
        content = (opening.BOM if mark and not binary else b"") + content_of(name, rows)
        for compression in ("",) if binary else PACK:
            path = Path(folder, name + compression)
            path.write_bytes(PACK[compression](content))
            assert trained_on(path) == ([text for text, _ in rows], [label for _, label in rows])
            assert answered(path) == [text for text, _ in rows]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "windows-1252"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.conll"])
def test_another_encoding_is_named_with_the_way_out_by_both_readers(tmp_path: Path, name: str, encoding: str) -> None:
    text = content_of(name, [("café", "l0"), ("good", "l1")]).decode()
    (tmp_path / name).write_bytes(text.encode(encoding))
    said = "windows-1252" if encoding == "windows-1252" else encoding.replace("-le", "le").replace("-be", "be")
    if encoding == "windows-1252" and name in ("a.csv", "a.tsv", "a.jsonl"):  # prediction knows the rows
        with pytest.raises(ExitkitError, match="iconv -f windows-1252"):
            read(str(tmp_path / name))
        first, second = read_inputs(tmp_path / name, expects_pair=False)
        assert isinstance(first, BadLine)
        assert "iconv -f windows-1252" in first.reason
        assert isinstance(second, Line)
        return
    for message in refusal(tmp_path / name):
        assert f"iconv -f {said} " in message


def test_every_compression_of_the_table_is_tried_here() -> None:
    assert {*PACK} == {"", *COMPRESSIONS}


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_that_is_cut_is_named(tmp_path: Path, suffix: str) -> None:
    rows = [(str(number) * 9, "l0") for number in range(9000)]
    (tmp_path / f"a.csv{suffix}").write_bytes(PACK[suffix](content_of("a.csv", rows))[:-9])
    for message in refusal(tmp_path / f"a.csv{suffix}"):
        assert f"a.csv{suffix}: cannot be read" in message


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"text,label\rgood,a\rbad,b\r", ["good", "bad"]),
        (b"text,label\ngo\0od,a\nbad,b\n", ["go\0od", "bad"]),
        (b"text,label,,\ngood,a,,\nbad,b,,\n", ["good", "bad"]),
        (b"sep=;\r\ntext;label\r\ngood;a\r\nbad;b\r\n", ["good", "bad"]),
        (b"\n\ntext,label\n\ngood,a\nbad,b\n", ["good", "bad"]),
        (b'"text";"label"\n"go,od";"a"\n"bad";"b"\n', ["go,od", "bad"]),
    ],
    ids=["carriage returns", "zero bytes", "unnamed columns", "sep=", "blank lines first", "quoted semicolons"],
)
def test_odd_csv_files_are_read_alike(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert trained_on(tmp_path / "a.csv") == (texts, ["a", "b"])
    assert answered(tmp_path / "a.csv") == texts


@pytest.mark.parametrize(
    ("content", "usual", "delimiter"),
    [
        (b"text,label\na;b,c\n", ",", ","),
        (b"text;label\na,b;c\nd,e;f\n", ",", ";"),
        (b"text\ta|b\n1\t2\n", ",", "\t"),
        (b"text|label\n", ",", "|"),
        (b"text\na;b\nc;d\n", ",", ","),
        (b"a|b\nno pipe\nnone\n", ",", ","),
        (b"text;label\n1;2", "\t", ";"),
        (b"text,label\na,b\n", "\t", ","),
        (b'text;label\n"a;\nb";1\nc;2\n', ",", ";"),
        (b"", ",", ","),
    ],
)
def test_the_delimiter_is_the_one_that_header_and_rows_agree_on(content: bytes, usual: str, delimiter: str) -> None:
    assert find_delimiter(content, usual) == delimiter


@pytest.mark.parametrize("content", [b"text;label\na;b\nc;d;e\n", b"a;b|c\n1;2|3\n"])
def test_a_delimiter_that_is_not_clear_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    for message in refusal(tmp_path / "a.csv"):
        assert "semicolons (';')" in message


QUOTES = [
    ('text\tlabel\n"good" film\ta\nthe "b\tb\n', ['"good" film', 'the "b']),
    ('text\tlabel\n"tab\there"\ta\n"b ""c"""\tb\n', ["tab\there", 'b "c"']),
    ('text\tid\tlabel\n"x\ty"\ta\n"z\t1\tb\n', ['"x', '"z']),
    ('text\tid\tlabel\n"x\ty"\ta\n', ['"x']),
]


@pytest.mark.parametrize(("content", "texts"), QUOTES)
def test_quotes_in_a_tsv_are_quotes_or_text_for_both_readers_alike(
    tmp_path: Path, content: str, texts: list[str]
) -> None:
    (tmp_path / "a.tsv").write_text(content)
    assert list(read(tmp_path / "a.tsv", use_labels="ignored").data["text"]) == texts
    assert answered(tmp_path / "a.tsv") == texts


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".conll"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "Git LFS pointer"),
        (b"PK\x03\x04rest", "zip archive, as Excel workbooks"),
        (b"PAR1\x15\x04", "Parquet file"),
        (gzip.compress(b"text", mtime=0), "gzip"),
        (PACK[".zst"](b"text"), "zstd"),
        (lzma.compress(b"text"), "xz"),
        (bz2.compress(b"text"), "bzip2"),
        (b"%PDF-1.7", "PDF"),
        (b"SQLite format 3\0", "SQLite"),
    ],
)
def test_other_content_under_a_known_name_is_called_by_its_name(
    tmp_path: Path, suffix: str, content: bytes, said: str
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    for message in refusal(tmp_path / f"a{suffix}"):
        assert said in message


@pytest.mark.parametrize("name", ["a.xlsx", "a.ods", "a.XLS", "a.zip", "a.pkl", "a.arrow", "a.xlsx.gz"])
def test_formats_of_other_programs_are_called_by_their_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"whatever")
    for message in refusal(tmp_path / name):
        assert "this is a" in message


def test_prediction_reads_no_binary_file_as_lines(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"\x7fELF\0\xff\xfe\xfa\0\0" * 20)
    with pytest.raises(ExitkitError, match=r"a\.dat: this is no text"):
        list(read_inputs(tmp_path / "a.dat", expects_pair=False))


def test_a_pointer_in_place_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    for message in refusal(tmp_path / "a.parquet"):
        assert "git lfs pull" in message


# JSON


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_lines_that_are_lists_of_objects_are_told_from_a_list(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('[{"text": "a", "label": 1}]\n[{"text": "b", "label": 0}]\n')
    for message in refusal(tmp_path / name):
        assert "each line is a list of its own (line 2, column 1). Write one object per line" in message


def test_a_list_in_a_file_of_lines_is_read_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('[\n  {"text": "a", "label": "x"},\n  {"text": "b", "label": "y"}\n]\n')
    assert trained_on(tmp_path / "a.jsonl") == (["a", "b"], ["x", "y"])
    assert answered(tmp_path / "a.jsonl") == ["a", "b"]


@pytest.mark.parametrize("orient", ["columns", "split"])
def test_a_frame_by_columns_is_refused_in_a_line_with_the_call_that_writes_rows(tmp_path: Path, orient: Any) -> None:
    frame = pd.DataFrame({"text": [f"t{n}" for n in range(3000)], "label": ["a", "b", "c"] * 1000})
    frame.to_json(tmp_path / "a.json", orient=orient)
    for message in refusal(tmp_path / "a.json"):
        assert f"orient='{orient}'" in message
        assert "orient='records'" in message
        assert len(message) < 500


def test_a_list_is_broken_where_the_message_says(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a", "label": "x"},\n {"text": "b" "label": 2}]\n')
    for message in refusal(tmp_path / "a.json"):
        assert "not valid JSON: Expecting ',' delimiter at line 2, column 15" in message


def test_numbers_of_thousands_of_digits_are_refused_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": ' + "1" * 6000 + "}\n")
    with pytest.raises(ExitkitError, match=r"line 2: .*Exceeds the limit"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text('[{"text": "b", "label": ' + "1" * 6000 + "}]")
    with pytest.raises(ExitkitError, match="Exceeds the limit"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("block", [1, 7, 64])
def test_a_list_is_the_same_however_it_is_cut_into_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("exitkit.data.json_rows.BLOCK", block)
    values = [{"text": 'a"]}, {'}, "b\\", "é\u2028", {"text": "c", "n": [1.5e3, -7, True, None]}]
    (tmp_path / "a.json").write_text(json.dumps(values, indent=1))
    assert answered(tmp_path / "a.json") == ['a"]}, {', "b\\", "é\u2028", "c"]


# Memory, long lines


@pytest.mark.parametrize("name", ["a.json", "a.txt.gz", "a.jsonl.zst", "a.csv.xz"])
def test_reading_takes_constant_memory_through_every_compression(tmp_path: Path, name: str) -> None:
    few, many = peak(tmp_path / name, 5_000), peak(tmp_path / name, 40_000)  # an unpacker has tables of its own
    assert many < few + 200_000


def peak(path: Path, rows: int) -> int:
    """Bytes that reading a file of so many rows takes at most."""
    row = '{"text": "some text or other of forty characters"}'
    content = {
        "a.json": f"[{','.join([row] * rows)}]",
        "a.txt.gz": "some text or other\n" * rows,
        "a.jsonl.zst": f"{row}\n" * rows,
        "a.csv.xz": "text,label\n" + "some text or other,1\n" * rows,
    }[path.name].encode()
    path.write_bytes(PACK[path.suffix if path.name.count(".") > 1 else ""](content))
    del content
    next(iter(read_inputs(path, expects_pair=False)))  # what is imported is no growth
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_inputs(path, expects_pair=False)) == rows
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.conll"])
def test_a_line_beyond_the_limit_ends_reading_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(opening, "LONGEST_LINE", 2**20)
    head = '{"text": "a"}' if name == "a.jsonl" else "text"
    (tmp_path / name).write_text(f"{head}\n" + "x" * 2**21)
    with pytest.raises(ExitkitError, match="line 2 is longer than 1 MB"):
        list(read_inputs(tmp_path / name, expects_pair=False))


# Parquet, shards, folders


@pytest.mark.parametrize(
    "kind",
    [pa.string_view(), pa.binary_view(), pa.binary(), pa.large_binary(), pa.large_string(),
     pa.dictionary(pa.int8(), pa.string())],
)  # fmt: skip
def test_texts_and_labels_may_be_of_any_type_that_holds_text(tmp_path: Path, kind: pa.DataType) -> None:
    def column(values: list[str]) -> pa.Array:
        binary = kind in (pa.binary_view(), pa.binary(), pa.large_binary())
        return pa.array([value.encode() for value in values], kind) if binary else pa.array(values).cast(kind)

    pq.write_table(pa.table({"text": column(["a", "é"]), "label": column(["x", "y"])}), tmp_path / "a.parquet")
    assert trained_on(tmp_path / "a.parquet") == (["a", "é"], ["x", "y"])
    assert answered(tmp_path / "a.parquet") == ["a", "é"]


def test_features_of_a_later_version_do_not_matter_and_class_names_beside_them_count(tmp_path: Path) -> None:
    features = {
        "image": {"_type": "FutureThing"},
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    table = pa.table({"text": ["a", "b"], "label": [1, 0], "image": [1, 2]})
    noted = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(noted, tmp_path / "a.parquet")
    assert trained_on(tmp_path / "a.parquet") == (["a", "b"], ["pos", "neg"])


def shards(folder: Path, *labels: pa.Array | None) -> Path:
    for number, values in enumerate(labels):
        columns = {"text": pa.array([f"{number}{row}" for row in range(2)])}
        table = pa.table(columns if values is None else {**columns, "label": values})
        pq.write_table(table, folder / f"train-0000{number}-of-0000{len(labels)}.parquet")
    return folder


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array(["1", "2"]), pa.array(["1", "2"], pa.large_string())),
        (pa.array([1, 2], pa.int32()), pa.array([1, 2], pa.int64())),
        (pa.array([1, 2], pa.uint64()), pa.array([1, 2], pa.int8())),
        (pa.array([1, 2]), pa.array(["1", "2"])),
        (pa.array(["1", "2"]).dictionary_encode(), pa.array(["1", "2"], pa.string_view())),
    ],
)
def test_shards_whose_types_mean_the_same_are_joined(tmp_path: Path, first: pa.Array, second: pa.Array) -> None:
    assert trained_on(shards(tmp_path, first, second))[1] == ["1", "2", "1", "2"]


def test_a_shard_without_any_label_is_joined_and_its_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExitkitError, match=r"row 3 of split 'train' .* has no label"):
        read(shards(tmp_path, pa.array(["a", "b"]), pa.nulls(2)))


@pytest.mark.parametrize("second", [None, pa.array(["pos", "neg"]), pa.array([True, False]), pa.array([[1], [2]])])
def test_a_shard_that_does_not_fit_is_named(tmp_path: Path, second: pa.Array | None) -> None:
    with pytest.raises(ExitkitError, match=r"train-00001-of-00002\.parquet.* column 'label'"):
        read(shards(tmp_path, pa.array([1, 2]), second))


def test_a_shard_with_other_class_names_is_named(tmp_path: Path) -> None:
    for number, names in enumerate((["neg", "pos"], ["pos", "neg"])):
        features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
        rows.to_parquet(tmp_path / f"train-0000{number}-of-00002.parquet")
    with pytest.raises(ExitkitError, match=r"train-00001-of-00002\.parquet names the classes of column 'label' differ"):
        read(tmp_path)


ROW = b"text,label\ngood,a\nbad,b\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train-1.csv", "train-2.csv"], {"train": 4}),
        (["train_0.csv", "train_1.csv", "dev.csv"], {"train": 4, "validation": 2}),
        ([f"train-{number}.csv" for number in range(1, 12)], {"train": 22}),
        (["test-2014.csv", "test-2016.csv"], {"test-2014": 2, "test-2016": 2}),
        (["reviews-1.csv", "reviews-2.csv"], {"reviews-1": 2, "reviews-2": 2}),
        (["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/test.csv"], {"train": 4, "test": 2}),
        (["train/0000.csv", "train/0001.csv", "dev/0000.csv"], {"train": 4, "validation": 2}),
        (["TRAIN.CSV", "Test.Csv"], {"TRAIN": 2, "Test": 2}),
    ],
)
def test_the_files_of_a_folder_are_the_splits_that_their_names_say(
    tmp_path: Path, files: list[str], expected: dict[str, int]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(ROW)
    assert splits(tmp_path) == expected


def test_numbered_files_of_a_split_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 12):
        (tmp_path / f"train-{number}.csv").write_text(f"text,label\n{number},{number % 2}\n")
    assert list(read(tmp_path).data["text"]) == [str(number) for number in range(1, 12)]


@pytest.mark.parametrize(
    "content", ['{"pos": 1, "neg": 0}', '{\n "pos": 1\n}', '["pos", "neg"]', "[]", '{"a": 1}\n\n', "7"]
)
def test_json_beside_data_that_is_no_list_of_rows_is_no_split(tmp_path: Path, content: str) -> None:
    (tmp_path / "reviews.csv").write_bytes(ROW)
    (tmp_path / "label_map.json").write_text(content)
    (tmp_path / "dataset_infos.json").write_text('{"a": {}}\n{"b": {}}\n')
    assert splits(tmp_path) == {"train": 2}


def test_json_that_is_rows_is_a_split_beside_others(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(ROW)
    (tmp_path / "more.json").write_text('[{"text": "a", "label": "a"}]')
    (tmp_path / "lines.json").write_text('{"text": "a", "label": "a"}\n{"text": "b", "label": "b"}\n')
    (tmp_path / "test.json").write_text('{"text": "a", "label": "a"}\n')
    assert splits(tmp_path) == {"lines": 2, "more": 1, "test": 1, "train": 2}


def test_a_folder_of_save_to_disk_is_read_and_a_broken_one_is_called_so(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "two")
    assert trained_on(tmp_path / "one") == (["a", "b"], ["x", "y"])
    assert splits(tmp_path / "two") == {"train": 2, "test": 2}
    (tmp_path / "three").mkdir()
    (tmp_path / "three/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ExitkitError, match="written by save_to_disk"):
        read(tmp_path / "three")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "a PEFT adapter"),
        (["sst2/train.csv"], "folders with some: sst2. Give one of these"),
        (["book.xlsx"], "book.xlsx is an Excel workbook: save the sheet as csv"),
    ],
)
def test_a_folder_without_data_says_what_it_holds(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(ROW)
    with pytest.raises(UsageError, match=said):
        read(tmp_path)


def test_a_split_with_other_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(ROW)
    (tmp_path / "test.csv").write_text("text,stars\na,1\n")
    with pytest.raises(UsageError, match=r"split 'test' of .*: no column looks like the label"):
        read(tmp_path, "test")
    with pytest.raises(UsageError, match=r"split 'test' of .*"):
        read(tmp_path, "train+test")


def test_a_frame_with_two_columns_of_one_name_is_refused() -> None:
    frame = pd.DataFrame([["good", 0, "x"], ["bad", 1, "y"]], columns=["text", "label", "text"])
    with pytest.raises(UsageError, match="more than one column named 'text'"):
        read(frame)


def test_a_message_is_never_longer_than_a_screen(tmp_path: Path) -> None:
    wide = {f"field {number}": number for number in range(3000)}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({'text': wide, 'label': 1})}\n" * 2)
    pq.write_table(pa.table({name: [value] for name, value in wide.items()}), tmp_path / "wide.parquet")
    for name, columns in (("a.jsonl", Columns()), ("wide.parquet", Columns(text="nope"))):
        with pytest.raises(ExitkitError) as caught:
            read(tmp_path / name, columns=columns)
        assert len(str(caught.value)) < 1000


# Columns that are joined, or lie inside others


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_several_columns_are_joined_in_the_order_asked_for_by_both_readers(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"title": ["t1", "", "t3"], "body": ["b1", "b2", ""], "label": ["x", "y", "x"]})
    if name == "a.csv":
        frame.to_csv(tmp_path / name, index=False)
    elif name == "a.parquet":
        frame.to_parquet(tmp_path / name)
    else:
        frame.to_json(tmp_path / name, orient="records", lines=name == "a.jsonl")
    expected = ["b1 t1", "b2", "t3"]
    rows = read(tmp_path / name, columns=Columns(text="body,title"))
    assert list(rows.data["text"]) == expected
    assert rows.origin.columns.text == "body,title"
    assert answered(tmp_path / name, text_column="body, title") == expected
    assert answered(tmp_path / name, trained_on=("body,title", None)) == expected


def test_a_column_whose_name_has_a_comma_or_a_dot_is_that_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"a,b",c.d,a,b\n1,x,2,3\n')
    rows = read(tmp_path / "a.csv", columns=Columns(text="a,b", label="c.d"))
    assert (list(rows.data["text"]), rows.labels) == (["1"], ("x",))
    assert answered(tmp_path / "a.csv", text_column="a,b") == ["1"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_field_inside_a_column_is_named_with_a_dot(tmp_path: Path, name: str) -> None:
    rows = [{"doc": {"text": "a"}, "label": {"name": "pos"}}, {"doc": {"text": "b"}, "label": {"name": "neg"}}]
    if name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    found = read(tmp_path / name, columns=Columns(text="doc.text", label="label.name"))
    assert (list(found.data["text"]), found.labels) == (["a", "b"], ("neg", "pos"))
    assert answered(tmp_path / name, text_column="doc.text") == ["a", "b"]
    with pytest.raises(UsageError, match=r"no field 'nam' inside; it holds name"):
        read(tmp_path / name, columns=Columns(text="doc.text", label="label.nam"))


# Stdin, and formats that are asked for


def piped(content: bytes, **options: Any) -> list[Any]:
    given = {"expects_pair": False, "trained_on": ("text", None), **options}
    return [line.input for line in read_inputs("-", stdin=io.BytesIO(content), **given) if isinstance(line, Line)]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b"text,label\na,1\nb,2\n", {}),
        (b"\xef\xbb\xbfid;text\r\n1;a\r\n2;b\r\n", {}),
        (b"id\ttext\n1\ta\n2\tb\n", {}),
        (b"sentence,label\na,1\nb,2\n", {}),
        (b"body,x\na,1\nb,2\n", {"text_column": "body"}),
        (b"body,title\na,\nb,\n", {"trained_on": ("title,body", None)}),
    ],
)
def test_a_header_on_stdin_means_csv_and_is_told(
    content: bytes, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert piped(content, **options) == ["a", "b"]
    assert "stdin is read as csv" in caplog.text


def test_a_header_on_stdin_is_found_for_pairs_too() -> None:
    found = piped(b"premise,hypothesis,label\na,b,1\n", expects_pair=True, trained_on=("premise", "hypothesis"))
    assert found == [("a", "b")]


@pytest.mark.parametrize("first", ["text", "text, label me", "yes,sentence"])
def test_a_first_line_that_may_be_a_header_is_refused_and_never_answered(first: str) -> None:
    with pytest.raises(UsageError, match="--input-format csv or lines"):
        piped(f"{first}\na\n".encode())
    assert piped(f"{first}\na\n".encode(), input_format="lines") == [first, "a"]


@pytest.mark.parametrize("first", ["a text, as people write them", "sentence", "good; bad | so so", '"quoted', ""])
def test_a_first_line_that_is_no_header_is_a_text(first: str) -> None:
    assert piped(f"{first}\na\n".encode()) == [first, "a"]


def test_a_list_of_objects_on_stdin_is_not_answered_line_by_line() -> None:
    content = b'[{"text": "a"},\n{"text": "b"}]\n'
    with pytest.raises(UsageError, match="--input-format json"):
        piped(content)
    assert piped(content, input_format="json") == ["a", "b"]


@pytest.mark.parametrize("content", [gzip.compress(b"a\n", mtime=0), "a\n".encode("utf-16"), b"PK\x03\x04"])
def test_stdin_that_is_no_text_is_refused_by_its_first_bytes(content: bytes) -> None:
    with pytest.raises(ExitkitError, match=r"stdin: (this is|not UTF-8)"):
        piped(content)


@pytest.mark.parametrize("name", ["a.txt", "a.dat"])
def test_a_format_that_is_asked_for_wins_over_the_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(ROW)
    assert answered(tmp_path / name, input_format="csv") == ["good", "bad"]
    (tmp_path / "a.csv").write_bytes(ROW)
    assert answered(tmp_path / "a.csv", input_format="lines")[0] == "text,label"
    with pytest.raises(UsageError, match="stdin: parquet cannot be read as a stream"):
        piped(b"", input_format="parquet")


def test_a_csv_on_stdin_and_in_any_wrapping_gets_the_same_answers(trained: Path, tmp_path: Path) -> None:
    """Through the commands: predict answers and calibrate reads what lies in other formats and compressions."""
    content = b"text;label\n" + b"a good film;good\na bad film;bad\n" * 20
    (tmp_path / "A.CSV.gz").write_bytes(gzip.compress(content, mtime=0))
    run = CliRunner()
    whole = run.invoke(app, ["predict", str(trained), "--input", str(tmp_path / "A.CSV.gz")])
    through = run.invoke(app, ["predict", str(trained)], input=content)
    assert whole.exit_code == through.exit_code == 0, through.output
    assert whole.stdout == through.stdout
    assert whole.stdout.count("\n") == 40


def test_a_pipe_is_read_once_and_whole(tmp_path: Path) -> None:
    pipe, rows = tmp_path / "pipe", 6000
    os.mkfifo(pipe)
    content = "text\tlabel\n" + "".join(f"a text of some length, number {number}\tx\n" for number in range(rows))
    writer = threading.Thread(target=pipe.write_text, args=(content,), daemon=True)
    writer.start()
    found = list(read_inputs(pipe, expects_pair=False, input_format="tsv"))
    writer.join()
    assert [line.text for line in found] == [f"a text of some length, number {number}" for number in range(rows)]
