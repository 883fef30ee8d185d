"""The order of training: a seeded permutation for every epoch, divided among ranks and workers, resumable anywhere.

The order is one endless stream of positions. Position p is of epoch p // size, and holds the sequence that the epoch's
permutation puts at p % size. Position p goes to rank p % world_size, so that a step in which each of W ranks takes B
samples consumes the W × B next positions, whatever W is. All that a resumed run must know is how many positions have
been consumed: it may have another number of ranks, workers, or samples a rank.
"""

from __future__ import annotations

import hashlib
import operator
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np

from beam_prep.errors import ConfigError

_ROUNDS = 8
_BLOCK = 1024  # positions permuted at a time


class Permutation:
    """A permutation of range(size) that is computed, not stored: any element at any time, in constant memory.

    A Feistel network of eight rounds (M. Luby, C. Rackoff: "How to construct pseudorandom permutations from
    pseudorandom functions", SIAM J. Comput. 17(2), 1988) permutes the smallest range of 2**b numbers that holds `size`;
    a result outside of range(size) is put in again until it falls inside, at most twice on average ("cycle walking":
    J. Black, P. Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002). Round function: the finalizer of
    SplitMix64 (G. Steele, D. Lea, C. Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) over half
    and round key; keys: BLAKE2b of seed and epoch. So the order is the same on every machine and with every numpy.
    """

    def __init__(self, size: int, seed: int = 0, epoch: int = 0):
        self.size = size
        digest = hashlib.blake2b(f"beam-prep order {seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, "<u8").astype(np.uint64)
        bits = max(2, (size - 1).bit_length())
        self._low, self._high = bits // 2, bits - bits // 2

    def __len__(self) -> int:
        return self.size

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64[n]: what stands at each of `positions` (integer[n], all in range(size))."""
        values = self._network(np.atleast_1d(positions).astype(np.uint64))
        while (outside := np.flatnonzero(values >= self.size)).size:
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        low, high = self._low, self._high
        left, right = values >> np.uint64(low), values & np.uint64(2**low - 1)
        for key in self._keys:
            # `left` has `high` bits, `right` has `low` bits; they change places, and sizes, in every round.
            left, right = right, left ^ (_mix(right + key) >> np.uint64(64 - high))
            low, high = high, low
        return left << np.uint64(low) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class ResumableSampler:
    """Numbers of sequences in the order of training, for one rank. Usable as a torch `Sampler`, without torch.

    A pass (one `iter`) is the rest of the present epoch; the next pass is the next epoch. If the ranks do not divide
    what is left of an epoch, a pass ends with the first few sequences of the next epoch, which the next pass leaves
    out: over the passes every sequence comes once an epoch, and all ranks get equally many. `endless` makes one pass
    of all epochs, for loops that count steps.

    What has been trained on is known to the training loop alone: a loader fetches ahead. So the loop says it, by
    `advance`, and `state_dict` is exact whatever the number of workers:

        sampler = dataset.sampler(seed=0, rank=rank, world_size=world_size)
        loader = DataLoader(dataset, sampler=sampler, batch_size=8, num_workers=2)
        for batch in loader:
            train(batch)
            sampler.advance(batch)
            checkpoint(sampler.state_dict())

    The state has no rank in it: every rank may load what any rank has saved at the same step. (The iterators have a
    state of their own, for loaders that count what they hand on, as torchdata's `StatefulDataLoader` does.)

    Args:
      size: sequences of the dataset.
      seed: of the permutations.
      rank, world_size: of the data-parallel group. They must be given where the environment's WORLD_SIZE is above 1.
      shuffle: False for the stored order.
      endless: one pass of all epochs.
      identity: names the data; a state of other data is refused.

    Raises:
      ConfigError: an argument is out of range or missing.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = True,
        endless: bool = False,
        identity: str = "",
    ):
        if size < 1:
            raise ConfigError("there is no sequence to sample from")
        if (rank is None) != (world_size is None):
            raise ConfigError("rank and world_size belong together: give both, or none")
        if rank is None and int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise ConfigError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, so all ranks would train on the same sequences: give rank= "
                "and world_size= of the data-parallel group (0 and 1 if every process is to see all of the data)"
            )
        self.rank, self.world_size = rank or 0, 1 if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {rank} is not below world_size {world_size}, or below 0")
        self.size, self.seed, self.shuffle, self.endless, self.identity = size, seed, shuffle, endless, identity
        self._begin = 0  # where the present pass began
        self._advanced = 0  # samples of this rank trained on since
        self._ended: int | None = None  # where the present pass ended, once an iterator got there
        self._handed_out = False

    @property
    def consumed(self) -> int:
        """Positions of the stream that all ranks together have trained on, by what `advance` was told."""
        return self._begin + self._advanced * self.world_size

    @property
    def epoch(self) -> int:
        """The epoch of the next position."""
        return self.consumed // self.size

    def at(self, positions: np.ndarray) -> np.ndarray:
        """int64[n]: the sequences at positions (integer[n]) of the stream, of any epoch, seen or not."""
        positions = np.atleast_1d(np.asarray(positions, np.int64))
        epochs, places = np.divmod(positions, self.size)
        if not self.shuffle:
            return places
        result = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            mask = epochs == epoch
            result[mask] = Permutation(self.size, self.seed, epoch)(places[mask])
        return result

    def advance(self, batch: Any) -> None:
        """Counts a batch of this rank as trained on; all ranks are taken to have done as many.

        Args:
          batch: the samples themselves (a dict counts by its `input_ids`), or their number.
        """
        if isinstance(batch, Mapping):
            batch = batch["input_ids"]
        samples = len(batch) if hasattr(batch, "__len__") else operator.index(batch)
        if samples < 0:
            raise ValueError(f"{samples} samples")
        self._advanced += samples

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; plain JSON values, the same on every rank."""
        if self._handed_out and not self._advanced:
            warnings.warn(
                "samples were taken but none counted as trained on: call advance(n) after each step, or a resumed run "
                "begins this pass again",
                stacklevel=2,
            )
        return {
            "version": 1,
            "identity": self.identity,
            "size": self.size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "consumed": self.consumed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; rank and world size are this sampler's own.

        Raises:
          ConfigError: the state is of another order or of other data.
        """
        for key, own in (("version", 1), ("identity", self.identity), ("size", self.size), ("seed", self.seed)):
            if state.get(key) != own:
                raise ConfigError(
                    f"the state's {key} is {state.get(key)!r}, here it is {own!r}: it is of another order"
                )
        if state["shuffle"] != self.shuffle:
            raise ConfigError(f"the state was taken with shuffle={state['shuffle']}: it is of another order")
        self._begin, self._advanced, self._ended, self._handed_out = int(state["consumed"]), 0, None, False

    def __len__(self) -> int:
        """Samples that the next pass gives this rank."""
        if self.endless:
            raise TypeError("an endless sampler has no length")
        begin = self._next_begin()
        return (self._end_of_pass(begin) - begin) // self.world_size

    def __iter__(self) -> SamplerIterator:
        self._begin, self._advanced, self._ended, self._handed_out = self._next_begin(), 0, None, False
        return SamplerIterator(self, self._begin)

    def _next_begin(self) -> int:
        return self.consumed if self._ended is None else self._ended

    def _end_of_pass(self, begin: int) -> int:
        """The first step at or behind the end of the epoch."""
        left = self.size - begin % self.size
        return begin + -(-left // self.world_size) * self.world_size

    def _own(self, begin: int, samples: int) -> np.ndarray:
        """int64[samples]: this rank's sequences from position `begin` (of rank 0) on."""
        return self.at(begin + self.rank + self.world_size * np.arange(samples, dtype=np.int64))

    def batches(self, batch_size: int, worker: int = 0, workers: int = 1) -> Iterator[np.ndarray]:
        """One pass in batches, int64[batch_size] (the last may be shorter): batches worker, worker + workers, …

        A loader that asks its workers in turn so gets the same batches in the same order for any number of workers.
        """
        begin = self._next_begin()
        end = None if self.endless else self._end_of_pass(begin)
        self._begin, self._advanced, self._ended, self._handed_out = begin, 0, None, False
        step = batch_size * self.world_size
        for start in count(begin + worker * step, workers * step):
            if end is not None and start >= end:
                break
            self._handed_out = True
            yield self._own(start, batch_size if end is None else min(batch_size, (end - start) // self.world_size))
        self._ended = end


class SamplerIterator:
    """One pass of a `ResumableSampler`. Its state counts what it has handed out."""

    def __init__(self, sampler: ResumableSampler, begin: int):
        self._sampler, self._begin, self._taken = sampler, begin, 0
        self._end = None if sampler.endless else sampler._end_of_pass(begin)
        self._block: list[int] = []
        self._at = 0

    def __iter__(self) -> SamplerIterator:
        return self

    def __next__(self) -> int:
        if self._at == len(self._block):
            self._next_block()
        value = self._block[self._at]
        self._at += 1
        self._taken += 1
        return value

    def _next_block(self) -> None:
        sampler = self._sampler
        begin = self._begin + self._taken * sampler.world_size
        # No more than an epoch at a time: in a tiny one every few positions need a permutation of their own.
        block = max(1, min(_BLOCK, sampler.size // sampler.world_size))
        if self._end is not None:
            block = min(block, (self._end - begin) // sampler.world_size)
        if not block:
            sampler._ended = self._end
            raise StopIteration
        sampler._handed_out = True
        self._block, self._at = sampler._own(begin, block).tolist(), 0

    def state_dict(self) -> dict[str, Any]:
        """As the sampler's, of what this iterator has handed out."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = self._sampler.state_dict()
        return {**state, "consumed": self._begin + self._taken * self._sampler.world_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self._sampler.load_state_dict(state)
        self.__init__(self._sampler, self._sampler._begin)  # type: ignore[misc]


class Batches:
    """Whole batches as an iterable dataset, for `DataLoader(batches, batch_size=None, num_workers=…)`.

    The workers share the batches out among themselves, and the loader gives them in the sampler's order for any number
    of workers. The training loop calls `sampler.advance(batch)`: here it is also what the next pass begins behind. (Not
    with `persistent_workers`, whose copies of the sampler do not hear of it: make one endless pass with them.) A loader
    of the dataset with `sampler=` reads the same batches.

    Args:
      dataset: a `PackedDataset`, or anything with `__getitems__`.
      sampler: of that dataset.
      batch_size: samples of this rank in a batch.
      collate: makes a batch of a list of samples; default: `dataset.read` for plain tokens.
    """

    def __init__(self, dataset: Any, sampler: ResumableSampler, batch_size: int, collate: Any = None):
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: must be at least 1")
        self.dataset, self.sampler, self.batch_size, self.collate = dataset, sampler, batch_size, collate
        torch = sys.modules.get("torch")
        if torch is not None:
            # DataLoader tells the kinds of dataset apart by this class alone.
            torch.utils.data.IterableDataset.register(Batches)

    def __iter__(self) -> Iterator[Any]:
        torch = sys.modules.get("torch")
        info = torch.utils.data.get_worker_info() if torch is not None else None
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        for numbers in self.sampler.batches(self.batch_size, worker, workers):
            if self.collate is None:
                yield self.dataset.read(numbers)
            else:
                yield self.collate(self.dataset.__getitems__(numbers.tolist()))
