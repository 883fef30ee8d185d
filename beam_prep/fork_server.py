"""Fork server: worker processes of the local runner that start in no time, with Beam and the tokenizer loaded once.

Importing Beam and loading a tokenizer cost a process some 3 s of CPU and 350 MB. So one process does both while the
parent builds the graph, and forks a worker whenever it is asked to. It has no other thread of Python by then: a fork
copies the one thread that calls it, and a lock that another held would stay locked for ever.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping

from beam_prep import worker
from beam_prep.lean_beam import import_beam
from beam_prep.parity import reference
from beam_prep.process_setup import limit_arenas
from beam_prep.tokenizer import TokenizerSpec, encoder, load_ahead

POSSIBLE = sys.platform == "linux"
"""Elsewhere some system libraries do not survive a fork."""
_POLL_SECONDS = 0.1


class ForkServer:
    """The parent's end of a fork server."""

    def __init__(self, spec: TokenizerSpec, backend: str):
        """Starts the server; it gets ready by itself."""
        command = [sys.executable, "-m", "beam_prep.fork_server", json.dumps(spec), backend]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._asking = threading.Lock()
        self._ended: dict[str, queue.SimpleQueue[int]] = {}
        threading.Thread(target=self._listen, name="beam-prep-workers", daemon=True).start()

    def run_worker(self, name: str, environment: Mapping[str, str]) -> int:
        """Has a worker run to its end.

        Args:
          name: of the worker; no other has it.
          environment: variables that it gets beside the server's own.

        Returns:
          Its exit status; minus the signal's number if one ended it.
        """
        assert self._process.stdin is not None
        ended = self._ended[name] = queue.SimpleQueue()
        line = json.dumps([name, dict(environment)]).encode() + b"\n"
        with self._asking, contextlib.suppress(BrokenPipeError):  # `_listen` tells what became of the server
            self._process.stdin.write(line)
            self._process.stdin.flush()
        if self._process.poll() is not None:
            return self._process.returncode
        return ended.get()

    def close(self) -> None:
        """Ends the server, and the workers that are left."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _listen(self) -> None:
        """Passes on how workers ended; when the server itself is gone, so are they."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            name, status = json.loads(line)
            self._ended[name].put(status)
        status = self._process.wait()
        for ended in list(self._ended.values()):
            ended.put(status)


def serve(spec: TokenizerSpec, backend: str) -> None:
    """Forks a worker for each line that comes in (JSON: name, environment); writes a line for each that ends."""
    parent = os.getppid()
    worker.leave_interrupts_to_parent()
    limit_arenas()  # for the workers
    gc.disable()
    loading = load_ahead(spec, backend)
    import_beam()
    from apache_beam.runners.worker import sdk_worker_main  # noqa: F401

    from pipelines import prepare  # noqa: F401

    with contextlib.suppress(Exception):  # a worker tries again, and can say to whom it matters why it fails
        if loading is not None:
            reference(spec)
            loading.join()
        encoder(spec, backend)
    gc.freeze()
    workers: dict[int, str] = {}
    try:
        with contextlib.suppress(BrokenPipeError):  # the parent has left
            _serve_workers(parent, workers)
    finally:
        for process in workers:  # nobody waits for them any more
            os.kill(process, signal.SIGKILL)


def _serve_workers(parent: int, workers: dict[int, str]) -> None:
    """See `serve`. `workers`: process → name of those that run."""
    pending = b""
    while os.getppid() == parent:
        if select.select([0], [], [], _POLL_SECONDS)[0]:
            said = os.read(0, 1 << 16)
            if not said:
                return
            *lines, pending = (pending + said).split(b"\n")
            for line in lines:
                name, environment = json.loads(line)
                workers[_fork(environment)] = name
        while workers:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                break
            print(json.dumps([workers.pop(ended), os.waitstatus_to_exitcode(status)]), flush=True)


def _fork(environment: Mapping[str, str]) -> int:
    """The id of a new worker process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 counts the threads of numpy's BLAS, which knows of forks
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.environ.update(environment)
        gc.enable()
        worker.main()
        status = 0
    finally:
        os._exit(status)  # what the server has open is the server's to close


def _from_json(text: str) -> TokenizerSpec:
    spec = TokenizerSpec(*json.loads(text))
    return spec._replace(special_tokens=tuple((token, id_) for token, id_ in spec.special_tokens))


if __name__ == "__main__":
    serve(_from_json(sys.argv[1]), sys.argv[2])
