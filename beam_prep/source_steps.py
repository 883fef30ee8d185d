"""Source steps: the PTransforms and DoFns from input files to tokenized documents. They wire, and count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from beam_prep import carrier as carriers
from beam_prep import (
    inputs,
    mix,
    rejected,
    resume,
    sources,
    tokenization,
)
from beam_prep.job import Job
from beam_prep.reading import RecordBatch, read_unit
from beam_prep.runs import Run
from beam_prep.selection import select, selection
from beam_prep.steps import SHUFFLED, CountingStep, Step, guarded
from beam_prep.templates import Template, compile_template
from beam_prep.transform import DocumentBatch, Transformer, compile_transformer, transform_batch


class Match(CountingStep):
    """Source number → its files, as the launcher listed them; so that no list of files is ever part of the graph."""

    def __init__(self, job: Job):
        super().__init__(job.carrier)
        self._output, self._label, self._names = job.output, job.label, job.names

    @guarded
    def process(self, source: int) -> Iterator[tuple[int, list[sources.InputFile]]]:
        """Yields (source, files)."""
        listed = inputs.read_inputs(self._output, inputs.inputs_path(self._label), only=self._names[source])
        yield source, [file for _, file in listed]


class Split(Step):
    """(source, files) → units."""

    @guarded
    def process(self, element: tuple[int, list[sources.InputFile]]) -> Iterator[sources.Unit]:
        """Yields the units of a source."""
        yield from sources.split_source(*element)


class Read(CountingStep):
    """Unit → record batches."""

    _bytes = Metrics.counter("read", "bytes")
    _records = Metrics.counter("read", "lines")

    @guarded
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


class Transform(CountingStep):
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

    @guarded
    def process(self, batch: RecordBatch) -> Iterator[DocumentBatch]:
        """Yields one document batch."""
        with self._progress.busy("transform"):
            documents = transform_batch(batch, self._transformer)
        self._documents.inc(len(documents.documents))
        self._rejects.inc(len(documents.rejects))
        self._filtered.inc(sum(documents.tally.filtered.values()))
        self._progress.add(documents=len(documents.documents))
        yield documents


class Mix(CountingStep):
    """Gives documents their identity, from which order, split and copies follow."""

    def __init__(self, job: Job, source: int):
        super().__init__(job.carrier)
        self._selection, self._seed = selection(job.outputs, source, job.limits[source]), job.config.seed

    @guarded
    def process(self, batch: DocumentBatch) -> Iterator[DocumentBatch]:
        """Yields the batch with its ids, and without the texts that no output will hold."""
        with self._progress.busy("mix"):
            ids = mix.document_ids(batch.documents)
            mixed = select(batch._replace(ids=ids), self._selection, self._seed)
        yield mixed


class Tokenize(Step):
    """Document batches → runs. What was read, and what was rejected, travels with the run that it belongs to."""

    RUNS, REJECTS, TALLIES = "runs", "rejects", "tallies"
    _tokens = Metrics.counter("tokenize", "tokens")
    _count = Metrics.counter("tokenize", "documents")

    def start_bundle(self) -> None:
        """Starts the threads at the first batch."""
        self._tokenization: tokenization.Tokenization | None = None

    @guarded
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

    @guarded
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
        SHUFFLED.inc(carriers.carried(run.tokens, run.files, *(run.entries, run.rejects) * 2))
        self._count.inc(run.documents)
        self._progress.add(tokens=tokens)
        yield TaggedOutput(self.TALLIES, (run.source, run.tally))
        if carriers.length(run.rejects):
            yield TaggedOutput(self.REJECTS, (run.source, rejected.RejectBlock(run.name, run.rejects)))
        yield TaggedOutput(self.RUNS, (run.name, run))


class WriteRejected(Step):
    """(source, blocks) → the dead-letter file's path."""

    @guarded
    def process(self, element: tuple[int, Iterable[rejected.RejectBlock]]) -> Iterator[str]:
        """Yields a path relative to the output."""
        source, blocks = element
        found = (rejected.RejectBlock(*block) for block in blocks)
        yield rejected.write_rejected(self._job.output, self._job.names[source], found, self._job.label)
