"""What every command does around its work: errors in one line, Ctrl-C, and logs that are worth reading."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from beam_prep.errors import BeamPrepError, from_runner
from beam_prep.worker import DEBUG_VARIABLE

DEBUG = "beam_prep.debug"
INTERRUPTED = 130
_SAY_INTERRUPTED = "interrupted: nothing is marked as finished; the same command goes on from here"
_PATIENCE_SECONDS = 1.5
_NOISE = re.compile(
    "No semi_persistent_directory|Converting string literal type hint|Creating state cache|Discarding unparseable args"
    "|Make sure that locally built Python SDK|could not be downloaded|is not a valid timestamp combiner"
)
_LAST_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Exit)\b.*)$", re.M)
_FROM_SYSTEM = re.compile(r"\[Errno \d+\]")
_FROM_WORKER = re.compile(r'^Worker: severity: (\w+).*? message: "((?:[^"\\]|\\.)*)"', re.S)
_interrupted = threading.Event()


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
                ctx.exit(INTERRUPTED)
            if isinstance(error, SystemExit):
                raise
            message, status = explain(error)
            click.echo(f"error: {message}", err=True)
            ctx.exit(status)


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
    """Ctrl-C once ends a command in good order, twice at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _interrupted.clear()

    # A runner may wait for threads that never end now.
    give_up = threading.Timer(_PATIENCE_SECONDS, _leave)
    give_up.daemon = True

    def stop(*_: Any) -> None:
        if _interrupted.is_set():
            _leave()
        _interrupted.set()
        give_up.start()
        raise KeyboardInterrupt

    def thread_failed(arguments: threading.ExceptHookArgs) -> None:
        if not _interrupted.is_set():
            threading.__excepthook__(arguments)

    before, hook = signal.signal(signal.SIGINT, stop), threading.excepthook
    threading.excepthook = thread_failed
    try:
        yield
    finally:
        give_up.cancel()
        signal.signal(signal.SIGINT, before)
        if not _interrupted.is_set():
            threading.excepthook = hook


def _leave() -> None:
    """Ends the process as it is."""
    sys.stdout.flush()
    print(_SAY_INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


class _Handler(logging.Handler):
    """Writes to what `sys.stderr` is at that moment, which a progress display replaces."""

    def format(self, record: logging.LogRecord) -> str:
        """A line; what a worker process says without what its runner wraps around it."""
        found = _FROM_WORKER.match(record.getMessage())
        return f"{found[1]} {found[2]}" if found else super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


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
