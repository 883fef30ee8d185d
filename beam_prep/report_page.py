"""The page of a report: one file, nothing loaded from elsewhere; whatever stands in the data is escaped."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from beam_prep import __version__
from beam_prep.inspection import Part, shorten, visible
from beam_prep.manifest import OutputEntry, SourceEntry
from beam_prep.report import UNKNOWN, Report, SourceLedger
from beam_prep.report_distributions import RATE_BINS, Distribution, length_of, quantile, rate_of
from beam_prep.report_plots import GAP, Bar, Ridge, bars, lengths, rates
from beam_prep.report_verdict import count, findings, headline, percent
from beam_prep.sizes import quantity, size

_MOST_BARS = 16
_MOST_PLOTS = 8
_LABEL_CHARS = 28
_SAMPLE_CHARS = 500


class _Plot(NamedTuple):
    svg: Markup
    caption: str


class _LengthRow(NamedTuple):
    name: str
    documents: int
    mean: str
    median: str
    most: str
    """Nine in ten documents are at most so long."""
    rate: str
    """Tokens per byte of text."""
    raw_rate: str
    """Tokens of one pass per byte read."""


class _Sample(NamedTuple):
    name: str
    made_from: str
    """Template and files."""
    parts: list[Part]


class _Output(NamedTuple):
    name: str
    entry: OutputEntry
    documents: int
    copies: int
    stored: str
    rows: list[tuple[str, SourceEntry, str]]
    """Source, its part, what was asked for."""
    plot: _Plot | None


def page(report: Report) -> str:
    """The page as HTML."""
    manifest = report.manifest
    first = next(iter(manifest.outputs))
    return _environment().get_template("report.html.j2").render(
        report=report,
        manifest=manifest,
        headline=headline(report),
        findings=findings(report),
        outputs=_outputs(report),
        copies=sum(part.copies for entry in manifest.outputs.values() for part in entry.sources.values()),
        sequences=sum(entry.sequences for entry in manifest.outputs.values()),
        samples=_samples(report),
        lengths=_lengths(report),
        waterfall=_waterfall(report.total),
        fates=_fates(report),
        documents_plot=_length_plot(report),
        rates_plot=_rate_plot(report),
        licences_plot=_licence_plot(report),
        configuration=yaml.safe_dump(manifest.configuration, sort_keys=False, allow_unicode=True, width=100),
        first=first,
        variable="".join(c if c.isalnum() else "_" for c in first),
        unknown=UNKNOWN,
    )  # fmt: skip


def failure_page(error: BaseException) -> str:
    """The page that stands in for a report that could not be made."""
    why = traceback.format_exception_only(error)[-1].strip()
    return _environment().get_template("report_failed.html.j2").render(why=why, version=__version__)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("beam_prep", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "quantity": quantity, "size": size}
    environment.globals |= {"count": count}
    return environment


def _label(name: str) -> str:
    return name if len(name) <= _LABEL_CHARS else name[: _LABEL_CHARS - 1] + "…"


def _outputs(report: Report) -> list[_Output]:
    shown = []
    for number, (name, entry) in enumerate(report.manifest.outputs.items()):
        rows = sorted(entry.sources.items(), key=lambda pair: (-pair[1].tokens, pair[0]))
        shown.append(
            _Output(
                name,
                entry,
                sum(part.documents for part in entry.sources.values()),
                sum(part.copies for part in entry.sources.values()),
                size(sum(shard.bytes for shard in entry.shards)),
                [(source, part, _asked(part)) for source, part in rows],
                _share_plot(number, name, rows) if number < _MOST_PLOTS else None,
            )
        )
    return shown


def _asked(part: SourceEntry) -> str:
    if part.asked_share is not None:
        return percent(part.asked_share)
    if part.asked_epochs is None:
        return "–"
    return "1 pass" if part.asked_epochs == 1 else f"{part.asked_epochs:g} passes"


def _share_plot(number: int, output: str, rows: Sequence[tuple[str, SourceEntry]]) -> _Plot:
    shown = []
    for source, part in rows[:_MOST_BARS]:
        value = f"{percent(part.share)} · {part.epochs:.3g}×"
        shown.append(Bar(_label(source), value, (("kept", part.share),), part.asked_share))
    if rest := rows[_MOST_BARS:]:
        share = sum(part.share for _, part in rest)
        shown.append(Bar(f"{len(rest)} more sources", percent(share), (("sampled", share),)))
    told = ", ".join(f"{bar.label} {bar.value.split(' ·')[0]}" for bar in shown)
    caption = "Share of the tokens, and how often each text is seen on average."
    if any(bar.mark is not None for bar in shown):
        caption += " The line is what was asked for."
    title = f"Share of the tokens of {output} by source"
    return _Plot(Markup(bars(f"shares-{number}", title, f"Bars: {told}. The table has the figures.", shown)), caption)


_FATES: tuple[tuple[str, str, str], ...] = (
    ("documents", "kept", "became documents"),
    ("sampled_out", "sampled", "not needed for the mixture"),
    ("duplicates", "duplicates", "duplicates"),
    ("filtered", "filtered", "filtered"),
    ("rejected", "rejected", "rejected"),
)


def _waterfall(total: SourceLedger) -> _Plot:
    rows = [Bar("records read", f"{total.records:,}", (("ink", total.records),))]
    left = total.records
    for field, colour, label in reversed(_FATES[1:]):
        lost = getattr(total, field)
        if lost:
            left -= lost
            rows.append(Bar(label, f"− {lost:,}", ((GAP, left), (colour, lost))))
    rows.append(Bar("documents in the data", f"{total.documents:,}", (("kept", total.documents),)))
    told = ", ".join(f"{row.label} {row.value}" for row in rows)
    return _Plot(Markup(bars("flow-all", "From records to documents, all sources", f"{told}.", rows)), "All sources.")


def _fates(report: Report) -> _Plot:
    """What became of each source's records, as shares of them."""
    shown, rest = report.sources[:_MOST_BARS], report.sources[_MOST_BARS:]
    rows = []
    for source in shown:
        parts = tuple((colour, getattr(source, field) / max(1, source.records)) for field, colour, _ in _FATES)
        rows.append(Bar(_label(source.name), f"{source.records:,} → {quantity(source.tokens)} tokens", parts))
    if rest:
        records = sum(source.records for source in rest)
        parts = tuple((colour, sum(getattr(s, f) for s in rest) / max(1, records)) for f, colour, _ in _FATES)
        tokens = quantity(sum(source.tokens for source in rest))
        rows.append(Bar(f"{len(rest)} more sources", f"{records:,} → {tokens} tokens", parts))
    told = ", ".join(f"{row.label} {_fate_words(row)}" for row in rows)
    svg = bars("flow-sources", "What became of the records of each source", f"Stacked bars: {told}.", rows)
    return _Plot(Markup(svg), "By source: records read, and the tokens that they gave; each bar is all its records.")


def _fate_words(row: Bar) -> str:
    pairs = zip(row.parts, _FATES, strict=True)
    return " ".join(f"{words} {percent(part)}" for (_, part), (*_, words) in pairs if part)


def _rows_of(
    report: Report, counts: Callable[[Distribution], np.ndarray], value: Callable[[Distribution], str]
) -> list[Ridge]:
    there = [
        (source.name, report.distributions.sources[source.name])
        for source in report.sources
        if source.name in report.distributions.sources and counts(report.distributions.sources[source.name]).any()
    ]
    return [Ridge(_label(name), value(found), counts(found)) for name, found in there[:_MOST_BARS]]


def _length_plot(report: Report) -> _Plot | None:
    rows = _rows_of(report, lambda d: d.lengths, lambda d: f"median {_tokens_at(d.lengths, 0.5)}")
    if not rows:
        return None
    contexts = sorted({entry.context_length for entry in report.manifest.outputs.values()})
    told = ", ".join(f"{row.label} {row.value}" for row in rows)
    svg = lengths("lengths", "Tokens of a document, by source", f"Distributions: {told}.", rows, contexts)
    more = f" The {len(rows)} largest sources." if len(report.sources) > len(rows) else ""
    which = " and ".join(f"{context:,}" for context in contexts)
    return _Plot(Markup(svg), f"Black: the median. Dashed: a sequence ({which} tokens).{more}")


def _rate_plot(report: Report) -> _Plot | None:
    rows = _rows_of(report, lambda d: d.rates, lambda d: f"{d.text_tokens / max(1, d.text_bytes):.3f}")
    if not rows:
        return None
    told = ", ".join(f"{row.label} {row.value}" for row in rows)
    svg = rates("rates", "Tokens per byte of text, by source", f"Distributions: {told} tokens per byte.", rows)
    return _Plot(Markup(svg), "Black: the median. On the right: all tokens by all bytes of the sample.")


def _tokens_at(counts: np.ndarray, part: float) -> str:
    return _about(length_of(quantile(counts, part))) if counts.any() else "–"


def _about(number: float) -> str:
    """Two digits: bins of lengths are a twelfth wide."""
    digits = max(0, len(str(round(number))) - 2)
    return f"{round(round(number), -digits):,}"


def _samples(report: Report) -> list[_Sample]:
    samples = []
    for source in report.sources:
        found = report.distributions.sources.get(source.name)
        if found is None or not found.sample:
            continue
        asked = report.manifest.dataset(source.name)
        template = asked.get("template")
        made = f"template {template}" if isinstance(template, str) else "a template of its own"
        if asked.get("text_field"):
            made = f"field {asked['text_field']}"
        files = asked.get("input") or []
        files = [files] if isinstance(files, str) else files
        parts = [Part(visible(part.text), part.control) for part in _beginning(found.sample)]
        samples.append(_Sample(source.name, f"{made}, from {', '.join(map(str, files[:3]))}", parts))
    return samples[:_MOST_BARS]


def _beginning(sample: Sequence[Part]) -> list[Part]:
    """A sample's first characters, and whether there are more; a document ends with its separator."""
    parts = shorten(sample, _SAMPLE_CHARS)
    if sum(len(part.text) for part in sample) > _SAMPLE_CHARS:
        parts = parts[:-1]  # it counts the characters of the sample, not those of the document
    elif parts[-1].control:
        return parts
    return [*parts, Part(" …", False)]


def _lengths(report: Report) -> list[_LengthRow]:
    rows = []
    for source in report.sources:
        found = report.distributions.sources.get(source.name)
        if found is None:
            continue
        parts = [o.sources[source.name] for o in report.manifest.outputs.values() if source.name in o.sources]
        copies = sum(part.copies for part in parts)
        once = max((part.tokens / part.epochs for part in parts if part.epochs), default=0.0)
        if "stages" not in report.manifest.configuration:  # then outputs share no document
            once = sum(part.tokens / part.epochs for part in parts if part.epochs)
        rows.append(
            _LengthRow(
                source.name,
                int(found.lengths.sum()),
                f"{source.tokens / copies:,.0f}" if copies else "–",
                _tokens_at(found.lengths, 0.5),
                _tokens_at(found.lengths, 0.9),
                _spread_of_rates(found),
                f"{once / source.bytes:.3f}" if source.bytes and once else "–",
            )
        )
    return rows


def _spread_of_rates(found: Distribution) -> str:
    if not found.rates.any():
        return "–"
    low, high = (min(rate_of(quantile(found.rates, part)), rate_of(RATE_BINS)) for part in (0.05, 0.95))
    return f"{found.text_tokens / max(1, found.text_bytes):.3f} ({low:.2f} – {high:.2f})"


def _licence_plot(report: Report) -> _Plot:
    rows = []
    for licence in report.licences[:_MOST_BARS]:
        colour = "filtered" if licence.name == UNKNOWN else "kept"
        rows.append(Bar(_label(licence.name), percent(licence.share), ((colour, licence.share),)))
    told = ", ".join(f"{row.label} {row.value}" for row in rows)
    return _Plot(Markup(bars("licences", "Share of the tokens by licence", f"Bars: {told}.", rows)), "")
