"""Balance: from the counts of the whole corpus to the plan that every later step follows.

The plan holds how often each source's documents are written and the number of buckets of each output. It follows from
the counted tokens and the configuration alone, so that shards are the same however the records were spread over files,
bundles and workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from beam_prep.dedup import Counts
from beam_prep.errors import BeamPrepError
from beam_prep.ledger import Tally
from beam_prep.mix import KEY_BITS
from beam_prep.mixture import Share, Supply, solve
from beam_prep.outputs import Output
from beam_prep.remedies import remedies

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
    shares: tuple[Share, ...]
    """By source."""


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
    counts: Counts,
    tallies: Sequence[Tally],
    may_be_empty: bool = False,
) -> Plan:
    """The plan.

    Args:
      names, max_rejects, tallies: one a source.
      counts: of all key ranges.
      may_be_empty: whether there may be nothing for an output, as in a few new files.

    Raises:
      BeamPrepError: a source has too many rejects or nothing at all, an output would be empty, or the wishes cannot
        be met; names everything that is wrong.
    """
    check_rejects(names, max_rejects, tallies)
    problems = _empty_sources(outputs, names, tallies, counts)
    planned = []
    short: dict[str, list[str]] = {output.stage: [] for output in outputs}
    supplies: dict[str, list[Supply]] = {output.stage: [] for output in outputs}
    for index, output in enumerate(outputs):
        documents, available, fixed = (counts.cells[index, :, column].tolist() for column in range(3))
        shares, impossible = solve(output, index, names, available, fixed, counts.points)
        short[output.stage] += impossible
        supplies[output.stage].append(Supply(output, available, sum(fixed)))
        tokens = sum(share.tokens for share in shares)
        if not tokens and not may_be_empty and not problems and not any(short.values()):
            problems.append(_why_empty(output, names, tallies, documents))
        planned.append(
            PlannedOutput(output, bucket_count(tokens), tokens, tuple(documents), tuple(available), tuple(shares))
        )
    for stage, lines in short.items():
        if lines:
            place = f"stage {stage!r}: " if stage else ""
            problems += [*lines, place + remedies(names, supplies[stage])]
    if problems:
        raise BeamPrepError("\n".join(problems))
    return Plan(tuple(planned), tuple(t.to_dict() for t in tallies), tuple(counts.duplicates.tolist()))


def _empty_sources(
    outputs: Sequence[Output], names: Sequence[str], tallies: Sequence[Tally], counts: Counts
) -> list[str]:
    """A weighted source can have no share where it has no document: of the run, or of a stage that names it."""
    problems = []
    for index, name in enumerate(names):
        found: Counter[str] = Counter()
        asked = [(number, output) for number, output in enumerate(outputs) if output.epochs[index] is None]
        for number, output in asked:
            found[output.stage] += int(counts.cells[number, index, 0])
        if not found:
            continue
        reason = _why_nothing(tallies[index], int(counts.duplicates[index]))
        if not any(found.values()) and reason:
            problems.append(f"dataset {name!r} has a weight, but {reason}; mend that or take it out")
            continue
        named = {output.stage for _, output in asked if output.named}
        stages = [stage for stage, n in found.items() if not n and (stage in named or not any(found.values()))]
        problems += [
            f"dataset {name!r} has a weight, but none of its documents is long enough for stage {stage!r}; lower the "
            "stage's min_chars or min_tokens, or take the dataset out of it"
            for stage in stages
        ]
    return problems


def _why_nothing(tally: Tally, repeated: int) -> str | None:
    """Why a source has no documents; None if it has some."""
    filtered, rejected = sum(tally.filtered.values()), sum(tally.rejected.values())
    if not tally.records:
        return "its input holds no records"
    if filtered + rejected == tally.records:
        kinds = ", ".join(f"{kind} {n}" for kind, n in (tally.filtered + tally.rejected).most_common(3))
        return f"all of its {tally.records} records are filtered or rejected ({kinds})"
    if filtered + rejected + repeated == tally.records:
        return f"all of its {repeated} documents repeat documents of datasets before it"
    return None


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
            reasons += _layout_hint(tally)
            lines.append(
                f"dataset {name!r}: {rejected} of {tally.records} records rejected ({rejected / tally.records:.1%}, "
                f"max_rejects is {limit:.1%}): {reasons}"
            )
    if lines:
        lines.append(
            "the records stand in rejected/ with their reasons; mend them or the template, or raise max_rejects"
        )
        raise BeamPrepError("\n".join(lines))


def _layout_hint(tally: Tally) -> str:
    """What a source is likely to hold of which hardly a line is a record."""
    if 2 * (tally.rejected["invalid_json"] + tally.rejected["not_an_object"]) <= tally.records:
        return ""
    return (
        "; every line must be one JSON object: a JSON array or records over several lines become that with "
        "`jq -c '.[]' FILE` or `jq -c . FILE`"
    )


def _why_empty(output: Output, names: Sequence[str], tallies: Sequence[Tally], documents: Sequence[int]) -> str:
    parts = []
    for name, tally, count, epochs in zip(names, tallies, documents, output.epochs, strict=True):
        filtered, rejected = sum(tally.filtered.values()), sum(tally.rejected.values())
        rate = "by weight" if epochs is None else f"at {epochs:g} epochs"
        parts.append(
            f"{name}: {tally.records} records, {rejected} rejected, {filtered} filtered, {count} documents {rate}"
        )
    checks = "the inputs, filters, splits and epochs"
    if output.total_tokens is not None or output.max_epochs < 1:
        checks += ", and whether total_tokens or max_epochs is so low that no document is taken"
    return f"output {output.name!r} has no documents ({'; '.join(parts)}); check {checks}"
