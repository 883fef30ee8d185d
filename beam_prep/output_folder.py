"""The output's folder before a run: who may write into it, what is finished there, what can be gone on with."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from filelock import FileLock, Timeout

from beam_prep import resume, storage
from beam_prep.errors import BeamPrepError
from beam_prep.generations import finished_labels, is_of, label_of
from beam_prep.job import Job
from beam_prep.layout import (
    INPUTS_FOLDER,
    MANIFEST,
    NEXT,
    REJECTED_FOLDER,
    REPORT,
    RUN_FILE,
    SUCCESS,
    WORK_FOLDER,
)
from beam_prep.success import answers_for

_CLAIM = "claim.json"
LOCK = "lock"
TORN = re.compile(rf"(?:(.*)\.|\.probe-)[0-9a-f]{{8}}{re.escape(storage.TEMPORARY)}")
"""Names of files that a killed run was writing; see `storage.write_atomic` and `storage.require_writable`."""


class AlreadyDone(Exception):
    """The output already holds a finished run of the same fingerprint."""


class Claim(NamedTuple):
    """The right to write into an output, for as long as this process lives."""

    lock: FileLock | None
    resumed: bool
    """Whether an unfinished run of the same fingerprint is gone on with."""
    replaced: bool = False
    """Whether an unfinished run of another configuration, input or version was thrown away."""
    lost: int = 0
    """Finished shards of the unfinished run that were not as they had been written."""


class NothingNew(AlreadyDone):
    """The output already holds all files of its inputs."""


def claim(job: Job, overwrite: bool, fresh: bool) -> Claim:
    """Takes an output for a job, and clears away what the job will not use.

    Args:
      overwrite: whether a finished output may be replaced.
      fresh: whether an unfinished run is started over.

    Raises:
      AlreadyDone: there is nothing to do.
      BeamPrepError: another run is writing there, or the folder holds something else; nothing is changed then.
    """
    work = _work(job)
    _refuse_finished(job, work, overwrite)
    if not overwrite:
        _refuse_foreign(job.output, _ours(job, _read_claim(work)))
    storage.require_writable(job.output)
    lock = _take(job.output, work) if work else None
    try:
        _refuse_finished(job, None, overwrite)  # by a run that held the lock until now
        return _clear_away(job, work, fresh)._replace(lock=lock)
    except BaseException as error:
        if work and isinstance(error, AlreadyDone):
            storage.delete(work)
        if lock is not None:
            lock.release()
        raise


def claim_increment(job: Job, manifest: Mapping[str, Any], fresh: bool) -> Claim:
    """Takes a finished output, for a job that adds to it; clears away what other increments left that never finished.

    What is finished there stays as it is, and can be read meanwhile.

    Args:
      manifest: of the output, as the job knows it.

    Raises:
      BeamPrepError: another run is writing there, or has added to it; nothing is changed then.
    """
    work = _work(job)
    storage.require_writable(job.output)
    lock = _take(job.output, work) if work else None
    try:
        assert job.base is not None
        if not answers_for(storage.read_bytes(storage.join(job.output, SUCCESS)), job.base.fingerprint):
            raise BeamPrepError(f"output {job.output}: another run has just added to it; give the command again")
        before = _read_claim(work)
        same = before.get("fingerprint") == job.fingerprint
        resumed = same and not fresh
        clear_unfinished(job.output, manifest, None if fresh else job.label)
        lost = 0
        if resumed:
            lost = resume.check_shards(job.carrier, [storage.join(job.output, output.name) for output in job.outputs])
        else:
            _clear_work(job, work)
        _clear_torn(job, work, _ours(job, before))
        _write_claim(work, job.fingerprint, {output.name for output in job.outputs}, job.base.generations)
        unfinished = before.get("fingerprint") is not None and "generation" in before
        return Claim(lock, resumed, unfinished and not same, lost)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def clear_unfinished(output: str, manifest: Mapping[str, Any], own: str | None, next_too: bool = True) -> None:
    """Deletes the files of increments that never finished.

    Args:
      manifest: of the output.
      own: label of the one that goes on, whose files stay.
      next_too: whether those of one that could become the next generation go too.
    """
    keep = {*finished_labels(manifest), *([own] if own else [])}
    start = len(output.rstrip("/")) + 1
    for found in storage.list_files(output):
        path = found.path[start:].replace(os.sep, "/")
        label = label_of(path)
        if label is None or label in keep or (not next_too and is_of(path, len(manifest["generations"]))):
            continue
        storage.delete(found.path)


def sweep_increments(job: Job, manifest: Mapping[str, Any]) -> None:
    """Deletes what increments have left in a finished output; where another run is writing there, nothing of it."""
    work = _work(job)
    if work is None:  # no lock, and so one may be at work
        clear_unfinished(job.output, manifest, None, next_too=False)
    if work is None or not storage.exists(work):
        return
    with contextlib.suppress(BeamPrepError, OSError), hold(job.output, work):
        clear_unfinished(job.output, manifest, None)
        _clear_torn(job, work, _ours(job, {}))
        storage.delete(work)


@contextlib.contextmanager
def hold(output: str, work: str | None) -> Iterator[None]:
    """The lock of an output, for the time of a block. `work`: the work folder; without one there is no lock.

    Raises:
      BeamPrepError: another run is writing there.
    """
    lock = _take(output, work) if work else None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _work(job: Job) -> str | None:
    return job.carrier.work or (storage.join(job.output, WORK_FOLDER) if storage.is_local(job.output) else None)


def release(job: Job) -> None:
    """Takes the work folder away, when a run has succeeded. The lock is still held."""
    if job.carrier.work:
        storage.delete(job.carrier.work)
    elif storage.is_local(job.output):
        storage.delete(storage.join(job.output, WORK_FOLDER))


def _clear_away(job: Job, work: str | None, fresh: bool) -> Claim:
    before = _read_claim(work)
    ours = _ours(job, before)
    unfinished = bool(before) and not storage.exists(storage.join(job.output, SUCCESS))
    same = before.get("fingerprint") == job.fingerprint
    resumed = unfinished and same and not fresh
    for name in (SUCCESS, NEXT):  # first, so that nothing half replaced looks finished
        storage.delete(storage.join(job.output, name))
    names = {output.name for output in job.outputs}
    lost = 0
    if resumed:
        _clear_torn(job, work, ours)
        lost = resume.check_shards(job.carrier, [storage.join(job.output, output.name) for output in job.outputs])
    else:
        # Killed meanwhile, the next run still knows what is to be deleted.
        _write_claim(work, None, names | _outputs_before(job, before))
        _clear(job, work, ours)
    _write_claim(work, job.fingerprint, names)
    return Claim(None, resumed, unfinished and not same and before.get("fingerprint") is not None, lost)


def _refuse_finished(job: Job, work: str | None, overwrite: bool) -> None:
    success = storage.join(job.output, SUCCESS)
    if overwrite or not storage.exists(success):
        return
    if storage.read_bytes(success).partition(b"\n")[0] == job.fingerprint.encode():
        if work is not None and storage.exists(work):
            _sweep(job.output, work)
        raise AlreadyDone
    raise BeamPrepError(
        f"output {job.output}: holds a finished run of another configuration, input or version; "
        "choose another --output, or replace it with --overwrite"
    )


def _sweep(output: str, work: str) -> None:
    """Deletes what a run has left that was killed after it had finished."""
    with contextlib.suppress(BeamPrepError, OSError):  # it is still about to do so itself, or the disk is read-only
        lock = _take(output, work)
        try:
            storage.delete(work)
        finally:
            if lock is not None:
                lock.release()


def _refuse_foreign(output: str, ours: Iterable[str]) -> None:
    if not storage.is_local(output) or not os.path.isdir(output):
        return
    known = set(ours)
    foreign = sorted(name for name in os.listdir(output) if name not in known and not _is_torn(name, known))
    if foreign:
        raise BeamPrepError(
            f"output {output}: holds files that are not this project's ({', '.join(foreign[:3])}); choose an "
            "empty folder, or add --overwrite (which deletes only what belongs to an output)"
        )


def _is_torn(name: str, ours: Iterable[str]) -> bool:
    """Whether one of our files was being written under that name."""
    found = TORN.fullmatch(name)
    return found is not None and (found[1] is None or found[1] in ours)


def _take(output: str, work: str) -> FileLock | None:
    storage.make_folder(work)
    lock = FileLock(os.path.join(work, LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BeamPrepError(
            f"output {output}: another run is writing there; wait for it, or choose another --output"
        ) from None
    except (OSError, NotImplementedError) as error:
        logging.getLogger(__name__).warning(
            "%s: this file system has no locks (%s); take care that no other run writes there", output, error
        )
        return None
    return lock


def _read_claim(work: str | None) -> dict:
    try:
        return orjson.loads(Path(work, _CLAIM).read_bytes()) if work else {}
    except (OSError, ValueError):
        return {}


def _write_claim(
    work: str | None, fingerprint: str | None, outputs: Iterable[str], generation: int | None = None
) -> None:
    if work:
        content = {"fingerprint": fingerprint, "outputs": sorted(outputs)}
        more = {} if generation is None else {"generation": generation}
        storage.write_bytes(storage.join(work, _CLAIM), [orjson.dumps({**content, **more})])


def claimed_generation(output: str) -> int | None:
    """The generation that an increment is making in a local output, or was when it was killed; None: there is none."""
    return _read_claim(storage.join(output, WORK_FOLDER)).get("generation")


def _outputs_before(job: Job, before: dict) -> set[str]:
    """Names of the outputs that an earlier run made."""
    names = set(before.get("outputs", []))
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none there, or not ours
        names |= set(orjson.loads(storage.read_bytes(storage.join(job.output, MANIFEST)))["outputs"])
    return names


def _ours(job: Job, before: dict) -> list[str]:
    """Names below the output that this job, or the run before it, made."""
    outputs = {output.name for output in job.outputs} | _outputs_before(job, before)
    folders = sorted({name.split("/")[0] for name in outputs})
    return [INPUTS_FOLDER, REJECTED_FOLDER, REPORT, RUN_FILE, MANIFEST, NEXT, SUCCESS, WORK_FOLDER, *folders]


def _clear_torn(job: Job, work: str | None, ours: Iterable[str]) -> None:
    """Deletes what a killed run was writing at its end, and its counters."""
    _clear_torn_names(job.output, ours)
    folders = [storage.join(job.output, name) for name in ours if name != WORK_FOLDER]
    folders = [f for f in folders if os.path.isdir(f)] if storage.is_local(job.output) else []
    for folder in [*folders, *([work] if work else [])]:
        for found in storage.list_files(folder):
            if TORN.fullmatch(os.path.basename(found.path)):
                storage.delete(found.path)
    if work:
        storage.delete(os.path.join(work, "progress"))


def _clear_torn_names(output: str, ours: Iterable[str]) -> None:
    known = set(ours)
    for name in os.listdir(output) if storage.is_local(output) else []:
        if _is_torn(name, known):
            storage.delete(storage.join(output, name))


def _clear(job: Job, work: str | None, ours: Iterable[str]) -> None:
    _clear_torn_names(job.output, ours)
    for name in ours:
        if name != WORK_FOLDER:
            storage.delete(storage.join(job.output, name))
    _clear_work(job, work)


def _clear_work(job: Job, work: str | None) -> None:
    # The lock is held, the claim says what is being deleted, and a Hub tokenizer has just been put there.
    keep = {job.tokenizer.location, *(os.path.join(work, name) for name in (LOCK, _CLAIM))} if work else set()
    for found in storage.list_files(work) if work else []:
        if found.path not in keep and os.path.abspath(found.path) not in keep:
            storage.delete(found.path)
