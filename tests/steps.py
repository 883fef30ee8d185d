"""The steps between Tokenize and Finalize, run by hand on toy tokens, and a reference that does the same naively.

A toy document's tokens are its characters' code points, so that a shard can be read by eye.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beam_prep import balance, dedup, place
from beam_prep.blocks import Block, make_blocks, split_key
from beam_prep.buckets import pack_bucket
from beam_prep.carrier import Carrier
from beam_prep.ledger import Tally
from beam_prep.mix import Rate, copies, document_ids, order_keys, rate_of, split_points
from beam_prep.outputs import Output
from beam_prep.runs import Run, RunBuilder, TokenLimits
from beam_prep.shards import ShardRecord, write_shard
from beam_prep.transform import DocumentBatch

EOD = 0x110000
NAMES = ("first", "second", "third")


class Doc(NamedTuple):
    """A toy document; the order of the fields is the order of precedence."""

    source: int
    file: int
    offset: int
    text: str


def toy_tokens(text: str) -> list[int]:
    return [*map(ord, text), EOD]


def make_run(carrier: Carrier, name: str, docs: Sequence[Doc], seed: int = 0) -> Run:
    """A run of documents of one source."""
    source = docs[0].source
    builder = RunBuilder(name, source, seed, {}, EOD.to_bytes(4, "little"))
    for file in sorted({doc.file for doc in docs}):
        own = [doc for doc in docs if doc.file == file]
        texts = [doc.text for doc in own]
        ids = "".join(texts).encode("utf-32-le")
        bounds = np.cumsum([0, *map(len, texts)]).astype(np.uint64)
        batch = DocumentBatch(
            source,
            name,
            False,
            file,
            f"{NAMES[source]}/{file}.jsonl",
            list(texts),
            np.array([doc.offset for doc in own], np.uint64),
            np.array([len(text) for text in texts], np.uint32),
            Tally(records=len(own), rendered=len(own)),
            [],
            document_ids(list(texts)),
        )
        builder.add(batch, TokenLimits(0, 2**31), ids, bounds)
    return builder.write(carrier)


class Deduplicated(NamedTuple):
    """What `deduplicate` says about all key ranges."""

    by_run: dict[str, list[bytes]]
    counts: dedup.Counts


def deduplicate_runs(
    runs: Sequence[Run], outputs: Sequence[Output], drop: bool = True, seed: int = 0, ranges: int = dedup.KEY_RANGES
) -> Deduplicated:
    slices_of: dict[int, list[dedup.RunSlice]] = defaultdict(list)
    for run in runs:
        for number, part in dedup.slice_run(run, ranges):
            slices_of[number].append(part)
    by_run: dict[str, list[bytes]] = defaultdict(list)
    counts = [dedup.no_counts(len(outputs), len(NAMES))]
    for slices in slices_of.values():
        found, count = dedup.deduplicate(slices, outputs, len(NAMES), seed, drop)
        counts.append(count)
        for duplicates in found:
            by_run[duplicates.run].append(duplicates.rows)
    return Deduplicated(by_run, dedup.add_counts(counts))


class Written(NamedTuple):
    """What came out of the steps."""

    plan: balance.Plan
    placed: list[place.PlacedTally]
    records: list[ShardRecord]
    streams: dict[str, list[list[int]]]
    """By output: the tokens of each shard that has any."""


def write_outputs(
    runs: Sequence[Run],
    outputs: Sequence[Output],
    carrier: Carrier,
    folder: Path,
    drop: bool = True,
    seed: int = 0,
    tail: str = "pad",
) -> Written:
    """From runs to shards on disk, in the order and with the wiring of the graph."""
    found = deduplicate_runs(runs, outputs, drop, seed)
    tallies = [Tally() for _ in NAMES]
    for run in runs:
        tallies[run.source].add(Tally.from_dict(run.tally))
    plan = balance.balance(outputs, NAMES, [1.0] * len(NAMES), found.counts, tallies)
    blocks: dict[tuple[int, int], list[Block]] = defaultdict(list)
    placed, groups = [], [[], []]
    for number, run in enumerate(runs):
        rows, tally = place.place_run(run, found.by_run.get(run.name, []), plan, seed, drop)
        placed.append(tally)
        groups[number % 2].append(rows)
    for group in filter(None, groups):
        for key, block in make_blocks(group, plan, carrier):
            blocks[split_key(key)].append(block)
    records, streams = [], {}
    for number, planned in enumerate(plan.outputs):
        length, last = planned.output.context_length, planned.buckets - 1
        shards = []
        rest: list[Block] = []
        for bucket in range(last):
            if own := blocks.get((number, bucket)):
                packing = planned.output.packing
                shard, remainder = pack_bucket(number, bucket, own, length, False, tail, carrier, packing)
                shards.append(shard)
                rest += remainder
        if own := [*blocks.get((number, last), []), *rest]:
            shards.append(pack_bucket(number, last, own, length, True, tail, carrier, planned.output.packing)[0])
        target = folder / planned.output.name
        written = [write_shard(str(target), shard, planned.buckets, length, EOD, NAMES) for shard in shards]
        records += written
        streams[planned.output.name] = [np.fromfile(target / r.path, "<u4").tolist() for r in written]
    return Written(plan, placed, records, streams)


class NaiveOutput(NamedTuple):
    """What an output should hold."""

    shards: list[list[int]]
    documents: int
    tokens: int


def naive_kept(docs: Sequence[Doc]) -> list[Doc]:
    """The documents that exact deduplication keeps: the first of each text."""
    kept: dict[str, Doc] = {}
    for doc in sorted(docs):
        kept.setdefault(doc.text, doc)
    return sorted(kept.values())


def naive_output(
    docs: Sequence[Doc], output: Output, drop: bool, seed: int, tail: str, rates: Sequence[Rate] | None = None
) -> NaiveOutput:
    """The shards of an output, a document at a time. `rates`: where weights decide."""
    rank: dict[str, int] = defaultdict(int)
    stream = []
    documents = 0
    for doc in naive_kept(docs) if drop else sorted(docs):
        ids = document_ids([doc.text])
        number = rank[doc.text]
        rank[doc.text] += 1
        low, high = output.split
        rate = rate_of(output.epochs[doc.source] or 0) if rates is None else rates[doc.source]
        if not low <= split_points(ids)[0] < high:
            continue
        times = int(copies(ids, seed, rate)[0])
        documents += times > 0
        for copy in range(times):
            label = number << 32 | copy
            stream.append((int(order_keys(ids, seed, label)[0]), *ids[0].tolist(), label, toy_tokens(doc.text)))
    stream.sort()
    tokens = sum(len(item[-1]) for item in stream)
    buckets = balance.bucket_count(tokens)
    edges = balance.bucket_edges(buckets).tolist()
    length = output.context_length
    shards, rest = [], []
    for bucket in range(buckets):
        own = [token for item in stream if edges[bucket] <= item[0] < edges[bucket + 1] for token in item[-1]]
        if bucket < buckets - 1:
            full = len(own) // length * length
            rest += own[full:]
            own = own[:full]
        else:
            own += rest
            over = len(own) % length
            if over and tail == "pad":
                own += [EOD] * (length - over)
            elif over:
                own = own[:-over]
        shards.append(own)
    return NaiveOutput(shards, documents, tokens)
