"""The output's folder before a run: who may write into it, what is finished there, what can be gone on with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import orjson
from filelock import FileLock, Timeout

from beam_prep import storage
from beam_prep.errors import BeamPrepError
from beam_prep.finalize import MANIFEST, SUCCESS
from beam_prep.job import Job
from beam_prep.retry_rejected import CALL_FILE

WORK_FOLDER = ".work"
_CLAIM = "claim.json"
_LOCK = "lock"


class AlreadyDone(Exception):
    """The output already holds a finished run of the same fingerprint."""


class Claim(NamedTuple):
    """The right to write into an output, for as long as this process lives."""

    lock: FileLock | None
    resumed: bool
    """Whether an unfinished run of the same fingerprint is gone on with."""


def claim(job: Job, overwrite: bool, fresh: bool) -> Claim:
    """Takes an output for a job, and clears away what the job will not use.

    Args:
      overwrite: whether a finished output may be replaced.
      fresh: whether an unfinished run is started over.

    Raises:
      AlreadyDone: there is nothing to do.
      BeamPrepError: another run is writing there, or the folder holds something else; nothing is changed then.
    """
    _refuse_finished(job, overwrite)
    work = job.carrier.work or (storage.join(job.output, WORK_FOLDER) if storage.is_local(job.output) else None)
    before = _read_claim(work)
    ours = _ours(job, before)
    if not overwrite:
        _refuse_foreign(job.output, ours)
    storage.require_writable(job.output)
    lock = _take(job.output, work) if work else None
    _refuse_finished(job, overwrite)  # by a run that held the lock until now
    success = storage.join(job.output, SUCCESS)
    resumed = before.get("fingerprint") == job.fingerprint and not storage.exists(success) and not fresh
    storage.delete(success)  # first, so that nothing half replaced looks finished
    if resumed:
        _clear_torn(job, work, ours)
    else:
        _clear(job, work, ours)
    if work:
        names = [output.name for output in job.outputs]
        content = orjson.dumps({"fingerprint": job.fingerprint, "outputs": names})
        storage.write_bytes(storage.join(work, _CLAIM), [content])
    return Claim(lock, resumed)


def release(job: Job) -> None:
    """Takes the work folder away, when a run has succeeded."""
    if job.carrier.work:
        storage.delete(job.carrier.work)
    elif storage.is_local(job.output):
        storage.delete(storage.join(job.output, WORK_FOLDER))


def _refuse_finished(job: Job, overwrite: bool) -> None:
    success = storage.join(job.output, SUCCESS)
    if overwrite or not storage.exists(success):
        return
    if storage.read_bytes(success).decode().strip() == job.fingerprint:
        raise AlreadyDone
    raise BeamPrepError(
        f"output {job.output}: holds a finished run of another configuration, input or version; "
        "choose another --output, or replace it with --overwrite"
    )


def _refuse_foreign(output: str, ours: Iterable[str]) -> None:
    if not storage.is_local(output) or not os.path.isdir(output):
        return
    foreign = sorted(set(os.listdir(output)) - set(ours))
    if foreign:
        raise BeamPrepError(
            f"output {output}: holds files that are not this project's ({', '.join(foreign[:3])}); choose an "
            "empty folder, or add --overwrite (which deletes only what belongs to an output)"
        )


def _take(output: str, work: str) -> FileLock:
    os.makedirs(work, exist_ok=True)
    lock = FileLock(os.path.join(work, _LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BeamPrepError(
            f"output {output}: another run is writing there; wait for it, or choose another --output"
        ) from None
    return lock


def _read_claim(work: str | None) -> dict:
    try:
        return orjson.loads(Path(work, _CLAIM).read_bytes()) if work else {}
    except (OSError, ValueError):
        return {}


def _ours(job: Job, before: dict) -> list[str]:
    """Names below the output that this job, or the run before it, made."""
    outputs = {output.name for output in job.outputs} | set(before.get("outputs", []))
    try:
        manifest = orjson.loads(storage.read_bytes(storage.join(job.output, MANIFEST)))
        outputs |= set(manifest["outputs"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none there, or not ours
    folders = sorted({name.split("/")[0] for name in outputs})
    return ["rejected", "report.html", CALL_FILE, MANIFEST, SUCCESS, WORK_FOLDER, *folders]


def _clear_torn(job: Job, work: str | None, ours: Iterable[str]) -> None:
    """Deletes what a killed run was writing at its end, and its counters."""
    folders = [storage.join(job.output, name) for name in ours if name != WORK_FOLDER]
    for folder in folders if storage.is_local(job.output) else []:
        for found in storage.list_files(folder) if os.path.isdir(folder) else []:
            if found.path.endswith(storage.TEMPORARY):
                storage.delete(found.path)
    for found in storage.list_files(work) if work else []:
        if found.path.endswith(storage.TEMPORARY):
            storage.delete(found.path)
    if work:
        storage.delete(os.path.join(work, "progress"))


def _clear(job: Job, work: str | None, ours: Iterable[str]) -> None:
    for name in ours:
        if name != WORK_FOLDER:
            storage.delete(storage.join(job.output, name))
    # The lock is held, and a Hub tokenizer has just been put there.
    keep = {job.tokenizer.location, os.path.join(work, _LOCK)} if work else set()
    for found in storage.list_files(work) if work else []:
        if found.path not in keep and os.path.abspath(found.path) not in keep:
            storage.delete(found.path)
