"""Best-fit packing: no document that fits a sequence is cut. From document lengths to spans, no tokens touched.

Best-fit decreasing (D. S. Johnson, A. Demers, J. D. Ullman, M. R. Garey, R. L. Graham: "Worst-case performance bounds
for simple one-dimensional packing algorithms", SIAM J. Comput. 3(4), 1974), as used for training data by H. Ding et
al.: "Fewer truncations improve language modeling", ICML 2024: documents longer than a sequence give full sequences
first, and what remains of them is packed like a document.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from beam_prep.packing import SPAN, Packed


def pack_best_fit(lengths: np.ndarray, context_length: int) -> Packed:
    """Packs documents whole; those longer than a sequence are cut every `context_length` tokens.

    A document of k sequences and something gives k full sequences of its own and one piece. The pieces go, longest
    first, each to the sequence with the least room that still holds it, or else to a new one. Any two sequences hold
    more than `context_length` tokens together, so that one at most is half empty. The emptiest sequence is the rest,
    unless it is full; the others end with a gap where nothing fitted.

    Sequences then stand in an order drawn from a generator with a fixed seed, and the documents of a sequence in
    their order of `lengths`, so that neither follows length or fill. The result follows from the arguments alone.

    Pieces of one length, and sequences with equal room, are handled together: for n documents the cost is a few sorts
    and at most n steps, each a binary search among the different rooms, of which there are `context_length` at most.

    Args:
      lengths: integer[n], tokens of each document, each at least 1.
      context_length: tokens a sequence, at least 1.
    """
    lengths = np.asarray(lengths).astype(np.int64)
    wholes, overs = np.divmod(lengths, context_length)
    slices = int(wholes.sum())
    rows = np.nonzero(overs)[0]
    # Longest first, equal ones at random: in their order, the first of a length would get the fullest sequences, and
    # so stand before what is there. (A stable sort of 16-bit numbers is a radix sort.)
    rows = rows[_shuffle(len(rows))]
    rows = rows[np.argsort((context_length - overs[rows]).astype(np.min_scalar_type(context_length)), kind="stable")]
    pieces = overs[rows]
    heads = np.flatnonzero(np.diff(pieces, prepend=0))
    places, opened = _fit(pieces[heads], np.diff(heads, append=len(pieces)), context_length)

    spans = np.empty(slices + len(rows), SPAN)
    full, part = spans[:slices], spans[slices:]
    full["row"] = np.repeat(np.arange(len(lengths)), wholes)
    number = np.arange(slices) - np.repeat(np.cumsum(wholes) - wholes, wholes)
    full["position"], full["length"] = number * context_length, context_length
    part["row"], part["position"], part["length"] = rows, wholes[rows] * context_length, pieces
    sequence = np.concatenate([np.arange(slices), slices + places])
    return _arranged(spans, sequence, slices + opened, context_length)


def _fit(lengths: np.ndarray, counts: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """Best-fit decreasing.

    Args:
      lengths: integer[m], the different lengths of pieces, falling, each in 1..`room`.
      counts: integer[m], pieces of each.
      room: of a bin.

    Returns:
      int64[counts.sum()], the bin of each piece; and how many bins there are.
    """
    rooms: list[int] = []  # what some bin has left, sorted
    bins: dict[int, list[tuple[int, int]]] = {}  # for each of them, those bins, as ranges [first, end)
    opened = 0
    groups: list[tuple[int, int, int]] = []  # (first bin, bins, pieces in each), in the order of the pieces
    for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
        begin = at = bisect_left(rooms, length)
        fresh = []
        while count:
            if at < len(rooms):
                left = rooms[at]
                ranges = bins[left]
                first, end = ranges.pop()
                each = left // length
            else:
                left, ranges, each = room, [], room // length
                first, opened = opened, opened - (-count // each)
                end = opened
            # A bin stays the best fit until it holds no further piece: `each` in every bin, fewer in the last one.
            for wanted, size in ((count // each, each), (1, count % each)):
                taken = min(wanted, end - first)
                if not taken or not size:
                    continue
                groups.append((first, taken, size))
                count -= taken * size
                if remains := left - size * length:
                    if remains not in bins:
                        bins[remains] = []
                        fresh.append(remains)
                    bins[remains].append((first, first + taken))
                first += taken
            if first < end:
                ranges.append((first, end))
            elif not ranges and at < len(rooms):
                del bins[left]
                at += 1
        del rooms[begin:at]
        for remains in fresh:
            insort(rooms, remains)
    firsts, taken, sizes = np.array(groups, np.int64).reshape(-1, 3).T
    members = taken * sizes
    group = np.repeat(np.arange(len(members)), members)
    within = np.arange(len(group)) - np.repeat(np.cumsum(members) - members, members)
    return firsts[group] + within // sizes[group], opened


def _arranged(spans: np.ndarray, sequence: np.ndarray, sequences: int, context_length: int) -> Packed:
    """Orders spans within sequences and sequences among each other; the emptiest one that is not full comes last.

    Args:
      spans: `SPAN[n]` without sequence and start.
      sequence: integer[n], the sequence of each span, in 0..`sequences` - 1.
    """
    if not sequences:
        return Packed(spans, 0, spans)
    # Exact in float64: sums of a sequence stay far below 2**53.
    fill = np.bincount(sequence, weights=spans["length"], minlength=sequences)
    emptiest = int(np.argmin(fill))
    kept = sequences - int(fill[emptiest] < context_length)
    order = _shuffle(sequences)
    if kept < sequences:
        order = np.append(order[order != emptiest], emptiest)
    rank = np.empty(sequences, np.int64)
    rank[order] = np.arange(sequences)
    spans["sequence"] = rank[sequence]
    # (sequence, row) is unique: a document has one piece at most beside those that fill a sequence.
    spans = spans[np.argsort(spans["sequence"].astype(np.uint64) << np.uint64(32) | spans["row"])]
    before = np.cumsum(spans["length"], dtype=np.int64) - spans["length"]
    heads = np.searchsorted(spans["sequence"], np.arange(sequences))
    spans["start"] = before - before[heads][spans["sequence"]]
    split = int(heads[-1]) if kept < sequences else len(spans)
    return Packed(spans[:split], kept, spans[split:])


def _shuffle(count: int) -> np.ndarray:
    """int64[count]: a permutation that is the same everywhere (numpy keeps its bit generators' streams as they are)."""
    return np.argsort(np.random.Philox(key=0).random_raw(count), kind="stable")
