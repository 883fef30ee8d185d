"""The screen: how far a run is, on a terminal as a bar, elsewhere as a plain line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import NamedTuple

from beam_prep import progress
from beam_prep.launch import Prepared
from beam_prep.progress import Snapshot
from beam_prep.sizes import duration, quantity, size

_POLL_SECONDS = 0.25
_LINE_SECONDS = 5.0
_LATER_LINE_SECONDS = 15.0
_LATER = 120.0
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


class Pace:
    """From counters to a state; remembers when each phase began."""

    def __init__(self, input_bytes: int, compressed_bytes: int):
        self._total = input_bytes - compressed_bytes + round(compressed_bytes * _EXPANSION)
        self._exact = not compressed_bytes
        self._last = Snapshot()
        self._read_from: float | None = None
        self._write_from: float | None = None

    def state(self, counters: Snapshot, now: float) -> State:
        """The state at a moment (seconds). It never goes back, whatever the end of a run does to the counters."""
        last = self._last = Snapshot(*map(max, counters, self._last))
        if not last.bytes:
            return State("starting", 0.0, (), None)
        self._read_from = now if self._read_from is None else self._read_from
        if last.planned:
            return self._writing(last, now)
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
        return State("writing", part, details, left)


def line(state: State) -> str:
    """A state as one plain line."""
    left = (f"{duration(ceil(state.left))} left",) if state.left is not None else ()
    percent = (f"{state.done:.0%}",) if state.details else ()
    return f"{state.phase}: {', '.join((*percent, *state.details, *left))}" if percent else state.phase


@contextmanager
def follow(prepared: Prepared, quiet: bool = False) -> Iterator[None]:
    """Shows on stderr how far the run is, for as long as the block lasts."""
    if quiet:
        yield
        return
    work = prepared.job.carrier.work
    if work is None:  # counters are elsewhere; the runner's own console has them
        state_now = _elapsed(f"running on {prepared.options.runner}")
    else:
        pace = Pace(prepared.input_bytes, prepared.compressed_bytes)

        def state_now() -> State:
            return pace.state(progress.snapshot(work), time.monotonic())

    stop = threading.Event()
    watch = _watch_terminal if sys.stderr.isatty() else _watch_lines
    thread = threading.Thread(target=watch, args=(state_now, stop), name="beam-prep-screen", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _elapsed(phase: str) -> Callable[[], State]:
    begin = time.monotonic()
    return lambda: State(f"{phase}, {duration(time.monotonic() - begin)}", 0.0, (), None)


def _watch_lines(state_now: Callable[[], State], stop: threading.Event) -> None:
    begin = time.monotonic()
    while not stop.wait(_LINE_SECONDS if time.monotonic() - begin < _LATER else _LATER_LINE_SECONDS):
        print(line(state_now()), file=sys.stderr, flush=True)


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
