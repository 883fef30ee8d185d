"""Progress across processes: each worker process keeps a few counters in a small memory-mapped file."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np

STEPS = ("read", "transform", "mix", "tokenize", "pack", "write")
"""Steps whose busy time is kept."""
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_Item = TypeVar("_Item")
_lock = threading.Lock()
_maps: dict[str, np.ndarray] = {}


class Snapshot(NamedTuple):
    """Sums over all processes of a run."""

    bytes: int = 0
    """Read, uncompressed."""
    documents: int = 0
    tokens: int = 0
    """Encoded."""
    written: int = 0
    """Tokens in shards."""
    planned: int = 0
    """Tokens that the shards will hold; 0 until the mixture is known."""
    found: int = 0
    """Of `bytes`, those that an earlier attempt had read."""
    ranges: int = 0
    """Key ranges that are deduplicated."""
    placed: int = 0
    """Tokens of copies that have their place."""
    kept: int = 0
    """Of `written`, those that an earlier attempt had written."""
    read: int = 0
    """Nanoseconds that this step was busy, as are the following ones."""
    transform: int = 0
    mix: int = 0
    tokenize: int = 0
    pack: int = 0
    write: int = 0


class Progress:
    """A process's counters below the work folder; without one, counting costs nothing."""

    def __init__(self, work: str | None):
        self._counters = _counters(work) if work else None

    def add(self, **amounts: int) -> None:
        """Adds to counters, by the names of `Snapshot`."""
        if self._counters is not None:
            for name, amount in amounts.items():
                self._counters[Snapshot._fields.index(name)] += amount

    def plan(self, tokens: int) -> None:
        """Sets how many tokens will be written."""
        if self._counters is not None:
            self._counters[Snapshot._fields.index("planned")] = tokens

    @contextmanager
    def busy(self, step: str) -> Iterator[None]:
        """Counts the time of a step; see `STEPS`."""
        begin = time.perf_counter_ns()
        try:
            yield
        finally:
            self.add(**{step: time.perf_counter_ns() - begin})

    def busy_making(self, step: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """The items, the time that it takes to make them counted."""
        iterator = iter(items)
        while True:
            with self.busy(step):
                item = next(iterator, None)
            if item is None:
                return
            yield item


def resident(work: str) -> int:
    """Bytes of resident memory of this process and of all that count below the work folder; 0 without /proc."""
    total = 0
    for name in {str(os.getpid()), *_names(os.path.join(work, "progress"))}:
        try:
            with open(f"/proc/{name}/statm") as file:
                total += int(file.read().split()[1]) * _PAGE
        except (OSError, ValueError, IndexError):
            continue
    return total


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _counters(work: str) -> np.ndarray:
    with _lock:
        path = os.path.join(work, "progress", str(os.getpid()))
        if path not in _maps or not os.path.exists(path):  # the folder of an earlier run in this process may be gone
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w+b") as file:
                # A page without a place on a full disk would kill the process.
                file.write(bytes(8 * len(Snapshot._fields)))
                file.flush()
                _maps[path] = np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)
        return _maps[path]


def snapshot(work: str) -> Snapshot:
    """The sums of all processes' counters."""
    folder = os.path.join(work, "progress")
    total = np.zeros(len(Snapshot._fields), np.int64)
    for name in _names(folder):
        try:
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read(8 * len(Snapshot._fields))
        except FileNotFoundError:
            continue
        if len(data) == 8 * len(Snapshot._fields):
            total += np.frombuffer(data, np.int64)
    return Snapshot(*total.tolist())
