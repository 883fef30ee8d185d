"""Process setup: the interpreter and the allocator of a process that has many threads and millions of small objects."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

_SWITCH_SECONDS = 2e-4
"""How long a thread may hold the GIL while another waits. With Python's 5 ms the encoder, which needs it for moments
only, waits longer than it works."""
_ARENAS = 2
"""Heaps of the allocator. glibc gives each thread its own, up to eight times the cores, and what one thread frees no
other gets: with two, a run takes a sixth less memory, and one of two workers half, at the same speed."""
_M_ARENA_MAX = -8  # glibc's malloc.h


def tune_interpreter() -> None:
    """Sets this process up. To be called again once everything is imported."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    limit_arenas()
    # Views and records would have the collector walk through all of Beam again and again.
    gc.freeze()
    gc.enable()
    gc.set_threshold(200_000, 50, 50)


def limit_arenas() -> None:
    """Has the threads that are still to come share the allocator's heaps, where it is glibc's."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
