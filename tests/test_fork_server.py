"""Workers that are forked: how they end is told, whoever ends them; and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import children

from beam_prep import fork_server
from beam_prep.fork_server import ForkServer
from beam_prep.tokenizer import resolve

pytestmark = pytest.mark.skipif(
    not fork_server.POSSIBLE or not Path("/proc/self/task").is_dir(), reason="workers are not forked on this system"
)
NOBODY = {"CONTROL_API_SERVICE_DESCRIPTOR": 'url: "localhost:1"', "PIPELINE_OPTIONS": "{}"}
"""What makes a worker wait for a runner that is not there."""


def wait_for_children(process: int, count: int) -> list[int]:
    for _ in range(600):
        found = children(process)
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{process} has {len(found)} children, not {count}")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(process: int) -> None:
    for _ in range(200):
        if not is_running(process):
            return
        time.sleep(0.05)
    raise AssertionError(f"{process} is left behind")


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer(resolve("qwen3"), "auto")
    yield server
    server.close()


def test_how_workers_end(server: ForkServer) -> None:
    process = server._process.pid
    with ThreadPoolExecutor(2) as pool:
        ends = {name: pool.submit(server.run_worker, name, NOBODY) for name in ("a", "b")}
        first, second = wait_for_children(process, 2)
        os.kill(first, signal.SIGKILL)
        wait_for_children(process, 1)
        os.kill(second, signal.SIGTERM)
        assert sorted(end.result(timeout=30) for end in ends.values()) == [-15, -9]
        assert is_running(process)

        third = pool.submit(server.run_worker, "c", NOBODY)
        (worker,) = wait_for_children(process, 1)
        os.kill(process, signal.SIGKILL)
        assert third.result(timeout=30) == -9
        wait_for_end(worker)
    assert server.run_worker("d", NOBODY) == -9


def test_a_tokenizer_that_cannot_be_loaded_is_the_workers_to_report() -> None:
    server = ForkServer(resolve("qwen3")._replace(sha256="0" * 64), "auto")
    with ThreadPoolExecutor(1) as pool:
        end = pool.submit(server.run_worker, "a", NOBODY)
        (worker,) = wait_for_children(server._process.pid, 1)
        os.kill(worker, signal.SIGKILL)
        assert end.result(timeout=30) == -9
    server.close()


def test_workers_do_not_outlive_who_started_them(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        from beam_prep.fork_server import ForkServer
        from beam_prep.tokenizer import resolve
        ForkServer(resolve("qwen3"), "auto").run_worker("a", {NOBODY!r})
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    (process,) = wait_for_children(parent.pid, 1)
    (worker,) = wait_for_children(process, 1)
    parent.kill()
    parent.wait()
    wait_for_end(process)
    wait_for_end(worker)
