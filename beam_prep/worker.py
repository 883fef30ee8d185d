"""A worker process of the local runner: Beam's own, which leaves Ctrl-C to its parent and ends when that does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

DEBUG_VARIABLE = "BEAM_PREP_DEBUG"
"""Set to anything, a worker prints its tracebacks."""
_POLL_SECONDS = 0.2


_NOISE = ("Traceback (most recent", "Logging client failed")


class _WithoutTracebacks:
    """stderr without the tracebacks that Beam prints there: what failed is raised in the parent too, or it has left."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        """Writes a text that is no traceback, nor the line feed that `print` puts behind one."""
        self._dropped = text.startswith(_NOISE) or (self._dropped and text == "\n")
        return len(text) if self._dropped else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main() -> None:
    """Serves the process that started this one until it is gone, however that happens."""
    parent = os.getppid()
    leave_interrupts_to_parent()
    if not os.environ.get(DEBUG_VARIABLE):
        sys.stderr = _WithoutTracebacks(sys.stderr)
    threading.Thread(target=_follow, args=(parent,), name="beam-prep-follow", daemon=True).start()
    threading.excepthook = lambda failed: _report(parent, failed.exc_value)
    from apache_beam.runners.worker import sdk_worker_main

    try:
        sdk_worker_main.main(sys.argv)
    except Exception as error:
        _report(parent, error)
        os._exit(1)


def leave_interrupts_to_parent() -> None:
    """Ctrl-C reaches every process of a terminal; the parent is about to leave, and says so."""

    def be_silent(*_: object) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    signal.signal(signal.SIGINT, be_silent)


def _follow(parent: int) -> None:
    """Without a parent, threads of the worker would wait for ever."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(0)


def _report(parent: int, error: BaseException | None) -> None:
    """Prints an error, unless it is only that the parent has left."""
    time.sleep(2 * _POLL_SECONDS)
    if error is not None and os.getppid() == parent:
        traceback.print_exception(error)


if __name__ == "__main__":
    main()
