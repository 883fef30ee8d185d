"""Outputs made up for the reader: any number of shards, tokens that tell where they stand, spans with gaps."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_prep.index import write_index

FINGERPRINT = "f" * 64
SOURCES = ["web", "books", "code"]


class Part(NamedTuple):
    """A document's part in a sequence."""

    start: int
    length: int
    source: str
    position: int


class FakeOutput(NamedTuple):
    """What was written."""

    folder: Path
    tokens: np.ndarray
    """uint32[n, context_length]: token t of sequence s is s * context_length + t, plus 2**31."""
    parts: list[list[Part]]
    """By sequence."""


def random_parts(numbers: random.Random, length: int) -> list[Part]:
    """Parts of a sequence of `length` tokens, some of them with a gap behind."""
    at, parts = 0, []
    while at < length:
        size = numbers.randint(1, length - at)
        if numbers.random() < 0.8:
            position = 0 if numbers.random() < 0.7 else numbers.randint(1, 10**6)
            parts.append(Part(at, size, numbers.choice(SOURCES), position))
        at += size
    return parts


def write_fake(
    out: Path,
    sequences: Sequence[int],
    context_length: int,
    name: str = "train",
    sidecars: bool = True,
    row_group_size: int = 1 << 17,
    seed: int = 0,
) -> FakeOutput:
    """Writes an output of shards with so many sequences each, beside those that the folder has."""
    numbers = random.Random(seed)
    total = sum(sequences)
    tokens = (np.arange(total * context_length, dtype="<u4") + np.uint32(2**31)).reshape(total, context_length)
    parts = [random_parts(numbers, context_length) if sidecars else [] for _ in range(total)]
    folder = out / name
    for part in ("tokenized-samples", "documents"):
        (folder / part).mkdir(parents=True)
    shards, at = [], 0
    for number, count in enumerate(sequences):
        stem = f"part-{number:05d}-of-{len(sequences):05d}"
        path, documents = f"tokenized-samples/{stem}.bin", f"documents/{stem}.parquet"
        (folder / path).write_bytes(tokens[at : at + count].tobytes())
        if sidecars:
            _write_sidecar(folder / documents, parts[at : at + count], row_group_size)
        shards.append({"path": path, "sequences": count, "bytes": 4 * count * context_length, "documents": documents})
        at += count
    write_index(str(folder), [s["path"] for s in shards], sequences, 4 * context_length)
    manifest_path = out / "manifest.json"
    manifest = {
        "fingerprint": FINGERPRINT,
        "dtype": "uint32",
        "tokenizer": {"name": "qwen3", "sha256": "0" * 64, "eod_token_id": 151643, "vocab_size": 151669},
        "outputs": {},
    }
    if manifest_path.exists():
        manifest = json.loads(manifest_path.read_text())
    manifest["outputs"][name] = {"context_length": context_length, "shards": shards}
    manifest_path.write_text(json.dumps(manifest))
    (out / "_SUCCESS").write_text(FINGERPRINT + "\n")
    return FakeOutput(folder, tokens, parts)


def _write_sidecar(path: Path, sequences: Sequence[Sequence[Part]], row_group_size: int) -> None:
    rows = [(number, *part) for number, parts in enumerate(sequences) for part in parts]
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    source = pa.array(columns[3], pa.string())
    if row_group_size == 1 << 17:  # as a run writes it; as plain strings every row group has an order of its own
        source = source.dictionary_encode()
    table = pa.table(
        {
            "sequence": pa.array(columns[0], pa.uint32()),
            "start": pa.array(columns[1], pa.uint32()),
            "length": pa.array(columns[2], pa.uint32()),
            "source": source,
            "id": pa.array(["0" * 32] * len(rows), pa.string()),
            "position": pa.array(columns[4], pa.uint32()),
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
