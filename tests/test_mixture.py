"""Mixture: the shares that were asked for are the shares that come out, or an error says what would make them possible.

The reference divides tokens with exact fractions and counts documents one by one.
"""

import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from steps import NAMES, Doc, Written, make_run, naive_kept, naive_output, write_outputs

from beam_prep import balance, dedup
from beam_prep.carrier import Carrier
from beam_prep.errors import BeamPrepError
from beam_prep.ledger import Tally
from beam_prep.mix import SHARE_BITS, copies, document_ids, rate_of, share_words, split_points
from beam_prep.mixture import Histogram, cell_of, histogram, merge, nearest_rate, solve
from beam_prep.output_steps import SumCounts
from beam_prep.outputs import Output

WHOLE = (0.0, 1.0)
CLOSE = 0.005
"""Relative error of a share that is allowed."""
NOTHING = re.compile("has no documents|none of its documents is long enough")
"""Every share is less than half a document, or the one split that a test looks at has nothing of a source."""

_words = st.one_of(
    st.integers(0, 2**SHARE_BITS - 1),
    st.integers(0, 9000),
    st.integers(0, SHARE_BITS - 1).map(lambda bits: 1 << bits),
    st.integers(1, SHARE_BITS).map(lambda bits: (1 << bits) - 1),
    st.integers(2**52, 2**52 + 2**41),
)
_documents = st.lists(st.tuples(_words, st.integers(1, 2**32 - 1)), min_size=1, max_size=60)


def naive_bin(word: int) -> tuple[int, int]:
    """The leading 13 bits of a word, and how many follow: bins that ascend with the words."""
    size = max(0, word.bit_length() - 13)
    return size, word >> size


def words_and_tokens(documents: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    words, tokens = zip(*documents, strict=True)
    return np.array(words, np.uint64), np.array(tokens, np.int64)


class TestNearestRate:
    """The cut of one source."""

    @given(documents=_documents, epochs=st.fractions(0, 5))
    def test_no_whole_bins_come_nearer(self, documents: list[tuple[int, int]], epochs: Fraction) -> None:
        words, tokens = words_and_tokens(documents)
        total = int(tokens.sum())
        wanted = float(epochs * total)
        rate, given_ = nearest_rate(*cell_of(histogram(0, words, tokens), 0), wanted)
        assert given_ == sum(size * (rate.whole + (word < rate.cut)) for word, size in documents)

        by_bin: dict[tuple[int, int], int] = defaultdict(int)
        for word, size in documents:
            by_bin[naive_bin(word)] += size
        sums = np.cumsum([0, *(by_bin[key] for key in sorted(by_bin))]).tolist()
        nearest = min(abs(n * total + part - wanted) for n in range(7) for part in sums)
        assert abs(given_ - wanted) == nearest
        assert 2 * nearest <= max(by_bin.values())

    @given(documents=_documents, first=st.floats(0, 4), second=st.floats(0, 4))
    def test_less_is_part_of_more(self, documents: list[tuple[int, int]], first: float, second: float) -> None:
        words, tokens = words_and_tokens(documents)
        cell = cell_of(histogram(0, words, tokens), 0)
        low, high = (nearest_rate(*cell, epochs * int(tokens.sum()))[0] for epochs in sorted((first, second)))
        assert all(low.whole + (word < low.cut) <= high.whole + (word < high.cut) for word, _ in documents)

    @pytest.mark.parametrize("epochs", [0, 1, 2, 7, 1000])
    def test_whole_epochs_are_whole(self, epochs: int) -> None:
        words, tokens = np.array([0, 5, 2**53 - 1], np.uint64), np.array([10**13, 1, 3])
        rate, given_ = nearest_rate(*cell_of(histogram(0, words, tokens), 0), float(epochs * tokens.sum()))
        assert (rate.whole, rate.cut, given_) == (epochs, 0, epochs * int(tokens.sum()))

    @given(count=st.integers(1, 20_000), epochs=st.floats(1e-7, 4))
    def test_trillions_of_tokens(self, count: int, epochs: float) -> None:
        words = np.linspace(0, 2**53 - 1, count).astype(np.uint64)
        tokens = np.full(count, 10**13 // count + 1)
        rate, given_ = nearest_rate(*cell_of(histogram(0, words, tokens), 0), epochs * int(tokens.sum()))
        taken = rate.whole * count + int((words < np.uint64(rate.cut)).sum())
        assert given_ == taken * int(tokens[0])
        assert abs(given_ / int(tokens.sum()) - epochs) <= max(epochs / 4096, 1 / count)


class TestHistograms:
    """Sums do not depend on what is added to what."""

    @given(
        documents=st.lists(st.tuples(st.integers(0, 3), _words, st.integers(1, 2**40)), max_size=60),
        numbers=st.randoms(use_true_random=False),
    )
    def test_any_parts_in_any_order(self, documents: list[tuple[int, int, int]], numbers: random.Random) -> None:
        def together(rows: Sequence[tuple[int, int, int]]) -> Histogram:
            cells = [[row[1:] for row in rows if row[0] == cell] for cell in range(4)]
            return merge(histogram(cell, *words_and_tokens(own)) for cell, own in enumerate(cells) if own)

        parts = [together([row]) for row in documents]
        while len(parts) > 1:
            numbers.shuffle(parts)
            cut = numbers.randint(2, len(parts))
            parts = [merge(parts[:cut]), *parts[cut:]]
        whole = together(documents)
        found = merge(parts)
        assert found.keys.tolist() == whole.keys.tolist() == sorted(set(whole.keys.tolist()))
        assert found.tokens.tolist() == whole.tokens.tolist()
        for cell in range(4):
            own = [(word, size) for number, word, size in documents if number == cell]
            bins, tokens = cell_of(found, cell)
            assert len(bins) == len({naive_bin(word) for word, _ in own})
            assert int(tokens.sum()) == sum(size for _, size in own)

    def test_nothing(self) -> None:
        empty = merge([])
        assert len(empty.keys) == len(empty.tokens) == len(cell_of(empty, 3)[0]) == 0
        assert len(merge([empty, histogram(2, np.empty(0, np.uint64), np.empty(0, np.int64))]).keys) == 0

    @given(count=st.sampled_from([0, 1, 15, 16, 17, 40]), numbers=st.randoms(use_true_random=False))
    def test_the_combiner(self, count: int, numbers: random.Random) -> None:
        draw = np.random.default_rng(numbers.randrange(2**32))
        parts = [
            dedup.Counts(
                draw.integers(0, 5, 2),
                draw.integers(0, 2**40, (3, 2, 3)),
                histogram(numbers.randrange(6), draw.integers(0, 50, 9).astype(np.uint64), draw.integers(1, 99, 9)),
            )
            for _ in range(count)
        ]
        wanted = dedup.add_counts([dedup.no_counts(3, 2), *parts])
        combiner = SumCounts(SimpleNamespace(outputs=range(3), sources=range(2)))  # type: ignore[arg-type]
        accumulators = [combiner.create_accumulator() for _ in range(numbers.randint(1, 3))]
        often = numbers.choice([0, 0.2])
        for part in numbers.sample(parts, count):
            number = numbers.randrange(len(accumulators))
            accumulators[number] = combiner.add_input(accumulators[number], part)
            if numbers.random() < often:
                accumulators[number] = combiner.compact(accumulators[number])
        while len(accumulators) > 1:
            numbers.shuffle(accumulators)
            cut = numbers.randint(1, len(accumulators))
            accumulators = [combiner.merge_accumulators(accumulators[:cut]), *accumulators[cut:]]
            if cut == 1:
                accumulators = [combiner.merge_accumulators(accumulators)]
        found = combiner.extract_output(accumulators[0])
        assert found.duplicates.tolist() == wanted.duplicates.tolist()
        assert found.cells.tolist() == wanted.cells.tolist()
        assert found.points.keys.tolist() == wanted.points.keys.tolist()
        assert found.points.tokens.tolist() == wanted.points.tokens.tolist()


class Corpus(NamedTuple):
    """Sources as arrays, so that they may be large."""

    ids: list[np.ndarray]
    """uint64[n, 2] a source."""
    tokens: list[np.ndarray]
    """int64[n] a source."""

    @property
    def names(self) -> list[str]:
        return [f"s{number}" for number in range(len(self.ids))]


def make_corpus(sizes: Sequence[int], seed: int = 0, mean: float = 300, sigma: float = 1.0) -> Corpus:
    """So many documents a source, of log-normal length."""
    draw = np.random.default_rng(seed)
    return Corpus(
        [draw.integers(0, 2**64, (n, 2), np.uint64) for n in sizes],
        [np.maximum(1, draw.lognormal(math.log(mean), sigma, n)).astype(np.int64) for n in sizes],
    )


def count(corpus: Corpus, outputs: Sequence[Output], seed: int = 0) -> dedup.Counts:
    """What Deduplicate would count, by its own definition."""
    cells = np.zeros((len(outputs), len(corpus.ids), 3), np.int64)
    points = []
    for number, output in enumerate(outputs):
        for source, (ids, tokens) in enumerate(zip(*corpus, strict=True)):
            at = split_points(ids)
            mask = (at >= output.split[0]) & (at < output.split[1]) & (output.epochs[source] != 0)
            own, sizes = ids[mask], tokens[mask]
            copied = int((sizes * copies(own, seed, rate_of(output.epochs[source] or 0))).sum())
            cells[number, source] = len(own), sizes.sum(), copied
            if output.epochs[source] is None:
                points.append(histogram(number * len(corpus.ids) + source, share_words(own, seed), sizes))
    return dedup.Counts(np.zeros(len(corpus.ids), np.int64), cells, merge(points))


def plan_of(corpus: Corpus, outputs: Sequence[Output], seed: int = 0) -> balance.Plan:
    """The plan, through everything that Balance does."""
    tallies = [Tally(records=len(ids), rendered=len(ids)) for ids in corpus.ids]
    limits = [0.0] * len(tallies)
    return balance.balance(outputs, corpus.names, limits, count(corpus, outputs, seed), tallies)


def mixed(weights: Sequence[float | None], epochs: Sequence[float] | None = None, **more) -> Output:
    """One output of weighted sources, and of fixed ones where the weight is None."""
    fixed = [None if w else (epochs[n] if epochs else 1.0) for n, w in enumerate(weights)]
    return Output(**{"name": "train", "context_length": 8, "split": WHOLE, **more}, epochs=tuple(fixed))._replace(
        weights=tuple(w or 0.0 for w in weights)
    )


def check_shares(corpus: Corpus, planned: balance.PlannedOutput, seed: int = 0) -> dict[int, float]:
    """Holds an output against what was asked, in exact arithmetic; returns the epochs that were asked."""
    output = planned.output
    points = [split_points(ids) for ids in corpus.ids]
    low, high = output.split
    inside = [(at >= low) & (at < high) for at in points]
    sizes = [tokens[mask] for tokens, mask in zip(corpus.tokens, inside, strict=True)]
    available = [int(own.sum()) for own in sizes]
    realised = []
    for source, (ids, mask) in enumerate(zip(corpus.ids, inside, strict=True)):
        times = copies(ids[mask], seed, planned.shares[source].rate)
        realised.append(int((times * sizes[source]).sum()))
    assert [share.tokens for share in planned.shares] == realised
    assert planned.tokens == sum(realised)

    weights = {s: Fraction(w) for s, w in enumerate(output.weights) if w and available[s]}
    if not weights:
        return {}
    fixed = sum(realised[s] for s, e in enumerate(output.epochs) if e is not None)
    shares = {s: w / sum(weights.values()) for s, w in weights.items()}
    most = {s: Fraction(output.max_epochs) * available[s] / share for s, share in shares.items()}
    rest = min(most.values()) if output.total_tokens is None else Fraction(output.total_tokens) - fixed
    asked = {}
    for s, share in shares.items():
        wanted = share * rest
        assert abs(realised[s] - wanted) <= max(CLOSE * wanted, int(sizes[s].max())), (s, realised[s], float(wanted))
        assert planned.shares[s].asked == pytest.approx(float(wanted / (rest + fixed)), rel=1e-6)
        assert copies(corpus.ids[s], seed, planned.shares[s].rate).max() <= math.ceil(output.max_epochs)
        asked[s] = float(wanted / available[s])
    return asked


class Case(NamedTuple):
    """A corpus and a wish."""

    corpus: Corpus
    output: Output
    seed: int


@st.composite
def cases(draw: st.DrawFn, budget: bool | None = None) -> Case:
    sources = draw(st.integers(1, 6))
    sizes = [draw(st.sampled_from([1, 2, 7, 60, 900, 5000])) for _ in range(sources)]
    corpus = make_corpus(sizes, draw(st.integers(0, 2**32)), draw(st.sampled_from([2, 300])), draw(st.floats(0, 2)))
    weight = st.one_of(st.floats(-6, 6).map(lambda power: 10**power), st.sampled_from([1.0, 0.5, 1e-6, 1e6]))
    weights = [draw(weight) if n == 0 or draw(st.booleans()) else None for n in range(sources)]
    epochs = [draw(st.sampled_from([0.0, 0.3, 1.0, 2.5])) for _ in range(sources)]
    split = draw(st.sampled_from([WHOLE, (0.0, 0.9), (0.25, 1.0)]))
    output = mixed(weights, epochs, split=split, max_epochs=draw(st.sampled_from([0.2, 1.0, 3.7, 10.0])))
    if budget or (budget is None and draw(st.booleans())):
        output = output._replace(total_tokens=10 ** draw(st.floats(0, 8)))
    return Case(corpus, output, draw(st.integers(0, 2**63 - 1)))


def message_of(corpus: Corpus, outputs: Sequence[Output], seed: int = 0) -> str:
    with pytest.raises(BeamPrepError) as caught:
        plan_of(corpus, outputs, seed)
    return str(caught.value)


class TestShares:
    """What comes out is what was asked, or nothing comes out."""

    @settings(max_examples=150)
    @given(case=cases(budget=False))
    def test_without_a_budget_the_first_source_to_run_out_decides(self, case: Case) -> None:
        try:
            plan = plan_of(case.corpus, [case.output], case.seed)
        except BeamPrepError as error:
            assert NOTHING.search(str(error))
            return
        epochs = check_shares(case.corpus, plan.outputs[0], case.seed)
        assert not epochs or max(epochs.values()) == pytest.approx(case.output.max_epochs)

    @settings(max_examples=250)
    @given(case=cases(budget=True))
    def test_a_budget_is_met_or_refused(self, case: Case) -> None:
        try:
            plan = plan_of(case.corpus, [case.output], case.seed)
        except BeamPrepError as error:
            if not NOTHING.search(str(error)):
                follow(str(error), case.corpus, [case.output], case.seed, tiny=True)
            return
        epochs = check_shares(case.corpus, plan.outputs[0], case.seed)
        assert not epochs or max(epochs.values()) <= case.output.max_epochs * (1 + CLOSE)

    @given(case=cases(budget=False), parts=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)))
    def test_what_a_smaller_share_takes_is_part_of_what_a_larger_one_takes(
        self, case: Case, parts: tuple[float, float]
    ) -> None:
        counted = count(case.corpus, [case.output], case.seed)
        available, fixed = counted.cells[0, :, 1].tolist(), counted.cells[0, :, 2].tolist()
        rates = []
        for part in sorted(parts):
            output = case.output._replace(max_epochs=case.output.max_epochs * part)
            shares, problems = solve(output, 0, case.corpus.names, available, fixed, counted.points)
            assert not problems
            rates.append([share.rate for share in shares])
        for ids, low, high in zip(case.corpus.ids, *rates, strict=True):
            assert (copies(ids, case.seed, low) <= copies(ids, case.seed, high)).all()

    def test_another_seed_takes_others(self) -> None:
        corpus = make_corpus([2000, 2000])
        output = mixed([1, 3])
        rates = [plan_of(corpus, [output], seed).outputs[0].shares[0].rate for seed in (0, 1)]
        first, second = (copies(corpus.ids[0], seed, rate) for seed, rate in enumerate(rates))
        assert 500 < first.sum() < 900
        assert 150 < (first & second).sum() < 350


class TestExtremes:
    """Mixtures at the edge."""

    @pytest.mark.parametrize("max_epochs", [0.5, 1, 3.7, 1000])
    @pytest.mark.parametrize(
        ("sizes", "weights"),
        [
            ([100_000, 100_000], [1e-6, 1]),
            ([100_000, 100_000], [1e6, 1]),
            ([50_000], [0.3]),
            ([1], [1]),
            ([1, 5000], [1, 1]),
            ([1, 5000], [1e-6, 1]),
            ([1, 1], [0.9, 0.1]),
            ([300] * 200, [1.0 + n for n in range(200)]),
            ([10, 1000, 100_000], [1, 1, 1]),
        ],
        ids=["a-millionth", "a-million", "one", "one-document", "one-of-many", "rare", "two-documents", "200", "sizes"],
    )
    def test_shares_hold(self, sizes: list[int], weights: list[float], max_epochs: float) -> None:
        corpus = make_corpus(sizes, sum(sizes))
        output = mixed(weights, max_epochs=max_epochs)
        if max(sizes) == 1 and max_epochs < 1:
            with pytest.raises(BeamPrepError, match="max_epochs is so low"):
                plan_of(make_corpus([1]), [mixed([1], max_epochs=0.4)])
            return
        check_shares(corpus, plan_of(corpus, [output]).outputs[0])

    def test_a_millionth_of_much(self) -> None:
        """A weight of 1e-6 is met as closely as any other, where there are documents to choose from."""
        corpus = make_corpus([400_000, 10], mean=30, sigma=0.5)
        corpus = corpus._replace(tokens=[corpus.tokens[0], np.full(10, 4 * 10**8)])
        planned = plan_of(corpus, [mixed([1e-4, 1])]).outputs[0]
        wanted = 4e9 * 1e-4
        assert abs(planned.shares[0].tokens - wanted) < 0.0005 * wanted

    def test_documents_of_very_different_size(self) -> None:
        ids = make_corpus([2, 1000]).ids
        corpus = Corpus(ids, [np.array([1, 10**9]), np.full(1000, 1000)])
        for weights in ([1, 1], [1000, 1], [1, 1000]):
            check_shares(corpus, plan_of(corpus, [mixed(weights)]).outputs[0])

    def test_a_budget_of_one_token(self) -> None:
        message = message_of(make_corpus([50, 50]), [mixed([1, 1], total_tokens=1)])
        assert "'train' has no documents" in message
        assert "total_tokens" in message

    def test_a_budget_of_one_token_beside_fixed_sources(self) -> None:
        message = message_of(make_corpus([50, 50]), [mixed([1, None], total_tokens=1)])
        assert "nothing is left for those with weights" in message
        follow(message, make_corpus([50, 50]), [mixed([1, None], total_tokens=1)])

    def test_the_reference_budget(self) -> None:
        """1.7e9 tokens, a float as YAML reads it, from documents of the size that they have."""
        corpus = make_corpus([300_000, 400_000, 7000], mean=2000, sigma=0.3)
        output = mixed([0.6, 0.395, 0.005], total_tokens=1.7e9, max_epochs=4)
        planned = plan_of(corpus, [output]).outputs[0]
        check_shares(corpus, planned)
        assert planned.tokens == pytest.approx(1.7e9, rel=1e-3)

    def test_ten_trillion_tokens(self) -> None:
        draw = np.random.default_rng(5)
        ids = [draw.integers(0, 2**64, (5000, 2), np.uint64) for _ in range(3)]
        corpus = Corpus(ids, [np.full(5000, n) for n in (2 * 10**9, 10**9, 2**32 - 1)])
        for total in (None, 1e13):
            output = mixed([0.5, 0.25, 0.25], total_tokens=total, max_epochs=3.7)
            check_shares(corpus, plan_of(corpus, [output]).outputs[0])

    def test_a_hundred_epochs_of_everything(self) -> None:
        corpus = Corpus(make_corpus([4000]).ids, [np.full(4000, 2**31)])
        planned = plan_of(corpus, [mixed([1], max_epochs=1e5)]).outputs[0]
        assert planned.tokens == 4000 * 2**31 * 10**5  # nearly 2**60


def follow(message: str, corpus: Corpus, outputs: Sequence[Output], seed: int = 0, tiny: bool = False) -> list[str]:
    """Follows each advice of an error alone, and checks that it makes the mixture possible; returns the advices.

    Args:
      tiny: whether what is possible may be less than a document.
    """
    (line,) = (line for line in message.splitlines() if line.startswith(("possible: ", "no single")))
    advices = re.split(", or |no single.*|fewer `epochs`.*", line.removeprefix("possible: "))
    advices = [advice for advice in advices if advice]
    for advice in advices:
        changed = [advised(advice, corpus.names, output) for output in outputs]
        try:
            plan = plan_of(corpus, changed, seed)
        except BeamPrepError as error:
            assert tiny, advice
            assert NOTHING.search(str(error)), advice  # noqa: PT017
            assert "possible" not in str(error)  # noqa: PT017
            continue
        for planned in plan.outputs:
            check_shares(corpus, planned, seed)
    return advices


def advised(advice: str, names: Sequence[str], output: Output) -> Output:
    if found := re.fullmatch(r"`total_tokens: (\d+)`", advice):
        return output._replace(total_tokens=float(found[1]) * (output.split[1] - output.split[0]))
    if found := re.fullmatch(r"`max_epochs: ([\d.]+)`", advice):
        return output._replace(max_epochs=float(found[1]))
    weights = list(output.weights)
    for part in advice.split(" and "):
        found = re.fullmatch(r"`weight: ([\d.e+-]+)` for '(\w+)'", part)
        assert found, advice
        assert float(found[1]) < weights[names.index(found[2])]
        weights[names.index(found[2])] = float(found[1])
    return output._replace(weights=tuple(weights))


class TestImpossible:
    """Who falls short, and what helps."""

    def test_the_source_is_named_with_what_it_has(self) -> None:
        corpus = Corpus(make_corpus([100, 100]).ids, [np.full(100, 10), np.full(100, 20)])
        message = message_of(corpus, [mixed([3, 1], total_tokens=2000)])
        for part in ("'train'", "2,000", "0.75", "'s0'", "1,000", "1.5 epochs", "max_epochs is 1"):
            assert part in message
        assert "'s1'" not in message
        assert follow(message, corpus, [mixed([3, 1], total_tokens=2000)]) == [
            "`total_tokens: 1333`",
            "`max_epochs: 1.50`",
            "`weight: 1` for 's0'",
        ]

    def test_a_lower_weight_is_not_advised_where_it_moves_the_shortage(self) -> None:
        """With 3,000 of 2,000 tokens asked, no weights help."""
        corpus = Corpus(make_corpus([100, 100]).ids, [np.full(100, 10)] * 2)
        output = mixed([3, 1], total_tokens=3000)
        advices = follow(message_of(corpus, [output]), corpus, [output])
        assert [advice.split(":")[0] for advice in advices] == ["`total_tokens", "`max_epochs"]

    def test_lower_weights_that_only_help_together(self) -> None:
        corpus = Corpus(make_corpus([100, 50, 1000]).ids, [np.full(n, 10) for n in (100, 50, 1000)])
        output = mixed([1, 1, 1], total_tokens=6000)
        message = message_of(corpus, [output])
        assert "'s0', which has 1,000" in message
        assert "'s1', which has 500" in message
        advices = follow(message, corpus, [output])
        assert advices[-1].count("weight") == 2
        assert "`max_epochs: 4.00`" in advices  # what the shortest needs

    def test_a_share_that_is_short_by_less_than_the_tolerance(self) -> None:
        corpus = Corpus(make_corpus([10_000, 10_000]).ids, [np.full(10_000, 10)] * 2)
        check_shares(corpus, plan_of(corpus, [mixed([1, 1], total_tokens=200_700)]).outputs[0])
        message_of(corpus, [mixed([1, 1], total_tokens=201_300)])

    def test_no_advice_that_a_configuration_would_refuse(self) -> None:
        corpus = Corpus(make_corpus([1, 1]).ids, [np.array([1]), np.array([10**9])])
        output = mixed([1, 1e-3], total_tokens=1e8)
        message = message_of(corpus, [output])
        assert "max_epochs:" not in message.splitlines()[-1]
        follow(message, corpus, [output])

    @given(case=cases(budget=True), cut=st.floats(0.1, 0.9), stage=st.sampled_from(["", "S1/"]))
    def test_with_splits_the_advice_is_the_configurations_number(self, case: Case, cut: float, stage: str) -> None:
        total = case.output.total_tokens
        outputs = [
            case.output._replace(name=f"{stage}train", split=(0.0, cut), total_tokens=total * cut),
            case.output._replace(name=f"{stage}val", split=(cut, 1.0), total_tokens=total * (1 - cut)),
        ]
        try:
            planned = plan_of(case.corpus, outputs, case.seed).outputs
        except BeamPrepError as error:
            message = str(error)
            assume(not NOTHING.search(message))
            if stage:
                assert "stage 'S1': " in message
            assume("no single number" not in message)
            follow(message.replace("stage 'S1': ", ""), case.corpus, outputs, case.seed, tiny=True)
        else:
            for output in planned:
                check_shares(case.corpus, output, case.seed)


class Toy(NamedTuple):
    """Toy documents and outputs."""

    docs: list[Doc]
    outputs: tuple[Output, ...]
    drop: bool
    seed: int
    bucket_tokens: int


@st.composite
def toys(draw: st.DrawFn) -> Toy:
    numbers = random.Random(draw(st.integers(0, 2**32)))
    docs = []
    for offset in range(draw(st.sampled_from([6, 40, 100]))):
        text = "".join(numbers.choices("abcdefghijklmnopqrstuvwxyz", k=int(numbers.lognormvariate(2.5, 1))))
        docs.append(Doc(numbers.randrange(3), numbers.randrange(3), offset, text))
        if numbers.random() < 0.1:
            docs.append(docs[-1]._replace(source=numbers.randrange(3), offset=1000 + offset))
    weights = tuple(draw(st.sampled_from([0.0, 1e-3, 0.3, 1.0, 7.0])) for _ in NAMES)
    epochs = tuple(None if w else draw(st.sampled_from([0.4, 1.0, 2.0])) for w in weights)
    cut = draw(st.sampled_from([0.0, 0.4]))
    length, long = draw(st.integers(2, 40)), draw(st.integers(0, 12))
    base = Output("S1/train", length, (cut, 1.0), epochs, weights, max_epochs=draw(st.sampled_from([0.7, 1.0, 3.7])))
    outputs = [base, base._replace(name="S2/train", context_length=3 * length, min_chars=long, weights=weights)]
    if cut:
        outputs += [o._replace(name=o.name.replace("train", "val"), split=(0.0, cut)) for o in outputs]
    return Toy(
        docs,
        tuple(outputs),
        draw(st.booleans()),
        draw(st.integers(0, 2**63 - 1)),
        draw(st.sampled_from([150, 600, 5000])),
    )


def deal(toy: Toy, carrier: Carrier, folder: Path, numbers: random.Random) -> Written:
    """Deals the documents out to runs at random and takes them through the steps."""
    hands: dict[tuple[int, int], list[Doc]] = {}
    for doc in numbers.sample(toy.docs, len(toy.docs)):
        hands.setdefault((doc.source, numbers.randrange(3)), []).append(doc)
    runs = [make_run(carrier, f"run-{s}-{n}", hand, toy.seed) for (s, n), hand in hands.items()]
    numbers.shuffle(runs)
    return write_outputs(runs, toy.outputs, carrier, folder, toy.drop, toy.seed)


@settings(max_examples=25)
@given(toy=toys(), numbers=st.randoms(use_true_random=False), files=st.booleans())
def test_through_all_steps(
    toy: Toy,
    numbers: random.Random,
    files: bool,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shards, shares and ledger of weighted stages and splits, against the naive reference; twice, dealt otherwise."""
    monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", toy.bucket_tokens)
    folder = tmp_path_factory.mktemp("steps")
    try:
        found = deal(toy, Carrier(str(folder / "work") if files else None), folder, numbers)
    except BeamPrepError as error:
        # Few documents: one of the sources or outputs may have nothing.
        assert re.search(f"{NOTHING.pattern}|holds no records|repeat documents", str(error))  # noqa: PT017
        return
    again = deal(toy, Carrier(None), folder / "again", numbers)
    assert again.streams == found.streams
    assert sorted(r.sha256 for r in again.records) == sorted(r.sha256 for r in found.records)

    kept = naive_kept(toy.docs) if toy.drop else sorted(toy.docs)
    sides: dict[str, set[str]] = defaultdict(set)
    for planned in found.plan.outputs:
        output = planned.output
        rates = [share.rate for share in planned.shares]
        own = [doc for doc in kept if len(doc.text) >= output.min_chars]
        wanted = naive_output(own, output, toy.drop, toy.seed, "pad", rates)
        assert planned.tokens == wanted.tokens
        assert [s for s in found.streams[output.name] if s] == [s for s in wanted.shards if s]
        texts = [[d.text for d in own if d.source == source] for source in range(len(NAMES))]
        corpus = Corpus([document_ids(t) for t in texts], [np.array([len(x) + 1 for x in t], np.int64) for t in texts])
        if toy.drop:
            check_shares(corpus, planned, toy.seed)
        for source, documents in enumerate(texts):
            at = split_points(corpus.ids[source])
            inside = (at >= output.split[0]) & (at < output.split[1])
            assert planned.documents[source] == inside.sum()
            for text, is_in in zip(documents, inside.tolist(), strict=True):
                if is_in:
                    sides[text].add(output.name.split("/")[1])
    assert all(len(found_on) == 1 for found_on in sides.values())
    ends = sum(p.documents + p.sampled_out + p.duplicates for p in found.placed)
    assert ends == len(toy.docs)
