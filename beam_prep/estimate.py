"""Estimate: what a run would make of its inputs, from a sample of them, by the functions of the run itself.

A sample goes through the very steps of a run (transform, ids, encode, deduplicate, balance, place, pack), only without
Beam and without keeping a token. What is counted in it is scaled by a source's bytes over those that were sampled. A
source that lies in the sample as a whole is not scaled; if all do, every figure is that of the run's manifest.
Duplicates can only be counted where both copies lie in the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from beam_prep import dedup, mixture
from beam_prep.balance import Plan, balance
from beam_prep.carrier import load
from beam_prep.config import Config
from beam_prep.errors import BeamPrepError
from beam_prep.job import Source
from beam_prep.ledger import Tally
from beam_prep.mix import copies
from beam_prep.output_estimate import OutputEstimate, expected_output, nothing_left, packed_outputs, unreachable
from beam_prep.outputs import Output, member
from beam_prep.runs import ENTRY, Run, entries_array, entry_ids
from beam_prep.sampled_source import SampledSource, token_limits
from beam_prep.selection import selection

_MOST_COPIES = 4_000_000
"""Copies that are placed and packed one by one; above, a sample of lengths says enough."""


class Estimate(NamedTuple):
    """Everything that `plan` says of the data."""

    sources: tuple[SampledSource, ...]
    outputs: tuple[OutputEstimate, ...]
    tallies: tuple[Tally, ...]
    """By source, scaled."""
    duplicates: tuple[int, ...]
    """By source, scaled; only those whose other copy lies in the sample too."""
    tokens: tuple[int, ...]
    """By source: tokens of its documents, repeats that were seen left out, each document counted once."""
    encoded: tuple[int, ...]
    """By source: tokens that are encoded and spilled, repeats included; not those that `epochs` surely leave out."""
    given_back: int
    """Tokens of those that leave the spill when their shard is written."""
    problems: str
    """Why the run would fail, empty if it would not."""
    notes: tuple[str, ...]
    """What the sample is too small to show."""

    @property
    def exact(self) -> bool:
        """Whether nothing is estimated."""
        return all(source.complete for source in self.sources)


def estimate(
    config: Config, sources: Sequence[Source], outputs: Sequence[Output], sampled: Sequence[SampledSource]
) -> Estimate:
    """Everything that follows from the samples (`sampled`, one a source)."""
    names = [source.name for source in sources]
    drop = config.dedup == "exact"
    found, seen = _deduplicated(sampled, outputs, config)
    shown, notes = _shown(outputs, sampled, seen)
    if shown != tuple(outputs):
        outputs = shown
        found, seen = _deduplicated(sampled, outputs, config)
    counts = _scaled_counts(seen, sampled, outputs)
    tallies = [_scaled_tally(s.tally, s.factor) for s in sampled]
    problems, plan = "", None
    try:
        plan = balance(outputs, names, [s.max_rejects for s in sources], counts, tallies)
    except BeamPrepError as error:
        problems = error.message
    duplicates = {d.run: d.rows for d in found}
    kept = [_kept(s.run, duplicates.get(s.run.name, b""), drop) for s in sampled]
    made: list[OutputEstimate] = []
    if plan is None:
        made = [unreachable(index, output, names, counts) for index, output in enumerate(outputs)]
    elif all(s.complete for s in sampled) and _most_copies(plan, kept) <= _MOST_COPIES:
        made = packed_outputs(plan, sampled, duplicates, config, names)
    else:
        made = [expected_output(plan, index, sampled, kept, config) for index in range(len(outputs))]
    if plan is not None:
        problems = "\n".join(nothing_left(o) for o in made if not o.sequences)
    tokens = [round(int(e["tokens"].sum(dtype=np.int64)) * s.factor) for e, s in zip(kept, sampled, strict=True)]
    encoded = [_encoded(source, index, sampled[index], outputs, config) for index, source in enumerate(sources)]
    return Estimate(
        tuple(sampled),
        tuple(made),
        tuple(tallies),
        tuple(counts.duplicates.tolist()),
        tuple(tokens),
        tuple(encoded),
        _given_back(made, encoded),
        problems,
        tuple(notes),
    )


def _deduplicated(
    sampled: Sequence[SampledSource], outputs: Sequence[Output], config: Config
) -> tuple[list[dedup.Duplicates], dedup.Counts]:
    slices = [dedup.RunSlice(s.run.name, s.run.source, 0, s.run.entries) for s in sampled if s.run.documents]
    if not slices:
        return [], dedup.no_counts(len(outputs), len(sampled))
    return dedup.deduplicate(slices, outputs, len(sampled), config.seed, config.dedup == "exact")


def _shown(
    outputs: Sequence[Output], sampled: Sequence[SampledSource], seen: dedup.Counts
) -> tuple[tuple[Output, ...], list[str]]:
    """The outputs without what a sample is too small to show, and notes on that.

    A source whose documents hardly ever fit a stage, or a tiny split, is no mistake only because no such document was
    among those that were read.
    """
    shown, notes = [], []
    for number, output in enumerate(outputs):
        absent = [
            index
            for index, source in enumerate(sampled)
            if not source.complete
            and output.epochs[index] != 0
            and source.run.documents
            and not seen.cells[number, index, 0]
        ]
        if not absent:
            shown.append(output)
            continue
        named = ", ".join(sampled[index].name for index in absent)
        notes.append(
            f"output {output.name!r}: none of the documents that were read of {named} belongs to it, so that they are "
            "left out here; a larger --sample may show some"
        )
        epochs = tuple(0.0 if index in absent else value for index, value in enumerate(output.epochs))
        weights = tuple(0.0 if index in absent else value for index, value in enumerate(output.weights))
        if any(value != 0 for value in epochs):
            shown.append(output._replace(epochs=epochs, weights=weights))
    return (tuple(shown), notes) if shown else (tuple(outputs), [])


def _encoded(source: Source, number: int, sampled: SampledSource, outputs: Sequence[Output], config: Config) -> int:
    entries = _entries(sampled.run)
    wanted = np.ones(len(entries), bool)
    chosen = selection(outputs, number, token_limits(source))
    if chosen is not None:
        wanted[:] = False
        ids = entry_ids(entries)
        for output, rate in chosen.parts:
            wanted |= member(output, 0, entries, ids) & (copies(ids, config.seed, rate) > 0)
    return round(int(entries["tokens"][wanted].sum(dtype=np.int64)) * sampled.factor)


def _entries(run: Run) -> np.ndarray:
    return entries_array(load(run.entries)) if run.documents else np.empty(0, ENTRY)


def _kept(run: Run, rows: bytes, drop: bool) -> np.ndarray:
    """`ENTRY[n]`: the documents of a run that are left after deduplication."""
    entries = _entries(run)
    keep = np.ones(len(entries), bool)
    if drop and rows:
        keep[np.frombuffer(rows, dedup.DUPLICATE)["row"]] = False
    return entries[keep]


def _scaled_counts(seen: dedup.Counts, sampled: Sequence[SampledSource], outputs: Sequence[Output]) -> dedup.Counts:
    factors = np.array([s.factor for s in sampled])
    cells = np.rint(seen.cells * factors[None, :, None]).astype(np.int64)
    for number, output in enumerate(outputs):
        for index, epochs in enumerate(output.epochs):
            if (
                epochs and not sampled[index].complete
            ):  # expected, not drawn: a sample may be too small for a small rate
                cells[number, index, 2] = round(cells[number, index, 1] * epochs)
    owner = (seen.points.keys >> np.uint64(24)).astype(np.int64) % len(sampled)
    points = np.rint(seen.points.tokens * factors[owner]).astype(np.int64)
    duplicates = np.rint(seen.duplicates * factors).astype(np.int64)
    return dedup.Counts(duplicates, cells, mixture.Histogram(seen.points.keys, points))


def _scaled_tally(tally: Tally, factor: float) -> Tally:
    """A tally of so many times as many records, which adds up."""
    scaled = Tally(blank_lines=round(tally.blank_lines * factor), bytes=round(tally.bytes * factor))
    for own, other in ((scaled.rejected, tally.rejected), (scaled.filtered, tally.filtered)):
        own.update({reason: round(count * factor) for reason, count in other.items()})
    scaled.skipped_turns.update({reason: round(count * factor) for reason, count in tally.skipped_turns.items()})
    scaled.rendered = round(tally.rendered * factor)
    scaled.records = scaled.rendered + sum(scaled.rejected.values()) + sum(scaled.filtered.values())
    return scaled


def _most_copies(plan: Plan, kept: Sequence[np.ndarray]) -> int:
    return sum(
        (planned.shares[index].rate.whole + 1) * len(entries)
        for planned in plan.outputs
        for index, entries in enumerate(kept)
        if planned.documents[index]
    )


def _given_back(made: Sequence[OutputEstimate], encoded: Sequence[int]) -> int:
    """Tokens of sources whose documents are written once at most; see `carrier.release`."""
    total = 0
    for index, tokens in enumerate(encoded):
        written = sum(output.shares[index].tokens for output in made)
        if all(output.shares[index].epochs <= 1 for output in made) and written <= tokens:
            total += written
    return total
