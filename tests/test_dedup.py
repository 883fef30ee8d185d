"""Deduplicate: one document of each text is kept, the same one however the documents were dealt out to runs."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import NAMES, Doc, deduplicate_runs, make_run, naive_kept

from beam_prep import dedup
from beam_prep.carrier import Carrier
from beam_prep.dedup import DUPLICATE
from beam_prep.mix import copies, document_ids, rate_of
from beam_prep.outputs import Output
from beam_prep.runs import Run, entries_array

ENGINE = Carrier(None)
ONCE = (Output("train", 8, (0.0, 1.0), (1.0, 1.0, 1.0)),)

_places = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2**40)), unique=True, min_size=1, max_size=40
)
_few_texts = st.integers(0, 6).map(lambda n: "abcdefg"[: n + 1])


@st.composite
def documents(draw: st.DrawFn) -> list[Doc]:
    return [Doc(*where, draw(_few_texts)) for where in draw(_places)]


def deal(docs: Sequence[Doc], numbers: random.Random) -> list[list[Doc]]:
    """Any slicing into runs of one source each; a run may hold any files in any order."""
    hands: dict[tuple[int, int], list[Doc]] = defaultdict(list)
    for doc in docs:
        hands[doc.source, numbers.randrange(3)].append(doc)
    dealt = list(hands.values())
    for hand in dealt:
        numbers.shuffle(hand)
    numbers.shuffle(dealt)
    return dealt


def runs_of(hands: list[list[Doc]]) -> list[Run]:
    return [make_run(ENGINE, f"run-{number}", hand) for number, hand in enumerate(hands)]


def ranks(runs: list[Run], by_run: dict[str, list[bytes]]) -> dict[tuple[int, int, int], int]:
    """(source, file, offset) → 0 for what is first of its text, 1, 2 … for repeats."""
    found = {}
    for run in runs:
        entries = entries_array(run.entries)  # type: ignore[arg-type]
        rank = np.zeros(len(entries), np.int64)
        for rows in by_run.get(run.name, []):
            repeats = np.frombuffer(rows, DUPLICATE)
            assert (rank[repeats["row"]] == 0).all()
            rank[repeats["row"]] = repeats["rank"]
        for entry, number in zip(entries, rank.tolist(), strict=True):
            found[run.source, int(entry["file"]), int(entry["offset"])] = number
    return found


@given(docs=documents(), numbers=st.randoms(use_true_random=False), drop=st.booleans())
def test_against_a_dictionary(docs: list[Doc], numbers: random.Random, drop: bool) -> None:
    runs = runs_of(deal(docs, numbers))
    found = deduplicate_runs(runs, ONCE, drop)
    rank = ranks(runs, found.by_run)

    kept = naive_kept(docs)
    assert {where for where, number in rank.items() if not number} == {doc[:3] for doc in kept}
    seen: Counter[str] = Counter()
    for doc in sorted(docs):
        assert rank[doc[:3]] == seen[doc.text]
        seen[doc.text] += 1

    duplicates = found.counts.duplicates
    repeated = Counter(doc.source for doc in docs) - Counter(doc.source for doc in kept)
    assert duplicates.tolist() == [repeated[source] if drop else 0 for source in range(len(NAMES))]
    cells = found.counts.cells
    for source in range(len(NAMES)):
        own = [doc for doc in (kept if drop else docs) if doc.source == source]
        tokens = sum(len(doc.text) + 1 for doc in own)
        assert cells[0, source].tolist() == [len(own), tokens, tokens]


@given(docs=documents(), numbers=st.randoms(use_true_random=False), ranges=st.sampled_from([1, 2, 64, 1024]))
def test_nothing_depends_on_runs_and_key_ranges(docs: list[Doc], numbers: random.Random, ranges: int) -> None:
    first = runs_of(deal(docs, numbers))
    second = runs_of(deal(docs, numbers))
    one = ranks(first, deduplicate_runs(first, ONCE).by_run)
    assert ranks(second, deduplicate_runs(second, ONCE, ranges=ranges).by_run) == one


def test_counts_by_output_rate_and_split() -> None:
    docs = [Doc(n % 3, 0, n, f"document {n}") for n in range(300)]
    outputs = (
        Output("train", 8, (0.0, 0.7), (0.5, 2.5, 0.0)),
        Output("val", 8, (0.7, 1.0), (0.5, 2.5, 0.0)),
        Output("long", 8, (0.0, 1.0), (1.0, 1.0, 1.0), min_chars=12),
        Output("tokens", 8, (0.0, 1.0), (1.0, 1.0, 1.0), min_tokens=12),
    )
    found = deduplicate_runs(runs_of(deal(docs, random.Random(0))), outputs)
    cells = found.counts.cells
    assert (cells[:2, 2] == 0).all()
    for source, rate in ((0, 0.5), (1, 2.5)):
        own = [doc for doc in docs if doc.source == source]
        ids = document_ids([doc.text for doc in own])
        lengths = np.array([len(doc.text) + 1 for doc in own])
        assert cells[0, source, 0] + cells[1, source, 0] == len(own)
        assert cells[0, source, 1] + cells[1, source, 1] == lengths.sum()
        assert cells[0, source, 2] + cells[1, source, 2] == (lengths * copies(ids, 0, rate_of(rate))).sum()
        assert abs(cells[0, source, 0] - 70) < 20
    long = sum(len(doc.text) >= 12 for doc in docs)
    assert cells[2, :, 0].sum() == cells[3, :, 0].sum() == long == 200


def test_equal_texts_of_different_sources_belong_to_the_first_one() -> None:
    docs = [Doc(2, 0, 0, "same"), Doc(1, 9, 9, "same"), Doc(1, 3, 7, "same"), Doc(2, 0, 5, "own")]
    runs = runs_of(deal(docs, random.Random(1)))
    found = deduplicate_runs(runs, ONCE)
    assert ranks(runs, found.by_run) == {(1, 3, 7): 0, (1, 9, 9): 1, (2, 0, 0): 2, (2, 0, 5): 0}
    assert found.counts.duplicates.tolist() == [0, 1, 1]


def test_equal_keys_of_other_ids_are_no_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Order keys have 63 bits, and two texts may share one."""
    from beam_prep import runs

    monkeypatch.setattr(runs, "order_keys", lambda ids, seed: ids[:, 1] & np.uint64(1))
    docs = [Doc(0, 0, n, f"text {n % 40}") for n in range(80)]
    made = runs_of(deal(docs, random.Random(2)))
    found = deduplicate_runs(made, ONCE)
    assert {where for where, n in ranks(made, found.by_run).items() if not n} == {(0, 0, n) for n in range(40)}


def test_a_run_without_documents_has_no_slices() -> None:
    run = make_run(ENGINE, "run", [Doc(0, 0, 0, "a")])
    empty = run._replace(documents=0, entries=b"", tokens=b"")
    assert list(dedup.slice_run(empty)) == []
    assert sum(len(part.entries) for _, part in dedup.slice_run(run)) == len(run.entries)  # type: ignore[arg-type]
