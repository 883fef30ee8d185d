"""Google Cloud Storage on this machine (gcp-storage-emulator), with faults on demand.

`Emulator` serves gs:// to this process and those that it starts: `STORAGE_EMULATOR_HOST` is set while it runs. What it
lacks is noted in `docs/operations.md`; nothing here leaves the machine.
"""

import itertools
import logging
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer

from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler, Router
from gcp_storage_emulator.storage import Storage

logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # it takes every missing file for an error

HOST_VARIABLE = "STORAGE_EMULATOR_HOST"
TOO_MANY, UNAVAILABLE, REFUSED, FORGOTTEN, CUT, SLOW = "429", "503", "reset", "answer lost", "cut short", "slow"
FORBIDDEN = "403"
"""Will not pass, and so is none of the others."""
ALL_FAULTS = (TOO_MANY, UNAVAILABLE, REFUSED, FORGOTTEN, CUT, SLOW)
_SLOW_SECONDS = 0.02

Faults = Callable[[str, str], str | None]
"""(method, path with query) → the fault of this request, or None."""


def no_faults(method: str, path: str) -> str | None:
    """None."""
    return None


class EveryNth:
    """One request in so many fails, each kind in its turn; never two one after the other."""

    def __init__(self, every: int, kinds: tuple[str, ...] = ALL_FAULTS):
        self._every, self._kinds = every, itertools.cycle(kinds)
        self._count = itertools.count(1)
        self.made: Counter[str] = Counter()

    def __call__(self, method: str, path: str) -> str | None:
        if next(self._count) % self._every:
            return None
        kind = next(self._kinds)
        self.made[kind] += 1
        return kind


class _Storage(Storage):
    """The emulator's, in memory."""

    def _write_config_to_file(self) -> None:
        """Nothing: it would write the list of all objects again with every one of them."""


class Emulator:
    """A server of gs:// in this process. `storage` is the emulator's own; `requests` are (method, path) in order."""

    def __init__(self, faults: Faults = no_faults):
        self.faults = faults
        self.storage = _Storage(use_memory_fs=True)
        self.requests: list[tuple[str, str]] = []
        self.parts: dict[tuple[str, str | None], bytes] = {}
        """Answers to the parts of uploads."""
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("localhost", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        self.host = f"http://localhost:{self._server.server_port}"

    def start(self) -> None:
        """Begins to serve, in a thread."""
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.02,), name="gcs-emulator", daemon=True).start()

    def stop(self) -> None:
        """Ends serving; what was stored is gone."""
        self._server.shutdown()
        self._server.server_close()

    def make_bucket(self, name: str) -> None:
        """An empty bucket."""
        buckets.create_bucket(name, self.storage)

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Name → bytes of what a bucket holds."""
        with self.lock:
            found, _ = self.storage.get_file_list(bucket, prefix or None, None, None)
            return {o["name"]: self.storage.get_file(bucket, o["name"]) for o in found}


@contextmanager
def emulated_gcs(*bucket_names: str, faults: Faults = no_faults) -> Iterator[Emulator]:
    """An emulator with buckets, known to Google's library in this process and in those that it starts."""
    emulator = Emulator(faults)
    for name in bucket_names:
        emulator.make_bucket(name)
    before = os.environ.get(HOST_VARIABLE)
    os.environ[HOST_VARIABLE] = emulator.host
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()
        if before is None:
            del os.environ[HOST_VARIABLE]
        else:
            os.environ[HOST_VARIABLE] = before


class _Handler(RequestHandler):
    """The emulator's, one request at a time, and faults around it."""

    def __init__(self, emulator: Emulator, *args: object):
        self._emulator = emulator
        super().__init__(emulator.storage, *args)

    def _handle(self) -> None:
        emulator = self._emulator
        with emulator.lock:
            emulator.requests.append((self.command, self.path))
            fault = emulator.faults(self.command, self.path)
        if fault in (TOO_MANY, UNAVAILABLE, FORBIDDEN):
            self._read_body()
            self._refuse(HTTPStatus(int(fault)))
            return
        if fault == REFUSED:
            self._reset()
            return
        if fault == SLOW:
            time.sleep(_SLOW_SECONDS)
        answer = self._answer()
        target = self.wfile
        if fault == FORGOTTEN:
            self._reset()
        elif fault == CUT:
            target.write(answer[: max(1, len(answer) // 2)])
            self._reset()
        elif fault == SLOW:
            for begin in range(0, len(answer), max(1, len(answer) // 4)):
                target.write(answer[begin : begin + max(1, len(answer) // 4)])
                time.sleep(_SLOW_SECONDS / 4)
        else:
            target.write(answer)

    def _answer(self) -> bytes:
        """What the emulator answers; where it knows less of resumable uploads than the real one, what that does."""
        upload = self.path if "upload_id=" in self.path else None
        if upload and self.command == "DELETE":  # of an upload that is given up
            return b"HTTP/1.0 499 Client Closed Request\r\nContent-Length: 0\r\n\r\n"
        part = (upload, self.headers.get("Content-Range")) if upload else None
        target, self.wfile = self.wfile, _Buffer()
        with self._emulator.lock:
            if part in self._emulator.parts:  # sent again, as its answer was lost
                self._read_body()
            else:
                Router(self).handle(self.command)
            answer = self._emulator.parts.get(part) or self.wfile.data
            if part:
                self._emulator.parts[part] = answer
        self.wfile = target
        return answer

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _read_body(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        body = b'{"error": {"code": %d, "message": "injected"}}' % status
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        """Closes the connection so that the other end sees `connection reset`."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        self.wfile, self.rfile = _Buffer(), _Buffer()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class _Buffer:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.closed = False

    @property
    def data(self) -> bytes:
        """All of it."""
        return b"".join(self.parts)

    def write(self, data: bytes) -> int:
        """Keeps it."""
        self.parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
