"""The steps of a Dockerfile, carried out below a folder where there is no Docker engine.

COPY, ARG, ENV, WORKDIR and RUN of the last stage are done as Docker would: the build context is what .dockerignore
leaves, absolute paths lie below the folder, and a RUN's shell sees the arguments and variables that stand before it.
What comes out of other images (FROM, COPY --from) is not there; it is named as left out.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import NamedTuple

_ABSOLUTE = re.compile(r"(?:^|[\s'\"=:;|&><(])(/[A-Za-z][\w./-]*)")
_IGNORED = ("COMMENT", "ENTRYPOINT", "CMD", "LABEL", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "SHELL", "USER")
_KNOWN = ("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN")


class StepError(Exception):
    """A step that failed, or that cannot be carried out here."""


class Step(NamedTuple):
    """An instruction, its lines joined."""

    line: int
    name: str
    value: str


class Done(NamedTuple):
    """What the steps left behind."""

    versions: dict[str, str]
    """ARGs before the first FROM, which only the FROMs see."""
    arguments: dict[str, str]
    """ARGs of the stage."""
    environment: dict[str, str]
    """ENVs; absolute paths as they are below the folder."""
    left_out: list[str]
    """Steps that need another image."""


def read_steps(dockerfile: Path) -> list[Step]:
    """The instructions of a Dockerfile.

    Raises:
      StepError: one that this module does not know.
    """
    from dockerfile_parse import DockerfileParser

    parser = DockerfileParser(fileobj=io.BytesIO(dockerfile.read_bytes()))
    steps = [Step(s["startline"] + 1, s["instruction"], s["value"]) for s in parser.structure]
    unknown = [step for step in steps if step.name not in (*_KNOWN, *_IGNORED)]
    if unknown:
        raise StepError(f"{dockerfile.name}, line {unknown[0].line}: {unknown[0].name} cannot be carried out here")
    return steps


def context_files(context: Path) -> set[str]:
    """Paths below `context` that .dockerignore lets through, relative to it."""
    from docker.utils.build import exclude_paths

    ignore = context / ".dockerignore"
    patterns = [line.strip() for line in ignore.read_text("utf-8").splitlines()] if ignore.exists() else []
    wanted = [line for line in patterns if line and not line.startswith("#")]
    return {path for path in exclude_paths(str(context), wanted) if (context / path).is_file()}


def below(root: Path, path: str) -> str:
    """An absolute path of the image as it lies below the folder; anything else as it is."""
    return str(root) + path if path.startswith("/") else path


def carry_out(
    steps: list[Step],
    context: Path,
    root: Path,
    build_arguments: Mapping[str, str],
    outside: Mapping[str, str],
    say: Callable[[str], None] = print,
) -> Done:
    """Does the steps of the last stage.

    Args:
      context: the build context.
      root: an empty folder, for the image's own `/`.
      outside: environment of the RUN steps beside the Dockerfile's own: PATH and what a package client needs.

    Raises:
      StepError: a step failed, names a file that is not in the context, or needs what is not here.
    """
    begin = max((n for n, step in enumerate(steps) if step.name == "FROM"), default=0)
    files = context_files(context)
    done = Done({}, {}, {}, [])
    folder = root
    for number, step in enumerate(steps):
        in_stage = number >= begin
        values = {**done.arguments, **done.environment}
        try:
            if step.name == "ARG" and (in_stage or not done.left_out):
                name, _, default = step.value.partition("=")
                known = done.arguments if in_stage else done.versions
                known[name] = build_arguments.get(name, _plain(default, values))
            elif step.name == "FROM":
                done.left_out.append(f"FROM {Template(step.value).substitute(done.versions)}")
            elif not in_stage:
                if step.name == "RUN":
                    raise StepError("a RUN in another stage than the last cannot be carried out here")
            elif step.name == "ENV":
                for pair in shlex.split(step.value):
                    name, _, value = pair.partition("=")
                    done.environment[name] = below(root, Template(value).substitute(values))
            elif step.name == "WORKDIR":
                folder = Path(os.path.join(folder, below(root, Template(step.value).substitute(values))))
                folder.mkdir(parents=True, exist_ok=True)
            elif step.name == "COPY" and step.value.startswith("--from="):
                done.left_out.append(f"COPY {step.value}")
            elif step.name == "COPY":
                say(f"COPY {step.value}")
                _copy(shlex.split(Template(step.value).substitute(values)), context, files, folder, root)
            elif step.name == "RUN":
                say(f"RUN {' '.join(step.value.split())}")
                begin_step = time.monotonic()
                _run(step.value, folder, {**outside, **values})
                say(f"    {time.monotonic() - begin_step:.0f} s")
        except (StepError, KeyError) as error:
            raise StepError(f"line {step.line}, {step.name}: {error}") from None
    return done


def _plain(value: str, values: Mapping[str, str]) -> str:
    return "".join(shlex.split(Template(value).substitute(values)))


def _copy(words: list[str], context: Path, files: set[str], folder: Path, root: Path) -> None:
    """COPY: files into a folder or under a name; of a folder, what is in it."""
    *sources, last = words
    target = Path(os.path.join(folder, below(root, last)))
    into = last.endswith("/") or last == "." or len(sources) > 1
    for source in sources:
        inside = sorted(path for path in files if path == source or path.startswith(f"{source.rstrip('/')}/"))
        if not inside:
            raise StepError(f"{source}: not in the build context; see .dockerignore")
        for path in inside:
            rest = os.path.relpath(path, source) if path != source else (os.path.basename(source) if into else "")
            place = target / rest if rest else target
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(context / path, place)


def _run(command: str, folder: Path, environment: dict[str, str]) -> None:
    """RUN, by a shell as Docker has it."""
    absolute = _ABSOLUTE.findall(command)
    if absolute:
        raise StepError(f"names {absolute[0]}, which would be a place of this machine; take it from an ENV")
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StepError(f"exit status {done.returncode}\n{done.stdout[-4000:]}")
