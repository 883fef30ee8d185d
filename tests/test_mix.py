"""Mix: identity, order, share and side of a document follow from its content alone, today and in a year."""

import math
from collections import Counter

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from beam_prep.documents import Segments, chat_segments
from beam_prep.mix import (
    KEY_BITS,
    copies,
    document_ids,
    id_text,
    order_keys,
    rate_of,
    share_words,
    split_points,
)

MASK = 2**64 - 1
N = 20_000
IDS = document_ids([f"document {n}" for n in range(N)])


# An output's order and splits hang on these; a change of them is a change of format.
GOLDEN_ID = "61f0632fb079b54d7386e91040cf00c3"
GOLDEN_KEYS = [6531207394056484304, 3087159201414293957, 4958818204190493407]
GOLDEN_SPLIT = 0.39889789156706434


def finalise(x: int) -> int:
    """SplitMix64's finaliser, in plain integers."""
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def seed_word(seed: int) -> int:
    return xxhash.xxh3_64_intdigest(seed.to_bytes(8, "little"))


def naive_key(high: int, low: int, seed: int, copy: int) -> int:
    word = finalise(finalise(high ^ seed_word(seed)) ^ low)
    return finalise((word + copy * 0x9E3779B97F4A7C15) & MASK) >> 1


def spread(points: np.ndarray) -> float:
    """Kolmogorov's distance of points in [0, 1) from the uniform distribution."""
    ordered = np.sort(points)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max(np.abs(ordered - steps[:-1]).max(), np.abs(ordered - steps[1:]).max()))


EVEN = 2.0 / math.sqrt(N)
"""Exceeded by chance once in 1,500 hashes; the ones here are fixed."""


class TestIds:
    """What makes two documents one."""

    def test_the_hash_of_the_text(self) -> None:
        texts = ["", "a", "日本😀\0\n", "x" * 100_000]
        for text, (high, low) in zip(texts, document_ids(texts).tolist(), strict=True):
            assert id_text(high, low) == xxhash.xxh3_128_hexdigest(text.encode())

    def test_golden(self) -> None:
        high, low = document_ids(["Hello, world"])[0].tolist()
        assert id_text(high, low) == GOLDEN_ID

    def test_shape(self) -> None:
        assert document_ids([]).shape == (0, 2)
        assert document_ids(["a"]).dtype == np.uint64

    def test_control_tokens_are_not_the_same_text_in_data(self) -> None:
        control = Segments(["", "user\nhi", ""], ["<|im_start|>", "<|im_end|>"])
        data = control.text()
        partly = Segments(["<|im_start|>user\nhi", ""], ["<|im_end|>"])
        assert len({tuple(row) for row in document_ids([control, data, partly]).tolist()}) == 3
        assert control.text() == data == partly.text()

    def test_text_that_looks_like_the_canonical_form(self) -> None:
        documents = [Segments(["a", "b"], ["<|im_end|>"]), "a\xff<|im_end|>\xffb", "aÿ<|im_end|>ÿb"]
        ids = document_ids(documents)
        assert tuple(ids[0]) not in {tuple(row) for row in ids[1:]}

    def test_equal_segments_are_one(self) -> None:
        first, second = (chat_segments([("user", "hi"), ("assistant", "ho")]) for _ in range(2))
        assert (document_ids([first, second])[0] == document_ids([second])[0]).all()

    def test_segments_without_control_tokens_are_their_text(self) -> None:
        ids = document_ids([Segments(["plain"], []), "plain"])
        assert (ids[0] == ids[1]).all()

    @given(st.lists(st.text(max_size=20), unique=True, max_size=20))
    def test_other_texts_other_ids(self, texts: list[str]) -> None:
        assert len({tuple(row) for row in document_ids(texts).tolist()}) == len(texts)

    def test_ids_do_not_depend_on_the_batch(self) -> None:
        alone = np.concatenate([document_ids([f"document {n}"]) for n in range(100)])
        assert (alone == IDS[:100]).all()


class TestOrderKeys:
    """The global order."""

    @given(st.integers(0, MASK), st.integers(0, MASK), st.integers(0, 2**63 - 1), st.integers(0, MASK))
    def test_against_plain_integers(self, high: int, low: int, seed: int, copy: int) -> None:
        ids = np.array([[high, low]], np.uint64)
        wanted = naive_key(high, low, seed, copy)
        assert order_keys(ids, seed, copy if copy < 2**63 else np.array([copy], np.uint64)).tolist() == [wanted]

    def test_golden(self) -> None:
        ids = document_ids(["Hello, world"])
        assert [order_keys(ids, seed, copy)[0] for seed, copy in ((0, 0), (0, 1), (1, 0))] == GOLDEN_KEYS

    def test_below_the_limit_and_even(self) -> None:
        keys = order_keys(IDS, 0)
        assert keys.dtype == np.uint64
        assert keys.max() < 2**KEY_BITS
        assert spread(keys / 2.0**KEY_BITS) < EVEN
        assert len(np.unique(keys)) == N

    def test_low_bits_are_even_too(self) -> None:
        assert spread((order_keys(IDS, 0) & np.uint64(0xFFFF)) / 2.0**16) < EVEN + 2**-16

    def test_even_for_ids_that_hardly_differ(self) -> None:
        ids = np.zeros((N, 2), np.uint64)
        ids[:, 1] = np.arange(N)
        assert spread(order_keys(ids, 0) / 2.0**KEY_BITS) < EVEN

    def test_copies_of_one_document_lie_apart(self) -> None:
        keys = order_keys(np.repeat(IDS[:1], N, axis=0), 0, np.arange(N))
        assert spread(keys / 2.0**KEY_BITS) < EVEN
        assert len(np.unique(keys)) == N

    def test_a_vector_of_copies_is_each_copy(self) -> None:
        both = order_keys(IDS[:50].repeat(2, axis=0), 3, np.tile([0, 5], 50))
        assert (both[0::2] == order_keys(IDS[:50], 3, 0)).all()
        assert (both[1::2] == order_keys(IDS[:50], 3, 5)).all()

    @pytest.mark.parametrize("seed", [1, 2, 2**62])
    def test_another_seed_is_another_order(self, seed: int) -> None:
        first, second = (np.argsort(np.argsort(order_keys(IDS, s))) for s in (0, seed))
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(N)

    def test_order_and_copies_are_independent(self) -> None:
        keys, share = order_keys(IDS, 0) / 2.0**KEY_BITS, share_words(IDS, 0) / 2.0**53
        split = split_points(IDS)
        for one, other in ((keys, share), (keys, split), (share, split)):
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(N)


class TestCopies:
    """Epochs as numbers of copies."""

    @pytest.mark.parametrize("rate", [0.0, 1.0, 2.0, 17.0])
    def test_whole_rates_are_exact(self, rate: float) -> None:
        assert (copies(IDS, 0, rate_of(rate)) == int(rate)).all()

    @pytest.mark.parametrize("rate", [0.001, 0.3, 0.5, 0.999, 1.25, 2.5, 10.1])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_fractions_hold_within_chance(self, rate: float, seed: int) -> None:
        times = copies(IDS, seed, rate_of(rate))
        whole = int(rate)
        assert set(Counter(times.tolist())) <= {whole, whole + 1}
        fraction = rate - whole
        assert abs(times.sum() - rate * N) < 4 * math.sqrt(N * fraction * (1 - fraction)) + 1

    def test_a_document_keeps_its_place_when_the_rate_grows(self) -> None:
        few, many = copies(IDS, 0, rate_of(0.3)), copies(IDS, 0, rate_of(0.7))
        assert (few <= many).all()

    def test_another_seed_takes_other_documents(self) -> None:
        both = (copies(IDS, 0, rate_of(0.5)) * copies(IDS, 1, rate_of(0.5))).sum()
        assert abs(both - N / 4) < 4 * math.sqrt(N * 3 / 16)

    def test_no_documents(self) -> None:
        assert copies(IDS[:0], 0, rate_of(0.5)).tolist() == []


class TestPoints:
    """Where fractions and splits cut."""

    @pytest.mark.parametrize("points", [split_points(IDS), *(share_words(IDS, seed) / 2.0**53 for seed in (0, 5))])
    def test_even_in_the_unit_interval(self, points: np.ndarray) -> None:
        assert points.min() >= 0
        assert points.max() < 1
        assert spread(points) < EVEN

    @given(high=st.integers(0, MASK), low=st.integers(0, MASK))
    def test_points_never_reach_one(self, high: int, low: int) -> None:
        ids = np.array([[high, low]], np.uint64)
        assert 0 <= split_points(ids)[0] < 1
        assert 0 <= share_words(ids, 1)[0] < 2**53

    def test_split_golden(self) -> None:
        """The side of a split takes no seed: what was trained on is never validated on, whatever else changes."""
        assert split_points(document_ids(["Hello, world"]))[0] == GOLDEN_SPLIT
