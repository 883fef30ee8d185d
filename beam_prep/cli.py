"""The `beam-prep` command. What a command needs is imported when it runs, so that help comes at once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from beam_prep import __version__
from beam_prep.calls import STOPPED, Commands, debug_option, set_up_logs

if TYPE_CHECKING:
    from beam_prep.config import Config
    from beam_prep.launch import RunOptions

_TRAINERS = ("megatron", "datatrove", "olmo")  # `trainer_views.TRAINERS`


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="beam-prep")
def cli() -> None:
    """Turns raw datasets into packed, tokenized training data.

    Exit status: 0 if everything that was asked for is on disk, 1 for a failed run, 2 for a wrong call or
    configuration.
    """


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG [BEAM OPTIONS]...")
@click.option("--output", metavar="DIR", help="Where to write; overrides the configuration's.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Overrides the configuration's.")
@click.option("--runner", default="local", show_default=True, help="local, DataflowRunner, FlinkRunner …")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes of the local runner.  [default: 1]")
@click.option("--overwrite", is_flag=True, help="Replace a finished output of another run.")
@click.option("--fresh", is_flag=True, help="Start an unfinished run over, instead of going on with it.")
@click.option("--quiet", is_flag=True, help="Print errors and warnings only.")
@click.option("--only-rejected", metavar="OUT", help="Render the rejected records of OUT again, and do nothing else.")
@click.option("--carrier", type=click.Choice(["files", "engine"]), hidden=True)
@debug_option
@click.pass_context
def run(
    ctx: click.Context,
    arguments: tuple[str, ...],
    output: str | None,
    seed: int | None,
    runner: str,
    workers: int | None,
    overwrite: bool,
    fresh: bool,
    quiet: bool,
    only_rejected: str | None,
    carrier: str | None,
) -> None:
    """The main job: raw records in, packed and indexed sequences out.

    CONFIG is a YAML file: a path, gs://… Any other option goes to Beam as it is. With --only-rejected OUT it may be
    left out: then it is the one that OUT was made with.
    """
    _set_up(ctx)
    if only_rejected is not None:
        ctx.exit(_render_rejected(arguments, only_rejected, seed))
    from beam_prep.beam_options import check_beam_options, check_runner, split_arguments
    from beam_prep.config import load_config
    from beam_prep.errors import ConfigError
    from beam_prep.launch import LOCAL_RUNNERS, RunOptions

    path, beam = split_arguments(arguments)
    config = load_config(path, {"output": output, "seed": seed})
    if workers is not None and runner not in LOCAL_RUNNERS:
        raise ConfigError(f"--workers is the local runner's; for {runner} give Beam's own option (--num_workers …)")
    check_runner(runner)
    if beam:
        check_beam_options(beam, runner)
    _carry_out(config, path, RunOptions(runner, workers or 1, carrier, overwrite, fresh, beam), quiet)


def _render_rejected(arguments: tuple[str, ...], out: str, seed: int | None) -> int:
    """Prints what is left of the rejected records of `out`; the exit status, 0 if that is nothing."""
    import tempfile

    from beam_prep import tables
    from beam_prep.config import load_config
    from beam_prep.job import resolve_sources
    from beam_prep.retry_rejected import remembered_call, retry
    from beam_prep.tokenizer import resolve

    path = arguments[0] if arguments else remembered_call(out)
    config = load_config(path, {"seed": seed})
    with tempfile.TemporaryDirectory(prefix="beam-prep-") as folder:
        tokenizer = resolve(config.tokenizer, folder)
    sources = resolve_sources(config, tokenizer, _base(path))
    results = retry(config, sources, [token for token, _ in tokenizer.special_tokens], out)
    tables.print_retried(tables.open_console(), results)
    return 1 if any(result.rejected for result in results) else 0


def _carry_out(config: Config, path: str, options: RunOptions, quiet: bool, ours: bool = False) -> None:
    """Runs the job, watched, and prints what came out.

    Args:
      ours: whether what the output holds may be replaced if it is of another run.
    """
    from beam_prep import launch, screen
    from beam_prep.errors import BeamPrepError
    from beam_prep.manifest import is_finished, read_manifest
    from beam_prep.retry_rejected import remember_call

    begin = time.monotonic()
    try:
        try:
            prepared = launch.prepare(config, options, _base(path))
        except BeamPrepError:
            if not ours:
                raise
            prepared = launch.prepare(config, options._replace(overwrite=True), _base(path))
    except launch.AlreadyDone:
        from beam_prep.verification import require_intact

        require_intact(config.output)
        done = f"nothing to do: {config.output} already holds this run"
    else:
        if prepared.claim.resumed:
            click.echo("an unfinished run of this configuration is there: going on with it", err=True)
        if prepared.claim.lost:
            click.echo(f"{prepared.claim.lost} of its finished shards were changed or deleted: starting over", err=True)
        if prepared.claim.replaced:
            click.echo("an unfinished run of another configuration or input was there: starting over", err=True)
        remember_call(config.output, path if "://" in path else os.path.abspath(path))
        with screen.follow(prepared, quiet):
            launch.run(prepared)
        done = f"done in {screen.duration(time.monotonic() - begin)}"
    manifest = read_manifest(config.output)
    if not is_finished(config.output, manifest):
        raise BeamPrepError(f"{config.output}: the runner ended, but the output is not finished; its log says why")
    if quiet:
        return
    from beam_prep import tables

    console = tables.open_console()
    tables.print_output(console, config.output, manifest)
    tables.print_where(console, config.output, manifest)
    console.print(f"\n{done}", soft_wrap=True)


def _base(path: str) -> Any:
    from pathlib import Path

    return Path(path).parent if "://" not in path else None


def _set_up(ctx: click.Context) -> None:
    from beam_prep.calls import DEBUG

    set_up_logs(ctx.meta.get(DEBUG, False))


@cli.command()
@click.argument("config")
@click.option("--runner", default="local", show_default=True, help="With DataflowRunner: vCPU hours and cost too.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes here, or machines on Dataflow.")
@click.option("--sample", metavar="BYTES", help="Uncompressed bytes to read of each dataset.  [default: 8 MiB]")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Overrides the configuration's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_context
def plan(
    ctx: click.Context,
    config: str,
    runner: str,
    workers: int | None,
    sample: str | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """What a run would find, make, need and cost. Reads a sample of each dataset and writes nothing.

    CONFIG is a YAML file: a path, gs://… Exit status 1 if the run would fail for what its inputs hold.
    """
    _set_up(ctx)
    from beam_prep import plan as plans
    from beam_prep import plan_tables, tables
    from beam_prep.beam_options import check_runner
    from beam_prep.config import load_config
    from beam_prep.sample_records import SAMPLE_BYTES, parse_size

    if runner != plans.DATAFLOW:  # which needs nothing here but prices
        check_runner(runner)
    wanted = SAMPLE_BYTES if sample is None else parse_size(sample)
    made = plans.forecast(load_config(config, {"seed": seed}), _base(config), wanted, runner, workers)
    if as_json:
        tables.to_json(plans.as_json(made))
    else:
        more = "" if runner == "local" else f" --runner {runner}"
        plan_tables.print_forecast(tables.open_console(), made, f"beam-prep run {config}{more}")
    if made.estimate.problems:
        how = "would fail" if made.estimate.exact else "would probably fail (estimated from a sample)"
        click.echo(f"error: the run {how}:\n{made.estimate.problems}", err=True)
        ctx.exit(1)


@cli.command()
@click.option("--output", default="demo", show_default=True, metavar="DIR", help="Where to write.")
@debug_option
@click.pass_context
def demo(ctx: click.Context, output: str) -> None:
    """The main job on text that every Python installation carries; nothing to download."""
    _set_up(ctx)
    from beam_prep.config import load_config
    from beam_prep.demo import write_demo
    from beam_prep.launch import RunOptions

    made = write_demo(output)
    click.echo(f"raw records of Python's own library reference: {os.path.join(output, 'raw')}")
    click.echo(f"the configuration: {made.config}\n")
    _carry_out(load_config(made.config), made.config, RunOptions(), quiet=False, ours=made.again)
    click.echo(
        "\nwhat to try next:\n"
        f"  beam-prep inspect {made.output} --sequence 0     a sequence and the documents in it\n"
        f"  beam-prep verify {made.output}                   checksums, index, every token\n"
        f"  beam-prep render {made.config}           raw records beside their text\n"
        f"  beam-prep run {made.config} --overwrite  after you have changed it\n"
        "  beam-prep datasets                          the datasets that are ready to use"
    )


@cli.command()
@click.argument("out")
@click.option("--sequence", type=click.IntRange(0), metavar="N", help="Decode this sequence.")
@click.option("--output", metavar="NAME", help="train, val …  [default: the first]")
@click.option("--full", is_flag=True, help="Print long texts whole.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_context
def inspect(ctx: click.Context, out: str, sequence: int | None, output: str | None, full: bool, as_json: bool) -> None:
    """What is in the output OUT: counts, shares, a decoded sequence with its documents."""
    _set_up(ctx)
    from beam_prep import inspection, tables
    from beam_prep.manifest import is_finished, read_manifest

    manifest = read_manifest(out)
    name = inspection.choose_output(manifest, output)
    if not is_finished(out, manifest):
        click.echo(f"warning: {out} is not finished (no matching _SUCCESS); run the job again", err=True)
    if sequence is None:
        if as_json:
            tables.to_json(inspection.summary(out, manifest))
            return
        console = tables.open_console()
        tables.print_output(console, out, manifest)
        tables.print_where(console, out, manifest)
        return
    decoder = inspection.open_decoder(manifest.tokenizer)
    if decoder.note:
        click.echo(f"warning: {decoder.note}", err=True)
    decoded = inspection.read_sequence(out, manifest, name, sequence, decoder)
    if as_json:
        tables.to_json(inspection.as_json(decoded))
    else:
        tables.print_sequence(tables.open_console(), decoded, full)


@cli.command()
@click.argument("out")
@click.option("--quick/--full", help="Sizes, index and ledger only; reads no tokens.  [default: full]")
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
@debug_option
@click.pass_context
def verify(ctx: click.Context, out: str, quick: bool, as_json: bool) -> None:
    """Checks the output OUT against its manifest: checksums, index, ledger, every token."""
    _set_up(ctx)
    from beam_prep import tables
    from beam_prep.manifest import read_manifest
    from beam_prep.screen import duration, size
    from beam_prep.verification import verify as check

    begin = time.monotonic()
    read = 0

    def progress(count: int) -> None:
        nonlocal read
        read += count
        if sys.stderr.isatty():
            click.echo(f"\r{size(read)} verified ", err=True, nl=False)

    findings = check(out, quick, progress)
    if read and sys.stderr.isatty():
        click.echo("\r" + " " * 24 + "\r", err=True, nl=False)
    if as_json:
        tables.to_json({"output": out, "ok": not findings, "quick": quick, "findings": [f._asdict() for f in findings]})
    elif findings:
        place, problem = findings[0]
        more = f"\n(and {len(findings) - 1} more; --json lists them)" if len(findings) > 1 else ""
        click.echo(f"error: {out.rstrip('/')}/{place}: {problem}{more}", err=True)
    else:
        outputs = read_manifest(out).outputs.values()
        sequences, tokens = sum(o.sequences for o in outputs), sum(o.tokens for o in outputs)
        what = "sizes, index and ledger (tokens not read)" if quick else "every token"
        spent = duration(time.monotonic() - begin)
        click.echo(f"ok: {out}: {sequences:,} sequences, {tokens:,} tokens; verified {what} in {spent}")
    ctx.exit(1 if findings else 0)


# Unknown options pass, so that -1 is a number.
@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("out")
@click.argument("number", type=int, required=False, metavar="[N]")
@click.option("--output", metavar="NAME", help="train, S1/train …  [default: the only one, or train; --find: all]")
@click.option("--text", is_flag=True, help="Print the text of each document.")
@click.option("--open", "open_", is_flag=True, help="Print the raw records, read from the inputs.")
@click.option("--full", is_flag=True, help="Print long texts and records whole.")
@click.option("--find", "wanted", metavar="WHAT", help="A text, the id of a document, or FILE:OFFSET of a record.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="With --find; 0: all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_context
def trace(
    ctx: click.Context,
    out: str,
    number: int | None,
    output: str | None,
    text: bool,
    open_: bool,
    full: bool,
    wanted: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Where sequence N of the output OUT comes from: its documents, their files, offsets and licences.

    N counts from 0 over all shards, -1 is the last one. With --find instead of N: the sequences that hold a text
    (exactly, within one document), a document or a record. Exit status 1 if nothing is found, or if --open finds a
    record gone or changed.
    """
    _set_up(ctx)
    from beam_prep import tables, trace_tables
    from beam_prep import trace as tracing
    from beam_prep.errors import ConfigError
    from beam_prep.find import find, found_as_json
    from beam_prep.inspection import choose_output, open_decoder
    from beam_prep.manifest import read_manifest

    if (number is None) == (wanted is None):
        raise ConfigError("give the number of a sequence, or --find WHAT")
    if wanted is not None and (text or open_):
        raise ConfigError("--text and --open are for one sequence; give its number without --find")
    manifest = read_manifest(out)
    tracing.require_finished(out, manifest)
    if wanted is not None:
        names = list(manifest.outputs) if output is None else [choose_output(manifest, output)]
        found = find(out, manifest, names, wanted, limit or None)
        if as_json:
            tables.to_json(found_as_json(found))
        else:
            trace_tables.print_found(tables.open_console(), out, wanted, found)
        ctx.exit(0 if found.matches else 1)
    assert number is not None
    name = tracing.which_output(manifest, output)
    decoder = open_decoder(manifest.tokenizer) if text else None
    if decoder is not None and decoder.note:
        click.echo(f"warning: {decoder.note}", err=True)
    traced = tracing.trace_sequence(out, manifest, name, number, decoder)
    if open_:
        traced = tracing.open_records(traced, out, manifest)
    if as_json:
        tables.to_json(tracing.as_json(traced, text))
    else:
        trace_tables.print_trace(tables.open_console(), traced, text, full)
    ctx.exit(1 if tracing.lost(traced) else 0)


@cli.command()
@click.argument("out")
@debug_option
@click.pass_context
def report(ctx: click.Context, out: str) -> None:
    """Writes report.html of the output OUT again, from its manifest and the files beside it."""
    _set_up(ctx)
    from beam_prep.errors import BeamPrepError
    from beam_prep.manifest import is_finished, read_manifest
    from beam_prep.report import tokenizer_of, write_report

    manifest = read_manifest(out)
    if not is_finished(out, manifest):
        raise BeamPrepError(f"{out}: is not finished (no matching _SUCCESS); run the job again")
    tokenizer = tokenizer_of(manifest)
    if tokenizer is None:
        click.echo("warning: the tokenizer is not to be had as it was; nothing on tokens per byte, no text", err=True)
    click.echo(f"written: {write_report(out, manifest, tokenizer)}")


@cli.command()
@click.argument("out")
@click.option("--context-length", "lengths", type=click.IntRange(1), multiple=True, metavar="N", help="Tokens each.")
@click.option("--for", "trainers", type=click.Choice(_TRAINERS), multiple=True, help="Index files of that trainer.")
@click.option("--output", "names", metavar="NAME", multiple=True, help="train, S3/train …  [default: all]")
@debug_option
@click.pass_context
def view(
    ctx: click.Context, out: str, lengths: tuple[int, ...], trainers: tuple[str, ...], names: tuple[str, ...]
) -> None:
    """More indexes over the shards of the output OUT; no token is copied.

    --context-length 4096 writes `index-4096` beside `index`: a sequence of 32,768 is eight of 4,096 there. --for writes
    Megatron's .idx, datatrove's .ds.index (also nanotron's), OLMo-core's .csv.gz. All three may be given repeatedly.
    """
    _set_up(ctx)
    from beam_prep import tables, views
    from beam_prep.errors import BeamPrepError, ConfigError
    from beam_prep.inspection import choose_output
    from beam_prep.manifest import is_finished, read_manifest
    from beam_prep.trainer_views import write_trainer_view

    if not lengths and not trainers:
        raise ConfigError("nothing to index: give --context-length N, --for TRAINER, or both")
    manifest = read_manifest(out)
    if not is_finished(out, manifest):
        raise BeamPrepError(f"{out}: is not finished (no matching _SUCCESS); run the job again")
    chosen = [choose_output(manifest, name) for name in names] or list(manifest.outputs)
    # All of them, before the first is written.
    fits = [(length, *views.choose(manifest.outputs, names, length)) for length in dict.fromkeys(lengths)]
    for length, fitting, left_out in fits:
        for name in fitting:
            tables.print_view(out, name, length, views.write_output_view(out, name, manifest.outputs[name], length))
        for name, reason in left_out:
            click.echo(f"skipped {name}: {reason}")
    for trainer in dict.fromkeys(trainers):
        for name in dict.fromkeys(chosen):
            entry = manifest.outputs[name]
            written = write_trainer_view(out, name, entry, manifest.tokenizer.vocab_size, trainer)
            tables.print_trainer_view(out, name, entry, trainer, written)


@cli.command()
@click.argument("name", required=False)
@debug_option
@click.pass_context
def datasets(ctx: click.Context, name: str | None) -> None:
    """The datasets that ship with beam-prep; with NAME one of them, with an example."""
    _set_up(ctx)
    from beam_prep import catalog, tables
    from beam_prep.rendering import render_example

    console = tables.open_console()
    if name is None:
        tables.print_catalogue(console, [catalog.entry(each) for each in catalog.names()])
        return
    template = catalog.entry(name)
    tables.print_entry(console, template, catalog.source_text(name), render_example(template))


@cli.command()
@click.argument("config")
@click.option("--dataset", metavar="NAME", help="One dataset only.")
@click.option("-n", "rows", type=click.IntRange(1), default=3, show_default=True, help="Rows of each kind.")
@click.option("--html", metavar="FILE", help="Write a page instead.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Overrides the configuration's.")
@click.option("--full", is_flag=True, help="Print long texts whole.")
@debug_option
@click.pass_context
def render(
    ctx: click.Context, config: str, dataset: str | None, rows: int, html: str | None, seed: int | None, full: bool
) -> None:
    """The first rows of each dataset: raw record and rendered text, rejects and filtered rows too.

    CONFIG is a YAML file: a path, gs://…
    """
    _set_up(ctx)
    from beam_prep import rendering, storage, tables
    from beam_prep.config import load_config

    loaded = load_config(config, {"seed": seed})
    renderings = rendering.render_config(loaded, _base(config), dataset, rows)
    if html is None:
        tables.print_renderings(tables.open_console(), renderings, full)
        return
    from beam_prep.rendering_page import page

    storage.write_bytes(html, [page(f"{config}: rendered", renderings).encode()])
    click.echo(f"written: {html}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(arguments, prog_name="beam-prep")
    except SystemExit as end:
        if end.code in STOPPED.values():  # threads of the runner may still be at work
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(end.code))
        raise
