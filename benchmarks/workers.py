"""One process of the local runner against two: where rendering dominates, and on plain text.

    python benchmarks/workers.py
    python benchmarks/workers.py --bytes 1e9 -n 3 --only chat

Chat: rows of glaive-function-calling, repeated with a number of their own in each, so that templates are most of the
work. Text: the corpus of `corpora.py`. Runs are whole processes, start-up included, and take turns; medians count, and
what matters are ratios: of wall time, and of CPU time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
from corpora import DEFAULT_SOURCE, REPOSITORY, make_corpus
from measure import Measured, run

DATA = REPOSITORY / "benchmarks" / "data"
ROWS = DEFAULT_SOURCE.parent / "raw" / "glaive-function-calling.jsonl.gz"


def make_chat(size: int, folder: Path) -> dict:
    """A dataset of chats of so many bytes."""
    path = folder / f"chat-{size}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(ROWS) as lines:
            rows = [orjson.loads(line) for line in lines]
        written = number = 0
        with open(path.with_suffix(".tmp"), "wb") as file:
            while written < size:
                row = dict(rows[number % len(rows)])
                row["chat"] = row["chat"].replace("USER: ", f"USER: ({number}) ", 1)
                written += file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                number += 1
        path.with_suffix(".tmp").rename(path)
    return {"name": "chat", "template": "glaive-function-calling", "input": str(path)}


def make_text(size: int, folder: Path) -> dict:
    """A dataset of plain text of so many bytes."""
    return {"name": "text", "text_field": "text", "input": [str(p) for p in make_corpus(size, folder / "corpus")]}


WORKLOADS: dict[str, tuple[Callable[[int, Path], dict], float]] = {"chat": (make_chat, 2e9), "text": (make_text, 2e9)}
"""How the input is made, and how large it is by default."""


def once(dataset: dict, workers: int, work: Path) -> Measured:
    """Runs the job with so many processes."""
    out, config = work / "out", work / "workers.yaml"
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    config.write_text(json.dumps({"context_length": 4096, "output": str(out), "datasets": [dataset]}))
    command = [sys.executable, "-m", "beam_prep", "run", str(config), "--quiet", "--workers", str(workers)]
    measured = run(command, env={"PYTHONPATH": str(REPOSITORY)})
    if measured.status:
        sys.exit(f"the run failed:\n{measured.stderr}")
    shutil.rmtree(out)
    return measured


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=float, help="input of each workload (default 2e9)")
    parser.add_argument("--only", choices=list(WORKLOADS), help="one workload")
    parser.add_argument("-n", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--work", type=Path, default=DATA / "workers", help="folder (default %(default)s)")
    args = parser.parse_args()
    for name, (make, usual) in WORKLOADS.items():
        if args.only not in (None, name):
            continue
        size = int(args.bytes or usual)
        dataset = make(size, args.work)
        runs: dict[int, list[Measured]] = {1: [], 2: []}
        for _ in range(args.n):
            for workers, done in runs.items():
                done.append(once(dataset, workers, args.work))
        print(f"{name}, {size / 1e9:g} GB, {args.n} runs each")
        print(f"{'workers':>8} {'seconds':>16} {'MB/s':>6} {'CPU s':>6} {'RSS MB':>7} {'others':>7}")
        middle = {}
        for workers, done in runs.items():
            seconds = sorted(m.seconds for m in done)
            middle[workers] = statistics.median(seconds), statistics.median(m.cpu_seconds for m in done)
            print(
                f"{workers:8} {middle[workers][0]:6.1f} ({seconds[0]:.1f}-{seconds[-1]:.1f}) "
                f"{size / 1e6 / middle[workers][0]:6.1f} {middle[workers][1]:6.1f} "
                f"{max(m.peak_rss for m in done) / 1e6:7.0f} {max(m.other_cores for m in done):7.1f}"
            )
        faster, more = middle[1][0] / middle[2][0], middle[2][1] / middle[1][1]
        print(f"two against one: {faster:.2f} times as fast, {more:.2f} of the CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
