"""The part of verify that compares splits: no document may be on two sides."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_prep import storage
from beam_prep.findings import Finding, read_if_there
from beam_prep.manifest import Manifest
from beam_prep.mix import id_text
from beam_prep.token_checks import id_halves

_IDS_A_PASS = 16 << 20


def check_leaks(output: str, manifest: Manifest) -> list[Finding]:
    """No document is in two splits (`train` and `val`, of whatever stages).

    Ids are compared in as many passes over the sidecars as memory asks for, each with its part of them.
    """
    by_split: dict[str, list[str]] = {}
    for name in manifest.outputs:
        by_split.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    if len(by_split) < 2:
        return []
    spans = sum(shard.spans for entry in manifest.outputs.values() for shard in entry.shards)
    passes = max(1, -(-spans // _IDS_A_PASS))
    splits = list(by_split)
    for number in range(passes):
        columns = []
        for split, names in enumerate(by_split.values()):
            ids = _ids_of(output, manifest, names, number, passes)
            columns.append(np.concatenate([ids, np.full((len(ids), 1), split, np.uint64)], axis=1))
        rows = np.concatenate(columns)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        shared = (rows[1:, :2] == rows[:-1, :2]).all(axis=1) & (rows[1:, 2] != rows[:-1, 2])
        if shared.any():
            high, low, first = rows[int(np.argmax(shared))].tolist()
            second = splits[int(rows[int(np.argmax(shared)) + 1, 2])]
            problem = f"document {id_text(high, low)} is in both {splits[first]} and {second}"
            return [Finding(by_split[splits[first]][0], f"{problem} ({int(shared.sum())} such documents)")]
    return []


def _ids_of(output: str, manifest: Manifest, names: Sequence[str], number: int, passes: int) -> np.ndarray:
    """uint64[n, 2]: the distinct ids of outputs that fall to one of so many passes."""
    parts = [np.empty((0, 2), np.uint64)]
    for name in names:
        for shard in manifest.outputs[name].shards:
            try:
                data = read_if_there(storage.join(output, name, shard.documents))
                if data is None:
                    continue  # `check_files` said so
                high, low = id_halves(pq.read_table(io.BytesIO(data), columns=["id"]).column("id"))
            except (OSError, ValueError, KeyError, pa.ArrowException):
                continue  # `check_tokens` said so
            own = high % np.uint64(passes) == number
            parts.append(np.unique(np.stack([high[own], low[own]], axis=1), axis=0))
    return np.concatenate(parts)
