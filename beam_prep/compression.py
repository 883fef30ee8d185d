"""Stored files: their bytes in chunks, unpacked if the name says so. Bounded memory whatever they unfold to.

Strict where Beam's own readers are not: a compressed file that ends too early is an error, not a short file.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

import zstandard

from beam_prep.errors import BeamPrepError

CHUNK_BYTES = 2 << 20
"""Bytes read at a time, and so about the size of a batch."""
MAX_WINDOW_BYTES = 1 << 31
"""What a file may have its decoder remember (zstd's window, xz's dictionary), as it says itself: `zstd --long=31`."""
_SLICE_BYTES = 128 << 10
# zstd's decoder does not stop when enough has come out; 4 stored bytes become 128 KiB at most, so these 64 MiB.
_ZSTD_SLICE_BYTES = 2 << 10
_BZIP2_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
_BOM = b"\xef\xbb\xbf"
_MEMORY_ERRORS = ("too much memory", "not enough memory", "Memory usage limit")
"""In the words of zstd and liblzma."""


class _Kind(NamedTuple):
    """A kind of file that is known by how it begins."""

    name: str
    ending: str | None
    """Of a name that has it read; None if it never is."""
    remedy: str


_BEGINNINGS = (
    (b"\x1f\x8b\x08", _Kind("gzip data", ".gz", "")),
    (b"\x28\xb5\x2f\xfd", _Kind("zstd data", ".zst", "")),
    (b"\xfd7zXZ\0", _Kind("xz data", ".xz", "")),
    (b"PAR1", _Kind("a Parquet file", ".parquet", "")),
    (b"PK\x03\x04", _Kind("a zip archive", None, "unpack it first")),
    (b"7z\xbc\xaf\x27\x1c", _Kind("a 7-Zip archive", None, "unpack it first")),
    (b"\x04\x22\x4d\x18", _Kind("LZ4 data", None, "unpack it, or pack it with zstd or gzip")),
    (b"ARROW1\0", _Kind("an Arrow file", None, "write it as Parquet or JSONL")),
)
_BZIP2 = _Kind("bzip2 data", ".bz2", "")
_TAR = _Kind("a tar archive", None, "unpack it first")
_WIDE = _Kind("text in {}", None, "write it as UTF-8: iconv -f {} -t UTF-8")


def recognise(head: bytes) -> _Kind | None:
    """What a file is that begins like this; None for what may be lines of UTF-8."""
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head.startswith(b"BZh") and head[4:10] in _BZIP2_BLOCKS:
        return _BZIP2
    if head[257:262] == b"ustar":
        return _TAR
    encoding = _wide_encoding(head[:4])
    return _Kind(*(part and part.format(encoding) for part in _WIDE)) if encoding else None


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 and UTF-32, with their byte order marks or by the zero bytes of a JSON record's first characters."""
    if len(head) < 4:
        return None
    zeros = [not byte for byte in head]
    if head[:2] == b"\xff\xfe" or (head[:1] in b"{[" and zeros == [False, True, False, True]):
        return "UTF-32" if head == b"\xff\xfe\0\0" else "UTF-16" if head[:2] == b"\xff\xfe" else "UTF-16LE"
    if head[:2] == b"\xfe\xff" or (head[1:2] in b"{[" and zeros == [True, False, True, False]):
        return "UTF-16" if head[:2] == b"\xfe\xff" else "UTF-16BE"
    return "UTF-32" if head == b"\0\0\xfe\xff" else None


def looks_like_text(head: bytes) -> bool:
    """Whether a file begins as JSONL does."""
    return head.removeprefix(_BOM).lstrip(b" \t\r\n")[:1] in (b"{", b"[", b'"')


def checked_kind(chunks: Iterable[bytes], path: str) -> Iterator[bytes]:
    """The chunks of a file of lines from its beginning.

    Raises:
      BeamPrepError: the first one shows that it holds something else; says what to do.
    """
    first = True
    for chunk in chunks:
        if first and (kind := recognise(chunk)) is not None:
            raise BeamPrepError(_wrong_kind(path, kind))
        first = False
        yield chunk


def _wrong_kind(path: str, kind: _Kind) -> str:
    packed = ending_of(path)
    if packed:
        return (
            f"{path}: unpacked it is {kind.name}, not lines of JSON; {kind.remedy or 'unpack it once, and rename it'}"
        )
    return f"{path}: is {kind.name}, not lines of JSON; {kind.remedy or f'rename it so that it ends in {kind.ending}'}"


class _Frame(Protocol):
    """A gzip member, zstd frame, … that is being unpacked."""

    eof: bool
    unused_data: bytes


class _Format(NamedTuple):
    """How files with an ending are unpacked."""

    name: str
    new_frame: Callable[[], _Frame]
    unfold: Callable[[_Frame, bytes], Iterator[bytes]]
    """(frame, stored bytes) → what comes out, in parts of about `CHUNK_BYTES` at most (zstd: 64 MiB)."""
    slice_bytes: int


def _unfold_zlib(frame, data: bytes) -> Iterator[bytes]:
    while True:
        part = frame.decompress(data, CHUNK_BYTES)
        yield part
        data = frame.unconsumed_tail
        if frame.eof or (not data and len(part) < CHUNK_BYTES):
            return


def _unfold_stopping(frame, data: bytes) -> Iterator[bytes]:
    yield frame.decompress(data, CHUNK_BYTES)
    while not frame.eof and not frame.needs_input:
        yield frame.decompress(b"", CHUNK_BYTES)


def _unfold_zstd(frame, data: bytes) -> Iterator[bytes]:
    yield frame.decompress(data)


def _zstd_frame() -> _Frame:
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()


FORMATS = {
    ".gz": _Format("gzip", lambda: zlib.decompressobj(wbits=31), _unfold_zlib, _SLICE_BYTES),  # type: ignore[arg-type]
    ".zst": _Format("zstd", _zstd_frame, _unfold_zstd, _ZSTD_SLICE_BYTES),
    ".bz2": _Format("bzip2", bz2.BZ2Decompressor, _unfold_stopping, _SLICE_BYTES),  # type: ignore[arg-type]
    ".xz": _Format("xz", lambda: lzma.LZMADecompressor(memlimit=MAX_WINDOW_BYTES), _unfold_stopping, _SLICE_BYTES),  # type: ignore[arg-type,return-value]
}
"""By the ending of a file's name."""


def ending_of(path: str) -> str | None:
    """The ending by which a file is unpacked; None if it is read as it is."""
    lower = path.lower()
    return next((ending for ending in FORMATS if lower.endswith(ending)), None)


def decompressed(file: BinaryIO, path: str) -> Iterator[bytes]:
    """The uncompressed bytes of a file by its name's ending, in chunks of about `CHUNK_BYTES`.

    Raises:
      EOFError: the file ends too early.
      ValueError: it is corrupt.
      BeamPrepError: it is not what its name says, or needs more memory than `MAX_WINDOW_BYTES`.
      OSError: it cannot be read.
    """
    ending = ending_of(path)
    return _stored(file) if ending is None else _unpacked(_stored(file), path, ending)


def _stored(file: BinaryIO) -> Iterator[bytes]:
    if not isinstance(file, io.FileIO):
        reader = io.BufferedReader(file, CHUNK_BYTES)  # type: ignore[type-var]
        while chunk := reader.read(CHUNK_BYTES):
            yield chunk
        return
    while chunk := file.read(CHUNK_BYTES):
        # What is read once need not stay in the page cache: the spill is written into the memory that this frees.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), file.tell() - len(chunk), len(chunk), os.POSIX_FADV_DONTNEED)
        yield chunk


def _unpacked(chunks: Iterator[bytes], path: str, ending: str) -> Iterator[bytes]:
    """Chunks of about `CHUNK_BYTES` of what a compressed file holds."""
    out: list[bytes] = []
    ready = done = 0
    try:
        for part in _frames(_checked_name(chunks, path, ending), FORMATS[ending]):
            out.append(part)
            ready += len(part)
            if ready < CHUNK_BYTES:
                continue
            data = b"".join(out)
            out, ready = [], 0
            for begin in range(0, len(data), 2 * CHUNK_BYTES):
                yield data[begin : begin + 2 * CHUNK_BYTES]
            done += len(data)
    except EOFError as error:
        raise EOFError(f"{error}, after {done + ready:,} unpacked bytes") from error
    except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the decoder
        reason = str(error) or type(error).__name__
        if any(words in reason for words in _MEMORY_ERRORS):
            raise BeamPrepError(
                f"{path}: unpacking it takes more memory than there is or than the {MAX_WINDOW_BYTES >> 30} GiB that "
                f"are allowed ({reason}); pack it again with a smaller window, as `zstd -19` or `xz -9` do"
            ) from error
        raise ValueError(f"{reason}, after {done + ready:,} unpacked bytes") from error
    if ready:
        yield b"".join(out)


def _checked_name(chunks: Iterator[bytes], path: str, ending: str) -> Iterator[bytes]:
    """The stored chunks of a compressed file.

    Raises:
      BeamPrepError: it begins as another kind of file.
    """
    name = FORMATS[ending].name
    first = True
    for chunk in chunks:
        kind = recognise(chunk) if first else None
        if kind is not None and kind.ending != ending:
            remedy = kind.remedy or f"rename it so that it ends in {kind.ending}"
            raise BeamPrepError(f"{path}: is {kind.name}, not {name} data as its name says; {remedy}")
        if first and looks_like_text(chunk):
            raise BeamPrepError(f"{path}: is text, not {name} data as its name says; take {ending} off its name")
        first = False
        yield chunk


def _frames(chunks: Iterable[bytes], format_: _Format) -> Iterator[bytes]:
    """Unpacks a sequence of frames (gzip members, zstd frames, …); a frame without its end is an error."""
    frame, started = None, False
    size = min(format_.slice_bytes, _SLICE_BYTES)
    for chunk in chunks:
        for begin in range(0, len(chunk), size):
            data = chunk[begin : begin + size]
            while data:
                if frame is None:
                    if started:  # zero padding between frames or after the last one, as xz and tape tools leave it
                        data = data.lstrip(b"\0")
                        if not data:
                            break
                    frame, started = format_.new_frame(), True
                yield from format_.unfold(frame, data)
                if not frame.eof:
                    break
                data, frame = frame.unused_data, None
    if frame is not None or not started:
        raise EOFError("the compressed stream ends too early" if started else "no compressed stream in it")
