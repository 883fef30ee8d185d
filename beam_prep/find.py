"""Find: the sequences of an output that hold a text, a document or a record."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_prep import storage
from beam_prep.errors import SEE_VERIFY, BeamPrepError, ConfigError
from beam_prep.find_text import TextFinder, find_in_file, read_vocabulary, sample_ids
from beam_prep.inspection import Decoder, Part, read_documents
from beam_prep.manifest import Manifest, ShardEntry, TokenizerEntry
from beam_prep.tokenizer import at_hand, changed_since
from beam_prep.tokenizer import decoder as load_tokenizer

_CONTEXT_TOKENS = 24
"""Shown of a document before and behind what was found in it."""
_ID = re.compile(r"[0-9a-f]{32}")
_PLACE = re.compile(r"(.+):(\d{1,19})", re.S)


class Match(NamedTuple):
    """Where a text or a document stands."""

    output: str
    sequence: int
    """Number within the output."""
    start: int
    """First token within the sequence."""
    length: int
    """Tokens: those that hold the text, or the document's in this sequence."""
    source: str
    file: str
    offset: int
    id: str
    copy: int
    position: int
    """Of the first token within its document."""
    snippet: list[Part]
    """The text with some around it, or the beginning of the document's."""


class Found(NamedTuple):
    """What a search gave."""

    kind: Literal["text", "document", "record"]
    matches: list[Match]
    more: bool
    """Whether the search ended at the limit, and there are more."""


def find(output: str, manifest: Manifest, names: Sequence[str], wanted: str, limit: int | None) -> Found:
    """The sequences of some outputs that hold what is wanted.

    Args:
      wanted: a document's id, `FILE:OFFSET` with an input of the run or the end of its path, or any other text.
      limit: matches after which the search ends; None: all.

    Raises:
      ConfigError: it is empty or not UTF-8, or the tokenizer cannot be had or is not a byte-level one.
      BeamPrepError: a file of the output is missing or damaged, or the tokenizer has changed.
    """
    try:
        if not wanted.encode():
            raise ConfigError("nothing to find: the text is empty")
    except UnicodeEncodeError:
        raise ConfigError("the text to find is not UTF-8") from None
    if _ID.fullmatch(wanted):
        matches = list(_take(_documents(output, manifest, names, pc.field("id") == wanted), limit))
        if matches:  # else 32 digits may be a text like any other
            return _found("document", matches, limit)
    place = _PLACE.fullmatch(wanted)
    if place is not None and int(place[2]) < 2**63 and (files := _files(output, manifest, names, place[1])):
        rows = pc.field("file").isin(files) & (pc.field("offset") == pa.scalar(int(place[2]), pa.uint64()))
        return _found("record", list(_take(_documents(output, manifest, names, rows), limit)), limit)
    return _found("text", list(_take(_texts(output, manifest, names, wanted), limit)), limit)


def _take(matches: Iterator[Match], limit: int | None) -> Iterator[Match]:
    """One more than the limit, to know whether there are more."""
    for number, match in enumerate(matches):
        yield match
        if limit is not None and number >= limit:
            return


def _found(kind: Literal["text", "document", "record"], matches: list[Match], limit: int | None) -> Found:
    return Found(kind, matches[:limit], limit is not None and len(matches) > limit)


def _shards(manifest: Manifest, name: str) -> Iterator[tuple[ShardEntry, int]]:
    """The shards of an output, each with the number of its first sequence."""
    first = 0
    for shard in manifest.outputs[name].shards:
        yield shard, first
        first += shard.sequences


def _read_sidecar(path: str, **how: Any) -> pa.Table:
    try:
        return read_documents(path, **how)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BeamPrepError(f"{path}: cannot be read ({' '.join(str(error).split())}); {SEE_VERIFY}") from None


def _files(output: str, manifest: Manifest, names: Sequence[str], wanted: str) -> list[str]:
    """The inputs of that path, or whose path ends so."""
    files: set[str] = set()
    for name in names:
        for shard, _ in _shards(manifest, name):
            table = _read_sidecar(storage.join(output, name, shard.documents), columns=["file"])
            files.update(pc.unique(table["file"]).to_pylist())
    ending = "/" + wanted.lstrip("/") if not wanted.startswith("/") else wanted
    return sorted(file for file in files if file == wanted or (ending != wanted and file.endswith(ending)))


def _documents(output: str, manifest: Manifest, names: Sequence[str], rows: pc.Expression) -> Iterator[Match]:
    """The spans whose sidecar rows an expression takes."""
    tokenizer: Decoder | None = None
    for name in names:
        length = manifest.outputs[name].context_length
        for shard, first in _shards(manifest, name):
            found = _read_sidecar(storage.join(output, name, shard.documents), filters=rows)
            for row in found.to_pylist():
                tokenizer = tokenizer or _open(manifest.tokenizer)[0]
                begin = row["sequence"] * length + row["start"]
                path = storage.join(output, name, shard.path)
                ids = _ids(path, begin, min(row["length"], 4 * _CONTEXT_TOKENS))
                yield _match(name, first, row, row["start"], row["length"], tokenizer.parts(ids))


def _match(name: str, first: int, row: dict[str, Any], start: int, length: int, snippet: list[Part]) -> Match:
    return Match(
        name,
        first + row["sequence"],
        start,
        length,
        *(row[key] for key in ("source", "file", "offset", "id", "copy")),
        row["position"] + start - row["start"],
        snippet,
    )


def _ids(path: str, begin: int, count: int) -> np.ndarray:
    try:
        return np.frombuffer(storage.read_range(path, 4 * begin, 4 * count), "<u4").astype(np.int64)
    except OSError as error:
        raise BeamPrepError(f"{path}: cannot be read ({error}); {SEE_VERIFY}") from None


def _open(entry: TokenizerEntry) -> tuple[Decoder, Any]:
    """The tokenizer of an output: for reading, and itself."""
    with at_hand(entry.name) as spec:
        tokenizer = load_tokenizer(spec)
    if changed := changed_since(spec, entry.sha256):
        raise BeamPrepError(f"{changed}, and cannot say which text its tokens are")
    return Decoder(tokenizer, {id_: token for token, id_ in spec.special_tokens}), tokenizer


def _texts(output: str, manifest: Manifest, names: Sequence[str], text: str) -> Iterator[Match]:
    """The occurrences of a text within single spans; overlapping ones are several."""
    decoder, tokenizer = _open(manifest.tokenizer)
    vocabulary = read_vocabulary(tokenizer, manifest.tokenizer.name)
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if not text:
        raise ConfigError("nothing to find: the tokenizer's normalizer leaves nothing of the text")
    for name in names:
        finder: TextFinder | None = None
        for shard, first in _shards(manifest, name):
            path = storage.join(output, name, shard.path)
            if finder is None:
                finder = TextFinder(vocabulary, text.encode(), sample_ids(path, len(vocabulary)))
            sidecar: _Sidecar | None = None
            length = manifest.outputs[name].context_length
            for place in find_in_file(finder, path, len(vocabulary)):
                sidecar = sidecar or _Sidecar(storage.join(output, name, shard.documents))
                sequence, start = divmod(place.first, length)
                end = start + place.end - place.first
                row = sidecar.row(sequence, start, end)
                if row is None:
                    continue
                low = max(row["start"], start - _CONTEXT_TOKENS)
                high = min(row["start"] + row["length"], end + _CONTEXT_TOKENS)
                snippet = decoder.parts(_ids(path, sequence * length + low, high - low))
                yield _match(name, first, row, start, end - start, snippet)


class _Sidecar:
    """The spans of a shard, for looking up which one holds a token. Memory: the sidecar's, unpacked."""

    def __init__(self, path: str):
        self._table = _read_sidecar(path).combine_chunks()
        self._sequence, self._start, self._length = (
            self._table.column(name).to_numpy().astype(np.int64) for name in ("sequence", "start", "length")
        )

    def row(self, sequence: int, start: int, end: int) -> dict[str, Any] | None:
        """The span that holds tokens [start, end) of a sequence of the shard; None if no single one does."""
        low, high = np.searchsorted(self._sequence, [sequence, sequence + 1]).tolist()
        number = low + int(np.searchsorted(self._start[low:high], start, side="right")) - 1
        if number < low or end > self._start[number] + self._length[number]:
            return None
        return self._table.slice(number, 1).to_pylist()[0]


def found_as_json(found: Found) -> dict[str, Any]:
    """What was found, for programs."""
    matches = []
    for match in found.matches:
        snippet = [{"control" if part.control else "text": part.text} for part in match.snippet]
        matches.append({**match._asdict(), "snippet": snippet})
    return {"kind": found.kind, "more": found.more, "matches": matches}
