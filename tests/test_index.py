"""The index: what it says of every sequence, and that data-forager reads it."""

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results import sequences_by_forager

from beam_prep import index
from beam_prep.index import difference, index_files, read_index, read_location, sample_locations, write_index


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
    write_index(str(tmp_path), paths, sequences, 32)
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
    write_index(str(tmp_path), paths, counts, 32)
    assert (sequences_by_forager(tmp_path) == tokens).all()


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 40))
def test_parts_of_any_size(sequences: list[int], rows: int) -> None:
    whole = sample_locations(sequences, 96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_ROWS", rows)
        assert sample_locations(sequences, 96).tolist() == whole.tolist()


def damaged_at(folder: Path, at: int) -> None:
    path = folder / "index/sample_locations.bin"
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def longer(folder: Path) -> None:
    with open(folder / "index/sample_locations.bin", "ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: None, None),
        (lambda folder: damaged_at(folder, 0), "at byte 0"),
        (lambda folder: damaged_at(folder, 100), "at byte 100"),
        (lambda folder: damaged_at(folder, 119), "at byte 119"),
        (lambda folder: (folder / "index/sample_locations.bin").unlink(), "is missing"),
        (lambda folder: (folder / "index/sample_locations.bin").write_bytes(b""), "ends after 0 bytes"),
        (longer, "goes on after the 120 bytes"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], expected: str | None, rows: int
) -> None:
    monkeypatch.setattr(index, "_ROWS", rows)
    write_index(str(tmp_path), ["a", "b"], [2, 3], 32)
    damage(tmp_path)
    found = difference(
        f"{tmp_path}/index/sample_locations.bin", index_files(["a", "b"], [2, 3], 32)["sample_locations.bin"]
    )
    assert found is None if expected is None else found is not None and expected in found


def test_one_location(tmp_path: Path) -> None:
    write_index(str(tmp_path), ["a", "b", "c"], [2, 0, 3], 2**31)
    assert read_location(str(tmp_path), 1) == ("a", 2**31, 2**31)
    assert read_location(str(tmp_path), 4) == ("c", 2**32, 2**31)
    with pytest.raises(IndexError, match="entry 5"):
        read_location(str(tmp_path), 5)


def test_three_million_sequences(tmp_path: Path) -> None:
    """As data-forager reads them, written in bounded memory."""
    from data_forager.index_stores.fs_based import IndexStore

    numbers = random.Random(0)
    counts = [numbers.choice([0, 1, 299, 300, 301, 599]) for _ in range(12_000)]
    total, size = sum(counts), 4 * 32_768
    paths = [f"tokenized-samples/part-{n:05d}-of-12000.bin" for n in range(len(counts))]
    tracemalloc.start()
    try:
        write_index(str(tmp_path), paths, counts, size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 2_900_000
    assert peak < 24 * total / 2  # the whole is never in memory
    found = IndexStore(str(tmp_path)).load()
    assert len(found) == total
    locations = found.sample_locations
    first = np.cumsum([0, *counts[:-1]])
    assert (np.bincount(locations[:, 0].astype(np.int64), minlength=len(counts)) == counts).all()
    assert (np.diff(locations[:, 0].astype(np.int64)) >= 0).all()
    assert (locations[:, 1] == (np.arange(total) - np.repeat(first, counts)).astype(np.uint64) * np.uint64(size)).all()
    assert (locations[:, 2] == size).all()
    for number in [0, total - 1, *(numbers.randrange(total) for _ in range(200))]:
        location = found[number]
        assert read_location(str(tmp_path), number) == (
            str(Path(location.file_path).relative_to(tmp_path)),
            int(location.byte_offset),
            int(location.num_bytes),
        )
