"""The ledger: what became of every record of a source, carried in the data plane beside the tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of one source (or a part of one). `records` = rejected + filtered + rendered, at every moment."""

    records: int = 0
    blank_lines: int = 0
    bytes: int = 0
    """Bytes read, uncompressed."""
    rejected: Counter = field(default_factory=Counter)
    filtered: Counter = field(default_factory=Counter)
    skipped_turns: Counter = field(default_factory=Counter)
    """Chat turns that a template leaves out (an unknown role, for instance), by reason."""
    rendered: int = 0
    """Documents that left the transform and the filters."""

    def add(self, other: Tally) -> None:
        """Adds `other` to this tally."""
        self.records += other.records
        self.blank_lines += other.blank_lines
        self.bytes += other.bytes
        self.rejected.update(other.rejected)
        self.filtered.update(other.filtered)
        self.skipped_turns.update(other.skipped_turns)
        self.rendered += other.rendered

    def to_dict(self) -> dict:
        """A JSON form, keys sorted so that equal tallies give equal text."""
        return {
            "records": self.records,
            "blank_lines": self.blank_lines,
            "bytes": self.bytes,
            "rejected": dict(sorted(self.rejected.items())),
            "filtered": dict(sorted(self.filtered.items())),
            "skipped_turns": dict(sorted(self.skipped_turns.items())),
            "rendered": self.rendered,
        }

    @classmethod
    def from_dict(cls, value: dict) -> Tally:
        """The reverse of `to_dict`."""
        counters = {name: Counter(value[name]) for name in ("rejected", "filtered", "skipped_turns")}
        return cls(**{**value, **counters})


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies."""
    result = Tally()
    for tally in tallies:
        result.add(tally)
    return result
