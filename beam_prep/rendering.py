"""Render: the first rows of each source as raw record and rendered text. Reads no more than it needs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from beam_prep.config import Config
from beam_prep.documents import IM_END, IM_START, Document, Filtered, Reject
from beam_prep.errors import ConfigError
from beam_prep.inspection import Part
from beam_prep.job import Source, resolve_sources
from beam_prep.reading import RecordBatch, read_span
from beam_prep.sources import Span, match_source
from beam_prep.templates import Context, Template, compile_template
from beam_prep.tokenizer import SEPARATOR, Encoder, TokenizerSpec, at_hand, encoder
from beam_prep.transform import Transformer, compile_transformer, parse_record, transform_batch

ENOUGH_ROWS = 1_000
"""Rows after which no more rejects and filtered rows are looked for."""
MOST_ROWS = 20_000
"""Rows after which a source is given up that renders nothing."""

Outcome = Literal["rendered", "rejected", "filtered"]


class Row(NamedTuple):
    """One record and what became of it."""

    outcome: Outcome
    file: str
    offset: int
    """Byte of the record in its uncompressed file."""
    raw: bytes
    parts: list[Part]
    """The rendered text, control tokens apart; empty for rejects."""
    chars: int
    tokens: int
    """With control tokens and one separator; 0 for rejects."""
    reason: str
    """Name in the ledger; empty for what renders."""
    message: str


class Rendering(NamedTuple):
    """The first rows of one source."""

    source: str
    template: str
    rows: list[Row]
    """Rendered ones first, then rejects, then filtered ones, each in the order of the files."""
    counts: dict[Outcome, int]
    """What became of all rows that were read."""
    blank_lines: int
    complete: bool
    """Whether that was all of the source."""


def render_config(config: Config, base: Path | None = None, dataset: str | None = None, n: int = 3) -> list[Rendering]:
    """The first rows of each source, or of one.

    Args:
      base: folder of the configuration file, which its template files are relative to.
      dataset: the source's name; None for all.
      n: rows of each outcome.

    Raises:
      ConfigError: a template or an input is wrong, or there is no such dataset.
      BeamPrepError: a file cannot be read.
    """
    names = [d.name for d in config.datasets]
    if dataset is not None and dataset not in names:
        near = difflib.get_close_matches(dataset, names, n=1)
        raise ConfigError(f"dataset {dataset!r}: did you mean {near[0]!r}?" if near else _no_dataset(dataset, names))
    chosen = config.model_copy(update={"datasets": [d for d in config.datasets if dataset in (None, d.name)]})
    with at_hand(config.tokenizer) as tokenizer:
        sources = resolve_sources(chosen, tokenizer, base)
        encode = encoder(tokenizer, config.tokenizer_backend)
    return [render_source(source, tokenizer, encode, config.seed, n) for source in sources]


def _no_dataset(dataset: str, names: list[str]) -> str:
    return f"dataset {dataset!r} is not in the configuration; there is {', '.join(names)}"


def render_source(source: Source, tokenizer: TokenizerSpec, encode: Encoder, seed: int, n: int) -> Rendering:
    """The first rows of one source; see `render_config`."""
    special = [token for token, _ in tokenizer.special_tokens]
    template = source.template
    own_code = template.function is not None or template.prepare is not None
    transformer = compile_transformer(compile_template(template, special), template.filter, seed, own_code)
    renderer = _RowRenderer(source, transformer, encode)
    found: dict[Outcome, list[Row]] = {"rendered": [], "rejected": [], "filtered": []}
    counts: dict[Outcome, int] = {"rendered": 0, "rejected": 0, "filtered": 0}
    blank = seen = 0
    complete = True
    with closing(_lines(source)) as lines:
        for file, path, line, offset in lines:
            if _is_enough(found, seen, n):
                complete = False
                break
            if not line or line.isspace():
                blank += 1
                continue
            seen += 1
            row = renderer.row(file, path, line, offset)
            counts[row.outcome] += 1
            if len(found[row.outcome]) < n:
                found[row.outcome].append(row)
    rows = [row for outcome in found.values() for row in outcome]
    return Rendering(source.name, template.name or source.name, rows, counts, blank, complete)


def _is_enough(found: dict[Outcome, list[Row]], seen: int, n: int) -> bool:
    enough = all(len(rows) >= n for rows in found.values())
    return enough or seen >= MOST_ROWS or (seen >= ENOUGH_ROWS and len(found["rendered"]) >= n)


def _lines(source: Source) -> Iterator[tuple[int, str, bytes, int]]:
    """(file's number, its path, line, offset) from the beginning of a source."""
    for file in match_source(source.name, source.patterns):
        with closing(read_span(Span(file.number, file.path, 0, -1))) as batches:
            for lines, offsets in batches:
                for line, offset in zip(lines, offsets.tolist(), strict=True):
                    yield file.number, file.path, line, offset


class _RowRenderer:
    """Does to one line what a run does to it."""

    def __init__(self, source: Source, transformer: Transformer, encode: Encoder):
        self._transformer, self._encode = transformer, encode
        filter_ = source.template.filter
        self._min_tokens = filter_.min_tokens or 0
        self._max_tokens = filter_.max_tokens if filter_.max_tokens is not None else 2**62

    def row(self, file: int, path: str, line: bytes, offset: int) -> Row:
        """The line's row. Its tokens count the separator, as those of the ledger do."""
        batch = RecordBatch(0, "render", True, file, path, [line], np.array([offset], np.uint64))
        done = transform_batch(batch, self._transformer)
        if done.rejects:
            rejected = done.rejects[0]
            return Row("rejected", path, offset, line, [], 0, 0, rejected.reason, rejected.message)
        if done.tally.filtered:
            (reason,) = done.tally.filtered
            document = self._unfiltered(line)
            return self._shown("filtered", path, line, offset, document, reason)
        row = self._shown("rendered", path, line, offset, done.documents[0], "")
        if row.tokens - 1 < self._min_tokens:
            return row._replace(outcome="filtered", reason="min_tokens")
        if row.tokens - 1 > self._max_tokens:
            return row._replace(outcome="filtered", reason="max_tokens")
        return row

    def _unfiltered(self, line: bytes) -> Document | None:
        """What a filtered record renders to; None if its template turns it down itself."""
        try:
            document = self._transformer.render(parse_record(line), Context(self._transformer.seed, {}))
            (document if isinstance(document, str) else document.text()).encode()
        except (Filtered, Reject, UnicodeEncodeError):
            return None
        return document

    def _shown(
        self, outcome: Outcome, path: str, line: bytes, offset: int, document: Document | None, reason: str
    ) -> Row:
        if document is None:
            return Row(outcome, path, offset, line, [], 0, 0, reason, "")
        pieces = [document] if isinstance(document, str) else document.pieces
        controls = [] if isinstance(document, str) else document.controls
        parts = document_parts(document)
        ids, _ = self._encode.encode(list(pieces))
        tokens = len(ids) // 4 + len(controls) + 1
        return Row(outcome, path, offset, line, parts, sum(len(p.text) for p in parts), tokens, reason, "")


def document_parts(document: Document) -> list[Part]:
    """A rendered document's text, control tokens apart."""
    if isinstance(document, str):
        return [Part(document, False)]
    parts = [Part(document.pieces[0], False)]
    for control, piece in zip(document.controls, document.pieces[1:], strict=True):
        parts += (Part(control, True), Part(piece, False))
    return [part for part in parts if part.text]


def render_example(template: Template) -> list[Part] | None:
    """An entry's own example, rendered for a tokenizer with the usual control tokens; None if it has none."""
    if template.example is None:
        return None
    render = compile_template(template, [SEPARATOR, IM_START, IM_END])
    return document_parts(render(template.example, Context(0, {})))


def raw_text(raw: bytes) -> str:
    """A raw record for a reader: JSON spread over lines, anything else as it is, undecodable bytes escaped."""
    try:
        text = json.dumps(parse_record(raw), indent=2, ensure_ascii=False)
    except Reject:
        text = raw.decode("utf-8", "backslashreplace")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
