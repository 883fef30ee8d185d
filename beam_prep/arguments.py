"""The arguments of `python -m pipelines.prepare`; those of the job are the flex template's parameters too.

The keys of a configuration that a call may override are flags of the same name, checked by the configuration's own
model. Dataflow passes a parameter as `--NAME=VALUE`, which is why a switch takes a value as well.
"""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any

OVERRIDES = (
    "output",
    "tokenizer",
    "tokenizer_backend",
    "context_length",
    "seed",
    "packing",
    "tail",
    "dedup",
    "max_rejects",
    "total_tokens",
    "max_epochs",
)
"""Keys of a configuration that hold one value; lists and mappings are for the YAML file."""
SWITCHES = {
    "overwrite": "Replace a finished output of another run.",
    "fresh": "Start an unfinished run over, instead of going on with it.",
    "increment": "Add the input files that the output does not hold yet.",
    "accept_changed_inputs": "With increment: files that the output holds may have changed or gone.",
}
"""What a run does with what it finds in its output → help."""
CONFIG_HELP = "The configuration, a YAML file: a path or gs://."
JOB, LOCAL = "the job", "this machine only"
"""Titles of the groups of arguments: parameters of the template, and the others."""


def spellings(key: str) -> list[str]:
    """The flags of a key: as in the YAML file, and with hyphens."""
    return list(dict.fromkeys((f"--{key}", f"--{key.replace('_', '-')}")))


def describe(key: str) -> str:
    """What the configuration's model says about a key."""
    from beam_prep.config import Config  # costs a tenth of a second, and only help texts need it

    return Config.model_fields[key].description or ""


def kind_of(key: str) -> dict[str, Any]:
    """What values a key takes, as JSON Schema has it: `type`, and `enum` for a choice."""
    entry = _properties()[key]
    return entry.get("anyOf", [entry])[0]  # or null


@cache
def _properties() -> dict[str, Any]:
    from beam_prep.config import Config

    return Config.model_json_schema()["properties"]


def value_of(key: str) -> str:
    """What stands for a key's value in help: its choices, or its kind."""
    kind = kind_of(key)
    return "|".join(kind["enum"]) if "enum" in kind else {"integer": "N", "number": "X"}.get(kind["type"], "TEXT")


def parser() -> argparse.ArgumentParser:
    """The parser; what it does not know is Beam's."""
    made = argparse.ArgumentParser(
        prog="python -m pipelines.prepare",
        description="The main job: raw records in, packed and indexed sequences out. Other options go to Beam as is.",
        allow_abbrev=False,
    )
    job = made.add_argument_group(JOB, "A key of the configuration that is given here takes the file's place.")
    job.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    for key in OVERRIDES:
        job.add_argument(*spellings(key), dest=key, metavar=value_of(key), help=describe(key).replace("%", "%%"))
    for name, text in SWITCHES.items():
        how = {"nargs": "?", "const": True, "default": False, "type": switch, "metavar": "true"}
        job.add_argument(*spellings(name), dest=name, help=text, **how)
    local = made.add_argument_group(LOCAL)
    local.add_argument("--runner", default="local", help="local (default), DataflowRunner, FlinkRunner, …")
    local.add_argument("--workers", type=int, help="Processes of the local runner.")
    local.add_argument("--memory", metavar="SIZE", help="What all of them may hold: 2GB …")
    local.add_argument("--carrier", choices=["files", "engine"], help="Forces the shuffle's carrier (for tests).")
    return made


def switch(text: str) -> bool:
    """true or false.

    Raises:
      argparse.ArgumentTypeError: it is neither.
    """
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def overrides(parsed: dict[str, Any]) -> dict[str, str]:
    """Those arguments that override a key of the configuration, as they were given."""
    return {key: parsed[key] for key in OVERRIDES if parsed.get(key) is not None}
