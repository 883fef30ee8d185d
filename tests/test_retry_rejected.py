"""`run --only-rejected`: the dead letters of a failed run, rendered again after a fix."""

import gzip
import json
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from beam_prep import storage
from beam_prep.cli import cli
from beam_prep.errors import ConfigError
from beam_prep.retry_rejected import read_dead_letters
from beam_prep.run_file import remembered_call

ROWS = [b'{"text": "good"}', b'{"texte": "misnamed"}', b"not json", b"\xff\xfe", b'{"texte": "short"}']


@pytest.fixture
def failed(tmp_path: Path) -> tuple[Path, Path]:
    """(configuration, output) of a run that failed for its rejects."""
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(ROWS))
    config = write_config(tmp_path, "text")
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["run", str(config), "--quiet"])
    assert result.exit_code == 1, result.output
    assert not (out / "_SUCCESS").exists()
    return config, out


def write_config(folder: Path, field: str) -> Path:
    config = folder / "config.yaml"
    config.write_text(
        f"output: {folder / 'out'}\ncontext_length: 16\ndatasets:\n"
        f"  - {{name: rows, text_field: {field}, input: {folder / 'rows.jsonl'}, filter: {{min_chars: 6}}}}\n"
    )
    return config


def letters(out: Path) -> list[dict]:
    with gzip.open(out / "rejected" / "rows-00000.jsonl.gz") as file:
        return [json.loads(line) for line in file]


def test_dead_letters_are_written_before_the_run_fails(failed):
    found = letters(failed[1])
    assert [letter["reason"] for letter in found] == ["missing_field", "invalid_json", "invalid_utf8", "missing_field"]
    assert found[2]["raw_base64"] == "//4=" and found[0]["raw"].encode() == ROWS[1]
    content = b"\n".join(ROWS)
    assert all(content[found[n]["offset"] :].startswith(ROWS[n + 1]) for n in range(4))


def test_after_a_fix_only_the_rest_is_left(failed):
    config, out = failed
    before = letters(out)
    write_config(config.parent, "texte")
    for call in (["run", "--only-rejected", str(out)], ["run", str(config), "--only-rejected", str(out)]):
        result = CliRunner().invoke(cli, call)
        assert result.exit_code == 1  # two records are beyond repair
        row = next(line.split() for line in result.output.splitlines() if line.startswith("rows "))
        assert row == ["rows", "4", "1", "1", "2"]  # letters, rendered, filtered, left
        assert "invalid_json 1" in result.output and "invalid_utf8 1" in result.output
    assert letters(out) == before  # nothing is changed by looking


def test_nothing_to_look_at_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="does not say which configuration"):
        remembered_call(str(tmp_path))
    (tmp_path / "rows.jsonl").write_bytes(ROWS[0])
    config = write_config(tmp_path, "text")
    result = CliRunner().invoke(cli, ["run", str(config), "--only-rejected", str(tmp_path / "out")])
    assert result.exit_code == 2


def test_damaged_dead_letters_are_named(failed):
    config, out = failed
    path = out / "rejected" / "rows-00000.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    result = CliRunner().invoke(cli, ["run", str(config), "--only-rejected", str(out)])
    assert result.exit_code == 1 and "rows-00000.jsonl.gz" in result.output


def test_letters_of_a_dataset_whose_name_begins_alike(tmp_path: Path) -> None:
    for name in ("wiki-00000", "wiki-00001-0123abcd", "wiki-2-00000", "wiki-2-00001-0123abcd"):
        storage.write_bytes(
            str(tmp_path / "rejected" / f"{name}.jsonl.gz"), [gzip.compress(orjson.dumps({"raw": name}) + b"\n")]
        )
    for dataset in ("wiki", "wiki-2"):
        raw = [letter["raw"] for letter in read_dead_letters(str(tmp_path), dataset)]
        assert raw == [f"{dataset}-00000", f"{dataset}-00001-0123abcd"]
