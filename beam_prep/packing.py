"""Packing: from document lengths to spans of sequences. Plain numpy, no tokens touched.

`pack_concat` is here, `pack_best_fit` in `best_fit`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SPAN = np.dtype(
    [
        ("row", "<u4"),  # index of the document among those packed
        ("position", "<u4"),  # first token within the document
        ("length", "<u4"),  # tokens
        ("sequence", "<u4"),
        ("start", "<u4"),  # first token within the sequence
    ]
)
"""A part of a document that lies in one sequence."""


class Packed(NamedTuple):
    """Spans in the order in which they are written."""

    spans: np.ndarray
    """`SPAN[n]` of `sequences` sequences, in order. Those of `concat` are full (but for the last one after
    `with_rest`), those of `best_fit` may end with a gap."""
    sequences: int
    rest: np.ndarray
    """`SPAN[m]` of one more sequence, which is not full: ends of documents, or whole ones."""


def pack_concat(lengths: np.ndarray, context_length: int) -> Packed:
    """Joins documents to one stream and cuts it every `context_length` tokens.

    Args:
      lengths: integer[n], tokens of each document, each at least 1.
      context_length: tokens a sequence, at least 1.
    """
    if not len(lengths):
        return Packed(np.empty(0, SPAN), 0, np.empty(0, SPAN))
    ends = np.cumsum(lengths, dtype=np.int64)
    begins = ends - np.asarray(lengths).astype(np.int64)
    total = int(ends[-1])
    # A sequence that begins inside a document cuts it.
    starts = np.arange(0, total, context_length, dtype=np.int64)
    at = np.searchsorted(begins, starts)
    inside = np.append(begins, total)[at] != starts
    cuts = np.insert(begins, at[inside], starts[inside])
    row = np.insert(np.arange(len(begins)), at[inside], at[inside] - 1)
    spans = np.empty(len(cuts), SPAN)
    spans["row"] = row
    spans["position"] = cuts - begins[row]
    spans["length"] = np.diff(cuts, append=total)
    spans["sequence"], spans["start"] = np.divmod(cuts, context_length)
    sequences = total // context_length
    full = int(np.searchsorted(spans["sequence"], sequences))
    return Packed(spans[:full], sequences, spans[full:])


def with_rest(packed: Packed) -> Packed:
    """The same with its rest as one more sequence, which the writer pads."""
    if not len(packed.rest):
        return packed
    return Packed(np.concatenate([packed.spans, packed.rest]), packed.sequences + 1, packed.rest[:0])
