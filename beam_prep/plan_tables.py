"""What `plan` prints: tables of the sources and of the outputs, what they need, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from beam_prep.cost import (
    DISK_GIB,
    MACHINE_GIB,
    MACHINE_VCPUS,
    VCPU_SPEED,
    WORKER_START_SECONDS,
    DataflowCost,
    Resources,
    cores,
    output_bytes,
)
from beam_prep.estimate import Estimate
from beam_prep.output_estimate import OutputEstimate, SourceShare
from beam_prep.plan import Forecast, takes_part
from beam_prep.sizes import duration, quantity, size


def print_forecast(console: Console, forecast: Forecast, command: str) -> None:
    """Everything; `command` is what to do next."""
    made = forecast.estimate
    console.print(_sources(made))
    console.print(_legend(made), soft_wrap=True)
    for output in made.outputs:
        console.print()
        console.print(Text(f"{output.output.name}, as asked for", "bold"), soft_wrap=True)
        console.print(_shares(made, output))
        if not made.problems:
            console.print(_totals(made, output, output_bytes(output, forecast.config.views)), soft_wrap=True)
    if forecast.resources is not None:
        console.print()
        console.print(_needs(forecast.resources, made), soft_wrap=True)
        if forecast.dataflow is not None:
            console.print(_on_dataflow(forecast.dataflow), soft_wrap=True)
        console.print(f"\nnext: {command}", soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def _sources(made: Estimate) -> Table:
    table = _table(
        "source", "files", "stored", "uncompressed", "records", "rejected", "filtered", "duplicates", "tokens"
    )
    for number, source in enumerate(made.sources):
        tally = made.tallies[number]
        about = "" if source.complete else "about "
        table.add_row(
            source.name,
            f"{source.files:,}",
            size(source.stored_bytes),
            about + size(source.bytes) if source.bytes != source.stored_bytes else size(source.bytes),
            _figure(tally.records, source.records_error),
            _part(tally.rejected, tally.records),
            _part(tally.filtered, tally.records),
            f"{made.duplicates[number]:,}" if source.complete else f"{made.duplicates[number]:,} or more",
            _figure(made.tokens[number], source.tokens_error),
        )
    return table


def _figure(count: float, error: float) -> str:
    """`12,345`, or of an estimate `12.3 M ± 2.1%`."""
    if not error:
        return f"{count:,.0f}"
    spread = f"{error:.1%}" if error < 0.995 else f"{error:.0%}"
    return f"{quantity(count)} ± {spread}" if math.isfinite(error) else f"about {quantity(count)}"


def _part(counts: Mapping[str, int], records: int) -> str:
    """`1.2% (min_chars)`."""
    total = sum(counts.values())
    if not total:
        return "0"
    leading = min(counts, key=lambda reason: (-counts[reason], reason))
    more = ", …" if len(counts) > 1 else ""
    return f"{total / records:.2%} ({leading}{more})"


def _legend(made: Estimate) -> str:
    if made.exact:
        return "every record was read: these figures are those of the run"
    parts = [
        f"{size(sum(s.sampled_bytes for s in made.sources))} of {size(sum(s.bytes for s in made.sources))} were read; "
        "± is the half-width of a 95% interval by the spread among the places that were looked at; duplicates count "
        "only where both copies were read"
    ]
    if begun := [s.name for s in made.sources if s.begun]:
        named = ", ".join(begun[:5]) + ", …" * (len(begun) > 5)
        parts.append(
            f"only the beginning of large compressed files was read ({named}): if a file changes on its way, the error "
            "is larger"
        )
    return "\n".join([*parts, *made.notes])


def _shares(made: Estimate, output: OutputEstimate) -> Table:
    table = _table("source", "asked", "reachable" if made.problems else "share", "epochs", "tokens")
    for source, share in zip(made.sources, output.shares, strict=True):
        if takes_part(output, share):
            table.add_row(
                source.name,
                _asked(share),
                f"{share.reachable:.2%}" if share.reachable >= 1e-4 else f"{share.reachable:.2g}",
                f"{share.epochs:.3g}",
                f"{share.tokens:,}" if made.exact else quantity(share.tokens),
            )
    return table


def _asked(share: SourceShare) -> str:
    if share.asked_epochs is not None:
        return "1 epoch" if share.asked_epochs == 1 else f"{share.asked_epochs:g} epochs"
    if share.asked is None:
        return "by weight"
    return f"{share.asked:.2%}" if share.asked >= 1e-4 else f"{share.asked:.2g}"


def _totals(made: Estimate, output: OutputEstimate, stored: int) -> str:
    shards = "1 shard" if output.shards == 1 else f"{output.shards:,} shards"
    about = "" if made.exact else "about "
    rest = [f"{_figure(output.tokens, output.tokens_error)} tokens", f"{output.cut_share:.2%} of the documents cut"]
    if made.exact:
        rest.append(f"{output.padding:,} of padding")
    if output.dropped_tokens:
        rest.append(f"{output.dropped_tokens:,} dropped at the end")
    sequences = (
        f"{about}{output.sequences:,} sequence{'s' * (output.sequences != 1)} of {output.output.context_length:,}"
    )
    return f"{sequences} in {shards} ({output.output.packing}, {size(stored)}): {', '.join(rest)}"


def _needs(needs: Resources, made: Estimate) -> str:
    processes = "1 process" if needs.workers == 1 else f"{needs.workers} processes"
    return (
        f"disk    {size(needs.output_bytes)} when finished, {size(needs.disk_bytes)} at the peak\n"
        f"memory  about {size(needs.memory_bytes)} ({processes})\n"
        f"time    about {duration(needs.seconds)} on this machine ({processes}, {cores()} cores); measured on the "
        f"sample: {size(needs.read_bytes_per_second)}/s read and rendered, {quantity(needs.tokens_per_second)} "
        "tokens/s, one thread each"
    )


def _on_dataflow(cost: DataflowCost) -> str:
    prices = cost.prices
    workers = "1 worker" if cost.workers == 1 else f"{cost.workers} workers"
    return (
        f"Dataflow  {cost.vcpu_hours:,.2f} vCPU hours: {workers} of {MACHINE_VCPUS} vCPUs and {MACHINE_GIB} GiB for "
        f"{duration(round(cost.hours * 3600))}; {cost.shuffle_gib:,.2f} GiB through the shuffle; "
        f"{cost.memory_gib_per_process:.1f} GiB a vCPU needed\n"
        f"cost      ${cost.dollars:,.2f}, with FlexRS ${cost.dollars_flexrs:,.2f} (starts up to 6 h later)\n"
        f"          at list prices of {prices.region}, {prices.published}: ${prices.vcpu_hour:g} a vCPU hour, "
        f"${prices.memory_gib_hour:g} a GiB hour, FlexRS {1 - prices.flexrs:.0%} less; "
        f"${prices.shuffle_gib:g} a GiB of shuffle (its first volume is cheaper), ${prices.disk_gib_hour:g} a GiB hour "
        f"of disk ({DISK_GIB} GiB a worker)\n"
        f"          assumed: a vCPU does {VCPU_SPEED:g} of what a core does here, a worker starts in "
        f"{duration(WORKER_START_SECONDS)}"
    )
