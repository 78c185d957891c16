"""Reading the inputs of `predict` and writing its answers."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exitkit.errors import ExitkitError, UsageError
from exitkit.prediction import writing
from exitkit.prediction.lines import BadLine, Line
from exitkit.prediction.reading import read
from exitkit.prediction.writing import open_writer

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8)
AWKWARD = ["a\rb", "c\r\nd", "e\nf", '"g", h\ti', "", " ", "\u2028", "\ufeff"]
ROW = {"label": "pos", "score": 0.5, "exit": 1}


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder per example: hypothesis runs many within one `tmp_path`."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def lines_of(path: Path, content: bytes, *, pair: bool = False, **columns: Any) -> list[Line | BadLine]:
    path.write_bytes(content)
    return list(read(path, expects_pair=pair, **columns))


def texts_of(path: Path, content: bytes) -> list[str]:
    lines = lines_of(path, content)
    assert all(isinstance(line, Line) for line in lines), lines
    return [line.text for line in lines if isinstance(line, Line)]


def from_stdin(content: bytes, *, pair: bool = False, **columns: Any) -> list[Line | BadLine]:
    return list(read("-", expects_pair=pair, stdin=io.BytesIO(content), **columns))


def test_columns_are_those_of_the_training_data_and_else_rank_as_they_do_there(tmp_path: Path) -> None:
    row = b'{"title": "a", "question": "b", "passage": "c", "review": "d", "text": "e"}'
    path = tmp_path / "a.jsonl"

    def found(pair: bool, trained_on: tuple[str, str | None]) -> Any:
        (line,) = lines_of(path, row, pair=pair, trained_on=trained_on)
        return line.input if isinstance(line, Line) else line.reason

    assert found(False, ("title", None)) == "a"
    assert found(True, ("title", "review")) == ("a", "d")
    assert found(True, ("title", "gone")) == ("b", "c")
    assert found(False, ("gone", None)) == "a pair of texts (question/passage), but the model takes one text; " + (
        "give the text column (--text-column)"
    )
    (line,) = lines_of(path, b'{"review": "d", "text": "e"}')
    assert isinstance(line, Line)
    assert line.text == "e"


def test_reading_and_writing_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, exitkit.prediction.reading, exitkit.prediction.writing\n"
        "sys.exit(' '.join({'torch', 'transformers', 'pyarrow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Reading: what is an input


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"one\n\n three \n", [(1, "one"), (2, ""), (3, " three ")]),
        ("a.txt", b"one\r\ntwo\r\n", [(1, "one"), (2, "two")]),
        ("a.txt", b"one\ntwo", [(1, "one"), (2, "two")]),
        ("a.txt", b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", [(1, "one"), (2, "\ufefftwo")]),
        ("a.txt", "a\u2028b\x0bc\x85d\n".encode(), [(1, "a\u2028b\x0bc\x85d")]),
        ("a.txt", b'{"text": "a"}\n', [(1, '{"text": "a"}')]),
        ("a.txt", b"", []),
        ("no_suffix", b"one\n", [(1, "one")]),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n  \n{"sentence": "b", "label": 1}\n"c"\n',
            [(1, "a"), (4, "b"), (5, "c")],
        ),
        ("a.jsonl", b'\xef\xbb\xbf{"review": "a"}\r\n{"content": ""}\r\n', [(1, "a"), (2, "")]),
        ("a.JSONL", b'{"question": "\\u00e9"}', [(1, "é")]),
        ("a.ndjson", b'"a"\n', [(1, "a")]),
        ("a.csv", b"label,text\n1,a\n2,b\n", [(2, "a"), (3, "b")]),
        ("a.csv", b'text,label\n"a\nb",1\n"say ""c""",2\n', [(2, "a\nb"), (4, 'say "c"')]),
        ("a.csv", b"\xef\xbb\xbftext,label\r\na,1\r\n\r\n,2\r\n", [(2, "a"), (4, "")]),
        ("a.csv", b"text\n", []),
        ("a.csv", b"text\n" + b"x" * 200_000, [(2, "x" * 200_000)]),
        ("a.csv", b"text,other\na,caf\xe9\n", [(2, "a")]),
        ("a.tsv", b"sentence\tlabel\na, b\t1\n", [(2, "a, b")]),
    ],
)
def test_every_format_gives_its_texts_with_their_line_numbers(
    tmp_path: Path, name: str, content: bytes, expected: list[tuple[int, str]]
) -> None:
    wanted = [Line(number, text, None) for number, text in expected]
    assert lines_of(tmp_path / name, content) == wanted
    assert lines_of(tmp_path / f"{name}.gz", gzip.compress(content)) == wanted


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'["a", "b"]\n'),
        ("a.jsonl", b'{"sentence1": "a", "sentence2": "b"}\n'),
        ("a.jsonl", b'{"question": "a", "sentence": "b"}\n'),
        ("a.jsonl", b'{"premise": "a", "hypothesis": "b", "label": 2}\n'),
        ("a.csv", b"hypothesis,premise\nb,a\n"),
        ("a.tsv", b"question\tcontext\na\tb\n"),
    ],
)
def test_pairs_are_found_by_their_usual_names(tmp_path: Path, name: str, content: bytes) -> None:
    found = lines_of(tmp_path / name, content, pair=True)
    assert [(line.text, line.text_pair) for line in found if isinstance(line, Line)] == [("a", "b")]


def test_given_columns_win_over_usual_names(tmp_path: Path) -> None:
    jsonl = b'{"text": "no", "body": "a", "title": "b"}\n'
    assert lines_of(tmp_path / "a.jsonl", jsonl, text_column="body") == [Line(1, "a", None)]
    assert lines_of(tmp_path / "a.jsonl", jsonl, pair=True, text_column="body", pair_column="title") == [
        Line(1, "a", "b")
    ]
    table = b"premise,hypothesis,body\nno,no,a\n"
    assert lines_of(tmp_path / "a.csv", table, text_column="body") == [Line(2, "a", None)]


def test_parquet_rows_are_numbered_across_batches_and_groups(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(2500)]
    table = pa.table({"label": range(2500), "text": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1100)
    assert list(read(tmp_path / "a.parquet", expects_pair=False)) == [
        Line(number, text, None) for number, text in enumerate(texts, 1)
    ]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_text_may_be_of_any_string_type(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", None, ""], pa.string()).cast(kind)}), tmp_path / "a.parquet")
    assert list(read(tmp_path / "a.parquet", expects_pair=False)) == [
        Line(1, "a", None),
        BadLine(2, "'text' is null, not a string"),
        Line(3, "", None),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'one\n{"text": "b"}\n', [(1, "one"), (2, '{"text": "b"}')]),
        (b'{"text": "a"}\n\n{"text": "b"}\n', [(1, "a"), (3, "b")]),
        (b'\xef\xbb\xbf\n  {"text": "a"}\n', [(2, "a")]),
        (b"\n\none\n", [(1, ""), (2, ""), (3, "one")]),
        (b"\n\n", [(1, ""), (2, "")]),
        (b'"quoted"\n', [(1, '"quoted"')]),
        (b"", []),
    ],
)
def test_stdin_is_jsonl_only_when_it_starts_with_a_brace(content: bytes, expected: list[tuple[int, str]]) -> None:
    assert from_stdin(content) == [Line(number, text, None) for number, text in expected]


def test_stdin_answers_each_line_before_the_next_is_asked_for() -> None:
    asked: list[int] = []

    class Typed(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            asked.append(len(asked))
            return b"line\n"

    lines = read("-", expects_pair=False, stdin=Typed())  # type: ignore[arg-type]
    assert asked == []
    next(lines)
    assert asked == [0]


@settings(max_examples=60, deadline=None)
@given(TEXTS)
@example(AWKWARD)
def test_any_text_comes_back_from_csv_tsv_jsonl_and_parquet_in_order(texts: list[str]) -> None:
    with _scratch() as folder:
        for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
            table = io.StringIO(newline="")
            csv.writer(table, delimiter=delimiter).writerows([["text", "label"], *([text, "1"] for text in texts)])
            assert texts_of(folder / name, table.getvalue().encode()) == texts
        for ascii_only in (True, False):
            rows = "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in texts)
            assert texts_of(folder / "a.jsonl", rows.encode()) == texts
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / "a.parquet")
        assert [line.text for line in read(folder / "a.parquet", expects_pair=False)] == texts  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.txt.gz", "a.parquet"]))
def test_whatever_the_bytes_only_our_errors_escape(content: bytes, name: str) -> None:
    with _scratch() as folder:
        try:
            lines = lines_of(folder / name, content)
        except ExitkitError as error:
            lines, message = [], str(error)
        else:
            message = name
    numbers = [line.number for line in lines]
    assert name in message
    assert numbers == sorted(set(numbers))


# Reading: bad lines


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"text": "a"', "invalid JSON: Expecting ',' delimiter at column 13"),
        (b"hello", "invalid JSON: Expecting value at column 1"),
        (b"[" * 100_000, "invalid JSON: maximum recursion depth"),
        (b"1" * 5000, "invalid JSON: Exceeds the limit"),
        (b"7", "a number, not an object or a string"),
        (b"true", "a truth value, not"),
        (b"null", "null, not an object"),
        (b'["a"]', "an array of 1;"),
        (b'["a", "b", "c"]', "an array of 3;"),
        (b'"caf\xe9"', "not UTF-8: byte 0xe9, number 5 of the line"),
        (b"{}", "columns: none"),
    ],
)
def test_a_bad_jsonl_line_says_why_and_reading_goes_on(tmp_path: Path, raw: bytes, reason: str, pair: bool) -> None:
    good = b'["a", "b"]' if pair else b'"a"'
    first, bad, last = lines_of(tmp_path / "a.jsonl", b"\n".join([good, raw, good]), pair=pair)
    assert isinstance(bad, BadLine)
    assert bad.number == 2
    assert reason in bad.reason
    assert first == Line(1, "a", "b" if pair else None)
    assert last == Line(3, "a", "b" if pair else None)


@pytest.mark.parametrize(
    ("raw", "pair", "reason"),
    [
        (b'{"text": 5}', False, "'text' is a number, not a string"),
        (b'{"text": null}', False, "'text' is null, not a string"),
        (b'{"text": [1]}', False, "'text' is an array, not a string"),
        (b'{"text": {"a": 1}}', False, "'text' is an object, not a string"),
        (b'{"text": false}', False, "'text' is a truth value, not a string"),
        (b'{"txet": "a"}', False, "no text; columns: txet."),
        (b'{"text": "a", "sentence": "b"}', False, "several columns may be the text: text, sentence"),
        (b'{"text": "\\ud800"}', False, "'text' holds half a surrogate pair, \\ud800"),
        (b'"\\udc80"', False, "the text holds half a surrogate pair, \\udc80"),
        (b'["a", "b"]', False, "a pair of texts, but the model takes one text"),
        (
            b'{"sentence1": "a", "sentence2": "b"}',
            False,
            "a pair of texts (sentence1/sentence2), but the model takes one",
        ),
        (b'"a"', True, "one text, but the model takes pairs"),
        (b'{"text": "a"}', True, "no pair of texts, but the model takes pairs; columns: text."),
        (b'["a", 2]', True, "the second text is a number, not a string"),
        (b'{"premise": "a", "hypothesis": null}', True, "'hypothesis' is null"),
        (b'{"question": "a", "context": "b", "answer": "c"}', True, "several pairs of texts"),
    ],
)
def test_a_jsonl_line_without_the_wanted_texts_says_why(tmp_path: Path, raw: bytes, pair: bool, reason: str) -> None:
    (bad,) = lines_of(tmp_path / "a.jsonl", raw, pair=pair)
    assert isinstance(bad, BadLine)
    assert reason in bad.reason


def test_a_jsonl_line_without_the_given_key_names_the_closest(tmp_path: Path) -> None:
    bad, good = lines_of(tmp_path / "a.jsonl", b'{"bodi": "a"}\n{"body": "b"}\n', text_column="body")
    assert bad == BadLine(1, "unknown column 'body'. Did you mean 'bodi'? Known: bodi.")
    assert good == Line(2, "b", None)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"a", "wrong number of fields: 1, where the header has 2"),
        (b"a,1,2", "wrong number of fields: 3, where the header has 2"),
        (b"caf\xe9,1", "not UTF-8: byte 0xe9 in 'text'"),
        (b'"two\nlines\xff",1', "not UTF-8: byte 0xff in 'text'"),
        (b'"a"b,1', "not valid csv: ',' expected after '\"'"),
        (b"a\rb,1", "not valid csv: new-line character seen"),
    ],
)
def test_a_bad_csv_row_says_why_and_reading_goes_on(tmp_path: Path, raw: bytes, reason: str) -> None:
    content = b"\n".join([b"text,label", b"first,1", raw, b"last,1"])
    first, bad, last = lines_of(tmp_path / "a.csv", content)
    assert isinstance(bad, BadLine)
    assert bad.number == 3
    assert reason in bad.reason
    assert first == Line(2, "first", None)
    assert last == Line(4 + raw.count(b"\n"), "last", None)


def test_a_bad_byte_in_plain_text_says_where_and_reading_goes_on(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a.txt", b"a\ncaf\xe9 b\nc\n") == [
        Line(1, "a", None),
        BadLine(
            2,
            "not UTF-8: byte 0xe9, number 4 of the line; if the file is windows-1252, convert it: "
            "iconv -f windows-1252 -t utf-8 FILE > NEW_FILE",
        ),
        Line(3, "c", None),
    ]


def test_a_bad_byte_in_parquet_says_where_and_reading_goes_on(tmp_path: Path) -> None:
    broken = pa.array([b"a", b"caf\xe9", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    assert list(read(tmp_path / "a.parquet", expects_pair=False)) == [
        Line(1, "a", None),
        BadLine(2, "not UTF-8: byte 0xe9 in 'text'"),
        Line(3, "c", None),
    ]


# Reading: what concerns the whole file


@pytest.mark.parametrize(
    ("name", "content", "pair", "columns", "message"),
    [
        ("a.csv", b"", False, {}, "is empty"),
        ("a.csv", b"great film\nbad film\n", False, {}, "its first line, 'great film', is not a name"),
        ("a.csv", b"body,label\n", False, {}, "no text; columns: body, label. Known names: text, "),
        (
            "a.csv",
            b"text,label\n",
            False,
            {"text_column": "txt"},
            "unknown column 'txt'. Did you mean 'text'?",
        ),
        ("a.csv", b"text,text\n", False, {}, "there are 2 columns named 'text'"),
        ("a.csv", b"text,sentence\n", False, {}, "several columns may be the text: text, sentence"),
        ("a.csv", b"premise,hypothesis\n", False, {}, "a pair of texts (premise/hypothesis)"),
        ("a.csv", b"text,label\n", True, {}, "no pair of texts"),
        ("a.csv", b'"text"x,label\n', False, {}, "the header cannot be read"),
        ("a.txt", b"a\n", True, {}, "plain text holds one text a line"),
        ("a.txt", b"a\n", False, {"text_column": "text"}, "plain text has no columns"),
        ("a.parquet.gz", b"", False, {}, "unpack"),
        ("a.csv", b"", True, {"text_column": "a"}, "both the text column and the pair column"),
        ("a.csv", b"", False, {"pair_column": "a"}, "the model takes one text"),
    ],
)
def test_a_request_that_no_line_could_meet_is_refused_before_the_first_line(
    tmp_path: Path, name: str, content: bytes, pair: bool, columns: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read(tmp_path / name, expects_pair=pair, **columns)
    assert message in str(caught.value)


def test_a_missing_file_suggests_the_closest_sibling(tmp_path: Path) -> None:
    (tmp_path / "reviews.jsonl").touch()
    with pytest.raises(UsageError, match=r"review\.jsonl: no such file\. Did you mean '.*reviews\.jsonl'\?"):
        read(tmp_path / "review.jsonl", expects_pair=False)
    with pytest.raises(UsageError, match="there is no folder"):
        read(tmp_path / "nowhere" / "a.txt", expects_pair=False)
    with pytest.raises(UsageError, match="is a folder"):
        read(tmp_path, expects_pair=False)


def test_a_damaged_parquet_or_gzip_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ExitkitError, match=r"a\.parquet: cannot be read as Parquet"):
        read(tmp_path / "a.parquet", expects_pair=False)
    (tmp_path / "a.txt.gz").write_bytes(b"plain")
    with pytest.raises(ExitkitError, match=r"a\.txt\.gz: cannot be read"):
        read(tmp_path / "a.txt.gz", expects_pair=False)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-2000])
    with pytest.raises(ExitkitError, match=r"cut\.txt\.gz: cannot be read"):
        list(read(tmp_path / "cut.txt.gz", expects_pair=False))


def test_a_parquet_column_that_is_not_text_is_refused_with_its_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="column 'text' holds int64, not text"):
        read(tmp_path / "a.parquet", expects_pair=False)


@pytest.mark.parametrize(
    "rest", ["b\n" * 3, ("b" * 999 + "\n") * 17_000], ids=["to the end", "longer than a field may be"]
)
def test_a_csv_quote_left_open_stops_reading_instead_of_swallowing_rows(tmp_path: Path, rest: str) -> None:
    (tmp_path / "a.csv").write_text('text\na\n"open\n' + rest)
    lines = read(tmp_path / "a.csv", expects_pair=False)
    assert next(lines) == Line(2, "a", None)
    with pytest.raises(ExitkitError, match=r"a\.csv: line 3: a quote opened in this row is not closed"):
        next(lines)


@pytest.mark.parametrize(
    ("name", "count", "head", "line"),
    [
        ("a.txt", 200_000, "", "some text or other of forty characters\n"),
        ("a.jsonl", 50_000, "", '{"text": "some text or other of forty characters"}\n'),
        ("a.csv", 50_000, "text,label\n", '"some text, or other of forty characters",1\n'),
    ],
)
def test_reading_many_lines_takes_constant_memory(tmp_path: Path, name: str, count: int, head: str, line: str) -> None:
    (tmp_path / name).write_text(head + line * count)
    tracemalloc.start()
    try:
        found = sum(1 for _ in read(tmp_path / name, expects_pair=False))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == count
    assert peak < 1_000_000


# Writing


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as table:
        rows = csv.DictReader(table, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        return [{**row, "score": float(row["score"]), "exit": int(row["exit"])} for row in rows]


FORMATS = pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])


@FORMATS
def test_the_file_takes_its_name_only_at_the_end(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    target.write_text("the run before")
    with open_writer(target) as writer:
        writer.write([ROW])
        writer.write([])
        writer.write([{**ROW, "label": "neg"}, {**ROW, "exit": 3}])
        assert target.read_text() == "the run before"
    assert rows_of(target) == [ROW, {**ROW, "label": "neg"}, {**ROW, "exit": 3}]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@FORMATS
def test_after_a_failure_the_partial_file_holds_every_row_and_the_target_is_untouched(
    tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    target.write_text("the run before")

    def run() -> None:
        with open_writer(target) as writer:
            writer.write([ROW, ROW])
            writer.write([{**ROW, "exit": 2}])
            raise RuntimeError("line 4 is bad")

    with pytest.raises(RuntimeError, match="line 4 is bad"):
        run()
    assert target.read_text() == "the run before"
    partial = tmp_path / f"{name}.partial"
    assert rows_of(partial.rename(tmp_path / f"kept_{name}")) == [ROW, ROW, {**ROW, "exit": 2}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_text_files_can_be_followed_while_they_grow(tmp_path: Path, name: str) -> None:
    with open_writer(tmp_path / name) as writer:
        writer.write([ROW])
        grown = (tmp_path / f"{name}.partial").read_text()
    assert grown == (tmp_path / name).read_text() != ""


@FORMATS
def test_no_answers_make_a_readable_empty_file(tmp_path: Path, name: str) -> None:
    with open_writer(tmp_path / name):
        pass
    if name == "a.parquet":
        assert pq.read_table(tmp_path / name).num_rows == 0
    else:
        assert (tmp_path / name).read_bytes() == b""


def test_floats_keep_six_digits_in_text_and_all_of_them_in_parquet(tmp_path: Path) -> None:
    row = {
        "label": "pos",
        "score": 0.98765432109,
        "exit": 2,
        "probabilities": {"neg": 1.23456789e-9, "pos": 1.0},
    }
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        with open_writer(tmp_path / name) as writer:
            writer.write([row])
    assert (tmp_path / "a.jsonl").read_text() == (
        '{"label": "pos", "score": 0.987654, "exit": 2, "probabilities": {"neg": 1.23457e-09, "pos": 1.0}}\n'
    )
    assert (tmp_path / "a.csv").read_text() == (
        'label,score,exit,probabilities\npos,0.987654,2,"{""neg"": 1.23457e-09, ""pos"": 1.0}"\n'
    )
    assert rows_of(tmp_path / "a.parquet") == [row]


@FORMATS
def test_tags_are_native_lists_except_in_tables_where_they_are_json(tmp_path: Path, name: str) -> None:
    row = {"tags": ["B-PER", "O"], "score": [0.5, 0.25], "exit": [1, 3]}
    with open_writer(tmp_path / name) as writer:
        writer.write([row])
    if name in ("a.csv", "a.tsv"):
        (found,) = pd.read_csv(tmp_path / name, sep=None, engine="python").to_dict("records")
        assert {key: json.loads(value) for key, value in found.items()} == row
    else:
        assert rows_of(tmp_path / name) == [row]


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sampled_from(["a.jsonl", "a.csv", "a.tsv", "a.parquet"]))
@example(AWKWARD, "a.csv")
@example(AWKWARD, "a.tsv")
def test_any_label_comes_back_as_it_was_written(labels: list[str], name: str) -> None:
    rows = [{**ROW, "label": label} for label in labels]
    with _scratch() as folder:
        with open_writer(folder / name) as writer:
            writer.write(rows)
        if name == "a.jsonl":
            found = [json.loads(line) for line in (folder / name).read_bytes().split(b"\n")[:-1]]
        else:
            found = rows_of(folder / name)
    assert found == rows


def test_keys_may_come_in_another_order_but_not_change(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.csv") as writer:
        writer.write([ROW, dict(reversed(ROW.items()))])
        with pytest.raises(ValueError, match="answer 3 has keys"):
            writer.write([{"label": "pos", "exit": 1}])
    assert rows_of(tmp_path / "a.csv") == [ROW, ROW]


@FORMATS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), [0.5, float("nan")], {"pos": float("-inf")}])
def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path, name: str, value: object) -> None:
    writer = open_writer(tmp_path / name)
    with pytest.raises(ExitkitError, match="answer 2: 'score' is not a finite number"), writer:
        writer.write([ROW, {**ROW, "score": value}])
    assert not (tmp_path / name).exists()


def test_parquet_holds_at_most_one_row_group_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ROWS_PER_GROUP", 100)
    with open_writer(tmp_path / "a.parquet") as writer:
        for start in range(0, 256, 32):
            writer.write([{**ROW, "exit": start + i} for i in range(32)])
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [100, 100, 56]
    assert file.read()["exit"].to_pylist() == list(range(256))


def test_an_answer_that_does_not_fit_the_parquet_columns_is_our_error_and_keeps_the_rows_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "ROWS_PER_GROUP", 2)

    def run() -> None:
        with open_writer(tmp_path / "a.parquet") as writer:
            writer.write([ROW, ROW])
            writer.write([{**ROW, "exit": "two"}, ROW])

    with pytest.raises(ExitkitError, match="do not fit"):
        run()
    assert pq.read_table(tmp_path / "a.parquet.partial").to_pylist() == [ROW, ROW]


def test_without_a_path_answers_are_jsonl_on_stdout(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    with open_writer(None) as writer:
        writer.write([{**ROW, "label": "gut ü"}])
        assert capsysbinary.readouterr().out == '{"label": "gut ü", "score": 0.5, "exit": 1}\n'.encode()


def test_a_reader_that_has_left_shows_as_broken_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    with open(writing_end, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(BrokenPipeError), open_writer(None) as writer:
            writer.write([ROW])
        with pytest.raises(BrokenPipeError):
            pipe.close()


class _FullDisk(io.FileIO):
    """Takes 100 bytes in all, the last write in part."""

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        room = 100 - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[:room])


@pytest.mark.parametrize(("name", "whole"), [("a.jsonl", 2), ("a.csv", 8)])
def test_a_full_disk_is_our_error_names_the_file_and_leaves_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, whole: int
) -> None:
    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: _FullDisk(path, mode))
    writer = open_writer(tmp_path / name)
    monkeypatch.undo()

    def run() -> None:
        with writer:
            for _ in range(20):
                writer.write([ROW])

    with pytest.raises(ExitkitError, match=rf"{name}': the disk is full; what could be written is in '.*\.partial'"):
        run()
    assert not (tmp_path / name).exists()
    kept = (tmp_path / f"{name}.partial").rename(tmp_path / f"kept_{name}")
    assert rows_of(kept) == [ROW] * whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_parquet_on_a_full_disk_is_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mode: str) -> io.FileIO:
        path.touch()
        return io.FileIO("/dev/full", "wb")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ExitkitError, match="the disk is full"), open_writer(tmp_path / "a.parquet") as writer:
        writer.write([ROW])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.json", ".jsonl holds one JSON object a line"),
        ("a.xlsx", "must end in one of .jsonl, .csv, .tsv, .parquet"),
        ("a", "must end in one of"),
        ("nowhere/a.csv", "create it first"),
        ("folder.csv", "it is a folder"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError) as caught:
        open_writer(tmp_path / name)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("*.partial"))


def test_the_input_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.csv"
    source.write_text("text\na\n")
    (tmp_path / "link.csv").symlink_to(source)
    kept = source.rename(tmp_path / "b.csv.partial")
    for target, given_source in (("b.csv", kept), ("c.csv", tmp_path / "x" / ".." / "c.csv")):
        with pytest.raises(UsageError, match="is the input"):
            open_writer(tmp_path / target, source=given_source)
    kept.rename(source)
    monkeypatch.chdir(tmp_path)
    for target in ("a.csv", "link.csv"):
        with pytest.raises(UsageError, match="is the input"):
            open_writer(Path(target), source=source)
    assert source.read_text() == "text\na\n"
