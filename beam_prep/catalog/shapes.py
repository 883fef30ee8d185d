"""Checks of the nested shapes that a record's required fields do not tell, for the entries that need code."""

from __future__ import annotations

from typing import Any

from beam_prep.documents import Reject
from beam_prep.templates import json_type


def text(value: Any, where: str) -> str:
    """`value` if it is a string, "" if it is null or absent.

    Raises:
      Reject: wrong_type.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Reject("wrong_type", f"{where} is {json_type(value)}, not string")
    return value


def required_text(fields: dict[str, Any], key: str, where: str) -> str:
    """The value at `key`, a string that is not empty.

    Raises:
      Reject: missing_field, null_field, wrong_type or empty_field.
    """
    value = fields.get(key)
    if value is None:
        code, state = ("null_field", "null") if key in fields else ("missing_field", "missing")
        raise Reject(code, f"{key!r} of {where} is {state}")
    if not text(value, f"{key!r} of {where}"):
        raise Reject("empty_field", f"{key!r} of {where} is empty")
    return value


def array(value: Any, where: str) -> list:
    """`value` if it is a list, [] if it is null or absent.

    Raises:
      Reject: wrong_type.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise Reject("wrong_type", f"{where} is {json_type(value)}, not list")
    return value


def texts(value: Any, where: str) -> list[str]:
    """The items of a list of strings that are neither null nor empty.

    Raises:
      Reject: wrong_type.
    """
    items = array(value, where)
    for number, item in enumerate(items):
        if item is not None and not isinstance(item, str):
            raise Reject("wrong_type", f"{where}[{number}] is {json_type(item)}, not string")
    return [item for item in items if item]


def columns(value: Any, first: str, second: str, where: str) -> list[tuple[Any, Any]]:
    """The rows of `{first: [...], second: [...]}`, a table that is kept by columns; [] if it is null or absent.

    Raises:
      Reject: missing_field (one column only) or wrong_type (the columns differ in length).
    """
    if value is None:
        return []
    if not isinstance(value, dict):
        raise Reject("wrong_type", f"{where} is {json_type(value)}, not object")
    if not value:
        return []
    for name in (first, second):
        if name not in value:
            raise Reject("missing_field", f"{where}.{name} is missing")
    left, right = array(value[first], f"{where}.{first}"), array(value[second], f"{where}.{second}")
    if len(left) != len(right):
        raise Reject("wrong_type", f"{where}.{first} has {len(left)} items, {where}.{second} {len(right)}")
    return list(zip(left, right, strict=True))
