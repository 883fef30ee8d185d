"""Transform: from lines to documents; what does not become one is rejected or filtered, and counted."""

from __future__ import annotations

import base64
import json
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from beam_prep.config import MIN_CHARS_FOR_LONG, FieldFilter, Filter
from beam_prep.documents import Document, Filtered, Reject, Segments
from beam_prep.ledger import Tally
from beam_prep.lines import MAX_RECORD_BYTES, CutLine, line_size
from beam_prep.reading import RecordBatch
from beam_prep.sources import START, Position
from beam_prep.templates import Context, Renderer, lookup

_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_INT_DIGITS = 4000  # Python refuses to parse longer ones
_MEMBER = re.compile(r'"(?:[^"\\]|\\.)*"\s*:')
"""How a line of a pretty-printed record begins."""
TOO_LONG = "too_long"
"""Reason of lines of which only the beginning is there."""


class Rejected(NamedTuple):
    """A dead letter: where the record is, why it is no document, and the record itself."""

    path: str
    offset: int
    reason: str
    message: str
    raw: bytes


class DocumentBatch(NamedTuple):
    """The documents of one record batch (what crosses from Transform to Mix and on to Tokenize)."""

    source: int
    unit: str
    last: bool
    file: int
    path: str
    documents: list[Document]
    offsets: np.ndarray
    """uint64[n]: byte offsets of the documents' records."""
    chars: np.ndarray
    """uint32[n]: characters of the rendered text, control tokens included."""
    tally: Tally
    rejects: list[Rejected]
    ids: np.ndarray
    """uint64[n, 2]: 128-bit hash of the rendered text; filled by Mix (empty before)."""
    begin: Position = START
    end: Position = START
    finished: int = 0
    """All three as in `RecordBatch`."""
    wanted: np.ndarray | None = None
    """bool[n], filled by Mix: documents that some output may hold; the others are empty and not encoded.
    None: all of them."""


class Transformer(NamedTuple):
    """A source's compiled template and filters."""

    render: Renderer
    fields: tuple[Callable[[dict], str | None], ...]
    min_chars: int
    max_chars: int
    long: bool
    seed: int
    checked: bool
    """Whether text must be checked for lone surrogates (only code of the user's own can make them)."""


def compile_filters(filter_: Filter) -> tuple[Callable[[dict], str | None], ...]:
    """The comparisons of a filter as functions record → the reason it is filtered, or None."""
    return tuple(_compile_field(field) for field in filter_.fields)


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "in": lambda value, options: value in options,
    "not_in": lambda value, options: value not in options,
}


def _compile_field(field: FieldFilter) -> Callable[[dict], str | None]:
    path, when_present = field.field, field.when_present
    tests = [(f"{path}.{name}", _OPERATORS[name], wanted) for name, wanted in field.comparisons().items()]

    def check(record: dict) -> str | None:
        value = lookup(record, path)
        if value is None:
            return None if when_present else tests[0][0]
        for reason, test, wanted in tests:
            try:
                if not test(value, wanted):
                    return reason
            except TypeError:  # a string against a number, say
                return reason
        return None

    return check


def parse_record(line: bytes) -> dict:
    """One line as a JSON object.

    Raises:
      Reject: too_long, invalid_utf8, invalid_json, lone_surrogate or not_an_object.
    """
    if isinstance(line, CutLine):
        raise Reject(
            TOO_LONG,
            f"the line has {line.size:,} bytes, more than the {MAX_RECORD_BYTES:,} that a record may have; its "
            f"beginning is kept; if it is a whole file without line feeds, write one record a line",
        )
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = _parse_unusual(line)
    if type(value) is not dict:
        hint = "; write each of its items on a line of its own" if _holds_records(value) else ""
        raise Reject("not_an_object", f"the row is JSON, but not an object: {line[:60]!r}{hint}")
    return value


def _parse_unusual(line: bytes) -> Any:
    """Tells apart what the fast parser only refuses, and takes valid JSON that it is too strict for."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Reject("invalid_utf8", f"byte {error.start} is not UTF-8") from None

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def integer(digits: str) -> int | float:
        return int(digits) if len(digits) <= _MAX_INT_DIGITS else float(digits)

    try:
        value = json.loads(text, parse_constant=constant, parse_int=integer)
        shown = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise Reject("invalid_json", "nested too deeply") from None
    except ValueError as error:
        raise Reject("invalid_json", f"{error}{_layout_hint(text)}") from None
    if _SURROGATE.search(shown):
        raise Reject("lone_surrogate", "the row holds half a surrogate pair, which is no character")
    return value


def _holds_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _layout_hint(text: str) -> str:
    """What may be wrong with the whole file, if this line looks like a part of a record or of a list of records."""
    text = text.strip()
    if text in ("[", "]") or text.startswith("[{") or (text.startswith("{") and text.endswith("},")):
        return "; the file looks like a JSON array: `jq -c '.[]' FILE` writes one record a line"
    if text in ("{", "}", "},") or _MEMBER.match(text):
        return "; the file looks pretty-printed, a record over several lines: `jq -c . FILE` writes one a line"
    return ""


def transform_batch(batch: RecordBatch, transformer: Transformer) -> DocumentBatch:
    """Renders the records of a batch. Every line is counted as blank, rejected, filtered or rendered."""
    documents: list[Document] = []
    kept: list[int] = []
    chars: list[int] = []
    rejects: list[Rejected] = []
    tally = Tally(bytes=sum(map(len, batch.lines)) + len(batch.lines))
    render, fields, min_chars, max_chars = (
        transformer.render,
        transformer.fields,
        transformer.min_chars,
        transformer.max_chars,
    )
    context = Context(transformer.seed, tally.skipped_turns)
    loads, reject_error = orjson.loads, orjson.JSONDecodeError

    for index, line in enumerate(batch.lines):
        if not line:
            tally.blank_lines += 1
            continue
        try:
            try:
                record = loads(line)
            except reject_error:
                if line.isspace() and not isinstance(line, CutLine):
                    tally.blank_lines += 1
                    continue
                record = parse_record(line)
            if type(record) is not dict:
                parse_record(line)
            document = render(record, context)
            for check in fields:
                if (reason := check(record)) is not None:
                    raise Filtered(reason)
            length = len(document) if type(document) is str else len(document.text())
            if length < min_chars:
                raise Filtered("long" if transformer.long and min_chars == MIN_CHARS_FOR_LONG else "min_chars")
            if length > max_chars:
                raise Filtered("max_chars")
            if transformer.checked:
                _check_text(document)
        except Filtered as filtered:
            tally.filtered[filtered.reason] += 1
            continue
        except Exception as error:  # a template or a user's function that fails on one row must not stop the run
            rejects.append(_rejected(error, batch.path, int(batch.offsets[index]), line))
            tally.bytes += line_size(line) - len(line)
            tally.rejected[rejects[-1].reason] += 1
            continue
        documents.append(document)
        kept.append(index)
        chars.append(length)

    tally.rendered = len(documents)
    tally.records = len(documents) + len(rejects) + sum(tally.filtered.values())
    return DocumentBatch(
        batch.source,
        batch.unit,
        batch.last,
        batch.file,
        batch.path,
        documents,
        batch.offsets[kept],
        np.array(chars, np.uint32),
        tally,
        rejects,
        np.empty((0, 2), np.uint64),
        batch.begin,
        batch.end,
        batch.finished,
    )


def _rejected(error: Exception, path: str, offset: int, line: bytes) -> Rejected:
    if isinstance(error, Reject):
        code, message = error.code, error.message
    else:
        code, message = "template_error", f"{type(error).__name__}: {error}"
    # What failed may be a text that no file can hold.
    message = message[:500].encode("utf-8", "backslashreplace").decode()
    return Rejected(path, offset, code, message, raw_record(line))


def _check_text(document: Document) -> None:
    pieces: Sequence[str] = document.pieces if isinstance(document, Segments) else (document,)
    if any(_SURROGATE.search(piece) for piece in pieces):
        raise Reject("lone_surrogate", "the rendered text holds half a surrogate pair, which is no character")


def raw_record(line: bytes) -> bytes:
    """A record as it is kept in a dead letter."""
    return bytes(line)


def compile_transformer(renderer: Renderer, filter_: Filter, seed: int, checked: bool) -> Transformer:
    """Joins a renderer with a source's filters."""
    shortest = filter_.min_chars or 0
    long = filter_.long and shortest < MIN_CHARS_FOR_LONG
    return Transformer(
        renderer,
        compile_filters(filter_),
        MIN_CHARS_FOR_LONG if long else shortest,
        filter_.max_chars if filter_.max_chars is not None else 2**62,
        long,
        seed,
        checked,
    )


def dead_letter(source: str, rejected: Rejected) -> bytes:
    """One line of a rejected file: JSON with dataset, file, offset, reason, message and the raw record."""
    letter: dict[str, Any] = {
        "dataset": source,
        "file": rejected.path,
        "offset": rejected.offset,
        "reason": rejected.reason,
        "message": rejected.message,
    }
    try:
        letter["raw"] = rejected.raw.decode("utf-8")
    except UnicodeDecodeError:
        letter["raw_base64"] = base64.b64encode(rejected.raw).decode()
    return orjson.dumps(letter) + b"\n"
