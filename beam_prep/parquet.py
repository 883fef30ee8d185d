"""Parquet input: row groups as ranges, rows as the JSON lines that the other formats hold."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from beam_prep import storage
from beam_prep.errors import BeamPrepError

_BATCH_BYTES = 2 << 20
_MAX_ROWS = 4096


def is_parquet(path: str) -> bool:
    """Whether a path names a Parquet file."""
    return path.lower().endswith(".parquet")


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    try:
        with storage.open_read(path) as file, pq.ParquetFile(file) as parquet:
            yield parquet
    except FileNotFoundError as error:
        raise BeamPrepError(f"{path}: the file is gone; it was there when the run began") from error
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BeamPrepError(f"{path}: cannot be read as Parquet ({reason}); truncated or corrupt") from error


def row_group_bytes(path: str) -> list[int]:
    """Stored bytes of each row group of a file, from its footer.

    Raises:
      BeamPrepError: the footer cannot be read.
    """
    with _opened(path) as parquet:
        groups = [parquet.metadata.row_group(n) for n in range(parquet.metadata.num_row_groups)]
        return [
            sum(group.column(c).total_compressed_size for c in range(group.num_columns)) or group.total_byte_size
            for group in groups
        ]


def read_row_groups(path: str, start: int, end: int) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """(lines, offsets) of row groups [start, end) (end -1: all): JSON objects, offset = row number.

    Raises:
      BeamPrepError: the file cannot be read; names it.
    """
    with _opened(path) as parquet:
        metadata = parquet.metadata
        end = metadata.num_row_groups if end < 0 else end
        row = sum(metadata.row_group(n).num_rows for n in range(start))
        for number in range(start, end):
            group = metadata.row_group(number)
            mean = max(1, group.total_byte_size // max(1, group.num_rows))
            size = max(1, min(_MAX_ROWS, _BATCH_BYTES // mean))
            for batch in parquet.iter_batches(batch_size=size, row_groups=[number]):
                lines = [orjson.dumps(record, default=_plain) for record in batch.to_pylist()]
                yield lines, np.arange(row, row + len(lines), dtype=np.uint64)
                row += len(lines)


def _plain(value: Any) -> Any:
    """What JSON has no form for: bytes as text (base64 where they are not UTF-8), the rest as Python writes it."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return str(value)
