"""Time, memory and disk of `beam-prep run` as its input grows: is the cost of a GB the same, and memory flat?

    python benchmarks/scale.py                              # 0.5, 1, 2, 4, 8 GB
    python benchmarks/scale.py --sizes 1,20 --work /big/disk
    python benchmarks/scale.py --sizes 1,8 --memory 2GB --check

The corpus is real text repeated with distinct content (`corpora.py`), half a GB a file; a size is the first so many of
them. Every run is a process of its own, from start to exit; the sizes run in turn, `-n` times over, and the fastest run
of each counts, as other work on the machine only ever adds. Disk is what stands below the output at once, spill
included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from corpora import DEFAULT_SOURCE, REPOSITORY, make_corpus
from measure import Measured, run

DATA = REPOSITORY / "benchmarks" / "data"
FILE_BYTES = 500_000_000
MOST_COST = 1.1
"""Seconds a GB of the largest size, as a multiple of those at 1 GB."""
MOST_RSS = 1500e6
_LOOK_SECONDS = 1.0


class Result(NamedTuple):
    """One run."""

    gigabytes: float
    measured: Measured
    disk: int
    """Bytes on the disk, at the peak."""
    kept: int
    """Bytes of the finished output."""

    @property
    def seconds_a_gigabyte(self) -> float:
        """The cost."""
        return self.measured.seconds / self.gigabytes


class _Disk(threading.Thread):
    """Looks at what a folder takes of the disk until told to stop."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self._folder, self._done, self.peak = folder, threading.Event(), 0

    def run(self) -> None:
        while not self._done.wait(_LOOK_SECONDS):
            self.peak = max(self.peak, used(self._folder))

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.peak


def used(folder: Path) -> int:
    """Bytes of the disk that are taken below a folder; holes take none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name), follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def once(files: list[Path], work: Path, arguments: list[str]) -> Result:
    """Runs the job on some files and checks that it is finished."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    dataset = {"name": "corpus", "text_field": "text", "epochs": 1, "input": [str(path) for path in files]}
    config = work / "scale.yaml"
    config.write_text(json.dumps({"context_length": 32_768, "output": str(out), "datasets": [dataset]}))
    disk = _Disk(out)
    disk.start()
    command = [sys.executable, "-m", "beam_prep", "run", str(config), "--quiet", *arguments]
    measured = run(command, env={"PYTHONPATH": str(REPOSITORY)})
    peak = disk.stop()
    if measured.status or not (out / "_SUCCESS").exists():
        sys.exit(f"the run failed:\n{measured.stderr}")
    kept = used(out)
    shutil.rmtree(out)
    return Result(sum(path.stat().st_size for path in files) / 1e9, measured, peak, kept)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="0.5,1,2,4,8", help="GB, a comma between two (default %(default)s)")
    parser.add_argument("-n", type=int, default=1, help="runs of each size (default 1)")
    parser.add_argument("--memory", help="for beam-prep run")
    parser.add_argument("--workers", help="for beam-prep run")
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder of corpora (default %(default)s)")
    parser.add_argument("--work", type=Path, default=DATA, help="folder for input and output (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bound does not hold")
    args = parser.parse_args()
    sizes = sorted(float(size) for size in args.sizes.split(","))
    work = args.work / "scale"
    count = max(1, round(sizes[-1] * 1e9 / FILE_BYTES))
    files = make_corpus(count * FILE_BYTES, work / "corpus", count, args.source)
    arguments = [
        text for name in ("memory", "workers") if (value := getattr(args, name)) for text in (f"--{name}", value)
    ]
    best: dict[float, Result] = {}
    for _ in range(args.n):
        for size in sizes:
            made = once(files[: max(1, round(size * 1e9 / FILE_BYTES))], work, arguments)
            if size not in best or made.measured.seconds < best[size].measured.seconds:
                best[size] = made
            busy = (
                f"  (others kept {made.measured.other_cores:.1f} cores busy)" if made.measured.other_cores > 0.2 else ""
            )
            print(f"{made.gigabytes:g} GB: {made.measured.seconds:.1f} s{busy}", file=sys.stderr, flush=True)
    base = min(best.values(), key=lambda result: abs(result.gigabytes - 1))
    heads = {"GB": 6, "seconds": 8, "MB/s": 6, "CPU s/GB": 9, "s/GB": 6, "of 1 GB": 8, "RSS MB": 7}
    heads |= {"disk GB": 8, "kept GB": 8}
    print(" ".join(head.rjust(width) for head, width in heads.items()))
    for result in best.values():
        m = result.measured
        print(
            f"{result.gigabytes:6.2f} {m.seconds:8.1f} {1000 * result.gigabytes / m.seconds:6.1f} "
            f"{m.cpu_seconds / result.gigabytes:9.1f} {result.seconds_a_gigabyte:6.1f} "
            f"{result.seconds_a_gigabyte / base.seconds_a_gigabyte:8.2f} {m.peak_rss / 1e6:7.0f} "
            f"{result.disk / 1e9:8.2f} {result.kept / 1e9:8.2f}"
        )
    largest = best[sizes[-1]]
    cost = largest.seconds_a_gigabyte / base.seconds_a_gigabyte
    rss = max(result.measured.peak_rss for result in best.values())
    held = cost <= MOST_COST and rss <= MOST_RSS
    print(
        f"cost of a GB at {largest.gigabytes:g} GB: {cost:.2f} of that at {base.gigabytes:g} GB (at most {MOST_COST})"
    )
    print(f"peak RSS: {rss / 1e6:.0f} MB (at most {MOST_RSS / 1e6:.0f})")
    return 0 if held or not args.check else 1


if __name__ == "__main__":
    sys.exit(main())
