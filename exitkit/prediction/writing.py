"""Writes the answers of `predict` as they come: jsonl, csv, tsv or parquet by suffix, or jsonl on stdout."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

from exitkit.errors import ExitkitError, UsageError
from exitkit.process import stdout
from exitkit.process.outputs import Lock, lock, target, why

ROWS_PER_GROUP = 10_000  # of a parquet file; also how many rows are held in memory for it

Row = Mapping[str, object]
Rows = Sequence[Row]


def open_writer(path: Path | None, *, source: Path | None = None) -> Writer:
    """A writer of `path`, or of jsonl on stdout for None.

    From now on the file grows as `FILE.partial` beside it. It takes its name, replacing a file that has it,
    when the `with` block ends without an exception; until then a file of that name is untouched. A link is
    followed to the file that it leads to. `source` is the input, which is never overwritten.

    While the file grows it is locked, and after a failure the lock file stays beside `FILE.partial` and says
    which file that is: a `FILE.partial` that an earlier run left is overwritten, any other one is refused
    (unless it is empty).

    Raises:
        UsageError: the name cannot be written to.
        ExitkitError: another run writes there, or the file cannot be created.
    """
    if path is None:
        return Writer(_Stdout(), None)
    path = target(path)
    suffix = path.suffix.lower()
    if suffix not in _SINKS:
        hint = "; .jsonl holds one JSON object a line" if suffix == ".json" else ""
        raise UsageError(f"cannot write '{path}': the name must end in one of {', '.join(_SINKS)}{hint}")
    if path.is_dir():
        raise UsageError(f"cannot write '{path}': it is a folder; give a file")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write '{path}': there is no folder '{path.parent}'; create it first")
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write '{path}': it is no regular file; give another name")
    for place in (path, _partial(path)):
        if source is not None and _same(source, place):
            raise UsageError(f"cannot write '{path}': '{place}' is the input; give another name")
    taken = lock(path, "predict")
    try:
        _clear(_partial(path), taken)
        sink = _SINKS[suffix](_partial(path))
        taken.note(partial=_identity(_partial(path))[:2])
    except OSError as error:
        taken.release()
        raise ExitkitError(f"cannot write '{path}': {why(error)}") from error
    except UsageError:
        taken.release()
        raise
    return Writer(sink, path, taken)


def _clear(partial: Path, taken: Lock) -> None:
    """Remove what an earlier run left. Raises UsageError: it is somebody's own."""
    if not os.path.lexists(partial):
        return
    said = [record["partial"] for record in taken.before if isinstance(record.get("partial"), list)]
    ours = bool(said) and said[-1] == _identity(partial)[: len(said[-1])]
    if not ours and (partial.is_symlink() or not partial.is_file() or partial.stat().st_size):
        raise UsageError(
            f"'{partial}', where answers are to grow, is there and is not of an earlier run; rename or remove it, or "
            "give another --output"
        )
    partial.unlink()


def _identity(file: Path) -> list[int]:
    """Which file of the machine it is, and then what changes with its content: numbers are used again."""
    found = file.lstat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


class Writer:
    """Takes answers in input order. A context manager, made by `open_writer`."""

    def __init__(self, sink: _Sink, path: Path | None, taken: Lock | None = None) -> None:
        self._sink = sink
        self._path = path
        self._lock = taken
        self._file = [] if path is None else _identity(_partial(path))[:2]
        self._keys: frozenset[str] | None = None
        self._rows = 0

    def write(self, answers: Rows) -> None:
        """Adds one row per answer: all of them or, where one is refused, none.

        All rows of a file have the same keys, and values of JSON's types; in text formats, floats are rounded
        to 6 significant digits. Raises ExitkitError for a number that is not finite and for a disk that is
        full or gone, behind stdout too; BrokenPipeError where the reader of stdout has left.
        """
        for number, answer in enumerate(answers, self._rows + 1):
            self._check(number, answer)
        if not answers:
            return
        with _naming(self._path):
            self._sink.append(answers)
        self._rows += len(answers)

    def _check(self, number: int, answer: Row) -> None:
        if self._keys is None:
            self._keys = frozenset(answer)
        if self._keys != answer.keys():
            raise ValueError(f"answer {number} has keys {sorted(answer)}, those before {sorted(self._keys)}")
        for key, value in answer.items():
            if not _finite(value):
                raise ExitkitError(
                    f"answer {number}: '{key}' is not a finite number ({value}); the model overflows or its "
                    "weights are damaged; try full precision"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        published = False
        try:
            if error is not None:
                with suppress(Exception):  # the first error is the one to report
                    self._sink.close()
                return
            with _naming(self._path):
                self._sink.close()
                if self._path is not None:
                    self._publish(self._path)
            published = True
        finally:
            if self._lock is not None:
                if not published:
                    with suppress(OSError):
                        self._lock.note(partial=_identity(_partial(cast(Path, self._path))))
                self._lock.release(keep=not published)

    def _publish(self, path: Path) -> None:
        partial = _partial(path)
        if not partial.exists() or _identity(partial)[:2] != self._file:  # where there are no locks
            raise ExitkitError(f"cannot write '{path}': another run has replaced '{partial}' meanwhile; run it again")
        os.replace(partial, path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _same(one: Path, other: Path) -> bool:
    """Whether both name one file; it need not exist."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


@contextmanager
def _naming(path: Path | None) -> Iterator[None]:
    """Turns an OSError into a message that names the file. Stdout names itself."""
    try:
        yield
    except OSError as error:
        if path is None:
            raise
        what = f"{why(error)}; what could be written is in '{_partial(path)}'"
        raise ExitkitError(f"cannot write '{path}': {what}") from error


def _finite(value: object) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case Mapping():
            return all(_finite(part) for part in value.values())
        case list() | tuple():
            return all(_finite(part) for part in value)
        case _:
            return True


# Text


def _json(value: object) -> str:
    return json.dumps(_rounded(value), ensure_ascii=False, allow_nan=False)


def _rounded(value: object) -> object:
    match value:
        case float():
            return float(f"{value:.6g}")
        case Mapping():
            return {key: _rounded(part) for key, part in value.items()}
        case list() | tuple():
            return [_rounded(part) for part in value]
        case _:
            return value


def _json_lines(rows: Rows) -> bytes:
    return "".join(_json(row) + "\n" for row in rows).encode()


class _Table:
    """Renders rows as csv, after a header. Nested values are JSON text, None is an empty field."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self._header: list[str] | None = None

    def __call__(self, rows: Rows) -> bytes:
        text = io.StringIO(newline="")
        plain = csv.writer(text, delimiter=self._delimiter, lineterminator="\n")
        quoting = csv.writer(text, delimiter=self._delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        records: list[list[object]] = []
        if self._header is None:
            self._header = list(rows[0])
            records.append(list(self._header))
        records += [[_cell(row[key]) for key in self._header] for row in rows]
        for record in records:
            # before Python 3.13 the csv module leaves "\r" unquoted where lines end in "\n"
            bare_return = any(isinstance(cell, str) and "\r" in cell for cell in record)
            (quoting if bare_return else plain).writerow(record)
        return text.getvalue().encode()


def _cell(value: object) -> object:
    return _json(value) if isinstance(value, Mapping | list | tuple) else _rounded(value)


# Where rows go


class _Sink(Protocol):
    """Takes rows, and keeps whole those it has taken."""

    def append(self, rows: Rows) -> None: ...

    def close(self) -> None: ...


class _Stdout:
    """UTF-8 whatever the locale; flushed per call, so that a reader gets answers as they come."""

    def append(self, rows: Rows) -> None:
        stdout.write(_json_lines(rows))

    def close(self) -> None:
        pass


class _TextFile:
    """Unbuffered: what `append` has taken survives a kill; rows cut short by a full disk are taken back."""

    def __init__(self, partial: Path, render: Callable[[Rows], bytes]) -> None:
        self._render = render
        self._file = partial.open("xb", buffering=0)

    def append(self, rows: Rows) -> None:
        data = memoryview(self._render(rows))
        whole = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(whole)
            raise

    def close(self) -> None:
        self._file.close()


class _ParquetFile:
    """The columns' types are those of the first row group. Readable once closed, so not after a kill."""

    def __init__(self, partial: Path) -> None:
        self._file = partial.open("xb")
        self._waiting: list[Row] = []
        self._writer: Any = None

    def append(self, rows: Rows) -> None:
        self._waiting += rows
        while len(self._waiting) >= ROWS_PER_GROUP:
            self._write_group(self._waiting[:ROWS_PER_GROUP])
            del self._waiting[:ROWS_PER_GROUP]

    def _write_group(self, rows: Rows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = self._writer.schema if self._writer else _with_lists(pa.Table.from_pylist(rows).schema)
            table = pa.Table.from_pylist(rows, schema=schema)
        except pa.ArrowException as error:
            raise ExitkitError(f"answers do not fit the types of the first {ROWS_PER_GROUP}: {error}") from error
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        try:
            if self._waiting or self._writer is None:
                self._write_group(self._waiting)
        finally:
            if self._writer is not None:
                self._writer.close()
            self._file.close()


def _with_lists(schema: Any) -> Any:
    """A schema in which answers by word have their types also where the first rows have none of them."""
    import pyarrow as pa

    span = pa.struct(
        [
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("label", pa.string()),
            ("text", pa.string()),
            ("score", pa.float64()),
        ]
    )
    known = {
        "spans": span,
        "words": pa.list_(pa.int64()),
        "tags": pa.string(),
        "score": pa.float64(),
        "exit": pa.int64(),
        "layers": pa.int64(),
    }
    for number, field in enumerate(schema):
        if field.name in known and pa.types.is_list(field.type):
            schema = schema.set(number, field.with_type(pa.list_(known[field.name])))
    return schema


_SINKS: dict[str, Callable[[Path], _Sink]] = {
    ".jsonl": lambda partial: _TextFile(partial, _json_lines),
    ".csv": lambda partial: _TextFile(partial, _Table(",")),
    ".tsv": lambda partial: _TextFile(partial, _Table("\t")),
    ".parquet": _ParquetFile,
}
