"""Glaive function calling: a conversation that is one string, with markers between the turns."""

from __future__ import annotations

from typing import Any

from beam_prep.documents import Draw

_MARKERS = ("USER:", "ASSISTANT:", "FUNCTION RESPONSE:")


def turns(record: dict, draw: Draw) -> dict[str, Any]:
    """`system` without its prefix ("" where there is none) and `turns`: [{role: marker, content: text}].

    A marker is named without its colon. Text before the first one is a turn without a role, which the chat skips and
    counts.
    """
    # The end of every reply of the assistant is marked in the data; the chat form says the same.
    chat = record["chat"].replace("<|endoftext|>", "")
    cuts = [(0, "")]
    for marker in _MARKERS:  # with find: a regular expression for all three takes 3 times longer
        place = chat.find(marker)
        while place >= 0:
            cuts.append((place, marker))
            place = chat.find(marker, place + len(marker))
    cuts.sort()
    ends = [place for place, _ in cuts[1:]] + [len(chat)]
    found = [
        {"role": marker[:-1], "content": chat[place + len(marker) : end].strip()}
        for (place, marker), end in zip(cuts, ends, strict=True)
    ]
    if not found[0]["content"]:
        del found[0]
    return {"system": (record.get("system") or "").removeprefix("SYSTEM: "), "turns": found}
