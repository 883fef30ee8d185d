"""Files anywhere: local paths by the operating system, everything else through Beam's FileSystems."""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from beam_prep.errors import BeamPrepError

TEMPORARY = ".tmp"
"""Ending of files that are being written; see `write_atomic`."""


class Found(NamedTuple):
    """A file that a pattern matched."""

    path: str
    size: int
    """Bytes, as stored."""
    modified: float
    """Seconds since the epoch; 0 where the file system does not tell."""


def is_local(path: str) -> bool:
    """Whether the operating system opens `path`."""
    return "://" not in path


def join(base: str, *parts: str) -> str:
    """A path below `base`."""
    return "/".join([base.rstrip("/") or "/", *parts])


def _file_systems():
    from apache_beam.io.filesystems import FileSystems  # costs seconds to import

    return FileSystems


def match(pattern: str) -> list[Found]:
    """The files that match a glob pattern, sorted by path; an empty list if there are none."""
    if is_local(pattern) and os.path.isfile(pattern):  # a name that holds glob characters is itself first
        stat = os.stat(pattern)
        return [Found(pattern, stat.st_size, stat.st_mtime)]
    (result,) = _file_systems().match([pattern])
    found = [Found(m.path, m.size_in_bytes, m.last_updated_in_seconds or 0.0) for m in result.metadata_list]
    if is_local(pattern):
        found = [f for f in found if os.path.isfile(f.path)]
    return sorted(found)


def open_read(path: str) -> BinaryIO:
    """The bytes of a file as they are stored (never decompressed)."""
    if is_local(path):
        return open(path, "rb", buffering=0)
    from apache_beam.io.filesystem import CompressionTypes

    return _file_systems().open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_bytes(path: str) -> bytes:
    """A whole file."""
    with open_read(path) as file:
        parts = []
        while part := file.read(1 << 20):
            parts.append(part)
    return b"".join(parts)


def exists(path: str) -> bool:
    """Whether there is a file (or local folder) of that name."""
    if is_local(path):
        return os.path.exists(path)
    return _file_systems().exists(path)


def size(path: str) -> int | None:
    """Bytes of a file, or None if there is none."""
    if is_local(path):
        return os.stat(path).st_size if os.path.isfile(path) else None
    if not _file_systems().exists(path):
        return None
    return next(found.size for found in match(path))


@contextmanager
def write_atomic(path: str, durable: bool = True) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete, whoever else writes the same one.

    Locally: a temporary name beside it, fsync (if `durable`), rename. An object store shows an object on close.
    """
    if not is_local(path):
        from apache_beam.io.filesystem import CompressionTypes

        with _file_systems().create(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


_WINDOW_BYTES = 16 << 20


def write_through(file: BinaryIO, chunks: Iterable[bytes]) -> None:
    """Writes chunks so that they reach the disk while the next ones are made, and do not stay in the page cache.

    Finished shards must be durable anyway and are not read again here; the few pages that they pass through are used
    again and again, where a virtual machine would pay for every fresh one.
    """
    descriptor = file.fileno() if isinstance(file, io.BufferedWriter) else -1
    done = written = 0
    for chunk in chunks:
        file.write(chunk)
        written += len(chunk)
        if descriptor >= 0 and written - done >= _WINDOW_BYTES and hasattr(os, "posix_fadvise"):
            file.flush()
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, done, written - done, os.POSIX_FADV_DONTNEED)
            done = written


def write_bytes(path: str, parts: Iterable[bytes]) -> None:
    """Writes a whole file; see `write_atomic`."""
    with write_atomic(path) as file:
        for part in parts:
            file.write(part)


def list_files(folder: str) -> list[Found]:
    """Every file below a folder, sorted by path; paths begin with `folder`."""
    if not is_local(folder):
        return match(join(folder, "**"))
    found = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            stat = os.stat(path)
            found.append(Found(path, stat.st_size, stat.st_mtime))
    return sorted(found)


def delete(path: str) -> None:
    """Deletes a file or a folder with all that is in it; nothing happens if there is none."""
    if is_local(path):
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.unlink(path)
        return
    found = [f.path for f in list_files(path)] or ([path] if exists(path) else [])
    if found:
        _file_systems().delete(found)


def require_writable(folder: str) -> None:
    """Checks early that an output can be written.

    Raises:
      BeamPrepError: it cannot.
    """
    if not is_local(folder):
        return
    try:
        os.makedirs(folder, exist_ok=True)
        probe = os.path.join(folder, f".probe-{uuid.uuid4().hex[:8]}")
        with open(probe, "wb"):
            pass
        os.unlink(probe)
    except OSError as error:
        raise BeamPrepError(f"output {folder}: cannot be written ({error.strerror}); choose another --output") from None
