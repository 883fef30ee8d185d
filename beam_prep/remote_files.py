"""Files of object stores and other remote systems, through Beam's FileSystems: gs://, s3://, hdfs:// …

What goes wrong is an `OSError` of the kind that a local file would raise (no such file, not allowed), so that callers
need not know where a file is; what may pass is tried again (`retries`).
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TypeVar

from beam_prep.retries import attempt, attempt_change

T = TypeVar("T")

_MISSING, _FORBIDDEN = {404}, {401, 403}
_options: Sequence[str] | None = None


def use_options(arguments: Sequence[str]) -> None:
    """Has this process reach remote files as Beam's options say: the account to act for, an endpoint, a region …

    To be called before the first remote file is opened: credentials are looked for once a process.
    """
    global _options  # noqa: PLW0603 - read when Beam is imported, which costs seconds and most runs can do without
    _options = list(arguments)


def _file_systems() -> Any:
    global _options  # noqa: PLW0603
    from apache_beam.io.filesystems import FileSystems

    with suppress(ImportError):  # Beam may have been imported without; see `lean_beam`
        import apache_beam.io.gcp.gcsfilesystem  # noqa: F401

    if _options is not None:
        from apache_beam.options.pipeline_options import PipelineOptions

        FileSystems.set_options(PipelineOptions(_options))
        _options = None
    return FileSystems


def _uncompressed() -> dict[str, Any]:
    from apache_beam.io.filesystem import CompressionTypes

    return {"compression_type": CompressionTypes.UNCOMPRESSED}


def _as_system_error(path: str, function: Callable[[], T]) -> Callable[[], T]:
    """The same call, whose errors of a missing or forbidden file are those of the operating system."""

    def call() -> T:
        try:
            return function()
        except Exception as error:
            status = _status(error)
            if status in _MISSING:
                raise FileNotFoundError(errno.ENOENT, "no such file", path) from error
            if status in _FORBIDDEN:
                raise PermissionError(errno.EACCES, "this account may not do that", path) from error
            raise

    return call


def _status(error: object) -> int | None:
    """The HTTP status of an error, or of the one that Beam has wrapped."""
    details = getattr(error, "exception_details", None)
    if isinstance(details, dict) and len(details) == 1:
        return _status(*details.values())
    code = error if isinstance(error, int) else getattr(error, "code", None)
    return code if isinstance(code, int) else None


def match(pattern: str) -> list[tuple[str, int, float]]:
    """(path, bytes, seconds since the epoch or 0) of what a pattern matches."""
    (result,) = attempt("list", pattern, _as_system_error(pattern, lambda: _file_systems().match([pattern])))
    return [(m.path, m.size_in_bytes, m.last_updated_in_seconds or 0.0) for m in result.metadata_list]


def find(path: str) -> tuple[str, int, float] | None:
    """The same of the file of that very name, whatever characters are in it; None if there is none."""
    if not exists(path):
        return None
    look = _as_system_error(path, lambda: _file_systems().get_filesystem(path).metadata(path))
    try:
        found = attempt("look up", path, look)
    except FileNotFoundError:  # deleted meanwhile
        return None
    return found.path, found.size_in_bytes, found.last_updated_in_seconds or 0.0


def exists(path: str) -> bool:
    """Whether there is a file of that name."""
    return attempt("look up", path, _as_system_error(path, lambda: _file_systems().exists(path)))


def delete(path: str) -> None:
    """Deletes a file, or all files below a folder.

    Raises:
      BeamPrepError: it cannot be deleted.
    """
    below = f"{path.rstrip('/')}/"

    def delete_below() -> None:
        if match(f"{below}**"):
            # Many at a time, but what fails is only logged there.
            _file_systems().delete([below])
            if left := match(f"{below}**"):
                raise OSError(errno.EIO, f"{len(left)} files are still there")

    attempt_change("delete", path, delete_below)
    if exists(path):
        attempt_change("delete", path, lambda: _file_systems().delete([path]))


@contextmanager
def write(path: str) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete, as one object; what fails leaves what was there.

    Raises:
      BeamPrepError: it cannot be written.
    """
    file = attempt_change("create", path, lambda: _file_systems().create(path, **_uncompressed()))
    try:
        yield _RemoteWriter(file, path)  # type: ignore[misc]
        # What a stream has lost cannot be sent again; the step that writes it is.
        attempt_change("write", path, file.close, again=False)
    except BaseException:
        _abandon(file, path)
        raise


def _abandon(file: Any, path: str) -> None:
    """Ends a file that is not complete.

    An object that another worker wrote under the same name, with the same bytes, must stay: engines do a step twice.
    """
    if hasattr(file, "terminate"):  # of Google's library: the object never comes to be
        with suppress(Exception):
            file.terminate()
        return
    with suppress(Exception):  # closing shows what is there, which is not the file
        file.close()
    with suppress(Exception):
        _file_systems().delete([path])


class RemoteReader(io.RawIOBase):
    """A remote file that is opened again where it was, if a read fails."""

    def __init__(self, path: str):
        self._path = path
        self._file: Any = attempt("open", path, self._open)

    def _open(self) -> Any:
        return _as_system_error(self._path, lambda: _file_systems().open(self._path, **_uncompressed()))()

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        """Up to `size` bytes."""
        position = self._file.tell()
        return attempt(
            "read",
            self._path,
            _as_system_error(self._path, lambda: self._file.read(-1 if size is None else size)),
            before_next=lambda: self._reopen(position),
        )

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer from the beginning; returns how many bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _reopen(self, position: int) -> None:
        with suppress(Exception):  # then the next read fails again
            self._file.close()
        with suppress(Exception):
            self._file = self._open()
            self._file.seek(position)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As everywhere."""
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        """As everywhere."""
        return self._file.tell()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """As the file system says."""
        return self._file.seekable()

    def close(self) -> None:
        """Closes the remote file too."""
        if not self.closed:
            with suppress(Exception):  # nothing was written
                self._file.close()
        super().close()


class _RemoteWriter(io.RawIOBase):
    """A remote file whose errors name it."""

    def __init__(self, file: Any, path: str):
        self._file, self._path = file, path

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Writes all of `data`."""
        attempt_change("write", self._path, lambda: self._file.write(data), again=False)
        return len(data)
