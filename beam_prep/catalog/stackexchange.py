"""Stack Exchange: the best answers to a question."""

from __future__ import annotations

from typing import Any

from beam_prep.catalog.shapes import text
from beam_prep.documents import Draw, Filtered, Reject
from beam_prep.templates import json_type


def best_answers(record: dict, draw: Draw) -> dict[str, Any]:
    """`question` and `best`: the texts of the answers that share the highest `pm_score`, in the order of the row.

    Answers without text are left out before anything is compared. An absent score counts as 0.

    Raises:
      Reject: no answer has text, or a shape is wrong.
      Filtered: no answer has a score above 0.
    """
    scored = []
    for number, answer in enumerate(record["answers"]):
        if not isinstance(answer, dict):
            raise Reject("wrong_type", f"answers[{number}] is {json_type(answer)}, not object")
        score = answer.get("pm_score")
        if score is None:
            score = 0
        elif not isinstance(score, (int, float)) or isinstance(score, bool):
            raise Reject("wrong_type", f"answers[{number}].pm_score is {json_type(score)}, not number")
        content = text(answer.get("text"), "the text of an answer")
        if content:
            scored.append((score, content))
    if not scored:
        raise Reject("empty_field", "no answer has text")
    highest = max(score for score, _ in scored)
    if not highest > 0:
        raise Filtered("pm_score")
    return {"question": record["question"], "best": [content for score, content in scored if score == highest]}
