"""The order of training: a permutation an epoch, divided without loss, resumed exactly."""

import itertools
import json
import math
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_prep.errors import ConfigError
from beam_prep.sampling import Batches, Permutation, ResumableSampler

SIZES = st.integers(1, 700)
SEEDS = st.integers(0, 2**64)


class TestPermutation:
    """The Feistel network."""

    @given(st.one_of(SIZES, st.sampled_from([2**k + d for k in range(1, 14) for d in (-1, 0, 1)])), SEEDS)
    def test_is_one(self, size: int, seed: int) -> None:
        order = Permutation(size, seed)(np.arange(size))
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(size))

    @given(st.integers(10**9, 2**62), SEEDS, st.lists(st.integers(0, 2**62), min_size=1, max_size=50, unique=True))
    def test_large_ones_stay_inside_and_apart(self, size: int, seed: int, positions: list[int]) -> None:
        chosen = np.unique(np.array(positions) % size)
        order = Permutation(size, seed)(chosen)
        assert ((order >= 0) & (order < size)).all()
        assert len(np.unique(order)) == len(chosen)

    @given(SIZES, SEEDS, st.data())
    def test_any_part_at_any_time(self, size: int, seed: int, data: st.DataObject) -> None:
        permutation = Permutation(size, seed)
        positions = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
        assert permutation(np.array(positions, int)).tolist() == permutation(np.arange(size))[positions].tolist()

    def test_never_changes(self) -> None:
        """A checkpoint of today must be resumed by any later version in the same order."""
        assert Permutation(10, 0)(np.arange(10)).tolist() == [4, 2, 6, 0, 9, 3, 7, 5, 8, 1]
        assert Permutation(10**12, 7, 3)(np.arange(3)).tolist() == [134112501248, 745025628326, 691104304722]

    def test_seeds_and_epochs_differ(self) -> None:
        orders = [Permutation(1000, seed, epoch)(np.arange(1000)) for seed in range(8) for epoch in range(8)]
        for one, other in itertools.combinations(orders, 2):
            # Two independent permutations agree in one place on average; in 12 with a chance of about 1e-9.
            assert (one == other).sum() < 12

    @pytest.mark.parametrize("size", [2, 3, 5, 13, 64, 100])
    def test_every_place_is_equally_likely(self, size: int) -> None:
        """Chi-square of (position, value) over many keys: mean (size - 1)², as if drawn."""
        draws = 700
        counts = np.zeros((size, size))
        for seed in range(draws):
            counts[np.arange(size), Permutation(size, seed)(np.arange(size))] += 1
        chi = ((counts - draws / size) ** 2 / (draws / size)).sum()
        freedom = (size - 1) ** 2
        assert chi < freedom + 6 * math.sqrt(2 * freedom)

    def test_all_orders_of_few(self) -> None:
        """All 120 orders of five come, none far more often than another."""
        found: dict[tuple, int] = {}
        for seed in range(2400):
            order = tuple(Permutation(5, seed)(np.arange(5)).tolist())
            found[order] = found.get(order, 0) + 1
        assert len(found) == 120
        assert min(found.values()) > 2 and max(found.values()) < 45

    def test_neighbours_part(self) -> None:
        """Where the next number stands tells nothing: differences spread evenly, runs are as rare as by chance."""
        size = 40_000
        order = Permutation(size, 11)(np.arange(size))
        steps = np.diff(order) % size
        counts = np.histogram(steps, bins=50, range=(0, size))[0]
        assert ((counts - len(steps) / 50) ** 2 / (len(steps) / 50)).sum() < 49 + 6 * math.sqrt(98)
        assert (steps == 1).sum() < 12
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.03


def by_rank(size: int, world: int, **options) -> list[ResumableSampler]:
    return [ResumableSampler(size, rank=rank, world_size=world, **options) for rank in range(world)]


class TestDivision:
    """Ranks and workers."""

    @given(SIZES, SEEDS, st.integers(1, 9))
    def test_ranks_together_are_the_stream(self, size: int, seed: int, world: int) -> None:
        """Interleaved, the ranks' passes are the permutations one behind the other."""
        samplers = by_rank(size, world, seed=seed)
        joined: list[int] = []
        for _ in range(3):
            lengths = [len(sampler) for sampler in samplers]
            passes = [list(sampler) for sampler in samplers]
            assert [len(own) for own in passes] == lengths
            assert len(set(lengths)) == 1
            joined += [number for step in zip(*passes, strict=True) for number in step]
        for epoch in range(len(joined) // size):
            part = joined[epoch * size : (epoch + 1) * size]
            assert part == Permutation(size, seed, epoch)(np.arange(size)).tolist()
            assert sorted(part) == list(range(size))
        assert len(joined) >= min(3, 3 * world) * size or size < world

    @settings(max_examples=40)
    @given(SIZES, SEEDS, st.integers(1, 4), st.integers(1, 5), st.integers(1, 40))
    def test_workers_take_turns(self, size: int, seed: int, world: int, workers: int, batch: int) -> None:
        """Asked in turn, any number of workers gives the batches that one alone does: those of the plain iterator."""
        for rank in range(world):
            options = {"seed": seed, "rank": rank, "world_size": world}
            alone = [b.tolist() for b in ResumableSampler(size, **options).batches(batch)]
            streams = [ResumableSampler(size, **options).batches(batch, w, workers) for w in range(workers)]
            turns = [b.tolist() for step in itertools.zip_longest(*streams) for b in step if b is not None]
            assert turns == alone
            assert sum(alone, []) == list(ResumableSampler(size, **options))
            assert all(len(b) == batch for b in alone[:-1]) and 0 < len(alone[-1]) <= batch

    def test_stored_order(self) -> None:
        sampler = ResumableSampler(5, shuffle=False)
        assert list(sampler) == list(sampler) == [0, 1, 2, 3, 4]
        assert list(ResumableSampler(5, shuffle=False, rank=1, world_size=2)) == [1, 3, 0]

    def test_passes_are_epochs(self) -> None:
        sampler = ResumableSampler(50, seed=1)
        first, second = list(sampler), list(sampler)
        assert first != second and sorted(first) == sorted(second) == list(range(50))

    def test_endless(self) -> None:
        sampler = ResumableSampler(7, seed=3, endless=True)
        with pytest.raises(TypeError, match="no length"):
            len(sampler)
        taken = list(itertools.islice(sampler, 21))
        for epoch in range(3):
            assert taken[7 * epoch : 7 * epoch + 7] == Permutation(7, 3, epoch)(np.arange(7)).tolist()
        batches = ResumableSampler(7, seed=3, endless=True).batches(3)
        assert np.concatenate(list(itertools.islice(batches, 7))).tolist() == taken

    def test_what_stood_at_a_position(self) -> None:
        sampler = ResumableSampler(9, seed=2, rank=1, world_size=2)
        stream = [*list(ResumableSampler(9, seed=2)), *Permutation(9, 2, 1)(np.arange(9)).tolist()]
        assert sampler.at(np.array([17, 0, 8, 9])).tolist() == [stream[17], stream[0], stream[8], stream[9]]
        assert sampler.at(3).tolist() == [stream[3]]


class TestResumption:
    """state_dict and load_state_dict."""

    @given(SIZES, SEEDS, st.integers(1, 4), st.integers(1, 30), st.data())
    def test_stopped_anywhere(self, size: int, seed: int, world: int, batch: int, data: st.DataObject) -> None:
        """The rest is the same, this pass's and the next one's, with a loader that has fetched ahead."""
        rank = data.draw(st.integers(0, world - 1))
        sampler = ResumableSampler(size, seed=seed, rank=rank, world_size=world)
        for _ in range(data.draw(st.integers(0, 2))):
            for _ in sampler:
                sampler.advance(1)
        numbers = list(sampler)
        batches = [numbers[n : n + batch] for n in range(0, len(numbers), batch)]
        steps = data.draw(st.integers(1, len(batches)))
        for done in batches[:steps]:
            sampler.advance(done)
        state = json.loads(json.dumps(sampler.state_dict()))
        following = list(sampler)

        # What any rank has saved will do.
        resumed = ResumableSampler(size, seed=seed, rank=rank, world_size=world)
        resumed.load_state_dict(state)
        left = sum(batches[steps:], [])
        if left:
            assert len(resumed) == len(left)
            assert list(resumed) == left
        assert list(resumed) == following

    @given(
        SIZES, SEEDS, st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]), st.integers(1, 6), st.data()
    )
    @settings(max_examples=40)
    def test_another_world(self, size: int, seed: int, old: tuple[int, int], steps: int, data: st.DataObject) -> None:
        """After whole steps another number of ranks goes on where the old ones stopped, with the same steps."""
        new = data.draw(st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]))

        def run(world: int, batch: int, state: dict | None, steps: int) -> tuple[list[list[int]], dict]:
            samplers = by_rank(size, world, seed=seed, endless=True)
            for sampler in samplers:
                if state is not None:
                    sampler.load_state_dict(state)
            iterators, done = [iter(sampler) for sampler in samplers], []
            for _ in range(steps):
                done.append(sorted(next(iterator) for iterator in iterators for _ in range(batch)))
                for sampler in samplers:
                    sampler.advance(batch)
            (state,) = {json.dumps(sampler.state_dict()) for sampler in samplers}
            return done, json.loads(state)

        whole, _ = run(1, 12, None, steps + 5)
        before, state = run(*old, None, steps)
        after, _ = run(*new, state, 5)
        assert before + after == whole

    @given(SIZES, st.integers(1, 3), st.integers(1, 20), st.integers(1, 4), st.data())
    def test_batches(self, size: int, world: int, batch: int, workers: int, data: st.DataObject) -> None:
        """Batches read in workers, whose copies of the sampler do not come back."""
        sampler = ResumableSampler(size, seed=4, world_size=world, rank=0)
        copies = [pickle.loads(pickle.dumps(sampler)) for _ in range(workers)]
        streams = [copy.batches(batch, worker, workers) for worker, copy in enumerate(copies)]
        got = [b.tolist() for step in itertools.zip_longest(*streams) for b in step if b is not None]
        steps = data.draw(st.integers(1, len(got)))
        for done in got[:steps]:
            sampler.advance(done)
        rest = [b.tolist() for b in pickle.loads(pickle.dumps(sampler)).batches(batch)]
        if steps < len(got):
            assert rest == got[steps:]
        else:
            again = ResumableSampler(size, seed=4, world_size=world, rank=0)
            list(again)
            assert rest == [b.tolist() for b in again.batches(batch)]

    def test_a_dropped_last_batch(self) -> None:
        """A loader that drops it begins the next pass behind it, and a resumed one with it."""
        sampler = ResumableSampler(10, seed=1)
        numbers = list(sampler)
        sampler.advance(8)  # two batches of 4, the loader dropped the rest
        resumed = ResumableSampler(10, seed=1)
        resumed.load_state_dict(sampler.state_dict())
        assert list(resumed) == numbers[8:]
        second = list(sampler)
        assert sampler.consumed == 10 and second == Permutation(10, 1, 1)(np.arange(10)).tolist()

    def test_what_counts_as_trained_on(self) -> None:
        sampler = ResumableSampler(100, world_size=2, rank=1)
        sampler.advance(3)
        sampler.advance(np.zeros((4, 9)))
        sampler.advance({"input_ids": np.zeros((5, 9)), "sources": [1]})
        sampler.advance([1, 2])
        sampler.advance(np.int64(1))
        assert sampler.consumed == 2 * 15 and sampler.epoch == 0
        with pytest.raises(ValueError, match="-1 samples"):
            sampler.advance(-1)
        with pytest.raises(TypeError):
            sampler.advance(1.5)

    def test_forgotten_counts_are_said(self) -> None:
        sampler = ResumableSampler(10)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampler.state_dict()
            next(iter(sampler))
        with pytest.warns(UserWarning, match="call advance"):
            sampler.state_dict()
        sampler.advance(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampler.state_dict()

    @given(SIZES, st.integers(1, 3), st.data())
    def test_iterators_count_what_they_hand_on(self, size: int, world: int, data: st.DataObject) -> None:
        sampler = ResumableSampler(size, seed=9, world_size=world, rank=world - 1)
        whole = list(ResumableSampler(size, seed=9, world_size=world, rank=world - 1))
        iterator = iter(sampler)
        taken = data.draw(st.integers(0, len(whole)))
        for _ in range(taken):
            next(iterator)
        state = iterator.state_dict()
        resumed = iter(ResumableSampler(size, seed=9, world_size=world, rank=world - 1))
        resumed.load_state_dict(state)
        if taken < len(whole):
            assert list(resumed) == whole[taken:]

    @pytest.mark.parametrize(
        ("key", "value"), [("identity", "b"), ("size", 11), ("seed", 1), ("version", 2), ("shuffle", False)]
    )
    def test_a_state_of_something_else(self, key: str, value: object) -> None:
        sampler = ResumableSampler(10, identity="a")
        state = sampler.state_dict()
        sampler.load_state_dict(state)
        with pytest.raises(ConfigError, match=f"{key}.* of another order"):
            sampler.load_state_dict({**state, key: value})


class TestArguments:
    """What is refused."""

    def test_ranks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for arguments in ({"rank": 0}, {"world_size": 2}, {"rank": 2, "world_size": 2}, {"rank": -1, "world_size": 2}):
            with pytest.raises(ConfigError):
                ResumableSampler(5, **arguments)
        with pytest.raises(ConfigError, match="no sequence"):
            ResumableSampler(0)
        monkeypatch.setenv("WORLD_SIZE", "8")
        with pytest.raises(ConfigError, match="WORLD_SIZE is 8"):
            ResumableSampler(5)
        assert list(ResumableSampler(5, rank=0, world_size=1, shuffle=False)) == [0, 1, 2, 3, 4]
        monkeypatch.setenv("WORLD_SIZE", "1")
        ResumableSampler(5)

    def test_batch_size(self) -> None:
        with pytest.raises(ConfigError, match="batch_size 0"):
            Batches([], ResumableSampler(5), 0)
