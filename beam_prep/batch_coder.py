"""A coder for batches, which Beam otherwise encodes now and then only to learn how large they are."""

from __future__ import annotations

import pickle
from typing import Any

from apache_beam.coders import coder_impl, registry
from apache_beam.coders.coders import FastCoder

from beam_prep.reading import RecordBatch
from beam_prep.transform import DocumentBatch


def batch_bytes(batch: RecordBatch | DocumentBatch, nested: bool = False) -> int:
    """About the bytes that a batch takes, without encoding it."""
    if isinstance(batch, RecordBatch):
        return sum(map(len, batch.lines)) + 8 * len(batch.lines)
    return int(batch.chars.sum()) + 32 * len(batch.documents)


class BatchCoder(FastCoder):
    """Pickle, with an estimate of the size that costs nothing."""

    def _create_impl(self) -> Any:
        return coder_impl.CallbackCoderImpl(
            lambda value: pickle.dumps(value, pickle.HIGHEST_PROTOCOL), pickle.loads, batch_bytes
        )

    def is_deterministic(self) -> bool:
        """Never used as a key."""
        return False

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


for _batch in (RecordBatch, DocumentBatch):
    registry.register_coder(_batch, BatchCoder)
