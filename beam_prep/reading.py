"""Read: the records of a unit, in batches of lines, each with its byte offset in the uncompressed stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from beam_prep import storage
from beam_prep.compression import checked_kind, decompressed
from beam_prep.errors import BeamPrepError
from beam_prep.lines import CutLine, line_size, split_lines
from beam_prep.parquet import is_parquet, read_row_groups
from beam_prep.sources import START, Position, Span, Unit, is_compressed

_BOM = b"\xef\xbb\xbf"


class RecordBatch(NamedTuple):
    """Consecutive lines of one file (what crosses from Read to Transform)."""

    source: int
    unit: str
    last: bool
    """Whether the unit ends with this batch."""
    file: int
    path: str
    lines: list[bytes]
    """Without their line feeds; blank ones included."""
    offsets: np.ndarray
    """uint64[len(lines)]: each line's first byte in the uncompressed stream; the row number of a Parquet file."""
    begin: Position = START
    """Where the unit stood before this batch."""
    end: Position = START
    """Where it goes on after it."""
    finished: int = 0
    """Runs of this unit that an earlier attempt finished; reading began behind them."""


def read_unit(unit: Unit, begin: Position = START, finished: int = 0) -> Iterator[RecordBatch]:
    """The batches of a unit from `begin` on, in order; the last one, without lines, carries `last`.

    Raises:
      BeamPrepError: a file cannot be read, is truncated or corrupt; the message names it.
    """
    at = begin
    for number, span in enumerate(unit.spans[begin.span :], begin.span):
        if number == begin.span and begin.offset:
            batches = prefetch(lambda span=span: _unchanged(span, _from_offset(span, begin.offset)))
        else:
            batches = prefetch(lambda span=span: _unchanged(span, read_span(span)))
        for lines, offsets in batches:
            after = int(offsets[-1]) + (1 if is_parquet(span.path) else line_size(lines[-1]) + 1)
            end = Position(number, after)
            yield RecordBatch(unit.source, unit.name, False, span.file, span.path, lines, offsets, at, end, finished)
            at = end
    close, end = unit.spans[-1], Position(len(unit.spans), 0)
    nothing = np.empty(0, np.uint64)
    yield RecordBatch(unit.source, unit.name, True, close.file, close.path, [], nothing, at, end, finished)


def _unchanged(
    span: Span, batches: Iterator[tuple[list[bytes], np.ndarray]]
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """The same batches, and an error at their end if the file is no longer as it was matched."""
    try:
        yield from batches
    except BeamPrepError:
        _require_unchanged(span)  # a better reason for most that goes wrong
        raise
    _require_unchanged(span)


def _require_unchanged(span: Span) -> None:
    if span.size < 0:
        return
    now = storage.find(span.path)
    if now is None:
        raise BeamPrepError(f"{span.path}: the file is gone; it was there when the run began")
    if (now.size, now.modified) != (span.size, span.modified):
        what = f"from {span.size:,} bytes to {now.size:,}" if now.size != span.size else "it was written to"
        raise BeamPrepError(
            f"{span.path}: the file changed while it was read ({what}); run the job again when nothing writes to it"
        )


def _from_offset(span: Span, offset: int) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """What `read_span` gives from the record at `offset` on; plain files are not read before it."""
    if not is_parquet(span.path) and not is_compressed(span.path):
        if offset < span.end or span.end < 0:
            yield from read_span(span._replace(start=offset))
        return
    for lines, offsets in read_span(span):
        first = int(np.searchsorted(offsets, offset))
        if first < len(lines):
            yield lines[first:], offsets[first:]


def read_span(span: Span) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """(lines, offsets) of the lines that a span owns, in batches of about `CHUNK_BYTES`."""
    if is_parquet(span.path):
        yield from read_row_groups(span.path, span.start, span.end)
        return
    with _named(span.path), storage.open_read(span.path) as file:
        # A range begins after the line feed that ends the line of the byte before it.
        begin = max(0, span.start - 1)
        if begin:
            file.seek(begin)
        chunks = decompressed(file, span.path)
        chunks = _until_nothing_is_owned(chunks, span) if span.start else checked_kind(chunks, span.path)
        yield from _owned_lines(split_lines(chunks, begin), span)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Names the file in errors, and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise BeamPrepError(f"{path}: the file is gone; it was there when the run began") from error
    except PermissionError as error:
        raise BeamPrepError(f"{path}: may not be read ({error.strerror}); give this user the right to") from error
    except MemoryError as error:
        raise BeamPrepError(f"{path}: there is not enough memory to read it; split its longest records") from error
    except (EOFError, ValueError) as error:
        raise BeamPrepError(f"{path}: cannot be read ({error}); the file is truncated or corrupt") from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise BeamPrepError(f"{path}: cannot be read ({reason}); check the file and the disk it is on") from error


def _until_nothing_is_owned(chunks: Iterable[bytes], span: Span) -> Iterator[bytes]:
    """Ends where a range lies within one line, so that a line of many ranges is not read once for each."""
    position = span.start - 1
    owns = False
    for chunk in chunks:
        yield chunk
        position += len(chunk)
        owns = owns or b"\n" in chunk
        if not owns and 0 <= span.end <= position:
            return


def _owned_lines(
    batches: Iterable[tuple[list[bytes], np.ndarray]], span: Span
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    first = True
    for lines, offsets in batches:
        bom = first and not span.start and lines[0].startswith(_BOM)
        if first and span.start:
            lines, offsets = lines[1:], offsets[1:]
        first = False
        done = span.end >= 0 and len(offsets) > 0 and bool(offsets[-1] >= span.end)
        if done:
            count = int(np.searchsorted(offsets, span.end))
            lines, offsets = lines[:count], offsets[:count]
        if bom and lines:  # after the cut: the mark lies within the first line's range
            line = lines[0]
            lines[0] = line.without(_BOM) if isinstance(line, CutLine) else line[len(_BOM) :]
            offsets[0] += len(_BOM)
        if lines:
            yield lines, offsets
        if done:
            return


_DONE = object()


def prefetch(make: Callable[[], Iterator], depth: int = 2) -> Iterator:
    """Runs an iterator in a thread of its own, `depth` items ahead: reading and decompressing release the GIL."""
    items: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in make():
                put(item)
                if stop.is_set():
                    return
            put(_DONE)
        except BaseException as error:  # handed over and raised again by the consumer
            put(error)

    thread = threading.Thread(target=work, name="beam-prep-read", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not _DONE:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
