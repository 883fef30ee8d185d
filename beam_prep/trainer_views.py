"""Index files for other trainers: an output's shards as Megatron, datatrove (nanotron) and OLMo-core read them.

No token is copied. What each gets, below an output's folder (`part-N` stands for a shard's name):

| trainer | files | written as by |
|---|---|---|
| megatron | `tokenized-samples/part-N.idx` beside the shard | megatron-core's `IndexedDatasetBuilder` |
| datatrove | `datatrove/part-N.ds.index`, and `part-N.ds`, a link to the shard | datatrove's `TokenizedFile` |
| olmo | `olmo/part-N.csv.gz`, and `part-N.npy`, a link to the shard | dolma's `MemmapWriter` |

The links are relative symbolic ones: nanotron reads `*.ds`, and OLMo-core finds the metadata of a `.npy` file only. An
object store has no links: there datatrove's index lies beside the shard, as `part-N.bin.index`, where
`DatatroveFolderDataset(…, filename_pattern="*.bin")` finds it, and OLMo-core's is refused.

The indexes hold documents, not sequences: these trainers cut sequences of their own. Boundaries come from the stored
documents. A document that was cut between sequences is one again where its parts follow one another in a shard, as
`concat` always has them; parts that lie apart (in two shards, or with `best_fit` in sequences that are no neighbours)
count as documents of their own. Padding is in no document: OLMo-core's metadata leaves it out, and for Megatron and
datatrove, whose readers and mergers take documents to follow one another without a gap, every stretch of it is one more
document, of separators only.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import posixpath
import struct
import uuid
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_prep import storage
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.findings import Finding, read_if_there

if TYPE_CHECKING:
    from beam_prep.manifest import OutputEntry, ShardEntry

_COLUMNS = ("sequence", "start", "length", "position", "id", "copy", "file", "offset")
_MEGATRON_INT32 = 4  # its codes know no uint32; ids are far below 2**31
_MOST_TOKENS = 2**31 - 1


class Documents(NamedTuple):
    """What lies in a shard, in the order of its tokens."""

    begin: np.ndarray
    """int64[n]: first token of each document."""
    end: np.ndarray
    """int64[n]: behind the last one."""
    table: pa.Table
    """n rows: id, file and offset of each."""
    tokens: int
    """Of the shard, padding counted."""

    @property
    def ends(self) -> np.ndarray:
        """int64[m], m >= n: where documents and stretches of padding end, which together cover the shard."""
        bounds = np.concatenate([[0], np.stack([self.begin, self.end], axis=1).ravel(), [self.tokens]])  # in order
        return bounds[1:][bounds[1:] != bounds[:-1]]


def read_documents(folder: str, shard: ShardEntry, context_length: int) -> Documents:
    """The documents of a shard from its sidecar; neighbouring parts of a document joined.

    Args:
      folder: the output's.

    Raises:
      BeamPrepError: the sidecar is missing or not what was written.
    """
    path = storage.join(folder, shard.documents)
    data = read_if_there(path)
    if data is None or hashlib.sha256(data).hexdigest() != shard.documents_sha256:
        problem = "is missing" if data is None else "is not what was written"
        raise BeamPrepError(f"{path}: {problem}; `beam-prep verify` says more")
    table = pq.read_table(io.BytesIO(data), columns=list(_COLUMNS))
    return join_parts(table, context_length, shard.sequences * context_length)


def join_parts(table: pa.Table, context_length: int, tokens: int) -> Documents:
    """Documents from the rows of a sidecar, which are parts of documents in single sequences."""
    sequence, start, length, position = (table.column(n).to_numpy().astype(np.int64) for n in _COLUMNS[:4])
    begin = sequence * context_length + start
    end = begin + length
    goes_on = np.zeros(len(begin), bool)
    if len(begin) > 1:
        same = [pc.equal(table.column(n).slice(1), table.column(n).slice(0, len(begin) - 1)) for n in ("id", "copy")]
        goes_on[1:] = pc.and_(*same).to_numpy() & (begin[1:] == end[:-1])
        goes_on[1:] &= position[1:] == position[:-1] + length[:-1]
    last = np.append(~goes_on[1:], True)[: len(begin)]
    first = np.nonzero(~goes_on)[0]
    return Documents(begin[first], end[last], table.select(["id", "file", "offset"]).take(first), tokens)


def megatron_index(documents: Documents) -> bytes:
    """An `.idx` file, version 1: every document one Megatron document of one Megatron sequence.

    Layout, little-endian: `MMIDIDX`, two zero bytes, uint64 version, uint8 code of the dtype, uint64 s (sequences),
    uint64 s + 1, int32[s] tokens, int64[s] byte offsets, int64[s + 1] first sequence of each document, and s.

    Raises:
      BeamPrepError: a document is too long for the format.
    """
    ends = documents.ends
    lengths = np.diff(ends, prepend=0)
    if len(lengths) and int(lengths.max()) > _MOST_TOKENS:
        raise BeamPrepError(f"a document of {int(lengths.max()):,} tokens: Megatron's index holds {_MOST_TOKENS:,}")
    count = len(lengths)
    return b"".join(
        [
            b"MMIDIDX\0\0",
            struct.pack("<QBQQ", 1, _MEGATRON_INT32, count, count + 1),
            lengths.astype("<i4").tobytes(),
            (4 * (ends - lengths)).astype("<i8").tobytes(),
            np.arange(count + 1, dtype="<i8").tobytes(),
        ]
    )


def datatrove_index(documents: Documents) -> bytes:
    """A `.ds.index` file: uint64, little-endian, where each document ends, in tokens."""
    return documents.ends.astype("<u8").tobytes()


def olmo_metadata(documents: Documents) -> bytes:
    """The text of a `.csv.gz` file: a line a document, `start,end,id,src,loc`, without a header.

    start and end in tokens; id: our document id; src and loc: its file and the byte (Parquet: the row) of its record.
    """
    text = io.StringIO(newline="")
    columns = (documents.table.column(name).to_pylist() for name in ("id", "file", "offset"))
    csv.writer(text).writerows(zip(documents.begin.tolist(), documents.end.tolist(), *columns, strict=True))
    return text.getvalue().encode()


class Files(NamedTuple):
    """What belongs to one shard; paths relative to the output's folder."""

    index: str
    link: str | None
    """A link to the shard."""


class Trainer(NamedTuple):
    """A trainer, or a family of trainers that read the same files."""

    content: Callable[[Documents], bytes]
    """Of an index file."""
    padding: bool
    """Whether stretches of padding are documents in it."""
    compressed: bool
    files: Callable[[str, bool], Files]
    """(a shard's path, whether the file system is local) → its files."""
    reading: Callable[[str, int, bool], str]
    """(the output's folder, its context length, whether it is local) → how it is read, for the screen."""
    remote: bool = True
    """Whether an object store can hold its files."""


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _megatron_files(path: str, local: bool) -> Files:
    return Files(f"{path.removesuffix('.bin')}.idx", None)


def _datatrove_files(path: str, local: bool) -> Files:
    stem = f"datatrove/{_stem(path)}.ds"
    return Files(f"{stem}.index", stem) if local else Files(f"{path}.index", None)


def _olmo_files(path: str, local: bool) -> Files:
    return Files(f"olmo/{_stem(path)}.csv.gz", f"olmo/{_stem(path)}.npy")


def _read_megatron(folder: str, length: int, local: bool) -> str:
    return f"--data-path $(ls {folder}/tokenized-samples/*.idx | sed 's/\\.idx$//')"


def _read_datatrove(folder: str, length: int, local: bool) -> str:
    # A sample of datatrove's is a token longer than its `seq_len`.
    place = f'"{folder}/datatrove"' if local else f'"{folder}/tokenized-samples", filename_pattern="*.bin"'
    return f"DatatroveFolderDataset({place}, seq_len={length - 1}, token_size=4, return_positions=True)"


def _read_olmo(folder: str, length: int, local: bool) -> str:
    return (
        f'NumpyFSLDatasetConfig(paths=["{folder}/olmo/*.npy"], expand_glob=True, sequence_length={length}, '
        "dtype=NumpyDatasetDType.uint32, tokenizer=…)"
    )


TRAINERS = {
    "megatron": Trainer(megatron_index, True, False, _megatron_files, _read_megatron),
    "datatrove": Trainer(datatrove_index, True, False, _datatrove_files, _read_datatrove),
    "olmo": Trainer(olmo_metadata, False, True, _olmo_files, _read_olmo, remote=False),
}


class Written(NamedTuple):
    """What was written for a trainer."""

    files: int
    documents: int
    padding: int
    """Stretches of padding that count as documents besides."""


def write_trainer_view(output: str, name: str, entry: OutputEntry, vocab_size: int, trainer: str) -> Written:
    """Writes a trainer's index files for one output; a second call changes nothing.

    Shards without a sequence get none: there is nothing in them, and no trainer opens an empty file.

    Args:
      trainer: one of `TRAINERS`.

    Raises:
      ConfigError: the storage or the vocabulary is not for this trainer.
      BeamPrepError: a sidecar is damaged, or the file system has no links.
    """
    folder, local = storage.join(output, name), storage.is_local(output)
    kind = TRAINERS[trainer]
    if not local and not kind.remote:
        raise ConfigError(
            f"{folder}: OLMo-core looks for .npy files, which are links to the shards, and an object store has none; "
            "NumpyFSLDataset reads the shards (.bin) as they are; for the metadata copy the output to a disk"
        )
    if trainer == "megatron" and vocab_size > 2**31:
        raise ConfigError(f"{folder}: Megatron reads ids as int32, and the vocabulary has {vocab_size:,}")
    count = documents = padding = 0
    for shard in entry.shards:
        if not shard.sequences:
            continue
        found = read_documents(folder, shard, entry.context_length)
        files = kind.files(shard.path, local)
        content = kind.content(found)
        if kind.compressed:
            content = gzip.compress(content, 6, mtime=0)
        storage.write_bytes(storage.join(folder, files.index), [content])
        if files.link is not None:
            _link(_target(files.link, shard.path), storage.join(folder, files.link))
        count += 1
        documents += len(found.begin)
        padding += len(found.ends) - len(found.begin) if kind.padding else 0
    return Written(count, documents, padding)


def extend_trainer_views(output: str, name: str, entry: OutputEntry, added: OutputEntry, vocab_size: int) -> None:
    """Writes index files for shards that come to an output, for the trainers that it has some for.

    Args:
      entry: the output as it was; files for its first sequences tell which trainers that are.
      added: the output with the new shards alone.
    """
    folder, local = storage.join(output, name), storage.is_local(output)
    first = next((shard for shard in entry.shards if shard.sequences), None)
    for trainer, kind in _kinds(local).items():
        if first is not None and storage.exists(storage.join(folder, kind.files(first.path, local).index)):
            write_trainer_view(output, name, added, vocab_size, trainer)


def _target(link: str, path: str) -> str:
    return posixpath.relpath(path, posixpath.dirname(link))


def _link(target: str, path: str) -> None:
    """A symbolic link that appears at once, in place of whatever file has its name."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}{storage.TEMPORARY}"
    try:
        os.symlink(target, temporary)
        os.replace(temporary, path)
    except OSError as error:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise BeamPrepError(f"{path}: no link can be made here ({error.strerror}); use a disk that has links") from None


def trainer_files(name: str, entry: OutputEntry, local: bool) -> set[str]:
    """The paths that trainers' files may have, relative to the run's folder."""
    found = (kind.files(s.path, local) for kind in _kinds(local).values() for s in entry.shards if s.sequences)
    return {f"{name}/{path}" for files in found for path in files if path is not None}


def _kinds(local: bool) -> dict[str, Trainer]:
    return {name: kind for name, kind in TRAINERS.items() if local or kind.remote}


def check_trainer_views(
    output: str, name: str, entry: OutputEntry, paths: Iterable[str], quick: bool = False
) -> list[Finding]:
    """The index files that are there are complete, and those that follow from the documents.

    Args:
      paths: of all files of the run, relative to its folder.
      quick: reads neither sidecars nor index files.
    """
    local, present = storage.is_local(output), set(paths)
    findings = []
    for trainer, kind in _kinds(local).items():
        remedy = f"`beam-prep view OUT --for {trainer}` writes it again"
        shards = [shard for shard in entry.shards if shard.sequences]
        expected = {shard.path: kind.files(shard.path, local) for shard in shards}
        if not any(f"{name}/{path}" in present for files in expected.values() for path in files):
            continue
        for shard in shards:
            files = expected[shard.path]
            problems = {path: "is missing" for path in files if path and f"{name}/{path}" not in present}
            if files.link is not None and files.link not in problems:
                path = storage.join(output, name, files.link)
                if not os.path.islink(path) or os.readlink(path) != _target(files.link, shard.path):
                    problems[files.link] = "is no link to its shard"
            if not quick and files.index not in problems:
                problem = _problem(output, name, entry, shard, kind, files.index)
                problems |= {files.index: problem} if problem else {}
            findings += [Finding(f"{name}/{path}", f"{problem}; {remedy}") for path, problem in problems.items()]
    return findings


def _problem(output: str, name: str, entry: OutputEntry, shard: ShardEntry, kind: Trainer, index: str) -> str | None:
    """What is wrong with an index file."""
    folder = storage.join(output, name)
    try:
        expected = kind.content(read_documents(folder, shard, entry.context_length))
    except BeamPrepError:
        return None  # the sidecar's own checks say so
    found = storage.read_bytes(storage.join(folder, index))
    if kind.compressed:
        try:
            found = gzip.decompress(found)  # versions of zlib differ in the compressed bytes
        except (OSError, EOFError, zlib.error) as error:
            return f"cannot be read ({error})"
    return None if found == expected else "differs from what the documents give"
