"""Dead letters: the rejected records of a source, with where they are and why, one file a source."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import NamedTuple

from beam_prep import carrier as carriers
from beam_prep import storage
from beam_prep.carrier import Payload
from beam_prep.layout import REJECTED_FOLDER
from beam_prep.runs import rejected_rows
from beam_prep.transform import dead_letter


class RejectBlock(NamedTuple):
    """Rejected records of one run."""

    run: str
    rows: Payload


def write_rejected(output: str, name: str, blocks: Iterable[RejectBlock], label: str = "") -> str:
    """Writes `rejected/NAME-00000.jsonl.gz`, in the order of the runs; returns its path relative to the output.

    Args:
      label: of the generation, in place of the zeros; empty for the first one.
    """
    relative = f"{REJECTED_FOLDER}/{name}-{label or '00000'}.jsonl.gz"
    with (
        storage.write_atomic(storage.join(output, relative)) as file,
        gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=6) as compressed,
    ):
        for block in sorted(blocks):
            for row in rejected_rows(carriers.load(block.rows)):
                compressed.write(dead_letter(name, row))
    return relative
