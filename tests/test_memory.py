"""The whole job in a process of its own: its memory is that of a bucket and of what is in flight, not of the corpus."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import resource, sys
from beam_prep import balance, tokenization
from beam_prep.config import parse_config
from beam_prep.launch import RunOptions, prepare, run
balance.MIN_BUCKET_TOKENS = balance.MAX_BUCKET_TOKENS = 1 << 20
tokenization.RUN_BYTES = 4 << 20
config = "datasets: [{name: a, text_field: text, input: " + sys.argv[1] + "}]"
run(prepare(parse_config(config, overrides={"output": sys.argv[2], "context_length": 4096}), RunOptions()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_and_tokens(folder: Path, megabytes: int) -> tuple[int, int]:
    """(peak resident bytes, bytes of tokens) of a run on so much text; every digit is a token of 4 bytes."""
    numbers = random.Random(megabytes)
    path, out = folder / f"{megabytes}.jsonl", folder / f"out-{megabytes}"
    with open(path, "w") as file:
        for _ in range(megabytes * 250):
            file.write(json.dumps({"text": str(numbers.getrandbits(13_250))}) + "\n")  # 4,000 digits, nearly
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    call = [sys.executable, "-c", SCRIPT, str(path), str(out)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    train = json.loads((out / "manifest.json").read_text())["outputs"]["train"]
    return int(done.stdout.split()[-1]) << 10, 4 * train["tokens"]


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    small, few = peak_and_tokens(tmp_path, 8)
    large, many = peak_and_tokens(tmp_path, 48)
    assert many - few > 140e6
    assert large - small < (many - few) / 4, f"{small / 1e6:.0f} MB -> {large / 1e6:.0f} MB"
    print(f"{small / 1e6:.0f} MB -> {large / 1e6:.0f} MB for {few / 1e6:.0f} -> {many / 1e6:.0f} MB of tokens")
