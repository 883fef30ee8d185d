"""Glaive function calling: a conversation that is one string, with markers between the turns."""

from __future__ import annotations

import re
from typing import Any

from beam_prep.templates import Draw

_MARKER = re.compile("(USER|ASSISTANT|FUNCTION RESPONSE):")


def turns(record: dict, draw: Draw) -> dict[str, Any]:
    """`system` without its prefix ("" where there is none) and `turns`: [{role: marker, content: text}].

    Text before the first marker is a turn without a role, which the chat skips and counts.
    """
    # The end of every reply of the assistant is marked in the data; the chat form says the same.
    before, *rest = _MARKER.split(record["chat"].replace("<|endoftext|>", ""))
    found = [
        {"role": marker, "content": content.strip()} for marker, content in zip(rest[::2], rest[1::2], strict=True)
    ]
    if before.strip():
        found.insert(0, {"role": None, "content": before.strip()})
    return {"system": (record.get("system") or "").removeprefix("SYSTEM: "), "turns": found}
