"""Output estimate: what an output will be: packed copy by copy where all is known, else by lengths and rates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from beam_prep import dedup, mixture
from beam_prep.balance import Plan, PlannedOutput
from beam_prep.blocks import PLACED, Block, load_origins, make_blocks, split_key
from beam_prep.buckets import PACKERS, PackedShard, pack_bucket, shard_spans
from beam_prep.carrier import load
from beam_prep.config import Config
from beam_prep.mix import SHARE_BITS, copies
from beam_prep.outputs import Output, member
from beam_prep.place import LAST_BUCKET, place_run
from beam_prep.runs import entry_ids
from beam_prep.sampled_source import SCRATCH, SampledSource

_MOST_PACKED = 200_000
"""Documents that the fill of a packing is tried on."""


class SourceShare(NamedTuple):
    """What a source contributes to an output."""

    asked: float | None
    """Share that its weight asks for; None for a source with `epochs`."""
    asked_epochs: float | None
    reachable: float
    """Share of the output's tokens that it will have; where the wish is impossible, the most that it could have."""
    tokens: int
    """Of all copies, those that `tail: drop` leaves out not counted where the figures are exact."""
    epochs: float
    """How often its documents are seen on average."""
    copies: int


class OutputEstimate(NamedTuple):
    """An output as it will be."""

    output: Output
    shares: tuple[SourceShare, ...]
    """By source."""
    tokens: int
    tokens_error: float
    """Relative, as of a source."""
    sequences: int
    shards: int
    padding: int
    dropped_tokens: int
    cut_share: float
    """Share of the copies that end in another sequence than they began in."""
    spans: int
    """Rows of the documents' sidecars."""


def nothing_left(made: OutputEstimate) -> str:
    """As `finalize` says it."""
    return (
        f"output {made.output.name!r}: its {made.dropped_tokens:,} tokens fill no sequence of "
        f"{made.output.context_length:,}, and `tail: drop` leaves no sequence; use `tail: pad` or a shorter "
        "context_length"
    )


# --- exact: through Place and Pack ------------------------------------------------------------------------------------


def packed_outputs(
    plan: Plan, sampled: Sequence[SampledSource], duplicates: dict[str, bytes], config: Config, names: Sequence[str]
) -> list[OutputEstimate]:
    """Places and packs every copy, as the run does.

    Args:
      sampled: complete sources.
      duplicates: `dedup.DUPLICATE` rows by the name of their run.
      names: of the sources.
    """
    blocks: dict[tuple[int, int], list[Block]] = defaultdict(list)
    for source in sampled:
        if source.run.documents:
            rows = [duplicates[source.run.name]] if source.run.name in duplicates else []
            placed, _ = place_run(source.run, rows, plan, config.seed, config.dedup == "exact")
            for key, block in make_blocks([placed], plan, SCRATCH):
                blocks[split_key(key)].append(block)
    made = []
    for number, planned in enumerate(plan.outputs):
        output = planned.output
        last_bucket = planned.buckets - 1
        last = blocks[number, last_bucket]
        shards = []
        for bucket in range(last_bucket):
            if own := blocks[number, bucket]:
                shard, rest = pack_bucket(
                    number, bucket, own, output.context_length, False, config.tail, SCRATCH, output.packing
                )
                shards.append(shard)
                last = last + rest
        if last:
            shards.append(
                pack_bucket(
                    number, LAST_BUCKET, last, output.context_length, True, config.tail, SCRATCH, output.packing
                )[0]
            )
        counted = [_count_shard(shard, len(names)) for shard in shards]
        tokens = sum((c.tokens for c in counted), np.zeros(len(names), np.int64))
        begun = sum((c.copies for c in counted), np.zeros(len(names), np.int64))
        total, sequences = int(tokens.sum()), sum(shard.sequences for shard in shards)
        shares = tuple(
            SourceShare(
                planned.shares[s].asked,
                output.epochs[s],
                int(tokens[s]) / total if total else 0.0,
                int(tokens[s]),
                _epochs(planned, s, int(tokens[s]), int(begun[s])),
                int(begun[s]),
            )
            for s in range(len(names))
        )
        cut, all_copies = sum(c.cut for c in counted), int(begun.sum())
        made.append(
            OutputEstimate(
                output,
                shares,
                total,
                0.0,
                sequences,
                planned.buckets,
                sequences * output.context_length - total,
                sum(shard.dropped_tokens for shard in shards),
                cut / all_copies if all_copies else 0.0,
                sum(c.spans for c in counted),
            )
        )
    return made


def _epochs(planned: PlannedOutput, source: int, tokens: int, copies: float) -> float:
    """How often a source is seen: by its documents where `epochs` decide, else by its tokens, as in the manifest."""
    by_documents = planned.shares[source].asked is None
    seen, there = (copies, planned.documents[source]) if by_documents else (tokens, planned.source_tokens[source])
    return seen / there if there else 0.0


class _Counted(NamedTuple):
    """What a shard's record says of its content."""

    tokens: np.ndarray
    """int64[sources]."""
    copies: np.ndarray
    """int64[sources]: copies that begin here."""
    cut: int
    spans: int


def _count_shard(shard: PackedShard, sources: int) -> _Counted:
    spans = shard_spans(shard)
    rows = np.frombuffer(load(shard.rows), PLACED)
    sources_of = np.array([origin.source for origin in load_origins(shard.origins)], np.int64)
    owner = sources_of[rows["origin"]][spans["row"]]
    begins = (spans["position"] == 0) & (rows["position"][spans["row"]] == 0)
    whole = spans["length"] == rows["tokens"][spans["row"]]
    tokens = np.bincount(owner, weights=spans["length"], minlength=sources).astype(np.int64)
    begun = np.bincount(owner[begins], minlength=sources)
    return _Counted(tokens, begun, int((begins & ~whole).sum()), len(spans))


# --- estimated: from lengths and rates --------------------------------------------------------------------------------


def expected_output(
    plan: Plan, number: int, sampled: Sequence[SampledSource], kept: Sequence[np.ndarray], config: Config
) -> OutputEstimate:
    """Output `number` as the lengths and the rates of the documents that are left (`kept`: `ENTRY`) let expect it."""
    planned = plan.outputs[number]
    output, length = planned.output, planned.output.context_length
    shares, weights, lengths = [], [], []
    for index, (source, entries) in enumerate(zip(sampled, kept, strict=True)):
        own = entries[member(output, index, entries, entry_ids(entries))]
        share = planned.shares[index]
        rate = share.rate.whole + share.rate.cut / 2**SHARE_BITS
        lengths.append(own["tokens"].astype(np.int64))
        weights.append(np.full(len(own), source.factor * rate))
        seen = len(own) * source.factor * rate
        if source.complete:
            seen = int(copies(entry_ids(own), config.seed, share.rate).sum())
        shares.append(
            SourceShare(
                share.asked,
                output.epochs[index],
                share.tokens / planned.tokens,
                share.tokens,
                _epochs(planned, index, share.tokens, seen) if source.complete or share.asked is not None else rate,
                round(seen),
            )
        )
    document, weight = np.concatenate(lengths), np.concatenate(weights)
    cut, fill = expected_cut(document, length, output.packing), 1.0
    if output.packing != "concat":
        fill = _fill(document[weight > 0], length, output.packing)
    sequences = math.ceil(planned.tokens / length / fill)
    if config.tail == "drop" and output.packing == "concat":
        sequences = planned.tokens // length
    written = min(planned.tokens, sequences * length)
    written_copies = float(weight.sum())
    share_cut = float((cut * weight).sum() / written_copies) if written_copies else 0.0
    pieces = written_copies + sequences
    if output.packing != "concat":
        pieces = float((weight * np.ceil(document / length)).sum())
    return OutputEstimate(
        output,
        tuple(shares),
        planned.tokens,
        _output_error(output, shares, sampled),
        sequences,
        planned.buckets,
        sequences * length - written,
        planned.tokens - written,
        share_cut,
        round(pieces),
    )


def expected_cut(lengths: np.ndarray, context_length: int, packing: str) -> np.ndarray:
    """float64[n]: the chance that a document of so many tokens ends in another sequence than it begins in."""
    if packing == "concat":  # a document begins anywhere in a sequence
        return np.minimum(1.0, (lengths - 1) / context_length)
    return (lengths > context_length).astype(np.float64)


def _fill(lengths: np.ndarray, context_length: int, packing: str) -> float:
    """Share of the positions that hold tokens; more documents than these can only fill better."""
    packed = PACKERS[packing](lengths[:_MOST_PACKED], context_length)
    filled = int(packed.spans["length"].sum(dtype=np.int64))
    return filled / (packed.sequences * context_length) if packed.sequences else 1.0


def _output_error(output: Output, shares: Sequence[SourceShare], sampled: Sequence[SampledSource]) -> float:
    """Relative error of an output's tokens.

    Weighted sources follow the budget, which is certain, or else the one that sets the total.
    """
    total = sum(share.tokens for share in shares)
    if not total:
        return 0.0
    fixed = [
        share.tokens * source.tokens_error
        for share, source in zip(shares, sampled, strict=True)
        if share.asked is None and share.tokens
    ]
    weighted = [i for i, share in enumerate(shares) if share.asked is not None and share.tokens]
    bound = 0.0
    if weighted and output.total_tokens is None:
        limit = max(weighted, key=lambda i: shares[i].epochs)
        bound = sum(shares[i].tokens for i in weighted) * sampled[limit].tokens_error
    return math.hypot(bound, *fixed) / total


def unreachable(number: int, output: Output, names: Sequence[str], counts: dedup.Counts) -> OutputEstimate:
    """The shares of an output of a run that would fail: what is asked, and the most that is there."""
    _, available, fixed = (counts.cells[number, :, column].tolist() for column in range(3))
    supply = mixture.Supply(output, available, sum(fixed))
    total = max(1.0, supply.rest + supply.fixed if supply.shares else supply.fixed)
    shares = []
    for s in range(len(names)):
        wanted = max(0.0, supply.rest) * supply.shares[s] if s in supply.shares else float(fixed[s])
        tokens = round(min(wanted, output.max_epochs * available[s]) if s in supply.shares else wanted)
        asked = wanted / total if s in supply.shares else None
        epochs = tokens / available[s] if available[s] else 0.0
        shares.append(SourceShare(asked, output.epochs[s], tokens / total, tokens, epochs, 0))
    return OutputEstimate(output, tuple(shares), sum(s.tokens for s in shares), 0.0, 0, 0, 0, 0, 0.0, 0)
