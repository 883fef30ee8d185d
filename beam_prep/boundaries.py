"""Document boundaries inside sequences, from the stored documents; never inferred from separators."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from beam_prep import storage
from beam_prep.byte_ranges import read_file
from beam_prep.errors import SEE_VERIFY, BeamPrepError

PADDING = -1
"""Document number of positions that belong to no document."""


class Spans(NamedTuple):
    """The parts of documents in one sequence, in order, without overlap; what lies between or behind is padding."""

    start: np.ndarray
    """int64[n]: first token within the sequence."""
    end: np.ndarray
    """int64[n]: behind the last one."""
    position: np.ndarray
    """int64[n]: the part's first token within its document; above 0 the document began elsewhere."""
    source: np.ndarray
    """int64[n]: index into `names`."""
    names: Sequence[str]

    def window(self, begin: int, end: int) -> Spans:
        """The parts within [begin, end), counted from `begin`; a part cut in two goes on in the second window."""
        keep = (self.start < end) & (self.end > begin)
        start = np.maximum(self.start[keep], begin)
        position = self.position[keep] + (start - self.start[keep])
        return Spans(start - begin, np.minimum(self.end[keep], end) - begin, position, self.source[keep], self.names)


class Segments(NamedTuple):
    """A sequence as runs of one document or of padding, which cover it without a gap."""

    bounds: np.ndarray
    """int64[m + 1]: first position of each run, and the sequence's length."""
    document: np.ndarray
    """int64[m]: number of the run's document within the sequence, `PADDING` for none."""

    @property
    def lengths(self) -> np.ndarray:
        """int64[m]: positions of each run."""
        return np.diff(self.bounds)


def segments(spans: Spans, length: int) -> Segments:
    """The runs of a sequence of `length` tokens."""
    bounds = np.unique(np.concatenate([[0, length], spans.start, spans.end]))
    begin = bounds[:-1]
    document = np.searchsorted(spans.start, begin, side="right") - 1
    inside = document >= 0
    inside[inside] = begin[inside] < spans.end[document[inside]]
    return Segments(bounds, np.where(inside, document, PADDING))


def document_ids(runs: Segments) -> np.ndarray:
    """int32[length]: by position the number of its document, counted from 0 in this sequence; `PADDING` for none."""
    return np.repeat(runs.document, runs.lengths).astype(np.int32)


def position_ids(runs: Segments, spans: Spans, whole_documents: bool) -> np.ndarray:
    """int32[length]: positions that begin at 0 with every run, padding too.

    Args:
      whole_documents: a part that continues a document begins at its position in the document instead.
    """
    base = runs.bounds[:-1].copy()
    if whole_documents:
        inside = runs.document != PADDING
        base[inside] -= spans.position[runs.document[inside]]
    return (np.arange(runs.bounds[-1]) - np.repeat(base, runs.lengths)).astype(np.int32)


def cu_seqlens(runs: Segments) -> np.ndarray:
    """int32[m + 1]: bounds of the runs, as variable-length attention takes them: first 0, last `length`."""
    return runs.bounds.astype(np.int32)


class _Group(NamedTuple):
    """Some rows of a sidecar."""

    sequence: np.ndarray
    """uint32[n], ascending."""
    start: np.ndarray
    length: np.ndarray
    position: np.ndarray
    source: np.ndarray
    names: Sequence[str]

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self[:5])


class Boundaries:
    """The spans of sequences, read from the sidecars as they are needed.

    A row group (131,072 spans) is read at a time, only its numeric columns and the sources, and kept while `limit`
    bytes suffice (20 a span); the one read first goes first. Threads and forks: as for `byte_ranges.RangeReader`.
    """

    def __init__(self, limit: int = 128 << 20):
        self._limit = limit
        self._ranges: dict[str, list[tuple[int, int, int]]] = {}
        self._groups: dict[tuple[str, int], _Group] = {}

    def __getstate__(self) -> int:
        return self._limit

    def __setstate__(self, limit: int) -> None:
        self._limit, self._ranges, self._groups = limit, {}, {}

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(group.nbytes for group in list(self._groups.values()))

    def spans(self, path: str, sequence: int, context_length: int) -> Spans:
        """The spans of sequence number `sequence` of the shard whose sidecar is at `path`.

        Raises:
          BeamPrepError: the sidecar is missing or damaged.
        """
        try:
            groups = [self._group(path, number) for number in self._numbers(path, sequence)]
        except BeamPrepError:
            raise
        except (OSError, ValueError, KeyError) as error:  # Arrow's own errors are among these
            raise BeamPrepError(f"{path}: cannot be read ({' '.join(str(error).split())}); {SEE_VERIFY}") from None
        parts, names = [], []
        for group in groups:
            low, high = np.searchsorted(group.sequence, [sequence, sequence + 1]).tolist()
            *columns, source = (column[low:high].astype(np.int64) for column in group[1:5])
            parts.append([*columns, source + len(names)])  # each row group has a dictionary of its own
            names += group.names
        start, length, position, source = (
            np.concatenate(columns) for columns in zip([np.empty(0, np.int64)] * 4, *parts, strict=True)
        )
        end = start + length
        if len(start) and (end[-1] > context_length or (start[1:] < end[:-1]).any()):
            raise BeamPrepError(f"{path}: the spans of sequence {sequence:,} overlap or leave it; {SEE_VERIFY}")
        return Spans(start, end, position, source, names)

    def _numbers(self, path: str, sequence: int) -> list[int]:
        """The row groups that may hold spans of a sequence."""
        ranges = self._ranges.get(path)
        if ranges is None:
            with _open(path) as file:
                ranges = self._ranges[path] = _row_groups(file.metadata)
        return [number for low, high, number in ranges if low <= sequence <= high]

    def _group(self, path: str, number: int) -> _Group:
        group = self._groups.get((path, number))
        if group is None:
            group = _read_group(path, number)
            self._groups[path, number] = group
            kept = self.nbytes
            for key in list(self._groups):
                if kept <= self._limit or key == (path, number):
                    break
                gone = self._groups.pop(key, None)
                kept -= gone.nbytes if gone is not None else 0
        return group


def _open(path: str) -> Any:
    import pyarrow.parquet as pq

    if storage.is_local(path):
        return pq.ParquetFile(path)
    data = read_file(path)
    if data is None:
        raise FileNotFoundError("there is no such file")
    return pq.ParquetFile(io.BytesIO(data))


def _row_groups(metadata: Any) -> list[tuple[int, int, int]]:
    """(first sequence, last sequence, number) of the row groups of a sidecar."""
    column = metadata.schema.names.index("sequence")
    result = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        statistics = group.column(column).statistics
        if group.num_rows and statistics is not None and statistics.has_min_max:
            result.append((statistics.min, statistics.max, number))
        elif group.num_rows:
            result.append((0, 2**32, number))
    return result


def _read_group(path: str, number: int) -> _Group:
    names = ["sequence", "start", "length", "position", "source"]
    with _open(path) as file:
        table = file.read_row_group(number, columns=names).combine_chunks()
    columns = [table.column(name).to_numpy() for name in names[:4]]
    source = table.column("source").unify_dictionaries().dictionary_encode().combine_chunks()
    if (columns[0][1:] < columns[0][:-1]).any():
        raise ValueError("its sequences are not in order")
    return _Group(*columns, source.indices.to_numpy(), source.dictionary.to_pylist())
