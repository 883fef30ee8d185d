"""File systems whose calls fail: `faulty://` for Beam's FileSystems, and the calls that the project makes itself.

Both count the calls that pass through, and have one fail, once or for good.
"""

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem

from beam_prep import retries

SCHEME = "faulty://"


class Faults:
    """Which calls fail. `calls` lists those that were made: (call, path)."""

    def __init__(self, code: int = errno.EIO, first: int = -1, times: int = 1):
        self.code, self.first, self.times = code, first, times
        self.calls: list[tuple[str, str]] = []

    def pass_through(self, call: str, path: str) -> None:
        """Counts a call.

        Raises:
          OSError: it is one that fails.
        """
        number = len(self.calls)
        self.calls.append((call, path))
        if 0 <= self.first <= number < self.first + self.times:
            raise OSError(self.code, os.strerror(self.code))


@contextmanager
def faulty_calls(faults: Faults) -> Iterator[Faults]:
    """Has the project's own calls of the operating system fail."""

    def perform(call: str, path: str, function: Callable[[], Any]) -> Any:
        faults.pass_through(call, path)
        return function()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retries, "perform", perform)
        yield faults


@contextmanager
def faulty_file_system(faults: Faults) -> Iterator[Faults]:
    """Has calls of `faulty://` fail."""
    FaultyFileSystem.faults = faults
    yield faults
    FaultyFileSystem.faults = Faults()


class _File(io.RawIOBase):
    """An open file of `faulty://`; what is written shows when it is closed, as with an object store."""

    def __init__(self, path: str, mode: str):
        self._path, self._mode = path, mode
        self._file: Any = open(path, "rb") if mode == "rb" else io.BytesIO()  # noqa: SIM115

    def readable(self) -> bool:
        return self._mode == "rb"

    def writable(self) -> bool:
        return self._mode == "wb"

    def seekable(self) -> bool:
        return self._mode == "rb"

    def read(self, size: int = -1) -> bytes:
        FaultyFileSystem.faults.pass_through("read", self._path)
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        FaultyFileSystem.faults.pass_through("write", self._path)
        return self._file.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if self.closed:
            return
        if self._mode == "wb":
            FaultyFileSystem.faults.pass_through("close", self._path)
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with open(self._path, "wb") as file:
                file.write(self._file.getvalue())
        super().close()


class FaultyFileSystem(FileSystem):
    """`faulty://` and a local path: that file."""

    faults = Faults()

    @classmethod
    def scheme(cls) -> str:
        return "faulty"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        os.makedirs(_local(path))

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        self.faults.pass_through("list", dir_or_prefix)
        prefix = _local(dir_or_prefix)
        for base, _, names in os.walk(os.path.dirname(prefix)):
            for name in names:
                path = os.path.join(base, name)
                if path.startswith(prefix):
                    yield FileMetadata(SCHEME + path, os.path.getsize(path), os.path.getmtime(path))

    def create(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> Any:
        self.faults.pass_through("create", path)
        return _File(_local(path), "wb")

    def open(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> Any:
        self.faults.pass_through("open", path)
        return _File(_local(path), "rb")

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise NotImplementedError

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise NotImplementedError

    def exists(self, path: str) -> bool:
        self.faults.pass_through("look up", path)
        return os.path.exists(_local(path))

    def size(self, path: str) -> int:
        return os.path.getsize(_local(path))

    def last_updated(self, path: str) -> float:
        return os.path.getmtime(_local(path))

    def checksum(self, path: str) -> str:
        raise NotImplementedError

    def metadata(self, path: str) -> FileMetadata:
        self.faults.pass_through("look up", path)
        stat = os.stat(_local(path))
        return FileMetadata(path, stat.st_size, stat.st_mtime)

    def delete(self, paths: list[str]) -> None:
        self.faults.pass_through("delete", paths[0])
        for path in paths:
            if os.path.isdir(_local(path)):
                shutil.rmtree(_local(path))
            elif os.path.exists(_local(path)):
                os.unlink(_local(path))


def _local(path: str) -> str:
    return path.removeprefix(SCHEME)
