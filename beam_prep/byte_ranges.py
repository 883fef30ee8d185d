"""Byte ranges of files, read at a position that no process, thread or open file shares with another.

Local files are read with `preadv`. Measured against a memory map on rows of 16 and 128 KiB (`benchmarks/reader.py`), it
is no slower from the page cache and about twice as fast from the disk, because it asks for the row at once, not for the
pages around each fault. A map would also keep a file descriptor open (Python's duplicates it), and end the process with
a signal where a file has been cut short or a disk fails; here that is an error to catch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from os import preadv
from typing import Any

import numpy as np

from beam_prep import storage
from beam_prep.errors import SEE_VERIFY, BeamPrepError


class _Descriptor:
    """An open file, closed when nothing refers to it any more; so not below a thread that still reads from it."""

    __slots__ = ("number",)

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        number = getattr(self, "number", None)
        if number is not None:
            close(number)


def default_open_files() -> int:
    """Files to keep open: an eighth of what the process may have open, at least 16 and at most 1,024."""
    try:
        import resource
    except ImportError:
        return 64
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1024 if limit == resource.RLIM_INFINITY else max(16, min(1024, limit // 8))


class RangeReader:
    """Reads ranges of files whose sizes are known, and keeps a bounded number of local files open.

    Any number of threads may use one reader, and a forked process may go on with the one it inherited. Pickled, it
    leaves its open files behind. There is no lock, which a fork could leave locked: what threads share is a dict, whose
    single operations are atomic.

    Args:
      files: path and bytes of each.
      open_files: how many may be open at a time.
    """

    def __init__(self, files: Sequence[tuple[str, int]], open_files: int | None = None):
        self._files = files
        self._limit = default_open_files() if open_files is None else max(1, open_files)
        self._open: dict[int, _Descriptor] = {}

    def __getstate__(self) -> tuple[Sequence[tuple[str, int]], int]:
        return self._files, self._limit

    def __setstate__(self, state: tuple[Sequence[tuple[str, int]], int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def open_files(self) -> int:
        """Files open now."""
        return len(self._open)

    def read_into(self, number: int, offset: int, out: np.ndarray, count: int) -> None:
        """Fills `out` (C-contiguous, of `count` bytes) with the bytes of file `number` from `offset` on.

        Raises:
          BeamPrepError: the file is missing, of another size, or ends early.
        """
        file = self._open.get(number)
        if file is None:
            path, size = self._files[number]
            if not storage.is_local(path):
                _read_remote(path, offset, out)
                return
            file = self._open_file(number, path, size)
        done = preadv(file.number, (out,), offset)
        if done != count:
            self._read_rest(file, number, offset, out, done)

    def _open_file(self, number: int, path: str, size: int) -> _Descriptor:
        try:
            file = _Descriptor(path)
        except OSError as error:
            raise BeamPrepError(f"{path}: cannot be opened ({error.strerror}); {SEE_VERIFY}") from None
        found = os.fstat(file.number).st_size
        if found != size:
            raise BeamPrepError(f"{path}: has {found:,} bytes, the manifest says {size:,}; {SEE_VERIFY}")
        self._open[number] = file
        # The one opened first goes first: where the order is random, the one used last is no better a guess.
        while len(self._open) > self._limit:
            try:
                self._open.pop(next(iter(self._open)), None)
            except (RuntimeError, StopIteration):  # another thread was about the same
                break
        return file

    def _read_rest(self, file: _Descriptor, number: int, offset: int, out: np.ndarray, done: int) -> None:
        """Goes on where a call gave less than asked: 2 GiB are the most that Linux gives at once."""
        left = memoryview(out.reshape(-1).view(np.uint8))[done:]
        while left:
            count = preadv(file.number, (left,), offset + out.nbytes - len(left))
            if not count:
                raise BeamPrepError(f"{self._files[number][0]}: ends before byte {offset + out.nbytes:,}; {SEE_VERIFY}")
            left = left[count:]


def read_file(path: str) -> bytes | None:
    """A whole small file, or None if there is none."""
    if path.startswith("gs://"):
        return _read_gcs(path, 0, None)
    try:
        return storage.read_bytes(path) if storage.exists(path) else None
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_remote(path: str, offset: int, out: np.ndarray) -> None:
    """Fills `out` with a range of an object."""
    if path.startswith("gs://"):
        data = _read_gcs(path, offset, out.nbytes)
    else:
        data = _read_by_beam(path, offset, out.nbytes)
    if data is None:
        raise BeamPrepError(f"{path}: is missing; {SEE_VERIFY}")
    if len(data) != out.nbytes:
        raise BeamPrepError(f"{path}: ends before byte {offset + out.nbytes:,}; {SEE_VERIFY}")
    out.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)


def _read_by_beam(path: str, offset: int, count: int) -> bytes | None:
    # A file opened for this read alone: handles of Beam's file systems have one position and are not for two threads.
    if not storage.exists(path):
        return None
    with storage.open_read(path) as file:
        file.seek(offset)
        parts = []
        while count and (part := file.read(count)):
            parts.append(part)
            count -= len(part)
    return b"".join(parts)


_client: tuple[int, Any] | None = None


def _read_gcs(path: str, offset: int, count: int | None) -> bytes | None:
    """A range of an object by one request; None if there is no such object.

    Not through Beam, whose reader fetches 16 MiB for any range, and whose import costs every worker seconds.
    """
    from google.api_core.exceptions import Forbidden, NotFound, RequestRangeNotSatisfiable, Unauthorized

    end = None if count is None else offset + count - 1
    try:
        blob = _blob(path)
        return blob.download_as_bytes(start=offset or None, end=end, raw_download=True, checksum=None)
    except NotFound:
        return None
    except (Forbidden, Unauthorized) as error:
        raise BeamPrepError(f"{path}: this account may not read it ({error.code}); give it the right to") from error
    except RequestRangeNotSatisfiable:
        return b""


def create_object(path: str, data: bytes) -> bool:
    """Writes an object of gs:// if there is none of that name; False if there is. Nothing can come in between."""
    from google.api_core.exceptions import PreconditionFailed

    try:
        _blob(path).upload_from_string(data, if_generation_match=0)
    except PreconditionFailed:
        return False
    return True


def _blob(path: str) -> Any:
    global _client  # noqa: PLW0603 - one connection pool a process, not one a dataset
    from google.cloud import storage as gcs

    if _client is None or _client[0] != os.getpid():  # connections do not survive a fork
        _client = os.getpid(), gcs.Client(project=None)
    bucket, _, name = path[len("gs://") :].partition("/")
    return _client[1].bucket(bucket).blob(name)
