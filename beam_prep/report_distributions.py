"""What the report tells about documents: how long they are, and how many tokens their text takes, by source.

Both come from what is stored: the sidecars, and the first sequences of some shards. What is read is bounded, whatever
the size of the output.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from tokenizers.decoders import ByteLevel

from beam_prep import storage
from beam_prep.blocks import COPY_BITS
from beam_prep.inspection import Part, read_documents
from beam_prep.manifest import Manifest, OutputEntry, ShardEntry
from beam_prep.tokenizer import TokenizerSpec, local_copy

BINS_PER_DOUBLING = 8
LENGTH_BINS = 32 * BINS_PER_DOUBLING
RATE_BINS = 150
"""Of tokens per byte, each a hundredth wide; the last one holds all above."""
_RATE_BIN = 0.01
_LEAST_BYTES = 64
"""Of a part of a document whose tokens per byte are looked at; shorter ones tell nothing."""
_MOST_SHARDS = 256
_MOST_SPANS = 20_000_000
_MOST_TEXT_SHARDS = 16
_MOST_TEXT_TOKENS = 1_000_000
_SAMPLE_TOKENS = 160
"""Of a document's beginning that is shown."""
_SAMPLES_FROM = 32
"""Tokens of a document that is shown, where there is such a one."""


class Distribution(NamedTuple):
    """Of one source."""

    lengths: np.ndarray
    """int64[LENGTH_BINS]: documents by tokens, bin b from 2**(b / BINS_PER_DOUBLING); each document once an output."""
    rates: np.ndarray
    """int64[RATE_BINS]: parts of documents by tokens per byte of their text."""
    text_tokens: int
    """Of those parts, as `text_bytes`."""
    text_bytes: int
    sample: list[Part]
    """How one of the documents begins; empty where it is not known."""


class _Text:
    """What is gathered of a source's text."""

    def __init__(self) -> None:
        self.rates = np.zeros(RATE_BINS, np.int64)
        self.tokens = self.bytes = 0
        self.sample = np.zeros(0, np.uint32)


class Distributions(NamedTuple):
    """Of all sources, and what they were counted from."""

    sources: dict[str, Distribution]
    shards_read: int
    shards: int


def length_bins(tokens: np.ndarray) -> np.ndarray:
    """int64[n]: the bin of each length (integer[n], at least 1)."""
    return np.minimum(np.log2(tokens) * BINS_PER_DOUBLING, LENGTH_BINS - 1).astype(np.int64)


def length_of(bin_: float) -> float:
    """The length in tokens at which a bin begins."""
    return 2.0 ** (bin_ / BINS_PER_DOUBLING)


def quantile(counts: np.ndarray, part: float) -> float:
    """The place, in bins, below which a part (0 to 1) of the counted lies; nan if nothing was counted."""
    total = counts.sum()
    if not total:
        return float("nan")
    below = np.cumsum(counts)
    bin_ = int(np.searchsorted(below, part * total))
    before = below[bin_ - 1] if bin_ else 0
    return bin_ + float((part * total - before) / counts[bin_])


def rate_of(bin_: float) -> float:
    """The tokens per byte at which a bin begins."""
    return bin_ * _RATE_BIN


class Vocabulary(NamedTuple):
    """What a byte-level BPE tokenizer's ids stand for."""

    lengths: np.ndarray
    """int64[vocab_size]: bytes of text, 0 for control tokens."""
    names: dict[int, str]
    """Of ordinary tokens, in the alphabet of GPT-2's tokenizer: every character is one byte."""
    added: dict[int, str]
    """Of added tokens, as they are."""

    def text(self, ids: np.ndarray) -> list[Part]:
        """The text of ids (integer[n]); characters that the end cuts through become U+FFFD."""
        parts = []
        for is_added, run in itertools.groupby(ids.tolist(), self.added.__contains__):
            if is_added:
                parts += [Part(self.added[id_], True) for id_ in run]
            else:
                parts.append(Part(ByteLevel().decode([self.names.get(id_, "") for id_ in run]), False))
        return parts


@lru_cache(maxsize=1)
def vocabulary(spec: TokenizerSpec) -> Vocabulary | None:
    """The vocabulary of a tokenizer; None unless it is byte-level BPE."""
    with tempfile.TemporaryDirectory(prefix="beam-prep-") as folder:
        content = orjson.loads(local_copy(spec, Path(folder)).read_bytes())
    if b"ByteLevel" not in orjson.dumps(content.get("decoder")) or not isinstance(content["model"]["vocab"], dict):
        return None
    lengths = np.zeros(spec.vocab_size, np.int64)
    ids = content["model"]["vocab"]
    lengths[np.fromiter(ids.values(), np.int64, len(ids))] = np.fromiter(map(len, ids), np.int64, len(ids))
    added = content.get("added_tokens") or []
    for token in added:
        lengths[token["id"]] = 0 if token.get("special") else len(token["content"].encode())
    names = {id_: name for name, id_ in ids.items()}
    return Vocabulary(lengths, names, {token["id"]: token["content"] for token in added})


def spread(shards: Sequence[ShardEntry], most: int) -> list[ShardEntry]:
    """At most so many shards, evenly over all. The last one is left out of a part: it holds the rests of the others."""
    if len(shards) <= most:
        return list(shards)
    return [shards[number * (len(shards) - 1) // most] for number in range(most)]


def read_distributions(output: str, manifest: Manifest, vocabulary_: Vocabulary | None) -> Distributions:
    """Reads the sidecars, and the tokens of some sequences.

    Args:
      vocabulary_: without it nothing is said about tokens per byte, and no text is shown.

    Raises:
      OSError, pyarrow.ArrowException: a file is missing or damaged.
    """
    lengths: dict[str, np.ndarray] = {}
    texts: dict[str, _Text] = {}
    read = 0
    outputs = len(manifest.outputs)
    for name, entry in manifest.outputs.items():
        folder = storage.join(output, name)
        spans = max(1, sum(s.spans for s in entry.shards) // max(1, len(entry.shards)))
        chosen = spread(entry.shards, max(1, min(_MOST_SHARDS, _MOST_SPANS // spans) // outputs))
        with_text = {s.path for s in spread([s for s in chosen if s.sequences], max(1, _MOST_TEXT_SHARDS // outputs))}
        for shard in chosen:
            table = read_documents(storage.join(folder, shard.documents), columns=list(_COLUMNS)).combine_chunks()
            _add_lengths(table, lengths)
            if vocabulary_ is not None and shard.path in with_text:
                most_tokens = _MOST_TEXT_TOKENS // (outputs * len(with_text))
                _add_text(folder, entry, shard, table, most_tokens, vocabulary_.lengths, texts)
        read += len(chosen)
    found = {}
    for source in sorted(lengths):
        counted = np.maximum(lengths[source], 0)  # below 0: rests whose beginning was not read
        text = texts.get(source) or _Text()
        sample = vocabulary_.text(text.sample) if vocabulary_ is not None else []
        found[source] = Distribution(counted, text.rates, text.tokens, text.bytes, sample)
    return Distributions(found, read, sum(len(entry.shards) for entry in manifest.outputs.values()))


_COLUMNS = ("sequence", "start", "length", "source", "copy", "position")


def _integers(table: pa.Table, column: str) -> np.ndarray:
    return table.column(column).to_numpy().astype(np.int64)


def _sources(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """Names, and the number of the name of every row."""
    column = table.column("source")
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    encoded = column.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().chunk(0) if encoded.num_chunks else None
    if encoded is None:
        return [], np.zeros(0, np.int64)
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _add_lengths(table: pa.Table, into: dict[str, np.ndarray]) -> None:
    """Counts the documents of a shard by length.

    Every span counts +1 where it ends and, if the document began before it, -1 where it begins. Over the spans of a
    document that leaves +1 at its length, in whichever sequences and shards they lie.
    """
    first = _integers(table, "copy") & (2**COPY_BITS - 1) == 0  # the number of the copy; further ones are as long
    position, length = _integers(table, "position")[first], _integers(table, "length")[first]
    names, source = _sources(table)
    source = source[first]
    size = len(names) * LENGTH_BINS
    counts = np.bincount(source * LENGTH_BINS + length_bins(position + length), minlength=size)
    goes_on = position > 0
    counts -= np.bincount(source[goes_on] * LENGTH_BINS + length_bins(position[goes_on]), minlength=size)
    for name, row in zip(names, counts.reshape(-1, LENGTH_BINS), strict=True):
        into[name] = into[name] + row if name in into else row


def _add_text(
    folder: str,
    entry: OutputEntry,
    shard: ShardEntry,
    table: pa.Table,
    most_tokens: int,
    lengths_of_ids: np.ndarray,
    into: dict[str, _Text],
) -> None:
    """Counts the parts of documents in a shard's first sequences by tokens per byte, and keeps a beginning."""
    length = entry.context_length
    sequences = min(shard.sequences, max(1, most_tokens // length))
    ids = np.frombuffer(storage.read_range(storage.join(folder, shard.path), 0, 4 * length * sequences), "<u4")
    bytes_of = lengths_of_ids[ids]
    bytes_before = np.concatenate([[0], np.cumsum(bytes_of)])
    tokens_before = np.concatenate([[0], np.cumsum(bytes_of > 0)])
    sequence = _integers(table, "sequence")
    names, source = _sources(table)
    here = sequence < sequences
    begin = sequence[here] * length + _integers(table, "start")[here]
    end = begin + _integers(table, "length")[here]
    begins = _integers(table, "position")[here] == 0
    source = source[here]
    size, tokens = bytes_before[end] - bytes_before[begin], tokens_before[end] - tokens_before[begin]
    for number, name in enumerate(names):
        own = source == number
        text = into.setdefault(name, _Text())
        first = own & begins
        long = first & (end - begin >= _SAMPLES_FROM)
        if len(text.sample) < _SAMPLES_FROM and first.any():
            row = int(np.argmax(long if long.any() else first))
            text.sample = ids[begin[row] : min(end[row], begin[row] + _SAMPLE_TOKENS)]
        own &= size >= _LEAST_BYTES
        bins = np.minimum(tokens[own] / size[own] / _RATE_BIN, RATE_BINS - 1).astype(np.int64)
        text.rates += np.bincount(bins, minlength=RATE_BINS)
        text.tokens += int(tokens[own].sum())
        text.bytes += int(size[own].sum())
