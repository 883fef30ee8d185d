"""The shuffle's one contract: steps exchange payloads, which are bytes, compressed bytes or a place in a file.

* Engine carrier: payloads are bytes and travel through the engine's own shuffle. Any number of machines. Tokens are
  compressed for the way (zstd, level 1): twice through the shuffle with 4 bytes each, they are all that matters there.
* File carrier: payloads are written below a work folder that all workers of one machine share, and only references
  travel through the runner. Memory stays bounded, several processes share the work, and a killed run can go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import zstandard

from beam_prep import storage


class FileSlice(NamedTuple):
    """Bytes [offset, offset + size) of a file."""

    path: str
    offset: int
    size: int


class Compressed(NamedTuple):
    """Bytes that are compressed for the engine's shuffle."""

    data: bytes
    size: int
    """Of the bytes as they are loaded."""


Payload = bytes | Compressed | FileSlice

_CHUNK_BYTES = 4 << 20
_LEVEL = 1
_local = threading.local()
"""Compressors belong to a thread."""


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

    def put_tokens(self, name: str, parts: Iterable[bytes]) -> Payload:
        """Like `put`, compressed for the engine's shuffle."""
        payload = self.put(name, parts)
        return compress(payload) if isinstance(payload, bytes) else payload


def compress(data: bytes) -> Compressed:
    """Compresses bytes for the shuffle."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(_LEVEL)
    return Compressed(_local.compressor.compress(data), len(data))


def _decompress(compressed: Compressed) -> bytes:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return _local.decompressor.decompress(compressed.data, max_output_size=compressed.size)


def load(payload: Payload) -> bytes:
    """The bytes of a payload."""
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, Compressed):
        return _decompress(payload)
    return storage.read_range(payload.path, payload.offset, payload.size)


def chunks(payload: Payload) -> Iterator[bytes]:
    """The bytes of a payload, a few MiB at a time."""
    if not isinstance(payload, FileSlice):
        yield load(payload)
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
    if not isinstance(payload, FileSlice):
        return load(payload)[offset : offset + size]
    return FileSlice(payload.path, payload.offset + offset, size)


def length(payload: Payload) -> int:
    """Bytes of a payload."""
    return len(payload) if isinstance(payload, bytes) else payload.size


def carried(*payloads: Payload) -> int:
    """Bytes that travel through the engine's shuffle, references not counted."""
    return sum(len(p.data) if isinstance(p, Compressed) else len(p) for p in payloads if not isinstance(p, FileSlice))
