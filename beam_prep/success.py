"""`_SUCCESS`: which manifest is that of a finished output."""

from __future__ import annotations

import hashlib


def success_mark(fingerprint: str, manifest: bytes) -> bytes:
    """What `_SUCCESS` holds: the run's fingerprint, and the sha256 of the manifest's bytes, a line each.

    While an increment is published it holds two of these, for the manifest before and the one after.
    """
    return f"{fingerprint}\n{hashlib.sha256(manifest).hexdigest()}\n".encode()


def answers_for(mark: bytes, fingerprint: str) -> bool:
    """Whether a `_SUCCESS` names the fingerprint of a manifest."""
    return fingerprint.encode() in mark.split(b"\n")[0:4:2]
