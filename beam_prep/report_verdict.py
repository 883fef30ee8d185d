"""The report's first lines: what is in the data, and what to worry about before training on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from beam_prep.manifest import OutputEntry
from beam_prep.report import UNKNOWN, Report, SourceLedger
from beam_prep.sizes import quantity

# From these on a figure is named.
MOST_EPOCHS = 4.0
"""Up to about four passes, repeated data is nearly as good as new (Muennighoff et al. 2023, Scaling Data-Constrained
Language Models)."""
REJECTED = 0.01
"""Of a source's records, as are the next two."""
DUPLICATES = 0.1
FILTERED = 0.5
SHARE_OFF = 0.02
"""Share of tokens, realised less asked for."""
EPOCHS_OFF = 0.1
"""Realised epochs against those asked for, relative."""
CUT = 0.2
"""Of the documents."""
EMPTY = 0.02
"""Positions that hold padding."""
TINY_SEQUENCES = 100
TOO_LITTLE = 0.0005
"""Share of an output's tokens that a source can hardly teach anything with."""
_MOST_NAMES = 3


class Finding(NamedTuple):
    """Something that a reader should know."""

    serious: bool
    """Whether to look at it before training; else it is good to know."""
    headline: str
    text: str
    section: str
    """Of the page, by its anchor."""


def percent(part: float) -> str:
    """A share for a reader: never 0 % for something, never 100 % for less than all. The space does not break."""
    if 0 < part < 0.0005:
        return "<\u202f0.1\u202f%"
    if 0.9995 <= part < 1:
        return ">\u202f99.9\u202f%"
    return f"{100 * part:.1f}\u202f%" if part not in (0, 1) else f"{100 * part:.0f}\u202f%"


def count(number: int, noun: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def headline(report: Report) -> str:
    """What is in the data, in one sentence."""
    outputs = report.manifest.outputs
    sequences = sum(entry.sequences for entry in outputs.values())
    lengths = sorted({entry.context_length for entry in outputs.values()})
    tokens = quantity(sum(entry.tokens for entry in outputs.values()))
    long = " and ".join(f"{length:,}" for length in lengths)
    sources = _and([f"{s.name} ({percent(s.tokens / max(1, report.total.tokens))})" for s in report.sources], 4)
    return (
        f"{tokens} tokens from {count(report.total.documents, 'document')} of "
        f"{count(len(report.sources), 'source')}, packed into {count(sequences, 'sequence')} of {long} tokens. "
        f"By tokens: {sources}."
    )


def findings(report: Report) -> list[Finding]:
    """What stands out, the serious first."""
    found = [*_of_sources(report), *_of_outputs(report), *_of_licences(report)]
    return sorted(found, key=lambda finding: not finding.serious)


def _and(names: Sequence[str], most: int = _MOST_NAMES) -> str:
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _of_sources(report: Report) -> Iterator[Finding]:
    def share(part: Callable[[SourceLedger], int], least: float) -> list[str]:
        large = [(part(s) / s.records, s.name) for s in report.sources if s.records and part(s)]
        large = sorted((pair for pair in large if pair[0] >= least), key=lambda pair: (-pair[0], pair[1]))
        return [f"{name} ({percent(value)})" for value, name in large]

    if names := share(lambda s: s.rejected, REJECTED):
        yield Finding(
            True,
            "Many records were rejected",
            f"{_and(names)} of the records could not be read or did not fit their template. If that is a mistake in "
            "the template, good data is missing here; the examples below show what they look like.",
            "rejected",
        )
    elif report.total.rejected:
        text = f"{report.total.rejected:,} of {count(report.total.records, 'record')}"
        yield Finding(
            False, "Some records were rejected", f"{text} could not become documents; see the examples.", "rejected"
        )
    if names := share(lambda s: s.duplicates, DUPLICATES):
        text = "of the records equal an earlier one, and were left out. The rest may hold near duplicates too."
        yield Finding(True, "Many duplicates", f"{_and(names)} {text}", "flow")
    if names := share(lambda s: s.filtered, FILTERED):
        yield Finding(True, "Filters took most of a source", f"{_and(names)} of the records were filtered.", "flow")
    if names := [s.name for s in report.sources if not s.tokens]:
        yield Finding(True, "Sources without a single token", f"{_and(names)}: nothing of it is in the data.", "flow")
    if names := [f"{s.name} ({sum(s.skipped_turns.values()):,})" for s in report.sources if s.skipped_turns]:
        yield Finding(
            False, "Turns of conversations were left out", f"{_and(names)}: the template has no role for them.", "flow"
        )


def _of_outputs(report: Report) -> Iterator[Finding]:
    repeated, off, by_chance, little, cut, empty, tiny = [], [], [], [], [], [], []
    outputs = report.manifest.outputs
    for name, entry in outputs.items():
        where = f" in {name}" if len(outputs) > 1 else ""
        for source, part in entry.sources.items():
            if part.epochs > MOST_EPOCHS:
                repeated.append((part.epochs, f"{source}{where} ({part.epochs:.1f} times)"))
            asked = part.asked_share
            if asked is not None and abs(part.share - asked) > SHARE_OFF:
                said = f"{source}{where} ({percent(part.share)} of the tokens, not {percent(asked)})"
                (off if entry.sequences >= TINY_SEQUENCES else by_chance).append((abs(part.share - asked), said))
            asked = part.asked_epochs
            if asked and abs(part.epochs - asked) > EPOCHS_OFF * asked:
                by_chance.append((0, f"{source}{where} ({part.epochs:.3g} passes, not {asked:g})"))
            if 0 < part.share < TOO_LITTLE:
                little.append((-part.share, f"{source}{where} ({part.tokens:,} tokens)"))
        if entry.cut_share >= CUT:
            cut.append((entry.cut_share, f"{percent(entry.cut_share)} of the documents{where}"))
        if _padded(entry) >= EMPTY and entry.padding >= entry.context_length:  # less is the end of one sequence
            empty.append((_padded(entry), f"{percent(_padded(entry))} of the positions{where}"))
        if entry.sequences < TINY_SEQUENCES:
            tiny.append((-entry.sequences, f"{name} ({count(entry.sequences, 'sequence')})"))
    yield from _listed(
        repeated, True, "Sources that are repeated often", "Beyond about four passes repeated text adds little, and is "
        "learnt by heart.", "shares",
    )  # fmt: skip
    yield from _listed(
        off, True, "Shares are not what was asked for", "The model will see another mixture than the configuration "
        "names. Few or very long documents leave it to chance.", "shares",
    )  # fmt: skip
    yield from _listed(
        by_chance, False, "Not quite what was asked for", "With so few documents chance decides.", "shares"
    )
    yield from _listed(
        cut, True, "Many documents are cut", "They go on in another sequence, where their beginning is not seen. "
        "Best-fit packing (packing: best_fit) or a longer context_length cuts fewer.", "packing",
    )  # fmt: skip
    yield from _listed(empty, True, "Much padding", "Positions that are computed and teach nothing.", "packing")
    yield from _listed(
        tiny, True, "Very small outputs", "A loss measured on, or a model trained with, so few sequences varies by "
        "chance.", "shares",
    )  # fmt: skip
    yield from _listed(little, False, "Sources that hardly count", "So little text leaves no trace.", "shares")


def _padded(entry: OutputEntry) -> float:
    return entry.padding / max(1, entry.padding + entry.tokens)


def _listed(found: list[tuple[float, str]], serious: bool, head: str, why: str, section: str) -> Iterator[Finding]:
    if found:
        names = [name for _, name in sorted(found, key=lambda pair: (-pair[0], pair[1]))]
        yield Finding(serious, head, f"{_and(names)}. {why}", section)


def _of_licences(report: Report) -> Iterator[Finding]:
    for licence in report.licences:
        if licence.name == UNKNOWN and licence.tokens:
            text = f"{percent(licence.share)} of the tokens, from {_and(licence.sources)}: their templates name none."
            yield Finding(True, "Licence not known", text, "licences")
