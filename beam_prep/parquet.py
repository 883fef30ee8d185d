"""Parquet input: row groups as ranges, rows as the JSON lines that the other formats hold."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from beam_prep import lines, storage
from beam_prep.compression import looks_like_text, recognise
from beam_prep.errors import BeamPrepError
from beam_prep.lines import CutLine

_BATCH_BYTES = 2 << 20
_MAX_ROWS = 4096
_BUFFER_BYTES = 1 << 20
_REPEATED_BYTES = 64 << 20
"""What the largest entry of a dictionary may take in a batch in which every row repeats it."""
_LARGE_BATCH_BYTES = 32 << 20


def is_parquet(path: str) -> bool:
    """Whether a path names a Parquet file."""
    return path.lower().endswith(".parquet")


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    try:
        with storage.open_read(path) as file, pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as parquet:
            yield parquet
    except FileNotFoundError as error:
        raise BeamPrepError(f"{path}: the file is gone; it was there when the run began") from error
    except PermissionError as error:
        raise BeamPrepError(f"{path}: may not be read ({error.strerror}); give this user the right to") from error
    except MemoryError as error:
        raise BeamPrepError(
            f"{path}: there is not enough memory for one of its pages ({error}); write it again with smaller pages and "
            "row groups"
        ) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = _other_kind(path) or "truncated or corrupt"
        raise BeamPrepError(f"{path}: cannot be read as Parquet ({reason}); {remedy}") from error


def _other_kind(path: str) -> str | None:
    """What a file is that is no Parquet file, if that can be seen."""
    try:
        with storage.open_read(path) as file:
            head = file.read(512)
    except (OSError, BeamPrepError):
        return None
    kind = recognise(head)
    if kind is not None and kind.ending != ".parquet":
        return f"it is {kind.name}: {kind.remedy or f'rename it so that it ends in {kind.ending}'}"
    return "it is text: take .parquet off its name" if looks_like_text(head) else None


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

    Memory: a page of each column, and a row as Arrow and as JSON. The writer chose its pages, and pyarrow cannot read
    part of one.

    Raises:
      BeamPrepError: the file cannot be read; names it.
    """
    with _opened(path) as parquet:
        metadata = parquet.metadata
        end = metadata.num_row_groups if end < 0 else end
        row = sum(metadata.row_group(n).num_rows for n in range(start))
        for number in range(start, end):
            size = _batch_rows(metadata.row_group(number))
            for batch in parquet.iter_batches(batch_size=size, row_groups=[number]):
                for part in _parts(batch):
                    records = _json_lines(part)
                    yield records, np.arange(row, row + len(records), dtype=np.uint64)
                    row += len(records)


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """Rows to decode at a time: about `_BATCH_BYTES`, and less where a dictionary makes long values look short."""
    rows = min(_MAX_ROWS, _BATCH_BYTES // max(1, group.total_byte_size // max(1, group.num_rows)))
    for number in range(group.num_columns):
        column = group.column(number)
        if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
            stored = max(0, column.data_page_offset - (column.dictionary_page_offset or 0))
            entry = stored * column.total_uncompressed_size // max(1, column.total_compressed_size)
            if 4 * entry > column.total_uncompressed_size:  # else most values stand for themselves, behind it
                rows = min(rows, _REPEATED_BYTES // max(1, entry))
    return max(1, rows)


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch; row by row if it is so large that its rows in Python's form might not fit."""
    if batch.nbytes <= _LARGE_BATCH_BYTES:
        yield batch
        return
    yield from (batch.slice(row, 1) for row in range(batch.num_rows))


def _json_lines(batch: pa.RecordBatch) -> list[bytes]:
    """The rows as JSON; one that is too long is cut (see `lines.CutLine`)."""
    if batch.num_rows == 1 and batch.nbytes > lines.MAX_RECORD_BYTES:
        names = ", ".join(batch.schema.names)
        return [CutLine(f"a row of {batch.nbytes:,} bytes with the columns {names}".encode(), batch.nbytes)]
    try:
        return [lines.limited(orjson.dumps(record, default=_plain)) for record in batch.to_pylist()]
    except (ValueError, TypeError, OverflowError, pa.ArrowException):  # some value of some row
        return [_json_line(batch.slice(row, 1)) for row in range(batch.num_rows)]


def _json_line(row: pa.RecordBatch) -> bytes:
    """One row, value by value; text that is not UTF-8 stays as it is, for the row to be rejected by."""
    record = {name: _value(column[0]) for name, column in zip(row.schema.names, row.columns, strict=True)}
    try:
        return lines.limited(orjson.dumps(record, default=_plain))
    except TypeError:
        text = json.dumps(record, ensure_ascii=False, default=lambda value: str(_plain(value)))
        return lines.limited(text.encode("utf-8", "surrogateescape"))


def _value(scalar: pa.Scalar) -> Any:
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if isinstance(scalar, pa.MapScalar):
        return scalar.as_py()
    if pa.types.is_struct(kind):
        return {name: _value(item) for name, item in scalar.items()}
    if hasattr(scalar, "values") and pa.types.is_nested(kind):
        return [_value(item) for item in scalar.values]
    if pa.types.is_dictionary(kind):
        return _value(scalar.value)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):  # nanoseconds, and years beyond Python's calendar
        text = scalar.cast(pa.string()).as_py()
        return str(scalar.value) if "out of range" in text else text.replace(" ", "T", 1)


def _plain(value: Any) -> Any:
    """What JSON has no form for: bytes as text (base64 where they are not UTF-8), the rest as Python writes it."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return str(value)
