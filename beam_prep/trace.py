"""Trace: from a sequence back to its documents and their raw records."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from beam_prep import catalog, storage
from beam_prep.config import Config
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.inspection import DecodedSequence, Decoder, Part, SequenceSpan, choose_output, read_sequence, unit
from beam_prep.inspection import as_json as sequence_as_json
from beam_prep.lines import MAX_RECORD_BYTES
from beam_prep.manifest import Manifest
from beam_prep.mix import document_ids, id_text
from beam_prep.parquet import is_parquet
from beam_prep.reading import read_span
from beam_prep.run_file import remembered_call
from beam_prep.sources import Span, is_compressed
from beam_prep.templates import Context, Renderer, compile_template
from beam_prep.tokenizer import at_hand
from beam_prep.transform import parse_record

_READ_BYTES = 64 << 10


class Record(NamedTuple):
    """A raw record, read from its input again."""

    state: Literal["same", "unchecked", "changed", "gone"]
    """Whether it still renders to the document's id; `gone`: nothing can be read there."""
    raw: bytes | None
    """The line without its line feed; of Parquet the row as JSON, as templates see it."""
    message: str = ""
    """What is wrong, or why it could not be checked."""


class TracedSpan(NamedTuple):
    """A span, and what is known of its document."""

    span: SequenceSpan
    licence: str | None
    record: Record | None = None
    """None where it was not asked for."""


class Trace(NamedTuple):
    """A sequence and the documents that it is made of."""

    sequence: DecodedSequence
    spans: list[TracedSpan]


class _Untold:
    """In a decoder's place where no text is asked for: loading a tokenizer takes a second."""

    def parts(self, ids: np.ndarray) -> list[Part]:
        return []


def which_output(manifest: Manifest, name: str | None) -> str:
    """The output of that name; without one the only output, or `train`.

    Raises:
      ConfigError: there is none of that name, or several to choose from.
    """
    names = list(manifest.outputs)
    if name is not None or len(names) == 1:
        return choose_output(manifest, name)
    if "train" not in names:
        raise ConfigError(f"there are several outputs; choose one with --output: {', '.join(names)}")
    return "train"


def trace_sequence(output: str, manifest: Manifest, name: str, number: int, decoder: Decoder | None = None) -> Trace:
    """The documents of sequence `number` of the output `name`.

    Args:
      number: over all shards of the output; negative ones count from the end.
      decoder: for the spans' text; None leaves it out.

    Raises:
      ConfigError: there is no such sequence.
      BeamPrepError: a file of the output is missing or damaged.
    """
    count = manifest.outputs[name].sequences
    if not -count <= number < count:
        bounds = f"numbered from 0, or from -{count:,} to -1" if count else "so that there is nothing to trace"
        raise ConfigError(f"sequence {number:,}: {name} has {count:,} sequences, {bounds}")
    sequence = read_sequence(output, manifest, name, number % count, decoder or _Untold())  # type: ignore[arg-type]
    licences = getattr(manifest, "licences", None) or {}
    return Trace(sequence, [TracedSpan(span, licences.get(span.source)) for span in sequence.spans])


def open_records(trace: Trace, output: str, manifest: Manifest) -> Trace:
    """The trace with the raw records of its documents, each read from its input once and held against the id."""
    offsets: dict[str, set[int]] = defaultdict(set)
    for traced in trace.spans:
        offsets[traced.span.file].add(traced.span.offset)
    records = {file: read_records(file, wanted) for file, wanted in offsets.items()}
    check = _Check(output, manifest)
    spans = []
    for traced in trace.spans:
        span = traced.span
        record = records[span.file][span.offset]
        spans.append(traced._replace(record=check.checked(span.source, span.id, record)))
    return trace._replace(spans=spans)


def lost(trace: Trace) -> bool:
    """Whether some record is gone or no longer the document's."""
    return any(traced.record is not None and traced.record.state in ("gone", "changed") for traced in trace.spans)


def read_records(path: str, offsets: Collection[int]) -> dict[int, Record]:
    """The records of a file by their offsets (row numbers of a Parquet file), `unchecked` or `gone`.

    Of a plain file no more than the records is read, of Parquet their row groups, of a compressed file everything
    before them.
    """
    if not storage.exists(path):
        return dict.fromkeys(offsets, Record("gone", None, f"{path}: the file is gone; it was there during the run"))
    found: dict[int, bytes] = {}
    try:
        if is_parquet(path):
            found = dict(_rows(path, offsets))
        elif is_compressed(path):
            found = dict(_owned(Span(0, path, 0, -1), offsets))
        else:
            with storage.open_read(path) as file:
                for offset in sorted(offsets):
                    if (line := _line_at(file, offset)) is not None:
                        found[offset] = line
        problem = ""
    except (BeamPrepError, OSError) as error:
        problem = str(error)
    none = f"{path}: no record begins at {unit(path)} {{:,}} any more; the file has changed since the run"
    return {
        offset: Record("unchecked", found[offset])
        if offset in found
        else Record("gone", None, problem or none.format(offset))
        for offset in offsets
    }


def _line_at(file: Any, offset: int) -> bytes | None:
    """The line that begins at a byte of a file, without its line feed; None if none begins there."""
    file.seek(max(0, offset - 1))
    parts: list[bytes] = []
    size = 0
    while size <= MAX_RECORD_BYTES and (part := file.read(_READ_BYTES)):
        if not parts and offset:
            before, part = part[:1], part[1:]
            if before != b"\n" and not (offset == 3 and _begins_with_mark(file)):
                return None
        line, feed, _ = part.partition(b"\n")
        parts.append(line)
        size += len(line)
        if feed:
            break
    return b"".join(parts) or None  # a blank line is no record


def _begins_with_mark(file: Any) -> bool:
    at = file.tell()
    file.seek(0)
    head = file.read(3)
    file.seek(at)
    return head == b"\xef\xbb\xbf"


def _rows(path: str, rows: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """(row number, record) of rows of a Parquet file, from their row groups."""
    try:
        with storage.open_read(path) as file, pq.ParquetFile(file) as parquet:
            groups = [parquet.metadata.row_group(n).num_rows for n in range(parquet.metadata.num_row_groups)]
    except pa.ArrowException as error:
        raise BeamPrepError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    ends = np.cumsum(groups)
    by_group: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        if len(ends) and row < ends[-1]:
            by_group[int(np.searchsorted(ends, row, side="right"))].append(row)
    for group, wanted in sorted(by_group.items()):
        yield from _owned(Span(0, path, group, group + 1), wanted)


def _owned(span: Span, offsets: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """(offset, record) of a span's records that are asked for; reads no further than the last one."""
    wanted = np.array(sorted(offsets), np.uint64)
    for lines, found in read_span(span):
        index = np.flatnonzero(np.isin(found, wanted))
        yield from ((int(found[n]), lines[n]) for n in index.tolist())
        if found[-1] >= wanted[-1]:
            return


class _Check:
    """Holds records against ids: renders them with the templates of the run's configuration."""

    def __init__(self, output: str, manifest: Manifest):
        self._output, self._manifest = output, manifest
        self._renderers: dict[str, Renderer | str] = {}
        self._seed = manifest.seed

    def checked(self, source: str, id_: str, record: Record) -> Record:
        """The record with what became of it."""
        if record.raw is None:
            return record
        if source not in self._renderers:
            try:
                self._renderers[source] = self._compile(source)
            except (ConfigError, ValidationError) as error:
                self._renderers[source] = f"could not be checked: {str(error).splitlines()[0]}"
        render = self._renderers[source]
        if isinstance(render, str):
            return record._replace(message=render)
        try:
            high, low = document_ids([render(parse_record(record.raw), Context(self._seed, {}))])[0].tolist()
        except Exception as error:  # a template may raise anything for a record that it was not made for
            reason = str(error) or type(error).__name__
            return record._replace(
                state="changed",
                message=f"it no longer renders ({reason}); it or its template has changed since the run",
            )
        if id_text(high, low) != id_:
            return record._replace(
                state="changed",
                message=f"it no longer renders to this document (now id {id_text(high, low)}); it or its template has "
                "changed since the run",
            )
        return record._replace(state="same")

    def _compile(self, source: str) -> Renderer:
        config = Config.model_validate(self._manifest.configuration)
        dataset = next((d for d in config.datasets if d.name == source), None)
        if dataset is None:
            raise ConfigError(f"the manifest's configuration has no dataset {source!r}")
        with at_hand(self._manifest.tokenizer.name) as spec:
            special = [token for token, _ in spec.special_tokens]
        return compile_template(catalog.resolve(dataset, self._base()), special)

    def _base(self) -> Path | None:
        """The folder of the run's configuration, which template files are relative to."""
        try:
            call = remembered_call(self._output)
        except ConfigError:
            return None
        return Path(call).parent if storage.is_local(call) else None


def as_json(trace: Trace, text: bool) -> dict[str, Any]:
    """A trace for programs. A record's `raw` is `raw_base64` where it is not UTF-8.

    Args:
      text: whether the spans' texts were asked for.
    """
    result = sequence_as_json(trace.sequence)
    for entry, traced in zip(result["spans"], trace.spans, strict=True):
        if not text:
            del entry["text"], entry["parts"]
        entry |= {"continuation": traced.span.position > 0, "licence": traced.licence}
        if traced.record is not None:
            entry["record"] = _record_as_json(traced.record)
    return result


def _record_as_json(record: Record) -> dict[str, Any]:
    result: dict[str, Any] = {"state": record.state, "message": record.message}
    if record.raw is not None:
        try:
            result["raw"] = record.raw.decode()
        except UnicodeDecodeError:
            result["raw_base64"] = base64.b64encode(record.raw).decode()
    return result
