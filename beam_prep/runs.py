"""Runs: tokenized documents of one unit, sorted by their order key (what Tokenize hands to the shuffle)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import orjson
import xxhash

from beam_prep import carrier as carriers
from beam_prep.carrier import Carrier, Payload
from beam_prep.documents import Segments
from beam_prep.ledger import Tally
from beam_prep.mix import order_keys
from beam_prep.sources import Position
from beam_prep.transform import DocumentBatch, Rejected

ENTRY = np.dtype(
    [
        ("key", "<u8"),  # order key of copy 0
        ("high", "<u8"),  # id, high half
        ("low", "<u8"),  # id, low half
        ("offset", "<u8"),  # byte offset of the record in its uncompressed file
        ("file", "<u4"),  # number of the file within its source
        ("chars", "<u4"),  # characters of the rendered text
        ("tokens", "<u4"),  # tokens, the separator included; 0 where the document was not encoded
    ]
)
"""One document of a run, 44 bytes."""

_GATHER_BYTES = 4 << 20
_REJECT_BYTES = 400
"""What a rejected record takes beside itself, about."""


class Run(NamedTuple):
    """Documents of one source in order of their keys."""

    name: str
    """Follows from the unit and its content; the same at a retry."""
    source: int
    documents: int
    entries: Payload
    """`ENTRY[documents]`."""
    tokens: Payload
    """uint32 ids of the documents one after the other, each with its separator, in the order of `entries`."""
    files: Payload
    """JSON {file number: path} of the files that the entries name."""
    rejects: Payload
    """Pickled `Rejected` rows; see `rejected_rows`."""
    tally: dict
    """`Tally.to_dict()`: what became of every record that was read for this run."""


def run_name(source: int, unit: str, number: int) -> str:
    """The name of a unit's run, the runs of a unit counted from 0."""
    return f"{source:04d}-{unit}-{number:05d}"


def placed_run_name(source: int, unit: str, begin: Position) -> str:
    """The name of a run of which only is known where in its unit it begins."""
    return f"{source:04d}-{unit}-{begin.span:05d}-{begin.offset:015d}"


class TokenLimits(NamedTuple):
    """`min_tokens` and `max_tokens` of a source, the separator not counted."""

    low: int
    high: int


class RunBuilder:
    """Collects encoded batches of one unit and writes them as a run."""

    def __init__(self, name: str, source: int, seed: int, control_ids: dict[str, bytes], eod: bytes):
        """`control_ids`: special token → its id as 4 bytes; `eod`: the separator's."""
        self.name, self.source, self._seed = name, source, seed
        self._control_ids, self._eod = control_ids, eod
        self._parts: list[bytes | memoryview] = []
        self._columns: list[np.ndarray] = []
        self._files: dict[int, str] = {}
        self._rejects: list[Rejected] = []
        self._tally = Tally()
        self._hash = xxhash.xxh3_128()
        self.token_bytes = self.reject_bytes = 0

    @property
    def digest(self) -> str:
        """Hash of what `write` wrote; see `run_digest`."""
        return self._hash.hexdigest()

    def add(self, batch: DocumentBatch, limits: TokenLimits, ids: bytes, bounds: np.ndarray) -> None:
        """Adds a batch. `ids` and `bounds` are what `Encoder.encode` returned for `flat_pieces(batch)`."""
        parts = self._documents(batch, memoryview(ids), bounds.tolist())
        counts = np.fromiter(map(len, parts), np.int64, len(parts)) // 4
        encoded = np.ones(len(parts), bool) if batch.wanted is None else batch.wanted
        keep = (counts >= limits.low) & (counts <= limits.high)
        rows = np.empty(len(parts), ENTRY)
        rows["high"], rows["low"] = batch.ids[:, 0], batch.ids[:, 1]
        rows["offset"], rows["file"], rows["chars"] = batch.offsets, batch.file, batch.chars
        rows["tokens"] = np.where(encoded, counts + 1, 0)
        self._tally.add(batch.tally)
        if not keep.all():
            too_few = int((counts < limits.low).sum())
            for reason, count in (("min_tokens", too_few), ("max_tokens", int((~keep).sum()) - too_few)):
                if count:
                    self._tally.filtered[reason] += count
            self._tally.rendered -= int((~keep).sum())
            parts = [part for part, kept in zip(parts, keep.tolist(), strict=True) if kept]
            rows = rows[keep]
        self._parts += parts
        self._columns.append(rows)
        if len(rows):
            self._files[batch.file] = batch.path
        self._rejects += batch.rejects
        self.token_bytes += 4 * int(rows["tokens"].sum())
        self.reject_bytes += sum(len(reject.raw) + _REJECT_BYTES for reject in batch.rejects)

    def _documents(self, batch: DocumentBatch, ids: memoryview, bounds: list[int]) -> list[bytes | memoryview]:
        """The ids of each document, control tokens in their places, without the separator."""
        out: list[bytes | memoryview] = []
        piece = 0
        control_ids = self._control_ids
        for document in batch.documents:
            if type(document) is str:
                out.append(ids[4 * bounds[piece] : 4 * bounds[piece + 1]])
                piece += 1
                continue
            assert isinstance(document, Segments)
            joined = [ids[4 * bounds[piece] : 4 * bounds[piece + 1]]]
            for control in document.controls:
                piece += 1
                joined += (control_ids[control], ids[4 * bounds[piece] : 4 * bounds[piece + 1]])
            piece += 1
            out.append(b"".join(joined))
        return out

    def write(self, carrier: Carrier) -> Run:
        """Sorts by key and hands everything to the carrier."""
        entries = np.concatenate(self._columns) if self._columns else np.empty(0, ENTRY)
        ids = np.stack([entries["high"], entries["low"]], axis=1)
        entries["key"] = order_keys(ids, self._seed)
        order = np.lexsort((entries["low"], entries["high"], entries["key"]))
        spilled = order[entries["tokens"][order] > 0]
        folder = f"runs/{self.name}"
        tokens = carrier.put_tokens(f"{folder}.tokens", self._hashed(self._gather(spilled)))
        names = orjson.dumps({str(n): p for n, p in self._files.items()})
        files = carrier.put(f"{folder}.files", self._hashed([names]))
        rejects = carrier.put(f"{folder}.rejects", self._hashed([pack_rejected(self._rejects)]))
        rows = carrier.put(f"{folder}.entries", self._hashed([entries[order].tobytes()]))
        return Run(self.name, self.source, len(entries), rows, tokens, files, rejects, self._tally.to_dict())

    def _hashed(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            self._hash.update(part)
            yield part

    def _gather(self, order: np.ndarray) -> Iterator[bytes]:
        parts, eod = self._parts, self._eod
        pending: list[bytes | memoryview] = []
        size = 0
        for index in order.tolist():
            part = parts[index]
            pending += (part, eod)
            size += len(part) + 4
            if size >= _GATHER_BYTES:
                yield b"".join(pending)
                pending, size = [], 0
        yield b"".join(pending)


def run_digest(run: Run) -> str:
    """Hash of a run's payloads as they are now."""
    state = xxhash.xxh3_128()
    for payload in (run.tokens, run.files, run.rejects, run.entries):
        for chunk in carriers.chunks(payload):
            state.update(chunk)
    return state.hexdigest()


def flat_pieces(batch: DocumentBatch) -> list[str]:
    """The texts to encode: one for a plain document, all pieces for one with control tokens."""
    pieces: list[str] = []
    for document in batch.documents:
        if type(document) is str:
            pieces.append(document)
        else:
            pieces += document.pieces
    return pieces


def pack_rejected(rejects: list[Rejected]) -> bytes:
    """Rejected rows as bytes: for each a JSON head line with the raw record's length, then the record."""
    parts = []
    for reject in rejects:
        head = [reject.path, reject.offset, reject.reason, reject.message, len(reject.raw)]
        parts += (orjson.dumps(head, option=orjson.OPT_APPEND_NEWLINE), reject.raw)
    return b"".join(parts)


def rejected_rows(data: bytes) -> Iterator[Rejected]:
    """The reverse of `pack_rejected`."""
    position = 0
    while position < len(data):
        end = data.index(b"\n", position)
        path, offset, reason, message, size = orjson.loads(data[position:end])
        yield Rejected(path, offset, reason, message, data[end + 1 : end + 1 + size])
        position = end + 1 + size


def entries_array(data: bytes) -> np.ndarray:
    """`ENTRY[n]` from a payload's bytes."""
    return np.frombuffer(data, ENTRY)


def entry_ids(entries: np.ndarray) -> np.ndarray:
    """uint64[n, 2] ids of entries (or placed rows)."""
    return np.stack([entries["high"], entries["low"]], axis=1)
