"""Tokenize: documents in, runs out. Encoding and writing go on in threads while the next batches are read."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from beam_prep.carrier import Carrier
from beam_prep.errors import BeamPrepError
from beam_prep.parity import ParityCheck, document_name
from beam_prep.process_setup import tune_interpreter
from beam_prep.resume import FinishedRun, finished_runs, keep_run
from beam_prep.runs import Run, RunBuilder, TokenLimits, flat_pieces, placed_run_name, run_name
from beam_prep.sources import START, Position
from beam_prep.tokenizer import Encoder, TokenizerSpec, encoder
from beam_prep.transform import DocumentBatch

RUN_BYTES = 32 << 20
"""Token bytes at which a run is closed (file carrier): what a worker holds in memory, twice."""
ENGINE_RUN_BYTES = 4 << 20
"""The same for the engine's shuffle, whose elements must stay small."""
_BATCHES_WAITING = 2
"""Batches beyond those that are being encoded, so that no encoder waits."""
_RUNS_IN_FLIGHT = 1


class _Unkept(NamedTuple):
    """A run on disk that a later attempt may not rely on yet."""

    finished: FinishedRun
    digest: str
    checks: list[Future]
    """Of its sampled documents."""


class Tokenization:
    """Encodes batches on some threads, builds runs of them in the order they were added, writes runs on another thread.

    Encoders and writer release the GIL for most of their time, so that one process keeps several cores busy.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        backend: str,
        carrier: Carrier,
        seed: int,
        limits: Sequence[TokenLimits],
        threads: int = 1,
        run_bytes: int | None = None,
    ):
        """`limits`: one a source; `threads`: how many encode at once."""
        tune_interpreter()
        self._encoder: Encoder = encoder(spec, backend)
        self._carrier, self._seed, self._limits = carrier, seed, limits
        self._run_bytes = run_bytes or (RUN_BYTES if carrier.is_files else ENGINE_RUN_BYTES)
        self._eod = spec.eod_token_id.to_bytes(4, "little")
        self._control_ids = {token: id_.to_bytes(4, "little") for token, id_ in spec.special_tokens}
        self._parity = ParityCheck(spec, self._encoder) if self._encoder.backend != "huggingface" else None
        self._in_flight = threads + _BATCHES_WAITING
        self._encode_pool = ThreadPoolExecutor(threads, thread_name_prefix="beam-prep-encode")
        self._write_pool = ThreadPoolExecutor(1, thread_name_prefix="beam-prep-write")
        self._parity_pool = ThreadPoolExecutor(1, thread_name_prefix="beam-prep-parity")
        self._encoding: deque[tuple[DocumentBatch, list[str], Future]] = deque()
        self._writing: deque[Future] = deque()
        self._checking: deque[Future] = deque()
        self._slots = threading.Semaphore(_RUNS_IN_FLIGHT)
        self.busy_ns = 0
        """Time spent on encoding, summed over the threads."""
        self._builder: RunBuilder | None = None
        self._unit, self._number, self._end = "", 0, START
        self._resumed: list[Run] = []
        self._unkept: deque[_Unkept] = deque()
        self._checks: list[Future] = []

    def add(self, batch: DocumentBatch) -> list[Run]:
        """Takes a batch; returns the runs that are complete by now (often none)."""
        pieces = flat_pieces(batch)
        self._encoding.append((batch, pieces, self._encode_pool.submit(self._encode, pieces)))
        while self._encoding and (len(self._encoding) > self._in_flight or self._encoding[0][2].done()):
            self._build(*self._encoding.popleft())
        return self._finished(wait=False)

    def finish(self) -> list[Run]:
        """Waits for everything that was added; returns the remaining runs.

        Raises:
          BeamPrepError: the parity check found a difference.
        """
        while self._encoding:
            self._build(*self._encoding.popleft())
        if self._builder is not None:
            self._close(last=False)
        runs = self._finished(wait=True)
        while self._checking:
            self._checking.popleft().result()
        self._keep()
        return runs

    def shutdown(self) -> None:
        """Ends the threads."""
        for pool in (self._encode_pool, self._write_pool, self._parity_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def _finished(self, wait: bool) -> list[Run]:
        runs, self._resumed = self._resumed, []
        while self._writing and (wait or self._writing[0].done()):
            unkept = self._writing.popleft().result()
            runs.append(unkept.finished.run)
            self._unkept.append(unkept)
        self._keep()
        return runs

    def _keep(self) -> None:
        """Lets a later attempt find the runs whose sampled documents have passed the parity check."""
        while self._unkept and all(check.done() for check in self._unkept[0].checks):
            finished, digest, checks = self._unkept.popleft()
            for check in checks:
                check.result()
            keep_run(self._carrier, finished, digest)

    def _encode(self, pieces: list[str]) -> tuple[bytes, np.ndarray, int]:
        begin = time.perf_counter_ns()
        ids, bounds = self._encoder.encode(pieces) if pieces else (b"", np.zeros(1, np.uint64))
        return ids, bounds, time.perf_counter_ns() - begin

    def _build(self, batch: DocumentBatch, pieces: list[str], encoded: Future) -> None:
        ids, bounds, busy_ns = encoded.result()
        self.busy_ns += busy_ns
        if self._builder is not None and (batch.unit, batch.begin) != (self._unit, self._end):
            # No engine promises to keep the batches of a unit together, or in order.
            assert not self._carrier.is_files, "where runs are found again, a unit is read in one go"
            self._close(last=False)
        if self._builder is None and not self._open(batch):
            return
        assert self._builder is not None
        if self._parity is not None and pieces:
            self._sample(batch, pieces, ids, bounds)
        self._builder.add(batch, self._limits[batch.source], ids, bounds)
        self._end = batch.end
        if batch.last or self._builder.token_bytes + self._builder.reject_bytes >= self._run_bytes:
            self._close(batch.last)

    def _open(self, batch: DocumentBatch) -> bool:
        """Begins a run; returns False if there is nothing for it."""
        if self._carrier.is_files:
            name = self._next_run(batch)
        else:
            name = None if batch.last else placed_run_name(batch.source, batch.unit, batch.begin)
        self._unit = batch.unit
        if name is None:
            return False
        self._builder = RunBuilder(name, batch.source, self._seed, self._control_ids, self._eod)
        return True

    def _next_run(self, batch: DocumentBatch) -> str | None:
        """The name of a unit's next run; None if the unit was finished by an earlier attempt."""
        if batch.unit != self._unit:
            self._number = batch.finished
            found = finished_runs(self._carrier, batch.source, batch.unit) if batch.finished else []
            finished = found[: batch.finished]
            if len(finished) != batch.finished:
                raise BeamPrepError(f"{self._carrier.work}: a finished run has gone while it was used; start again")
            self._resumed += [f.run for f in finished]
            if finished and finished[-1].last:
                return None
        name = run_name(batch.source, batch.unit, self._number)
        self._number += 1
        return name

    def _close(self, last: bool) -> None:
        """Has the run written; `last`: whether its unit ends with it."""
        self._slots.acquire()
        checks, self._checks = self._checks, []
        self._writing.append(self._write_pool.submit(self._write, self._builder, self._end, last, checks))
        self._builder = None

    def _write(self, builder: RunBuilder, end: Position, last: bool, checks: list[Future]) -> _Unkept:
        try:
            run = builder.write(self._carrier)
            return _Unkept(FinishedRun(run, end, last), builder.digest, checks)
        finally:
            self._slots.release()

    def _sample(self, batch: DocumentBatch, pieces: list[str], ids: bytes, bounds: np.ndarray) -> None:
        assert self._parity is not None
        # Of a document that no output may hold there is nothing to compare.
        rows = np.arange(len(batch.documents)) if batch.wanted is None else np.nonzero(batch.wanted)[0]
        chosen = rows[self._parity.choose(batch.ids[rows])].tolist()
        if not self._parity.documents and not self._checking and not chosen and len(rows):
            chosen = [int(rows[np.argmin(batch.ids[rows, 1])])]  # a small corpus is checked too
        if not chosen:
            return
        counts = [1 if type(d) is str else len(d.pieces) for d in batch.documents]  # type: ignore[union-attr]
        firsts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        edges = bounds.tolist()
        for index in chosen:
            own = range(firsts[index], firsts[index + 1])
            produced = [ids[4 * edges[p] : 4 * edges[p + 1]] for p in own]
            high, low = batch.ids[index].tolist()
            where = document_name(batch.path, int(batch.offsets[index]), high, low)
            check = self._parity_pool.submit(self._parity.check, [pieces[p] for p in own], produced, where)
            self._checking.append(check)
            self._checks.append(check)
