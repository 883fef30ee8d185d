"""docs/configuration.md, made from the models of a configuration: `python -m beam_prep.config_reference FILE`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from beam_prep.config import Config, Dataset, FieldFilter, Filter, Stage, StageShare

_HEAD = """\
<!-- Made by `python -m beam_prep.config_reference docs/configuration.md`; a test holds it against the models. -->
# Configuration

A YAML file. Everything in it is checked before any work starts: an error names the line, the key and what to do, and an
unknown key is an error that names the nearest known one. A number may be written as `1.7e9`. A key whose default is
empty may be left out; one that must be there says so.
"""
_PARTS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("A run", Config, "The top level."),
    ("datasets", Dataset, "A list; each entry is one source. See [own datasets](own-datasets.md)."),
    (
        "filter",
        Filter,
        "Of a dataset or a template. Each criterion is a reason of its own in the ledger. A criterion of the dataset "
        "takes the place of the template's; null takes it away. A list joins several mappings, and "
        "`{field: score, ge: 3}` is short for `{fields: [{field: score, ge: 3}]}`.",
    ),
    ("fields of a filter", FieldFilter, "Comparisons on a field of the raw record; all that are given must hold."),
    ("stages", Stage, "`qwen3`, or a list. See [mixing](mixing.md#stages)."),
    ("datasets of a stage", StageShare, "In place of what the dataset says itself; exactly one of the two."),
)
_ANCHORS = {
    "Dataset": "datasets",
    "Filter": "filter",
    "FieldFilter": "fields-of-a-filter",
    "Stage": "stages",
    "StageShare": "datasets-of-a-stage",
}
_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
_INT64 = 2**63


def reference() -> str:
    """The page, as Markdown."""
    return "\n".join([_HEAD, *(line for part in _PARTS for line in _section(*part))])


def _section(title: str, model: type[BaseModel], text: str) -> Iterator[str]:
    schema = model.model_json_schema(by_alias=True)
    required = schema.get("required", [])
    yield from (f"## {title}", "", text, "", "| key | type | default | meaning |", "|---|---|---|---|")
    for key, entry in schema["properties"].items():
        default = "must be there" if key in required else _default(entry.get("default"))
        name = key if key in model.model_fields else f"{key}_"  # `in` is a keyword
        kind = f"{_type(entry)} {_bounds(model.model_fields[name].metadata)}".rstrip()
        yield f"| `{key}` | {kind} | {default} | {entry.get('description', '')} |"
    yield ""


def _bounds(metadata: Sequence[Any]) -> str:
    parts = [(sign, getattr(each, name)) for each in metadata for name, sign in _BOUNDS if hasattr(each, name)]
    return ", ".join(f"{sign} {_number(value)}" for sign, value in parts)


def _default(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(entry: dict[str, Any]) -> str:
    """How a user would say the type of a key."""
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[mapping](#{_ANCHORS[name]})"
    if "anyOf" in entry:
        return " or ".join(_type(part) for part in entry["anyOf"] if part.get("type") != "null")
    if "enum" in entry:
        return " or ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    kind = entry.get("type")
    if kind == "array":
        return f"list of {_plural(_type(entry.get('items', {})))}"
    if kind == "object":
        inner = entry.get("additionalProperties")
        return f"mapping of names to {_plural(_type(inner))}" if isinstance(inner, dict) else "mapping"
    return {"boolean": "`true` or `false`"}.get(kind, kind or "any value")


def _plural(text: str) -> str:
    for one, many in (("[mapping]", "[mappings]"), ("any value", "values")):
        if text.startswith(one):
            return text.replace(one, many, 1)
    first, space, rest = text.partition(" ")
    return text if text.startswith("`") else f"{first}s{space}{rest}"


def _number(value: float) -> str:
    if value == _INT64:
        return "2^63"
    if value == 2**31:
        return "2^31"
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), "utf-8")
