"""The Forager index: O(1) random access to every sequence of an output (format of data-forager 0.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from beam_prep import storage

INDEX_FOLDER = "index"
FILE_LOCATION = "file_location.txt"
SAMPLE_LOCATIONS = "sample_locations.bin"


def sample_locations(sequences: Sequence[int], sample_bytes: int) -> np.ndarray:
    """uint64[N, 3] (file number, byte offset, bytes) for shards of so many sequences each; N is their sum."""
    counts = np.asarray(sequences, np.int64)
    total = int(counts.sum())
    locations = np.empty((total, 3), "<u8")
    locations[:, 0] = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    locations[:, 1] = (np.arange(total) - first) * sample_bytes
    locations[:, 2] = sample_bytes
    return locations


def write_index(folder: str, paths: Sequence[str], locations: np.ndarray, index_folder: str = INDEX_FOLDER) -> None:
    """Writes an index below an output's folder. `paths` are relative to it."""
    text = "".join(f"{path}\n" for path in paths)
    storage.write_bytes(storage.join(folder, index_folder, FILE_LOCATION), [text.encode()])
    storage.write_bytes(storage.join(folder, index_folder, SAMPLE_LOCATIONS), [locations.tobytes()])


def read_index(folder: str, index_folder: str = INDEX_FOLDER) -> tuple[list[str], np.ndarray]:
    """(paths, locations) of an index."""
    text = storage.read_bytes(storage.join(folder, index_folder, FILE_LOCATION)).decode()
    data = storage.read_bytes(storage.join(folder, index_folder, SAMPLE_LOCATIONS))
    return text.splitlines(), np.frombuffer(data, "<u8").reshape(-1, 3)
