"""Deduplicate: equal ids meet in one key range; one document of each id is kept, and what is left is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from beam_prep import carrier as carriers
from beam_prep.carrier import Payload
from beam_prep.mix import KEY_BITS, copies, rate_of, share_words
from beam_prep.mixture import Histogram, histogram, merge
from beam_prep.outputs import Output, member
from beam_prep.runs import ENTRY, Run, entries_array, entry_ids

KEY_RANGES = 64
"""Parts of the key space that are deduplicated on their own, at the least; results do not depend on their number."""
_MOST_KEY_RANGES = 4096
_MOST_KEY_RANGES_LOCAL = 256
"""The local runner keeps a reference in memory for each run and range."""
_RANGE_INPUT_BYTES = 256 << 20

DUPLICATE = np.dtype([("row", "<u4"), ("rank", "<u4")])
"""A row of a run that is not the first of its id; `rank` counts from 1 in order of precedence."""


SEEN = -1
"""In place of the source, for documents that the output holds already: entries are then their ids, uint64[n, 2]."""


class RunSlice(NamedTuple):
    """The entries of a run that fall into one key range."""

    run: str
    source: int
    first: int
    """Row of the first entry within its run."""
    entries: Payload


class Duplicates(NamedTuple):
    """Rows of one run that repeat a document."""

    run: str
    rows: bytes
    """`DUPLICATE[n]`."""


class Counts(NamedTuple):
    """What key ranges hold; see `add_counts`."""

    duplicates: np.ndarray
    """int64[sources]: documents that repeat another one."""
    cells: np.ndarray
    """int64[outputs, sources, 3]: documents, their tokens, and tokens of their copies (of sources with `epochs`)."""
    points: Histogram
    """Tokens of weighted sources by share point."""


def add_counts(parts: Sequence[Counts]) -> Counts:
    """The sum of counts (at least one)."""
    duplicates = np.sum([p.duplicates for p in parts], axis=0)
    return Counts(duplicates, np.sum([p.cells for p in parts], axis=0), merge(p.points for p in parts))


def no_counts(outputs: int, sources: int) -> Counts:
    """The counts of nothing."""
    return Counts(np.zeros(sources, np.int64), np.zeros((outputs, sources, 3), np.int64), merge([]))


def key_ranges(input_bytes: int, local: bool) -> int:
    """How many key ranges suit an input of so many stored bytes: a power of two."""
    most = _MOST_KEY_RANGES_LOCAL if local else _MOST_KEY_RANGES
    return min(most, max(KEY_RANGES, 1 << (input_bytes // _RANGE_INPUT_BYTES).bit_length()))


def key_range_edges(keys: np.ndarray, ranges: int = KEY_RANGES) -> list[int]:
    """Where each key range begins in ascending order keys (uint64[n]), and the end of the last one."""
    shift = np.uint64(KEY_BITS - ranges.bit_length() + 1)
    return np.searchsorted(keys >> shift, np.arange(ranges + 1, dtype=np.uint64)).tolist()


def slice_run(run: Run, ranges: int = KEY_RANGES) -> Iterator[tuple[int, RunSlice]]:
    """(key range, slice) for every range in which a run has documents. `ranges`: a power of two."""
    if not run.documents:
        return
    edges = key_range_edges(entries_array(carriers.load(run.entries))["key"], ranges)
    for number, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        if end > start:
            size = ENTRY.itemsize
            entries = carriers.part(run.entries, start * size, (end - start) * size)
            yield number, RunSlice(run.name, run.source, start, entries)


def deduplicate(
    slices: Sequence[RunSlice], outputs: Sequence[Output], sources: int, seed: int, drop: bool
) -> tuple[list[Duplicates], Counts]:
    """Finds equal ids among the slices of one key range.

    The first in (source, file, offset) is kept; so the configuration's order of sources decides. Of an id that is in a
    slice of `SEEN` none is.

    Args:
      drop: whether repeats are dropped. If not, their ranks only set their order keys apart, so that many equal
        documents do not all fall into one bucket.
    """
    seen = [np.frombuffer(carriers.load(s.entries), np.uint64).reshape(-1, 2) for s in slices if s.source == SEEN]
    slices = sorted(s for s in slices if s.source != SEEN)
    if not slices:
        return [], no_counts(len(outputs), sources)
    parts = [entries_array(carriers.load(s.entries)) for s in slices]
    entries = np.concatenate(parts)
    sizes = [len(p) for p in parts]
    source = np.repeat([s.source for s in slices], sizes)
    run = np.repeat(np.arange(len(slices)), sizes)
    row = np.concatenate([np.arange(s.first, s.first + n) for s, n in zip(slices, sizes, strict=True)])

    rank = _ranks(entries, source)
    if seen:
        rank += is_among(entry_ids(entries), np.concatenate(seen))
    found = []
    repeated = np.nonzero(rank)[0]
    for index in np.unique(run[repeated]).tolist():
        own = repeated[run[repeated] == index]
        rows = np.empty(len(own), DUPLICATE)
        rows["row"], rows["rank"] = row[own], rank[own]
        found.append(Duplicates(slices[index].run, rows.tobytes()))

    kept = rank == 0 if drop else np.ones(len(entries), bool)
    duplicates = np.bincount(source[rank > 0], minlength=sources) if drop else np.zeros(sources, np.int64)
    return found, Counts(duplicates, *_count(entries[kept], source[kept], outputs, sources, seed))


def is_among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool[n]: which of `ids` (uint64[n, 2]) are in `known` (uint64[m, 2], in any order)."""
    known = known[np.argsort(known[:, 0], kind="stable")]
    at = np.searchsorted(known[:, 0], ids[:, 0], side="left")
    end = np.searchsorted(known[:, 0], ids[:, 0], side="right")
    found = np.zeros(len(ids), bool)
    open_ = np.nonzero(at < end)[0]
    while len(open_):  # once, but for copies of a document and ids that agree in one half
        found[open_] = known[at[open_], 1] == ids[open_, 1]
        at[open_] += 1
        open_ = open_[~found[open_] & (at[open_] < end[open_])]
    return found


def _ranks(entries: np.ndarray, source: np.ndarray) -> np.ndarray:
    """int64[n]: 0 for the first document of each id, 1, 2 … for its repeats, in order of precedence."""
    rank = np.zeros(len(entries), np.int64)
    by_key = np.argsort(entries["key"], kind="stable")
    keys = entries["key"][by_key]
    same = np.concatenate([[False], keys[1:] == keys[:-1]]) if len(keys) else np.zeros(0, bool)
    if not same.any():
        return rank  # nothing repeats: no need for the full sort
    involved = by_key[same | np.concatenate([same[1:], [False]])]
    part = entries[involved]
    order = involved[np.lexsort((part["offset"], part["file"], source[involved], part["low"], part["high"]))]
    high, low = entries["high"][order], entries["low"][order]
    first = np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])])
    starts = np.nonzero(first)[0]
    rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return rank


def _count(
    entries: np.ndarray, source: np.ndarray, outputs: Sequence[Output], sources: int, seed: int
) -> tuple[np.ndarray, Histogram]:
    cells = np.zeros((len(outputs), sources, 3), np.int64)
    points = []
    for number in np.unique(source).tolist():
        own = entries[source == number]
        ids = entry_ids(own)
        tokens = own["tokens"].astype(np.int64)
        for index, output in enumerate(outputs):
            mask = member(output, number, own, ids)
            epochs = output.epochs[number]
            if epochs is None:
                cell = index * sources + number
                points.append(histogram(cell, share_words(ids[mask], seed), tokens[mask]))
                copied = 0
            else:
                copied = (tokens[mask] * copies(ids[mask], seed, rate_of(epochs))).sum()
            cells[index, number] = (mask.sum(), tokens[mask].sum(), copied)
    return cells, merge(points)
