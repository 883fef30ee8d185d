"""The PTransforms and DoFns: they wire the plain functions of the other modules into a graph, and count."""

from __future__ import annotations

import functools
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
    inputs,
    ledger,
    mix,
    place,
    rejected,
    resume,
    seen,
    sources,
    storage,
    tokenization,
)
from beam_prep import carrier as carriers
from beam_prep.errors import BeamPrepError, for_runner
from beam_prep.job import Job
from beam_prep.process_setup import tune_interpreter
from beam_prep.progress import Progress
from beam_prep.reading import RecordBatch, read_unit
from beam_prep.runs import Run
from beam_prep.selection import select, selection
from beam_prep.shards import ShardRecord, give_back, write_shard
from beam_prep.templates import Template, compile_template
from beam_prep.transform import DocumentBatch, Transformer, compile_transformer, transform_batch


class _Counting(beam.DoFn):
    """A DoFn of the job; its methods are `_guarded`. The steps of a single source hold no more than they need."""

    def __init__(self, carrier: carriers.Carrier):
        self._carrier = carrier

    def setup(self) -> None:
        """Opens what a worker needs."""
        tune_interpreter()
        self._progress = Progress(self._carrier.work)


class _DoFn(_Counting):
    """A DoFn that needs the job, though not its templates."""

    def __init__(self, job: Job):
        super().__init__(job.carrier)
        self._job = job.core()


def _guarded(method):
    """Marks user errors so that they are found again in whatever the runner makes of them."""

    @functools.wraps(method)
    def generator(self, *args, **kwargs):
        try:
            yield from method(self, *args, **kwargs) or ()
        except BeamPrepError as error:
            raise for_runner(error) from error

    return generator


class Match(_Counting):
    """Source number → its files, as the launcher listed them; so that no list of files is ever part of the graph."""

    def __init__(self, job: Job):
        super().__init__(job.carrier)
        self._output, self._label, self._names = job.output, job.label, job.names

    @_guarded
    def process(self, source: int) -> Iterator[tuple[int, list[sources.InputFile]]]:
        """Yields (source, files)."""
        listed = inputs.read_inputs(self._output, inputs.inputs_path(self._label), only=self._names[source])
        yield source, [file for _, file in listed]


class Split(_DoFn):
    """(source, files) → units."""

    @_guarded
    def process(self, element: tuple[int, list[sources.InputFile]]) -> Iterator[sources.Unit]:
        """Yields the units of a source."""
        yield from sources.split_source(*element)


_SHUFFLED = Metrics.counter("shuffle", "bytes")
"""What an engine's shuffle carries for us; its own keys and frames come on top."""


class Read(_Counting):
    """Unit → record batches."""

    _bytes = Metrics.counter("read", "bytes")
    _records = Metrics.counter("read", "lines")

    @_guarded
    def process(self, unit: sources.Unit) -> Iterator[RecordBatch]:
        """Yields the batches of a unit, in order."""
        unit = sources.Unit(*unit)
        finished = resume.finished_runs(self._carrier, unit.source, unit.name)
        begin = sources.START
        if finished:
            begin = sources.Position(len(unit.spans), 0) if finished[-1].last else finished[-1].end
            done = sum(f.run.tally["bytes"] for f in finished), sum(f.run.tally["rendered"] for f in finished)
            self._progress.add(bytes=done[0], documents=done[1], found=done[0])
        for batch in self._progress.busy_making("read", read_unit(unit, begin, len(finished))):
            size = sum(map(len, batch.lines)) + len(batch.lines)
            self._bytes.inc(size)
            self._records.inc(len(batch.lines))
            self._progress.add(bytes=size)
            yield batch


class Transform(_Counting):
    """Record batch → document batch."""

    _documents = Metrics.counter("transform", "documents")
    _rejects = Metrics.counter("transform", "rejects")
    _filtered = Metrics.counter("transform", "filtered")

    def __init__(self, job: Job, source: int):
        super().__init__(job.carrier)
        template = job.sources[source].template
        self._template = template.model_dump_json(exclude_defaults=True, exclude={"example", "about"})
        self._seed = job.config.seed
        self._special = [token for token, _ in job.tokenizer.special_tokens]

    def setup(self) -> None:
        """Compiles the template, once a worker."""
        super().setup()
        template = Template.model_validate_json(self._template)
        own_code = template.function is not None or template.prepare is not None
        self._transformer: Transformer = compile_transformer(
            compile_template(template, self._special), template.filter, self._seed, own_code
        )

    @_guarded
    def process(self, batch: RecordBatch) -> Iterator[DocumentBatch]:
        """Yields one document batch."""
        with self._progress.busy("transform"):
            documents = transform_batch(batch, self._transformer)
        self._documents.inc(len(documents.documents))
        self._rejects.inc(len(documents.rejects))
        self._filtered.inc(sum(documents.tally.filtered.values()))
        self._progress.add(documents=len(documents.documents))
        yield documents


class Mix(_Counting):
    """Gives documents their identity, from which order, split and copies follow."""

    def __init__(self, job: Job, source: int):
        super().__init__(job.carrier)
        self._selection, self._seed = selection(job.outputs, source, job.limits[source]), job.config.seed

    @_guarded
    def process(self, batch: DocumentBatch) -> Iterator[DocumentBatch]:
        """Yields the batch with its ids, and without the texts that no output will hold."""
        with self._progress.busy("mix"):
            ids = mix.document_ids(batch.documents)
            mixed = select(batch._replace(ids=ids), self._selection, self._seed)
        yield mixed


class Tokenize(_DoFn):
    """Document batches → runs. What was read, and what was rejected, travels with the run that it belongs to."""

    RUNS, REJECTS, TALLIES = "runs", "rejects", "tallies"
    _tokens = Metrics.counter("tokenize", "tokens")
    _count = Metrics.counter("tokenize", "documents")

    def start_bundle(self) -> None:
        """Starts the threads at the first batch."""
        self._tokenization: tokenization.Tokenization | None = None

    @_guarded
    def process(self, batch: DocumentBatch) -> Iterator[Any]:
        """Yields what is complete by now."""
        if self._tokenization is None:
            job = self._job
            self._tokenization = tokenization.Tokenization(
                job.tokenizer,
                job.config.tokenizer_backend,
                job.carrier,
                job.config.seed,
                job.limits,
                job.encoders,
                job.run_bytes,
            )
        for run in self._tokenization.add(batch):
            yield from self._outputs(run)

    @_guarded
    def finish_bundle(self) -> Iterator[Any]:
        """Yields the rest."""
        if self._tokenization is None:
            return
        try:
            for run in self._tokenization.finish():
                for value in self._outputs(run):
                    yield TaggedOutput(value.tag, WindowedValue(value.value, 0, [GlobalWindow()]))
        finally:
            self._progress.add(tokenize=self._tokenization.busy_ns)
            self._tokenization.shutdown()
            self._tokenization = None

    def _outputs(self, run: Run) -> Iterator[TaggedOutput]:
        tokens = carriers.length(run.tokens) // 4
        self._tokens.inc(tokens)
        # The rows travel once more to be compared with all others, and rejects on a way of their own.
        _SHUFFLED.inc(carriers.carried(run.tokens, run.files, *(run.entries, run.rejects) * 2))
        self._count.inc(run.documents)
        self._progress.add(tokens=tokens)
        yield TaggedOutput(self.TALLIES, (run.source, run.tally))
        if carriers.length(run.rejects):
            yield TaggedOutput(self.REJECTS, (run.source, rejected.RejectBlock(run.name, run.rejects)))
        yield TaggedOutput(self.RUNS, (run.name, run))


class WriteRejected(_DoFn):
    """(source, blocks) → the dead-letter file's path."""

    @_guarded
    def process(self, element: tuple[int, Iterable[rejected.RejectBlock]]) -> Iterator[str]:
        """Yields a path relative to the output."""
        source, blocks = element
        found = (rejected.RejectBlock(*block) for block in blocks)
        yield rejected.write_rejected(self._job.output, self._job.names[source], found, self._job.label)


class Sidecars(_DoFn):
    """→ the sidecars of the output that a run adds to, found in the graph as the inputs are."""

    @_guarded
    def process(self, _: Any) -> Iterator[str]:
        """Yields paths relative to the output."""
        yield from seen.sidecars(self._job.output, self._job.base)


class Seen(_DoFn):
    """Sidecar → (key range, slice) of the documents that are there already."""

    @_guarded
    def process(self, path: str) -> Iterator[tuple[int, dedup.RunSlice]]:
        """Yields a slice for every range."""
        job = self._job
        yield from seen.slice_sidecar(job.output, path, job.config.seed, job.carrier, job.key_ranges)


class Deduplicate(_DoFn):
    """(key range, slices) → duplicates by run, and counts."""

    COUNTS = "counts"

    @_guarded
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


class Balance(_DoFn):
    """All counts → the plan. Waits for the dead letters, so that they are on disk when a run fails for them."""

    @_guarded
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


class Place(_DoFn):
    """(run name, run and its duplicates) → blocks by bucket; an output's last bucket goes its own way."""

    BLOCKS, LAST, TALLIES = "blocks", "last", "tallies"

    def start_bundle(self) -> None:
        """Begins a group of runs; see `blocks`."""
        self._group: list[blocks.PlacedRun] = []
        self._plan: balance.Plan | None = None

    @_guarded
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

    @_guarded
    def finish_bundle(self) -> Iterator[Any]:
        """Yields the rest."""
        if self._group:
            for value in self._blocks():
                yield TaggedOutput(value.tag, WindowedValue(value.value, 0, [GlobalWindow()]))

    def _blocks(self) -> Iterator[TaggedOutput]:
        assert self._plan is not None
        group, self._group = self._group, []
        for key, block in blocks.make_blocks(group, self._plan, self._job.carrier):
            _SHUFFLED.inc(blocks.carried(block))
            output, bucket = blocks.split_key(key)
            if bucket == self._plan.outputs[output].buckets - 1:
                yield TaggedOutput(self.LAST, (blocks.bucket_key(output, place.LAST_BUCKET), block))
            else:
                yield TaggedOutput(self.BLOCKS, (key, block))


class Pack(_DoFn):
    """(bucket key, blocks) → the packed shard, and its rest.

    Behind a GroupByKey, since nothing may be packed before everything is there. Bag state with a timer at the end of
    the window says the same, but an engine must then hold a bucket as state, and Prism 2.77 loses large elements of it.
    """

    SHARDS, REMAINDERS = "shards", "remainders"

    def __init__(self, job: Job, last: bool):
        super().__init__(job)
        self._last = last

    @_guarded
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
            _SHUFFLED.inc(blocks.carried(block))
            yield TaggedOutput(self.REMAINDERS, (blocks.bucket_key(output, place.LAST_BUCKET), block))


class Write(_DoFn):
    """Packed shard → files and their record."""

    _sequences = Metrics.counter("write", "sequences")
    _bytes = Metrics.counter("write", "bytes")

    @_guarded
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


class Finalize(_DoFn):
    """Everything that was written → index, manifest, `_SUCCESS`. Runs on an empty output too, to refuse it."""

    def __init__(self, job: Job):
        super().__init__(job)
        self._job = job  # the manifest says all of it

    @_guarded
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
