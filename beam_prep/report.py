"""The report of an output: what is gathered for `report.html`, and the writing of it.

It is made from the manifest and what lies beside it alone. But for the times of the steps (`run.json`) it holds nothing
that differs between equal runs.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import threading
from typing import NamedTuple

import pyarrow as pa

from beam_prep import storage
from beam_prep.errors import BeamPrepError
from beam_prep.inspection import unit, visible
from beam_prep.layout import REPORT
from beam_prep.manifest import LedgerEntry, Manifest, parse_manifest
from beam_prep.report_distributions import Distributions, read_distributions, vocabulary
from beam_prep.retry_rejected import read_dead_letters
from beam_prep.run_file import StepTime, kept_step_times
from beam_prep.tokenizer import TokenizerSpec, at_hand, changed_since

UNKNOWN = "not known"
"""Licence of a source that names none."""
_EXAMPLE_CHARS = 400
_EXAMPLES_A_REASON = 2
_EXAMPLES_A_SOURCE = 6
_SOURCES_WITH_EXAMPLES = 20
_MOST_LETTERS = 2_000
"""Rejected records of a source that are looked through for examples."""

_log = logging.getLogger(__name__)


class Example(NamedTuple):
    """A rejected record."""

    reason: str
    place: str
    message: str
    raw: str


class SourceLedger(NamedTuple):
    """What became of a source's records."""

    name: str
    records: int
    rejected: int
    filtered: int
    duplicates: int
    sampled_out: int
    documents: int
    tokens: int
    """In all outputs, every copy counted."""
    bytes: int
    """Read, uncompressed; 0 where the manifest does not say."""
    reasons: dict[str, int]
    """Why records were rejected."""
    filters: dict[str, int]
    """Which filter turned records down."""
    skipped_turns: dict[str, int]
    max_rejects: float


class Licence(NamedTuple):
    """A licence and what is under it."""

    name: str
    sources: list[str]
    tokens: int
    share: float


class Report(NamedTuple):
    """All that the page tells."""

    manifest: Manifest
    sources: list[SourceLedger]
    """The largest, by tokens, first."""
    total: SourceLedger
    licences: list[Licence]
    distributions: Distributions
    examples: dict[str, list[Example]]
    """By source."""
    steps: list[StepTime]
    """Empty where no times were kept (on engines of several machines)."""


def gather(output: str, manifest: Manifest, tokenizer: TokenizerSpec | None) -> Report:
    """Reads what the report needs.

    Args:
      tokenizer: the one that made the output; without it nothing is said about tokens per byte, and no text is shown.

    Raises:
      BeamPrepError, OSError, pyarrow.ArrowException: a file of the output is missing or damaged.
    """
    sources = [_source(manifest, name, entry) for name, entry in manifest.ledger.items()]
    sources.sort(key=lambda source: (-source.tokens, source.name))
    return Report(
        manifest,
        sources,
        _total(sources),
        _licences(manifest, sources),
        read_distributions(output, manifest, None if tokenizer is None else vocabulary(tokenizer)),
        _examples(output, sources),
        kept_step_times(output),
    )


def _source(manifest: Manifest, name: str, entry: LedgerEntry) -> SourceLedger:
    more = entry.model_extra or {}
    limit = manifest.dataset(name).get("max_rejects", manifest.configuration.get("max_rejects", 0.01))
    return SourceLedger(
        name,
        entry.records,
        sum(entry.rejected.values()),
        sum(entry.filtered.values()),
        entry.duplicates,
        entry.sampled_out,
        entry.documents,
        entry.tokens,
        int(more.get("bytes") or 0),
        _largest_first(entry.rejected),
        _largest_first(entry.filtered),
        _largest_first(more.get("skipped_turns") or {}),
        float(limit),
    )


def _largest_first(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(((k, n) for k, n in counts.items() if n), key=lambda pair: (-pair[1], pair[0])))


def _total(sources: list[SourceLedger]) -> SourceLedger:
    sums = [sum(getattr(s, field) for s in sources) for field in SourceLedger._fields[1:9]]
    return SourceLedger("all sources", *sums, {}, {}, {}, 0.0)


def _licences(manifest: Manifest, sources: list[SourceLedger]) -> list[Licence]:
    named = (manifest.model_extra or {}).get("licences") or {}
    found: dict[str, list[SourceLedger]] = {}
    for source in sources:
        found.setdefault(str(named.get(source.name) or UNKNOWN), []).append(source)
    total = sum(source.tokens for source in sources)
    licences = []
    for name, own in found.items():
        tokens = sum(source.tokens for source in own)
        licences.append(Licence(name, [source.name for source in own], tokens, tokens / total if total else 0.0))
    return sorted(licences, key=lambda licence: (-licence.tokens, licence.name))


def _examples(output: str, sources: list[SourceLedger]) -> dict[str, list[Example]]:
    most = sorted((s for s in sources if s.rejected), key=lambda s: (-s.rejected, s.name))
    return {source.name: _examples_of(output, source) for source in most[:_SOURCES_WITH_EXAMPLES]}


def _examples_of(output: str, source: SourceLedger) -> list[Example]:
    by_reason: dict[str, list[Example]] = {}
    wanted = min(_EXAMPLES_A_SOURCE, sum(min(n, _EXAMPLES_A_REASON) for n in source.reasons.values()))
    for letter in itertools.islice(read_dead_letters(output, source.name), _MOST_LETTERS):
        own = by_reason.setdefault(letter["reason"], [])
        if len(own) < _EXAMPLES_A_REASON:
            own.append(_example(letter))
        if sum(map(len, by_reason.values())) >= wanted:
            break
    order = list(source.reasons)
    reasons = sorted(by_reason, key=lambda reason: order.index(reason) if reason in order else len(order))
    return [example for reason in reasons for example in by_reason[reason]][:_EXAMPLES_A_SOURCE]


def _example(letter: dict) -> Example:
    raw = letter["raw"] if "raw" in letter else f"(bytes that are no UTF-8, as base64) {letter['raw_base64']}"
    place = f"{letter['file']}, {unit(letter['file'])} {letter['offset']:,}"
    return Example(letter["reason"], visible(place), _short(letter["message"]), _short(raw))


def _short(text: str) -> str:
    rest = len(text) - _EXAMPLE_CHARS
    return visible(text[:_EXAMPLE_CHARS]) + (f" … {rest:,} more characters" if rest > 0 else "")


def tokenizer_of(manifest: Manifest) -> TokenizerSpec | None:
    """The tokenizer that made an output; None if it is not to be had, or is another one today."""
    try:
        with at_hand(manifest.tokenizer.name) as spec:
            if changed_since(spec, manifest.tokenizer.sha256):
                return None
            vocabulary(spec)  # kept from now on, where the file is not
            return spec
    except BeamPrepError:
        return None


def write_report(output: str, manifest: Manifest, tokenizer: TokenizerSpec | None) -> str:
    """Writes `report.html` of an output; returns its path.

    Raises:
      BeamPrepError: a file of the output is missing or damaged, or the page cannot be written.
    """
    from beam_prep.report_page import page  # matplotlib: a second that only this takes

    path = storage.join(output, REPORT)
    try:
        report = gather(output, manifest, tokenizer)
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise BeamPrepError(
            f"{output}: cannot be read ({error}); `beam-prep verify {output}` says what is off"
        ) from error
    storage.write_bytes(path, [page(report).encode("utf-8", "replace")])
    return path


def load_ahead() -> None:
    """Imports what draws the page in a thread, while shards are written: it takes about a second."""

    def load() -> None:
        with contextlib.suppress(Exception):  # is raised again, and handled, where the page is made
            importlib.import_module("beam_prep.report_page")

    threading.Thread(target=load, name="beam-prep-report", daemon=True).start()


def try_report(output: str, manifest: bytes, tokenizer: TokenizerSpec) -> None:
    """Writes the report of a run that is about to finish; if that fails, the run does not.

    The failure is logged and counted (`finalize/reports_failed`), and a page that names it is written instead.
    """
    try:
        write_report(output, parse_manifest(manifest), tokenizer)
    except Exception as error:  # whatever it is, the data is whole
        from apache_beam.metrics import Metrics

        from beam_prep.report_page import failure_page

        _log.warning("the report could not be made; `beam-prep report %s` tries again", output, exc_info=True)
        Metrics.counter("finalize", "reports_failed").inc()
        try:
            storage.write_bytes(storage.join(output, REPORT), [failure_page(error).encode()])
        except Exception:
            _log.warning("nor could a page that says so be written", exc_info=True)
