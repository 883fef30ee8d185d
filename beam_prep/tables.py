"""What commands print on stdout: tables of an output, sequences, rendered rows, the catalogue."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from beam_prep import storage
from beam_prep.blocks import COPY_BITS
from beam_prep.inspection import DecodedSequence, Part, SequenceSpan, shorten, unit, visible
from beam_prep.manifest import Manifest, OutputEntry, SourceEntry
from beam_prep.rendering import Rendering, Row, raw_text
from beam_prep.rendering_page import about, head, place
from beam_prep.retry_rejected import Retried
from beam_prep.sizes import size
from beam_prep.templates import Template
from beam_prep.trainer_views import TRAINERS, Written
from beam_prep.views import view_folder

if TYPE_CHECKING:
    from beam_prep.find import Match

SHORT = 1_000
"""Characters of a text that are printed unless all are asked for."""
_PLAIN_WIDTH = 160
_SIDE_BY_SIDE = 100
CONTROL = "bold cyan reverse"
"""Style of control tokens."""


def open_console() -> Console:
    """A console on stdout; wide where nobody's window limits it."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_PLAIN_WIDTH)
    return console


def _table(*columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are words and the others figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", overflow="fold")
    return table


def print_output(console: Console, output: str, manifest: Manifest) -> None:
    """What is in an output: by source what went in and what came of it, then sequences, shards, padding."""
    for name, entry in manifest.outputs.items():
        console.print(Text(f"{storage.join(output, name)}", "bold"), soft_wrap=True)
        console.print(_shares(entry))
        console.print(_totals(entry), soft_wrap=True)
        console.print()
    console.print(_ledger(manifest))
    console.print()
    if len(manifest.generations) > 1:
        console.print(_generations(manifest), soft_wrap=True)
        console.print()


def _generations(manifest: Manifest) -> str:
    last = manifest.generations[-1]
    added = sum(entry.sequences for entry in last.outputs.values())
    return (
        f"{len(manifest.generations):,} generations; the last one added {added:,} sequences from {last.inputs.files:,} "
        "input files"
    )


def _shares(entry: OutputEntry) -> Table:
    table = _table("source", "asked", "documents", "copies", "tokens", "share", "epochs")
    for name, part in entry.sources.items():
        table.add_row(
            name,
            _asked(part),
            f"{part.documents:,}",
            f"{part.copies:,}",
            f"{part.tokens:,}",
            f"{part.share:.2%}",
            f"{part.epochs:.3g}",
        )
    return table


def _asked(part: SourceEntry) -> str:
    if part.asked_share is not None:
        return f"{part.asked_share:.2%}"
    epochs = part.asked_epochs
    if epochs is None:
        return ""
    return "1 epoch" if epochs == 1 else f"{epochs:g} epochs"


def _totals(entry: OutputEntry) -> str:
    shards = "1 shard" if len(entry.shards) == 1 else f"{len(entry.shards):,} shards"
    stored = size(sum(shard.bytes for shard in entry.shards))
    rest = [f"{entry.tokens:,} tokens", f"{entry.padding:,} of padding"]
    if entry.dropped_tokens:
        rest.append(f"{entry.dropped_tokens:,} dropped at the end")
    if entry.cut_documents:
        rest.append(f"{entry.cut_share:.1%} of the documents cut")
    return f"{entry.sequences:,} sequences of {entry.context_length:,} in {shards} ({stored}): {', '.join(rest)}"


def _ledger(manifest: Manifest) -> Table:
    table = _table("source", "records", "rejected", "filtered", "duplicates", "sampled out", "documents")
    for name, entry in manifest.ledger.items():
        figures = (entry.duplicates, entry.sampled_out, entry.documents)
        table.add_row(
            name,
            f"{entry.records:,}",
            _reasons(entry.rejected),
            _reasons(entry.filtered),
            *(f"{n:,}" for n in figures),
        )
    return table


def _reasons(counts: dict[str, int]) -> str:
    """`3 (invalid_json 2, null_field 1)`."""
    total = sum(counts.values())
    if not total:
        return "0"
    leading = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    if len(counts) == 1:
        return f"{total:,} {leading[0][0]}"
    return f"{total:,} ({', '.join(f'{reason} {count:,}' for reason, count in leading)})"


def print_where(console: Console, output: str, manifest: Manifest) -> None:
    """Where everything is, and how it is read."""
    name = next(iter(manifest.outputs))
    console.print(f"{storage.join(output, 'manifest.json')}  what was asked and what came out, with checksums")
    if manifest.rejected_files:
        console.print(f"{storage.join(output, 'rejected')}  the rejected records, each with its reason")
    variable = name.replace("/", "_").replace("-", "_").replace(".", "_")
    console.print(
        "\nread it:\n"
        "  import numpy as np\n"
        "  from data_forager.datasets.tokens import TokensDataset\n"
        f"  {variable} = TokensDataset.create_from_index_on_filesystem("
        f'"{storage.join(output, name)}", token_dtype=np.uint32)',
        soft_wrap=True,
    )


def print_view(output: str, name: str, length: int, sequences: int) -> None:
    """A view that was written, and how it is read."""
    folder = storage.join(output, name)
    open_console().print(
        f"{storage.join(folder, view_folder(length))}: {sequences:,} sequences of {length:,}\n"
        f'  TokensDataset.create_from_index_on_filesystem("{folder}", index_data_folder="{view_folder(length)}", '
        "token_dtype=np.uint32)",
        soft_wrap=True,
    )


def print_trainer_view(output: str, name: str, entry: OutputEntry, trainer: str, written: Written) -> None:
    """Index files that were written for a trainer, and how it reads them."""
    folder = storage.join(output, name)
    padding = f", and {written.padding:,} of padding" if written.padding else ""
    files = "1 index file" if written.files == 1 else f"{written.files:,} index files"
    reading = TRAINERS[trainer].reading(folder, entry.context_length, storage.is_local(output))
    open_console().print(
        f"{folder}: {files} for {trainer}: {written.documents:,} documents{padding}\n  {reading}", soft_wrap=True
    )


def parts_text(parts: Sequence[Part], full: bool) -> Text:
    """Decoded text, control tokens marked; shortened unless `full`."""
    text = Text()
    for part in parts if full else shorten(parts, SHORT):
        text.append(visible(part.text), CONTROL if part.control else "")
    return text


def print_sequence(console: Console, sequence: DecodedSequence, full: bool) -> None:
    """One sequence, document by document."""
    console.print(
        f"{sequence.output}, sequence {sequence.number:,}: {sequence.tokens:,} tokens, "
        f"{len(sequence.spans)} documents, at byte {sequence.offset:,} of {sequence.shard}",
        style="bold",
        soft_wrap=True,
    )
    for span in sequence.spans:
        console.print()
        console.print(Text(_span_head(span), "bold"), soft_wrap=True)
        console.print(Text(f"{place_text(span)}, id {span.id}", "dim"), soft_wrap=True)
        console.print(parts_text(span.parts, full), soft_wrap=not console.is_terminal)
    if sequence.padding:
        console.print(f"\n{sequence.padding:,} tokens of padding", style="bold")


def _span_head(span: SequenceSpan) -> str:
    begin = f"goes on from token {span.position:,}" if span.position else "begins"
    end = "ends" if span.ends else "goes on in another sequence"
    last = span.start + span.length - 1
    return f"── tokens {span.start:,} to {last:,}: {span.source}{copy_text(span)}, document {begin}, {end}"


def copy_text(span: SequenceSpan | Match) -> str:
    """Which of several copies, and of equal documents, a span is of; empty for the only one."""
    rank, number = span.copy >> COPY_BITS, span.copy & (2**COPY_BITS - 1)
    equal = f", {rank + 1}. of equal documents" if rank else ""
    return f"{equal}, copy {number + 1}" if number else equal


def place_text(span: SequenceSpan | Match) -> str:
    """File and offset of a span's record."""
    return f"{visible(span.file)}, {unit(span.file)} {span.offset:,}"


def print_renderings(console: Console, renderings: Sequence[Rendering], full: bool) -> None:
    """Raw records beside their text; one above the other where the window is narrow."""
    for rendering in renderings:
        console.print(Text(rendering.source, "bold"))
        console.print(Text(about(rendering), "dim"), soft_wrap=True)
        for row in rendering.rows:
            console.print()
            _print_row(console, row, full)
        console.print()


def _print_row(console: Console, row: Row, full: bool) -> None:
    style = {"rendered": "green", "rejected": "red", "filtered": "yellow"}[row.outcome]
    console.print(Text("── " + head(row), style), Text(visible(place(row)), "dim"), soft_wrap=True)
    raw = parts_text([Part(raw_text(row.raw), False)], full)
    text = parts_text(row.parts, full) if row.parts else Text(visible(row.message) or "no text", "italic")
    if console.is_terminal and console.width >= _SIDE_BY_SIDE:
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=1, overflow="fold")
        grid.add_column(ratio=1, overflow="fold")
        grid.add_row(raw, text)
        console.print(grid)
        return
    plain = not console.is_terminal
    console.print(raw, soft_wrap=plain)
    console.print(Text("→", "dim"))
    console.print(text, soft_wrap=plain)


def print_retried(console: Console, results: Sequence[Retried]) -> None:
    """What became of dead letters that were rendered again."""
    table = _table("dataset", "rejected", "now rendered", "filtered", "still rejected", left=1)
    for result in results:
        left = sum(result.rejected.values())
        counts = (result.letters, result.rendered, sum(result.filtered.values()), left)
        table.add_row(result.dataset, *(f"{count:,}" for count in counts))
    console.print(table)
    for result in results:
        for reason, count in result.rejected.most_common():
            console.print(
                f"{result.dataset}: {reason} {count:,}, first {visible(result.first[reason])}", soft_wrap=True
            )


def print_catalogue(console: Console, templates: Sequence[Template]) -> None:
    """The catalogue as a table."""
    table = _table("name", "purpose", "licence", "Hub", "about", left=5)
    for template in templates:
        hub = template.hub.path if template.hub else ""
        table.add_row(template.name, template.purpose or "", template.licence or "", hub, template.about or "")
    console.print(table)
    console.print("\n`beam-prep datasets NAME` shows one with an example", soft_wrap=True)


def print_entry(console: Console, template: Template, source: str, example: Sequence[Part] | None) -> None:
    """One entry: its YAML, how a configuration uses it, and its example as a model reads it."""
    console.print(Text(source.rstrip()), soft_wrap=True)
    if example is not None:
        console.print(Text("\nits example, rendered:", "bold"))
        console.print(parts_text(example, full=True), soft_wrap=True)
    console.print(Text("\nin a configuration:", "bold"))
    console.print(
        f"datasets:\n  - name: {template.name}\n    template: {template.name}\n    input: data/{template.name}/*.jsonl",
        soft_wrap=True,
    )


def to_json(value: Any) -> None:
    """Prints a value as JSON."""
    import orjson

    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    sys.stdout.write(text)
