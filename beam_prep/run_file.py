"""`run.json`: how a run was called, and how long its steps were busy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import orjson

from beam_prep import storage
from beam_prep.errors import ConfigError
from beam_prep.layout import RUN_FILE
from beam_prep.progress import STEPS, Snapshot


class StepTime(NamedTuple):
    """A step's work in the last attempt of a run."""

    step: str
    seconds: float
    """Summed over threads and processes; steps overlap."""
    bytes: int
    """Read for the steps up to Tokenize (uncompressed), written for the others."""


def remember_call(output: str, configuration: str) -> None:
    """Notes which configuration file an output was asked for with."""
    storage.write_bytes(storage.join(output, RUN_FILE), [orjson.dumps({"configuration": configuration}) + b"\n"])


def remembered_call(output: str) -> str:
    """The configuration file that `output` was asked for with.

    Raises:
      ConfigError: nothing is noted there.
    """
    try:
        return _read(output)["configuration"]
    except KeyError:
        raise ConfigError(
            f"{output}: does not say which configuration it was made with; give it: "
            f"beam-prep run CONFIG --only-rejected {output}"
        ) from None


def step_times(counted: Snapshot) -> list[StepTime]:
    """The steps that were busy."""
    read, written = counted.bytes - counted.found, 4 * (counted.written - counted.kept)
    times = []
    for step in STEPS:
        if busy := getattr(counted, step):
            times.append(StepTime(step.capitalize(), busy / 1e9, written if step in ("pack", "write") else read))
    return times


def keep_step_times(output: str, times: Sequence[StepTime]) -> None:
    """Adds the times to `run.json`."""
    path = storage.join(output, RUN_FILE)
    content = {**_read(output), "steps": [time._asdict() for time in times]}
    storage.write_bytes(path, [orjson.dumps(content) + b"\n"])


def kept_step_times(output: str) -> list[StepTime]:
    """The times in `run.json`; none where it holds none."""
    try:
        return [StepTime(str(t["step"]), float(t["seconds"]), int(t["bytes"])) for t in _read(output)["steps"]]
    except (KeyError, TypeError, ValueError):
        return []


def _read(output: str) -> dict:
    try:
        content = orjson.loads(storage.read_bytes(storage.join(output, RUN_FILE)))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
