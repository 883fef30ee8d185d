"""Disks, networks and machines that fail: the run goes on, or says clearly what failed and can be gone on with."""

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from faulty_files import SCHEME, Faults, faulty_calls, faulty_file_system
from processes import command_line, descendants
from small_job import CONFIG, contents, make_small, start, write_inputs

from beam_prep import retries, storage
from beam_prep.cli import cli
from beam_prep.errors import BeamPrepError
from beam_prep.parquet import row_group_bytes
from beam_prep.reading import read_unit
from beam_prep.sources import match_source, split_source

SYNC = "write to the disk"
"""Of what cannot be done again: what the system could not write it has forgotten."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_inputs(folder)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        start(CONFIG.format(folder=folder), folder / "base")
    return contents(folder / "base")


# --- single calls ---------------------------------------------------------------------------------------------------


def many_calls(base: str) -> list[Any]:
    """Does everything that `storage` can do, and returns what came out."""
    data = bytes(range(256)) * 300
    storage.require_writable(base)
    storage.write_bytes(storage.join(base, "a", "one"), [data[:100], data[100:]])
    with storage.write_atomic(storage.join(base, "a", "two")) as file:
        storage.write_through(file, [data, data])
    with storage.open_read(storage.join(base, "a", "two")) as file:
        parts = []
        while part := file.read(20_000):
            parts.append(part)
        file.seek(-7, 2)
        end = file.read()
    found = [
        b"".join(parts) == data + data,
        end == data[-7:],
        storage.read_bytes(storage.join(base, "a", "one")) == data,
        storage.read_range(storage.join(base, "a", "one"), 300, 50_000) == data[300:50_300],
        [(f.path.removeprefix(base), f.size) for f in storage.list_files(storage.join(base, "a"))],
        [f.size for f in storage.match(storage.join(base, "a", "*"))],
        storage.size(storage.join(base, "a", "two")),
        storage.exists(storage.join(base, "a", "one")),
        storage.find(storage.join(base, "a", "none")),
    ]
    storage.delete(storage.join(base, "a"))
    return [*found, storage.exists(storage.join(base, "a", "one"))]


EXPECTED = [
    *[True] * 4,
    [("/a/one", 76_800), ("/a/two", 153_600)],
    [76_800, 153_600],
    153_600,
    True,
    None,
    False,
]


def test_every_local_call_fails_in_turn(tmp_path: Path) -> None:
    with faulty_calls(Faults()) as counted:
        assert many_calls(f"{tmp_path}/base") == EXPECTED
    assert {call for call, _ in counted.calls} >= {
        *("create", "write", "rename", "open", "read", "list", "look up", "delete", "make the folder", SYNC)
    }
    for number, (call, path) in enumerate(counted.calls):
        base = f"{tmp_path}/{number}"
        with faulty_calls(Faults(first=number)):
            if call != SYNC:
                assert many_calls(base) == EXPECTED
            else:
                with pytest.raises(BeamPrepError, match=f"{call}: Input/output error"):
                    many_calls(base)
        assert not list(Path(base).rglob("*.tmp"))
        with faulty_calls(Faults(first=number, times=99)), pytest.raises(BeamPrepError) as told:
            many_calls(base)
        assert f"cannot {call}" in told.value.message or "cannot be written" in told.value.message
        name = Path(path.replace(f"{tmp_path}/base", base)).name.split("-")[0]
        assert name in told.value.message
        assert not list(Path(base).rglob("*.tmp"))


def test_every_remote_call_fails_in_turn(tmp_path: Path) -> None:
    with faulty_file_system(Faults()) as counted:
        assert many_calls(f"{SCHEME}{tmp_path}/base") == EXPECTED
    assert {call for call, _ in counted.calls} == {
        *("create", "write", "close", "open", "read", "list", "look up", "delete")
    }
    for number, (call, _) in enumerate(counted.calls):
        base = f"{SCHEME}{tmp_path}/{number}"
        with faulty_file_system(Faults(errno.ETIMEDOUT, number)):
            if call not in ("write", "close"):
                assert many_calls(base) == EXPECTED
            else:  # a stream cannot be sent again; nothing of it shows
                with pytest.raises(BeamPrepError, match=r"/a/(one|two): cannot write: .*timed out"):
                    many_calls(base)
                assert call == "write" or not [p for p in (tmp_path / str(number)).rglob("*") if p.stat().st_size == 1]
        assert many_calls(base) == EXPECTED
        with faulty_file_system(Faults(first=number, times=99)), pytest.raises(BeamPrepError, match="cannot "):
            many_calls(base)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EISDIR])
def test_what_will_not_pass_is_not_tried_again(code: int) -> None:
    tried = []

    def fail() -> None:
        tried.append(1)
        raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=os.strerror(code)):
        retries.attempt("open", "file", fail)
    assert tried == [1]
    with pytest.raises(BeamPrepError, match=f"^file: cannot write: {os.strerror(code)}; "):
        retries.attempt_change("write", "file", fail)
    assert tried == [1, 1]


def test_what_may_pass() -> None:
    class FromGoogle(Exception):
        code = 503

    from apache_beam.io.filesystem import BeamIOError

    passing = [OSError(errno.ESTALE, ""), TimeoutError(), ConnectionResetError(), FromGoogle()]
    lasting = [FileNotFoundError(), ValueError(), OSError("no number"), KeyError(1)]
    assert all(map(retries.is_passing, passing))
    assert not any(map(retries.is_passing, lasting))
    assert retries.is_passing(BeamIOError("all", {"a": FromGoogle()}))
    assert not retries.is_passing(BeamIOError("some", {"a": FromGoogle(), "b": ValueError()}))


# --- the whole job --------------------------------------------------------------------------------------------------


class EveryCallOnce(Faults):
    """Each call on each path fails the first time."""

    def __init__(self, *lasting: str):
        super().__init__()
        self._seen: set[tuple[str, str]] = set()
        self._lasting = lasting

    def pass_through(self, call: str, path: str) -> None:
        self.calls.append((call, path))
        if (call, path) not in self._seen and call not in self._lasting:
            self._seen.add((call, path))
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


class Lasting(Faults):
    """One call on one kind of file always fails."""

    def __init__(self, call: str, part: str, code: int = errno.EIO):
        super().__init__(code)
        self._call, self._part = call, part

    def pass_through(self, call: str, path: str) -> None:
        if call == self._call and self._part in path:
            raise OSError(self.code, os.strerror(self.code))


def test_a_run_in_which_every_call_fails_once(
    small: None, folder: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    with faulty_calls(EveryCallOnce(SYNC)) as faults:
        start(CONFIG.format(folder=folder), tmp_path / "out")
    assert len(faults.calls) > 300
    assert contents(tmp_path / "out") == undisturbed


def test_a_remote_run_in_which_every_call_fails_once(
    small: None, folder: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input and output are remote; then calls that cannot be made again fail, and the next run goes on."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config, out = CONFIG.format(folder=f"{SCHEME}{folder}"), tmp_path / "out"
    with faulty_file_system(EveryCallOnce()) as faults, pytest.raises(BeamPrepError, match="cannot write: "):
        start(config, f"{SCHEME}{out}")
    assert {"open", "read", "list", "look up", "create", "write"} <= {call for call, _ in faults.calls}
    for call, part in (("close", "documents"), ("close", "manifest.json")):
        with faulty_file_system(Lasting(call, part)), pytest.raises(BeamPrepError, match=rf"{part}.*: cannot write: "):
            start(config, f"{SCHEME}{out}")
        assert not (out / "_SUCCESS").exists()
    with faulty_file_system(EveryCallOnce("write", "close")) as faults:
        start(config, f"{SCHEME}{out}")
    assert {"list", "look up", "create"} <= {call for call, _ in faults.calls}
    names = [name for name in undisturbed if "tokenized-samples" in name or name.endswith("sample_locations.bin")]
    made = contents(out)
    assert {name: made[name] for name in names} == {name: undisturbed[name] for name in names}
    assert not list(tmp_path.glob("beam-prep/*/*"))


def test_calls_that_keep_failing_and_the_next_run(
    small: None, folder: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    config, out = CONFIG.format(folder=folder), tmp_path / "out"
    lasting = [
        ("open", "plain.jsonl", errno.EACCES, "may not be read"),
        ("read", "packed.jsonl.gz", errno.EIO, "cannot read: tried 8 times, Input/output error"),
        ("write", ".tokens", errno.ENOSPC, "cannot write: No space left on device; make room"),
        ("rename", ".entries", errno.EIO, "cannot rename"),
        ("read", ".tokens", errno.EIO, "cannot read"),
        ("write", ".rows", errno.ENOSPC, "make room"),
        ("create", "tokenized-samples", errno.EROFS, "Read-only file system; make it writable"),
        (SYNC, "tokenized-samples", errno.EIO, "cannot write to the disk: Input/output error"),
        ("rename", "_SUCCESS", errno.EIO, "cannot rename"),
    ]
    for call, part, code, message in lasting:
        with faulty_calls(Lasting(call, part, code)), pytest.raises(BeamPrepError) as told:
            start(config, out)
        assert message in told.value.message, (call, part)
        assert part in told.value.message, (call, part)
        assert not (out / "_SUCCESS").exists()
    start(config, out)
    assert contents(out) == undisturbed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of its own; called again, its size or mode changes."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", f"remount,{options}" if mounted else options, "tmpfs", str(path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a disk in memory")
        mounted = True
        return path

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk(small: None, folder: Path, undisturbed: dict[str, str], disk: Callable[[str], Path]) -> None:
    config, out = CONFIG.format(folder=folder), disk("size=120k") / "out"
    for room in (120, 500):
        disk(f"size={room}k")
        with pytest.raises(BeamPrepError, match=rf"{out}.*: cannot .*No space left on device; make room"):
            start(config, out)
        assert not (out / "_SUCCESS").exists()
        assert not list(out.rglob("*.tmp"))
    disk("size=50m")
    start(config, out)
    assert contents(out) == undisturbed


def test_a_disk_that_can_only_be_read(small: None, folder: Path, disk: Callable[[str], Path]) -> None:
    out = disk("size=1m") / "out"
    disk("ro")
    with pytest.raises(BeamPrepError, match=rf"output {out}: cannot be written \(Read-only file system\)"):
        start(CONFIG.format(folder=folder), out)


def test_clocks_that_jump(
    small: None, folder: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_time, numbers = time.time, random.Random(1)
    monkeypatch.setattr(time, "time", lambda: true_time() + numbers.choice((-9e7, -3600, 0, 3600, 9e7)))
    start(CONFIG.format(folder=folder), tmp_path / "out")
    monkeypatch.undo()
    assert contents(tmp_path / "out") == undisturbed


def test_no_temporary_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(BeamPrepError, match="^/nowhere/at/all: no temporary folder can be used.*TMPDIR"):
        start(CONFIG.format(folder=folder), tmp_path / "out")


# --- inputs that change ---------------------------------------------------------------------------------------------


def inputs(folder: Path) -> list[Path]:
    rows = [{"text": f"document {n} " * 20} for n in range(400)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "plain.jsonl").write_text("".join(lines))
    with gzip.open(folder / "packed.jsonl.gz", "wt") as file:
        file.writelines(lines)
    pq.write_table(pa.Table.from_pylist(rows), folder / "columns.parquet", row_group_size=100)
    return [folder / "plain.jsonl", folder / "packed.jsonl.gz", folder / "columns.parquet"]


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b'{"text": "one more"}\n')


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    os.utime(other, (1, 1))
    other.replace(path)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["plain", "packed", "columns"])
@pytest.mark.parametrize("change", [shrink, grow, touch, replace, Path.unlink])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, change: Callable[[Path], None]
) -> None:
    from beam_prep import compression

    monkeypatch.setattr(compression, "CHUNK_BYTES", 4_000)
    path = inputs(tmp_path)[kind]
    units = list(split_source(0, match_source("a", [str(path)])))
    assert sum(len(batch.lines) for unit in units for batch in read_unit(unit)) == 400
    batches = read_unit(units[0])
    next(batches)
    change(path)
    gone = change is Path.unlink
    expected = f"{path}: the file is gone" if gone else f"{path}: the file changed while it was read"
    with pytest.raises(BeamPrepError) as told:
        list(batches)
    assert told.value.message.startswith(expected)


def test_reads_go_on_where_they_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third read fails, of each kind of file."""
    from beam_prep import compression

    class EveryThird(Faults):
        def pass_through(self, call: str, path: str) -> None:
            self.calls.append((call, path))
            if call == "read" and len(self.calls) % 3 == 0:
                raise OSError(self.code, os.strerror(self.code))

    monkeypatch.setattr(compression, "CHUNK_BYTES", 4_000)
    for path in inputs(tmp_path):
        for base in ("", SCHEME):
            units = list(split_source(0, match_source("a", [f"{base}{path}"])))
            wanted = [line for unit in units for batch in read_unit(unit) for line in batch.lines]
            with faulty_calls(EveryThird()) as faults:
                read = [line for unit in units for batch in read_unit(unit) for line in batch.lines]
            assert read == wanted
            assert len(faults.calls) >= 3


def test_a_footer_that_may_not_be_read(tmp_path: Path) -> None:
    path = inputs(tmp_path)[2]
    with faulty_calls(Lasting("open", "columns", errno.EACCES)), pytest.raises(BeamPrepError, match="may not be read"):
        row_group_bytes(str(path))


# --- processes ------------------------------------------------------------------------------------------------------


# The processes read this when they start: a little data gives several runs.
SMALL = "from beam_prep import tokenization; tokenization.RUN_BYTES = 4 << 20"


def begin(config: Path, out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "beam_prep", "run", str(config), "--output", str(out), "--quiet", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(config.parent), *filter(None, sys.path)])}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


@pytest.fixture(scope="module")
def long_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with some seconds of work."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "sitecustomize.py").write_text(SMALL)
    line = json.dumps({"text": "some words to be encoded " * 200}) + "\n"
    with open(folder / "long.jsonl", "w") as file:
        file.writelines(line.replace("some", f"{n} some", 1) for n in range(6_000))
    path = folder / "c.yaml"
    path.write_text(
        f"context_length: 512\ndatasets:\n  - {{name: long, text_field: text, input: {folder}/long.jsonl}}\n"
    )
    return path


def wait_for(running: subprocess.Popen, out: Path, pattern: str) -> None:
    for _ in range(12_000):
        if list(out.glob(pattern)):
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{pattern} does not come")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("second", "workers"), [(None, "1"), (None, "2"), (signal.SIGINT, "1")])
def test_asked_to_end(long_job: Path, tmp_path: Path, second: signal.Signals | None, workers: str) -> None:
    """SIGTERM, as service managers send it, to the first process only."""
    out = tmp_path / "out"
    running = begin(long_job, out, "--workers", workers)
    wait_for(running, out, ".work/progress/*")
    running.send_signal(signal.SIGTERM)
    if second is not None:
        running.send_signal(second)
    _, err = running.communicate(timeout=60)
    assert running.returncode in ({143} if second is None else {143, 130}), err
    assert err.splitlines() == ["interrupted: nothing is marked as finished; the same command goes on from here"]
    assert not (out / "_SUCCESS").exists()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_a_worker_that_is_killed_and_a_second_run(long_job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = begin(long_job, out, "--workers", "2")
    wait_for(running, out, ".work/runs/*.tmp")
    _, *workers = [process for process in descendants(running.pid) if b"beam_prep.fork_server" in command_line(process)]
    for worker in workers:  # so that the job waits for its second run
        os.kill(worker, signal.SIGSTOP)
    second = CliRunner().invoke(cli, ["run", str(long_job), "--output", str(out), "--quiet"])
    assert second.exit_code == 1
    assert second.stderr == (
        f"error: output {out}: another run is writing there; wait for it, or choose another --output\n"
    )
    os.kill(workers[-1], signal.SIGKILL)
    for worker in workers[:-1]:
        os.kill(worker, signal.SIGCONT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1, err
    assert err.startswith("error: a worker process was killed (SIGKILL); "), err
    assert len(err.splitlines()) == 1, err
    again = begin(long_job, out)
    _, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    assert "going on with it" in err
    assert (out / "_SUCCESS").exists()
    assert not (out / ".work").exists()
