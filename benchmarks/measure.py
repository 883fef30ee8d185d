"""Runs one command as a whole process and measures it: wall time, CPU time, and the peak memory of its process tree."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CLOCK = os.sysconf("SC_CLK_TCK")
_TICK = 0.05  # seconds between two looks at the resident memory
_TICKS_A_SCAN = 4  # looks between two scans for new processes; one that lives for less than 0.2 s may be missed
_TICKS_A_PSS = 40  # looks between two sums of proportional memory, which cost milliseconds of the process's own time


class Measured(NamedTuple):
    """What one run took."""

    status: int
    seconds: float
    """Wall time, from start to exit: imports, loading and writing included."""
    cpu_seconds: float
    """User and system time of the process tree."""
    other_cores: float
    """Cores that the rest of the machine kept busy meanwhile; where it is high the timing is worth little."""
    peak_rss: int
    """Bytes: the largest sum of resident memory over the process tree; 0 without /proc. Shared pages count in each."""
    peak_pss: int
    """Bytes: the same with shared pages divided among their users, looked at every 2 s; 0 where it is not to be had."""
    stdout: str
    stderr: str


def run(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Measured:
    """Runs a command to its end; `env` is added to the environment. The tree is ended if this is interrupted."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy, start = _busy(), time.perf_counter()
        process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, cwd=cwd, stdout=out, stderr=err, start_new_session=True
        )
        watch = _Watch(process.pid)
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            busy = _busy() - busy
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            watch.stop()
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    # Not usage.ru_maxrss: a child starts with its parent's.
    cpu = max(usage.ru_utime + usage.ru_stime, sum(watch.cpu.values()))
    others = max(0.0, busy - cpu) / seconds
    return Measured(process.returncode, seconds, cpu, others, watch.rss, watch.pss, *texts)


def _busy() -> float:
    """CPU seconds that the whole machine has worked since it started (stolen time included); 0 where unknown."""
    try:
        with open("/proc/stat", "rb") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + irq + softirq + steal) / _CLOCK


class _Watch(threading.Thread):
    """Looks at the memory of a process, its descendants and its session until told to stop."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._root = pid
        self._done = threading.Event()
        self.rss = self.pss = 0
        self.cpu: dict[int, float] = {}
        """Process → CPU seconds when last looked at; for those that nobody waits for."""

    def stop(self) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        tick, pids = 0, [self._root]
        while os.path.isdir("/proc/self") and not self._done.wait(_TICK):
            if tick % _TICKS_A_SCAN == 0:
                seen = _tree(self._root)
                self.cpu.update(seen)
                pids = list(seen)
            self.rss = max(self.rss, sum(map(_rss, pids)), _high_water(self._root))
            tick += 1
            if tick % _TICKS_A_PSS == 0:
                self.pss = max(self.pss, sum(map(_pss, pids)))


def _tree(root: int) -> dict[int, float]:
    """`root`, its descendants, and whatever else belongs to its session: process → its CPU seconds so far."""
    processes: dict[int, tuple[int, int, float]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has ended
            processes[int(name)] = int(fields[1]), int(fields[3]), (int(fields[11]) + int(fields[12])) / _CLOCK
    found = {pid for pid, (_, session, _) in processes.items() if pid == root or session == root}
    while True:
        grown = {pid for pid, (parent, _, _) in processes.items() if parent in found} - found
        if not grown:
            return {pid: processes[pid][2] for pid in found}
        found |= grown


def _rss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _high_water(pid: int) -> int:
    """Peak resident memory of one process as the kernel keeps it, which no look between two ticks can miss."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmHWM:"))
    except (OSError, StopIteration):
        return 0


def _pss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration):
        return 0
