"""Seconds, MB/s and bytes shuffled of the same run on every engine that is at hand.

    python benchmarks/engines.py                     # 200 MB of the corpus that corpora.py makes
    python benchmarks/engines.py --input FILE.jsonl  # records with a `text`

Each run is a process of its own, from its start to its end; what is shuffled is what our own counters say: tokens, rows
and references that go through the engine's shuffle, without its frames and keys. `make engines` fetches the engines.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from corpora import DEFAULT_SOURCE, REPOSITORY, make_corpus
from measure import run

sys.path.insert(0, str(REPOSITORY / "tests"))
from engine_artefacts import FLINK_JAR, FLINK_VERSION, PRISM

ENGINES: dict[str, tuple[tuple[str, ...], Path | None]] = {
    "FnApi, files, 1 process": (("--workers=1",), None),
    "FnApi, files, 2 processes": (("--workers=2",), None),
    "FnApi, its shuffle, 1 process": (("--carrier=engine", "--workers=1"), None),
    "FnApi, its shuffle, 2 processes": (("--carrier=engine", "--workers=2"), None),
    "Prism": (("--runner=PrismRunner", f"--prism_location={PRISM}"), PRISM),
    "Flink, embedded": (
        ("--runner=FlinkRunner", f"--flink_version={FLINK_VERSION}", f"--flink_job_server_jar={FLINK_JAR}"),
        FLINK_JAR,
    ),
}
"""Options of a run, and what it needs."""
_CONFIG = """
context_length: 4096
output: {folder}/out
datasets:
  - {{name: corpus, text_field: text, input: {input}}}
"""


def carry_out(config: str, arguments: list[str]) -> None:
    """Runs the job in this process and prints its counters as JSON."""
    from beam_prep.config import load_config
    from beam_prep.launch import RunOptions, prepare
    from beam_prep.launch import run as run_job

    parser = argparse.ArgumentParser()
    parser.add_argument("--runner", default="local")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--carrier")
    own, beam = parser.parse_known_args(arguments)
    options = RunOptions(own.runner, own.workers, own.carrier, beam=tuple(beam))
    result = run_job(prepare(load_config(config), options))
    counters: dict[str, int] = {}
    for found in result.metrics().query()["counters"]:
        name = f"{found.key.metric.namespace}/{found.key.metric.name}"
        counters[name] = counters.get(name, 0) + (found.result or 0)
    print(json.dumps(counters))


def measured(arguments: tuple[str, ...], config: Path) -> dict[str, Any]:
    """One run: seconds, MB of memory, counters, and the checksums of its shards."""
    out = config.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    took = run([sys.executable, __file__, "--carry-out", str(config), *arguments], {"PYTHONPATH": str(REPOSITORY)})
    if took.status:
        raise SystemExit(took.stderr[-4000:])
    shards = json.loads((out / "manifest.json").read_text())["outputs"]["train"]["shards"]
    counters = json.loads(took.stdout.splitlines()[-1])
    return {"took": took, "counters": counters, "shards": [shard["sha256"] for shard in shards]}


def main() -> None:
    """Prints a table."""
    if "--carry-out" in sys.argv:
        place = sys.argv.index("--carry-out")
        return carry_out(sys.argv[place + 1], sys.argv[place + 2 :])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="A file of records; otherwise one is made.")
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="Folder of corpora to make it from.")
    parser.add_argument("--bytes", type=float, default=200e6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.input:
            files = [arguments.input]
        else:
            size = int(arguments.bytes)
            files = make_corpus(size, REPOSITORY / "benchmarks" / "data" / f"engines-{size}", source=arguments.source)
        config = Path(folder) / "config.yaml"
        names = ", ".join(json.dumps(str(file.absolute())) for file in files)
        config.write_text(_CONFIG.format(folder=folder, input=f"[{names}]"))
        size = sum(file.stat().st_size for file in files)
        print(f"{size / 1e6:.0f} MB")
        print(f"{'engine':33}{'seconds':>9}{'CPU s':>8}{'MB/s':>7}{'peak MB':>9}{'B a token shuffled':>20}  shards")
        expected = None
        for name, (options, needed) in ENGINES.items():
            if needed is not None and not needed.exists():
                print(f"{name:33}  not at hand")
                continue
            found = measured(options, config)
            took, counters = found["took"], found["counters"]
            expected = expected or found["shards"]
            shuffled = counters.get("shuffle/bytes", 0) / counters["tokenize/tokens"]
            same = "equal" if found["shards"] == expected else "DIFFERENT"
            print(
                f"{name:33}{took.seconds:9.1f}{took.cpu_seconds:8.1f}{size / 1e6 / took.seconds:7.1f}"
                f"{took.peak_pss / 1e6 or took.peak_rss / 1e6:9.0f}{shuffled:20.2f}  {same}",
                flush=True,
            )


if __name__ == "__main__":
    main()
