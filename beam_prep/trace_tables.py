"""What `beam-prep trace` prints: the documents of a sequence, their raw records, and what was found."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from beam_prep.find import Found, Match
from beam_prep.inspection import Part, shorten, visible
from beam_prep.rendering import raw_text
from beam_prep.tables import CONTROL, SHORT, copy_text, parts_text, place_text
from beam_prep.trace import Record, Trace, TracedSpan

_STATES = {
    "same": "the record, which renders to this document",
    "unchecked": "the record",
    "changed": "the record as it is now",
    "gone": "no record",
}


def print_trace(console: Console, trace: Trace, text: bool, full: bool) -> None:
    """The documents of a sequence, one after the other.

    Args:
      text: whether their text is printed.
      full: whether long texts and records are printed whole.
    """
    sequence = trace.sequence
    documents = "1 document" if len(trace.spans) == 1 else f"{len(trace.spans):,} documents"
    console.print(
        f"{sequence.output}, sequence {sequence.number:,}: {sequence.tokens:,} tokens, {documents}, at byte "
        f"{sequence.offset:,} of {sequence.shard}",
        style="bold",
        soft_wrap=True,
    )
    for traced in trace.spans:
        if text or traced.record is not None:
            console.print()
        _print_head(console, traced)
        if text:
            console.print(parts_text(traced.span.parts, full), soft_wrap=not console.is_terminal)
        if traced.record is not None:
            _print_record(console, traced.record, full)
    if sequence.padding:
        console.print(f"── {sequence.padding:,} tokens of padding", style="bold", soft_wrap=True)


def _print_head(console: Console, traced: TracedSpan) -> None:
    span = traced.span
    licence = f", licence {traced.licence}" if traced.licence else ""
    begin = f"goes on from token {span.position:,}" if span.position else "begins"
    end = "ends" if span.ends else "goes on in another sequence"
    copy = copy_text(span)
    console.print(
        Text(
            f"── tokens {span.start:,} to {span.start + span.length - 1:,} ({span.length:,}): {span.source}{copy}, "
            f"document {begin}, {end}",
            "bold",
        ),
        soft_wrap=True,
    )
    console.print(Text(f"   {place_text(span)}, id {span.id}{licence}", "dim"), soft_wrap=True)


def _print_record(console: Console, record: Record, full: bool) -> None:
    style = {"changed": "red", "gone": "red", "unchecked": "yellow"}.get(record.state, "green")
    message = f": {record.message}" if record.message else ""
    console.print(Text(f"→ {_STATES[record.state]}{visible(message)}", style), soft_wrap=True)
    if record.raw is not None:
        text = raw_text(record.raw)
        console.print(parts_text([Part(text, False)], full), soft_wrap=not console.is_terminal)


def print_found(console: Console, output: str, wanted: str, found: Found) -> None:
    """What was found, and how to see more of it."""
    if not found.matches:
        console.print(nothing_found(wanted, found), soft_wrap=True)
        return
    for match in found.matches:
        console.print(Text(_match_head(match, found), "bold"), soft_wrap=True)
        console.print(Text(f"   {place_text(match)}, id {match.id}", "dim"), soft_wrap=True)
        snippet = Text("   ")
        for part in shorten(match.snippet, SHORT):
            shown = visible(part.text.replace("\n", "⏎").replace("\t", " "))
            snippet.append(shown, CONTROL if part.control else "")
        console.print(snippet, soft_wrap=not console.is_terminal)
    count = len(found.matches)
    if found.more:
        console.print(f"\nthe first {count:,}; there are more: --limit N, or --limit 0 for all", soft_wrap=True)
    else:
        console.print(f"\n{count:,} in all", soft_wrap=True)
    first = found.matches[0]
    console.print(f"beam-prep trace {output} {first.sequence} --output {first.output} --text --open", soft_wrap=True)


def nothing_found(wanted: str, found: Found) -> str:
    """One line on what was looked for in vain."""
    shown = visible(wanted if len(wanted) <= 80 else wanted[:80] + "…").replace("\n", "⏎")
    if found.kind == "record":
        return (
            f"no document comes from {shown}: no record begins there, or it was rejected, filtered, a duplicate, or "
            "sampled out"
        )
    return f"no document holds {shown!r}"


def _match_head(match: Match, found: Found) -> str:
    last = match.start + match.length - 1
    tokens = f"token {last:,}" if match.length == 1 else f"tokens {match.start:,} to {last:,}"
    where = f"{match.output}, sequence {match.sequence:,}, {tokens}: {match.source}{copy_text(match)}"
    if match.position:
        where += f", token {match.position:,} of the document" if found.kind == "text" else f", from {match.position:,}"
    return where
