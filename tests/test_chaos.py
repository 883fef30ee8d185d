"""A job that is killed at any moment, and started again, gives the bytes of one that was left alone."""

import contextlib
import gzip
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_job import contents

from beam_prep.errors import BeamPrepError
from beam_prep.manifest import is_finished, read_manifest
from beam_prep.verification import verify

ROOT = Path(__file__).parents[1]
KILLS_OF_A_JOB = 9
"""At most; the moments are dealt among several jobs."""

# Every process of a run reads this when it starts: units, runs and shards so small that a little data gives many.
SMALL = """
from beam_prep import balance, blocks, compression, parquet, sources, tokenization

balance.MIN_BUCKET_TOKENS = balance.MAX_BUCKET_TOKENS = 25_000
blocks.GROUP_BYTES = 4_000
sources.MIN_UNIT_BYTES = 200_000
tokenization.RUN_BYTES = 40_000
compression.CHUNK_BYTES = 30_000
parquet._BATCH_BYTES = 30_000
"""

CONFIG = """
context_length: 256
seed: 11
max_rejects: 0.1
splits: {train: 0.9, val: 0.1}
datasets:
  - {name: plain, text_field: text, input: "plain-*.jsonl", weight: 0.5}
  - {name: packed, text_field: text, input: packed.jsonl.gz, weight: 0.3}
  - {name: columns, text_field: text, input: columns.parquet, weight: 0.2}
"""


def records(numbers: random.Random, count: int) -> Iterator[dict[str, str]]:
    words = ["".join(numbers.choices("abcdefghijklmnopqrstuvwxyz", k=numbers.randint(2, 9))) for _ in range(3000)]
    for number in range(count):
        text = " ".join(numbers.choices(words, k=numbers.randint(5, 300)))
        yield {"text": "the same again" if number % 97 == 5 else text}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration and its inputs."""
    folder = tmp_path_factory.mktemp("chaos")
    numbers = random.Random(5)
    for name, count in (("plain-0", 500), ("plain-1", 30), ("plain-2", 40)):
        lines = [json.dumps(record) for record in records(numbers, count)]
        lines[7:7] = ["", "{not JSON", "  "]
        (folder / f"{name}.jsonl").write_text("\ufeff" + "\n".join(lines))
    with gzip.open(folder / "packed.jsonl.gz", "wt", compresslevel=1) as file:
        file.writelines(json.dumps(record) + "\n" for record in records(numbers, 300))
    table = pa.Table.from_pylist(list(records(numbers, 250)))
    pq.write_table(table, folder / "columns.parquet", row_group_size=90)
    (folder / "c.yaml").write_text(CONFIG)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SMALL)
    return folder


class Runs:
    """Runs of the command, one after the other; see `killed_runs`."""

    def __init__(self, folder: Path):
        self._log = folder / "log"
        path = os.pathsep.join([str(folder / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._program = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "killed_runs.py")],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._line() == ["ready"]

    def _line(self) -> list[str]:
        assert self._program.stdout is not None
        return self._program.stdout.readline().decode().split()

    def run(self, *arguments: str, kill_when: Callable[[], bool] = lambda: False, delay: float = 0.0) -> int:
        """The exit status of a run, or -9 if it was killed: all its processes, `delay` seconds after a moment."""
        assert self._program.stdin is not None and self._program.stdout is not None
        self._program.stdin.write(json.dumps([str(self._log), *arguments]).encode() + b"\n")
        self._program.stdin.flush()
        _, process = self._line()
        while not select.select([self._program.stdout], [], [], 0.002)[0]:
            if kill_when():
                time.sleep(delay)
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.killpg(int(process), signal.SIGKILL)
                break
        return int(self._line()[1])

    @property
    def log(self) -> str:
        """What all of them printed."""
        return self._log.read_text()

    def end(self) -> None:
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait(30)


@pytest.fixture(scope="module")
def runs(folder: Path) -> Iterator[Runs]:
    runs = Runs(folder)
    yield runs
    runs.end()


@pytest.fixture(scope="module")
def undisturbed(folder: Path, runs: Runs) -> dict[str, str]:
    assert runs.run("run", "c.yaml", "--output", "base", "--quiet") == 0, runs.log
    assert verify(str(folder / "base")) == []
    files = contents(folder / "base")
    assert sum("tokenized-samples" in name for name in files) >= 12
    return files


class Moment(NamedTuple):
    """When `count` files of a kind are there."""

    step: int
    """In the order in which a job comes to them."""
    pattern: str
    count: int


MOMENTS = [
    Moment(0, ".work/lock", 1),
    Moment(1, ".work/claim.json", 1),
    *(Moment(2, ".work/runs/*.tmp", 1) for _ in range(2)),
    *(Moment(3, ".work/runs/*.run", count) for count in (1, 3, 6, 10, 15, 20, 26)),
    Moment(4, "rejected/*", 1),
    Moment(5, ".work/placed/*/*", 1),
    Moment(5, ".work/placed/*/*", 12),
    *(Moment(6, ".work/packed/*/*.rows", count) for count in (1, 5)),
    Moment(7, "train/tokenized-samples/*.tmp", 1),
    Moment(8, "train/tokenized-samples/*.bin", 4),
    Moment(8, "train/documents/*.parquet", 6),
    *(Moment(9, ".work/shards/*.shard", count) for count in (1, 4, 8, 11)),
    Moment(10, "train/index/*", 1),
    Moment(11, "manifest.json", 1),
    Moment(12, "_SUCCESS", 1),
]


BY_TWO_WORKERS = (Moment(3, ".work/runs/*.run", 10), Moment(8, "train/tokenized-samples/*.bin", 4))


def is_there(out: Path, moment: Moment) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return sum(1 for _ in out.glob(moment.pattern)) >= moment.count
        except OSError:  # a folder that goes while it is listed
            return False

    return check


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_killed_at_any_moment(folder: Path, runs: Runs, undisturbed: dict[str, str]) -> None:
    numbers = random.Random(2)
    left = list(MOMENTS)
    assert len(left) >= 25
    numbers.shuffle(left)
    kills = 0
    job = 0
    while left:
        job += 1
        assert job <= 12, f"{kills} kills only: {left}"
        out = folder / f"out{job}"
        for moment in sorted(left[:KILLS_OF_A_JOB]):
            workers = "2" if moment in BY_TWO_WORKERS else "1"
            delay = numbers.choice((0.0, 0.0, 0.01, 0.05, 0.2)) if moment.step < 10 else 0.0
            command = ("run", "c.yaml", "--output", out.name, "--quiet", "--workers", workers)
            status = runs.run(*command, kill_when=is_there(out, moment), delay=delay)
            assert status in (0, -signal.SIGKILL), runs.log
            if status == 0:
                break  # it was faster than the look at its files
            kills += 1
            left.remove(moment)
            if (out / "_SUCCESS").exists():
                assert moment.step >= 10
                assert {k: v for k, v in contents(out).items() if not k.startswith(".work")} == undisturbed
            else:
                assert_unfinished(out)
        assert runs.run("run", "c.yaml", "--output", out.name, "--quiet") == 0, runs.log
        assert contents(out) == undisturbed
        assert not (out / ".work").exists()
    assert kills == len(MOMENTS)
    assert "error" not in runs.log, runs.log


def assert_unfinished(out: Path) -> None:
    try:
        manifest = read_manifest(str(out))
    except BeamPrepError:
        return
    assert not is_finished(str(out), manifest)
