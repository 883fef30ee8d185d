"""The Forager index: O(1) random access to every sequence of an output (format of data-forager 0.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from beam_prep import storage

INDEX_FOLDER = "index"
FILE_LOCATION = "file_location.txt"
SAMPLE_LOCATIONS = "sample_locations.bin"
ENTRY_BYTES = 24
_ROWS = 1 << 18
"""Entries that are made at a time, 6 MiB."""


def sample_locations(sequences: Sequence[int], sample_bytes: int) -> np.ndarray:
    """uint64[N, 3] (file number, byte offset, bytes) for shards of so many sequences each; N is their sum."""
    parts = [np.empty((0, 3), "<u8"), *location_parts(sequences, sample_bytes)]
    return np.concatenate(parts)


def location_parts(sequences: Sequence[int], sample_bytes: int) -> Iterator[np.ndarray]:
    """`sample_locations` in parts of some MiB: uint64[n, 3] each."""
    counts = np.asarray(sequences, np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, _ROWS):
        numbers = np.arange(first, min(first + _ROWS, total))
        shards = np.searchsorted(ends, numbers, side="right")
        part = np.empty((len(numbers), 3), "<u8")
        part[:, 0] = shards
        part[:, 1] = (numbers - (ends - counts)[shards]) * sample_bytes
        part[:, 2] = sample_bytes
        yield part


def index_files(paths: Sequence[str], sequences: Sequence[int], sample_bytes: int) -> dict[str, Iterator[bytes]]:
    """The files of an index by name, in the order in which they are written; each in parts.

    Args:
      paths: of the shards, relative to the output's folder.
      sequences: of each shard.
      sample_bytes: of each sequence.
    """
    return {
        FILE_LOCATION: iter(["".join(f"{path}\n" for path in paths).encode()]),
        SAMPLE_LOCATIONS: (part.tobytes() for part in location_parts(sequences, sample_bytes)),
    }


def write_index(
    folder: str, paths: Sequence[str], sequences: Sequence[int], sample_bytes: int, index_folder: str = INDEX_FOLDER
) -> None:
    """Writes an index below an output's folder; arguments as in `index_files`."""
    for file, parts in index_files(paths, sequences, sample_bytes).items():
        storage.write_bytes(storage.join(folder, index_folder, file), parts)


def difference(path: str, parts: Iterator[bytes]) -> str | None:
    """What is wrong with a file that should hold `parts`, one after the other; None if nothing is."""
    if storage.size(path) is None:
        return "is missing"
    at = 0
    with storage.open_read(path) as file:
        for part in parts:
            found = _read(file, len(part))
            if found != part:
                if len(found) < len(part) and part.startswith(found):
                    return f"ends after {at + len(found):,} bytes, but the shards need more"
                size = min(len(found), len(part))
                differs = np.frombuffer(found, np.uint8, size) != np.frombuffer(part, np.uint8, size)
                return f"differs from what the shards need at byte {at + int(np.argmax(differs))}"
            at += len(part)
        if file.read(1):
            return f"goes on after the {at:,} bytes that the shards need"
    return None


def _read(file, size: int) -> bytes:
    """So many bytes, or what is left of a file."""
    parts, missing = [], size
    while missing and (part := file.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def read_location(folder: str, number: int, index_folder: str = INDEX_FOLDER) -> tuple[str, int, int]:
    """(path, byte offset, bytes) of one sequence, without reading the others' entries.

    Raises:
      IndexError: the index has no such entry, or names a file that it does not list.
    """
    with storage.open_read(storage.join(folder, index_folder, SAMPLE_LOCATIONS)) as file:
        file.seek(number * ENTRY_BYTES)
        entry = _read(file, ENTRY_BYTES)
    if len(entry) < ENTRY_BYTES:
        raise IndexError(f"{SAMPLE_LOCATIONS} has no entry {number}")
    shard, offset, size = np.frombuffer(entry, "<u8").tolist()
    text = storage.read_bytes(storage.join(folder, index_folder, FILE_LOCATION)).decode()
    return text.splitlines()[shard], offset, size


def read_index(folder: str, index_folder: str = INDEX_FOLDER) -> tuple[list[str], np.ndarray]:
    """(paths, locations) of an index."""
    text = storage.read_bytes(storage.join(folder, index_folder, FILE_LOCATION)).decode()
    data = storage.read_bytes(storage.join(folder, index_folder, SAMPLE_LOCATIONS))
    return text.splitlines(), np.frombuffer(data, "<u8").reshape(-1, 3)
