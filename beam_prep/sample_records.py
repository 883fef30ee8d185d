"""Sample records: a few places of a source, chosen by even spacing alone, read as a run would read them.

Plain files are read at byte ranges, whose lines are those that begin there; so every line has the same chance whatever
its length. Compressed files are read at such ranges of what they unfold to, large ones only near their beginning;
Parquet files at the first rows of some row groups. Each file gives about the same share of its stored bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from beam_prep import compression, storage
from beam_prep.compression import CHUNK_BYTES, FORMATS, checked_kind, ending_of
from beam_prep.lines import line_size, split_lines
from beam_prep.parquet import is_parquet, read_row_groups, row_group_bytes
from beam_prep.reading import read_span
from beam_prep.sources import InputFile, Span, is_compressed

SAMPLE_BYTES = 8 << 20
"""Uncompressed bytes of a source that are read by default; about a tenth of a second's work for each."""
PLACES = 32
"""Places that are looked at in a source that is larger than the sample."""
REMOTE_PLACES = 16
"""The same where each costs a request."""
EXPANSION = 4.0
"""Bytes that a stored byte becomes, about, where nothing was read that tells."""
_FIRST_BYTES = 64 << 10
_SCAN_TIMES = 8
"""Of a compressed file, so many times as much is unfolded as is used."""
_MOST_TIMES = 4
"""A source that seemed to fit the sample is read on until it is so many times as large."""


class Part(NamedTuple):
    """What was read at one place of a file."""

    file: InputFile
    lines: list[bytes]
    """Without their line feeds."""
    offsets: np.ndarray
    """uint64[len(lines)]: first byte in the uncompressed stream; row numbers of a Parquet file."""
    stored: float
    """Stored bytes that the lines take, about."""
    whole: bool
    """Whether this is all of the file."""
    begun: bool = False
    """Whether the file is compressed and was read at its beginning only."""
    scanned: int = 0
    """Uncompressed bytes that were read to get there."""

    @property
    def size(self) -> int:
        """Uncompressed bytes of the lines."""
        return _size(self.lines)


class Place(NamedTuple):
    """Where to read."""

    file: InputFile
    start: int
    """First byte of a plain file; a row group of a Parquet file."""
    end: int
    """As in `Span`."""
    wanted: float
    """Stored bytes, of files that are compressed inside."""
    windows: int = 1
    """Parts of a compressed file to read; 0 to read all of it."""


def kind_of(file: InputFile) -> str:
    """How a file is stored: `plain`, `compressed` or `parquet`."""
    if is_parquet(file.path):
        return "parquet"
    return "compressed" if is_compressed(file.path) else "plain"


def choose_places(files: Sequence[InputFile], wanted: int) -> list[Place]:
    """Where to read about `wanted` uncompressed bytes: all files if they are no larger, else evenly spaced places.

    Follows from the files' order and sizes alone.
    """
    weights = [file.size * (1.0 if kind_of(file) == "plain" else EXPANSION) for file in files]
    total = sum(weights)
    if total <= wanted:
        return [Place(file, 0, -1, file.size, 0) for file in files]
    count = PLACES if storage.is_local(files[0].path) else REMOTE_PLACES
    length = wanted / count
    ends = np.cumsum(weights)
    centres = (np.arange(count) + 0.5) * total / count
    owner = np.searchsorted(ends, centres, side="right")
    places = []
    for number in np.unique(owner).tolist():
        file, kind = files[number], kind_of(files[number])
        inside = (centres[owner == number] - (ends[number] - weights[number])) / weights[number]  # 0 to 1
        if kind == "plain":
            for centre in (inside * file.size).tolist():
                low, high = int(max(0.0, centre - length / 2)), int(min(file.size, centre + length / 2))
                places.append(Place(file, low, high, 0))
        elif kind == "compressed":
            places.append(Place(file, 0, -1, length / EXPANSION * len(inside), len(inside)))
        else:
            sizes = np.cumsum(row_group_bytes(file.path))
            groups = np.searchsorted(sizes, inside * (sizes[-1] if len(sizes) else 0), side="right")
            for group, times in zip(*np.unique(groups, return_counts=True), strict=True):
                if group < len(sizes):
                    places.append(Place(file, int(group), int(group) + 1, length / EXPANSION * int(times)))
    return places


def read_sample(files: Sequence[InputFile], wanted: int) -> Iterator[Part]:
    """Reads a source at the places of `choose_places`.

    Raises:
      BeamPrepError: a file cannot be read, is truncated or corrupt where it was looked at.
    """
    left = _MOST_TIMES * wanted
    for place in choose_places(files, wanted):
        if left <= 0:
            return  # compressed far better than was to be expected
        for part in _READERS[kind_of(place.file)](place, left):
            left -= part.size
            yield part


def _read_plain(place: Place, _: int) -> Iterator[Part]:
    file = place.file
    if place.start:  # whoever reads the beginning checks this
        with storage.open_read(file.path) as stored:
            list(checked_kind([stored.read(_FIRST_BYTES)], file.path))
    lines, offsets = _joined(read_span(Span(file.number, file.path, place.start, place.end)))
    size = _size(lines)
    whole = place.end < 0
    # The reader takes chunks, whatever the range.
    scanned = size if whole else min(file.size - place.start, max(1, math.ceil(size / CHUNK_BYTES)) * CHUNK_BYTES)
    yield Part(file, lines, offsets, float(file.size if whole else size), whole, scanned=scanned)


def _read_compressed(place: Place, most: int) -> Iterator[Part]:
    """Lines of evenly spaced windows of a file, or of its beginning if it is large.

    Unfolding costs little beside rendering and encoding, so that several times as much is unfolded as is used.
    """
    file = place.file
    head = _Head(file)
    head.read(_FIRST_BYTES)
    goal = _SCAN_TIMES * place.wanted * EXPANSION if place.windows else most
    while not head.complete and head.size < goal:
        head.read(int(len(head.stored) * max(1.2, 1.1 * goal / max(1, head.size))))
    lines, offsets = head.lines()
    wanted = min(most, place.wanted * head.expansion)
    if head.complete and (not place.windows or head.size <= wanted):
        yield Part(file, lines, offsets, float(file.size), True, scanned=head.size)
        return
    windows = max(1, place.windows)
    # What the last line lacks is not there; a window that reaches it is left without it.
    limit = len(lines) if head.complete else len(lines) - 1
    for number in range(windows):
        middle, half = (number + 0.5) * head.size / windows, wanted / windows / 2
        low, high = np.searchsorted(offsets[:limit], [max(0.0, middle - half), middle + half]).tolist()
        own = lines[low:high]
        stored = len(head.stored) * _size(own) / max(1, head.size)
        yield Part(file, own, offsets[low:high], stored, False, not head.complete, 0 if number else head.size)


class _Head:
    """The beginning of a compressed file, unfolded."""

    def __init__(self, file: InputFile):
        self._file = file
        self.stored, self.complete = b"", False
        self.size = 0
        """Uncompressed bytes."""
        self._chunks: list[bytes] = []

    @property
    def expansion(self) -> float:
        """Uncompressed bytes a stored byte."""
        return self.size / len(self.stored) if self.stored and self.size else EXPANSION

    def read(self, count: int) -> None:
        """Has the first `count` stored bytes."""
        file, parts = self._file, [self.stored]
        with storage.open_read(file.path) as stored:
            stored.seek(len(self.stored))
            left = min(count, file.size) - len(self.stored)
            while left > 0 and (more := stored.read(left)):
                parts.append(more)
                left -= len(more)
        self.stored = b"".join(parts)
        self.complete = len(self.stored) >= file.size or left > 0
        if self.complete:
            return  # `lines` has the reader of a run see to it
        self._chunks = []
        try:
            self._chunks.extend(compression._frames([self.stored], FORMATS[ending_of(file.path) or ""]))
        except EOFError:
            pass  # it was cut here
        except Exception:
            _joined(read_span(self._span()))  # meets the same fault, and names it
            raise
        self.size = sum(map(len, self._chunks))

    def lines(self) -> tuple[list[bytes], np.ndarray]:
        """(lines, offsets); if the file goes on, the last line is cut.

        Raises:
          BeamPrepError: the file ends too early or is corrupt.
        """
        if not self.complete:
            return _joined(split_lines(self._chunks, 0))
        lines, offsets = _joined(read_span(self._span()))
        self.size = _size(lines)
        return lines, offsets

    def _span(self) -> Span:
        return Span(self._file.number, self._file.path, 0, -1)


def _read_parquet(place: Place, most: int) -> Iterator[Part]:
    """The first rows of a row group, or all of a file."""
    file = place.file
    groups = row_group_bytes(file.path)
    with storage.open_read(file.path) as stored, pq.ParquetFile(stored) as parquet:
        rows = [parquet.metadata.row_group(n).num_rows for n in range(len(groups))]
    end = len(groups) if place.end < 0 else place.end
    took, there = sum(groups[place.start : end]), sum(rows[place.start : end])
    wanted = math.ceil(there * min(1.0, place.wanted / took)) if took and place.windows else there
    lines: list[bytes] = []
    parts = [np.empty(0, np.uint64)]
    size = 0
    for batch, offsets in read_row_groups(file.path, place.start, end):
        batch, offsets = batch[: wanted - len(lines)], offsets[: wanted - len(lines)]
        lines += batch
        parts.append(offsets)
        size += _size(batch)
        if len(lines) >= wanted or size >= most:
            break
    share = took / max(1, sum(groups)) * len(lines) / max(1, there)
    yield Part(file, lines, np.concatenate(parts), file.size * share, len(lines) == sum(rows), scanned=size)


_READERS: dict[str, Callable[[Place, int], Iterator[Part]]] = {
    "plain": _read_plain,
    "compressed": _read_compressed,
    "parquet": _read_parquet,
}


def _size(lines: list[bytes]) -> int:
    return sum(map(line_size, lines)) + len(lines)


def _joined(batches: Iterator[tuple[list[bytes], np.ndarray]]) -> tuple[list[bytes], np.ndarray]:
    lines: list[bytes] = []
    offsets = [np.empty(0, np.uint64)]
    for some, where in batches:
        lines += some
        offsets.append(where)
    return lines, np.concatenate(offsets)
