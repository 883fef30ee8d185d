"""The index: what it says of every sequence, and that data-forager reads it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results import sequences_by_forager

from beam_prep.index import read_index, sample_locations, write_index


@given(st.lists(st.integers(0, 50), max_size=10), st.integers(1, 2**20))
def test_locations_against_a_loop(sequences: list[int], size: int) -> None:
    wanted = [[number, n * size, size] for number, count in enumerate(sequences) for n in range(count)]
    locations = sample_locations(sequences, size)
    assert locations.dtype == np.dtype("<u8")
    assert locations.tolist() == wanted


def test_offsets_beyond_four_gibibytes() -> None:
    locations = sample_locations([0, 3], 2**32)
    assert locations[-1].tolist() == [1, 2**33, 2**32]


@pytest.mark.parametrize("sequences", [[3], [2, 0, 3], [0, 1], [1, 0], [0], []])
def test_written_and_read_back(tmp_path: Path, sequences: list[int]) -> None:
    paths = [f"tokenized-samples/part-{n}.bin" for n in range(len(sequences))]
    locations = sample_locations(sequences, 32)
    write_index(str(tmp_path), paths, locations)
    found_paths, found = read_index(str(tmp_path))
    assert found_paths == paths
    assert found.tolist() == locations.tolist()


def test_forager_reads_it(tmp_path: Path) -> None:
    """A shard without sequences may stand anywhere among the others."""
    counts = [2, 0, 3]
    tokens = np.arange(5 * 8, dtype="<u4").reshape(5, 8)
    (tmp_path / "tokenized-samples").mkdir()
    paths = [f"tokenized-samples/part-{n}.bin" for n in range(3)]
    for path, part in zip(paths, np.split(tokens, np.cumsum(counts)[:-1]), strict=True):
        (tmp_path / path).write_bytes(part.tobytes())
    write_index(str(tmp_path), paths, sample_locations(counts, 32))
    assert (sequences_by_forager(tmp_path) == tokens).all()
