"""demo: raw data out of Python itself, a configuration that can be read and changed, and the main job on both."""

import json
import os
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from beam_prep.cli import cli
from beam_prep.config import load_config
from beam_prep.demo import functions, topics, write_demo
from beam_prep.errors import ConfigError
from beam_prep.verification import verify


def test_text_that_python_carries():
    texts, documented = list(topics()), list(functions())
    assert len(texts) > 50 and all(row["title"] and row["text"] for row in texts)
    assert len(documented) > 2000 and all(row["name"] and row["doc"] for row in documented)
    names = [row["name"] for row in documented]
    assert len(set(names)) == len(names) and "json.dumps" in names
    assert not any(" at 0x" in str(row) for row in documented)  # nothing that the next process has elsewhere
    assert list(functions()) == documented


def test_same_data_in_every_process(tmp_path):
    script = "import sys; from beam_prep.demo import write_demo; write_demo(sys.argv[1])"
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / seed)], check=True, env=env)
    for name in ("topics", "functions"):
        assert (tmp_path / f"1/raw/{name}.jsonl").read_bytes() == (tmp_path / f"2/raw/{name}.jsonl").read_bytes()


def test_a_changed_configuration_is_kept(tmp_path):
    made = write_demo(str(tmp_path / "demo"))
    config = load_config(made.config)
    assert [d.name for d in config.datasets] == ["topics", "functions"] and not made.again
    assert config.output == made.output
    path = tmp_path / "demo" / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 9"))
    before = (tmp_path / "demo/raw/topics.jsonl").stat().st_mtime_ns
    assert write_demo(str(tmp_path / "demo")).again
    assert load_config(str(path)).seed == 9
    assert (tmp_path / "demo/raw/topics.jsonl").stat().st_mtime_ns == before


def test_anothers_configuration_is_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="not the demo's"):
        write_demo(str(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"
    result = CliRunner().invoke(cli, ["demo", "--output", str(tmp_path)])
    assert result.exit_code == 2


def test_demo(tmp_path, monkeypatch):
    """As a new user calls it, whole process."""
    call = [sys.executable, "-m", "beam_prep", "demo"]
    begin = time.monotonic()
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    spent = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr and "Traceback" not in done.stderr
    assert spent < 60  # 20 s where nothing else is running
    for words in ("demo/raw", "demo/config.yaml", "2 epochs", "min_chars", "beam-prep inspect demo/out", "done in"):
        assert words in done.stdout
    manifest = json.loads((tmp_path / "demo/out/manifest.json").read_text())
    assert manifest["outputs"]["train"]["sequences"] > 20
    assert verify(str(tmp_path / "demo/out")) == []

    again = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "nothing to do" in again.stdout

    # After a change the same command replaces its own output.
    path = tmp_path / "demo/config.yaml"
    path.write_text(path.read_text().replace("context_length: 4096 ", "context_length: 2048 "))
    monkeypatch.chdir(tmp_path)
    changed = CliRunner().invoke(cli, ["demo"])
    assert changed.exit_code == 0 and "sequences of 2,048" in changed.stdout
