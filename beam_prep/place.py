"""Place: which copy of which document goes to which bucket of which output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from beam_prep import carrier as carriers
from beam_prep.balance import Plan
from beam_prep.blocks import COPY_BITS, PLACED, PlacedRun
from beam_prep.dedup import DUPLICATE
from beam_prep.mix import copies, order_keys
from beam_prep.outputs import member
from beam_prep.runs import Run, entries_array, entry_ids

LAST_BUCKET = 2**32 - 1
"""Stands for an output's last bucket on the way to Pack: rests are sent there before its number is known."""


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


def place_run(
    run: Run, duplicates: Sequence[bytes], plan: Plan, seed: int, drop: bool
) -> tuple[PlacedRun, PlacedTally]:
    """Assigns the documents of a run.

    Args:
      duplicates: `DUPLICATE` rows of this run.
      drop: whether those are dropped.

    Returns:
      The rows of each output, and the tally.
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
    everywhere, tokens, numbers = [], [], []
    for planned in plan.outputs:
        output = planned.output
        mask = member(output, run.source, entries, ids) & ~dropped
        times = np.where(mask, copies(ids, seed, planned.shares[run.source].rate), 0)
        rows = np.repeat(np.arange(len(entries)), times)
        copy = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
        placed = _placed_rows(entries, starts, ids, rank, rows, copy, seed)
        tokens.append(int(placed["tokens"].sum(dtype=np.int64)))
        numbers.append(len(placed))
        total += times
        everywhere.append(placed)
    documents = int((total > 0).sum())
    repeats = int(dropped.sum())
    tally = PlacedTally(
        run.name, run.source, documents, len(entries) - documents - repeats, repeats, tuple(tokens), tuple(numbers)
    )
    return PlacedRun(run, tuple(everywhere), bool(total.max(initial=0) <= 1)), tally


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
