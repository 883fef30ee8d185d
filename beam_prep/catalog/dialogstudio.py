"""DialogStudio: system messages from a drawn prompt, and what `original dialog info` says.

`original dialog info` is a JSON object, or a string that holds one. Null, an empty string and a string that is
not a JSON object count as absent: an entry that needs something from it rejects the row as `missing_field`,
the others do without. A list or a number there is `wrong_type`.
"""

from __future__ import annotations

from typing import Any

import orjson

from beam_prep.catalog.shapes import required_text, text, texts
from beam_prep.documents import Draw, Reject
from beam_prep.templates import json_type

_INFO = "original dialog info"


def soda(record: dict, draw: Draw) -> dict[str, Any]:
    """`log`, `narrative` and `prompt`: one of the prompts.

    Raises:
      Reject: no narrative, no prompt with text, or a shape is wrong.
    """
    narrative = required_text(_info(record), "narrative", _INFO)
    return {"log": record["log"], "narrative": narrative, "prompt": _prompt(record, draw)}


def multiwoz(record: dict, draw: Draw) -> dict[str, Any]:
    """`log` and `prompt`: one of the prompts.

    Raises:
      Reject: no prompt with text, or a shape is wrong.
    """
    return {"log": record["log"], "prompt": _prompt(record, draw)}


def wizard_of_wikipedia(record: dict, draw: Draw) -> dict[str, Any]:
    """`log`, `topic`, `persona` ("" where there is none) and `passages`, a list of strings.

    Raises:
      Reject: no chosen topic, or a shape is wrong.
    """
    info = _info(record)
    return {
        "log": record["log"],
        "topic": required_text(info, "chosen_topic", _INFO),
        "persona": text(info.get("persona"), "persona"),
        "passages": texts(info.get("chosen_topic_passage"), "chosen_topic_passage"),
    }


def empathetic_dialogues(record: dict, draw: Draw) -> dict[str, Any]:
    """`log` and `emotion`, "" where it is not known.

    Raises:
      Reject: a shape is wrong.
    """
    return {"log": record["log"], "emotion": text(_info(record).get("context"), "context")}


def samsum(record: dict, draw: Draw) -> dict[str, Any]:
    """`log` and `summary`, "" where there is none.

    Raises:
      Reject: a shape is wrong.
    """
    return {"log": record["log"], "summary": text(_info(record).get("summary"), "summary")}


def _info(record: dict) -> dict[str, Any]:
    info = record.get(_INFO)
    if isinstance(info, str):
        try:
            info = orjson.loads(info)
        except orjson.JSONDecodeError:
            return {}
        return info if isinstance(info, dict) else {}
    if info is None:
        return {}
    if not isinstance(info, dict):
        raise Reject("wrong_type", f"field {_INFO!r} is {json_type(info)}, not string or object")
    return info


def _prompt(record: dict, draw: Draw) -> str:
    prompts = texts(record["prompt"], "prompt")
    if not prompts:
        raise Reject("empty_field", "required field 'prompt' holds no text")
    return draw.choice(prompts)
