"""Write: a packed shard as a file of tokens and a Parquet file of the documents in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_prep import carrier as carriers
from beam_prep import storage
from beam_prep.blocks import COPY_BITS, PLACED, Origin, load_origins
from beam_prep.buckets import PackedShard, gather, paths_of, release_written, shard_spans
from beam_prep.reading import prefetch

TOKENS_FOLDER = "tokenized-samples"
DOCUMENTS_FOLDER = "documents"
_WRITE_BYTES = 4 << 20


class ShardRecord(NamedTuple):
    """What was written; Finalize holds the files against it."""

    output: int
    bucket: int
    path: str
    """Relative to the output's folder."""
    sequences: int
    bytes: int
    sha256: str
    documents_path: str
    documents_sha256: str
    spans: int
    padding: int
    """Separator tokens that fill sequences up: at the output's end; with best_fit at the end of any sequence."""
    dropped_tokens: int
    source_tokens: tuple[int, ...]
    """By source: tokens."""
    source_documents: tuple[int, ...]
    """By source: distinct documents that begin here."""
    source_copies: tuple[int, ...]
    """By source: copies that begin here."""
    cut: int
    """Copies that end in another sequence than they began in, counted where they begin."""


def shard_name(bucket: int, buckets: int, label: str = "") -> str:
    """The name of a shard without its ending. `label`: of its generation; empty for the first one."""
    return f"part-{f'g{label}-' if label else ''}{bucket:05d}-of-{buckets:05d}"


def write_shard(
    folder: str, shard: PackedShard, buckets: int, context_length: int, eod: int, names: Sequence[str], label: str = ""
) -> ShardRecord:
    """Writes a shard and its documents.

    Args:
      folder: the output's folder.
      eod: separator id, which also pads.
      names: of the sources.
      label: of the generation; see `shard_name`.

    The bytes follow from the arguments alone, so that a repeated call changes nothing.
    """
    spans = shard_spans(shard)
    rows = np.frombuffer(carriers.load(shard.rows), PLACED)
    origins = load_origins(shard.origins)
    name = shard_name(shard.bucket, buckets, label)
    tokens_path, documents_path = f"{TOKENS_FOLDER}/{name}.bin", f"{DOCUMENTS_FOLDER}/{name}.parquet"

    size = shard.sequences * context_length * 4
    padding = size // 4 - int(spans["length"].sum(dtype=np.int64))
    chunks = shard_bytes(spans, rows, origins, shard.sequences, context_length, eod)
    digest = _write_tokens(storage.join(folder, tokens_path), chunks)

    sources = np.array([origin.source for origin in origins], np.int64)[rows["origin"]]
    table = documents_table(spans, rows, origins, sources, names)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 17)
    documents = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(folder, documents_path), [documents])

    begins = (spans["position"] == 0) & (rows["position"][spans["row"]] == 0)
    first = begins & ((rows["copy"][spans["row"]] & np.uint64(2**COPY_BITS - 1)) == 0)
    span_source = sources[spans["row"]]
    count = len(names)
    whole = _whole_tokens(rows, spans)
    return ShardRecord(
        shard.output,
        shard.bucket,
        tokens_path,
        shard.sequences,
        size,
        digest,
        documents_path,
        hashlib.sha256(documents).hexdigest(),
        len(spans),
        padding,
        shard.dropped_tokens,
        _sums(span_source, spans["length"], count),
        _sums(span_source[first], None, count),
        _sums(span_source[begins], None, count),
        int((begins & ~whole).sum()),
    )


def give_back(shard: PackedShard) -> None:
    """Gives back the spilled tokens that a shard was made of. Only when a later attempt is sure to find the shard."""
    rows = np.frombuffer(carriers.load(shard.rows), PLACED)
    release_written(shard_spans(shard), rows, load_origins(shard.origins))


def _write_tokens(path: str, chunks: Iterator[bytes]) -> str:
    """Writes a file, its bytes made and hashed in another thread; returns their sha256."""
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for chunk in chunks:
            digest.update(chunk)
            yield chunk

    with storage.write_atomic(path) as file:
        storage.write_through(file, prefetch(hashed))
    return digest.hexdigest()


def _sums(groups: np.ndarray, weights: np.ndarray | None, count: int) -> tuple[int, ...]:
    if weights is None:
        return tuple(np.bincount(groups, minlength=count).tolist())
    # Exact in float64: the sums stay far below 2**53.
    return tuple(int(x) for x in np.bincount(groups, weights=weights, minlength=count))


def _whole_tokens(rows: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """bool[n]: spans that hold all tokens that their row has here (rests of a document count as cut)."""
    return spans["length"] == rows["tokens"][spans["row"]]


def shard_bytes(
    spans: np.ndarray, rows: np.ndarray, origins: Sequence[Origin], sequences: int, context_length: int, eod: int
) -> Iterator[bytes]:
    """The shard's bytes in pieces of a few MiB: spans in order, gaps and the end padded with the separator."""
    views = gather(rows, origins)
    separator = eod.to_bytes(4, "little")
    at = spans["sequence"].astype(np.int64) * context_length + spans["start"]
    ends = at + spans["length"]
    gaps = (at - np.concatenate([[0], ends[:-1]])).tolist() if len(spans) else []
    begin = (spans["position"].astype(np.int64) * 4).tolist()
    count = (spans["length"].astype(np.int64) * 4).tolist()
    pending: list[bytes | memoryview] = []
    size = 0
    for row, gap, low, length in zip(spans["row"].tolist(), gaps, begin, count, strict=True):
        if gap:
            pending.append(separator * gap)
        view = views[row]
        pending.append(view if length == len(view) else view[low : low + length])
        size += length + 4 * gap
        if size >= _WRITE_BYTES:
            yield b"".join(pending)
            pending, size = [], 0
    end = int(ends[-1]) if len(spans) else 0
    pending.append(separator * (sequences * context_length - end))
    yield b"".join(pending)


def _id_strings(high: np.ndarray, low: np.ndarray) -> pa.Array:
    """Ids as strings of 32 hexadecimal digits (`mix.id_text`), all at once."""
    digits = np.stack([high, low], axis=1).astype(">u8").tobytes().hex().encode()
    offsets = np.arange(0, 32 * len(high) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(high), pa.py_buffer(offsets), pa.py_buffer(digits))


def documents_table(
    spans: np.ndarray,
    rows: np.ndarray,
    origins: Sequence[Origin],
    sources: np.ndarray,
    names: Sequence[str],
) -> pa.Table:
    """The documents sidecar: one row a span.

    Columns: sequence (uint32, within the shard), start and length (uint32, tokens within the sequence), source and
    file (strings), offset (uint64, byte of the record in the uncompressed file; row number for Parquet), id (32 hex
    digits), copy (uint64), continuation (bool: the document began in another sequence), position (uint32: the
    span's first token within its document).
    """
    row = spans["row"]
    picked = rows[row]
    position = picked["position"] + spans["position"]
    paths = paths_of(origins)
    pairs, inverse = np.unique(picked["origin"].astype(np.int64) << 32 | picked["file"], return_inverse=True)
    file_names = [paths[pair >> 32][pair & 0xFFFFFFFF] for pair in pairs.tolist()]
    distinct = sorted(set(file_names))
    place = {name: n for n, name in enumerate(distinct)}
    file_index = np.array([place[n] for n in file_names], np.int32)[inverse]
    return pa.table(
        {
            "sequence": pa.array(spans["sequence"]),
            "start": pa.array(spans["start"]),
            "length": pa.array(spans["length"]),
            "source": pa.DictionaryArray.from_arrays(
                pa.array(sources[row].astype(np.int32)), pa.array(list(names), pa.string())
            ),
            "file": pa.DictionaryArray.from_arrays(pa.array(file_index), pa.array(distinct, pa.string())),
            "offset": pa.array(picked["offset"]),
            "id": _id_strings(picked["high"], picked["low"]),
            "copy": pa.array(picked["copy"]),
            "continuation": pa.array(position > 0),
            "position": pa.array(position),
        }
    )
