"""Machine: how many processes and how much memory a local run takes of it. Nothing here changes what comes out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from beam_prep.errors import ConfigError
from beam_prep.sizes import MB, size

LOCAL_RUNNERS = ("local", "LocalRunner", "DirectRunner", "BundleBasedDirectRunner", "FnApiRunner")
"""Names of the runner that works on this machine."""
PROCESS_BYTES = 900 * MB
"""Resident memory of a process that tokenizes, at the least: Beam, two tokenizers, batches, a bucket. Measured."""
LEADER_BYTES = 500 * MB
"""Of the process that leads several others, and of the one that they are forked from. Measured."""
DEFAULT_BYTES = 1500 * MB
"""For one process; most of what is above `PROCESS_BYTES` is never used."""
_CORES_A_PROCESS = 2
"""A process reads and renders in one thread, encodes and writes in others. On two cores a second process makes chats
1.4 to 1.7 times as fast and plain text 1.1 to 1.2 times, but takes more than twice the memory, above the 1.5 GB that a
run may take unasked (`benchmarks/workers.py`): so there is one for each core only where `--memory` says that it may."""
_INPUT_A_PROCESS = 500 * MB
"""Less than this does not pay for the start of another process."""
_MOST_ENCODERS = 4
"""More threads than this would wait for the one that reads and renders."""
_LEAST_RUN_BYTES, _MOST_RUN_BYTES = 8 << 20, 256 << 20


class Allotment(NamedTuple):
    """What a local run takes."""

    workers: int
    """Processes."""
    encoders: int
    """Threads that encode in each of them."""
    memory: int
    """Bytes of resident memory, all processes."""
    run_bytes: int | None
    """Tokens that a process holds before it writes them; None for the usual."""


def cores() -> int:
    """Of this machine, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int | None:
    """Bytes that this process may use, container limits included; None where the system does not say."""
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # "max"
            continue
    return min(found, default=None)


def is_for_one_process(workers: int | None, memory: str | None) -> bool:
    """Whether a run takes one process whatever its input is. `workers`, `memory`: as asked for; None if not."""
    return (_most_useful(cores(), memory is not None) if workers is None else workers) <= 1


def _most_useful(available_cores: int, memory_given: bool) -> int:
    """Processes that so many cores are worth."""
    return available_cores if memory_given else available_cores // _CORES_A_PROCESS


def _fitting(memory: int) -> int:
    """How many processes fit; several need one more to lead them."""
    several = (memory - LEADER_BYTES) // PROCESS_BYTES
    return max(several, memory // PROCESS_BYTES and 1)


def allot(
    workers: int | None,
    memory: int | None,
    input_bytes: int,
    available_cores: int | None = None,
    available_memory: int | None = None,
) -> Allotment:
    """What a run takes.

    Args:
      workers, memory: as asked for; None for what suits.
      input_bytes: of all inputs, as they are stored.
      available_cores, available_memory: of the machine; None to look.

    Raises:
      ConfigError: so many processes do not fit into so much memory.
    """
    available_cores = available_cores or cores()
    available_memory = available_memory or total_memory() or 2 * DEFAULT_BYTES
    most = _fitting(available_memory // 2 if memory is None else memory)
    if memory is not None and not most:
        raise ConfigError(f"--memory {size(memory)}: a process takes {size(PROCESS_BYTES)} at the least; give more")
    if workers is None:
        wanted = min(_most_useful(available_cores, memory is not None), input_bytes // _INPUT_A_PROCESS, most)
        workers = max(1, wanted)
    elif memory is not None and workers > most:
        raise ConfigError(
            f"--workers {workers} take {size(LEADER_BYTES + workers * PROCESS_BYTES)} of memory at the least, and "
            f"--memory gives {size(memory)}; give --workers {most} or more memory"
        )
    encoders = min(_MOST_ENCODERS, max(1, available_cores // workers))
    if memory is None:
        return Allotment(workers, encoders, workers * DEFAULT_BYTES, None)
    spare = (memory - (LEADER_BYTES if workers > 1 else 0)) // workers - PROCESS_BYTES
    return Allotment(workers, encoders, memory, min(_MOST_RUN_BYTES, max(_LEAST_RUN_BYTES, spare // 2)))
