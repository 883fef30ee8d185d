"""Place: which copy of which document goes to which bucket of which output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import orjson

from beam_prep import carrier as carriers
from beam_prep.balance import Plan, bucket_edges
from beam_prep.carrier import Carrier, Payload
from beam_prep.dedup import DUPLICATE
from beam_prep.mix import copies, order_keys
from beam_prep.outputs import member
from beam_prep.runs import Run, entries_array, entry_ids

PLACED = np.dtype(
    [
        ("key", "<u8"),  # order key of this copy
        ("high", "<u8"),
        ("low", "<u8"),
        ("start", "<u8"),  # first token within the block's tokens
        ("offset", "<u8"),
        ("copy", "<u8"),  # see `COPY_BITS`
        ("tokens", "<u4"),
        ("file", "<u4"),
        ("position", "<u4"),  # tokens of the document that stand before `start` (remainders of a bucket)
    ]
)
"""One copy of a document on its way to a bucket, 60 bytes."""

LAST_BUCKET = 2**32 - 1
"""Stands for an output's last bucket on the way to Pack: rests are sent there before its number is known."""

COPY_BITS = 32
"""`copy` = rank among equal documents << 32 | number of the copy."""


class Block(NamedTuple):
    """Documents of one run that go to one bucket (what crosses the shuffle)."""

    rank: int
    """Order of blocks in a bucket's stream: 0, or for the remainder of bucket b, b + 1."""
    source: int
    placed: Payload
    """`PLACED[n]`, in order of the keys."""
    tokens: Payload
    """uint32; `start` counts within it."""
    files: Payload
    """JSON {file number: path}."""
    once: bool
    """Whether every document of the run is written once at most, so that its tokens may go when a shard has them."""


class PlacedTally(NamedTuple):
    """What became of the documents of one run."""

    run: str
    source: int
    documents: int
    """Distinct documents of which some output holds a copy."""
    sampled_out: int
    duplicates: int
    tokens: tuple[int, ...]
    """By output: tokens of all copies."""
    copies: tuple[int, ...]
    """By output: copies written."""


def bucket_key(output: int, bucket: int) -> int:
    """The shuffle's key."""
    return output << 32 | bucket


def split_key(key: int) -> tuple[int, int]:
    """(output, bucket) of a shuffle key."""
    return key >> 32, key & 0xFFFFFFFF


def place_run(
    run: Run, duplicates: Sequence[bytes], plan: Plan, seed: int, drop: bool, carrier: Carrier
) -> tuple[list[tuple[int, Block]], PlacedTally]:
    """Assigns the documents of a run.

    Args:
      duplicates: `DUPLICATE` rows of this run.
      drop: whether those are dropped.

    Returns:
      (bucket key, block) pairs, and the tally.
    """
    entries = entries_array(carriers.load(run.entries))
    rank = np.zeros(len(entries), np.uint64)
    for rows in duplicates:
        repeated = np.frombuffer(rows, DUPLICATE)
        rank[repeated["row"]] = repeated["rank"]
    dropped = (rank > 0) & drop
    starts = np.cumsum(entries["tokens"], dtype=np.uint64) - entries["tokens"]
    ids = entry_ids(entries)
    total = np.zeros(len(entries), np.int64)
    everywhere: list[tuple[np.ndarray, int, int]] = []
    tokens, numbers = [], []
    for index, planned in enumerate(plan.outputs):
        output = planned.output
        mask = member(output, run.source, entries, ids) & ~dropped
        times = np.where(mask, copies(ids, seed, planned.shares[run.source].rate), 0)
        rows = np.repeat(np.arange(len(entries)), times)
        copy = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
        placed = _placed_rows(entries, starts, ids, rank, rows, copy, seed)
        tokens.append(int(placed["tokens"].sum(dtype=np.int64)))
        numbers.append(len(placed))
        total += times
        everywhere.append((placed, index, planned.buckets))
    once = bool(total.max(initial=0) <= 1)
    blocks = [pair for part in everywhere for pair in _blocks(run, *part, once, carrier)]
    documents = int((total > 0).sum())
    repeats = int(dropped.sum())
    tally = PlacedTally(
        run.name, run.source, documents, len(entries) - documents - repeats, repeats, tuple(tokens), tuple(numbers)
    )
    return blocks, tally


def _placed_rows(
    entries: np.ndarray,
    starts: np.ndarray,
    ids: np.ndarray,
    rank: np.ndarray,
    rows: np.ndarray,
    copy: np.ndarray,
    seed: int,
) -> np.ndarray:
    placed = np.zeros(len(rows), PLACED)
    for name in ("high", "low", "offset", "tokens", "file"):
        placed[name] = entries[name][rows]
    placed["start"] = starts[rows]
    placed["copy"] = rank[rows] << np.uint64(COPY_BITS) | copy.astype(np.uint64)
    placed["key"] = entries["key"][rows]
    again = placed["copy"] > 0  # the first copy's key is known from the run
    placed["key"][again] = order_keys(ids[rows][again], seed, placed["copy"][again])
    return placed[np.lexsort((placed["copy"], placed["low"], placed["high"], placed["key"]))]


def _blocks(
    run: Run, placed: np.ndarray, output: int, buckets: int, once: bool, carrier: Carrier
) -> Iterator[tuple[int, Block]]:
    if not len(placed):
        return
    edges = np.searchsorted(placed["key"], bucket_edges(buckets)).tolist()
    kept = carrier.put(f"placed/{output}/{run.name}", [placed.tobytes()]) if carrier.is_files else b""
    tokens = run.tokens if carrier.is_files else carriers.load(run.tokens)
    for bucket, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        if end == start:
            continue
        if carrier.is_files:
            kept_rows = carriers.part(kept, start * PLACED.itemsize, (end - start) * PLACED.itemsize)
            block = Block(0, run.source, kept_rows, run.tokens, run.files, once)
        else:
            assert isinstance(tokens, bytes)
            rows = placed[start:end]
            block = inline_block(0, run.source, rows, row_views(tokens, rows), run.files)
        yield bucket_key(output, bucket), block


def inline_block(
    rank: int, source: int, placed: np.ndarray, tokens: Sequence[bytes | memoryview], files: Payload
) -> Block:
    """A block that carries its own tokens. `tokens`: one buffer a row."""
    moved = placed.copy()
    moved["start"] = np.cumsum(placed["tokens"], dtype=np.uint64) - placed["tokens"]
    named = {str(n) for n in np.unique(placed["file"]).tolist()}
    paths = {n: p for n, p in orjson.loads(carriers.load(files)).items() if n in named}
    return Block(rank, source, moved.tobytes(), b"".join(tokens), orjson.dumps(paths), False)


def row_views(tokens: bytes, placed: np.ndarray) -> list[memoryview]:
    """The tokens of each row, as parts of one buffer that `placed["start"]` counts in."""
    view = memoryview(tokens)
    begins, counts = placed["start"].tolist(), placed["tokens"].tolist()
    return [view[4 * b : 4 * (b + n)] for b, n in zip(begins, counts, strict=True)]
