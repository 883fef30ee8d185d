"""The part of Google's servers, beside the storage, that a Dataflow launcher talks to: tokens, and jobs over REST.

A job that is created is kept and at once done; running it is the caller's affair.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

_JOBS = re.compile(r"/v1b3/projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/jobs(?:/(?P<job>[^/?]+))?")
_ID = "rehearsed-"


class Job(NamedTuple):
    """A job as it was asked for."""

    name: str
    body: dict[str, Any]
    bytes: int
    """Of the body, as it was sent."""


class DataflowStub:
    """A server of jobs. `jobs` holds those that were created, in order."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        stub = self

        class Handler(_Handler):
            pass

        Handler.stub = stub
        self._server = ThreadingHTTPServer(("localhost", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://localhost:{self._server.server_port}"

    def start(self) -> None:
        """Begins to serve, in a thread."""
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.02,), name="dataflow-stub", daemon=True).start()

    def stop(self) -> None:
        """Ends serving."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    stub: DataflowStub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/token":
            self._answer({"access_token": "none", "expires_in": 3600, "token_type": "Bearer"})
        elif (found := _JOBS.match(self.path)) and not found["job"]:
            content = json.loads(body)
            self.stub.jobs.append(Job(content["name"], content, len(body)))
            self._answer(self._job(found, content["name"]))
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        found = _JOBS.match(self.path)
        if found is None or not found["job"]:
            self.send_error(404)
        elif found.end() == len(self.path.partition("?")[0]):
            self._answer(self._job(found, found["job"].removeprefix(_ID)))
        else:  # messages, metrics
            self._answer({})

    def _job(self, found: re.Match[str], name: str) -> dict[str, Any]:
        return {
            "id": f"{_ID}{name}",
            "name": name,
            "projectId": found["project"],
            "location": found["region"],
            "type": "JOB_TYPE_BATCH",
            "createTime": "2026-01-01T00:00:00Z",
            "currentState": "JOB_STATE_DONE",
            "currentStateTime": "2026-01-01T00:00:00Z",
        }

    def _answer(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def dataflow_stub() -> Iterator[DataflowStub]:
    """A stub that serves."""
    stub = DataflowStub()
    stub.start()
    try:
        yield stub
    finally:
        stub.stop()


def write_credentials(path: Path, endpoint: str) -> None:
    """An account of nobody, whose tokens the stub gives out; for GOOGLE_APPLICATION_CREDENTIALS.

    Without one every process looks for credentials for half a minute. Of the kinds that can be had from a file, this
    is the one for which Google's library asks no server but the one that it names.
    """
    account = {
        "type": "external_account_authorized_user",
        "audience": "rehearsal",
        "refresh_token": "none",
        "token_url": f"{endpoint}/token",
        "token_info_url": f"{endpoint}/token",
        "client_id": "none",
        "client_secret": "none",
    }
    path.write_text(json.dumps(account), encoding="utf-8")
