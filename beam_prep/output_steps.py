"""Output steps: the PTransforms and DoFns from tokenized documents to finished outputs. They wire, and count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from beam_prep import (
    balance,
    blocks,
    buckets,
    dedup,
    finalize,
    ledger,
    place,
    resume,
    seen,
    storage,
)
from beam_prep.job import Job
from beam_prep.runs import Run
from beam_prep.shards import ShardRecord, give_back, write_shard
from beam_prep.steps import SHUFFLED, Step, guarded


class Sidecars(Step):
    """→ the sidecars of the output that a run adds to, found in the graph as the inputs are."""

    @guarded
    def process(self, _: Any) -> Iterator[str]:
        """Yields paths relative to the output."""
        yield from seen.sidecars(self._job.output, self._job.base)


class Seen(Step):
    """Sidecar → (key range, slice) of the documents that are there already."""

    @guarded
    def process(self, path: str) -> Iterator[tuple[int, dedup.RunSlice]]:
        """Yields a slice for every range."""
        job = self._job
        yield from seen.slice_sidecar(job.output, path, job.config.seed, job.carrier, job.key_ranges)


class Deduplicate(Step):
    """(key range, slices) → duplicates by run, and counts."""

    COUNTS = "counts"

    @guarded
    def process(self, element: tuple[int, Iterable[dedup.RunSlice]]) -> Iterator[Any]:
        """Yields (run, Duplicates), and Counts on the side."""
        job = self._job
        found, counts = dedup.deduplicate(
            [dedup.RunSlice(*s) for s in element[1]],
            job.outputs,
            len(job.sources),
            job.config.seed,
            job.config.dedup == "exact",
        )
        self._progress.add(ranges=1)
        yield TaggedOutput(self.COUNTS, counts)
        for duplicates in found:
            yield duplicates.run, duplicates.rows


class SumCounts(beam.CombineFn):
    """Counts of key ranges → their sum. A combiner, so that engines add them up where they arise."""

    _MOST_PARTS = 4

    def __init__(self, job: Job):
        self._shape = len(job.outputs), len(job.sources)

    def create_accumulator(self) -> list[dedup.Counts]:
        """Nothing yet."""
        return []

    def add_input(self, parts: list[dedup.Counts], counts: dedup.Counts) -> list[dedup.Counts]:
        """Keeps counts, and adds them up when there are many."""
        parts.append(dedup.Counts(*counts))
        return parts if len(parts) < self._MOST_PARTS else self.compact(parts)

    def merge_accumulators(self, accumulators: Iterable[list[dedup.Counts]]) -> list[dedup.Counts]:
        """Joins."""
        merged: list[dedup.Counts] = []
        for parts in accumulators:
            merged = self.compact([*merged, *parts])
        return merged

    def compact(self, parts: list[dedup.Counts]) -> list[dedup.Counts]:
        """Adds up."""
        return [dedup.add_counts(parts)] if parts else parts

    def extract_output(self, parts: list[dedup.Counts]) -> dedup.Counts:
        """The sum."""
        return dedup.add_counts([dedup.no_counts(*self._shape), *parts])


class Balance(Step):
    """All counts → the plan. Waits for the dead letters, so that they are on disk when a run fails for them."""

    @guarded
    def process(
        self, _: Any, counts: dedup.Counts, tallies: Iterable[tuple[int, dict]], rejected_files: Iterable[str]
    ) -> Iterator[balance.Plan]:
        """Yields one plan."""
        job = self._job
        by_source = [ledger.Tally() for _ in job.sources]
        for source, tally in tallies:
            by_source[source].add(ledger.Tally.from_dict(tally))
        list(rejected_files)
        limits = [source.max_rejects for source in job.sources]
        plan = balance.balance(
            job.outputs, job.names, limits, dedup.Counts(*counts), by_source, may_be_empty=job.base is not None
        )
        self._progress.plan(sum(o.tokens for o in plan.outputs))
        resume.settle(job.carrier)
        from beam_prep.report import load_ahead  # not before the work: it imports half a second's worth

        load_ahead()
        yield plan


class Place(Step):
    """(run name, run and its duplicates) → blocks by bucket; an output's last bucket goes its own way."""

    BLOCKS, LAST, TALLIES = "blocks", "last", "tallies"

    def start_bundle(self) -> None:
        """Begins a group of runs; see `blocks`."""
        self._group: list[blocks.PlacedRun] = []
        self._plan: balance.Plan | None = None

    @guarded
    def process(self, element: tuple[str, dict[str, Iterable[Any]]], plan: balance.Plan) -> Iterator[Any]:
        """Yields (bucket key, block) when a group is full."""
        job, self._plan = self._job, plan
        for run in element[1]["runs"]:
            duplicates = list(element[1]["duplicates"])
            placed, tally = place.place_run(Run(*run), duplicates, plan, job.config.seed, job.config.dedup == "exact")
            self._progress.add(placed=sum(tally.tokens))
            yield TaggedOutput(self.TALLIES, tally)
            self._group.append(placed)
            # Elements of the engine's shuffle must stay small.
            limit = (job.run_bytes or 2 * blocks.GROUP_BYTES) // 2 if job.carrier.is_files else 0
            if sum(p.nbytes for p in self._group) >= limit:
                yield from self._blocks()

    @guarded
    def finish_bundle(self) -> Iterator[Any]:
        """Yields the rest."""
        if self._group:
            for value in self._blocks():
                yield TaggedOutput(value.tag, WindowedValue(value.value, 0, [GlobalWindow()]))

    def _blocks(self) -> Iterator[TaggedOutput]:
        assert self._plan is not None
        group, self._group = self._group, []
        for key, block in blocks.make_blocks(group, self._plan, self._job.carrier):
            SHUFFLED.inc(blocks.carried(block))
            output, bucket = blocks.split_key(key)
            if bucket == self._plan.outputs[output].buckets - 1:
                yield TaggedOutput(self.LAST, (blocks.bucket_key(output, place.LAST_BUCKET), block))
            else:
                yield TaggedOutput(self.BLOCKS, (key, block))


class Pack(Step):
    """(bucket key, blocks) → the packed shard, and its rest.

    Behind a GroupByKey, since nothing may be packed before everything is there. Bag state with a timer at the end of
    the window says the same, but an engine must then hold a bucket as state, and Prism 2.77 loses large elements of it.
    """

    SHARDS, REMAINDERS = "shards", "remainders"

    def __init__(self, job: Job, last: bool):
        super().__init__(job)
        self._last = last

    @guarded
    def process(self, element: tuple[int, Iterable[blocks.Block]]) -> Iterator[Any]:
        """Yields one shard, and (bucket key, block) of what is left for the output's last bucket."""
        key, found = element
        output, bucket = blocks.split_key(key)
        job = self._job
        with self._progress.busy("pack"):
            shard, remainder = buckets.pack_bucket(
                output,
                bucket,
                [blocks.Block(*block) for block in found],
                job.outputs[output].context_length,
                self._last,
                job.config.tail,
                job.carrier,
                job.outputs[output].packing,
            )
        yield TaggedOutput(self.SHARDS, shard)
        for block in remainder:
            SHUFFLED.inc(blocks.carried(block))
            yield TaggedOutput(self.REMAINDERS, (blocks.bucket_key(output, place.LAST_BUCKET), block))


class Write(Step):
    """Packed shard → files and their record."""

    _sequences = Metrics.counter("write", "sequences")
    _bytes = Metrics.counter("write", "bytes")

    @guarded
    def process(self, shard: buckets.PackedShard, plan: balance.Plan) -> Iterator[ShardRecord]:
        """Yields the record."""
        job = self._job
        shard = buckets.PackedShard(*shard)
        planned = plan.outputs[shard.output]
        if shard.bucket == place.LAST_BUCKET:
            shard = shard._replace(bucket=planned.buckets - 1)
        folder = storage.join(job.output, planned.output.name)
        record = found = resume.finished_shard(job.carrier, shard.output, shard.bucket, folder)
        if record is None:
            length, eod = planned.output.context_length, job.tokenizer.eod_token_id
            with self._progress.busy("write"):
                record = write_shard(folder, shard, planned.buckets, length, eod, job.names, job.label)
            resume.keep_shard(job.carrier, record, folder)
        if job.carrier.is_files:
            give_back(shard)
        self._sequences.inc(record.sequences)
        self._bytes.inc(record.bytes)
        tokens = sum(record.source_tokens) + record.dropped_tokens
        self._progress.add(written=tokens, kept=tokens if found else 0)
        yield record


class Finalize(Step):
    """Everything that was written → index, manifest, `_SUCCESS`. Runs on an empty output too, to refuse it."""

    def __init__(self, job: Job):
        super().__init__(job)
        self._job = job  # the manifest says all of it

    @guarded
    def process(
        self,
        _: Any,
        plan: balance.Plan,
        placed: Iterable[place.PlacedTally],
        shards: Iterable[ShardRecord],
        rejected_files: Iterable[str],
    ) -> Iterator[str]:
        """Yields the fingerprint."""
        manifest = finalize.finalize(
            self._job,
            plan,
            [place.PlacedTally(*p) for p in placed],
            [ShardRecord(*s) for s in shards],
            list(rejected_files),
        )
        yield manifest["fingerprint"]
