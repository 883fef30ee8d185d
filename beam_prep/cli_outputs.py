"""The commands that look at an output: inspect, verify, trace, report, view."""

from __future__ import annotations

import sys
import time

import click

from beam_prep.calls import debug_option, set_up

_TRAINERS = ("megatron", "datatrove", "olmo")  # `trainer_views.TRAINERS`


@click.command()
@click.argument("out")
@click.option("--sequence", type=click.IntRange(0), metavar="N", help="Decode this sequence.")
@click.option("--output", metavar="NAME", help="train, val …  [default: the first]")
@click.option("--full", is_flag=True, help="Print long texts whole.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_context
def inspect(ctx: click.Context, out: str, sequence: int | None, output: str | None, full: bool, as_json: bool) -> None:
    """What is in the output OUT: counts, shares, a decoded sequence with its documents."""
    set_up(ctx)
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


@click.command()
@click.argument("out")
@click.option("--quick/--full", help="Sizes, index and ledger only; reads no tokens.  [default: full]")
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
@debug_option
@click.pass_context
def verify(ctx: click.Context, out: str, quick: bool, as_json: bool) -> None:
    """Checks the output OUT against its manifest: checksums, index, ledger, every token."""
    set_up(ctx)
    from beam_prep import tables
    from beam_prep.manifest import read_manifest
    from beam_prep.sizes import duration, size
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
@click.command(context_settings={"ignore_unknown_options": True})
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
    set_up(ctx)
    from beam_prep import tables, trace_tables
    from beam_prep import trace as tracing
    from beam_prep.errors import ConfigError
    from beam_prep.find import find, found_as_json
    from beam_prep.inspection import choose_output, open_decoder
    from beam_prep.manifest import read_manifest, require_finished

    if (number is None) == (wanted is None):
        raise ConfigError("give the number of a sequence, or --find WHAT")
    if wanted is not None and (text or open_):
        raise ConfigError("--text and --open are for one sequence; give its number without --find")
    manifest = read_manifest(out)
    require_finished(out, manifest)
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


@click.command()
@click.argument("out")
@debug_option
@click.pass_context
def report(ctx: click.Context, out: str) -> None:
    """Writes report.html of the output OUT again, from its manifest and the files beside it."""
    set_up(ctx)
    from beam_prep.manifest import read_manifest, require_finished
    from beam_prep.report import tokenizer_of, write_report

    manifest = read_manifest(out)
    require_finished(out, manifest)
    tokenizer = tokenizer_of(manifest)
    if tokenizer is None:
        click.echo("warning: the tokenizer is not to be had as it was; nothing on tokens per byte, no text", err=True)
    click.echo(f"written: {write_report(out, manifest, tokenizer)}")


@click.command()
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
    set_up(ctx)
    from beam_prep import tables, views
    from beam_prep.errors import ConfigError
    from beam_prep.inspection import choose_output
    from beam_prep.manifest import read_manifest, require_finished
    from beam_prep.trainer_views import write_trainer_view

    if not lengths and not trainers:
        raise ConfigError("nothing to index: give --context-length N, --for TRAINER, or both")
    manifest = read_manifest(out)
    require_finished(out, manifest)
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


OUTPUT_COMMANDS = (inspect, verify, trace, report, view)
