"""Buckets: all blocks of one key range of an output, brought into order, packed, and their tokens gathered."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import orjson

from beam_prep import carrier as carriers
from beam_prep.best_fit import pack_best_fit
from beam_prep.blocks import PLACED, Block, Origin, Origins, keep_block, keep_origins, load_origins, row_views
from beam_prep.carrier import Carrier, FileSlice, Payload
from beam_prep.packing import SPAN, Packed, pack_concat, with_rest
from beam_prep.retries import attempt

_GAP_BYTES = 256 << 10
"""Bytes between two documents of a file that are rather read than skipped."""
_MAP_BYTES = 1 << 20
_RELEASE_BYTES = 64 << 10
"""Ranges smaller than this are not worth a system call."""

PACKERS: dict[str, Callable[[np.ndarray, int], Packed]] = {"concat": pack_concat, "best_fit": pack_best_fit}
"""By the name that a configuration gives them: (tokens of each document, tokens a sequence) → spans."""


class Bucket(NamedTuple):
    """The documents of a bucket in the order of its stream."""

    placed: np.ndarray
    """`PLACED[n]`; `origin` counts in `origins`."""
    origins: tuple[Origin, ...]


class PackedShard(NamedTuple):
    """What Pack hands to Write: spans of documents, and where their tokens are."""

    output: int
    bucket: int
    sequences: int
    spans: Payload
    """`SPAN[n]`; rows count in `rows`."""
    rows: Payload
    """`PLACED[n]` in the order of the stream; `origin` counts in `origins`."""
    origins: Origins
    dropped_tokens: int
    """Tokens of the rest that `tail: drop` leaves out."""


def load_bucket(blocks: Sequence[Block]) -> Bucket:
    """Brings the documents of a bucket into order: (rank of the block, key, id, copy), and nothing else."""
    parts, sizes = [], []
    origins: list[Origin] = []
    firsts: dict[Origins, int] = {}
    for block in blocks:
        rows = np.frombuffer(carriers.load(block.placed), PLACED).copy()
        shared = isinstance(block.origins, FileSlice)
        first = firsts.get(block.origins) if shared else None
        if first is None:
            first = len(origins)
            origins += load_origins(block.origins)
            if shared:
                firsts[block.origins] = first
        rows["origin"] += first
        parts.append(rows)
        sizes.append(len(rows))
    placed = np.concatenate(parts)
    rank = np.repeat([block.rank for block in blocks], sizes)
    # A document cut by `tail` of several buckets may stand here twice with one key: `position` keeps its parts apart.
    order = np.lexsort((placed["position"], placed["copy"], placed["low"], placed["high"], placed["key"], rank))
    return Bucket(placed[order], tuple(origins))


def pack_bucket(
    output: int,
    bucket: int,
    blocks: Sequence[Block],
    context_length: int,
    last: bool,
    tail: str,
    carrier: Carrier,
    packing: str = "concat",
) -> tuple[PackedShard, list[Block]]:
    """Packs a bucket.

    Args:
      last: whether it is its output's last bucket, which has no other one to leave its rest to.
      tail: `pad` or `drop`, for that rest (of `best_fit` the emptiest sequence, if it is not full).
      packing: one of `PACKERS`.

    Returns:
      The shard, and the blocks of the rest (for the last bucket, which packs all rests together).
    """
    name = f"packed/{output}/{bucket:06d}"
    content = load_bucket(blocks)
    packed = PACKERS[packing](content.placed["tokens"], context_length)
    remainder: list[Block] = []
    dropped = 0
    if last and tail == "pad":
        packed = with_rest(packed)
    elif last:
        dropped = int(packed.rest["length"].sum())
    else:
        remainder = _remainder(content, packed.rest, bucket, f"{name}.rest", carrier)
    shard = PackedShard(
        output,
        bucket,
        packed.sequences,
        carrier.put(f"{name}.spans", [packed.spans.tobytes()]),
        carrier.put(f"{name}.rows", [content.placed.tobytes()]),
        keep_origins(carrier, f"{name}.origins", content.origins),
        dropped,
    )
    return shard, remainder


def _remainder(content: Bucket, rest: np.ndarray, bucket: int, name: str, carrier: Carrier) -> list[Block]:
    """The rest of a bucket as a block of the last one; none if there is no rest."""
    if not len(rest):
        return []
    rows = content.placed[rest["row"]].copy()
    rows["start"] += rest["position"]
    rows["position"] += rest["position"]
    rows["tokens"] = rest["length"]
    return [keep_block(bucket + 1, name, rows, content.origins, carrier)]


def gather(rows: np.ndarray, origins: Sequence[Origin]) -> list[memoryview]:
    """The tokens of each row (`PLACED[n]`), read from files in few large reads."""
    views: list[memoryview] = [memoryview(b"")] * len(rows)
    for index in np.unique(rows["origin"]).tolist():
        own = np.nonzero(rows["origin"] == index)[0]
        payload = origins[index].tokens
        placed = rows[own]
        if isinstance(payload, FileSlice):
            found = attempt("read", payload.path, partial(_read_rows, payload, placed))
        else:
            found = row_views(carriers.load(payload), placed)
        for row, view in zip(own.tolist(), found, strict=True):
            views[row] = view
    return views


def _read_rows(payload: FileSlice, placed: np.ndarray) -> list[memoryview]:
    """Reads the rows' tokens; neighbours that lie close together in one read."""
    begins = placed["start"].astype(np.int64) * 4 + payload.offset
    ends = begins + placed["tokens"].astype(np.int64) * 4
    order = np.argsort(begins, kind="stable")
    # A new read begins where the gap to everything before is too wide.
    reach = np.maximum.accumulate(ends[order])
    fresh = np.concatenate([[True], begins[order][1:] - reach[:-1] > _GAP_BYTES])
    firsts = np.nonzero(fresh)[0]
    lasts = np.concatenate([firsts[1:], [len(order)]])
    views: list[memoryview] = [memoryview(b"")] * len(placed)
    with open(payload.path, "rb", buffering=0) as file:
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            low, high = int(begins[order[first]]), int(reach[last - 1])
            data = _file_view(file.fileno(), low, high - low, payload.path)
            for row in order[first:last].tolist():
                views[row] = data[int(begins[row]) - low : int(ends[row]) - low]
    return views


def _file_view(descriptor: int, offset: int, size: int, path: str) -> memoryview:
    """Bytes of a file, large parts mapped rather than copied."""
    if os.fstat(descriptor).st_size < offset + size:
        raise OSError(f"{path}: ends before byte {offset + size}")
    if size < _MAP_BYTES:
        return memoryview(os.pread(descriptor, size, offset))
    begin = offset - offset % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(descriptor, offset + size - begin, access=mmap.ACCESS_READ, offset=begin)
    return memoryview(mapped)[offset - begin :]


def release_written(spans: np.ndarray, rows: np.ndarray, origins: Sequence[Origin]) -> None:
    """Gives back the spilled tokens of the documents that are wholly in a finished shard; see `carrier.release`."""
    in_shard = np.zeros(len(rows), np.int64)
    np.add.at(in_shard, spans["row"], spans["length"])
    finished = in_shard == rows["tokens"]
    for index in np.unique(rows["origin"]).tolist():
        origin = origins[index]
        if not origin.once or not isinstance(origin.tokens, FileSlice):
            continue
        own = rows[(rows["origin"] == index) & finished]
        begins = np.sort(own["start"].astype(np.int64))
        ends = begins + own["tokens"][np.argsort(own["start"])]
        # Exactly these documents, neighbours together: what lies between them belongs to other buckets.
        if not len(own):
            continue
        first = np.nonzero(np.concatenate([[True], begins[1:] != ends[:-1]]))[0]
        last = np.append(first[1:] - 1, len(begins) - 1)
        for low, high in zip(begins[first].tolist(), ends[last].tolist(), strict=True):
            if 4 * (high - low) >= _RELEASE_BYTES:
                carriers.release(origin.tokens, 4 * low, 4 * (high - low))


def paths_of(origins: Sequence[Origin]) -> list[dict[int, str]]:
    """For each origin, its file numbers and their paths."""
    return [{int(n): p for n, p in orjson.loads(carriers.load(origin.files)).items()} for origin in origins]


def shard_spans(shard: PackedShard) -> np.ndarray:
    """`SPAN[n]` of a shard."""
    return np.frombuffer(carriers.load(shard.spans), SPAN)
