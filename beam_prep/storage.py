"""Files anywhere: local paths by the operating system, everything else through Beam's FileSystems (`remote_files`).

Calls that fail for a passing reason are tried again (`retries`); what is left is a clear error that names the path. A
file that is missing, or may not be read, is the caller's to explain: that stays an `OSError`.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from stat import S_ISREG
from typing import Any, BinaryIO, NamedTuple

from beam_prep import remote_files
from beam_prep.errors import BeamPrepError
from beam_prep.local_match import local_match, why_no_file
from beam_prep.retries import attempt, attempt_change

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


def match(pattern: str) -> list[Found]:
    """The files that match a glob pattern, sorted by path; an empty list if there are none.

    Raises:
      BeamPrepError: something matches that is no file, such as a pipe or a link to nothing; folders are left out.
    """
    if is_local(pattern):
        itself = find(pattern)
        if itself is not None:  # a name that holds glob characters is itself first
            return [itself]
        return [_regular(path) for path in attempt("list", pattern, lambda: local_match(pattern))]
    itself = remote_files.find(pattern) if any(character in pattern for character in "*?[") else None
    return sorted(Found(*found) for found in ([itself] if itself else remote_files.match(pattern)))


def _regular(path: str) -> Found:
    found = find(path)
    if found is None:
        reason = why_no_file(path) or "is gone"
        raise BeamPrepError(f"{path}: {reason}; take it away, mend it, or choose a pattern that does not match it")
    return found


def find(path: str) -> Found | None:
    """The file of that name, or None if there is none."""
    if is_local(path):
        stat = _stat(path)
        return None if stat is None or not S_ISREG(stat.st_mode) else Found(path, stat.st_size, stat.st_mtime)
    found = remote_files.find(path)
    return None if found is None else Found(*found)


def open_read(path: str) -> BinaryIO:
    """The bytes of a file as they are stored (never decompressed). A read that fails goes on where it was."""
    return _LocalReader(path) if is_local(path) else remote_files.RemoteReader(path)  # type: ignore[return-value]


def read_bytes(path: str) -> bytes:
    """A whole file."""
    with open_read(path) as file:
        parts = []
        while part := file.read(1 << 20):
            parts.append(part)
    return b"".join(parts)


def read_range(path: str, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of a file.

    Raises:
      OSError: the file is shorter.
    """
    with open_read(path) as file:
        file.seek(offset)
        data = file.read(size)
        while len(data) < size:  # one read returns at most 2 GiB
            more = file.read(size - len(data))
            if not more:
                raise OSError(f"{path}: ends before byte {offset + size}")
            data += more
    return data


def exists(path: str) -> bool:
    """Whether there is a file (or local folder) of that name."""
    if is_local(path):
        return _stat(path) is not None
    return remote_files.exists(path)


def size(path: str) -> int | None:
    """Bytes of a file, or None if there is none."""
    found = find(path)
    return None if found is None else found.size


def _stat(path: str) -> os.stat_result | None:
    try:
        return attempt("look up", path, lambda: os.stat(path))
    except ValueError:  # a NUL in it
        return None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise


@contextmanager
def write_atomic(path: str, durable: bool = True) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete, whoever else writes the same one.

    Locally: a temporary name beside it, fsync (if `durable`), rename. An object store shows an object on close.

    Raises:
      BeamPrepError: it cannot be written; names it, and says why.
    """
    if not is_local(path):
        with remote_files.write(path) as file:
            yield file
        return
    make_folder(os.path.dirname(path) or ".")
    temporary = f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
    try:
        raw = attempt_change("create", path, lambda: _LocalWriter(temporary, path))
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            if durable:
                # A page that could not be written is not kept for another try, so that there is none.
                attempt_change("write to the disk", path, lambda: os.fsync(raw.fileno()), again=False)
        attempt_change("rename", path, lambda: os.replace(temporary, path))
        if durable:
            sync_folder(os.path.dirname(path) or ".")
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def sync_file(path: str) -> None:
    """Forces a local file's content to the disk."""
    with open(path, "rb") as file:
        attempt_change("write to the disk", path, lambda: os.fsync(file.fileno()), again=False)


def sync_folder(folder: str) -> None:
    """Has a new name reach the disk before the names that are written after it, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _LocalReader(io.FileIO):
    """A file that is opened again where it was, if a read fails."""

    def __init__(self, path: str):
        self._path = path
        attempt("open", path, lambda: io.FileIO.__init__(self, path, "rb"))

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        return self._again(lambda: io.FileIO.read(self, -1 if size is None else size))

    def readinto(self, buffer: Any) -> int:
        return self._again(lambda: io.FileIO.readinto(self, buffer))

    def _again(self, read: Any) -> Any:
        position = self.tell()
        return attempt("read", self._path, read, before_next=lambda: self._reopen(position))

    def _reopen(self, position: int) -> None:
        with suppress(OSError):  # then the next read fails again
            descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            os.lseek(descriptor, position, os.SEEK_SET)
            os.dup2(descriptor, self.fileno(), inheritable=False)
            os.close(descriptor)


class _LocalWriter(io.FileIO):
    """A file whose errors name the path that it will have."""

    def __init__(self, temporary: str, path: str):
        super().__init__(temporary, "wb")
        self._path = path

    def write(self, data: Any) -> int:
        return attempt_change("write", self._path, lambda: io.FileIO.write(self, data))


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
            attempt_change("write to the disk", str(file.name), lambda: os.fdatasync(descriptor), again=False)
            os.posix_fadvise(descriptor, done, written - done, os.POSIX_FADV_DONTNEED)
            done = written


def write_bytes(path: str, parts: Iterable[bytes]) -> None:
    """Writes a whole file; see `write_atomic`."""
    with write_atomic(path) as file:
        for part in parts:
            file.write(part)


def write_small(path: str, data: bytes) -> None:
    """Writes a whole file that is at hand; on a remote file system anew if its stream fails for a passing reason."""
    if is_local(path):
        write_bytes(path, [data])
        return

    def once() -> None:
        try:
            write_bytes(path, [data])
        except BeamPrepError as error:
            raise error.__cause__ or error from None

    attempt_change("write", path, once)


def make_folder(path: str) -> None:
    """Makes a local folder and those above it, where they are missing.

    Raises:
      BeamPrepError: it cannot be made.
    """
    attempt_change("make the folder", path, lambda: os.makedirs(path, exist_ok=True))


def sizes(folder: str, paths: Iterable[str]) -> dict[str, int | None]:
    """Bytes of files below a folder, None where there is none. One listing where each look is a request."""
    if is_local(folder):
        return {path: size(join(folder, path)) for path in paths}
    found = {file.path: file.size for file in list_files(folder)}
    return {path: found.get(join(folder, path)) for path in paths}


def list_files(folder: str) -> list[Found]:
    """Every file below a folder, sorted by path; paths begin with `folder`."""
    if not is_local(folder):
        return sorted(Found(*found) for found in remote_files.match(join(folder, "**")))
    return attempt("list", folder, lambda: sorted(_walk(folder)))


def _walk(folder: str) -> Iterator[Found]:
    def failed(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error

    for base, _, names in os.walk(folder, onerror=failed):
        for name in names:
            path = os.path.join(base, name)
            with suppress(FileNotFoundError):  # deleted meanwhile, or a link to nowhere
                stat = os.stat(path)
                yield Found(path, stat.st_size, stat.st_mtime)


def delete(path: str) -> None:
    """Deletes a file or a folder with all that is in it; nothing happens if there is none.

    Raises:
      BeamPrepError: it cannot be deleted.
    """
    if is_local(path):
        attempt_change("delete", path, lambda: _delete_local(path))
        return
    remote_files.delete(path)


def _delete_local(path: str) -> None:
    with suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def require_temporary_folder() -> None:
    """Checks that the system's folder for temporary files can be used, which runners do.

    Raises:
      BeamPrepError: it cannot.
    """
    try:
        os.rmdir(tempfile.mkdtemp(prefix="beam-prep-"))
    except OSError as error:
        where = f"{os.path.dirname(error.filename)}: " if error.filename else ""
        raise BeamPrepError(
            f"{where}no temporary folder can be used ({error.strerror or error}); set TMPDIR to one that can be written"
        ) from None


def require_writable(folder: str) -> None:
    """Checks early that an output can be written.

    Raises:
      BeamPrepError: it cannot.
    """
    if not is_local(folder):
        return
    probe = os.path.join(folder, f".probe-{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        attempt("make the folder", folder, lambda: os.makedirs(folder, exist_ok=True))
        attempt("create", probe, lambda: open(probe, "wb").close())
        attempt("delete", probe, lambda: os.unlink(probe))
    except OSError as error:
        raise BeamPrepError(f"output {folder}: cannot be written ({error.strerror}); choose another --output") from None
    finally:
        with suppress(OSError):
            os.unlink(probe)
