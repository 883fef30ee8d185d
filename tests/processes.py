"""Processes as /proc knows them."""

from __future__ import annotations

import contextlib
from pathlib import Path


def children(process: int) -> list[int]:
    """The processes that a process has started, in their order; those that end meanwhile may be left out."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def descendants(process: int) -> list[int]:
    """Its children, each followed by its own."""
    found = []
    with contextlib.suppress(OSError):
        for child in children(process):
            found += [child, *descendants(child)]
    return found


def command_line(process: int) -> bytes:
    """Its arguments, a zero byte behind each."""
    return Path(f"/proc/{process}/cmdline").read_bytes()
