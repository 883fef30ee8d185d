"""Sampled source: what a sample of a source shows, by the steps of a run up to its runs, and how far it can be off.

The error of an estimate is the half-width of its 95 % interval by the variance of the ratio estimator, the places that
were looked at being its clusters (W. G. Cochran: "Sampling Techniques", 3rd ed., 1977, sections 6.3 and 9A), with
Student's t.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from beam_prep.carrier import Carrier, FileSlice, Payload
from beam_prep.config import Config
from beam_prep.job import Source
from beam_prep.ledger import Tally
from beam_prep.mix import document_ids
from beam_prep.reading import RecordBatch
from beam_prep.runs import Run, RunBuilder, TokenLimits, flat_pieces
from beam_prep.sample_records import EXPANSION, Part, kind_of, read_sample
from beam_prep.sources import InputFile
from beam_prep.templates import compile_template
from beam_prep.tokenizer import Encoder, TokenizerSpec
from beam_prep.transform import Transformer, compile_transformer, transform_batch

_BLOCKS = 16
"""Least clusters that the error is computed from, where the sample has so many lines."""
_STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 7: 2.36, 10: 2.23, 15: 2.13, 30: 2.04, 1000: 1.96}


class Seconds(NamedTuple):
    """Time that the sample of a source took on this machine, one thread (of reading: its part of what was read)."""

    read: float
    render: float
    encode: float
    build: float
    waited: float
    """Times that sampling took as long as the processor worked on it: above 1 for what else the machine does."""


class SampledSource(NamedTuple):
    """A source and what its sample shows."""

    name: str
    files: int
    stored_bytes: int
    bytes: float
    """Uncompressed bytes of the whole source."""
    sampled_bytes: int
    """Uncompressed bytes of the sample."""
    complete: bool
    """Whether the sample is the whole source."""
    begun: int
    """Compressed files of which only the beginning was read."""
    tally: Tally
    """Of the sample."""
    run: Run
    """The sample's documents, all of them encoded, without their tokens."""
    tokens_error: float
    """Relative half-width of the 95 % interval of the tokens; 0 for a complete source, infinite if one block tells."""
    records_error: float
    seconds: Seconds

    @property
    def factor(self) -> float:
        """What the sample stands for."""
        return 1.0 if self.complete else self.bytes / max(1, self.sampled_bytes)


class Scratch(Carrier):
    """Keeps what a step hands on in memory, but of tokens only how many there are."""

    __slots__ = ()

    def put(self, name: str, parts: Iterable[bytes]) -> Payload:
        """Keeps a payload."""
        if name.endswith(".tokens"):
            return FileSlice(os.devnull, 0, sum(map(len, parts)))
        return b"".join(parts)


SCRATCH = Scratch("in memory")


def sample_source(
    number: int,
    source: Source,
    files: Sequence[InputFile],
    wanted: int,
    config: Config,
    tokenizer: TokenizerSpec,
    encoder: Encoder,
) -> SampledSource:
    """Reads, renders and encodes a sample of a source.

    Args:
      wanted: uncompressed bytes.

    Raises:
      BeamPrepError: a file cannot be read.
    """
    special = [token for token, _ in tokenizer.special_tokens]
    template = source.template
    own_code = template.function is not None or template.prepare is not None
    transformer = compile_transformer(compile_template(template, special), template.filter, config.seed, own_code)
    controls = {token: id_.to_bytes(4, "little") for token, id_ in tokenizer.special_tokens}
    eod = tokenizer.eod_token_id.to_bytes(4, "little")
    builder = RunBuilder(f"{number:04d}", number, config.seed, controls, eod)
    worker = _Worker(number, transformer, encoder, builder, token_limits(source))

    started = begin = time.perf_counter()
    worked = time.process_time()
    parts = list(read_sample(files, wanted))
    read = time.perf_counter() - begin
    pieces = max(1, -(-_BLOCKS // max(1, len(parts))))
    blocks = [worker.block(part, rows) for part in parts for rows in _blocks(len(part.lines), pieces)]
    begin = time.perf_counter()
    run = builder.write(SCRATCH)
    written = time.perf_counter() - begin

    complete = len(parts) == len(files) and all(part.whole for part in parts)
    tally = Tally.from_dict(run.tally)
    size = float(tally.bytes) if complete else _uncompressed(files, parts)
    expansion = _expansions(parts)
    weights = [block.stored * expansion[block.kind] for block in blocks]
    read_share = min(1.0, tally.bytes / size) if size else 1.0
    return SampledSource(
        source.name,
        len(files),
        sum(file.size for file in files),
        size,
        tally.bytes,
        complete,
        len({part.file.number for part in parts if part.begun}),
        tally,
        run,
        0.0 if complete else ratio_error([b.tokens for b in blocks], weights, read_share),
        0.0 if complete else ratio_error([b.records for b in blocks], weights, read_share),
        Seconds(
            read * tally.bytes / max(1, sum(part.scanned for part in parts)),
            worker.render_seconds,
            worker.encode_seconds,
            worker.build_seconds + written,
            max(1.0, (time.perf_counter() - started) / max(1e-3, time.process_time() - worked)),
        ),
    )


class _Block(NamedTuple):
    """Some lines of one place: a cluster."""

    kind: str
    stored: float
    tokens: int
    records: int


class _Worker:
    """Does to some lines what a run does to a batch, and takes the time."""

    def __init__(
        self, source: int, transformer: Transformer, encoder: Encoder, builder: RunBuilder, limits: TokenLimits
    ):
        self._source, self._transformer, self._encoder = source, transformer, encoder
        self._builder, self._limits = builder, limits
        self.render_seconds = self.encode_seconds = self.build_seconds = 0.0

    def block(self, part: Part, rows: slice) -> _Block:
        """Adds the lines `rows` of a part to the run."""
        lines = part.lines[rows]
        times = [time.perf_counter()]
        batch = RecordBatch(self._source, "sample", False, part.file.number, part.file.path, lines, part.offsets[rows])
        documents = transform_batch(batch, self._transformer)
        documents = documents._replace(ids=document_ids(documents.documents))
        pieces = flat_pieces(documents)
        times.append(time.perf_counter())
        ids, bounds = self._encoder.encode(pieces) if pieces else (b"", np.zeros(1, np.uint64))
        times.append(time.perf_counter())
        before = self._builder.token_bytes
        self._builder.add(documents, self._limits, ids, bounds)
        times.append(time.perf_counter())
        self.render_seconds += times[1] - times[0]
        self.encode_seconds += times[2] - times[1]
        self.build_seconds += times[3] - times[2]
        stored = part.stored * documents.tally.bytes / max(1, part.size)
        tokens = (self._builder.token_bytes - before) // 4
        return _Block(kind_of(part.file), stored, tokens, documents.tally.records)


def _blocks(lines: int, pieces: int) -> list[slice]:
    edges = sorted({lines * i // pieces for i in range(pieces + 1)})
    return [slice(low, high) for low, high in zip(edges, edges[1:], strict=False)]


def _expansions(parts: Sequence[Part]) -> dict[str, float]:
    """Uncompressed bytes a stored byte, by how a file is stored."""
    stored: dict[str, float] = defaultdict(float)
    sizes: dict[str, int] = defaultdict(int)
    for part in parts:
        stored[kind_of(part.file)] += part.stored
        sizes[kind_of(part.file)] += part.size
    found = {kind: sizes[kind] / stored[kind] for kind in stored if stored[kind] and sizes[kind]}
    return {"compressed": EXPANSION, "parquet": EXPANSION, **found, "plain": 1.0}


def _uncompressed(files: Sequence[InputFile], parts: Sequence[Part]) -> float:
    expansion = _expansions(parts)
    return sum(file.size * expansion[kind_of(file)] for file in files)


def ratio_error(values: Sequence[float], sizes: Sequence[float], read_share: float) -> float:
    """Relative half-width of the 95 % interval of sum(values) / sum(sizes) × (size of everything).

    Args:
      values: what was counted in each cluster.
      sizes: what each cluster stands for.
      read_share: of everything, the part that was read.

    Returns:
      0 if all clusters agree, infinite if there is none or one.
    """
    value, size = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    value, size = value[size > 0], size[size > 0]
    clusters = len(size)
    if clusters < 2 or not value.sum():
        return math.inf
    residuals = value - value.sum() / size.sum() * size
    variance = clusters / (clusters - 1) * float(residuals @ residuals) * max(0.0, 1 - read_share)
    degrees = np.array(list(_STUDENT), np.float64)
    student = float(np.interp(1 / (clusters - 1), 1 / degrees[::-1], list(_STUDENT.values())[::-1]))
    return student * math.sqrt(variance) / float(value.sum())


def token_limits(source: Source) -> TokenLimits:
    """`min_tokens` and `max_tokens` of a source."""
    limits = source.template.filter
    return TokenLimits(limits.min_tokens or 0, 2**31 if limits.max_tokens is None else limits.max_tokens)
