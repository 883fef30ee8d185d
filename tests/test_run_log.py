"""The log of a run as JSON lines."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from beam_prep import run_log
from beam_prep.cli import cli
from beam_prep.errors import ConfigError
from beam_prep.progress import Snapshot
from beam_prep.run_log import RunLog


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(50)))
    path = tmp_path / "c.yaml"
    path.write_text(
        f"output: {tmp_path}/out\ncontext_length: 64\n"
        f"datasets: [{{name: a, text_field: text, input: {tmp_path}/a.jsonl}}]\n"
    )
    return path


def test_of_a_run_and_of_one_with_nothing_to_do(config: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        done = CliRunner().invoke(cli, ["run", str(config), "--quiet", "--log-json", str(log)])
        assert done.exit_code == 0, done.output
    begin, first, second = [event for event in events(log) if event["event"] != "progress"]
    size = (tmp_path / "a.jsonl").stat().st_size
    assert (begin["event"], begin["input_bytes"], begin["workers"]) == ("start", size, 1)
    assert (first["status"], first["exit_status"], first["error"]) == ("done", 0, None)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert first["tokens"] == second["tokens"] == manifest["outputs"]["train"]["tokens"]
    assert begin["fingerprint"] == manifest["fingerprint"]
    assert second["status"] == "nothing to do"


def test_of_a_run_that_fails(config: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    (tmp_path / "a.jsonl").write_text("no record\n" * 5)
    done = CliRunner().invoke(cli, ["run", str(config), "--log-json", str(log)])
    assert done.exit_code == 1
    end = events(log)[-1]
    assert (end["event"], end["status"], end["exit_status"]) == ("end", "failed", 1)
    assert "5 of 5 records rejected" in end["error"]


def test_warnings_are_in_it(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path / "log.jsonl"))
    with pytest.raises(KeyboardInterrupt), log.recording():
        logging.getLogger("beam_prep.some").warning("disk nearly %s", "full")
        logging.getLogger("beam_prep.some").info("nobody asked")
        raise KeyboardInterrupt
    message, end = events(tmp_path / "log.jsonl")
    assert (message["level"], message["text"]) == ("warning", "disk nearly full")
    assert end["status"] == "interrupted"


def test_its_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "MOST_BYTES", 20_000)
    log = RunLog(str(tmp_path / "log.jsonl"))
    for number in range(1000):
        log.progress("tokenizing", number / 1000, 1.0, 10**9, Snapshot(bytes=number))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log.jsonl", "log.jsonl.1"]
    assert all(file.stat().st_size <= 20_000 for file in files)
    assert events(files[0])[-1]["bytes"] == 999


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        RunLog(str(tmp_path / "none" / "log.jsonl"))
