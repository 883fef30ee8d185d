"""The part of verify that compares ids: no document may be on two sides of a split, or come in two generations."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_prep import storage
from beam_prep.findings import Finding, read_if_there
from beam_prep.generations import split
from beam_prep.layout import MANIFEST
from beam_prep.manifest import Manifest
from beam_prep.mix import id_text
from beam_prep.token_checks import id_halves

_IDS_A_PASS = 16 << 20


def check_leaks(output: str, manifest: Manifest) -> list[Finding]:
    """No document is in two splits (`train` and `val`, of whatever stages)."""
    by_split: dict[str, list[str]] = {}
    for name, entry in manifest.outputs.items():
        own = by_split.setdefault(name.rsplit("/", 1)[-1], [])
        own += [f"{name}/{shard.documents}" for shard in entry.shards]
    return _shared(output, manifest, by_split, next(iter(manifest.outputs)))


def check_repeats(output: str, manifest: Manifest) -> list[Finding]:
    """Where repeats are dropped, no document comes in two generations."""
    if manifest.configuration.get("dedup", "exact") != "exact":
        return []
    parts = {
        f"generation {number}": [
            f"{name}/{shard.documents}" for name, entry in part.outputs.items() for shard in entry.shards
        ]
        for number, part in enumerate(split(manifest))
    }
    return _shared(output, manifest, parts, MANIFEST)


def _shared(output: str, manifest: Manifest, parts: dict[str, list[str]], place: str) -> list[Finding]:
    """No document is in two parts of the sidecars.

    Ids are compared in as many passes over the sidecars as memory asks for, each with its part of them.
    """
    if len(parts) < 2:
        return []
    spans = sum(shard.spans for entry in manifest.outputs.values() for shard in entry.shards)
    passes = max(1, -(-spans // _IDS_A_PASS))
    names = list(parts)
    for number in range(passes):
        columns = []
        for part, paths in enumerate(parts.values()):
            ids = _ids_of(output, paths, number, passes)
            columns.append(np.concatenate([ids, np.full((len(ids), 1), part, np.uint64)], axis=1))
        rows = np.concatenate(columns)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        shared = (rows[1:, :2] == rows[:-1, :2]).all(axis=1) & (rows[1:, 2] != rows[:-1, 2])
        if shared.any():
            high, low, first = rows[int(np.argmax(shared))].tolist()
            second = names[int(rows[int(np.argmax(shared)) + 1, 2])]
            problem = f"document {id_text(high, low)} is in both {names[first]} and {second}"
            return [Finding(place, f"{problem} ({int(shared.sum())} such documents)")]
    return []


def _ids_of(output: str, paths: Sequence[str], number: int, passes: int) -> np.ndarray:
    """uint64[n, 2]: the distinct ids of sidecars that fall to one of so many passes."""
    parts = [np.empty((0, 2), np.uint64)]
    for path in paths:
        try:
            data = read_if_there(storage.join(output, path))
            if data is None:
                continue  # `check_files` said so
            high, low = id_halves(pq.read_table(io.BytesIO(data), columns=["id"]).column("id"))
        except (OSError, ValueError, KeyError, pa.ArrowException):
            continue  # `check_tokens` said so
        own = high % np.uint64(passes) == number
        parts.append(np.unique(np.stack([high[own], low[own]], axis=1), axis=0))
    return np.concatenate(parts)
