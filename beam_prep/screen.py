"""The screen: how far a run is, on a terminal as a bar, elsewhere as a plain line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil, inf
from typing import NamedTuple

from beam_prep import progress
from beam_prep.dedup import KEY_RANGES
from beam_prep.launch import Prepared
from beam_prep.progress import Snapshot
from beam_prep.run_log import RunLog
from beam_prep.sizes import duration, quantity, size

_POLL_SECONDS = 0.25
_LINE_SECONDS = ((120.0, 5.0), (3600.0, 15.0), (inf, 60.0))
"""Seconds between two lines, by how long the run has taken."""
_EXPANSION = 4.0
"""Bytes that compressed JSON lines become, about; for the bar only."""
_WRITING = 0.35
"""Time that all after tokenizing takes, as a part of tokenizing's, about."""


class State(NamedTuple):
    """What the screen shows."""

    phase: str
    done: float
    """Part of the phase, 0 to 1."""
    details: tuple[str, ...]
    left: float | None
    """Seconds to the end of the run, None while that is not known."""
    counters: Snapshot = Snapshot()
    memory: int = 0
    """Bytes of resident memory, all processes; 0 where that is not known."""


class Pace:
    """From counters to a state; remembers when each phase began."""

    def __init__(self, input_bytes: int, compressed_bytes: int, key_ranges: int = KEY_RANGES):
        self._total = input_bytes - compressed_bytes + round(compressed_bytes * _EXPANSION)
        self._exact = not compressed_bytes
        self._key_ranges = key_ranges
        self._last = Snapshot()
        self._read_from: float | None = None
        self._write_from: float | None = None

    def state(self, counters: Snapshot, now: float) -> State:
        """The state at a moment (seconds). It never goes back, whatever the end of a run does to the counters."""
        last = self._last = Snapshot(*map(max, counters, self._last))
        return self._state(last, now)._replace(counters=last)

    def _state(self, last: Snapshot, now: float) -> State:
        if not last.bytes:
            return State("starting", 0.0, (), None)
        self._read_from = now if self._read_from is None else self._read_from
        if last.planned:
            return self._writing(last, now)
        if last.ranges:
            part = min(1.0, last.ranges / self._key_ranges)
            return State(
                "deduplicating", part, (f"{last.documents:,} documents", f"{quantity(last.tokens)} tokens"), None
            )
        spent = now - self._read_from
        part = last.bytes / self._total if self._total else 1.0
        part = min(part, 1.0 if self._exact else 0.99)
        left = spent * (1 - part + _WRITING) / part if spent >= 1 and part < 0.99 else None
        about = "" if self._exact else "about "
        of = f" of {about}{size(self._total)}" if last.bytes <= self._total else ""
        details = [f"{size(last.bytes)}{of}", f"{last.documents:,} documents", f"{quantity(last.tokens)} tokens"]
        if spent >= 1 and last.tokens:
            details.append(f"{quantity(last.tokens / spent)} tokens/s")
        return State("tokenizing", part, tuple(details), left)

    def _writing(self, last: Snapshot, now: float) -> State:
        self._write_from = now if self._write_from is None else self._write_from
        spent = now - self._write_from
        part = min(1.0, last.written / last.planned)
        left = spent * (1 - part) / part if part and spent >= 0.5 else None
        details = (f"{quantity(last.written)} of {quantity(last.planned)} tokens", f"{last.documents:,} documents")
        if not last.written:
            return State("placing", min(1.0, last.placed / last.planned), details, None)
        return State("writing" if part < 1 else "finalizing", part, details, left)


def line(state: State) -> str:
    """A state as one plain line."""
    left = (f"{duration(ceil(state.left))} left",) if state.left is not None else ()
    percent = (f"{state.done:.0%}",) if state.details else ()
    return f"{state.phase}: {', '.join((*percent, *state.details, *left))}" if percent else state.phase


@contextmanager
def follow(prepared: Prepared, quiet: bool = False, log: RunLog | None = None) -> Iterator[None]:
    """Shows on stderr how far the run is, for as long as the block lasts, and notes it in the log."""
    if quiet and log is None:
        yield
        return
    work = prepared.job.carrier.work
    if work is None:  # counters are elsewhere; the runner's own console has them
        state_now = _elapsed(f"running on {prepared.options.runner}")
    else:
        pace = Pace(prepared.input_bytes, prepared.compressed_bytes, prepared.job.key_ranges)

        def state_now() -> State:
            state = pace.state(progress.snapshot(work), time.monotonic())
            memory = progress.resident(work)
            held = (f"{size(memory)} of memory",) if memory and state.details else ()
            return state._replace(memory=memory, details=(*state.details, *held))

    stop = threading.Event()
    watchers: list[Callable[[Callable[[], State], threading.Event], None]] = []
    if not quiet:
        watchers.append(_watch_terminal if sys.stderr.isatty() else _watch_lines)
    if log is not None:
        watchers.append(partial(_watch_log, log))
    threads = [
        threading.Thread(target=watch, args=(state_now, stop), name="beam-prep-screen", daemon=True)
        for watch in watchers
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=5)


def _elapsed(phase: str) -> Callable[[], State]:
    begin = time.monotonic()
    return lambda: State(f"{phase}, {duration(time.monotonic() - begin)}", 0.0, (), None)


def _watch_lines(state_now: Callable[[], State], stop: threading.Event) -> None:
    for state in _now_and_then(state_now, stop):
        print(line(state), file=sys.stderr, flush=True)


def _watch_log(log: RunLog, state_now: Callable[[], State], stop: threading.Event) -> None:
    for state in _now_and_then(state_now, stop):
        log.progress(state.phase, state.done, state.left, state.memory, state.counters)


def _now_and_then(state_now: Callable[[], State], stop: threading.Event) -> Iterator[State]:
    """A state every few seconds, later less often: a run of days is no reason for a log of megabytes."""
    begin = time.monotonic()
    while True:
        spent = time.monotonic() - begin
        if stop.wait(next(wait for until, wait in _LINE_SECONDS if spent < until)):
            return
        yield state_now()


def _watch_terminal(state_now: Callable[[], State], stop: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    # No refreshing thread of its own: a look four times a second is all the run pays for.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_display(state_now()), refresh=True)
            if stop.wait(_POLL_SECONDS):
                return


def _display(state: State):
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 1))
    left = f"{duration(ceil(state.left))} left" if state.left is not None else ""
    if not state.details:
        return Text(f"{state.phase} …")
    bar = ProgressBar(total=1.0, completed=state.done, width=40)
    head.add_row(Text(state.phase.ljust(10), "bold"), bar, Text(f"{state.done:4.0%}"), Text(left))
    return Group(head, Text("  ".join(state.details), "dim"))
