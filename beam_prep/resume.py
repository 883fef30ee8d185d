"""Resume: what a killed run had finished is found again by the next one.

Beside each finished run of tokenized documents, and for each finished shard, lies a small record in the work folder. It
is written last and appears at once, so that what has a record is whole; everything else is done again. The work folder
belongs to one fingerprint. What comes out does not depend on where runs begin and end; but each run must begin where
the one before it ends, and says so.

Spilled tokens are not forced to the disk at once. After a power cut (another boot of the machine) a record is therefore
only believed if the files hash to what it says, or if they were forced to the disk when all of them were there
(`settle`).

When a shard has its record, the spilled tokens that it was made of are given back (`shards.give_back`). A shard that is
lost after that can only be made again from its documents; see `check_shards`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import xxhash

from beam_prep import storage
from beam_prep.carrier import Carrier, FileSlice, Payload
from beam_prep.runs import Run, run_digest, run_name
from beam_prep.shards import ShardRecord
from beam_prep.sources import START, Position

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SETTLE_BYTES = 3 << 29
"""Spilled bytes (of about 1.5 GB of text) from which on they are forced to the disk before any is given back."""
_PAYLOADS = ("entries", "tokens", "files", "rejects")
_FORMAT = 1
"""Of the records; one of another format is none."""
_HASH_BYTES = 8
_READ_BYTES = 4 << 20


class FinishedRun(NamedTuple):
    """A run on disk, and where its unit goes on."""

    run: Run
    end: Position
    last: bool
    """Whether the unit ends with this run."""


class _KeptRun(NamedTuple):
    finished: FinishedRun
    begin: Position
    digest: str
    trusted: bool
    """Whether it was written since the machine was started."""


@cache
def _boot() -> str | None:
    """What tells this boot of the machine from others; None where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


def keep_run(carrier: Carrier, finished: FinishedRun, digest: str) -> None:
    """Notes that a run is whole, and checked. Does nothing without a work folder.

    Args:
      digest: see `run_digest`.
    """
    if carrier.work is None:
        return
    storage.delete(_settled(carrier.work))
    unit, _, number = finished.run.name.rpartition("-")
    begin = START
    if int(number):
        before = _load_run(carrier.work, f"{unit}-{int(number) - 1:05d}")
        if before is None:
            return  # nobody could say that this run follows it
        begin = before.finished.end
    _keep_run(carrier.work, _KeptRun(finished, begin, digest, True))


def finished_runs(carrier: Carrier, source: int, unit: str) -> list[FinishedRun]:
    """The runs of a unit that an earlier attempt finished: its first ones, each where the one before it ends."""
    found: list[FinishedRun] = []
    if carrier.work is None:
        return found
    begin = START
    while True:
        kept = _load_run(carrier.work, run_name(source, unit, len(found)))
        if kept is None or kept.begin != begin:
            return found
        run, end, last = kept.finished
        if not all(_is_there(getattr(run, name)) for name in _PAYLOADS):
            return found
        if not kept.trusted:
            if run_digest(run) != kept.digest:
                return found
            _keep_run(carrier.work, kept)
        found.append(kept.finished)
        if last:
            return found
        begin = end


def settle(carrier: Carrier) -> bool:
    """Forces all runs to the disk, if making them again would take long; for when all of them are finished.

    After that they are believed after a power cut too, even those whose tokens are given back in part.
    """
    if carrier.work is None:
        return False
    marker = _settled(carrier.work)
    if storage.exists(marker):
        return True
    files = storage.list_files(os.path.join(carrier.work, "runs"))
    if sum(file.size for file in files) < SETTLE_BYTES:
        return False
    for file in files:
        storage.sync_file(file.path)
    storage.sync_folder(os.path.join(carrier.work, "runs"))
    _keep(marker, {}, durable=True)
    return True


def keep_shard(carrier: Carrier, record: ShardRecord, folder: str) -> None:
    """Notes that a shard and its sidecar are on disk below `folder`. Does nothing without a work folder."""
    if carrier.work is not None:
        content = {"boot": _boot(), "record": list(record), "changed": _changed(record, folder)}
        # Durable, for the shard's tokens are given back next.
        _keep(_shard_record(carrier.work, record.output, record.bucket), content, durable=True)


def finished_shard(carrier: Carrier, output: int, bucket: int, folder: str) -> ShardRecord | None:
    """The record of a shard that an earlier attempt finished below `folder`, if it still is as it was."""
    kept = None if carrier.work is None else _load(_shard_record(carrier.work, output, bucket))
    return None if kept is None else _intact(carrier, kept, folder)


def check_shards(carrier: Carrier, folders: Sequence[str]) -> int:
    """Looks at all finished shards, before a run goes on; returns how many are not as they were.

    If there are any, all finished runs are forgotten: spilled tokens that a shard was made of may be given back.

    Args:
      folders: of the outputs.
    """
    if carrier.work is None:
        return 0
    lost = []
    for found in storage.list_files(os.path.join(carrier.work, "shards")):
        kept = _load(found.path)
        number = -1 if kept is None else kept["record"][0]
        if kept is None or number >= len(folders) or _intact(carrier, kept, folders[number]) is None:
            lost.append(found.path)
    if lost:
        storage.delete(_settled(carrier.work))
    # The runs first: without a shard's record nobody knows that its tokens may be gone.
    runs = storage.list_files(os.path.join(carrier.work, "runs")) if lost else []
    for path in [*(found.path for found in runs if found.path.endswith(_RUN)), *lost]:
        storage.delete(path)
    return len(lost)


def _intact(carrier: Carrier, kept: dict[str, Any], folder: str) -> ShardRecord | None:
    values = [tuple(value) if isinstance(value, list) else value for value in kept["record"]]
    record = ShardRecord(*values)
    changed = _changed(record, folder)
    if changed is None:
        return None
    if kept["boot"] is not None and kept["boot"] == _boot() and kept["changed"] == changed:
        return record
    tokens, documents = storage.join(folder, record.path), storage.join(folder, record.documents_path)
    if (_sha256(tokens), _sha256(documents)) != (record.sha256, record.documents_sha256):
        return None
    keep_shard(carrier, record, folder)
    return record


def _changed(record: ShardRecord, folder: str) -> list[float] | None:
    """When a shard's files were changed last; None if one is missing or of another size."""
    tokens = storage.find(storage.join(folder, record.path))
    documents = storage.find(storage.join(folder, record.documents_path))
    if tokens is None or documents is None or tokens.size != record.bytes:
        return None
    return [tokens.modified, documents.modified]


_RUN, _SHARD = ".run", ".shard"


def _run_record(work: str, name: str) -> str:
    return os.path.join(work, "runs", f"{name}{_RUN}")


def _shard_record(work: str, output: int, bucket: int) -> str:
    return os.path.join(work, "shards", f"{output}-{bucket:06d}{_SHARD}")


def _settled(work: str) -> str:
    return os.path.join(work, "settled")


def _keep_run(work: str, kept: _KeptRun) -> None:
    run, end, last = kept.finished
    fields = run._asdict()
    # Relative to the work folder, which may be moved together with the output.
    fields.update({name: _relative(fields[name], work) for name in _PAYLOADS})
    content = {
        "boot": _boot(),
        "digest": kept.digest,
        "begin": list(kept.begin),
        "end": list(end),
        "last": last,
        "run": fields,
    }
    _keep(_run_record(work, run.name), content)


def _load_run(work: str, name: str) -> _KeptRun | None:
    content = _load(_run_record(work, name))
    if content is None:
        return None
    fields = content["run"]
    for payload in _PAYLOADS:
        path, offset, size = fields[payload]
        fields[payload] = FileSlice(os.path.join(work, path), offset, size)
    finished = FinishedRun(Run(**fields), Position(*content["end"]), content["last"])
    trusted = (content["boot"] is not None and content["boot"] == _boot()) or _load(_settled(work)) is not None
    return _KeptRun(finished, Position(*content["begin"]), content["digest"], trusted)


def _relative(payload: Payload, work: str) -> list[Any]:
    assert isinstance(payload, FileSlice), "a work folder means files"
    return [os.path.relpath(payload.path, work), payload.offset, payload.size]


def _keep(path: str, content: dict[str, Any], durable: bool = False) -> None:
    data = orjson.dumps({"format": _FORMAT, **content})
    with storage.write_atomic(path, durable) as file:
        file.write(xxhash.xxh3_64_digest(data) + data)


def _load(path: str) -> dict[str, Any] | None:
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        return None
    if xxhash.xxh3_64_digest(data[_HASH_BYTES:]) != data[:_HASH_BYTES]:
        return None
    content = orjson.loads(data[_HASH_BYTES:])
    return content if content["format"] == _FORMAT else None


def _is_there(payload: Payload) -> bool:
    return isinstance(payload, FileSlice) and storage.size(payload.path) == payload.offset + payload.size


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with storage.open_read(path) as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
