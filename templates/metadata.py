"""metadata.json: what the console asks for when the template is launched.

Names, choices and texts come from the arguments of `pipelines.prepare` and the configuration's model. Options of Beam
and Dataflow (runner, project, machine type …) are not declared: the console has fields of its own for them.
"""

from __future__ import annotations

import argparse
from typing import Any

from beam_prep import arguments

NAME = "beam-prep"
DESCRIPTION = "Raw datasets in; packed, tokenized, randomly accessible training data out."
_BUCKET = "gs://[a-z0-9][a-z0-9._-]+[a-z0-9]"
_PATTERNS = {
    "config": rf"^{_BUCKET}/[^\s{{}}]*\.ya?ml$",
    "output": rf"^{_BUCKET}(/([^\s{{}}]|\{{date\}}|\{{job_name\}})*)?$",
    "tokenizer": rf"^([A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?|/[^\s]+|{_BUCKET}/[^\s]+)$",
}
"""Texts → what the launcher can do with: it has no folder of the caller's, and no braces but placeholders."""
_INTEGER = "^[0-9]+$"
_NUMBER = r"^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_LABELS = {
    "config": "Configuration",
    "output": "Output folder",
    "max_rejects": "Most rejects",
    "max_epochs": "Most epochs",
    "seed": "Seed",
    "tail": "Last sequence",
    "dedup": "Duplicates",
    "overwrite": "Overwrite",
    "fresh": "Start over",
    "increment": "Increment",
    "accept_changed_inputs": "Accept changed inputs",
}
"""Where the name itself, its underscores as spaces, would not do."""
_GROUPS = {
    "Input and output": ("config", "output", *arguments.SWITCHES),
    "Tokens": ("tokenizer", "tokenizer_backend", "context_length", "packing", "tail"),
    "Documents": ("dedup", "max_rejects", "total_tokens", "max_epochs", "seed"),
}
_EXAMPLES = {
    "config": "gs://my-bucket/configs/corpus.yaml",
    "output": "gs://my-bucket/corpus/{date}",
    "tokenizer": "gs://my-bucket/tokenizers/mine",
    "context_length": "32768",
    "seed": "0",
    "max_rejects": "0.01",
    "total_tokens": "1.7e9",
    "max_epochs": "4",
}


def metadata() -> dict[str, Any]:
    """The file's content: a `google.dataflow.v1beta3.TemplateMetadata` as JSON."""
    job = next(group for group in arguments.parser()._action_groups if group.title == arguments.JOB)
    parameters = {action.dest: _parameter(action) for action in job._group_actions}
    ordered = [name for names in _GROUPS.values() for name in names]
    if sorted(ordered) != sorted(parameters):
        raise ValueError(f"parameters without a group, or the other way round: {set(ordered) ^ set(parameters)}")
    return {
        "name": NAME,
        "description": DESCRIPTION,
        "streaming": False,
        "parameters": [parameters[name] for name in ordered],
    }


def _parameter(action: argparse.Action) -> dict[str, Any]:
    """One parameter, from its argument."""
    name = action.dest
    entry: dict[str, Any] = {
        "name": name,
        "label": _LABELS.get(name, name.replace("_", " ").capitalize()),
        "helpText": _help(action),
        "groupName": next((group for group, names in _GROUPS.items() if name in names), ""),
    }
    if not action.required:
        entry["isOptional"] = True
    if name in arguments.SWITCHES:
        return {**entry, "paramType": "BOOLEAN", "regexes": ["^(true|false)$"], "defaultValue": "false"}
    return {**entry, **_kind(name)}


def _help(action: argparse.Action) -> str:
    """The argument's own help, what its absence means, and an example."""
    text = (action.help or "").replace("%%", "%")
    if action.dest in arguments.OVERRIDES:  # a default here would override every file's own value
        text += " If empty: what the configuration says."
    if action.dest in _EXAMPLES:
        text += f" Example: {_EXAMPLES[action.dest]}"
    return text


def _kind(name: str) -> dict[str, Any]:
    """Type and patterns of a parameter that has a value."""
    if name == "config":
        return {"paramType": "GCS_READ_FILE", "regexes": [_PATTERNS[name]]}
    if name in _PATTERNS:  # as GCS_WRITE_FOLDER the console would look for a folder that is called {date}
        return {"paramType": "TEXT", "regexes": [_PATTERNS[name]]}
    kind = arguments.kind_of(name)
    if "enum" in kind:
        choices = [{"value": value, "label": value} for value in kind["enum"]]
        return {"paramType": "ENUM", "enumOptions": choices, "regexes": [f"^({'|'.join(kind['enum'])})$"]}
    if kind["type"] == "integer":
        return {"paramType": "NUMBER", "regexes": [_INTEGER]}
    return {"paramType": "TEXT", "regexes": [_NUMBER]}  # NUMBER may not know 1.7e9
