"""What weights and stages cost: the same work with and without them, each timed as a whole process.

    python benchmarks/mixture.py --bytes 2e8

* weights: one output whose datasets have weights, against the same output from the `epochs` that the weights came to.
* stages: three stages (short context by purpose twice, long documents once), against one output of as many tokens.

The corpus is real text repeated with distinct content (`corpora.py`), a file a dataset. The four runs take turns, with
the corpus in the page cache and earlier output flushed and removed; the ratio is that of the medians. Arguments after
`--` go to `beam-prep run`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from corpora import DEFAULT_SOURCE, REPOSITORY, make_corpus
from measure import Measured, run

DATA = REPOSITORY / "benchmarks" / "data"
WEIGHTS = (4.0, 3.0, 2.5, 2.0)
"""No source is seen less than once: what `epochs` below 1 leave out is known beforehand and need not be encoded, what a
weight leaves out is only known when all is counted. That is no cost of resolving weights."""
PURPOSES = ("grammar", "dialogue", "reasoning", "code")
COMPARED = (("weights", "epochs", 1.25), ("stages", "one output", 1.3))
"""What is compared with what, and the ratio that is allowed."""


class Result(NamedTuple):
    """A finished run."""

    measured: Measured
    manifest: dict

    @property
    def tokens(self) -> int:
        """Of all outputs."""
        return sum(output["tokens"] for output in self.manifest["outputs"].values())


class Bench:
    """The corpus and the folders of one invocation."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.out, self.config = args.work / "out", args.work / "run.yaml"
        shutil.rmtree(args.work, ignore_errors=True)
        args.work.mkdir(parents=True)
        self.files = make_corpus(int(args.bytes), args.data, len(PURPOSES), args.source)
        self.configs: dict[str, dict] = {}

    def prepare(self) -> None:
        """Makes the four configurations; the last two follow from what the first two give."""
        self.configs["weights"] = self._config([{"weight": weight} for weight in WEIGHTS], max_epochs=2)
        weighted = self.once("weights").manifest["outputs"]["train"]
        epochs = [weighted["sources"][f"d{n}"]["epochs"] for n in range(len(PURPOSES))]
        self.configs["epochs"] = self._config([{"epochs": number} for number in epochs])
        purposes = [{"epochs": 1, "purpose": purpose} for purpose in PURPOSES]
        self.configs["stages"] = self._config(purposes, stages="qwen3")
        stages = self.once("stages")
        once = sum(o["tokens"] for name, o in stages.manifest["outputs"].items() if not name.startswith("S3"))
        self.configs["one output"] = self._config([{"epochs": stages.tokens / once}] * len(PURPOSES))

    def _config(self, wishes: list[dict], **top: object) -> dict:
        datasets = [
            {"name": f"d{number}", "text_field": "text", "input": str(path), **wish}
            for number, (path, wish) in enumerate(zip(self.files, wishes, strict=True))
        ]
        return {"context_length": 4096, **top, "datasets": datasets}

    def once(self, name: str) -> Result:
        """Runs a configuration.

        Raises:
          RuntimeError: the run failed.
        """
        shutil.rmtree(self.out, ignore_errors=True)
        self.config.write_text(json.dumps(self.configs[name]))  # JSON is YAML
        os.sync()  # what an earlier run has yet to write must not slow this one
        command = [sys.executable, "-m", "beam_prep", "run", str(self.config), "--output", str(self.out)]
        measured = run([*command, *self.args.beam_args], cwd=REPOSITORY)
        if measured.status:
            raise RuntimeError(f"{name}: exit status {measured.status}\n{measured.stderr[-2000:]}")
        return Result(measured, json.loads((self.out / "manifest.json").read_text()))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", 1)[0], epilog="Arguments after -- go to `beam-prep run`."
    )
    parser.add_argument("--bytes", type=float, default=1e9, help="size of the corpus (default 1e9)")
    parser.add_argument("-n", "--repeats", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder of corpora")
    parser.add_argument("--data", type=Path, default=DATA / "corpus", help="where the corpus is kept")
    parser.add_argument("--work", type=Path, default=DATA / "mixture", help="scratch folder, emptied first")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a target is missed")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:split])
    args.beam_args = sys.argv[split + 1 :]
    return args


def main() -> int:
    """Runs the benchmark and prints its table."""
    args = arguments()
    try:
        bench = Bench(args)
        bench.prepare()
        results: dict[str, list[Result]] = {name: [] for name in bench.configs}
        for _ in range(args.repeats):
            for name, done in results.items():
                done.append(bench.once(name))
    except (FileNotFoundError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(args.work, ignore_errors=True)
    seconds = {name: [r.measured.seconds for r in done] for name, done in results.items()}
    print("| run        | seconds (range)    | CPU s | tokens        | peak RSS MB | other cores |")
    print("|------------|-------------------:|------:|--------------:|------------:|------------:|")
    for name, done in results.items():
        wall = f"{statistics.median(seconds[name]):.1f} ({min(seconds[name]):.1f}-{max(seconds[name]):.1f})"
        cpu = statistics.median(r.measured.cpu_seconds for r in done)
        rss = max(r.measured.peak_rss for r in done) / 1e6
        others = statistics.median(r.measured.other_cores for r in done)
        print(f"| {name:10} | {wall:>18} | {cpu:5.1f} | {done[0].tokens:13,} | {rss:11,.0f} | {others:11.1f} |")
    met = True
    for name, against, most in COMPARED:
        wall = statistics.median(seconds[name]) / statistics.median(seconds[against])
        cpu, of = (statistics.median(r.measured.cpu_seconds for r in results[n]) for n in (name, against))
        met &= wall <= most
        print(
            f"{'met ' if wall <= most else 'MISSED'} {name} / {against}: {wall:.2f} of the time (at most {most}), "
            f"{cpu / of:.2f} of the CPU time"
        )
    if args.json:
        told = {name: [r.measured._asdict() | {"tokens": r.tokens} for r in done] for name, done in results.items()}
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if met or not args.check else 1


if __name__ == "__main__":
    raise SystemExit(main())
