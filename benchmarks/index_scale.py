"""Index, manifest and their checks for tens of millions of sequences: made-up shard records, no tokens written.

    python benchmarks/index_scale.py --sequences 30e6 --shards 100e3 --folder /tmp/index

Prints what each step takes, and the largest resident set until then. Cost should follow the number of sequences (index)
or of shards (all else), memory the number of shards alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from beam_prep import finalize, inspection, storage, verification
from beam_prep.balance import Plan, PlannedOutput
from beam_prep.config import Config
from beam_prep.index import difference, index_files, read_location
from beam_prep.job import Job, make_job, resolve_sources
from beam_prep.ledger import Tally
from beam_prep.manifest import parse_manifest
from beam_prep.mix import Rate
from beam_prep.mixture import Share
from beam_prep.place import PlacedTally
from beam_prep.shards import ShardRecord, shard_name
from beam_prep.tokenizer import resolve

CONTEXT_LENGTH = 4096
SOURCES = 8


def records(sequences: int, shards: int) -> list[ShardRecord]:
    """Records of shards of nearly equal size, each with all sources."""
    counts = np.diff(np.linspace(0, sequences, shards + 1).astype(np.int64)).tolist()
    made = []
    for bucket, count in enumerate(counts):
        tokens = count * CONTEXT_LENGTH
        parts = [tokens // SOURCES] * SOURCES
        parts[0] += tokens - sum(parts)
        name = shard_name(bucket, shards)
        made.append(
            ShardRecord(
                0,
                bucket,
                f"tokenized-samples/{name}.bin",
                count,
                4 * tokens,
                f"{bucket:064x}",
                f"documents/{name}.parquet",
                f"{bucket:064x}",
                SOURCES * count,
                0,
                0,
                tuple(parts),
                (count,) * SOURCES,
                (count,) * SOURCES,
                0,
            )
        )
    return made


def made_up(shards: list[ShardRecord], folder: str) -> tuple[Job, Plan, list[PlacedTally]]:
    """A job, a plan and tallies that agree with the records."""
    names = [f"source-{n}" for n in range(SOURCES)]
    config = Config.model_validate(
        {
            "output": folder,
            "context_length": CONTEXT_LENGTH,
            "datasets": [{"name": n, "input": "x", "template": "simple-wikipedia"} for n in names],
        }
    )
    tokenizer = resolve("qwen3")
    job = make_job(config, resolve_sources(config, tokenizer, None), tokenizer, "none", None)
    sequences = sum(s.sequences for s in shards)
    tokens = tuple(sum(s.source_tokens[n] for s in shards) for n in range(SOURCES))
    shares = tuple(Share(None, Rate(1, 0), n) for n in tokens)
    planned = PlannedOutput(job.outputs[0], len(shards), sum(tokens), (sequences,) * SOURCES, tokens, shares)
    tally = Tally(records=sequences, rendered=sequences).to_dict()
    plan = Plan((planned,), (tally,) * SOURCES, (0,) * SOURCES)
    placed = [PlacedTally(f"run-{n}", n, sequences, 0, 0, (tokens[n],), (sequences,)) for n in range(SOURCES)]
    return job, plan, placed


def peak() -> int:
    """The largest resident set of this process until now, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def step(name: str, found: dict[str, float]) -> Iterator[None]:
    """Times a step."""
    begin = time.perf_counter()
    yield
    found[name] = time.perf_counter() - begin
    print(f"{name:34} {found[name]:8.2f} s   {peak() / 1e6:8.0f} MB", flush=True)


def main() -> None:
    """Runs the steps one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=float, default=30e6)
    parser.add_argument("--shards", type=float, default=100e3)
    parser.add_argument("--folder", help="Where to write; a temporary folder by default.")
    arguments = parser.parse_args()
    folder = arguments.folder or tempfile.mkdtemp(prefix="beam-prep-index-")
    found: dict[str, float] = {}
    try:
        measure(int(arguments.sequences), int(arguments.shards), folder, found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(sequences: int, shards: int, folder: str, found: dict[str, float]) -> None:
    """All steps; the seconds of each go to `found`."""
    print(f"{sequences:,} sequences, {shards:,} shards; begins at {peak() / 1e6:.0f} MB")
    with step("make the records", found):
        made = records(sequences, shards)
        job, plan, placed = made_up(made, folder)
    sizes: dict[str, int | None] = {s.path: s.bytes for s in made} | {s.documents_path: 1 for s in made}

    def sizes_of(_: str, paths: list[str]) -> dict[str, int | None]:
        return {path: sizes[path] for path in paths}

    # The shards are not there, but everything else is.
    with mock.patch.object(storage, "sizes", sizes_of):
        with step("finalize: ledger, index, manifest", found):
            finalize.finalize(job, plan, placed, made, [])
        path = Path(folder, finalize.MANIFEST)
        with step(f"parse the manifest ({path.stat().st_size / 1e6:.0f} MB)", found):
            manifest = parse_manifest(path.read_bytes())
        entry = manifest.outputs["train"]
        with step("verify: files", found):
            expect_nothing(verification.check_files(folder, "train", entry))
        with step("verify: index", found):
            expect_nothing(verification.check_index(folder, "train", entry))
        with step("verify: figures and ledger", found):
            expect_nothing(verification.check_figures(manifest, "train", entry))
            expect_nothing(verification.check_ledger(manifest))
        with step("verify: orphans", found):
            paths = [f"train/{path}" for path in sizes]
            expect_nothing(verification.check_orphans(folder, manifest, paths))
    with step("inspect: summary", found):
        json.dumps(inspection.summary(folder, manifest))
    with step("find one sequence", found):
        path, offset, size = read_location(f"{folder}/train", sequences - 1)
        shard = next(s for s in entry.shards if s.path == path)
        assert (offset, size) == ((shard.sequences - 1) * size, 4 * CONTEXT_LENGTH)
    with step("compare the index once more", found):
        counts = [s.sequences for s in made]
        files: dict[str, Any] = index_files([s.path for s in made], counts, 4 * CONTEXT_LENGTH)
        assert all(difference(f"{folder}/train/index/{file}", parts) is None for file, parts in files.items())


def expect_nothing(findings: list) -> None:
    """Fails if a check found something."""
    if findings:
        raise SystemExit(f"unexpected: {findings[0]}")


if __name__ == "__main__":
    main()
