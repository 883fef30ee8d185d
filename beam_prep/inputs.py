"""The list of inputs: which files a generation was made of, kept in the output as `inputs/*.jsonl.gz`.

The launcher writes it before the work begins, and the graph reads what it says and nothing else: so the list is true
even where files arrive meanwhile, and no list of files travels in the graph.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from beam_prep import storage
from beam_prep.errors import BeamPrepError
from beam_prep.layout import INPUTS_FOLDER
from beam_prep.sources import InputFile


class KnownFile(NamedTuple):
    """A file as it was when it was read."""

    size: int
    """Bytes, as stored."""
    modified: float
    """Seconds since the epoch; 0 where the file system does not tell."""


class Difference(NamedTuple):
    """The inputs as they are now, against those that are in an output."""

    new: list[list[InputFile]]
    """By source: files that are to be read, changed ones too."""
    changed: list[str]
    """Known files of another size or time of change."""
    gone: list[str]
    """Known files that no pattern finds any more."""


def inputs_path(label: str) -> str:
    """Where the list of a generation lies, relative to the run's folder. `label`: empty for the first one."""
    return f"{INPUTS_FOLDER}/{label or '00000'}.jsonl.gz"


def write_inputs(output: str, label: str, names: Sequence[str], files: Sequence[Sequence[InputFile]]) -> None:
    """Writes the list of a generation: a line a file, source by source.

    Args:
      names, files: one a source.
    """
    lines = b"".join(
        orjson.dumps(
            {"source": name, "path": file.path, "size": file.size, "modified": file.modified},
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for name, own in zip(names, files, strict=True)
        for file in own
    )
    storage.write_small(storage.join(output, inputs_path(label)), gzip.compress(lines, 6, mtime=0))


def read_inputs(
    output: str, path: str, sha256: str | None = None, only: str | None = None
) -> Iterator[tuple[str, InputFile]]:
    """(source, file) of a list; files are numbered within their source.

    Args:
      path: of the list, relative to the run's folder.
      sha256: that it must have.
      only: the source to look at; without it all.

    Raises:
      BeamPrepError: it is missing or damaged.
    """
    try:
        data = storage.read_bytes(storage.join(output, path))
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its sha256 is not the manifest's")
        numbers: dict[str, int] = {}
        begin = b"" if only is None else orjson.dumps({"source": only})[:-1] + b","
        for line in io.BytesIO(gzip.decompress(data)):
            if not line.startswith(begin):  # of 200 sources and 100,000 files, each line parsed once
                continue
            entry = orjson.loads(line)
            source = entry["source"]
            number = numbers[source] = numbers.get(source, -1) + 1
            yield source, InputFile(number, entry["path"], entry["size"], entry["modified"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise BeamPrepError(
            f"{storage.join(output, path)}: the list of inputs cannot be read ({error}); `beam-prep verify {output}` "
            "says what else is off"
        ) from None


def describe_inputs(output: str, label: str) -> dict[str, Any]:
    """What the manifest says of a generation's inputs."""
    path = inputs_path(label)
    digest = hashlib.sha256(storage.read_bytes(storage.join(output, path))).hexdigest()
    sizes = [file.size for _, file in read_inputs(output, path)]
    return {"path": path, "sha256": digest, "files": len(sizes), "bytes": sum(sizes)}


def known_files(output: str, lists: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], KnownFile]:
    """(source, path) → the file as it was when it was read last.

    Args:
      lists: what the manifest says of each generation's inputs.

    Raises:
      BeamPrepError: a list is missing or damaged.
    """
    found = {}
    for described in lists:
        for source, file in read_inputs(output, described["path"], described["sha256"]):
            found[source, file.path] = KnownFile(file.size, file.modified)
    return found


def compare(
    known: Mapping[tuple[str, str], KnownFile], names: Sequence[str], files: Sequence[Sequence[InputFile]]
) -> Difference:
    """What is new.

    Args:
      names, files: one a source; the files are those that its patterns find now.
    """
    new: list[list[InputFile]] = []
    changed, here = [], set()
    for name, own in zip(names, files, strict=True):
        wanted = []
        for file in own:
            here.add((name, file.path))
            before = known.get((name, file.path))
            if before == KnownFile(file.size, file.modified):
                continue
            if before is not None:
                changed.append(file.path)
            wanted.append(file)
        new.append([file._replace(number=number) for number, file in enumerate(wanted)])
    return Difference(new, changed, [path for source, path in known if (source, path) not in here])
