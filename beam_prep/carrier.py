"""The shuffle's one contract: steps exchange payloads, which are bytes or a place in a file.

* Engine carrier: payloads are bytes and travel through the engine's own shuffle. Any number of machines.
* File carrier: payloads are written below a work folder that all workers of one machine share, and only references
  travel through the runner. Memory stays bounded, several processes share the work, and a killed run can go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from beam_prep import storage


class FileSlice(NamedTuple):
    """Bytes [offset, offset + size) of a file."""

    path: str
    offset: int
    size: int


Payload = bytes | FileSlice

_CHUNK_BYTES = 4 << 20


class Carrier(NamedTuple):
    """Where payloads go. `work` is the shared folder of the file carrier, None for the engine's shuffle."""

    work: str | None

    @property
    def is_files(self) -> bool:
        """Whether payloads are kept in files."""
        return self.work is not None

    def put(self, name: str, parts: Iterable[bytes]) -> Payload:
        """Keeps a payload. `name` must follow from the content's origin alone, so that a retry writes the same file."""
        if self.work is None:
            return b"".join(parts)
        path = os.path.join(self.work, name)
        size = 0
        with storage.write_atomic(path, durable=False) as file:
            for part in parts:
                file.write(part)
                size += len(part)
        return FileSlice(path, 0, size)


def load(payload: Payload) -> bytes:
    """The bytes of a payload."""
    if isinstance(payload, bytes):
        return payload
    return storage.read_range(payload.path, payload.offset, payload.size)


def chunks(payload: Payload) -> Iterator[bytes]:
    """The bytes of a payload, a few MiB at a time."""
    if isinstance(payload, bytes):
        yield payload
        return
    for begin in range(0, payload.size, _CHUNK_BYTES):
        yield load(part(payload, begin, min(_CHUNK_BYTES, payload.size - begin)))


def release(pieces: FileSlice, offset: int, size: int) -> None:
    """Gives the disk and page cache of a part that nobody will read again back, where the system can (Linux).

    The spilled tokens and the finished shards then never stand side by side on the disk, and the shards are written
    into memory that was just freed, which costs a virtual machine far less than fresh memory.
    """
    if _fallocate is None or size <= 0:
        return
    with contextlib.suppress(OSError), open(pieces.path, "r+b", buffering=0) as file:
        _fallocate(
            file.fileno(), _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(pieces.offset + offset), ctypes.c_int64(size)
        )


def _find_fallocate():
    try:
        return ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError, TypeError):
        return None


_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_fallocate = _find_fallocate()


def part(payload: Payload, offset: int, size: int) -> Payload:
    """A part of a payload."""
    if isinstance(payload, bytes):
        return payload[offset : offset + size]
    return FileSlice(payload.path, payload.offset + offset, size)


def length(payload: Payload) -> int:
    """Bytes of a payload."""
    return len(payload) if isinstance(payload, bytes) else payload.size
