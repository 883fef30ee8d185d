"""What every command does around its work: errors in one line, a clean stop, and logs that are worth reading."""

from __future__ import annotations

import logging
import os
import queue
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from beam_prep.errors import BeamPrepError, from_runner
from beam_prep.worker import DEBUG_VARIABLE

DEBUG = "beam_prep.debug"
STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit status by the signal that stopped a command, as shells count it."""
_SAY_INTERRUPTED = "interrupted: nothing is marked as finished; the same command goes on from here"
_PATIENCE_SECONDS = 1.5
_LOST_SECONDS = 2.0
"""How long the news of a worker's end may take after its connection is gone."""
_NOISE = re.compile(
    "No semi_persistent_directory|Converting string literal type hint|Creating state cache|Discarding unparseable args"
    "|Make sure that locally built Python SDK|could not be downloaded|is not a valid timestamp combiner"
)
_LAST_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Exit)\b.*)$", re.M)
_FROM_SYSTEM = re.compile(r"\[Errno \d+\]")
_ERROR_OF_OURS = re.compile(r"^(?:BeamPrep|Config)Error: ")
_FROM_WORKER = re.compile(r'^Worker: severity: (\w+).*? message: "((?:[^"\\]|\\.)*)"', re.S)
_WORKER_ENDED = re.compile(r"Worker subprocess exited with return code (-?\d+)")
_CONNECTION_LOST = "Channel closed"
_interrupted = threading.Event()
_signals: list[signal.Signals] = []
"""That have come, in order."""
before_leaving: list[Callable[[], None]] = []
"""What is called when a command that was interrupted does not end by itself."""
_workers_ended: queue.SimpleQueue[int] = queue.SimpleQueue()
"""Exit statuses of worker processes that are gone."""


class Commands(click.Group):
    """A group whose commands end in an exit status and one clear message, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was asked for."""
        try:
            with _interruptible():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except BaseException as error:
            debug = ctx.meta.get(DEBUG, False)
            if debug:
                traceback.print_exc()
            # In-process runners wrap the interruption in an error of their own.
            if _interrupted.is_set() or isinstance(error, (KeyboardInterrupt, click.Abort)):
                click.echo(_SAY_INTERRUPTED, err=True)
                ctx.exit(_status())
            if isinstance(error, SystemExit):
                raise
            message, status = _lost_worker(error) or explain(error)
            click.echo(f"error: {message}", err=True)
            ctx.exit(status)


def _lost_worker(error: BaseException) -> tuple[str, int] | None:
    """What a user is told if a worker process has ended before its time, which the runner only sees as silence."""
    if from_runner(error) is not None:
        return None
    told = _WORKER_ENDED.search(str(error))
    try:
        code = int(told[1]) if told else _workers_ended.get(timeout=_LOST_SECONDS if _is_silence(error) else 0.0)
    except queue.Empty:
        return None
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"
    why = "; the system does that when memory runs out, and fewer --workers need less" if code == -9 else ""
    again = "nothing is marked as finished; the same command goes on from here"
    return f"a worker process {how}{why}: {again}", BeamPrepError.exit_status


def _is_silence(error: BaseException) -> bool:
    return _CONNECTION_LOST in str(error) or type(error).__module__.startswith("grpc")


def explain(error: BaseException) -> tuple[str, int]:
    """(what a user is told, exit status)."""
    known = from_runner(error)
    if known is not None:
        return known.message, known.exit_status
    text = str(error).strip()
    found = _LAST_ERROR.findall(text)
    if found:  # another process's, or wrapped by the runner
        reason = found[-1]
    else:
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    ours = _ERROR_OF_OURS.match(reason)
    if ours:  # from a step that the runner made of a plain function
        return reason[ours.end() :], BeamPrepError.exit_status
    if not _FROM_SYSTEM.search(reason):  # no space left, no permission …
        reason += "\nthis was not foreseen: --debug shows where it comes from; please report it"
    return reason, BeamPrepError.exit_status


def debug_option(command: Any) -> Any:
    """Adds `--debug`."""

    def keep(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[DEBUG] = value or ctx.meta.get(DEBUG, False)

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=keep, help="Show tracebacks and the log of the runner."
    )(command)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C or SIGTERM once ends a command in good order, twice at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _interrupted.clear()
    _signals.clear()
    while not _workers_ended.empty():
        _workers_ended.get()

    # A runner may wait for threads that never end now.
    give_up = threading.Timer(_PATIENCE_SECONDS, _leave)
    give_up.daemon = True

    def stop(number: int, _: Any) -> None:
        _signals.append(signal.Signals(number))
        if _interrupted.is_set():
            _leave()
        _interrupted.set()
        give_up.start()
        raise KeyboardInterrupt

    def thread_failed(arguments: threading.ExceptHookArgs) -> None:
        lost = _WORKER_ENDED.search(str(arguments.exc_value))
        if lost:
            _workers_ended.put(int(lost[1]))
        # The runner's threads raise what the command raises too, or that the other end of a connection is gone.
        theirs = lost or arguments.exc_type.__module__.startswith("grpc")
        if not _interrupted.is_set() and (not theirs or os.environ.get(DEBUG_VARIABLE)):
            threading.__excepthook__(arguments)

    before = {number: signal.signal(number, stop) for number in STOPPED}
    hook = threading.excepthook
    threading.excepthook = thread_failed
    try:
        yield
    finally:
        give_up.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        if not _interrupted.is_set():
            threading.excepthook = hook


def _status() -> int:
    return STOPPED[_signals[0] if _signals else signal.SIGINT]


def is_interrupted() -> bool:
    """Whether a signal has asked this command to stop."""
    return _interrupted.is_set()


def _leave() -> None:
    """Ends the process as it is."""
    for call in before_leaving:
        call()
    sys.stdout.flush()
    print(_SAY_INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(_status())


def said_by_worker(record: logging.LogRecord) -> tuple[str, str] | None:
    """(level, text) of what a worker process says, without what its runner wraps around it; None for anything else."""
    found = _FROM_WORKER.match(record.getMessage())
    return (found[1], found[2]) if found else None


class _Handler(logging.Handler):
    """Writes to what `sys.stderr` is at that moment, which a progress display replaces."""

    def format(self, record: logging.LogRecord) -> str:
        """A line."""
        text = said_by_worker(record)
        return super().format(record) if text is None else f"{text[0]} {text[1]}"

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def set_up(ctx: click.Context) -> None:
    """What every command does first; see `set_up_logs`."""
    set_up_logs(ctx.meta.get(DEBUG, False))


def set_up_logs(debug: bool) -> None:
    """Warnings that a user can use; with `debug` everything. Call it before Beam is imported."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Handler):
            root.removeHandler(handler)
    handler = _Handler()
    root.addHandler(handler)
    os.environ[DEBUG_VARIABLE] = "1" if debug else ""
    if debug:
        root.setLevel(logging.INFO)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        return
    # gRPC's C++ side writes past Python's logging.
    for name, value in (("GRPC_VERBOSITY", "ERROR"), ("GLOG_minloglevel", "2"), ("ABSL_MIN_LOG_LEVEL", "2")):
        os.environ.setdefault(name, value)
    root.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    if _interrupted.is_set():
        return False
    # What Beam logs with a traceback it also raises, and that is what the user is told.
    message = record.getMessage()
    if record.name.startswith("apache_beam") and (record.exc_info or "Traceback (most recent call last)" in message):
        return False
    return not _NOISE.search(message)
