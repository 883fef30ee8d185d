"""OpenBookQA: a question with four choices."""

from __future__ import annotations

from typing import Any

from beam_prep.catalog.shapes import columns, required_text, text
from beam_prep.documents import Draw, Reject

_LABELS = ("A", "B", "C", "D")


def choices(record: dict, draw: Draw) -> dict[str, Any]:
    """`question_stem`, the choices `A` to `D`, `answerKey`, and `answer`, the text of the key's choice.

    Raises:
      Reject: there are not exactly the choices A to D, the key is none of them, or a shape is wrong.
    """
    pairs = columns(record["choices"], "label", "text", "choices")
    found = {text(label, "a label of choices"): choice for label, choice in pairs}
    if len(found) != len(pairs) or not found.keys() <= set(_LABELS):
        raise Reject("wrong_type", f"the choices are not A to D, each once, but {', '.join(found)[:40]}")
    for label in (*_LABELS, record["answerKey"]):
        required_text(found, label, "choices")
    answer = found[record["answerKey"]]
    return {"question_stem": record["question_stem"], **found, "answerKey": record["answerKey"], "answer": answer}
