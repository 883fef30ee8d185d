"""The examples run: they train on an output, and resume exactly."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_example(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("reader", ["beam-prep", "data-forager"])
def test_train_tiny(finished, reader: str) -> None:
    options = ["--context-length", "32", "--steps", "60", "--stop", "25", "--reader", reader]
    printed = run_example("train_tiny.py", str(finished.output / "train"), *options)
    assert "all 60 losses are the same, bit for bit" in printed
    first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", printed).groups())
    assert last < first - 1


@pytest.mark.skipif(importlib.util.find_spec("grain") is None, reason="grain is not installed")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_train_grain(finished, workers: str) -> None:
    options = ["--context-length", "16", "--steps", "20", "--workers", workers]
    printed = run_example("train_grain.py", str(finished.output / "train"), *options)
    assert "'input_ids': ('int32', (8, 16))" in printed
    assert "the last 10 of 20 batches are the same" in printed
