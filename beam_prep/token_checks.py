"""The part of verify that reads shards and sidecars: checksums, ids, the ends of documents, splits kept apart."""

from __future__ import annotations

import binascii
import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_prep import storage
from beam_prep.blocks import COPY_BITS
from beam_prep.findings import Figures, Finding, Progress, read_if_there
from beam_prep.layout import MANIFEST
from beam_prep.manifest import Manifest, OutputEntry, ShardEntry
from beam_prep.mix import id_text
from beam_prep.order_checks import misplaced, order_of

_CHUNK_BYTES = 8 << 20
_CHANGED = "sha256 differs from the manifest's: the file has changed since it was written"
_NUMBERS = ("sequence", "start", "length", "position")

Continuations = dict[tuple[int, int, int], int]
"""(id's halves, copy) → position at which the last shard goes on with a document of another shard."""


class Spans(NamedTuple):
    """A sidecar's columns, each of n rows, in the order of the stream."""

    sequence: np.ndarray
    start: np.ndarray
    length: np.ndarray
    position: np.ndarray
    source: np.ndarray
    """int64: index into the names of the ledger's sources."""
    high: np.ndarray
    low: np.ndarray
    """uint64: halves of the id."""
    copy: np.ndarray
    continuation: np.ndarray

    def document(self, row: int) -> str:
        """How a finding names the document of a row."""
        return f"document {id_text(int(self.high[row]), int(self.low[row]))}"

    def identity(self, row: int) -> tuple[int, int, int]:
        """What spans of one copy of one document have in common."""
        return int(self.high[row]), int(self.low[row]), int(self.copy[row])


class Places(NamedTuple):
    """Where separators must stand in a shard, counted in tokens from its beginning."""

    ends: np.ndarray
    """int64, sorted: the last tokens of documents."""
    excused: np.ndarray
    """int64: those of them that may be missing, because the document's end was dropped."""
    stretches: np.ndarray
    """int64[m, 2]: what belongs to documents, as [begin, end); outside of it all is padding."""


def check_tokens(output: str, name: str, entry: OutputEntry, manifest: Manifest, progress: Progress) -> list[Finding]:
    """Every shard and sidecar of an output: checksums, ids in range, documents whole and ended, sums as stated."""
    check = _OutputCheck(output, name, entry, manifest, progress)
    last = len(entry.shards) - 1
    # The last shard first: it holds the ends of documents that began in the others.
    for number in [last, *range(last)] if entry.shards else []:
        check.shard(entry.shards[number], number)
    return check.finish()


class _OutputCheck:
    """The state of `check_tokens` between shards."""

    def __init__(self, output: str, name: str, entry: OutputEntry, manifest: Manifest, progress: Progress):
        self._folder, self._name = storage.join(output, name), name
        self._entry, self._manifest, self._progress = entry, manifest, progress
        self._sources = list(manifest.ledger)
        self._order = order_of(name, len(entry.shards), entry.packing, manifest.seed, manifest.configuration)
        self._continuations: Continuations = {}
        self._findings: list[Finding] = []
        self._gaps = self._cut = 0
        # By source: tokens, documents, copies.
        self._tokens, self._documents, self._copies = np.zeros((3, len(self._sources)), np.int64)
        self._complete = True

    def shard(self, shard: ShardEntry, number: int) -> None:
        """Checks one shard, of that number, and its sidecar."""
        spans = self._load(shard)
        places = self._documents_of(spans, shard, number) if spans is not None else None
        self._complete = self._complete and places is not None
        path = storage.join(self._folder, shard.path)
        if storage.size(path) is not None:
            self._findings += read_shard(
                path, f"{self._name}/{shard.path}", shard, self._entry, self._manifest, places, self._progress
            )

    def _load(self, shard: ShardEntry) -> Spans | None:
        """A shard's sidecar, if it is what was written."""
        place = f"{self._name}/{shard.documents}"
        try:
            data = read_if_there(storage.join(self._folder, shard.documents))
        except OSError as error:
            self._findings.append(Finding(place, f"cannot be read ({error})"))
            return None
        if data is None:
            return None  # `check_files` said so
        if hashlib.sha256(data).hexdigest() != shard.documents_sha256:
            self._findings.append(Finding(place, _CHANGED))
            return None
        try:
            return _spans(pq.read_table(io.BytesIO(data)), self._sources)
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            self._findings.append(Finding(place, f"cannot be read ({error})"))
            return None

    def _documents_of(self, spans: Spans, shard: ShardEntry, number: int) -> Places | None:
        """Where separators must stand in a shard; None if its sidecar is wrong."""
        length, last = self._entry.context_length, number == len(self._entry.shards) - 1
        place = f"{self._name}/{shard.documents}"
        problem = layout_problem(spans, shard, length, self._entry.packing, last)
        if problem is not None:
            self._findings.append(Finding(place, problem))
            return None
        row_ends, problems = document_ends(spans, last, self._continuations)
        ids = np.stack([spans.high, spans.low], axis=1)
        if (wrong := misplaced(self._order, ids, spans.copy, spans.position == 0, number)) is not None:
            problems.append(f"row {wrong[0]}: {spans.document(wrong[0])} {wrong[1]}")
        self._findings += [Finding(place, problem) for problem in problems]
        self._gaps += shard.sequences * length - int(spans.length.sum())
        self._cut += int(((spans.position == 0) & ~row_ends).sum())
        np.add.at(self._tokens, spans.source, spans.length)
        begins = spans.position == 0
        np.add.at(self._copies, spans.source[begins], 1)
        first = begins & ((spans.copy & np.uint64(2**COPY_BITS - 1)) == 0)
        np.add.at(self._documents, spans.source[first], 1)
        begin = spans.sequence * length + spans.start
        end = begin + spans.length
        return Places(np.sort(end[row_ends]) - 1, self._excused(spans, end), _stretches(begin, end))

    def _excused(self, spans: Spans, end: np.ndarray) -> np.ndarray:
        """Where `tail: drop` may have left out a document's end: `end[n]` of spans, as in `Places`."""
        if not self._entry.dropped_tokens:
            return np.empty(0, np.int64)
        # What `concat` drops begins inside a shard's last document at most, what `best_fit` drops holds the ends of
        # documents that fill sequences besides.
        may = end[-1:] if self._entry.packing == "concat" else end[spans.length == self._entry.context_length]
        return may - 1

    def finish(self) -> list[Finding]:
        """All findings of the output."""
        if not self._complete or self._findings:
            return self._findings
        if self._continuations:
            (high, low, _), place = next(iter(self._continuations)), self._entry.shards[-1].documents
            problem = f"document {id_text(high, low)} goes on here, but begins in no shard"
            return [Finding(f"{self._name}/{place}", problem)]
        figures = Figures(f"{MANIFEST}: outputs.{self._name}")
        figures.equal("padding", self._entry.padding, self._gaps, "in the sidecars")
        if not self._entry.dropped_tokens:
            figures.equal("cut_documents", self._entry.cut_documents, self._cut, "in the sidecars")
        for number, source in enumerate(self._sources):
            part = self._entry.sources.get(source)
            counted = {"tokens": self._tokens, "documents": self._documents, "copies": self._copies}
            for key, values in counted.items():
                stated = getattr(part, key) if part else 0
                figures.equal(f"sources.{source}.{key}", stated, int(values[number]), "in the sidecars")
        return figures.findings


def _spans(table: pa.Table, sources: Sequence[str]) -> Spans:
    """Raises ValueError for a source that the ledger does not have, or ids that are none."""
    numbers = [table.column(name).to_numpy().astype(np.int64) for name in _NUMBERS]
    source = pc.index_in(table.column("source").cast(pa.string()), value_set=pa.array(sources))
    if source.null_count:
        raise ValueError("it names a source that the ledger does not have")
    high, low = id_halves(table.column("id"))
    copy = table.column("copy").to_numpy().astype(np.uint64)
    return Spans(*numbers, source.to_numpy().astype(np.int64), high, low, copy, table.column("continuation").to_numpy())


def id_halves(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """uint64[n] high and low halves of ids in hexadecimal. Raises ValueError if one is not 32 digits."""
    parts = [np.empty((0, 2), ">u8")]
    for chunk in column.chunks:
        chunk = chunk.cast(pa.large_string())
        bounds = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        if chunk.null_count or (np.diff(bounds) != 32).any():
            raise ValueError("an id is not 32 hexadecimal digits")
        if len(chunk):
            digits = memoryview(chunk.buffers()[2])[int(bounds[0]) : int(bounds[-1])]
            parts.append(np.frombuffer(binascii.unhexlify(digits), ">u8").reshape(-1, 2))
    halves = np.concatenate(parts).astype(np.uint64)
    return halves[:, 0], halves[:, 1]


def layout_problem(spans: Spans, shard: ShardEntry, length: int, packing: str, last: bool) -> str | None:
    """What is wrong with the order and the bounds of a shard's spans.

    Args:
      length: tokens a sequence.
      packing: `concat`, whose spans leave nothing out but the last shard's end; or `best_fit`, whose sequences may
        each end with a gap, and which cuts documents where they have filled a sequence, and nowhere else.
    """
    if len(spans.start) != shard.spans:
        return f"{len(spans.start):,} spans, but {shard.spans:,} were written"
    begin = spans.sequence * length + spans.start
    end = begin + spans.length
    gap = begin - np.append(0, end)[:-1]
    concat = packing == "concat"
    outside = (spans.sequence >= shard.sequences) | (spans.start + spans.length > length) | (spans.length < 1)
    problems = (
        ("is not inside a sequence of its shard", outside),
        ("overlaps the one before it", gap < 0),
        ("is marked as continuation wrongly", spans.continuation != (spans.position > 0)),
        ("leaves tokens before it that no document has", (gap > 0) & (concat | (spans.start > 0))),
        ("leaves a sequence before it that no document has", np.diff(spans.sequence, prepend=-1) > 1),
        ("begins where `best_fit` cuts no document", (spans.position % length > 0) & (not concat)),
    )
    for problem, rows in problems:
        if rows.any():
            row = int(np.argmax(rows))
            return f"row {row}: the span of {spans.document(row)} {problem}"
    rest = shard.sequences * length - (int(end[-1]) if len(end) else 0)
    if rest >= (length if last or not concat else 1):
        return f"{rest:,} tokens at the end of the shard belong to no document"
    return None


def document_ends(spans: Spans, last: bool, continuations: Continuations) -> tuple[np.ndarray, list[str]]:
    """Which spans end their document, and what is wrong with the documents' spans.

    A bucket's last, incomplete sequence is packed in the last shard, so a document that stands at the end of
    another shard may go on there. The last shard is given first and fills `continuations`; the others take out
    what they begin.

    Returns:
      bool[n], and problems.
    """
    count = len(spans.start)
    ends = np.zeros(count, bool)
    order = np.lexsort((spans.position, spans.copy, spans.low, spans.high))
    if not count:
        return ends, []
    high, low, copy = spans.high[order], spans.low[order], spans.copy[order]
    position, length = spans.position[order], spans.length[order]
    joined = np.zeros(count, bool)
    joined[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1]) & (copy[1:] == copy[:-1])
    broken = np.zeros(count, bool)
    broken[1:] = joined[1:] & (position[1:] != position[:-1] + length[:-1])
    problems = [f"the spans of {spans.document(int(order[row]))} do not join" for row in np.nonzero(broken)[0][:1]]

    orphaned = np.nonzero(~joined & (position > 0))[0]
    if last:
        continuations.update((spans.identity(int(order[row])), int(position[row])) for row in orphaned)
    elif len(orphaned):
        problems.append(f"{spans.document(int(order[orphaned[0]]))} goes on, but does not begin in its shard")

    final = np.append(~joined[1:], True)
    ends[order[final]] = True
    if not last and continuations:
        known = np.array([identity[1] for identity in continuations], np.uint64)
        for row in order[final & np.isin(low, known)].tolist():
            goes_on = continuations.get(spans.identity(row))
            if goes_on is None:
                continue
            del continuations[spans.identity(row)]
            ends[row] = False
            if goes_on != spans.position[row] + spans.length[row]:
                problems.append(f"{spans.document(row)} does not go on where it was cut")
    return ends, problems


def _stretches(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int64[m, 2]: what the spans [begin, end) cover, in order, neighbours joined."""
    if not len(begin):
        return np.empty((0, 2), np.int64)
    fresh = np.append(True, begin[1:] != end[:-1])
    return np.stack([begin[fresh], end[np.append(fresh[1:], True)]], axis=1)


def read_shard(
    path: str,
    place: str,
    shard: ShardEntry,
    entry: OutputEntry,
    manifest: Manifest,
    places: Places | None,
    progress: Progress,
) -> list[Finding]:
    """One pass over a shard's bytes: checksum, ids below the vocabulary's size, separators where they belong."""
    digest = hashlib.sha256()
    problems: dict[str, Finding] = {}
    first = 0
    try:
        for chunk in _chunks(path):
            digest.update(chunk)
            progress(len(chunk))
            ids = np.frombuffer(chunk, "<u4", len(chunk) // 4)
            for problem, token in _token_problems(ids, first, manifest, places):
                sequence, start = divmod(token, entry.context_length)
                problems.setdefault(problem, Finding(f"{place}, sequence {sequence}, token {start}", problem))
            first += len(ids)
    except OSError as error:
        return [Finding(place, f"cannot be read ({error})")]
    if digest.hexdigest() != shard.sha256:
        return [Finding(place, _CHANGED), *problems.values()]
    return list(problems.values())


def _token_problems(
    ids: np.ndarray, first: int, manifest: Manifest, places: Places | None
) -> Iterator[tuple[str, int]]:
    """(problem, token's place in the shard) for a piece of it that begins at token `first`."""
    eod, vocabulary = manifest.tokenizer.eod_token_id, manifest.tokenizer.vocab_size
    if len(ids) and int(ids.max()) >= vocabulary:
        yield f"an id is outside of the vocabulary of {vocabulary:,}", first + int(np.argmax(ids >= vocabulary))
    if places is None:
        return
    low, high = np.searchsorted(places.ends, [first, first + len(ids)])
    ends = places.ends[low:high]
    missing = ends[ids[ends - first] != eod]
    for token in np.setdiff1d(missing, places.excused, assume_unique=True).tolist():
        yield "a document ends here without its separator", token
    for begin, end in _outside(places.stretches, first, first + len(ids)):
        if (ids[begin - first : end - first] != eod).any():
            yield "padding that is not the separator", begin


def _chunks(path: str) -> Iterator[bytes]:
    """A file's bytes in pieces whose sizes are multiples of 4, but for the last one."""
    pending = b""
    with storage.open_read(path) as file:
        while data := file.read(_CHUNK_BYTES):
            data = pending + data if pending else data
            whole = len(data) & ~3
            pending = data[whole:]
            yield data if not pending else data[:whole]
    if pending:
        yield pending


def _outside(covered: np.ndarray, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [begin, end) that no stretch of `covered` holds."""
    low, high = np.searchsorted(covered[:, 1], begin, side="right"), np.searchsorted(covered[:, 0], end)
    at = begin
    for first, last in covered[low:high].tolist():
        if first > at:
            yield at, first
        at = max(at, last)
    if at < end:
        yield at, end
