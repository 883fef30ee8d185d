"""Packing: documents to sequences, against a reference that moves one token at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_prep.packing import SPAN, Packed, pack_concat, with_rest

Span = tuple[int, int, int, int, int]


def naive_concat(lengths: list[int], context_length: int) -> tuple[list[Span], int, list[Span]]:
    """(spans, sequences, rest), a token at a time."""
    stream = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    spans: list[list[int]] = []
    for place, (row, position) in enumerate(stream):
        sequence, start = divmod(place, context_length)
        if start == 0 or position == 0:
            spans.append([row, position, 0, sequence, start])
        spans[-1][2] += 1
    sequences = len(stream) // context_length
    full = [tuple(span) for span in spans if span[3] < sequences]
    return full, sequences, [tuple(span) for span in spans if span[3] == sequences]  # type: ignore[return-value]


def rows(spans: np.ndarray) -> list[Span]:
    assert spans.dtype == SPAN
    return [tuple(span) for span in spans.tolist()]


_lengths = st.lists(st.integers(1, 40), max_size=40)


@given(lengths=_lengths, context_length=st.integers(1, 50))
def test_against_the_reference(lengths: list[int], context_length: int) -> None:
    packed = pack_concat(np.array(lengths, np.uint32), context_length)
    assert (rows(packed.spans), packed.sequences, rows(packed.rest)) == naive_concat(lengths, context_length)


@given(lengths=_lengths, context_length=st.integers(1, 50))
def test_every_token_lies_somewhere_once(lengths: list[int], context_length: int) -> None:
    packed = pack_concat(np.array(lengths, np.int64), context_length)
    spans = np.concatenate([packed.spans, packed.rest])
    for row, length in enumerate(lengths):
        own = spans[spans["row"] == row]
        assert own["length"].sum() == length
        assert own["position"].tolist() == [0, *np.cumsum(own["length"])[:-1].tolist()]
    assert packed.spans["length"].sum() == packed.sequences * context_length
    assert packed.rest["length"].sum() < context_length
    assert (spans["start"] + spans["length"] <= context_length).all()


@given(lengths=_lengths, context_length=st.integers(1, 50))
def test_the_rest_becomes_one_more_sequence(lengths: list[int], context_length: int) -> None:
    packed = pack_concat(np.array(lengths, np.int64), context_length)
    whole = with_rest(packed)
    assert whole.sequences == -(-sum(lengths) // context_length)
    assert rows(whole.spans) == rows(packed.spans) + rows(packed.rest)
    assert not len(whole.rest)
    assert rows(with_rest(whole).spans) == rows(whole.spans)


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.int64, np.uint64])
def test_lengths_of_any_integer_type(dtype: type) -> None:
    packed = pack_concat(np.array([3, 5, 2], dtype), 4)
    assert rows(packed.spans) == [(0, 0, 3, 0, 0), (1, 0, 1, 0, 3), (1, 1, 4, 1, 0)]
    assert rows(packed.rest) == [(2, 0, 2, 2, 0)]


def test_no_documents() -> None:
    packed = pack_concat(np.empty(0, np.uint32), 8)
    assert (len(packed.spans), packed.sequences, len(packed.rest)) == (0, 0, 0)
    assert isinstance(with_rest(packed), Packed)


def test_sums_beyond_32_bits() -> None:
    lengths = np.full(3, 2_000_000_000, np.uint32)
    packed = pack_concat(lengths, 2**30)
    assert packed.sequences == 6_000_000_000 // 2**30
    assert int(packed.spans["length"].sum(dtype=np.int64) + packed.rest["length"].sum()) == 6_000_000_000


def test_the_documented_length_suffices_for_the_longest_context() -> None:
    packed = pack_concat(np.array([2**31 + 5], np.int64), 2**31)
    assert rows(packed.spans) == [(0, 0, 2**31, 0, 0)]
    assert rows(packed.rest) == [(0, 2**31, 5, 1, 0)]
