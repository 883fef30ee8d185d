"""Errors that a user can cause and mend: one line what is wrong and where, one line what to do."""

from __future__ import annotations

import base64
import json
import re

# An exception that crosses a runner arrives as text inside somebody else's traceback, so the message
# travels in a form that can be found again in any text.
_MARK = re.compile(r"\[beam-prep-error:([A-Za-z0-9+/=]+)\]")


SEE_VERIFY = "`beam-prep verify` says what is off"
"""What to do when a file of an output is not as its run left it."""


class BeamPrepError(Exception):
    """A failed run (exit status 1): the message says what happened, where, and what to do."""

    exit_status = 1

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self):
        return (type(self), (self.message,))


class ConfigError(BeamPrepError):
    """A wrong call or configuration (exit status 2)."""

    exit_status = 2


def for_runner(error: BeamPrepError) -> RuntimeError:
    """Wraps a user error so that `from_runner` finds it again in whatever a runner makes of it."""
    payload = json.dumps({"status": error.exit_status, "message": error.message})
    return RuntimeError(f"{error.message} [beam-prep-error:{base64.b64encode(payload.encode()).decode()}]")


def from_runner(error: BaseException) -> BeamPrepError | None:
    """The user error inside a runner's exception, or None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BeamPrepError):
            return seen
        found = _MARK.search(str(seen))
        if found:
            payload = json.loads(base64.b64decode(found.group(1)))
            kind = ConfigError if payload["status"] == 2 else BeamPrepError
            return kind(payload["message"])
        seen = seen.__cause__ or seen.__context__
    return None
