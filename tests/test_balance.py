"""Balance: from counts to a plan, or to an error that says which source falls short and why."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_prep import balance
from beam_prep.balance import MAX_BUCKET_TOKENS, MIN_BUCKET_TOKENS, Plan, bucket_count, bucket_edges
from beam_prep.dedup import Counts
from beam_prep.errors import BeamPrepError
from beam_prep.ledger import Tally
from beam_prep.mixture import histogram, merge
from beam_prep.outputs import Output

NAMES = ("first", "second")
WHOLE = (0.0, 1.0)
MIXED = Output("train", 8, WHOLE, (None, None), (1.0, 1.0))
FULL = Tally(records=10, rendered=10)


def plan_of(
    outputs: Sequence[Output],
    tallies: Sequence[Tally],
    documents: Sequence[Sequence[int]],
    duplicates: Sequence[int] = (0, 0),
) -> Plan:
    """The plan for so many documents (of ten tokens) of each source in each output."""
    cells = np.zeros((len(outputs), 2, 3), np.int64)
    points = []
    for number, (output, counts) in enumerate(zip(outputs, documents, strict=True)):
        for source, count in enumerate(counts):
            cells[number, source] = count, 10 * count, 10 * count * (output.epochs[source] or 0)
            if output.epochs[source] is None:
                words = np.arange(count, dtype=np.uint64) << np.uint64(40)
                points.append(histogram(2 * number + source, words, np.full(count, 10)))
    counts_ = Counts(np.array(duplicates), cells, merge(points))
    return balance.balance(outputs, NAMES, [1.0, 1.0], counts_, tallies)


def failure(*args, **more) -> list[str]:
    with pytest.raises(BeamPrepError) as caught:
        plan_of(*args, **more)
    return str(caught.value).splitlines()


class TestNothing:
    """A weighted source that has no document can have no share."""

    @pytest.mark.parametrize(
        ("tally", "repeated", "reason"),
        [
            (Tally(), 0, "its input holds no records"),
            (Tally(blank_lines=7), 0, "its input holds no records"),
            (
                Tally(records=9, filtered=Counter(min_chars=7, ge=2)),
                0,
                "all of its 9 records are filtered or rejected (min_chars 7, ge 2)",
            ),
            (
                Tally(records=3, filtered=Counter(min_chars=1), rejected=Counter(invalid_json=2)),
                0,
                "all of its 3 records are filtered or rejected (invalid_json 2, min_chars 1)",
            ),
            (Tally(records=4, rendered=4), 4, "all of its 4 documents repeat documents of datasets before it"),
            (
                Tally(records=4, rendered=3, filtered=Counter(max_chars=1)),
                3,
                "all of its 3 documents repeat documents of datasets before it",
            ),
        ],
        ids=["empty", "blank", "filtered", "rejected", "repeated", "filtered-and-repeated"],
    )
    def test_the_error_says_why(self, tally: Tally, repeated: int, reason: str) -> None:
        (line,) = failure([MIXED], [FULL, tally], [[10, 0]], (0, repeated))
        assert line.startswith("dataset 'second' has a weight, but ")
        assert reason in line

    def test_all_such_sources_are_named(self) -> None:
        lines = failure([MIXED], [Tally(), Tally(records=1, rejected=Counter(null_field=1))], [[0, 0]])
        assert [line.split("'")[1] for line in lines] == ["first", "second"]

    def test_a_source_with_epochs_may_be_empty(self) -> None:
        output = MIXED._replace(epochs=(None, 1.0), weights=(1.0, 0.0))
        (planned,) = plan_of([output], [FULL, Tally()], [[10, 0]]).outputs
        assert [share.tokens for share in planned.shares] == [100, 0]

    def test_a_split_may_hold_nothing_of_a_source(self) -> None:
        outputs = [MIXED._replace(split=(0.0, 0.9)), MIXED._replace(name="val", split=(0.9, 1.0))]
        plan = plan_of(outputs, [FULL, FULL], [[8, 10], [2, 0]])
        assert [share.tokens for share in plan.outputs[1].shares] == [20, 0]
        assert [share.asked for share in plan.outputs[1].shares] == [1.0, None]

    def test_a_stage_that_names_it_must_have_documents_of_it(self) -> None:
        short = MIXED._replace(name="S1/train")
        long = MIXED._replace(name="S2/train", min_chars=1000)
        documents = [[10, 10], [5, 0]]
        (planned, other) = plan_of([short, long], [FULL, FULL], documents).outputs
        assert [share.tokens for share in other.shares] == [50, 0]
        assert planned.tokens == 200
        (line,) = failure([short, long._replace(named=True)], [FULL, FULL], documents)
        for part in ("'second'", "'S2'", "min_chars"):
            assert part in line
        assert "'S1'" not in line

    def test_too_short_for_every_stage(self) -> None:
        long = MIXED._replace(name="S2/train", min_chars=1000)
        (line,) = failure([long], [FULL, FULL], [[5, 0]])
        assert "none of its documents is long enough for stage 'S2'" in line

    def test_an_output_without_documents(self) -> None:
        outputs = [
            Output("train", 8, (0.0, 0.9), (1.0, 0.5)),
            Output("val", 8, (0.9, 1.0), (1.0, 0.5)),
        ]
        (line,) = failure(outputs, [FULL, Tally(records=4, filtered=Counter(ge=4))], [[10, 0], [0, 0]])
        for part in ("'val' has no documents", "first: 10 records", "4 filtered", "at 0.5 epochs", "splits"):
            assert part in line
        assert "total_tokens" not in line

    def test_what_is_wrong_is_told_together(self) -> None:
        outputs = [MIXED._replace(name=f"{s}/train", total_tokens=500.0) for s in ("S1", "S2")]
        lines = failure(outputs, [FULL, FULL], [[10, 100], [100, 10]])
        assert [line.split(":")[0] for line in lines] == [
            "output 'S1/train'",
            "stage 'S1'",
            "output 'S2/train'",
            "stage 'S2'",
        ]
        assert "`total_tokens: 200`" in lines[1]


@given(st.integers(0, 10**14))
def test_buckets_are_of_the_size_that_is_meant(tokens: int) -> None:
    count = bucket_count(tokens)
    assert count >= 1
    if count > 1:
        assert 0.6 * MIN_BUCKET_TOKENS < tokens / count < 1.5 * MAX_BUCKET_TOKENS


@given(st.integers(1, 5000))
def test_edges_cover_the_keys_in_equal_parts(buckets: int) -> None:
    edges = bucket_edges(buckets).tolist()
    assert (edges[0], edges[-1], len(edges)) == (0, 2**63, buckets + 1)
    widths = np.diff(np.array(edges, object))
    assert max(widths) - min(widths) <= 1


class TestRejects:
    """Limits of rejected records."""

    @given(st.integers(0, 50), st.integers(1, 50), st.floats(0, 1))
    def test_the_share_that_is_allowed(self, rejected: int, fine: int, limit: float) -> None:
        tally = Tally(records=rejected + fine, rejected=Counter(invalid_json=rejected), rendered=fine)
        if rejected / (rejected + fine) > limit + 1e-9:
            with pytest.raises(BeamPrepError, match=f"{rejected} of {rejected + fine} records rejected"):
                balance.check_rejects(["a"], [limit], [tally])
        elif rejected / (rejected + fine) < limit - 1e-9 or not rejected:
            balance.check_rejects(["a"], [limit], [tally])

    def test_each_source_has_its_own(self) -> None:
        tallies = [Tally(records=10, rejected=Counter(a=5), rendered=5)] * 3
        with pytest.raises(BeamPrepError) as caught:
            balance.check_rejects(["x", "y", "z"], [0.4, 0.6, 0.0], tallies)
        assert "'x'" in str(caught.value)
        assert "'y'" not in str(caught.value)
        assert "'z'" in str(caught.value)
