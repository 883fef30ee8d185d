"""Seen: the ids of the documents that an output holds, key range by key range, for an increment to leave out."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_prep import carrier as carriers
from beam_prep import storage
from beam_prep.carrier import Carrier
from beam_prep.dedup import KEY_RANGES, SEEN, RunSlice, key_range_edges
from beam_prep.errors import BeamPrepError
from beam_prep.job import Base
from beam_prep.mix import order_keys
from beam_prep.token_checks import id_halves

_ID_BYTES = 16


def sidecars(output: str, base: Base) -> list[str]:
    """The sidecars of an output, relative to its folder.

    Raises:
      BeamPrepError: it is not as it was when the run began.
    """
    from beam_prep.manifest import read_manifest

    manifest = read_manifest(output)
    if manifest.fingerprint != base.fingerprint:
        raise BeamPrepError(f"output {output}: another run has changed it since this one began; give the command again")
    return [
        f"{name}/{shard.documents}" for name, entry in manifest.outputs.items() for shard in entry.shards if shard.spans
    ]


def slice_sidecar(
    output: str, path: str, seed: int, carrier: Carrier, ranges: int = KEY_RANGES
) -> Iterator[tuple[int, RunSlice]]:
    """(key range, slice of `SEEN`) for every range in which a sidecar has documents.

    Raises:
      BeamPrepError: the sidecar is missing or damaged.
    """
    full = storage.join(output, path)
    try:
        column = pq.read_table(io.BytesIO(storage.read_bytes(full)), columns=["id"]).column("id")
        ids = np.stack(id_halves(column), axis=1)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise BeamPrepError(
            f"{full}: cannot be read ({' '.join(str(error).split())}); `beam-prep verify {output}` says what is off"
        ) from None
    keys = order_keys(ids, seed)
    order = np.lexsort((ids[:, 1], ids[:, 0], keys))
    keys, ids = keys[order], ids[order]
    first = np.append(True, (ids[1:] != ids[:-1]).any(axis=1))[: len(ids)]  # a row a span: a document has several
    edges = key_range_edges(keys[first], ranges)
    payload = carrier.put(f"seen/{path.replace('/', '-')}", [ids[first].tobytes()])
    for number, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        if end > start:
            part = carriers.part(payload, start * _ID_BYTES, (end - start) * _ID_BYTES)
            yield number, RunSlice(path, SEEN, start, part)
