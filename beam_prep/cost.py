"""Cost: the disk, memory and time that an estimated run takes here, and what it would cost on Dataflow.

Time follows from what the sample took on this machine, at the load that it had then. The constants below were measured
once, on two virtual cores; they matter for small runs (start-up) and little for large ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from beam_prep.balance import bucket_tokens
from beam_prep.blocks import PLACED
from beam_prep.carrier import length
from beam_prep.dedup import key_ranges
from beam_prep.estimate import Estimate
from beam_prep.machine import cores
from beam_prep.output_estimate import OutputEstimate
from beam_prep.packing import SPAN
from beam_prep.runs import ENTRY, Run

START_SECONDS = 3.0
"""Importing Beam, building the graph, loading the tokenizer."""
_WRITE_BYTES_PER_SECOND = 200e6
"""Placing, packing, gathering, hashing and writing of shards: token bytes a second."""
_PROCESS_BYTES = 800_000_000
"""Resident memory of a worker process on small and middling data: Beam, tokenizer, batches, runs, a bucket."""
_SIDECAR_BYTES = 26.0
"""A row of a documents' sidecar, compressed."""
_COPIES_IN_MEMORY = 5
_INDEX_BYTES = 24
_GIB = 2**30

MACHINE_VCPUS = 4
MACHINE_GIB = 16
"""Workers as of n2-standard-4."""
DISK_GIB = 25
"""Of a worker, with Dataflow Shuffle."""
VCPU_SPEED = 0.5
"""Of a Dataflow vCPU (half a core), beside a core of this machine; waiting for the shuffle is in it. An assumption."""
WORKER_START_SECONDS = 300
"""From a worker's first paid second to its first record, image and tokenizer loaded. An assumption."""
_PER_WORKER_HOURS = 0.5
_MOST_WORKERS = 100


class Prices(NamedTuple):
    """List prices of batch workers, in US dollars."""

    region: str
    published: str
    vcpu_hour: float
    memory_gib_hour: float
    disk_gib_hour: float
    shuffle_gib: float
    """Written and read, before the reduction of the first volume."""
    flexrs: float
    """What FlexRS takes of the price of vCPUs and memory."""


PRICES = Prices("us-central1", "2023-09", 0.056, 0.003557, 0.000054, 0.011, 0.6)
"""As the readme of Google's dataflow-metrics-exporter lists them; cloud.google.com/dataflow/pricing has today's."""


class Resources(NamedTuple):
    """What a run on this machine takes."""

    output_bytes: int
    """Shards, sidecars, indexes."""
    disk_bytes: int
    """At the peak, spill included."""
    memory_bytes: int
    """Resident, at the peak, all processes."""
    seconds: float
    workers: int
    read_bytes_per_second: float
    """Read and rendered, one thread."""
    tokens_per_second: float
    """Encoded, one thread."""


class DataflowCost(NamedTuple):
    """What a run on Dataflow takes."""

    workers: int
    hours: float
    vcpu_hours: float
    memory_gib_hours: float
    disk_gib_hours: float
    shuffle_gib: float
    memory_gib_per_process: float
    dollars: float
    dollars_flexrs: float
    prices: Prices


def output_bytes(made: OutputEstimate, views: Sequence[int]) -> int:
    """Disk that an output takes: shards, sidecars, index, and the indexes of views."""
    tokens = made.output.context_length
    indexes = made.sequences + sum(made.sequences * (tokens // view) for view in views if view < tokens)
    return made.sequences * tokens * 4 + round(made.spans * _SIDECAR_BYTES) + _INDEX_BYTES * indexes


def local_resources(made: Estimate, views: Sequence[int], workers: int) -> Resources:
    """What the run takes on this machine, with so many processes."""
    out = sum(output_bytes(output, views) for output in made.outputs)
    work, main = _work_seconds(made)
    used = min(cores(), max(2, workers))
    # One process reads and renders in one thread, whatever the number of cores.
    tokenizing = max(work / used, main / max(1, min(workers, used)))
    writing = _written(made) / _WRITE_BYTES_PER_SECOND / max(1, min(workers, used))
    # What else the machine does slows down all of a run, and the sample knows by how much.
    total = sum(source.sampled_bytes for source in made.sources)
    waited = sum(s.seconds.waited * s.sampled_bytes for s in made.sources) / total if total else 1.0
    sampled = [source.seconds for source in made.sources]
    read = sum(s.read + s.render for s in sampled)
    encode = sum(s.encode for s in sampled)
    tokens = sum(_run_tokens(source.run) for source in made.sources)
    return Resources(
        out,
        _peak_disk(made, out),
        workers * _process_bytes(made, 1),
        (START_SECONDS + writing) * waited + tokenizing,
        workers,
        sum(source.sampled_bytes for source in made.sources) / read if read else 0.0,
        tokens / encode if encode else 0.0,
    )


def _run_tokens(run: Run) -> int:
    return length(run.tokens) // 4


def _work_seconds(made: Estimate) -> tuple[float, float]:
    """(all work up to the runs, the part that one thread of a process does), of one core of this machine."""
    work = main = 0.0
    for source, encoded in zip(made.sources, made.encoded, strict=True):
        own = (source.seconds.render + source.seconds.build) * source.factor
        main += max(own, source.seconds.read * source.factor)
        work += own + source.seconds.read * source.factor
        if tokens := _run_tokens(source.run):
            work += source.seconds.encode * encoded / tokens
    return work, main


def _written(made: Estimate) -> int:
    return sum(4 * output.tokens for output in made.outputs)


def _documents(made: Estimate) -> float:
    return sum(source.run.documents * source.factor for source in made.sources)


def _all_copies(made: Estimate) -> int:
    return sum(share.copies for output in made.outputs for share in output.shares)


def _peak_disk(made: Estimate, out: int) -> int:
    spans = sum(output.spans for output in made.outputs)
    rows = _documents(made) * ENTRY.itemsize + _all_copies(made) * 2 * PLACED.itemsize + spans * SPAN.itemsize
    spill = 4 * sum(made.encoded)
    largest = max((bucket_tokens(output.tokens) * 4 for output in made.outputs), default=0)
    # A shard stands beside the spill that it is made of until it is finished.
    return round(rows + max(spill + min(out, largest), spill - 4 * made.given_back + out))


def _process_bytes(made: Estimate, token_copies: int) -> int:
    """Resident memory of a process: a part of the key space at once, or a bucket at once."""
    bucket = max((bucket_tokens(output.tokens) for output in made.outputs), default=0)
    least = bucket_tokens(0)
    in_bucket = max((_bucket_documents(output) for output in made.outputs), default=0.0)
    rows = in_bucket * (PLACED.itemsize + SPAN.itemsize) * _COPIES_IN_MEMORY
    parts = key_ranges(sum(source.stored_bytes for source in made.sources), local=True)
    ranges = _documents(made) / parts * ENTRY.itemsize * _COPIES_IN_MEMORY
    return round(_PROCESS_BYTES + 4 * (bucket * token_copies - least) + max(rows, ranges))


def _bucket_documents(output: OutputEstimate) -> float:
    return sum(share.copies for share in output.shares) / max(1, output.shards)


def dataflow_cost(made: Estimate, workers: int | None = None, prices: Prices = PRICES) -> DataflowCost:
    """What the run takes on Dataflow.

    Args:
      workers: machines of `MACHINE_VCPUS`; by default as many as have about half an hour of work each.

    All data crosses the shuffle: tokens once on the way from Tokenize to Place and every copy of them on the way to
    Pack, each written and read.
    """
    work, _ = _work_seconds(made)
    seconds = (work + _written(made) / _WRITE_BYTES_PER_SECOND) / VCPU_SPEED
    if workers is None:
        workers = max(1, min(_MOST_WORKERS, math.ceil(seconds / 3600 / MACHINE_VCPUS / _PER_WORKER_HOURS)))
    hours = seconds / 3600 / MACHINE_VCPUS / workers + WORKER_START_SECONDS / 3600
    paid = hours * workers
    rows = _documents(made) * 2 * ENTRY.itemsize + _all_copies(made) * PLACED.itemsize
    shuffled = 2 * (4 * sum(made.encoded) + _written(made) + rows) / _GIB
    vcpu, memory, disk = paid * MACHINE_VCPUS, paid * MACHINE_GIB, paid * DISK_GIB
    machines = vcpu * prices.vcpu_hour + memory * prices.memory_gib_hour
    rest = disk * prices.disk_gib_hour + shuffled * prices.shuffle_gib
    process = _process_bytes(made, _COPIES_IN_MEMORY) / _GIB
    return DataflowCost(
        workers,
        hours,
        vcpu,
        memory,
        disk,
        shuffled,
        process,
        machines + rest,
        machines * prices.flexrs + rest,
        prices,
    )
