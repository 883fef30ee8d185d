"""Documents: what a template makes of a record, or why it makes none; and the draws that it may make on the way.

A function of one's own (`function:`, `prepare:`) deals in these too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
import xxhash

IM_START, IM_END = "<|im_start|>", "<|im_end|>"


class Segments(NamedTuple):
    """A rendered document with control tokens: `pieces[0] controls[0] pieces[1] … pieces[-1]`."""

    pieces: list[str]
    controls: list[str]
    """One shorter than `pieces`; each is a special token of the tokenizer, as written."""

    def text(self) -> str:
        """The document as one string, as a person reads it."""
        parts = [self.pieces[0]]
        for control, piece in zip(self.controls, self.pieces[1:], strict=True):
            parts += (control, piece)
        return "".join(parts)


Document = str | Segments


class Message(NamedTuple):
    """One chat message."""

    role: str
    content: str


def chat_segments(messages: Sequence[tuple[str, str]], after: str = "") -> Segments:
    """ChatML of Qwen3: `<|im_start|>ROLE\\nCONTENT<|im_end|>` for each (role, content), joined by one newline.

    A message with empty content is skipped.

    Raises:
      Reject: no message is left (the system message does not count).
    """
    pieces, controls = [""], []
    spoken = False
    for role, content in messages:
        if not content:
            continue
        spoken = spoken or role != "system"
        if controls:
            pieces[-1] = "\n"
        pieces += (f"{role}\n{content}", "")
        controls += (IM_START, IM_END)
    if not spoken:
        raise Reject("no_messages", "no message with content is left in the conversation")
    pieces[-1] = after
    return Segments(pieces, controls)


class Reject(Exception):
    """A record that cannot become a document. `code` is its reason in the ledger."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message


class Filtered(Exception):
    """A record that a template's filter turns down. `reason` is its name in the ledger."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Draw:
    """Random choices of one row, from the run's seed and the row's content alone."""

    def __init__(self, seed: int, record: dict):
        self._seed, self._record = seed, record
        self._calls = 0

    def uniform(self) -> float:
        """A number in [0, 1); another one at every call."""
        content = _canonical(self._record)
        self._calls += 1
        word = xxhash.xxh3_64_intdigest(content, seed=self._seed ^ (self._calls * 0x9E3779B97F4A7C15 & (2**64 - 1)))
        return (word >> 11) / 2**53

    def choice(self, options: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
        """One of `options` (not empty), evenly or by `weights`."""
        if len(options) == 1:
            return options[0]
        point = self.uniform()
        if weights is None:
            return options[min(int(point * len(options)), len(options) - 1)]
        point *= sum(weights)
        for option, weight in zip(options, weights, strict=True):
            point -= weight
            if point < 0:
                return option
        return options[-1]


def _canonical(record: dict) -> bytes:
    """One text for equal records, whatever the order of their keys."""
    try:
        return orjson.dumps(record, default=str, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # beyond orjson: integers of more than 64 bits, more than 254 levels
        pass
    try:
        return json.dumps(record, default=str, sort_keys=True).encode()
    except RecursionError:
        raise Reject("wrong_type", "the record is nested too deeply") from None
