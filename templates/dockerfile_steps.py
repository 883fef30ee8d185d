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
    stage = _Stage(context, root, build_arguments, outside, say)
    begin = max((n for n, step in enumerate(steps) if step.name == "FROM"), default=0)
    for number, step in enumerate(steps):
        try:
            if number >= begin or not stage.done.left_out:
                stage.do(step)
            elif step.name == "FROM":
                stage.leave_out(step)
            elif step.name == "RUN":
                raise StepError("in another stage than the last; it cannot be carried out here")
        except (StepError, KeyError) as error:
            raise StepError(f"line {step.line}, {step.name}: {error}") from None
    return stage.done


class _Stage:
    """A stage while its steps are done."""

    def __init__(
        self,
        context: Path,
        root: Path,
        build_arguments: Mapping[str, str],
        outside: Mapping[str, str],
        say: Callable[[str], None],
    ):
        self.context, self.files, self.root, self.folder = context, context_files(context), root, root
        self.build_arguments, self.outside, self.say = build_arguments, outside, say
        self.done = Done({}, {}, {}, [])

    def filled(self, text: str) -> str:
        """A text with the variables that Docker itself fills in."""
        return Template(text).substitute({**self.done.arguments, **self.done.environment})

    def leave_out(self, step: Step) -> None:
        """Notes a step that needs another image."""
        self.done.left_out.append(f"{step.name} {Template(step.value).safe_substitute(self.done.versions)}")

    def do(self, step: Step) -> None:
        """Does one step."""
        if step.name == "FROM" or (step.name == "COPY" and step.value.startswith("--from=")):
            self.leave_out(step)
        elif step.name == "ARG":
            name, _, default = step.value.partition("=")
            known = self.done.arguments if self.done.left_out else self.done.versions
            known[name] = self.build_arguments.get(name, "".join(shlex.split(self.filled(default))))
        elif step.name == "ENV":
            for pair in shlex.split(step.value):
                name, _, value = pair.partition("=")
                self.done.environment[name] = below(self.root, self.filled(value))
        elif step.name == "WORKDIR":
            self.folder = Path(os.path.join(self.folder, below(self.root, self.filled(step.value))))
            self.folder.mkdir(parents=True, exist_ok=True)
        elif step.name == "COPY":
            self.say(f"COPY {step.value}")
            self.copy(*shlex.split(self.filled(step.value)))
        elif step.name == "RUN":
            self.say(f"RUN {' '.join(step.value.split())}")
            begin = time.monotonic()
            _run(step.value, self.folder, {**self.outside, **self.done.arguments, **self.done.environment})
            self.say(f"    {time.monotonic() - begin:.0f} s")

    def copy(self, *words: str) -> None:
        """COPY: files into a folder or under a name; of a folder, what is in it."""
        *sources, last = words
        target = Path(os.path.join(self.folder, below(self.root, last)))
        into = last.endswith("/") or last == "." or len(sources) > 1
        for source in sources:
            inside = sorted(p for p in self.files if p == source or p.startswith(f"{source.rstrip('/')}/"))
            if not inside:
                raise StepError(f"{source}: not in the build context; see .dockerignore")
            for path in inside:
                rest = os.path.relpath(path, source) if path != source else (os.path.basename(source) if into else "")
                place = target / rest if rest else target
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.context / path, place)


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
