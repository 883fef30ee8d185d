"""Finding a text among tokens, whatever way it was cut into them.

How a text is tokenized depends on what stands around it, so that its own ids need not occur where it does. Its bytes
do. With a byte-level vocabulary every token is a string of bytes, and a text occurs where its bytes occur in those of
neighbouring tokens. Not all tokens are unfolded for that: one byte of the text, the anchor, is chosen, and only tokens
that can cover it (that agree with the text wherever they overlap it, in some place) are looked at more closely. Every
occurrence has such a token, so nothing is missed; the anchor is the byte for which a sample of the corpus has fewest.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from beam_prep import storage
from beam_prep.errors import BeamPrepError, ConfigError

BLOCK_TOKENS = 1 << 21
"""Tokens that are read at a time, 8 MiB."""
_ANCHORS = 1024
"""Bytes at the text's beginning among which the anchor is chosen."""
_NO_TOKEN = b"\xff"
"""For ids without a token: in no UTF-8, and so in no text."""


class Place(NamedTuple):
    """Tokens of a file that hold an occurrence."""

    first: int
    end: int
    """Behind the last one."""


class Placement(NamedTuple):
    """A token that can stand at an occurrence, and what it covers of the text."""

    id: int
    low: int
    high: int


class Vocabulary:
    """The bytes of every token id.

    Args:
      tokens: by id.
    """

    def __init__(self, tokens: Sequence[bytes]):
        self.tokens = tokens
        self.sizes = np.array([len(token) for token in tokens], np.int64)
        self.longest = int(self.sizes.max(initial=0))

    def __len__(self) -> int:
        return len(self.tokens)

    def text(self, ids: np.ndarray) -> bytes:
        """The bytes of ids (integer[n]), one after the other."""
        return b"".join(map(self.tokens.__getitem__, ids.tolist()))

    @cached_property
    def _ids(self) -> dict[bytes, list[int]]:
        ids: dict[bytes, list[int]] = {}
        for id_, token in enumerate(self.tokens):
            ids.setdefault(token, []).append(id_)
        return ids

    @cached_property
    def _forwards(self) -> list[bytes]:
        return sorted(token for token in self._ids if len(token) > 1)

    @cached_property
    def _backwards(self) -> list[bytes]:
        """The tokens read from their ends."""
        return sorted(token[::-1] for token in self._forwards)

    def placements(self, text: bytes, limit: int) -> list[Placement]:
        """Every way in which a token can cover some of the first `limit` bytes of an occurrence of `text`."""
        found = []
        size, longest, ids = len(text), self.longest, self._ids
        for low in range(min(size, limit)):
            for high in range(low + 1, min(size, low + longest) + 1):
                found += [Placement(id_, low, high) for id_ in ids.get(text[low:high], ())]
        for low in range(max(0, size - longest + 1), min(size, limit)):  # tokens that go on behind the text
            for token in _beginning_with(self._forwards, text[low:]):
                found += [Placement(id_, low, size) for id_ in ids[token]]
        for high in range(1, min(size, longest - 1) + 1):  # tokens that begin before it
            for token in _beginning_with(self._backwards, text[:high][::-1]):
                found += [Placement(id_, 0, high) for id_ in ids[token[::-1]]]
        if size + 2 <= longest:
            within = [token for token in self._forwards if text in token[1:-1]]
            found += [Placement(id_, 0, size) for token in within for id_ in ids[token]]
        return found


def _beginning_with(tokens: list[bytes], beginning: bytes) -> list[bytes]:
    """Those of sorted tokens that begin so, and go on."""
    size = len(beginning)
    low = bisect_left(tokens, beginning)
    high = bisect_right(tokens, beginning, low, key=lambda token: token[:size])
    return [token for token in tokens[low:high] if len(token) > size]


def read_vocabulary(tokenizer: Any, name: str) -> Vocabulary:
    """The vocabulary of a `tokenizers.Tokenizer`; added tokens as they are written.

    Raises:
      ConfigError: it is not a byte-level one, whose tokens need not be bytes of the text.
    """
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    kinds = {decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", []))}
    if kinds - {"Sequence", None} != {"ByteLevel"}:
        raise ConfigError(
            f"tokenizer {name!r} is not a byte-level one, and no text can be found by its tokens; "
            "give a document's id, or FILE:OFFSET"
        )
    own = tokenizer.get_vocab(with_added_tokens=False)
    added = tokenizer.get_added_tokens_decoder()
    tokens = [_NO_TOKEN] * (1 + max([*own.values(), *added], default=0))
    alphabet = _alphabet()
    for token, id_ in own.items():
        try:
            tokens[id_] = token.translate(alphabet).encode("latin-1")
        except UnicodeEncodeError:  # no string of the alphabet, which a decoder takes as it is written
            tokens[id_] = token.encode()
    for id_, added_token in added.items():
        tokens[id_] = added_token.content.encode()
    return Vocabulary(tokens)


def _alphabet() -> dict[int, int]:
    """Characters of a byte-level vocabulary → bytes: printable ones stand for themselves, others from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {256 + number: byte for number, byte in enumerate(others)}
    return dict.fromkeys(others, 0xFFFD) | {byte: byte for byte in printable} | stand_ins


class TextFinder:
    """Finds one text in files of tokens.

    Args:
      text: UTF-8, not empty.
      sample: integer[n], ids of the corpus, by which the anchor is chosen; decides the speed, not the result.
    """

    def __init__(self, vocabulary: Vocabulary, text: bytes, sample: np.ndarray):
        self._vocabulary, self._text = vocabulary, text
        placements = vocabulary.placements(text, _ANCHORS)
        counts = np.bincount(sample, minlength=len(vocabulary))
        steps = np.zeros(len(text) + 1, np.int64)
        for id_, low, high in placements:
            steps[low] += counts[id_]
            steps[high] -= counts[id_]
        self._anchor = int(np.argmin(np.cumsum(steps)[: min(len(text), _ANCHORS)]))
        self._covers = np.zeros(len(vocabulary), bool)
        self._covers[[id_ for id_, low, high in placements if low <= self._anchor < high]] = True
        self.reach = len(text)
        """Tokens that must be known before and behind those that are searched."""

    def find(self, ids: np.ndarray, begin: int, end: int) -> Iterator[Place]:
        """The occurrences whose anchor lies in ids[begin:end] (integer[n]), in order, overlapping ones included."""
        candidates = np.flatnonzero(self._covers[ids[begin:end]]) + begin
        if not len(candidates):
            return
        # A token covers at least one byte, so that an occurrence reaches no further than this.
        lows = np.maximum(candidates - self._anchor, 0)
        highs = np.minimum(candidates + (len(self._text) - self._anchor), len(ids))
        first = np.flatnonzero(np.concatenate([[True], lows[1:] > highs[:-1]]))
        last = np.concatenate([first[1:], [len(candidates)]]) - 1
        for low, high in zip(lows[first].tolist(), highs[last].tolist(), strict=True):
            window = ids[low:high]
            joined = self._vocabulary.text(window)
            at = joined.find(self._text)
            if at < 0:
                continue
            ends = np.cumsum(self._vocabulary.sizes[window])
            while at >= 0:
                bounds = np.searchsorted(ends, [at, at + self._anchor, at + len(self._text) - 1], side="right")
                start, anchor, stop = (bounds + low).tolist()
                if begin <= anchor < end:
                    yield Place(start, stop + 1)
                at = joined.find(self._text, at + 1)


def find_in_file(finder: TextFinder, path: str, vocabulary: int, block: int | None = None) -> Iterator[Place]:
    """The occurrences in a file of tokens, in order; they may lie across bounds of sequences and documents.

    Args:
      vocabulary: ids are below.
      block: tokens read at a time, and held with twice the finder's reach.

    Raises:
      BeamPrepError: the file holds an id beyond the vocabulary, or cannot be read.
    """
    held, base, begin = np.empty(0, np.uint32), 0, 0  # `held` begins at token `base`; searched up to `base + begin`
    blocks = _blocks(path, max(block or BLOCK_TOKENS, 2 * finder.reach))
    following: np.ndarray | None = next(blocks, None)
    while following is not None:
        if int(following.max(initial=0)) >= vocabulary:
            raise BeamPrepError(f"{path}: holds an id beyond the vocabulary; `beam-prep verify` says what is off")
        held = np.concatenate([held, following])
        following = next(blocks, None)
        end = len(held) if following is None else max(begin, len(held) - finder.reach)
        for place in finder.find(held, begin, end):
            yield Place(place.first + base, place.end + base)
        keep = max(0, end - finder.reach)
        held, base, begin = held[keep:], base + keep, end - keep


def _blocks(path: str, tokens: int) -> Iterator[np.ndarray]:
    """uint32[n] of a file, n = `tokens` but for the last."""
    try:
        with storage.open_read(path) as file:
            while data := _read(file, 4 * tokens):
                yield np.frombuffer(data, "<u4", len(data) // 4)
    except OSError as error:
        raise BeamPrepError(
            f"{path}: cannot be read ({error.strerror or error}); `beam-prep verify` says what is off"
        ) from None


def _read(file: Any, size: int) -> bytes:
    parts = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sample_ids(path: str, vocabulary: int, tokens: int = 1 << 20) -> np.ndarray:
    """uint32[n]: the first ids of a file, for `TextFinder`."""
    ids = next(_blocks(path, tokens), np.empty(0, np.uint32))
    return ids[ids < vocabulary]
