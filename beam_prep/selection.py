"""Selection: documents that no output will hold are not encoded, where that is known before anything is counted.

It is known where `epochs` below 1 decide: share point and split follow from the document's id. A weight's rate is not
known yet, and a limit in tokens needs the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from beam_prep.mix import Rate, copies, rate_of
from beam_prep.outputs import Output, member
from beam_prep.runs import ENTRY, TokenLimits
from beam_prep.transform import DocumentBatch


class Selection(NamedTuple):
    """Which documents of a source some output may hold."""

    parts: tuple[tuple[Output, Rate], ...]
    """Of the outputs, what concerns this source alone: a graph of hundreds of sources holds one of these for each."""


def selection(outputs: Sequence[Output], source: int, limits: TokenLimits) -> Selection | None:
    """The selection of a source; None where all its documents are encoded."""
    parts = []
    for output in outputs:
        epochs = output.epochs[source]
        if epochs is None or (epochs and output.min_tokens):
            return None
        parts.append((output._replace(epochs=(epochs,), weights=()), rate_of(epochs)))
    if limits.low > 0 or limits.high < 2**31:
        return None  # filtered documents are counted as such, whether sampled or not
    covers_all = all(rate.whole >= 1 and not output.min_chars for output, rate in parts)
    return None if covers_all else Selection(tuple(parts))


def select(batch: DocumentBatch, chosen: Selection | None, seed: int) -> DocumentBatch:
    """The batch, with empty texts in place of documents that no output will hold."""
    if chosen is None or not batch.documents:
        return batch
    rows = np.zeros(len(batch.documents), ENTRY)
    rows["chars"] = batch.chars
    wanted = np.zeros(len(rows), bool)
    for output, rate in chosen.parts:
        wanted |= member(output, 0, rows, batch.ids) & (copies(batch.ids, seed, rate) > 0)
    documents = [text if keep else "" for text, keep in zip(batch.documents, wanted.tolist(), strict=True)]
    return batch._replace(documents=documents, wanted=wanted)
