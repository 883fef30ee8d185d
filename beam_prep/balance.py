"""Balance: from the counts of the whole corpus to the plan that every later step follows.

The plan holds the number of buckets of each output. It follows from the counted tokens and the configuration
alone, so that shards are the same however the records were spread over files, bundles and workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from beam_prep.dedup import Counts
from beam_prep.errors import BeamPrepError
from beam_prep.ledger import Tally
from beam_prep.mix import KEY_BITS
from beam_prep.outputs import Output

MIN_BUCKET_TOKENS = 16 << 20
MAX_BUCKET_TOKENS = 64 << 20
_WANTED_BUCKETS = 256


class PlannedOutput(NamedTuple):
    """An output, with what the counts decided."""

    output: Output
    buckets: int
    """Equal parts of the key space; one shard each."""
    tokens: int
    """Tokens of all copies."""
    documents: tuple[int, ...]
    """By source: distinct documents that belong to the output."""
    source_tokens: tuple[int, ...]
    """By source: tokens of those, each counted once."""


class Plan(NamedTuple):
    """What Place, Pack and Finalize follow."""

    outputs: tuple[PlannedOutput, ...]
    tallies: tuple[dict, ...]
    """By source: `Tally.to_dict()`."""
    duplicates: tuple[int, ...]
    """By source."""


def bucket_tokens(tokens: int) -> int:
    """Tokens a bucket for an output of so many: 16 Mi (64 MiB) for small ones, up to 64 Mi for large ones."""
    return min(MAX_BUCKET_TOKENS, max(MIN_BUCKET_TOKENS, tokens // _WANTED_BUCKETS))


def bucket_count(tokens: int) -> int:
    """Buckets of an output; at least one."""
    return max(1, round(tokens / bucket_tokens(tokens)))


def bucket_edges(buckets: int) -> np.ndarray:
    """uint64[buckets + 1]: bucket b holds the keys in [edges[b], edges[b + 1])."""
    return np.array([(b << KEY_BITS) // buckets for b in range(buckets)] + [1 << KEY_BITS], np.uint64)


def balance(
    outputs: Sequence[Output],
    names: Sequence[str],
    max_rejects: Sequence[float],
    counts: Sequence[Counts],
    tallies: Sequence[Tally],
) -> Plan:
    """The plan.

    Args:
      names, max_rejects, tallies: one a source.
      counts: of every key range.

    Raises:
      BeamPrepError: a source has too many rejects, or an output would be empty.
    """
    check_rejects(names, max_rejects, tallies)
    cells = sum((c.cells for c in counts), np.zeros((len(outputs), len(names), 3), np.int64))
    duplicates = np.sum([c.duplicates for c in counts], axis=0) if counts else np.zeros(len(names), np.int64)
    planned = []
    for index, output in enumerate(outputs):
        tokens = int(cells[index, :, 2].sum())
        if not tokens:
            raise BeamPrepError(_why_empty(output, names, tallies, cells[index]))
        documents, source_tokens = cells[index, :, 0].tolist(), cells[index, :, 1].tolist()
        planned.append(PlannedOutput(output, bucket_count(tokens), tokens, tuple(documents), tuple(source_tokens)))
    return Plan(tuple(planned), tuple(t.to_dict() for t in tallies), tuple(int(d) for d in duplicates))


def check_rejects(names: Sequence[str], limits: Sequence[float], tallies: Sequence[Tally]) -> None:
    """Fails a run in which a source lost too much.

    Raises:
      BeamPrepError: names each such source, its share, and the reasons that led.
    """
    lines = []
    for name, limit, tally in zip(names, limits, tallies, strict=True):
        rejected = sum(tally.rejected.values())
        if tally.records and rejected > limit * tally.records:
            reasons = ", ".join(f"{reason} {count}" for reason, count in tally.rejected.most_common(3))
            lines.append(
                f"dataset {name!r}: {rejected} of {tally.records} records rejected ({rejected / tally.records:.1%}, "
                f"max_rejects is {limit:.1%}): {reasons}"
            )
    if lines:
        lines.append(
            "the records stand in rejected/ with their reasons; mend them or the template, or raise max_rejects"
        )
        raise BeamPrepError("\n".join(lines))


def _why_empty(output: Output, names: Sequence[str], tallies: Sequence[Tally], cells: np.ndarray) -> str:
    parts = []
    for name, tally, (documents, _, _), rate in zip(names, tallies, cells.tolist(), output.rates, strict=True):
        filtered, rejected = sum(tally.filtered.values()), sum(tally.rejected.values())
        parts.append(
            f"{name}: {tally.records} records, {rejected} rejected, {filtered} filtered, {documents} documents "
            f"at {rate:g} epochs"
        )
    return f"output {output.name!r} has no documents ({'; '.join(parts)}); check the inputs, filters and epochs"
