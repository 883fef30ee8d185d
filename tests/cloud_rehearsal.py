"""`make cloud-rehearsal`: the job as Dataflow would get it, from submission to a verified output, without a cloud.

For each configuration, with an emulator of Cloud Storage and a stub of Dataflow's REST endpoint on this machine:

1. `python -m pipelines.prepare --runner DataflowRunner …` submits the job, from a process that has only the wheel.
2. The graph that it staged is run as it is by Beam's embedded runner, in another such process (`graph_replay.py`).
3. The output in the emulated bucket is verified and read, and its shards compared with those of a local run.

Meanwhile the object store refuses, drops, cuts and delays requests. A third job, of 200 sources over 100,000 files, is
submitted only, to weigh its graph.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataflow_stub import DataflowStub, Job, dataflow_stub, write_credentials  # noqa: E402
from gcs_emulator import ALL_FAULTS, Emulator, EveryNth, emulated_gcs, no_faults  # noqa: E402

BUCKET = "rehearsal"
PROGRAM = "graph_replay.py"
EVERY = 12
"""Of the requests that one fails in so many."""
MOST_GRAPH_BYTES = 1_000_000
STAGES = """
tokenizer: {tokenizer}
context_length: 2048
seed: 5
splits: {{train: 0.8, val: 0.2}}
views: [1024]
datasets:
  - name: topics
    input: {raw}/topics.jsonl
    purpose: grammar
    weight: 0.6
    template:
      required: [title, text]
      text: |
        # {{{{ title }}}}

        {{{{ text }}}}
  - name: functions
    input: {raw}/functions.jsonl
    purpose: code
    weight: 0.4
    template:
      required: [name, doc, signature]
      text: |
        <|im_start|>user
        What does `{{{{ name }}}}{{{{ signature }}}}` do?<|im_end|>
        <|im_start|>assistant
        {{{{ doc }}}}<|im_end|>
    max_rejects: 0.9
stages:
  - {{name: general, context_length: 2048}}
  - name: anneal
    context_length: 4096
    packing: best_fit
    datasets: {{topics: {{weight: 0.2}}, functions: {{weight: 0.8}}}}
  - {{name: long, context_length: 8192, min_tokens: 500}}
"""


class Rehearsal(NamedTuple):
    """What every part needs."""

    folder: Path
    wheel: Path
    """Where the package is installed from its wheel, and nothing else."""
    emulator: Emulator
    dataflow: DataflowStub


class Submitted(NamedTuple):
    """A job as the stub received it."""

    name: str
    output: str
    graph: Path
    graph_bytes: int
    request: Job


def say(text: str) -> None:
    """A line, and when it was."""
    print(f"{time.monotonic() - _BEGIN:6.1f} s  {text}", flush=True)


_BEGIN = time.monotonic()


def run(arguments: list[str], folder: Path, wheel: Path | None = None) -> str:
    """Runs a program of this Python; what it printed.

    Raises:
      SystemExit: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(wheel or "")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return done.stdout


def install_wheel(folder: Path) -> Path:
    """Builds the wheel from a copy of what goes into it, and installs it into a folder of its own."""
    source, target = folder / "source", folder / "wheel"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("beam_prep", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    quiet = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*quiet, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], folder)
    (built,) = folder.glob("*.whl")
    run([*quiet, "install", "--no-deps", "--target", str(target), str(built)], folder)
    shutil.rmtree(source)  # nothing else can be imported by mistake
    return target


def submit(rehearsal: Rehearsal, config: str, output: str) -> Submitted:
    """Submits a job as the flex template's launcher does."""
    name = output.rpartition("/")[2]
    run(
        [
            *("-m", "pipelines.prepare", "--runner=DataflowRunner", f"--config={config}", f"--output={output}"),
            *("--project=rehearsal", "--region=europe-west1", f"--job_name={name}"),
            *(f"--temp_location=gs://{BUCKET}/temp", f"--staging_location=gs://{BUCKET}/staging"),
            *(f"--dataflow_endpoint={rehearsal.dataflow.endpoint}", "--no_auth", "--no_save_main_session"),
            "--sdk_container_image=europe-west1-docker.pkg.dev/rehearsal/images/beam-prep:1",
        ],
        rehearsal.folder,
        rehearsal.wheel,
    )
    (job,) = [job for job in rehearsal.dataflow.jobs if job.name == name]
    options = job.body["environment"]["sdkPipelineOptions"]["options"]
    assert not options["save_main_session"]
    staged = rehearsal.emulator.objects(BUCKET, f"staging/{name}.")
    (url,) = [f"gs://{BUCKET}/{path}" for path in staged]  # the graph, and no package beside it
    assert url == options["pipelineUrl"], (url, options["pipelineUrl"])
    (data,) = staged.values()
    graph = rehearsal.folder / f"{name}.pb"
    graph.write_bytes(data)
    say(f"{name}: submitted; graph {len(data):,} bytes, request {job.bytes:,}")
    return Submitted(name, output, graph, len(data), job)


def replay(rehearsal: Rehearsal, job: Submitted, load_only: bool = False) -> int:
    """Loads every pickled step of a graph in a fresh process, and runs the graph; how many steps."""
    arguments = [str(rehearsal.folder / PROGRAM), str(job.graph), *(["--load-only"] if load_only else [])]
    count, package = run(arguments, rehearsal.folder, rehearsal.wheel).split(maxsplit=1)
    assert package.startswith(str(rehearsal.wheel)), package
    say(f"{job.name}: {count} pickled steps loaded from the wheel{'' if load_only else ', graph run'}")
    return int(count)


def local_run(config: Path, output: Path, folder: Path) -> Path:
    """The same configuration on this machine."""
    run(["-m", "beam_prep", "run", str(config), "--output", str(output), "--quiet"], folder, ROOT)
    return output


def command(*arguments: str) -> str:
    """What a command of the console script prints.

    Raises:
      SystemExit: it failed.
    """
    from beam_prep import cli

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(arguments)
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"failed: beam-prep {' '.join(arguments)}\n{out.getvalue()}{err.getvalue()}") from None
    return out.getvalue()


def compare(output: str, local: Path) -> int:
    """Verifies the output in the bucket and reads it, and holds it against the local one; how many shards.

    Raises:
      SystemExit: it is not sound.
      AssertionError: it differs.
    """
    from beam_prep import PackedDataset, storage

    command("verify", output)
    remote = json.loads(storage.read_bytes(f"{output}/manifest.json"))
    here = json.loads((local / "manifest.json").read_bytes())
    shards = 0
    for name in here["outputs"]:
        ours, theirs = (
            [(s["path"], s["bytes"], s["sha256"], s["spans"]) for s in m["outputs"][name]["shards"]]
            for m in (remote, here)
        )
        assert ours == theirs, (name, ours, theirs)
        shards += len(ours)
        there, beside = (PackedDataset(f"{path}/{name}", extras=("document_ids",)) for path in (output, local))
        for index in {0, len(beside) // 2, len(beside) - 1}:
            for key, array in beside[index].items():
                assert (there[index][key] == array).all(), (name, index, key)
    for words in (["inspect", output, "--sequence", "0"], ["trace", output, "0"]):
        assert command(*words, *(["--output", name] if len(here["outputs"]) > 1 else []))
    assert list(remote["outputs"]) == list(here["outputs"])
    assert remote["ledger"] == here["ledger"]
    command("view", output, "--context-length", "512")
    command("verify", output)
    return shards


def submit_and_replay(rehearsal: Rehearsal, name: str, config: str) -> str:
    """Has a configuration carried out; its output."""
    job = submit(rehearsal, config, f"gs://{BUCKET}/corpus/{name}")
    replay(rehearsal, job)
    return job.output


def write_inputs(folder: Path) -> dict[str, tuple[str, Path]]:
    """Raw data, configurations and a tokenizer, in the bucket and beside; name → (configuration there, here)."""
    from beam_prep import storage
    from beam_prep.demo import write_demo
    from beam_prep.tokenizer import local_copy, resolve

    write_demo(str(folder))
    local_copy(resolve("qwen3"), folder / "tokenizer")
    (folder / "stages.yaml").write_text(STAGES.format(tokenizer=folder / "tokenizer", raw=folder / "raw"), "utf-8")
    base = f"gs://{BUCKET}"
    for path in ("raw/topics.jsonl", "raw/functions.jsonl", "tokenizer/tokenizer.json"):
        storage.write_bytes(f"{base}/{path}", [(folder / path).read_bytes()])
    for name in ("config.yaml", "stages.yaml"):
        text = (folder / name).read_text("utf-8").replace(str(folder), base)
        storage.write_bytes(f"{base}/{name}", [text.encode()])
    return {
        name: (f"{base}/{file}", folder / file) for name, file in (("demo", "config.yaml"), ("stages", "stages.yaml"))
    }


def weigh(rehearsal: Rehearsal, sources: int = 200, files: int = 100_000) -> None:
    """Submits a job of many sources, each with a template of its own, whose patterns match many files."""
    from beam_prep import storage

    names = [f"source-{number:03d}" for number in range(sources)]
    entries = {}
    for number in range(files):
        path = f"many/{names[number % sources]}/part-{number:06d}.jsonl.gz"
        entries[path] = {"name": path, "bucket": BUCKET, "size": "20", "updated": "2026-01-01T00:00:00.000000Z"}
    with rehearsal.emulator.lock:
        rehearsal.emulator.storage.objects[BUCKET].update(entries)
    datasets = [
        {
            "name": name,
            "input": f"gs://{BUCKET}/many/{name}/*.jsonl.gz",
            "weight": 1 + number / 7,
            "purpose": ("grammar", "code", "dialogue")[number % 3],
            "template": {
                "required": [f"title_{number}", f"body_{number}"],
                "text": f"# {{{{ title_{number} }}}}\n\n{name} says:\n\n{{{{ body_{number} }}}}\n",
            },
        }
        for number, name in enumerate(names)
    ]
    config = {"context_length": 4096, "splits": {"train": 0.98, "val": 0.02}, "stages": "qwen3", "datasets": datasets}
    storage.write_bytes(f"gs://{BUCKET}/many.yaml", [json.dumps(config).encode()])
    say(f"many: {sources} sources, {files:,} files")
    job = submit(rehearsal, f"gs://{BUCKET}/many.yaml", f"gs://{BUCKET}/corpus/many")
    replay(rehearsal, job, load_only=True)
    assert max(job.graph_bytes, job.request.bytes) < MOST_GRAPH_BYTES, (job.graph_bytes, job.request.bytes)
    for where in (job.graph.read_bytes(), json.dumps(job.request.body).encode()):
        assert b"part-0" not in where
    check_steps(job.graph, [b"part-0", "Ġthe".encode(), b'"merges"'])


def check_steps(graph: Path, unwanted: list[bytes]) -> None:
    """Looks for what must not be in a graph inside its pickled functions, which are compressed."""
    from graph_replay import pickled_functions, read_graph

    for step, pickled in pickled_functions(read_graph(str(graph))):
        found = [what for what in unwanted if what in unpacked(pickled)]
        assert not found, (step, found)


def unpacked(pickled: bytes) -> bytes:
    """A pickled function as Beam's pickler had it before it was compressed."""
    import base64
    import bz2

    return bz2.decompress(base64.b64decode(pickled))


@contextmanager
def credentials(folder: Path, dataflow: DataflowStub) -> Iterator[None]:
    """An account of nobody, for this process and those that it starts."""
    account = folder / "account.json"
    write_credentials(account, dataflow.endpoint)
    mine = {"GOOGLE_APPLICATION_CREDENTIALS": str(account), "GOOGLE_CLOUD_PROJECT": "rehearsal"}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main() -> None:
    """Rehearses; the exit status is 0 only if everything held."""
    parser = argparse.ArgumentParser(
        description="The Dataflow job, from submission to verified output, without a cloud."
    )
    parser.add_argument("--keep", type=Path, help="A folder in which the graphs and local outputs are left.")
    parser.add_argument("--compare", nargs=2, metavar=("OUTPUT", "LOCAL"), help="Only holds an output against another.")
    arguments = parser.parse_args()
    if arguments.compare:
        output, local_output = arguments.compare
        shards = compare(output, Path(local_output))
        print(f"verified; {shards} shards are those of the local run, byte for byte")
        return
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rehearsal-")))
        folder.mkdir(parents=True, exist_ok=True)
        emulator, dataflow = stack.enter_context(emulated_gcs(BUCKET)), stack.enter_context(dataflow_stub())
        stack.enter_context(credentials(folder, dataflow))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        wheel = pool.submit(install_wheel, folder)
        configs = write_inputs(folder)
        local = {}
        for name, (_, here) in configs.items():
            local[name] = pool.submit(local_run, here, folder / f"local-{name}", folder)
        shutil.copy(ROOT / "tests" / PROGRAM, folder)
        rehearsal = Rehearsal(folder, wheel.result(), emulator, dataflow)
        say("wheel built and installed")
        emulator.faults = faults = EveryNth(EVERY)
        done = {name: pool.submit(submit_and_replay, rehearsal, name, there) for name, (there, _) in configs.items()}
        outputs = {name: future.result() for name, future in done.items()}
        emulator.faults = no_faults
        say(f"met by both: {dict(faults.made)}")
        assert len(faults.made) == len(ALL_FAULTS), f"too few requests to try every fault: {faults.made}"
        many = pool.submit(weigh, rehearsal)
        # Not in this process, whose threads are the servers.
        checks = [
            pool.submit(run, [__file__, "--compare", output, str(local[name].result())], folder, ROOT)
            for name, output in outputs.items()
        ]
        for name, check in zip(outputs, checks, strict=True):
            say(f"{name}: {check.result().strip()}")
        many.result()
    say("rehearsed")


if __name__ == "__main__":
    main()
