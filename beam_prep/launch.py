"""Launch: everything around the graph: what is checked before, which runner does the work, what is left after."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from beam_prep import arguments, fork_server, placeholders, storage
from beam_prep.config import Config, load_config
from beam_prep.dedup import key_ranges
from beam_prep.errors import BeamPrepError, ConfigError, from_runner
from beam_prep.increments import Grown, only_new, open_output, refuse_shares, require_same
from beam_prep.inputs import write_inputs
from beam_prep.job import Job, Source, make_job, recipe, resolve_sources
from beam_prep.layout import WORK_FOLDER
from beam_prep.lean_beam import import_beam
from beam_prep.machine import LOCAL_RUNNERS, Allotment, allot
from beam_prep.output_folder import AlreadyDone, Claim, NothingNew, claim, claim_increment, release, sweep_increments
from beam_prep.outputs import outputs_of
from beam_prep.parquet import is_parquet
from beam_prep.remote_files import use_options
from beam_prep.run_file import remember_call
from beam_prep.sources import InputFile, is_compressed, match_source, signature
from beam_prep.tokenizer import TokenizerSpec, load_ahead
from beam_prep.tokenizer import resolve as resolve_tokenizer


class RunOptions(NamedTuple):
    """How a run is carried out; nothing here changes the bytes that come out."""

    runner: str = "local"
    workers: int | None = None
    """Processes of the local runner; None for as many as suit."""
    carrier: str | None = None
    """files or engine; by default files on the local runner."""
    overwrite: bool = False
    fresh: bool = False
    """Whether an unfinished run is started over."""
    beam: tuple[str, ...] = ()
    """Options that are handed to Beam as they are."""
    memory: int | None = None
    """Bytes that all processes of the local runner may hold; None for as much as suits."""
    increment: bool = False
    """Whether the output grows by the files that it does not hold yet."""
    accept_changed: bool = False
    """Whether files that it holds may have changed or gone."""


class Prepared(NamedTuple):
    """A run that is ready to start."""

    job: Job
    options: RunOptions
    claim: Claim
    files: tuple[tuple[InputFile, ...], ...]
    """By source: what will be read."""
    input_bytes: int
    """Stored bytes of all inputs."""
    compressed_bytes: int = 0
    """Those of them that are compressed."""
    workers: int = 1
    """Processes of the local runner."""


def prepare(config: Config, options: RunOptions, base: Path | None = None) -> Prepared:
    """Checks everything that can be checked before the work starts.

    Args:
      base: folder of the configuration file, which its template files are relative to.

    Raises:
      ConfigError: the configuration cannot be carried out.
      BeamPrepError: the output cannot be written or holds something else.
      AlreadyDone: there is nothing to do; NothingNew, for an increment.
    """
    if options.accept_changed and not options.increment:
        raise ConfigError("--accept-changed-inputs is for --increment; give both")
    if options.increment and options.overwrite:
        raise ConfigError("--increment adds to what is there, --overwrite replaces it; give one of them")
    config = placeholders.fill(config, None)
    gc.disable()  # until the workers set it up: importing Beam would make it run for half a second
    local = options.runner in LOCAL_RUNNERS
    work = _work_folder(config.output) if (options.carrier or ("files" if local else "engine")) == "files" else None
    if work and not local:
        raise ConfigError("--carrier files needs the local runner: its workers share a disk")
    tokenizer = resolve_tokenizer(config.tokenizer, storage.join(config.output, WORK_FOLDER))
    sources = resolve_sources(config, tokenizer, base)
    names = [source.name for source in sources]
    grown = _open_grown(config, sources, tokenizer, work) if options.increment else None
    files: list[Sequence[InputFile]] = []
    problems = []
    for source in sources:
        try:
            files.append(match_source(source.name, source.patterns))
        except ConfigError as error:
            problems.append(error.message)
    if problems:
        raise ConfigError("\n".join(problems))
    if grown is not None:
        files = [*only_new(config.output, grown, names, files, options.accept_changed)]
    together = [file for own in files for file in own]
    total = sum(file.size for file in together)
    # Engines start a worker process for each core, and know what memory it has.
    own = allot(options.workers, options.memory, total) if local else Allotment(1, 1, 0, None)
    ranges = key_ranges(total + (grown.input_bytes if grown is not None else 0), work is not None)
    base = grown.base if grown is not None else None
    job = make_job(config, sources, tokenizer, signature(together), work, own.encoders, own.run_bytes, ranges, base)
    if grown is None:
        claimed = claim(job, options.overwrite, options.fresh)
    elif not together:
        sweep_increments(job, grown.manifest)
        raise NothingNew
    else:
        claimed = claim_increment(job, grown.manifest, options.fresh)
    compressed = sum(file.size for file in together if is_compressed(file.path) or is_parquet(file.path))
    return Prepared(job, options, claimed, tuple(map(tuple, files)), total, compressed, own.workers)


def _open_grown(
    config: Config, sources: tuple[Source, ...], tokenizer: TokenizerSpec, work: str | None
) -> Grown | None:
    """The output that an increment adds to, if there is one, and it is made in the same way."""
    outputs = outputs_of(config, [source.template.purpose for source in sources])
    refuse_shares(outputs)
    grown = open_output(config.output, work)
    if grown is not None:
        require_same(config.output, grown, recipe(config, sources, outputs, tokenizer), config)
    return grown


def _work_folder(output: str) -> str:
    if storage.is_local(output):
        return os.path.abspath(os.path.join(output, WORK_FOLDER))
    return os.path.join(tempfile.gettempdir(), "beam-prep", output.replace("://", "-").replace("/", "-"))


def run(prepared: Prepared) -> Any:
    """Runs the graph to its end; with `--template_location` it is only written there, for Dataflow to run.

    Returns:
      The runner's result, for its counters; None where nothing ran.

    Raises:
      BeamPrepError: the run failed; nothing in the output looks finished.
    """
    job, options = prepared.job, prepared.options
    workers = None
    try:
        if options.runner in LOCAL_RUNNERS:
            workers = _begin_loading(prepared)
        from pipelines.prepare import build

        if job.carrier.work:
            os.makedirs(job.carrier.work, exist_ok=True)
        storage.require_temporary_folder()
        write_inputs(job.output, job.label, job.names, prepared.files)
        pipeline, only_written = _pipeline(options, prepared.workers, workers)
        build(pipeline, job)
        result = pipeline.run()
        if only_written:  # there is no job yet to wait for
            return None
        state = result.wait_until_finish()
        if state not in (None, "DONE"):
            raise BeamPrepError(f"the runner ended with state {state}; its log says why")
        with contextlib.suppress(OSError, BeamPrepError):  # the lock goes with it, and is still held
            release(job)
        return result
    except BaseException as error:
        known = from_runner(error)
        if known is not None:
            raise known from None
        if options.runner not in LOCAL_RUNNERS and isinstance(error, RuntimeError):  # how engines report a failed job
            raise BeamPrepError(
                f"{options.runner} ended the job: {error}; nothing is marked as finished, and the same command starts "
                f"it again"
            ) from error
        raise
    finally:
        if workers is not None:
            workers.close()
        if prepared.claim.lock is not None:
            prepared.claim.lock.release()


def _begin_loading(prepared: Prepared) -> fork_server.ForkServer | None:
    """Loads what local workers need while the graph is built; returns what several of them come from."""
    job, server = prepared.job, None
    if prepared.workers <= 1:
        load_ahead(job.tokenizer, job.config.tokenizer_backend)
    elif fork_server.POSSIBLE:
        server = fork_server.ForkServer(job.tokenizer, job.config.tokenizer_backend)
    import_beam()
    from beam_prep.quick_graphs import quicken

    quicken()
    return server


def launch_nothing(options: RunOptions) -> None:
    """Writes a graph of one empty step, for a template's launch that found nothing to do.

    Dataflow takes a launch without a graph for a failed one.
    """
    import apache_beam as beam

    pipeline, _ = _pipeline(options)
    _ = pipeline | "Nothing to do" >> beam.Create([], reshuffle=False)
    pipeline.run()


def _pipeline(options: RunOptions, workers: int = 1, server: fork_server.ForkServer | None = None) -> tuple[Any, bool]:
    """(an empty pipeline, whether running it only writes its graph)."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

    runner, own = _runner(options, workers, server)
    # Every step comes from an installed module. Dataflow would pickle the main module with each job.
    made = PipelineOptions(["--no_save_main_session", *own, *options.beam])
    return beam.Pipeline(runner=runner, options=made), bool(made.view_as(GoogleCloudOptions).template_location)


def _runner(options: RunOptions, workers: int, server: fork_server.ForkServer | None) -> tuple[Any, list[str]]:
    if options.runner not in LOCAL_RUNNERS:
        return options.runner, []
    from beam_prep.runner import LocalRunner

    if workers <= 1:
        return LocalRunner(), []
    return LocalRunner(server), [f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"]


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m pipelines.prepare`: the job with argparse names, for launchers that know no console script."""
    known, beam_options = arguments.parser().parse_known_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    from beam_prep.beam_options import check_beam_options, check_engine, check_runner, cloud_options
    from beam_prep.sizes import parse_size

    use_options(beam_options)
    try:
        options = RunOptions(
            known.runner,
            known.workers,
            known.carrier,
            known.overwrite,
            known.fresh,
            tuple(beam_options),
            None if known.memory is None else parse_size(known.memory, "--memory"),
            known.increment,
            known.accept_changed_inputs,
        )
        check_runner(options.runner)
        cloud = cloud_options(options.beam)
        if options.beam and not cloud.template_location:  # there, Dataflow has chosen them
            check_beam_options(options.beam, options.runner)
        check_engine(options.beam, options.runner)
        config = placeholders.fill(load_config(known.config, arguments.overrides(vars(known))), cloud.job_name)
        base = Path(known.config).parent if storage.is_local(known.config) else None
        begin = time.monotonic()
        prepared = prepare(config, options, base)
        remember_call(config.output, os.path.abspath(known.config) if base else known.config)
        run(prepared)
    except AlreadyDone as reason:
        new = isinstance(reason, NothingNew)
        what = "nothing new: the output already holds all files of its inputs"
        print(what if new else "nothing to do: the output already holds this run")
        if cloud.template_location:
            launch_nothing(options)
        return 0
    except BeamPrepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    spent = f"{time.monotonic() - begin:.1f} s"
    print(f"graph written to {cloud.template_location} in {spent}" if cloud.template_location else f"done in {spent}")
    return 0
