"""Code contests: one solution of a problem, in a drawn language."""

from __future__ import annotations

from typing import Any, NamedTuple

from beam_prep.catalog.shapes import columns, text
from beam_prep.documents import Draw, Filtered, Reject
from beam_prep.templates import json_type


class _Language(NamedTuple):
    name: str
    fence: str
    weight: float


# By the dataset's own numbers; 0 (unknown) and 1 (Python 2) are left out on purpose.
_LANGUAGES = {
    2: _Language("C++", "cpp", 0.25),
    3: _Language("Python3", "python", 0.5),
    4: _Language("Java", "java", 0.25),
}


def solution(record: dict, draw: Draw) -> dict[str, Any]:
    """`name`, `description`, `tests` [(input, output)], `language`, `fence` and `solution`.

    The language is drawn by weight among those that have a solution with text; the shortest solution in it is
    taken, the first one on a tie.

    Raises:
      Reject: a shape is wrong.
      Filtered: no solution is in one of the languages.
    """
    shortest: dict[int, str] = {}
    for number, (language, code) in enumerate(columns(record["solutions"], "language", "solution", "solutions")):
        if not isinstance(language, int) or isinstance(language, bool):
            raise Reject("wrong_type", f"solutions.language[{number}] is {json_type(language)}, not a whole number")
        code = text(code, "a solution")
        if code and language in _LANGUAGES and (language not in shortest or len(code) < len(shortest[language])):
            shortest[language] = code
    if not shortest:
        raise Filtered("language")
    # Sorted, so that the draw does not depend on the order in which the solutions stand.
    present = sorted(shortest)
    language = draw.choice(present, [_LANGUAGES[number].weight for number in present])
    return {
        "name": record["name"],
        "description": record["description"],
        "tests": [_test(*test) for test in columns(record.get("public_tests"), "input", "output", "public_tests")],
        "language": _LANGUAGES[language].name,
        "fence": _LANGUAGES[language].fence,
        "solution": shortest[language],
    }


def _test(given: Any, expected: Any) -> tuple[str, str]:
    return text(given, "the input of a public test"), text(expected, "the output of a public test")
