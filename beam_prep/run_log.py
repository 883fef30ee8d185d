"""The log of a run as JSON lines (`--log-json FILE`), for machines to follow: a bounded number of bytes, however long.

Every line is an object with `time` (UTC, ISO 8601), `event`, and what belongs to the event:

* `start`: `version`, `configuration`, `output`, `fingerprint`, `input_bytes`, `workers`, `runner`, `resumed`
* `progress`: `step`, `done` (0 to 1, of the step), `seconds_left` or null, `memory_bytes` (resident, all processes),
  `bytes`, `documents`, `tokens`, `written_tokens`, `planned_tokens`
* `message`: `level`, `text`: warnings and errors that a run without `--log-json` has on the screen only
* `end`: `status` (`done`, `nothing to do`, `failed`, `interrupted`), `exit_status` (null if interrupted: it depends on
  the signal), `seconds`, `error` or null, and where something came out `sequences` and `tokens`
"""

from __future__ import annotations

import datetime
import logging
import logging.handlers
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from beam_prep import __version__, calls
from beam_prep.errors import ConfigError
from beam_prep.launch import Prepared
from beam_prep.manifest import Manifest
from beam_prep.progress import Snapshot

MOST_BYTES = 8_000_000
"""Of the file; what is older is in FILE.1, of the same size at the most, or gone."""


class RunLog:
    """A log that is open; safe to use from several threads."""

    def __init__(self, path: str):
        """Appends to `path`.

        Raises:
          ConfigError: it cannot be written.
        """
        try:
            self._handler = logging.handlers.RotatingFileHandler(path, maxBytes=MOST_BYTES, backupCount=1)
        except OSError as error:
            raise ConfigError(f"--log-json {path}: cannot be written ({error.strerror})") from None
        self._handler.setFormatter(_Plain())
        self._messages = _Messages(self)
        self._begin = time.monotonic()
        self._started = self._ended = False

    def event(self, name: str, **values: Any) -> None:
        """Writes a line."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = orjson.dumps({"time": now, "event": name, **values}, default=str).decode()
        self._handler.handle(logging.LogRecord("beam_prep", logging.INFO, "", 0, line, None, None))

    def start(self, configuration: str, prepared: Prepared) -> None:
        """Writes what is about to be done."""
        self._started = True
        self.event(
            "start",
            version=__version__,
            configuration=configuration,
            output=prepared.job.output,
            fingerprint=prepared.job.fingerprint,
            input_bytes=prepared.input_bytes,
            runner=prepared.options.runner,
            workers=prepared.workers,
            resumed=prepared.claim.resumed,
        )

    def progress(self, step: str, done: float, left: float | None, memory: int, counters: Snapshot) -> None:
        """Writes how far the run is."""
        self.event(
            "progress",
            step=step,
            done=round(done, 4),
            seconds_left=None if left is None else round(left, 1),
            memory_bytes=memory,
            bytes=counters.bytes,
            documents=counters.documents,
            tokens=counters.tokens,
            written_tokens=counters.written,
            planned_tokens=counters.planned,
        )

    def done(self, manifest: Manifest) -> None:
        """Writes the last line of a run whose output is there."""
        outputs = manifest.outputs.values()
        results = {"sequences": sum(o.sequences for o in outputs), "tokens": sum(o.tokens for o in outputs)}
        self._end("done" if self._started else "nothing to do", 0, **results)

    def interrupted(self) -> None:
        """Writes the last line of a run that is about to be left."""
        self._end("interrupted", None, error="interrupted; the same command goes on from here")

    def _end(self, status: str, exit_status: int | None, error: str | None = None, **results: int) -> None:
        if self._ended:
            return
        self._ended = True
        seconds = round(time.monotonic() - self._begin, 3)
        self.event("end", status=status, exit_status=exit_status, seconds=seconds, error=error, **results)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Takes warnings in, and writes how it ended."""
        root = logging.getLogger()
        root.addHandler(self._messages)
        calls.before_leaving.append(self.interrupted)
        try:
            yield
        except BaseException as error:
            if calls.is_interrupted() or isinstance(error, KeyboardInterrupt):
                self.interrupted()
            else:
                text, status = calls.explain(error)
                self._end("failed", status, error=text)
            raise
        finally:
            calls.before_leaving.remove(self.interrupted)
            root.removeHandler(self._messages)
            self._handler.close()


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


class _Messages(logging.Handler):
    def __init__(self, log: RunLog):
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level, text = calls.said_by_worker(record) or (record.levelname, record.getMessage())
        self._log.event("message", level=level.lower(), text=text)
