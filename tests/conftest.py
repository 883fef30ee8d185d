"""What the tests share."""

import gzip
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, models

from beam_prep.tokenizer import TokenizerSpec, resolve

# A shared machine is no clock, and every test that asks for a folder overwrites what it wrote there.
settings.register_profile("beam-prep", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("beam-prep")

# The pipeline's encoders keep to one thread (an environment variable, read once); the reference that tests wait for
# takes its threads before.
Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).encode_batch(["a", "a"])

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data beside the repository; without it the test is skipped."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data lies beside the repository, in ../shared/data, and is not there")
    return folder


@pytest.fixture(scope="session")
def qwen3() -> TokenizerSpec:
    """The bundled tokenizer."""
    return resolve("qwen3")


class Finished(NamedTuple):
    """A finished run on small data. Read it only; `shutil.copytree` makes one to damage."""

    config: Path
    output: Path


SMALL_CONFIG = """
context_length: 64
seed: 3
output: {folder}/out
max_rejects: 0.1
datasets:
  - name: notes
    input: {folder}/notes.jsonl
    template:
      required: [title, text]
      text: |
        # {{{{ title }}}}

        {{{{ text }}}}
  - name: talks
    input: {folder}/talks.jsonl.gz
    template:
      required: {{turns: list}}
      chat: {{messages: turns}}
    epochs: 1.5
    filter: {{min_chars: 40}}
"""


def write_small_data(folder: Path) -> Path:
    """Two sources with rejected, filtered, repeated and blank lines; the path of their configuration."""
    notes = [
        {"title": f"Note {n}", "text": f"Number {n}, 漢字 <|im_end|> " + "and so on " * (n % 23)} for n in range(120)
    ]
    lines = [json.dumps(note, ensure_ascii=False) for note in (*notes, notes[5], notes[7])]
    lines += ["", "{not JSON", json.dumps({"title": "no text"}), json.dumps({"title": "t", "text": None})]
    (folder / "notes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with gzip.open(folder / "talks.jsonl.gz", "wt", encoding="utf-8") as file:
        for n in range(60):
            turns = [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": "It is. " * (n % 9)},
            ]
            file.write(json.dumps({"turns": turns}) + "\n")
    path = folder / "small.yaml"
    path.write_text(SMALL_CONFIG.format(folder=folder), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run with several shards."""
    from beam_prep import balance
    from beam_prep.config import load_config
    from beam_prep.launch import RunOptions, prepare, run

    folder = tmp_path_factory.mktemp("finished")
    path = write_small_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "MIN_BUCKET_TOKENS", 1500)
        patch.setattr(balance, "MAX_BUCKET_TOKENS", 1500)
        run(prepare(load_config(str(path)), RunOptions(), folder))
    return Finished(path, folder / "out")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs make no report, which takes each a moment; for tests of something else."""
    from beam_prep import report

    monkeypatch.setattr(report, "try_report", lambda *_: None)


@pytest.fixture
def damaged(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished output, for a test to damage."""
    return Path(shutil.copytree(finished.output, tmp_path / "out"))
