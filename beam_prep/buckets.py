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
from beam_prep.carrier import Carrier, FileSlice, Payload
from beam_prep.packing import SPAN, Packed, pack_concat, with_rest
from beam_prep.place import PLACED, Block, inline_block, row_views
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
    """`PLACED[n]`."""
    block: np.ndarray
    """int64[n]: index of each document's block."""
    blocks: tuple[Block, ...]


class PackedShard(NamedTuple):
    """What Pack hands to Write: spans of documents, and where their tokens are."""

    output: int
    bucket: int
    sequences: int
    spans: Payload
    """`SPAN[n]`; rows count in `rows`."""
    rows: Payload
    """`PLACED[n]` in the order of the stream."""
    row_blocks: Payload
    """int64[n]: index of each row's block."""
    blocks: tuple[Block, ...]
    dropped_tokens: int
    """Tokens of the rest that `tail: drop` leaves out."""


def load_bucket(blocks: Sequence[Block]) -> Bucket:
    """Brings the documents of a bucket into order: (rank of the block, key, id, copy), and nothing else."""
    ordered = sorted(blocks, key=lambda b: (b.rank, b.source))
    parts = [np.frombuffer(carriers.load(b.placed), PLACED) for b in ordered]
    sizes = [len(p) for p in parts]
    placed = np.concatenate(parts)
    block = np.repeat(np.arange(len(ordered)), sizes)
    rank = np.repeat([b.rank for b in ordered], sizes)
    # A document cut by `tail` of several buckets may stand here twice with one key: `position` keeps its parts apart.
    order = np.lexsort((placed["position"], placed["copy"], placed["low"], placed["high"], placed["key"], rank))
    return Bucket(placed[order], block[order], tuple(ordered))


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
    content = load_bucket(blocks)
    packed = PACKERS[packing](content.placed["tokens"], context_length)
    remainder: list[Block] = []
    dropped = 0
    if last and tail == "pad":
        packed = with_rest(packed)
    elif last:
        dropped = int(packed.rest["length"].sum())
    else:
        remainder = _remainder(content, packed.rest, bucket, output, carrier)
    name = f"packed/{output}/{bucket:06d}"
    shard = PackedShard(
        output,
        bucket,
        packed.sequences,
        carrier.put(f"{name}.spans", [packed.spans.tobytes()]),
        carrier.put(f"{name}.rows", [content.placed.tobytes()]),
        carrier.put(f"{name}.blocks", [content.block.tobytes()]),
        content.blocks,
        dropped,
    )
    return shard, remainder


def _remainder(content: Bucket, rest: np.ndarray, bucket: int, output: int, carrier: Carrier) -> list[Block]:
    """The rest of a bucket as blocks of the last one, a block for each block that it came from."""
    blocks = []
    rows = content.placed[rest["row"]].copy()
    rows["start"] += rest["position"]
    rows["position"] += rest["position"]
    rows["tokens"] = rest["length"]
    owner = content.block[rest["row"]]
    for index in np.unique(owner).tolist():
        origin = content.blocks[index]
        own = rows[owner == index]
        if carrier.is_files:
            placed = carrier.put(f"packed/{output}/{bucket:06d}.rest-{index}", [own.tobytes()])
            blocks.append(Block(bucket + 1, origin.source, placed, origin.tokens, origin.files, origin.once))
        else:
            views = row_views(carriers.load(origin.tokens), own)
            blocks.append(inline_block(bucket + 1, origin.source, own, views, origin.files))
    return blocks


def gather(rows: np.ndarray, row_blocks: np.ndarray, blocks: Sequence[Block]) -> list[memoryview]:
    """The tokens of each row (`PLACED[n]`), read from files in few large reads."""
    views: list[memoryview] = [memoryview(b"")] * len(rows)
    for index in np.unique(row_blocks).tolist():
        own = np.nonzero(row_blocks == index)[0]
        payload = blocks[index].tokens
        placed = rows[own]
        if isinstance(payload, FileSlice):
            found = attempt("read", payload.path, partial(_read_rows, payload, placed))
        else:
            found = row_views(payload, placed)
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


def release_written(shard: PackedShard, spans: np.ndarray, rows: np.ndarray, row_blocks: np.ndarray) -> None:
    """Gives back the spilled tokens of the documents that are wholly in a finished shard; see `carrier.release`."""
    in_shard = np.zeros(len(rows), np.int64)
    np.add.at(in_shard, spans["row"], spans["length"])
    finished = in_shard == rows["tokens"]
    for index in np.unique(row_blocks).tolist():
        block = shard.blocks[index]
        if not block.once or not isinstance(block.tokens, FileSlice):
            continue
        own = rows[(row_blocks == index) & finished]
        begins = np.sort(own["start"].astype(np.int64))
        ends = begins + own["tokens"][np.argsort(own["start"])]
        # Exactly these documents, neighbours together: what lies between them belongs to other buckets.
        if not len(own):
            continue
        first = np.nonzero(np.concatenate([[True], begins[1:] != ends[:-1]]))[0]
        last = np.append(first[1:] - 1, len(begins) - 1)
        for low, high in zip(begins[first].tolist(), ends[last].tolist(), strict=True):
            if 4 * (high - low) >= _RELEASE_BYTES:
                carriers.release(block.tokens, 4 * low, 4 * (high - low))


def paths_of(blocks: Sequence[Block]) -> list[dict[int, str]]:
    """For each block, its file numbers and their paths."""
    known: dict[Payload, dict[int, str]] = {}
    result = []
    for block in blocks:
        if block.files not in known:
            known[block.files] = {int(n): p for n, p in orjson.loads(carriers.load(block.files)).items()}
        result.append(known[block.files])
    return result


def shard_spans(shard: PackedShard) -> np.ndarray:
    """`SPAN[n]` of a shard."""
    return np.frombuffer(carriers.load(shard.spans), SPAN)
