"""Opens Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exitkit.data.opening import check_start
from exitkit.errors import ExitkitError


@contextmanager
def parquet(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`, for as long as the block lasts.

    Raises ExitkitError: it is damaged or something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        start = file.read(64)
    if not start.startswith(b"PAR1"):
        check_start(start)
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise ExitkitError(
            f"cannot be read as Parquet: {error}. It is damaged or not a Parquet file; write it again."
        ) from error
