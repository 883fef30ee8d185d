"""Resume: what a killed run had finished is found again by the next one.

Beside each finished run of tokenized documents, and for each finished shard, lies a small record in the work folder. It
is written last and appears at once, so that what has a record is whole; everything else is done again. Where runs and
shards begin and end follows from the input and the configuration alone, and the work folder belongs to one fingerprint,
so that old and new work fit together.

Spilled tokens are not forced to the disk. After a power cut (another boot of the machine) a record is therefore only
believed if the files hash to what it says.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from beam_prep import storage
from beam_prep.carrier import Carrier, FileSlice
from beam_prep.runs import Run, run_digest, run_name
from beam_prep.shards import ShardRecord
from beam_prep.sources import Position

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class FinishedRun(NamedTuple):
    """A run on disk, and where its unit goes on."""

    run: Run
    end: Position
    last: bool
    """Whether the unit ends with this run."""


class _Kept(NamedTuple):
    content: Any
    boot: str | None
    digest: str


@cache
def _boot() -> str | None:
    """What tells this boot of the machine from others; None where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


def keep_run(carrier: Carrier, finished: FinishedRun, digest: str) -> None:
    """Notes that a run is whole, and checked. Does nothing without a work folder. `digest`: see `run_digest`."""
    if carrier.work is not None:
        _keep(_run_record(carrier.work, finished.run.name), finished, digest)


def finished_runs(carrier: Carrier, source: int, unit: str) -> list[FinishedRun]:
    """The runs of a unit that an earlier attempt finished: its first ones, without a gap."""
    found: list[FinishedRun] = []
    if carrier.work is None:
        return found
    while True:
        record = _load(_run_record(carrier.work, run_name(source, unit, len(found))))
        if record is None:
            return found
        content, boot, digest = record
        run, end, last = content
        finished = FinishedRun(Run(*run), Position(*end), last)
        payloads = (finished.run.tokens, finished.run.files, finished.run.rejects, finished.run.entries)
        if not all(_is_there(payload) for payload in payloads):
            return found
        if (boot is None or boot != _boot()) and run_digest(finished.run) != digest:
            return found
        found.append(finished)
        if last:
            return found


def keep_shard(carrier: Carrier, record: ShardRecord) -> None:
    """Notes that a shard and its sidecar are on disk. Does nothing without a work folder."""
    if carrier.work is not None:
        _keep(_shard_record(carrier.work, record.output, record.bucket), record, "")


def finished_shard(carrier: Carrier, output: int, bucket: int, folder: str) -> ShardRecord | None:
    """The record of a shard that an earlier attempt finished below `folder`, if it still is as it was."""
    kept = None if carrier.work is None else _load(_shard_record(carrier.work, output, bucket))
    if kept is None:
        return None
    record = ShardRecord(*kept.content)
    tokens, documents = storage.join(folder, record.path), storage.join(folder, record.documents_path)
    if storage.size(tokens) != record.bytes or storage.size(documents) is None:
        return None
    trusted = kept.boot is not None and kept.boot == _boot()
    if not trusted and (_sha256(tokens), _sha256(documents)) != (record.sha256, record.documents_sha256):
        return None
    return record


def _run_record(work: str, name: str) -> str:
    return os.path.join(work, "runs", f"{name}.run")


def _shard_record(work: str, output: int, bucket: int) -> str:
    return os.path.join(work, "shards", f"{output}-{bucket:06d}.shard")


def _keep(path: str, content: Any, digest: str) -> None:
    data = pickle.dumps(tuple(_Kept(tuple(content), _boot(), digest)))
    with storage.write_atomic(path, durable=False) as file:
        file.write(xxhash.xxh3_64_digest(data) + data)


def _load(path: str) -> _Kept | None:
    try:
        data = Path(path).read_bytes()
    except OSError:
        return None
    if len(data) < 8 or xxhash.xxh3_64_digest(data[8:]) != data[:8]:
        return None
    return _Kept(*pickle.loads(data[8:]))


def _is_there(payload: Any) -> bool:
    return isinstance(payload, FileSlice) and storage.size(payload.path) == payload.offset + payload.size


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
