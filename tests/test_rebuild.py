"""`python -m pipelines.finalize`: what Finalize writes beside the shards, written again."""

import json
import shutil
from pathlib import Path

import pytest

from beam_prep.config import parse_config
from beam_prep.launch import RunOptions, prepare, run
from beam_prep.verification import verify
from pipelines.finalize import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebuild")
    lines = [json.dumps({"text": f"text {n} " * (n % 9 + 1)}) for n in range(400)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\nno record\n")
    config = f"datasets: [{{name: a, text_field: text, input: {folder}/a.jsonl}}]\nsplits: {{train: 0.8, val: 0.2}}\n"
    settings = {"output": str(folder / "out"), "context_length": 64}
    run(prepare(parse_config(config + "views: [16]\n", overrides=settings), RunOptions()))
    return folder / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def files(folder: Path) -> dict[str, bytes]:
    """All but the report, which tells the times of a run's steps."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_everything_but_the_shards_comes_back(out: Path, finished: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("_SUCCESS", "report.html"):
        (out / name).unlink()
    for name in ("train/index", "val/index", "train/index-16", "val/index-16"):
        shutil.rmtree(out / name)
    assert main([str(out)]) == 0
    assert "index and 2 output(s)" in capsys.readouterr().out
    assert files(out) == files(finished)
    assert "<html" in (out / "report.html").read_text()
    assert verify(str(out)) == []


def test_a_damaged_shard_is_not_marked_as_finished(out: Path, capsys: pytest.CaptureFixture) -> None:
    (out / "_SUCCESS").unlink()
    shard = next((out / "train" / "tokenized-samples").iterdir())
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    assert main([str(out)]) == 1
    assert shard.name in capsys.readouterr().err
    assert not (out / "_SUCCESS").exists()


def test_a_manifest_that_was_changed_is_refused(out: Path, capsys: pytest.CaptureFixture) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["seed"] += 1
    (out / "manifest.json").write_text(json.dumps(manifest))
    before = files(out)
    assert main([str(out)]) == 1
    assert "is not the one that _SUCCESS answers for" in capsys.readouterr().err
    assert files(out) == before


def test_without_a_manifest_there_is_nothing_to_go_by(out: Path, tmp_path: Path) -> None:
    (out / "manifest.json").unlink()
    assert main([str(out)]) == 2
    assert main([str(tmp_path / "none")]) == 2
