"""Lines: from chunks of bytes to the lines in them, each with its place; what is too long for a record is cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

MAX_RECORD_BYTES = 256 << 20
"""The longest line (Parquet row, as JSON) that is a record. Of a longer one only the beginning is kept, and it is
rejected as `too_long`, so that a file without line feeds or a compressed bomb takes no more memory than this."""
KEPT_BYTES = 1000
"""Of a line that is too long."""


class CutLine(bytes):
    """The beginning of a line that is longer than `MAX_RECORD_BYTES`."""

    size: int
    """Bytes of the whole line."""

    def __new__(cls, line: bytes, size: int) -> CutLine:
        cut = super().__new__(cls, line[:KEPT_BYTES])
        cut.size = size
        return cut

    def __reduce__(self):
        return CutLine, (bytes(self), self.size)

    def without(self, prefix: bytes) -> CutLine:
        """The line without what it begins with."""
        return CutLine(bytes(self)[len(prefix) :], self.size - len(prefix))


def line_size(line: bytes) -> int:
    """Bytes of a line, whether it was cut or not."""
    return line.size if isinstance(line, CutLine) else len(line)


def limited(line: bytes) -> bytes:
    """The line, cut if it is too long."""
    return line if len(line) <= MAX_RECORD_BYTES else CutLine(line, len(line))


def split_lines(chunks: Iterable[bytes], position: int) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """(lines, offsets) for each chunk that ends a line; only LF ends a line.

    Linear in a line's length; of one that is too long no more than `MAX_RECORD_BYTES` and a chunk are held at a time.

    Args:
      position: of the first chunk in its file.
    """
    pending: list[bytes] = []
    size = 0  # of the line that has not ended; `pending` holds it, or its beginning once it is too long
    for chunk in chunks:
        if b"\n" not in chunk:
            pending.append(chunk)
            size += len(chunk)
            if size > MAX_RECORD_BYTES:
                pending = [_beginning(pending)]
            continue
        lines = chunk.split(b"\n")
        tail = lines.pop()
        sizes = np.fromiter(map(len, lines), np.uint64, len(lines))
        if pending:
            lines[0] = b"".join([*pending, lines[0]])
            sizes[0] += np.uint64(size)
        if sizes.max() > MAX_RECORD_BYTES:
            pairs = zip(lines, sizes.tolist(), strict=True)
            lines = [line if n <= MAX_RECORD_BYTES else CutLine(line, n) for line, n in pairs]
        pending, size = ([tail] if tail else []), len(tail)
        offsets = np.empty(len(lines) + 1, np.uint64)
        offsets[0] = position
        np.cumsum(sizes + np.uint64(1), out=offsets[1:])
        offsets[1:] += np.uint64(position)
        position = int(offsets[-1])
        yield lines, offsets[:-1]
    if pending:
        line = b"".join(pending)
        yield [line if size <= MAX_RECORD_BYTES else CutLine(line, size)], np.array([position], np.uint64)


def _beginning(parts: list[bytes]) -> bytes:
    head = b""
    for part in parts:
        head += part[: KEPT_BYTES - len(head)]
    return head
