"""Inspection: what is in an output, and any of its sequences as the text that a model will see."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_prep import storage
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.index import read_location
from beam_prep.manifest import Manifest, TokenizerEntry, is_finished
from beam_prep.parquet import is_parquet
from beam_prep.tokenizer import at_hand, changed_since, decoder


class Part(NamedTuple):
    """A piece of text, or one control token as it is written."""

    text: str
    control: bool


_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def visible(text: str) -> str:
    """Text whose control characters are shown as their pictures, so that none reaches a terminal."""
    return text.translate(_CONTROLS)


def unit(file: str) -> str:
    """What an offset within a file counts."""
    return "row" if is_parquet(file) else "byte"


def shorten(parts: Sequence[Part], chars: int) -> list[Part]:
    """Parts up to so many characters, and then how many more there are."""
    result: list[Part] = []
    left = chars
    for part in parts:
        result.append(part if part.control else Part(part.text[:left], False))
        left -= len(part.text)
        if left < 0:
            rest = sum(len(p.text) for p in parts) - sum(len(p.text) for p in result)
            return [*result, Part(f" … {rest:,} more characters", False)]
    return result


class SequenceSpan(NamedTuple):
    """A part of a document that lies in one sequence."""

    start: int
    """First token within the sequence."""
    length: int
    source: str
    file: str
    offset: int
    """Byte of the record in its uncompressed file (row number for Parquet)."""
    id: str
    copy: int
    """Rank among equal documents << 32 | number of the copy."""
    position: int
    """The span's first token within its document; above 0 the document began in another sequence."""
    ends: bool
    """Whether the document ends here, that is, whether its separator does."""
    parts: list[Part]

    @property
    def text(self) -> str:
        """The decoded tokens."""
        return "".join(part.text for part in self.parts)


class DecodedSequence(NamedTuple):
    """One sequence of an output."""

    output: str
    number: int
    shard: str
    offset: int
    """Byte within the shard."""
    tokens: int
    padding: int
    """Separators behind the last document."""
    spans: list[SequenceSpan]


class Decoder:
    """Token ids to text, control tokens apart."""

    def __init__(self, tokenizer: Any, special: dict[int, str], note: str | None = None):
        self._tokenizer, self._special = tokenizer, special
        self._ids = np.array(sorted(special), np.int64)
        self.note = note
        """What is wrong with the tokenizer, if anything."""

    def parts(self, ids: np.ndarray) -> list[Part]:
        """The text of ids (integer[n]). Characters that a span cuts through become U+FFFD."""
        parts: list[Part] = []
        begin = 0
        for index in np.nonzero(np.isin(ids, self._ids))[0].tolist():
            self._plain(ids[begin:index], parts)
            parts.append(Part(self._special[int(ids[index])], True))
            begin = index + 1
        self._plain(ids[begin:], parts)
        return parts

    def _plain(self, ids: np.ndarray, parts: list[Part]) -> None:
        if len(ids):
            parts.append(Part(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False), False))


def open_decoder(entry: TokenizerEntry) -> Decoder:
    """The decoder for a manifest's tokenizer; its `note` says if that has changed since the run.

    Raises:
      ConfigError: the tokenizer is not to be had (any more).
    """
    with at_hand(entry.name) as spec:
        tokenizer = decoder(spec)
    changed = changed_since(spec, entry.sha256)
    note = changed and f"{changed}; the text may be wrong"
    return Decoder(tokenizer, {id_: token for token, id_ in spec.special_tokens}, note)


def summary(output: str, manifest: Manifest) -> dict[str, Any]:
    """What is in an output, for programs: the manifest's figures without its list of shards."""
    outputs = {}
    for name, entry in manifest.outputs.items():
        outputs[name] = {**entry.model_dump(exclude={"shards"}, exclude_none=True), "shards": len(entry.shards)}
    return {
        "output": output,
        "finished": is_finished(output, manifest),
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
        "tokenizer": manifest.tokenizer.model_dump(),
        "dtype": manifest.dtype,
        "context_length": manifest.context_length,
        "seed": manifest.seed,
        "generations": max(1, len(manifest.generations)),
        "outputs": outputs,
        "ledger": {name: entry.model_dump() for name, entry in manifest.ledger.items()},
    }


def choose_output(manifest: Manifest, name: str | None) -> str:
    """The output of that name, or the first one.

    Raises:
      ConfigError: there is none of that name.
    """
    if name is None:
        return next(iter(manifest.outputs))
    if name not in manifest.outputs:
        raise ConfigError(f"output {name!r} is not there; there is {', '.join(manifest.outputs)}")
    return name


def read_sequence(output: str, manifest: Manifest, name: str, number: int, decoder_: Decoder) -> DecodedSequence:
    """Reads and decodes sequence `number` of the output `name`, with the documents it is made of.

    Raises:
      ConfigError: there is no such sequence.
      BeamPrepError: a file is missing or damaged.
    """
    entry = manifest.outputs[name]
    if not 0 <= number < entry.sequences:
        raise ConfigError(f"sequence {number}: {name} has {entry.sequences:,}, numbered from 0")
    folder = storage.join(output, name)
    try:
        path, offset, size = read_location(folder, number)
        shard = next(s for s in entry.shards if s.path == path)
        ids = _read_ids(storage.join(folder, shard.path), offset, size)
        documents = read_documents(
            storage.join(folder, shard.documents), filters=[("sequence", "=", offset // (4 * entry.context_length))]
        )
    except (OSError, ValueError, IndexError, StopIteration, pa.ArrowException) as error:
        raise BeamPrepError(
            f"{folder}: cannot be read ({error}); `beam-prep verify {output}` says what is off"
        ) from None
    spans = _spans(documents, ids, manifest.tokenizer.eod_token_id, decoder_)
    padding = len(ids) - max((span.start + span.length for span in spans), default=0)
    return DecodedSequence(name, number, shard.path, offset, len(ids), padding, spans)


def as_json(sequence: DecodedSequence) -> dict[str, Any]:
    """A sequence for programs: `parts` of a document are {"text": …} or {"control": …}."""
    spans = []
    for span in sequence.spans:
        parts = [{"control" if part.control else "text": part.text} for part in span.parts]
        spans.append({**span._asdict(), "text": span.text, "parts": parts})
    return {**sequence._asdict(), "spans": spans}


def read_documents(path: str, columns: Sequence[str] | None = None, filters: list | None = None) -> pa.Table:
    """A sidecar, or the part of it that passes `filters`, in the order of the stream."""
    source = path if storage.is_local(path) else io.BytesIO(storage.read_bytes(path))
    return pq.read_table(source, columns=columns, filters=filters)


def _read_ids(path: str, offset: int, size: int) -> np.ndarray:
    with storage.open_read(path) as file:
        file.seek(offset)
        parts, missing = [], size
        while missing and (part := file.read(missing)):
            parts.append(part)
            missing -= len(part)
    if missing:
        raise OSError(f"{path}: ends before byte {offset + size}")
    return np.frombuffer(b"".join(parts), "<u4").astype(np.int64)


def _spans(documents: pa.Table, ids: np.ndarray, eod: int, decoder_: Decoder) -> list[SequenceSpan]:
    names = ("start", "length", "source", "file", "offset", "id", "copy", "position")
    rows = zip(*(documents.column(name).to_pylist() for name in names), strict=True)
    spans = []
    for start, length, source, file, offset, id_, copy, position in rows:
        own = ids[start : start + length]
        ends = bool(len(own) and own[-1] == eod)
        spans.append(SequenceSpan(start, length, source, file, offset, id_, copy, position, ends, decoder_.parts(own)))
    return spans
