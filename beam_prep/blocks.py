"""Blocks: documents on their way from Place to Pack, those of one or more runs that go to one bucket.

With the file carrier a block holds two references: to its rows, and to the list of runs that they count in. As many
runs as memory allows share their blocks, because the number of blocks is that of such groups times that of buckets.
With the engine's shuffle a block carries everything itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import orjson
import xxhash

from beam_prep import carrier as carriers
from beam_prep.balance import Plan, bucket_edges
from beam_prep.carrier import Carrier, FileSlice, Payload
from beam_prep.runs import Run

PLACED = np.dtype(
    [
        ("key", "<u8"),  # order key of this copy
        ("high", "<u8"),
        ("low", "<u8"),
        ("start", "<u8"),  # first token within its origin's tokens
        ("offset", "<u8"),
        ("copy", "<u8"),  # see `COPY_BITS`
        ("tokens", "<u4"),
        ("file", "<u4"),
        ("position", "<u4"),  # tokens of the document that stand before `start` (remainders of a bucket)
        ("origin", "<u4"),  # index in the list of origins that comes with the rows
    ]
)
"""One copy of a document on its way to a bucket, 64 bytes."""

COPY_BITS = 32
"""`copy` = rank among equal documents << 32 | number of the copy."""

GROUP_BYTES = 16 << 20
"""Rows that are held in memory until their blocks are made (file carrier)."""


class Origin(NamedTuple):
    """Where the tokens of some rows are: a run, or with the engine's shuffle a part of one."""

    source: int
    tokens: Payload
    """uint32; `start` counts within it."""
    files: Payload
    """JSON {file number: path}."""
    once: bool
    """Whether every document is written once at most, so that its tokens may go when a shard has them."""


Origins = tuple[Origin, ...] | Payload
"""Origins, or where their list is."""


class Block(NamedTuple):
    """Documents that go to one bucket (what crosses the shuffle)."""

    rank: int
    """Order of blocks in a bucket's stream: 0, or for the remainder of bucket b, b + 1."""
    placed: Payload
    """`PLACED[n]`."""
    origins: Origins


class PlacedRun(NamedTuple):
    """A run whose documents have their places."""

    run: Run
    rows: tuple[np.ndarray, ...]
    """By output: `PLACED[n]`, in order of the keys; `origin` is not set."""
    once: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return sum(rows.nbytes for rows in self.rows)


def bucket_key(output: int, bucket: int) -> int:
    """The shuffle's key."""
    return output << 32 | bucket


def split_key(key: int) -> tuple[int, int]:
    """(output, bucket) of a shuffle key."""
    return key >> 32, key & 0xFFFFFFFF


def make_blocks(runs: Sequence[PlacedRun], plan: Plan, carrier: Carrier) -> Iterator[tuple[int, Block]]:
    """(bucket key, block) pairs of a group of runs. Files follow from the runs alone, so that a retry is harmless."""
    name = xxhash.xxh3_64_hexdigest("\n".join(placed.run.name for placed in runs).encode())
    origins = tuple(Origin(p.run.source, p.run.tokens, p.run.files, p.once) for p in runs)
    if not carrier.is_files:  # once, and not for every bucket again
        origins = tuple(origin._replace(tokens=carriers.load(origin.tokens)) for origin in origins)
    kept: Origins = ()
    for output, planned in enumerate(plan.outputs):
        rows = np.concatenate([placed.rows[output] for placed in runs])
        if not len(rows):
            continue
        rows["origin"] = np.repeat(np.arange(len(runs)), [len(placed.rows[output]) for placed in runs])
        edges = bucket_edges(planned.buckets)
        bucket = np.searchsorted(edges, rows["key"], side="right") - 1
        order = np.argsort(bucket, kind="stable")
        rows, bucket = rows[order], bucket[order]
        bounds = np.searchsorted(bucket, np.arange(planned.buckets + 1)).tolist()
        if carrier.is_files:
            kept = kept or keep_origins(carrier, f"placed/{name}.origins", origins)
            file = carrier.put(f"placed/{output}/{name}", [rows.tobytes()])
        for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            if end == start:
                continue
            if carrier.is_files:
                part = carriers.part(file, start * PLACED.itemsize, (end - start) * PLACED.itemsize)
                yield bucket_key(output, number), Block(0, part, kept)
            else:
                yield bucket_key(output, number), inline_block(0, rows[start:end], origins)


def keep_block(rank: int, name: str, rows: np.ndarray, origins: Sequence[Origin], carrier: Carrier) -> Block:
    """A block of its own for some rows (`PLACED[n]`). `name`: of its files."""
    if not carrier.is_files:
        return inline_block(rank, rows, origins)
    used, moved = np.unique(rows["origin"], return_inverse=True)
    rows = rows.copy()
    rows["origin"] = moved
    kept = keep_origins(carrier, f"{name}-origins", [origins[index] for index in used.tolist()])
    return Block(rank, carrier.put(name, [rows.tobytes()]), kept)


def inline_block(rank: int, rows: np.ndarray, origins: Sequence[Origin]) -> Block:
    """A block that carries its own tokens."""
    moved = rows.copy()
    parts = []
    for number, index in enumerate(np.unique(rows["origin"]).tolist()):
        own = rows["origin"] == index
        part, origin = rows[own], origins[index]
        moved["start"][own] = np.cumsum(part["tokens"], dtype=np.uint64) - part["tokens"]
        moved["origin"][own] = number
        named = {str(n) for n in np.unique(part["file"]).tolist()}
        paths = {n: p for n, p in orjson.loads(carriers.load(origin.files)).items() if n in named}
        tokens = b"".join(row_views(carriers.load(origin.tokens), part))
        parts.append(Origin(origin.source, carriers.compress(tokens), orjson.dumps(paths), False))
    return Block(rank, carriers.compress(moved.tobytes()), tuple(parts))


def carried(block: Block) -> int:
    """Bytes of a block that travel through the engine's shuffle."""
    inline = [] if isinstance(block.origins, FileSlice) else load_origins(block.origins)
    payloads = [payload for origin in inline for payload in (origin.tokens, origin.files)]
    return carriers.carried(block.placed, *payloads)


def row_views(tokens: bytes, placed: np.ndarray) -> list[memoryview]:
    """The tokens of each row, as parts of one buffer that `placed["start"]` counts in."""
    view = memoryview(tokens)
    begins, counts = placed["start"].tolist(), placed["tokens"].tolist()
    return [view[4 * b : 4 * (b + n)] for b, n in zip(begins, counts, strict=True)]


def keep_origins(carrier: Carrier, name: str, origins: Sequence[Origin]) -> Origins:
    """Hands a list of origins to the carrier."""
    if not carrier.is_files:
        return tuple(origins)
    return carrier.put(name, [pickle.dumps([(o.source, o.tokens, o.files, o.once) for o in origins])])


def load_origins(kept: Origins) -> tuple[Origin, ...]:
    """The list."""
    found = pickle.loads(carriers.load(kept)) if isinstance(kept, FileSlice | bytes) else kept
    return tuple(Origin(*origin) for origin in found)
