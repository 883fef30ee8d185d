"""Throughput and memory of `beam-prep run` beside the raw limit and other tools, each timed as a whole process.

    python benchmarks/throughput.py                         # everything that is installed, 1 GB
    python benchmarks/throughput.py --bytes 4e9 --only beam-prep,raw -n 1
    python benchmarks/throughput.py --json result.json -- --direct_num_workers=2

The corpus is real text repeated with distinct content (`corpora.py`). The contenders run in turn, A B C A B C, with the
corpus in the page cache and earlier output flushed and removed; medians are reported. Wall time is from the start of
the process to its end, imports and tokenizer included. data-forager's indexer and datatrove get a slice of the corpus
(`--slice`), as the whole would take many minutes: rates are compared, and theirs leave start-up out, in their favour.
Arguments after `--` go to `beam-prep run`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from corpora import DEFAULT_SOURCE, REPOSITORY, make_corpus
from measure import Measured, run

DATA = REPOSITORY / "benchmarks" / "data"
OURS = "beam-prep"
CONTEXT_LENGTH = 32_768
_QUIET = 0.2  # cores of other work that are worth no remark


class Contender(NamedTuple):
    """One way to turn the corpus into tokens on disk."""

    title: str
    needs: tuple[str, ...] = ()
    """Modules that its interpreter must have."""
    sliced: bool = False
    """It is given a slice of the corpus, and its rate leaves its start-up out."""
    env: tuple[tuple[str, str], ...] = ()


# RAYON_NUM_THREADS alone leaves fastokens a thread pool of its own, whose threads work beside the caller's.
_ONE_THREAD = (("FASTOKENS_BPE_THREADS", "1"), ("RAYON_NUM_THREADS", "1"))
CONTENDERS = {
    OURS: Contender("beam-prep run"),
    "raw": Contender("raw limit, one thread: read, parse, encode, write", ("fastokens",), env=_ONE_THREAD),
    "raw-own": Contender("the same with fastokens' own threads", ("fastokens",)),
    "forager": Contender("data-forager's indexer", ("data_forager", "tokenizers"), sliced=True),
    "datatrove": Contender("datatrove's DocumentTokenizer", ("datatrove", "tokenizers"), sliced=True),
    "gigatoken": Contender("gigatoken and write, corpus in RAM", ("gigatoken", "awkward")),
    "megatron": Contender("the same, separators joined as in Megatron-LM", ("gigatoken", "awkward")),
}

TARGETS: tuple[tuple[str, Callable[[dict], float | None], float, bool], ...] = (
    ("MB/s of input", lambda rows: _get(rows, OURS, "rate"), 80, True),
    ("of the raw limit", lambda rows: _ratio(rows, "raw"), 0.7, True),
    ("times data-forager's indexer", lambda rows: _ratio(rows, "forager"), 20, True),
    ("times datatrove", lambda rows: _ratio(rows, "datatrove"), 20, True),
    ("times the Megatron-like path", lambda rows: _ratio(rows, "megatron"), 1, True),
    ("MB of peak RSS", lambda rows: _get(rows, OURS, "rss"), 1200, False),
)
"""What is asked of beam-prep: words, how it is read from the table, the bound, and whether more is better."""


def _get(rows: dict, name: str, key: str) -> float | None:
    return rows[name][key] if name in rows else None


def _ratio(rows: dict, other: str) -> float | None:
    return rows[OURS]["rate"] / rows[other]["rate"] if OURS in rows and other in rows else None


class Bench:
    """The corpus, the tokenizer and the folders of one invocation."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.work = args.work
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / "slice").mkdir(parents=True)
        self.files = make_corpus(int(args.bytes), args.data, args.files, args.source)
        self.slice = self._cut(int(args.slice))
        self.tokenizer = self._tokenizer()
        self.config = self.work / "run.yaml"
        dataset = {"name": "corpus", "text_field": "text", "epochs": 1, "input": [str(path) for path in self.files]}
        config = {"tokenizer": "qwen3", "context_length": CONTEXT_LENGTH, "datasets": [dataset]}
        self.config.write_text(json.dumps(config))  # JSON is YAML

    def _cut(self, size: int) -> list[Path]:
        """The beginning of each of the first files as a file of its own, as many as there are cores."""
        sources = self.files[: os.cpu_count() or 1]
        paths = []
        for source in sources:
            path = self.work / "slice" / source.name
            written = 0
            with open(source, "rb") as lines, open(path, "wb") as file:
                for line in lines:
                    if written >= size // len(sources):
                        break
                    written += file.write(line)
            paths.append(path)
        return paths

    def _tokenizer(self) -> Path:
        sys.path.insert(0, str(REPOSITORY))
        from beam_prep.tokenizer import local_copy, resolve

        return local_copy(resolve("qwen3"), self.work)

    def python(self, name: str) -> str:
        """The interpreter that a contender runs in."""
        return sys.executable if name in (OURS, "raw", "raw-own") else self.args.peer_python

    def missing(self, name: str) -> list[str]:
        """Modules that a contender needs and does not have."""
        needs = CONTENDERS[name].needs
        if self.python(name) == sys.executable:
            return [module for module in needs if importlib.util.find_spec(module) is None]
        code = f"import importlib.util as u; print(*[m for m in {needs!r} if u.find_spec(m) is None])"
        return subprocess.run(
            [self.python(name), "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()

    def inputs(self, name: str) -> list[Path]:
        """The files that a contender reads."""
        return self.slice if CONTENDERS[name].sliced else self.files

    def once(self, name: str) -> dict:
        """Runs a contender once.

        Returns:
          Its `Measured` fields, with `documents`, `tokens` and `steady` (seconds without start-up), or `error`.
        """
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        if name == OURS:
            command = [self.python(name), "-m", "beam_prep", "run", str(self.config), "--output", str(out)]
            command += self.args.beam_args
        else:
            out.mkdir()
            script = REPOSITORY / "benchmarks" / "contenders.py"
            command = [
                self.python(name),
                str(script),
                name.partition("-")[0],
                "--tokenizer",
                str(self.tokenizer),
                "--out",
                str(out),
            ]
            command += map(str, self.inputs(name))
        os.sync()  # what an earlier run has yet to write must not slow this one
        measured = run(command, dict(CONTENDERS[name].env), REPOSITORY)
        result = {k: v for k, v in measured._asdict().items() if k not in ("stdout", "stderr")}
        try:
            result |= _own_numbers(out) if name == OURS else json.loads(measured.stdout.splitlines()[-1])
        except (OSError, LookupError, ValueError):
            measured = measured._replace(status=measured.status or 1)
        if measured.status:
            result["error"] = _why(measured)
        shutil.rmtree(out, ignore_errors=True)
        return result


def _own_numbers(out: Path) -> dict:
    """Documents and tokens (padding left out) from a finished run's manifest."""
    if not (out / "_SUCCESS").exists():
        raise FileNotFoundError(out / "_SUCCESS")
    manifest = json.loads((out / "manifest.json").read_text())
    ledger = manifest["ledger"].values()
    return {"documents": sum(s["documents"] for s in ledger), "tokens": sum(s["tokens"] for s in ledger)}


def _why(measured: Measured) -> str:
    lines = (measured.stderr.strip() or measured.stdout.strip() or "no output").splitlines()
    return f"exit status {measured.status}: " + "\n    ".join(lines[-8:])


def summarize(runs: dict[str, list[dict]], bench: Bench) -> dict[str, dict]:
    """Medians of a contender's good runs: seconds, MB/s, Mtok/s, CPU seconds, MB of memory."""
    rows = {}
    for name, all_runs in runs.items():
        good = [r for r in all_runs if "error" not in r]
        if not good:
            continue
        size = sum(path.stat().st_size for path in bench.inputs(name)) / 1e6
        times = [r["steady" if CONTENDERS[name].sliced else "seconds"] for r in good]
        seconds = statistics.median(times)
        rows[name] = {
            "title": CONTENDERS[name].title,
            "input": size,
            "runs": len(good),
            "seconds": seconds,
            "fastest": min(times),
            "slowest": max(times),
            "rate": size / seconds,
            "token_rate": good[0]["tokens"] / 1e6 / seconds,
            "documents": good[0]["documents"],
            "tokens": good[0]["tokens"],
            "cpu_seconds": statistics.median(r["cpu_seconds"] for r in good),
            "other_cores": statistics.median(r["other_cores"] for r in good),
            "rss": max(r["peak_rss"] for r in good) / 1e6,
            "pss": max(r["peak_pss"] for r in good) / 1e6,
        }
    return rows


def table(rows: dict[str, dict]) -> str:
    """The rows as a Markdown table."""
    head = [
        "",
        "input MB",
        "runs",
        "seconds (range)",
        "MB/s",
        "Mtok/s",
        "CPU s",
        "peak RSS MB",
        "PSS MB",
        "beam-prep is",
    ]
    body = []
    for name, row in rows.items():
        ratio = None if name == OURS else _ratio(rows, name)
        body.append(
            [
                row["title"] + (" ¹" if CONTENDERS[name].sliced else ""),
                f"{row['input']:,.0f}",
                str(row["runs"]),
                f"{row['seconds']:.1f} ({row['fastest']:.1f}-{row['slowest']:.1f})",
                f"{row['rate']:.1f}",
                f"{row['token_rate']:.2f}",
                f"{row['cpu_seconds']:.1f}",
                f"{row['rss']:,.0f}",
                f"{row['pss']:,.0f}" if row["pss"] else "",
                f"{ratio:.2f} ×" if ratio else "",
            ]
        )
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    lines = [line(head), rule, *map(line, body)]
    others = max(row["other_cores"] for row in rows.values()) if rows else 0
    if others > _QUIET:
        lines += ["", f"Other work kept up to {others:.1f} cores busy during these runs: measure on a quiet machine."]
    if any(CONTENDERS[name].sliced for name in rows):
        lines += ["", "¹ on a slice of the corpus; seconds and rates without imports and loading, in its favour."]
    return "\n".join(lines)


def verdicts(rows: dict[str, dict]) -> list[tuple[bool, str]]:
    """What is asked of beam-prep, for every target that could be measured."""
    found = []
    for words, read, bound, more in TARGETS:
        value = read(rows)
        if value is not None:
            met = value >= bound if more else value <= bound
            sign = "at least" if more else "at most"
            found.append((met, f"{'met ' if met else 'MISSED'} {value:,.2f} {words} ({sign} {bound:,})"))
    if OURS in rows and "raw" in rows:
        ours, raw = rows[OURS]["tokens"], rows["raw"]["tokens"]
        found.append((ours == raw, f"{'met ' if ours == raw else 'MISSED'} {ours:,} tokens, the raw limit {raw:,}"))
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", 1)[0], epilog="Arguments after -- go to `beam-prep run`."
    )
    parser.add_argument("--bytes", type=float, default=1e9, help="size of the corpus (default 1e9)")
    parser.add_argument("--files", type=int, default=4, help="files that it is spread over (default 4)")
    parser.add_argument("--slice", type=float, default=40e6, help="bytes for the slow contenders (default 40e6)")
    parser.add_argument("-n", "--repeats", type=int, default=3, help="runs of each contender (default 3)")
    parser.add_argument("--only", default="", help=f"comma-separated, of {', '.join(CONTENDERS)}")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the other tools installed")
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder of corpora")
    parser.add_argument("--data", type=Path, default=DATA / "corpus", help="where the corpus is kept")
    parser.add_argument("--work", type=Path, default=DATA / "work", help="scratch folder, emptied first")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a target is missed")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:split])
    args.beam_args = sys.argv[split + 1 :]
    args.names = [name for name in args.only.split(",") if name] or list(CONTENDERS)
    for name in args.names:
        if name not in CONTENDERS:
            parser.error(f"--only: {name!r} is none of {', '.join(CONTENDERS)}")
    return args


def main() -> int:
    """Runs the benchmark and prints its table."""
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running contender is ended too
    try:
        bench = Bench(args)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    runs: dict[str, list[dict]] = {}
    for name in args.names:
        missing = bench.missing(name)
        if missing:
            print(f"{name}: left out, {', '.join(missing)} not installed", flush=True)
        else:
            runs[name] = []
    for path in bench.files:  # into the page cache
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 22):
                pass
    for repeat in range(args.repeats):
        for name, done in runs.items():
            if any("error" in r for r in done):
                continue
            done.append(bench.once(name))
            result = done[-1]
            print(
                f"{repeat + 1}/{args.repeats} {name}: {result['seconds']:.1f} s, "
                f"{result['peak_rss'] / 1e6:,.0f} MB, other work on {result['other_cores']:.1f} cores"
                + (f", FAILED with {result['error']}" if "error" in result else ""),
                flush=True,
            )
    rows = summarize(runs, bench)
    found = verdicts(rows)
    print("", table(rows), "", *(text for _, text in found), sep="\n")
    if args.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        args.json.write_text(json.dumps({"machine": machine, "summary": rows, "runs": runs}, indent=1))
    shutil.rmtree(bench.work, ignore_errors=True)
    failed = any("error" in r for done in runs.values() for r in done)
    return int(failed or (args.check and not all(met for met, _ in found)))


if __name__ == "__main__":
    sys.exit(main())
