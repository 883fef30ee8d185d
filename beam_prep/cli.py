"""The `beam-prep` command. What a command needs is imported when it runs, so that help comes at once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from beam_prep import __version__
from beam_prep.arguments import OVERRIDES, SWITCHES, describe, overrides, spellings, value_of
from beam_prep.calls import STOPPED, Commands, debug_option, set_up
from beam_prep.cli_outputs import OUTPUT_COMMANDS

if TYPE_CHECKING:
    from beam_prep.config import Config
    from beam_prep.launch import RunOptions
    from beam_prep.run_log import RunLog


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="beam-prep")
def cli() -> None:
    """Turns raw datasets into packed, tokenized training data.

    Exit status: 0 if everything that was asked for is on disk, 1 for a failed run, 2 for a wrong call or
    configuration.
    """


class _Override(click.Option):
    """A key of the configuration, given in the call; its help is what the configuration's model says."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Its line of help: the flag as it is spelt in the file, though hyphens do as well."""
        assert self.name is not None
        return f"{self.opts[0]} {value_of(self.name)}", describe(self.name)


def _override_options(command: Any) -> Any:
    for key in reversed(OVERRIDES):
        command = click.option(*spellings(key), key, cls=_Override)(command)
    return command


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG [BEAM OPTIONS]...")
@_override_options
@click.option("--runner", default="local", show_default=True, help="local, DataflowRunner, FlinkRunner …")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Local processes.  [default: one for two cores]")
@click.option("--memory", metavar="SIZE", help="What all of them may hold: 2GB …  [default: 1.5GB a process]")
@click.option("--overwrite", is_flag=True, help=SWITCHES["overwrite"])
@click.option("--fresh", is_flag=True, help=SWITCHES["fresh"])
@click.option("--increment", is_flag=True, help=SWITCHES["increment"])
@click.option(*spellings("accept_changed_inputs"), is_flag=True, help=SWITCHES["accept_changed_inputs"])
@click.option("--quiet", is_flag=True, help="Print errors and warnings only.")
@click.option("--log-json", metavar="FILE", help="Append a log as JSON lines: progress, warnings, how it ended.")
@click.option("--only-rejected", metavar="OUT", help="Render the rejected records of OUT again, and do nothing else.")
@click.option("--carrier", type=click.Choice(["files", "engine"]), hidden=True)
@debug_option
@click.pass_context
def run(
    ctx: click.Context,
    arguments: tuple[str, ...],
    runner: str,
    workers: int | None,
    memory: str | None,
    overwrite: bool,
    fresh: bool,
    increment: bool,
    accept_changed_inputs: bool,
    quiet: bool,
    log_json: str | None,
    only_rejected: str | None,
    carrier: str | None,
    **keys: str | None,
) -> None:
    """The main job: raw records in, packed and indexed sequences out.

    CONFIG is a YAML file: a path, gs://… With --only-rejected OUT it may be left out: then it is the one that OUT was
    made with. A key of the file may be given here instead, and then takes its place: --total_tokens 1e9. Any option
    that is not below goes to Beam as it is.
    """
    set_up(ctx)
    if only_rejected is not None:
        ctx.exit(_render_rejected(arguments, only_rejected, overrides(keys)))
    from beam_prep import placeholders
    from beam_prep.beam_options import check_beam_options, check_engine, check_runner, cloud_options, split_arguments
    from beam_prep.config import load_config
    from beam_prep.errors import ConfigError
    from beam_prep.machine import LOCAL_RUNNERS, is_for_one_process
    from beam_prep.remote_files import use_options
    from beam_prep.sizes import parse_size
    from beam_prep.tokenizer import load_bundled_ahead

    path, beam = split_arguments(arguments)
    use_options(beam)
    config = load_config(path, overrides(keys))
    if runner in LOCAL_RUNNERS and is_for_one_process(workers, memory):
        load_bundled_ahead(config.tokenizer, config.tokenizer_backend)  # takes longer than everything up to its use
    from beam_prep.launch import RunOptions

    if runner not in LOCAL_RUNNERS and (workers is not None or memory is not None):
        raise ConfigError(
            f"--workers and --memory are the local runner's; for {runner} give Beam's own options (--num_workers …)"
        )
    size = None if memory is None else parse_size(memory, "--memory")
    check_runner(runner)
    if beam:
        check_beam_options(beam, runner)
    check_engine(beam, runner)
    cloud = cloud_options(beam)
    if cloud.template_location:
        raise ConfigError("--template_location is for Dataflow's launcher, which calls `python -m pipelines.prepare`")
    config = placeholders.fill(config, cloud.job_name)
    options = RunOptions(runner, workers, carrier, overwrite, fresh, beam, size, increment, accept_changed_inputs)
    if log_json is None:
        _carry_out(config, path, options, quiet)
        return
    from beam_prep.run_log import RunLog

    log = RunLog(log_json)
    with log.recording():
        _carry_out(config, path, options, quiet, log=log)


def _render_rejected(arguments: tuple[str, ...], out: str, keys: dict[str, str]) -> int:
    """Prints what is left of the rejected records of `out`; the exit status, 0 if that is nothing."""
    from beam_prep import tables
    from beam_prep.config import load_config
    from beam_prep.job import resolve_sources
    from beam_prep.retry_rejected import retry
    from beam_prep.run_file import remembered_call
    from beam_prep.tokenizer import at_hand

    path = arguments[0] if arguments else remembered_call(out)
    config = load_config(path, keys)
    with at_hand(config.tokenizer) as tokenizer:
        pass
    sources = resolve_sources(config, tokenizer, _base(path))
    results = retry(config, sources, [token for token, _ in tokenizer.special_tokens], out)
    tables.print_retried(tables.open_console(), results)
    return 1 if any(result.rejected for result in results) else 0


def _carry_out(
    config: Config, path: str, options: RunOptions, quiet: bool, ours: bool = False, log: RunLog | None = None
) -> None:
    """Runs the job, watched, and prints what came out.

    Args:
      ours: whether what the output holds may be replaced if it is of another run.
    """
    from beam_prep import launch, screen
    from beam_prep.errors import BeamPrepError
    from beam_prep.manifest import is_finished, read_manifest
    from beam_prep.run_file import remember_call
    from beam_prep.sizes import duration

    begin = time.monotonic()
    try:
        try:
            prepared = launch.prepare(config, options, _base(path))
        except BeamPrepError:
            if not ours:
                raise
            prepared = launch.prepare(config, options._replace(overwrite=True), _base(path))
    except launch.AlreadyDone as reason:
        from beam_prep.verification import require_intact

        require_intact(config.output)
        done = f"nothing to do: {config.output} already holds this run"
        if isinstance(reason, launch.NothingNew):
            done = f"nothing new: {config.output} already holds all files of its inputs"
    else:
        if prepared.claim.resumed:
            click.echo("an unfinished run of this configuration is there: going on with it", err=True)
        if prepared.claim.lost:
            click.echo(f"{prepared.claim.lost} of its finished shards were changed or deleted: starting over", err=True)
        if prepared.claim.replaced:
            click.echo("an unfinished run of another configuration or input was there: starting over", err=True)
        remember_call(config.output, path if "://" in path else os.path.abspath(path))
        if log is not None:
            log.start(path, prepared)
        with screen.follow(prepared, quiet, log):
            launch.run(prepared)
        done = f"done in {duration(time.monotonic() - begin)}"
    manifest = read_manifest(config.output)
    if not is_finished(config.output, manifest):
        raise BeamPrepError(f"{config.output}: the runner ended, but the output is not finished; its log says why")
    if log is not None:
        log.done(manifest)
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


@cli.command()
@click.argument("config")
@click.option("--runner", default="local", show_default=True, help="With DataflowRunner: vCPU hours and cost too.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes here, or machines on Dataflow.")
@click.option("--sample", metavar="BYTES", help="Uncompressed bytes to read of each dataset.  [default: 8 MiB]")
@_override_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_context
def plan(
    ctx: click.Context,
    config: str,
    runner: str,
    workers: int | None,
    sample: str | None,
    as_json: bool,
    **keys: str | None,
) -> None:
    """What a run would find, make, need and cost. Reads a sample of each dataset and writes nothing.

    CONFIG is a YAML file: a path, gs://…; a key of it may be given here instead, as in a run. Exit status 1 if the
    run would fail for what its inputs hold.
    """
    set_up(ctx)
    import shlex

    from beam_prep import plan as plans
    from beam_prep import plan_tables, tables
    from beam_prep.beam_options import check_runner
    from beam_prep.config import load_config
    from beam_prep.sample_records import SAMPLE_BYTES
    from beam_prep.sizes import parse_size

    if runner != plans.DATAFLOW:  # which needs nothing here but prices
        check_runner(runner)
    wanted = SAMPLE_BYTES if sample is None else parse_size(sample, "--sample")
    made = plans.forecast(load_config(config, overrides(keys)), _base(config), wanted, runner, workers)
    if as_json:
        tables.to_json(plans.as_json(made))
    else:
        more = "" if runner == "local" else f" --runner {runner}"
        more += "".join(f" --{key} {shlex.quote(value)}" for key, value in overrides(keys).items())
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
    set_up(ctx)
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
@click.argument("name", required=False)
@debug_option
@click.pass_context
def datasets(ctx: click.Context, name: str | None) -> None:
    """The datasets that ship with beam-prep; with NAME one of them, with an example."""
    set_up(ctx)
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
    set_up(ctx)
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


for _command in OUTPUT_COMMANDS:
    cli.add_command(_command)


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
