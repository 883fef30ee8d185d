"""How long the steps of a run were busy: kept in `run.json`, where equal runs may differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import orjson

from beam_prep import storage
from beam_prep.progress import STEPS, Snapshot
from beam_prep.retry_rejected import CALL_FILE


class StepTime(NamedTuple):
    """A step's work in the last attempt of a run."""

    step: str
    seconds: float
    """Summed over threads and processes; steps overlap."""
    bytes: int
    """Read for the steps up to Tokenize (uncompressed), written for the others."""


def step_times(counted: Snapshot) -> list[StepTime]:
    """The steps that were busy."""
    read, written = counted.bytes - counted.found, 4 * counted.written
    times = []
    for step in STEPS:
        if busy := getattr(counted, step):
            times.append(StepTime(step.capitalize(), busy / 1e9, written if step in ("pack", "write") else read))
    return times


def keep_step_times(output: str, times: Sequence[StepTime]) -> None:
    """Adds the times to `run.json`."""
    path = storage.join(output, CALL_FILE)
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
        content = orjson.loads(storage.read_bytes(storage.join(output, CALL_FILE)))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
