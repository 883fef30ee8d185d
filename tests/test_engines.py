"""The same bytes on every engine: Beam's own local runner in all its modes, Prism, and Flink where it can be had.

`make engines` fetches what these need and runs them; what cannot be had is skipped. A plain `pytest` leaves them out.
"""

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from engine_artefacts import FLINK_JAR, FLINK_VERSION, PRISM, boot_command, missing
from results import manifest_of, shard_hashes
from test_stages import CONFIG, write_inputs

from beam_prep.demo import write_demo
from beam_prep.verification import verify

pytestmark = [pytest.mark.engines, pytest.mark.slow]
SMALL = Path(__file__).parent / "small_engine"
REPOSITORY = SMALL.parents[1]
PRISM_ARGUMENTS = ("--runner=PrismRunner", f"--prism_location={PRISM}")
FLINK_ARGUMENTS = (
    "--runner=FlinkRunner",
    f"--flink_version={FLINK_VERSION}",
    f"--flink_job_server_jar={FLINK_JAR}",
    "--environment_type=LOOPBACK",
    "--parallelism=2",
)


class Engine(NamedTuple):
    """One way to carry the graph out. Another engine is another row of `ENGINES`."""

    arguments: Callable[[Path], tuple[str, ...]]
    """A folder for its files → options of `beam-prep run`."""
    needs: tuple[Path, ...] = ()


def in_processes(folder: Path) -> tuple[str, ...]:
    command = json.dumps({"command": str(boot_command(folder))})
    return (*PRISM_ARGUMENTS, "--environment_type=PROCESS", f"--environment_config={command}")


LOCAL = "FnApi, files, 1 process"
ENGINES = {
    LOCAL: Engine(lambda folder: ("--workers=1",)),
    "FnApi, files, 2 processes": Engine(lambda folder: ("--workers=2",)),
    "FnApi, its shuffle, 1 process": Engine(lambda folder: ("--carrier=engine", "--workers=1")),
    "FnApi, its shuffle, 2 processes": Engine(lambda folder: ("--carrier=engine", "--workers=2")),
    "Prism, LOOPBACK": Engine(lambda folder: PRISM_ARGUMENTS, (PRISM,)),
    "Prism, PROCESS": Engine(in_processes, (PRISM, PRISM.with_name("container"))),
    "Flink, embedded, LOOPBACK": Engine(lambda folder: FLINK_ARGUMENTS, (FLINK_JAR,)),
}


def start(config: Path, out: Path, arguments: tuple[str, ...]) -> subprocess.Popen:
    command = [sys.executable, "-m", "beam_prep", "run", str(config), "--output", str(out), "--quiet", *arguments]
    path = os.pathsep.join([str(SMALL), str(REPOSITORY)])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=env, start_new_session=True, **streams)


def end(process: subprocess.Popen) -> None:
    """Ends what is left of a run: Prism leaves workers behind that it has lost."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def hashes(out: Path) -> dict[str, list[str]]:
    return {name: shard_hashes(out, name) for name in manifest_of(out)["outputs"]}


@functools.cache
def carried_out(name: str, config: Path, folder: Path) -> tuple[float, dict[str, list[str]]]:
    """Seconds, and the checksums of all shards."""
    for_engine = folder / "".join(filter(str.isalnum, name))
    for_engine.mkdir()
    begin = time.monotonic()
    process = start(config, for_engine / "out", ENGINES[name].arguments(for_engine))
    try:
        said = process.communicate(timeout=300)[0]
    finally:
        end(process)
    assert process.returncode == 0, said[-4000:]
    assert verify(str(for_engine / "out")) == []
    return time.monotonic() - begin, hashes(for_engine / "out")


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo; and weights, splits, stages, best_fit, a compressed source and rejected records at once."""
    demo = Path(write_demo(str(tmp_path_factory.mktemp("demo"))).config)
    folder = tmp_path_factory.mktemp("mixture")
    inputs = write_inputs(folder / "inputs", 2, None, bytes, "")
    numbers = random.Random(5)
    for name in ("books", "code"):
        with open(inputs / f"{name}-0.jsonl", "ab") as file:
            words = (" ".join(str(numbers.randrange(10**6)) for _ in range(900)) for _ in range(40))
            file.writelines(json.dumps({"text": text}).encode() + b"\n" for text in words)
            file.write(b'{not JSON\n{"text": 5}\n')
    mixture = folder / "config.yaml"
    text = CONFIG.replace("{folder}", str(inputs))
    mixture.write_text("packing: best_fit\nmax_rejects: 0.1\noutput: unused\n" + text)
    return {"demo": demo, "mixture": mixture}


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], str]]:
    """(engine, configuration) → what to print of it; printed in the end."""
    rows: dict[tuple[str, str], str] = {}
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n\n{'engine':34}{'demo':>24}{'mixture':>24}")
        for name in ENGINES:
            print(f"{name:34}" + "".join(f"{rows.get((name, c), '-'):>24}" for c in ("demo", "mixture")))


@pytest.mark.parametrize("which", ["demo", "mixture"])
@pytest.mark.parametrize("name", ENGINES)
def test_same_bytes(
    name: str,
    which: str,
    configs: dict[str, Path],
    table: dict[tuple[str, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if reason := missing(PRISM):  # without any other engine, tests/test_pipeline.py says it all
        pytest.skip(reason)
    if reason := missing(*ENGINES[name].needs):
        table[name, which] = "skipped"
        pytest.skip(reason)
    folder = tmp_path_factory.getbasetemp() / which
    folder.mkdir(exist_ok=True)
    expected = carried_out(LOCAL, configs[which], folder)[1]
    assert len(expected) == (1 if which == "demo" else 6)
    assert max(map(len, expected.values())) > 2, "several shards, or there is nothing to shuffle"
    seconds, found = carried_out(name, configs[which], folder)
    table[name, which] = f"{seconds:.1f} s, {'equal' if found == expected else 'DIFFERENT'}"
    assert found == expected


def descendants(process: int) -> Iterator[tuple[int, str]]:
    """(process, command line) of everything that a process started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if parent == process:
            yield int(path.name), command
            yield from descendants(int(path.name))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_a_killed_worker(configs: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prism has no second attempt: the run fails, nothing looks finished, and the same command gives the same bytes."""
    if reason := missing(*ENGINES["Prism, PROCESS"].needs):
        pytest.skip(reason)
    out, arguments = tmp_path / "out", in_processes(tmp_path)
    process = start(configs["mixture"], out, arguments)
    killed = False
    try:
        while process.poll() is None and not killed:
            workers = [p for p, command in descendants(process.pid) if command.startswith("python -m apache_beam")]
            if workers and list(out.glob("*/*/tokenized-samples/*.bin")):  # packing has begun
                os.kill(workers[0], signal.SIGKILL)
                killed = True
            time.sleep(0.01)
        said = process.communicate(timeout=120)[0]
    finally:
        end(process)
    assert killed, said[-2000:]
    assert process.returncode == 1, said[-2000:]
    assert "the same command" in said
    assert not (out / "_SUCCESS").exists()
    again = start(configs["mixture"], out, arguments)
    try:
        said = again.communicate(timeout=300)[0]
    finally:
        end(again)
    assert again.returncode == 0, said[-2000:]
    folder = tmp_path_factory.getbasetemp() / "mixture"
    folder.mkdir(exist_ok=True)
    assert hashes(out) == carried_out(LOCAL, configs["mixture"], folder)[1]
