"""Retries: calls to a file system that fail for a passing reason are made again, with growing pauses."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from beam_prep.errors import BeamPrepError

ATTEMPTS = 8
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 15.0
"""Pauses are random, up to twice as long each time, so that many workers do not come back at once."""
PASSING = {
    *(errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENOLCK, errno.EPIPE, errno.EPROTO),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.ENOBUFS, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
    *(getattr(errno, name, errno.EIO) for name in ("EHOSTDOWN", "EREMOTEIO", "ESHUTDOWN")),  # not everywhere
}
"""Kinds of system errors that network file systems and weary disks recover from."""
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_REMEDY = "run the same command again: it goes on from here"
_MAKE_ROOM = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}

T = TypeVar("T")


def is_passing(error: BaseException) -> bool:
    """Whether the call may succeed if it is made again."""
    details = getattr(error, "exception_details", None)  # Beam's, of a call for several files
    if isinstance(details, dict) and details:
        return all(_is_passing_detail(detail) for detail in details.values())
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in PASSING
    if isinstance(error, (TimeoutError, ConnectionError)) or _is_lost_connection(error):
        return True
    cause = getattr(error, "cause", None)  # Google's, of a call that it has made again until it gave up
    if isinstance(cause, BaseException):
        return is_passing(cause)
    if getattr(error, "retryable", False) is True:  # Google's, of credentials
        return True
    return _is_passing_detail(getattr(error, "code", None))  # Google's and others' HTTP errors


def _is_passing_detail(detail: object) -> bool:
    return is_passing(detail) if isinstance(detail, BaseException) else detail in _PASSING_STATUS


def _is_lost_connection(error: BaseException) -> bool:
    """Whether it is of the HTTP library's own kinds, which are not the system's. Not imported, it has raised none."""
    library = sys.modules.get("requests.exceptions")
    kinds = ("ConnectionError", "Timeout", "ChunkedEncodingError", "ContentDecodingError")
    return library is not None and isinstance(error, tuple(getattr(library, kind) for kind in kinds))


def attempt(call: str, path: str, function: Callable[[], T], before_next: Callable[[], None] | None = None) -> T:
    """Calls `function`, several times if need be; an error that will not pass is the caller's.

    Args:
      call: what it does, as in "cannot `call`".
      before_next: done before each further attempt.

    Raises:
      BeamPrepError: it kept failing for a reason that could have passed; names path and call.
    """
    try:
        return perform(call, path, function)
    except Exception as error:
        if not is_passing(error):
            raise
        return _again(call, path, function, before_next, error)


def _again(
    call: str, path: str, function: Callable[[], T], before_next: Callable[[], None] | None, failed: Exception
) -> T:
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential  # costs 0.3 s

    first: list[Exception] = [failed]

    def once() -> T:
        if first:
            raise first.pop()
        if before_next is not None:
            before_next()
        return perform(call, path, function)

    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        retry=retry_if_exception(is_passing),
        reraise=True,
    )
    try:
        return retrying(once)
    except Exception as error:
        if not is_passing(error):
            raise
        raise BeamPrepError(
            f"{path}: cannot {call}: tried {ATTEMPTS} times, {_reason(error)}; look after the disk or the network, "
            f"then {_REMEDY}"
        ) from error


def attempt_change(call: str, path: str, function: Callable[[], T], again: bool = True) -> T:
    """The same for calls that change something: whatever goes wrong is told.

    Args:
      again: whether the call can be made again.

    Raises:
      BeamPrepError: it failed; names path and call.
    """
    try:
        return attempt(call, path, function) if again else perform(call, path, function)
    except BeamPrepError:
        raise
    except Exception as error:  # remote file systems raise kinds of their own
        if getattr(error, "errno", None) in _MAKE_ROOM:
            remedy = f"make room there, then {_REMEDY}"
        elif getattr(error, "errno", None) in _FORBIDDEN:
            remedy = f"make it writable, then {_REMEDY}"
        else:
            remedy = _REMEDY
        raise BeamPrepError(f"{path}: cannot {call}: {_reason(error)}; {remedy}") from error


def perform(call: str, path: str, function: Callable[[], T]) -> T:
    """Makes a call. All of the project's reach the file system through here."""
    return function()


def _reason(error: Any) -> str:
    text = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
    return str(text)
