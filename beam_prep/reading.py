"""Read: the records of a unit, in batches of lines, each with its byte offset in the uncompressed stream.

Strict where Beam's own readers are not: a compressed file that ends too early is an error, not a short file.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import queue
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import zstandard

from beam_prep import storage
from beam_prep.errors import BeamPrepError
from beam_prep.parquet import is_parquet, read_row_groups
from beam_prep.sources import Position, Span, Unit, is_compressed

CHUNK_BYTES = 2 << 20
"""Bytes read at a time, and so about the size of a batch."""
_SLICE_BYTES = 128 << 10
_BOM = b"\xef\xbb\xbf"


START = Position(0, 0)


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
    end: Position = START
    """Where the unit goes on after this batch."""
    finished: int = 0
    """Runs of this unit that an earlier attempt finished; reading began behind them."""


def read_unit(unit: Unit, begin: Position = START, finished: int = 0) -> Iterator[RecordBatch]:
    """The batches of a unit from `begin` on, in order; the last one, without lines, carries `last`.

    Raises:
      BeamPrepError: a file cannot be read, is truncated or corrupt; the message names it.
    """
    for number, span in enumerate(unit.spans[begin.span :], begin.span):
        if number == begin.span and begin.offset:
            batches = prefetch(lambda span=span: _from_offset(span, begin.offset))
        else:
            batches = prefetch(lambda span=span: read_span(span))
        for lines, offsets in batches:
            after = int(offsets[-1]) + (1 if is_parquet(span.path) else len(lines[-1]) + 1)
            end = Position(number, after)
            yield RecordBatch(unit.source, unit.name, False, span.file, span.path, lines, offsets, end, finished)
    close, end = unit.spans[-1], Position(len(unit.spans), 0)
    yield RecordBatch(unit.source, unit.name, True, close.file, close.path, [], np.empty(0, np.uint64), end, finished)


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
    try:
        with storage.open_read(span.path) as file:
            # A range begins after the line feed that ends the line of the byte before it.
            begin = max(0, span.start - 1)
            if begin:
                file.seek(begin)
            chunks = decompressed(file, span.path)
            yield from _owned_lines(split_lines(chunks, begin), span)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise BeamPrepError(f"{span.path}: the file is gone; it was there when the run began") from error
        reason = str(error) or type(error).__name__
        raise BeamPrepError(f"{span.path}: cannot be read ({reason}); the file is truncated or corrupt") from error


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
            lines[0] = lines[0][len(_BOM) :]
            offsets[0] += len(_BOM)
        if lines:
            yield lines, offsets
        if done:
            return


def split_lines(chunks: Iterable[bytes], position: int) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """(lines, offsets) for each chunk that ends a line; only LF ends a line. Linear in a line's length."""
    pending: list[bytes] = []
    for chunk in chunks:
        if b"\n" not in chunk:
            pending.append(chunk)
            continue
        lines = chunk.split(b"\n")
        tail = lines.pop()
        if pending:
            lines[0] = b"".join([*pending, lines[0]])
        pending = [tail] if tail else []
        offsets = _offsets(lines, position)
        position = int(offsets[-1]) + len(lines[-1]) + 1
        yield lines, offsets
    if pending:
        yield [b"".join(pending)], np.array([position], np.uint64)


def _offsets(lines: list[bytes], position: int) -> np.ndarray:
    ends = np.cumsum(np.fromiter(map(len, lines), np.uint64, len(lines)) + np.uint64(1))
    offsets = np.empty(len(lines), np.uint64)
    offsets[0] = position
    offsets[1:] = ends[:-1] + np.uint64(position)
    return offsets


def decompressed(file: BinaryIO, path: str) -> Iterator[bytes]:
    """The uncompressed bytes of a file by its name's ending, in chunks.

    Raises:
      EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError: truncated or corrupt.
    """
    lower = path.lower()
    if lower.endswith(".zst"):
        return _frames(_stored(file), _zstd_frame)
    if lower.endswith(".gz"):
        return _frames(_stored(file), lambda: zlib.decompressobj(wbits=31))
    if lower.endswith(".bz2"):
        return _frames(_stored(file), bz2.BZ2Decompressor)
    if lower.endswith(".xz"):
        return _frames(_stored(file), lzma.LZMADecompressor)
    return _stored(file)


def _stored(file: BinaryIO) -> Iterator[bytes]:
    if not isinstance(file, io.FileIO):
        reader = io.BufferedReader(file, CHUNK_BYTES)  # type: ignore[type-var]
        while chunk := reader.read(CHUNK_BYTES):
            yield chunk
        return
    while chunk := file.read(CHUNK_BYTES):
        # What is read once need not stay in the page cache: the spill is written into the memory that this frees.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), file.tell() - len(chunk), len(chunk), os.POSIX_FADV_DONTNEED)
        yield chunk


def _zstd_frame():
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _frames(chunks: Iterable[bytes], new_frame: Callable) -> Iterator[bytes]:
    """Decompresses a sequence of frames (gzip members, zstd frames, …); a frame without its end is an error."""
    out: list[bytes] = []
    ready = 0
    frame, started = None, False
    for chunk in chunks:
        # Small slices, so that a highly compressed file cannot unfold to gigabytes at once.
        for begin in range(0, len(chunk), _SLICE_BYTES):
            data = chunk[begin : begin + _SLICE_BYTES]
            while data:
                if frame is None:
                    if started:  # zero padding between frames or after the last one, as xz and tape tools leave it
                        data = data.lstrip(b"\0")
                        if not data:
                            break
                    frame, started = new_frame(), True
                part = frame.decompress(data)
                out.append(part)
                ready += len(part)
                if not frame.eof:
                    break
                data, frame = frame.unused_data, None
            if ready >= CHUNK_BYTES:
                yield b"".join(out)
                out, ready = [], 0
    if ready:
        yield b"".join(out)
    if frame is not None or not started:
        raise EOFError("the compressed stream ends too early" if started else "no compressed stream in it")


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
