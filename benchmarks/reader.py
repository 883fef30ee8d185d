"""Random reads: `PackedDataset` beside a bare `numpy.memmap` and data-forager, from the page cache and from the disk.

    python benchmarks/reader.py                            # rows of 4,096 and 32,768 tokens, 512 MiB of random ids
    python benchmarks/reader.py --bytes 2e9 --rounds 7
    python benchmarks/reader.py --at /data                 # on another disk

All read the same rows, drawn at random, into arrays of their own (data-forager's are read-only). The bare memmap is one
`numpy.memmap` a shard and a division, nothing checked. Contenders take turns, opened anew and checked for each round;
rates are medians of the rounds. Before a cold round every shard is dropped from the page cache (`posix_fadvise`);
`disk` is what the kernel then read, over what was asked for, where /proc tells.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beam_prep import PackedDataset
from beam_prep.index import write_index

CONTEXT_LENGTHS = (4096, 32_768)
SHARDS = 8
Reader = tuple[Callable[[int], np.ndarray], Callable[[Sequence[int]], np.ndarray]]


class Rate(NamedTuple):
    """One round."""

    seconds: float
    """A sequence."""
    disk: float
    """Bytes from the disk over bytes asked for; negative where unknown."""


def write_output(folder: Path, context_length: int, size: float) -> None:
    """Writes random ids, about `size` bytes, as a finished output `train`."""
    numbers = np.random.default_rng(0)
    per_shard = max(1, int(size) // (4 * context_length * SHARDS))
    shards = []
    (folder / "train/tokenized-samples").mkdir(parents=True)
    for shard in range(SHARDS):
        path = f"tokenized-samples/part-{shard:05d}-of-{SHARDS:05d}.bin"
        numbers.integers(0, 151_643, per_shard * context_length, "<u4").tofile(folder / "train" / path)
        shards.append({"path": path, "sequences": per_shard, "bytes": per_shard * context_length * 4, "documents": ""})
    write_index(str(folder / "train"), [s["path"] for s in shards], [per_shard] * SHARDS, 4 * context_length)
    fingerprint = hashlib.sha256(b"benchmark").hexdigest()
    manifest = {
        "fingerprint": fingerprint,
        "dtype": "uint32",
        "tokenizer": {"name": "none", "sha256": "", "eod_token_id": 151_643, "vocab_size": 151_669},
        "outputs": {"train": {"context_length": context_length, "shards": shards}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (folder / "_SUCCESS").write_text(fingerprint, "utf-8")
    os.sync()  # only what is on the disk can be dropped from the page cache


def open_beam_prep(folder: Path, context_length: int) -> Reader:
    dataset = PackedDataset(folder / "train")
    return dataset.__getitem__, dataset.read


def open_memmap(folder: Path, context_length: int) -> Reader:
    paths = sorted((folder / "train/tokenized-samples").iterdir())
    maps = [np.memmap(path, "<u4", "r").reshape(-1, context_length) for path in paths]
    rows = len(maps[0])

    def one(index: int) -> np.ndarray:
        return np.array(maps[index // rows][index % rows])

    def many(indices: Sequence[int]) -> np.ndarray:
        return np.stack([maps[index // rows][index % rows] for index in indices])

    return one, many


def open_forager(folder: Path, context_length: int) -> Reader:
    from data_forager.datasets.tokens import TokensDataset

    dataset = TokensDataset.create_from_index_on_filesystem(str(folder / "train"), token_dtype=np.uint32)
    return dataset.__getitem__, lambda indices: np.stack([dataset[index] for index in indices])


CONTENDERS: dict[str, Callable[[Path, int], Reader]] = {
    "beam-prep": open_beam_prep,
    "numpy.memmap": open_memmap,
    "data-forager": open_forager,
}


def drop_from_cache(folder: Path) -> None:
    """Has every shard read from the disk next time. What is still mapped stays."""
    gc.collect()
    for path in (folder / "train/tokenized-samples").iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_from_disk() -> int | None:
    """Bytes that this process has had read from disks."""
    try:
        lines = Path("/proc/self/io").read_text("ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def measure(reader: Reader, numbers: Sequence[int], batch: int, context_length: int) -> Rate:
    """Reads all of `numbers`, one by one (`batch` 1) or in batches."""
    one, many = reader
    before, begin = bytes_from_disk(), time.perf_counter()
    if batch == 1:
        for number in numbers:
            one(number)
    else:
        for at in range(0, len(numbers), batch):
            many(numbers[at : at + batch])
    seconds = time.perf_counter() - begin
    after = bytes_from_disk()
    disk = -1.0 if before is None or after is None else (after - before) / (len(numbers) * 4 * context_length)
    return Rate(seconds / len(numbers), disk)


def compare(folder: Path, context_length: int, batch: int, cold: bool, rounds: int) -> dict[str, list[Rate]]:
    """The rounds of every contender.

    Raises:
      SystemExit: one has read other rows than the first.
    """
    draw = np.random.default_rng(1)
    sequences = len(PackedDataset(folder / "train"))
    count = min(sequences // 4, 1000) if cold else min(sequences, (128 << 20) // (4 * context_length))
    rates: dict[str, list[Rate]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        numbers = draw.choice(sequences, count, replace=False).tolist()
        expected = None
        for name, open_ in CONTENDERS.items():
            if cold:
                drop_from_cache(folder)
            reader = open_(folder, context_length)
            if not cold:
                measure(reader, range(sequences), batch, context_length)  # as later in an epoch: every page is known
            rates[name].append(measure(reader, numbers, batch, context_length))
            found = reader[1](numbers[:50])
            expected = found if expected is None else expected
            if not np.array_equal(found, expected):
                raise SystemExit(f"{name} read other rows")
            del reader
    return rates


HEAD = " tokens cache batch  reader         sequences/s     MB/s vs memmap   disk"


def print_rates(context_length: int, batch: int, cold: bool, rates: dict[str, list[Rate]]) -> None:
    """A row a contender."""
    seconds = {name: statistics.median(rate.seconds for rate in rounds) for name, rounds in rates.items()}
    for name, own in seconds.items():
        disk = statistics.median(rate.disk for rate in rates[name])
        case = f"{context_length:>7,} {'cold' if cold else 'warm':<5} {batch:>5}  {name:<13}"
        speed = f"{1 / own:>12,.0f} {4e-6 * context_length / own:>8,.0f} {seconds['numpy.memmap'] / own:>9.2f}"
        print(case, speed, f"{disk:>5.1f}x" if cold and disk >= 0 else "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, default=512 << 20, help="of tokens (default: 512 MiB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="sequences a batch (default: 32)")
    parser.add_argument("--at", type=Path, help="folder for the shards (default: the temporary one)")
    arguments = parser.parse_args()
    print(HEAD)
    for context_length in CONTEXT_LENGTHS:
        with tempfile.TemporaryDirectory(dir=arguments.at) as name:
            folder = Path(name)
            write_output(folder, context_length, arguments.bytes)
            for cold in (False, True):
                for batch in (1, arguments.batch):
                    rates = compare(folder, context_length, batch, cold, arguments.rounds)
                    print_rates(context_length, batch, cold, rates)


if __name__ == "__main__":
    logging.disable(logging.INFO)  # data-forager's import has every logger print its details
    main()
