"""The command line: exit status, one message an error, Beam's options, Ctrl-C, and what the screen shows."""

import importlib.metadata
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner
from conftest import write_small_data
from results import shard_hashes

from beam_prep import calls, cli, launch, worker
from beam_prep.beam_options import check_beam_options, check_engine, check_runner, split_arguments
from beam_prep.errors import BeamPrepError, ConfigError, for_runner
from beam_prep.progress import Snapshot
from beam_prep.screen import Pace, State, line
from beam_prep.sizes import duration, quantity, size


def invoke(*arguments):
    return CliRunner().invoke(cli.cli, [str(a) for a in arguments])


def process(*arguments, **options):
    call = [sys.executable, "-m", "beam_prep", *map(str, arguments)]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def without_progress(text):
    return [words for words in text.splitlines() if not words.startswith(("starting", "tokenizing", "writing"))]


# --- calls ----------------------------------------------------------------------------------------------------------


def test_help_comes_at_once():
    begin = time.monotonic()
    done = process("--help")
    out, err = done.communicate()
    assert done.returncode == 0 and err == "" and time.monotonic() - begin < 5  # under 1 s where nothing else runs
    for command in ("run", "demo", "inspect", "verify", "datasets", "render"):
        assert f"\n  {command} " in out
    # What makes it so: nothing heavy is imported.
    heavy = "{'apache_beam', 'numpy', 'pyarrow', 'pydantic', 'rich', 'yaml'}"
    code = f"import sys, beam_prep.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_command_has_help():
    for name, command in cli.cli.commands.items():
        result = invoke(name, "--help")
        assert result.exit_code == 0 and command.help.splitlines()[0][:40] in result.stdout


def test_version():
    assert invoke("--version").stdout.startswith("beam-prep, version ")


def test_console_script_points_here():
    try:
        scripts = importlib.metadata.distribution("beam-prep").entry_points
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert any(s.name == "beam-prep" and s.value == "beam_prep.cli:main" for s in scripts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "error: CONFIG is missing"),
        (["run", "--project", "p"], "error: CONFIG is missing"),
        (["run", "{folder}/none.yaml"], "no such file"),
        (["run", "{folder}"], "is a folder"),
        (["run", "{config}", "--ouput", "x"], "error: unknown option --ouput; did you mean --output?"),
        (["run", "{config}", "--zzz"], "error: unknown option --zzz; neither beam-prep nor Beam has it"),
        (["run", "{config}", "--direct_num_workers=x"], "error: option --direct_num_workers: invalid int value: 'x'"),
        (["run", "{config}", "more"], "error: argument 'more' belongs to no option"),
        (["run", "{config}", "--runner", "NoRunner"], "error: --runner NoRunner: Unexpected pipeline runner"),
        (
            ["run", "{config}", "--runner", "DataflowRunner", "--workers", "2"],
            "error: --workers and --memory are",
        ),
        (["run", "{config}", "--workers", "0"], "Invalid value for '--workers'"),
        (["run", "{config}", "--seed", "-1"], "`--seed`: input should be greater than or equal to 0 (given: '-1')"),
        (["walk"], "No such command 'walk'"),
        (["datasets", "gsm9k"], "error: template 'gsm9k' is not in the catalogue; did you mean 'gsm8k'?"),
        (["render", "{config}", "-n", "0"], "Invalid value for '-n'"),
        (["inspect", "{folder}"], "holds no manifest.json"),
        (["verify", "{folder}/none"], "no such folder"),
    ],
)
def test_wrong_calls(tmp_path, arguments, message):
    config = write_small_data(tmp_path)
    result = invoke(*(a.format(folder=tmp_path, config=config) for a in arguments))
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_all_errors_of_a_configuration(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("context: 5\ndatasets:\n  - {name: a, template: gsm8k, inptu: x}\n")
    result = invoke("run", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: 3 errors\n") and "did you mean `input`?" in result.stderr


def test_datasets():
    result = invoke("datasets")
    assert result.exit_code == 0 and "wikipedia" in result.stdout and "openai/gsm8k" in result.stdout
    result = invoke("datasets", "toolace")
    assert result.exit_code == 0 and "template: toolace" in result.stdout
    assert "<|im_start|>user\nWhat time is it?<|im_end|>" in result.stdout


# --- runs -----------------------------------------------------------------------------------------------------------


def test_run(tmp_path):
    """One output, asked for in several ways."""
    config = write_small_data(tmp_path)
    result = invoke("run", config)
    assert result.exit_code == 0, result.stderr
    for words in ("notes", "1.5 epochs", "min_chars", "sequences of 64", "manifest.json", "import numpy", "done in"):
        assert words in result.stdout
    hashes = shard_hashes(tmp_path / "out")

    result = invoke("run", config)
    assert result.exit_code == 0 and "nothing to do" in result.stdout
    result = invoke("run", config, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")

    result = invoke("run", config, "--seed", "4")
    assert result.exit_code == 1 and "--overwrite" in result.stderr and shard_hashes(tmp_path / "out") == hashes
    result = invoke("run", "--direct_num_workers", "1", config, "--seed=4", "--overwrite", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert shard_hashes(tmp_path / "out") != hashes

    # What is done must still be there.
    next((tmp_path / "out/train/tokenized-samples").iterdir()).unlink()
    result = invoke("run", config, "--seed", "4")
    assert result.exit_code == 1 and "is missing; run the job again with --overwrite" in result.stderr


def test_failed_run_is_one_message(tmp_path):
    config = write_small_data(tmp_path)
    config.write_text(config.read_text().replace("max_rejects: 0.1", "max_rejects: 0"))
    failed = invoke("run", config)
    assert failed.exit_code == 1 and failed.stdout == ""
    lines = without_progress(failed.stderr)
    assert lines[0].startswith("error: dataset 'notes': 3 of 125 records rejected") and len(lines) == 2
    assert not (tmp_path / "out/_SUCCESS").exists() and (tmp_path / "out/rejected").is_dir()


def test_debug_shows_where_it_comes_from(tmp_path):
    config = write_small_data(tmp_path)
    (tmp_path / "talks.jsonl.gz").write_bytes(b"\x1f\x8b")
    result = invoke("run", config, "--debug")
    assert result.exit_code == 1 and "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/talks.jsonl.gz: cannot be read")


def test_unforeseen_error(tmp_path, monkeypatch):
    config = write_small_data(tmp_path)

    def fail(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr(launch, "run", fail)
    result = invoke("run", config)
    assert result.exit_code == 1 and "error: RuntimeError: boom\n" in result.stderr and "--debug" in result.stderr
    assert "Traceback" not in result.stderr


def test_runner_that_leaves_nothing(tmp_path, monkeypatch):
    """Exit status 0 says that the output is there."""
    config = write_small_data(tmp_path)
    monkeypatch.setattr(launch, "run", lambda _: None)
    assert invoke("run", config).exit_code != 0


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted(tmp_path, workers):
    """Ctrl-C reaches the whole group of a terminal's processes."""
    config = write_small_data(tmp_path)
    record = json.dumps({"title": "t", "text": "some words " * 200}) + "\n"
    with open(tmp_path / "notes.jsonl", "w") as file:
        file.writelines(record.replace("some", str(n), 1) for n in range(25_000))
    running = process("run", config, "--workers", workers, start_new_session=True)
    work = tmp_path / "out" / ".work"
    for _ in range(600):
        if list(work.glob("progress/*")):
            break
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130, err
    assert without_progress(err) == ["interrupted: nothing is marked as finished; the same command goes on from here"]
    assert not (tmp_path / "out/_SUCCESS").exists()
    with pytest.raises(ProcessLookupError):  # no worker outlives the run
        for _ in range(200):
            os.killpg(running.pid, 0)
            time.sleep(0.05)


# --- parts ----------------------------------------------------------------------------------------------------------


def test_split_arguments():
    assert split_arguments(["c.yaml"]) == ("c.yaml", ())
    assert split_arguments(["c.yaml", "--project", "p"]) == ("c.yaml", ("--project", "p"))
    assert split_arguments(["--project", "p", "c.yaml"]) == ("c.yaml", ("--project", "p"))
    assert split_arguments(["--project=p", "c.yaml", "--flag"]) == ("c.yaml", ("--project=p", "--flag"))


def test_check_beam_options():
    check_beam_options(["--project", "p", "--region=r", "--experiments=a", "--no_use_public_ips"], "DataflowRunner")
    check_beam_options(["--option_of_a_job_server", "5"], "PortableRunner")
    for arguments in (["--output_folder", "x"], ["--projct", "p"]):
        with pytest.raises(ConfigError, match="unknown option"):
            check_beam_options(arguments, "local")
    with pytest.raises(ConfigError, match="did you mean --project"):
        check_beam_options(["--projct", "p"], "DataflowRunner")


@pytest.mark.parametrize(
    ("runner", "arguments", "part"),
    [
        ("PrismRunner", ["--prism_location", "/none/prism"], "/none/prism: there is no such file"),
        ("FlinkRunner", ["--flink_job_server_jar=/none.jar"], "/none.jar: there is no such file"),
        ("FlinkRunner", ["--flink_master=localhost:8081", "--job_endpoint=localhost:8099"], "--sdk_container_image"),
        ("PrismRunner", ["--environment_type=PROCESS"], "--environment_config"),
        ("PortableRunner", ["--environment_type=EXTERNAL"], "--environment_config"),
        ("FlinkRunner", [], "needs Java"),
    ],
)
def test_what_an_engine_would_find_out_too_late(runner, arguments, part, monkeypatch):
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(ConfigError, match=re.escape(part)):
        check_engine(arguments, runner)


def test_engine_options_that_are_right(monkeypatch):
    monkeypatch.setenv("PATH", "/none")
    check_engine(["--prism_location=/none"], "local")
    check_engine([], "PrismRunner")
    check_engine(["--prism_location=https://somewhere/prism.zip"], "PrismRunner")
    check_engine(["--job_endpoint=localhost:8099"], "FlinkRunner")
    standing = ["--job_endpoint=localhost:8099", "--flink_master=localhost:8081"]
    check_engine([*standing, "--environment_type=LOOPBACK"], "FlinkRunner")
    check_engine([*standing, "--sdk_container_image=mine"], "FlinkRunner")


def test_check_runner():
    for name in ("local", "DirectRunner", "FlinkRunner"):
        check_runner(name)
    for name in ("NoRunner", "no.such.Runner"):
        with pytest.raises(ConfigError, match=name):
            check_runner(name)


def test_explain():
    assert calls.explain(ConfigError("a")) == ("a", 2)
    assert calls.explain(for_runner(BeamPrepError("b"))) == ("b", 1)
    text = "Traceback (most recent call last):\n  File\nx.y.OSError: [Errno 28] No space left on device\n"
    assert calls.explain(RuntimeError(text)) == ("OSError: [Errno 28] No space left on device", 1)
    message, status = calls.explain(KeyError("k"))
    assert message.startswith("KeyError: 'k'\nthis was not foreseen") and status == 1


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield root
    root.setLevel(level)
    root.handlers[:] = handlers


def test_logs_keep_real_warnings(root_logger, capsys):
    calls.set_up_logs(debug=False)
    beam = logging.getLogger("apache_beam.x")
    beam.info("Creating state cache with size 1")
    beam.warning("No semi_persistent_directory found: Functions defined in __main__ …")
    beam.warning("Converting string literal type hint to Any: x")
    beam.error('Worker: severity: ERROR message: "Traceback (most recent call last):\\n boom" thread: "1"')
    try:
        raise ValueError
    except ValueError:
        beam.exception("failed")
    assert capsys.readouterr().err == ""
    beam.warning("the bucket is in another region")
    beam.warning('Worker: severity: WARN timestamp { seconds: 5 } message: "disk is slow" thread: "T"')
    assert capsys.readouterr().err == "WARNING the bucket is in another region\nWARN disk is slow\n"


def test_workers_do_not_print_what_the_run_says_anyway():
    stream = io.StringIO()
    quiet = worker._WithoutTracebacks(stream)
    print("Traceback (most recent call last):\n  boom", file=quiet)
    print("disk is slow", file=quiet)
    print(file=quiet)
    quiet.flush()
    assert stream.getvalue() == "disk is slow\n\n"


def test_pace():
    pace = Pace(1_000_000, 0)
    assert pace.state(Snapshot(), 0.0) == State("starting", 0.0, (), None)
    assert pace.state(Snapshot(bytes=1), 10.0).left is None
    state = pace.state(Snapshot(bytes=500_000, documents=1000, tokens=100_000), 20.0)
    assert (state.phase, state.done) == ("tokenizing", 0.5)
    assert state.details == ("500 kB of 1 MB", "1,000 documents", "100,000 tokens", "10,000 tokens/s")
    assert 10 < state.left < 20
    assert line(state) == f"tokenizing: 50%, {', '.join(state.details)}, {duration(17)} left"
    read = Snapshot(bytes=1_000_000, documents=2000, tokens=200_000)
    state = pace.state(read._replace(ranges=16), 29.0)
    assert (state.phase, state.done) == ("deduplicating", 0.25)
    state = pace.state(read._replace(planned=400_000, placed=100_000), 30.0)
    assert (state.phase, state.done, state.left) == ("placing", 0.25, None)
    state = pace.state(read._replace(planned=400_000, written=100_000), 35.0)
    assert (state.phase, state.done, state.left) == ("writing", 0.25, 15.0)
    # The counters are gone with the work folder, or count a retry twice.
    assert pace.state(Snapshot(), 36.0).done == 0.25
    state = pace.state(Snapshot(2_000_000, 4000, 400_000, 900_000, 400_000), 37.0)
    assert (state.phase, state.done) == ("finalizing", 1.0)
    assert state.counters.written == 900_000


def test_pace_of_compressed_input():
    pace = Pace(1_000_000, 1_000_000)
    pace.state(Snapshot(bytes=1), 0.0)
    state = pace.state(Snapshot(bytes=2_000_000, tokens=1), 10.0)
    assert state.done == 0.5 and state.details[0] == "2 MB of about 4 MB"
    state = pace.state(Snapshot(bytes=9_000_000, tokens=1), 20.0)
    assert state.done == 0.99 and state.details[0] == "9 MB" and state.left is None


def test_quantities():
    assert [size(n) for n in (0, 999, 12_300, 431_000_000, 7.25e9)] == [
        "0 bytes",
        "999 bytes",
        "12.3 kB",
        "431 MB",
        "7.25 GB",
    ]
    assert [quantity(n) for n in (0, 999_999, 1_234_567, 2.5e9)] == ["0", "999,999", "1.23 M", "2.5 B"]
    assert [duration(s) for s in (0.25, 12, 61, 3700.0)] == ["0.2 s", "12 s", "1 min 01 s", "1 h 01 min"]


def test_progress_lines_off_a_terminal(monkeypatch, capsys):
    from beam_prep import screen

    monkeypatch.setattr(screen, "_LINE_SECONDS", ((10, 0.05),))
    stop = threading.Event()
    states = iter([State("starting", 0.0, (), None), State("tokenizing", 0.5, ("1 MB",), 3.2)] * 50)
    thread = threading.Thread(target=screen._watch_lines, args=(lambda: next(states), stop))
    thread.start()
    time.sleep(0.4)
    stop.set()
    thread.join()
    assert capsys.readouterr().err.splitlines()[:2] == ["starting", "tokenizing: 50%, 1 MB, 4 s left"]


@pytest.mark.skipif(os.name != "posix", reason="pseudo terminals")
def test_progress_on_a_terminal(monkeypatch):
    import pty
    import select

    from beam_prep import screen

    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(screen, "_POLL_SECONDS", 0.05)
    stop = threading.Event()
    states = iter([State("starting", 0.0, (), None), *[State("tokenizing", 0.5, ("1 MB", "7 documents"), 3.2)] * 100])
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        thread = threading.Thread(target=screen._watch_terminal, args=(lambda: next(states), stop))
        thread.start()
        time.sleep(0.5)
        stop.set()
        thread.join()
        shown = b""
        while select.select([master], [], [], 0.2)[0]:  # a terminal hands over some 4 kB at a time
            shown += os.read(master, 1 << 16)
        shown = shown.decode()
    os.close(master)
    assert "starting" in shown and "tokenizing" in shown and "50%" in shown and "4 s left" in shown
    assert "1 MB  7 documents" in shown and shown.endswith("\x1b[2K")  # nothing is left of it
