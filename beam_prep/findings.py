"""Findings: what verify reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from beam_prep import storage


class Finding(NamedTuple):
    """Something that is off."""

    place: str
    """File below the output, and where in it."""
    problem: str


Progress = Callable[[int], None]
"""Called with bytes that were read."""


class Figures:
    """Collects figures that should be equal and are not."""

    def __init__(self, place: str):
        self.place = place
        self.findings: list[Finding] = []

    def equal(self, what: str, found: object, expected: object, where: str) -> None:
        """A finding if `found` is not `expected`, which stands `where`."""
        if found != expected:
            self.add(f"{what} is {shown(found)}, but {shown(expected)} {where}")

    def add(self, problem: str) -> None:
        """One more finding."""
        self.findings.append(Finding(self.place, problem))


def shown(value: object) -> str:
    """A value as a finding writes it."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def read_if_there(path: str) -> bytes | None:
    """A whole file, or None if there is none (each file system has an error of its own for that)."""
    return None if storage.size(path) is None else storage.read_bytes(path)
