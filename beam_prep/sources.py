"""Match and Split: from patterns to files, from files to units of work of about the same size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import xxhash

from beam_prep import storage
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.parquet import is_parquet, row_group_bytes

UNIT_BYTES = 64 << 20
"""Stored bytes of a unit: large enough that per-unit costs vanish, small enough to spread and to do again."""
MIN_UNIT_BYTES = 8 << 20
"""Of local files; of remote ones, where every range costs requests, no range is smaller than `UNIT_BYTES`."""
_CHECK = "check the path and the pattern"
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


class InputFile(NamedTuple):
    """A file of a source. `number` is its place among the source's files, sorted by path."""

    number: int
    path: str
    size: int
    modified: float


class Span(NamedTuple):
    """A part of a file: the lines whose first byte lies in [start, end); of a Parquet file, those row groups.

    Compressed files are one whole span.
    """

    file: int
    path: str
    start: int
    end: int
    """-1: to the end of the file."""
    size: int = -1
    """Stored bytes of the file when it was matched; -1: not known."""
    modified: float = 0.0
    """When it was changed last, seconds since the epoch; 0: not known."""


class Position(NamedTuple):
    """A place between two records of a unit."""

    span: int
    """Index of the span."""
    offset: int
    """The first byte (row, for Parquet) of its file that is not done."""


START = Position(0, 0)
"""Of every unit."""


class Unit(NamedTuple):
    """A unit of reading: spans of one source, done by one worker. `name` follows from the spans alone."""

    source: int
    name: str
    spans: tuple[Span, ...]


def match_source(name: str, patterns: Sequence[str]) -> list[InputFile]:
    """The files of a source.

    A file that several patterns match is one file, however they spell its path.

    Raises:
      ConfigError: a pattern matches nothing, something that is no file (a pipe, a link to nothing), or a file whose
        name cannot be written down.
    """
    found: dict[str, storage.Found] = {}
    for pattern in patterns:
        try:
            matched = storage.match(pattern)
        except BeamPrepError as error:
            raise ConfigError(f"dataset {name!r}: input {pattern!r}: {error.message}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"dataset {name!r}: input {pattern!r} cannot be looked up: {reason}") from None
        if not matched:
            is_folder = storage.is_local(pattern) and os.path.isdir(pattern)
            advice = f"it is a folder: {storage.join(pattern, '*.jsonl')}, say" if is_folder else _CHECK
            raise ConfigError(f"dataset {name!r}: input {pattern!r} matches no file; {advice}")
        for file in matched:
            found.setdefault(os.path.abspath(file.path) if storage.is_local(file.path) else file.path, file)
    for path in found:
        if not path.isascii() and path != path.encode(errors="replace").decode():
            raise ConfigError(
                f"dataset {name!r}: the name of {path!r} is not UTF-8, as the output's files are; rename it"
            )
    return [InputFile(n, *file) for n, file in enumerate(sorted(found.values()))]


def signature(files: Iterable[InputFile]) -> str:
    """A hash of what the files are (number, path, size, time of change): equal inputs, equal signature.

    The numbers tell apart how the files of several sources are dealt out among them.
    """
    state = xxhash.xxh3_128()
    for file in files:
        state.update(f"{file.number}\0{file.path}\0{file.size}\0{file.modified}\0".encode())
    return state.hexdigest()


def is_compressed(path: str) -> bool:
    """Whether a path names a compressed file, which can only be read from its beginning."""
    return path.lower().endswith(COMPRESSED)


def split_source(source: int, files: Sequence[InputFile], unit_bytes: int | None = None) -> Iterator[Unit]:
    """Cuts a source into units: large plain files into ranges, small files joined.

    Args:
      unit_bytes: stored bytes a unit; by default an eighth of a small local source, so that several workers share it.
    """
    total = sum(file.size for file in files)
    local = all(storage.is_local(file.path) for file in files)
    target = unit_bytes or (min(UNIT_BYTES, max(MIN_UNIT_BYTES, total // 8)) if local else UNIT_BYTES)
    spans: list[Span] = []
    filled = 0
    for file in files:
        if is_compressed(file.path) or (is_parquet(file.path) and file.size <= target):
            pieces = [(0, -1, file.size)]
        elif is_parquet(file.path):
            pieces = [(n, n + 1, size) for n, size in enumerate(row_group_bytes(file.path))]
        else:
            count = max(1, round(file.size / target) if local else file.size // target)
            edges = [file.size * i // count for i in range(count + 1)]
            pieces = [(a, b, b - a) for a, b in zip(edges, edges[1:], strict=False)]
        for start, end, weight in pieces:
            if spans and filled + weight > target * 1.25:
                yield _unit(source, spans)
                spans, filled = [], 0
            spans.append(Span(file.number, file.path, start, end, file.size, file.modified))
            filled += weight
    if spans:
        yield _unit(source, spans)


def _unit(source: int, spans: list[Span]) -> Unit:
    text = "\0".join(f"{source}\0{s.file}\0{s.path}\0{s.start}\0{s.end}" for s in spans)
    return Unit(source, xxhash.xxh3_64_hexdigest(text.encode()), tuple(spans))
