"""Writes metadata.json, spec.json, launch.json and scheduler.json: `python -m templates.generate [--project P …]`.

Without arguments the files of this folder are made anew, with names in capitals where a site's own belong; a test
holds them against the code. With a site's names, `--to FOLDER` gets files that are ready to be sent.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from templates.bodies import Site, launch, scheduler, specification
from templates.metadata import metadata


def files(site: Site) -> dict[str, dict[str, Any]]:
    """File name → content."""
    return {
        "metadata.json": metadata(),
        "spec.json": specification(site),
        "launch.json": launch(site),
        "scheduler.json": scheduler(site),
    }


def as_text(content: dict[str, Any]) -> str:
    """A file's text."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command's arguments: a flag for each field of a site."""
    made = argparse.ArgumentParser(prog="python -m templates.generate", description=__doc__, allow_abbrev=False)
    made.add_argument("--to", type=Path, default=Path(__file__).parent, metavar="FOLDER", help="Where to write.")
    for name, default in Site._field_defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "parameters":
            text = "One more parameter of the template; may be repeated."
            made.add_argument(
                "--parameter", dest=name, action="append", default=[], type=_pair, metavar="KEY=VALUE", help=text
            )
        elif isinstance(default, bool):
            made.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            made.add_argument(flag, type=type(default), default=default, metavar=name.upper())
    return made


def _pair(text: str) -> tuple[str, str]:
    """Name and value of a parameter.

    Raises:
      argparse.ArgumentTypeError: the template has no such parameter, or would refuse the value.
    """
    name, _, value = text.partition("=")
    known = {parameter["name"]: parameter["regexes"] for parameter in metadata()["parameters"]}
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name!r} is no parameter of the template; there are {', '.join(known)}")
    if not all(re.fullmatch(pattern, value) for pattern in known[name]):
        raise argparse.ArgumentTypeError(f"{value!r} does not fit {name}: {' and '.join(known[name])}")
    return name, value


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the files and names them."""
    given = vars(parser().parse_args(argv))
    given["parameters"] = tuple(given["parameters"])
    folder = given.pop("to")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(Site(**given)).items():
        (folder / name).write_text(as_text(content), "utf-8")
        print(folder / name)


if __name__ == "__main__":
    main()
