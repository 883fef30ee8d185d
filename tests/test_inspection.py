"""inspect: what is in an output, and its sequences put back into text."""

import json
import re
import shutil
import unicodedata

import numpy as np
import pytest
from click.testing import CliRunner
from results import manifest_of, sequences_by_forager

from beam_prep.cli import cli
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.inspection import Part, choose_output, open_decoder, read_sequence, shorten, summary, visible
from beam_prep.manifest import is_finished, read_manifest


@pytest.fixture(scope="session")
def manifest(finished):
    return read_manifest(str(finished.output))


@pytest.fixture(scope="session")
def decoder(manifest):
    return open_decoder(manifest.tokenizer)


def test_every_sequence_comes_back_as_text(finished, manifest, decoder):
    """All spans of all sequences, joined by document, are what the template rendered."""
    stored = sequences_by_forager(finished.output / "train")
    texts: dict[tuple, dict[int, str]] = {}
    for number in range(len(stored)):
        sequence = read_sequence(str(finished.output), manifest, "train", number, decoder)
        assert (sequence.number, sequence.tokens) == (number, 64)
        at = 0
        for span in sequence.spans:
            assert span.start == at
            at += span.length
            own = stored[number][span.start : at]
            assert span.ends == (own[-1] == manifest.tokenizer.eod_token_id)
            texts.setdefault((span.source, span.offset, span.copy), {})[span.position] = span.text
        assert at + sequence.padding == 64
        assert "".join(span.text for span in sequence.spans) == decoder._tokenizer.decode(
            stored[number][:at].tolist(), skip_special_tokens=False
        ) or any("\ufffd" in span.text for span in sequence.spans)

    lines = (finished.config.parent / "notes.jsonl").read_bytes()
    seen = 0
    for (source, offset, _), parts in texts.items():
        if source != "notes":
            continue
        joined = "".join(part for _, part in sorted(parts.items()))
        record = json.loads(lines[offset:].split(b"\n", 1)[0])
        wanted = unicodedata.normalize("NFC", f"# {record['title']}\n\n{record['text']}") + "<|endoftext|>"
        assert joined == wanted or "\ufffd" in joined
        seen += 1
    assert seen == 120


def test_control_tokens_apart_from_text(finished, manifest, decoder):
    spans = [
        span
        for number in range(12)
        for span in read_sequence(str(finished.output), manifest, "train", number, decoder).spans
    ]
    literal = [part for span in spans if span.source == "notes" for part in span.parts if "<|im_end|>" in part.text]
    assert literal and not any(part.control for part in literal)
    controls = {part.text for span in spans if span.source == "talks" for part in span.parts if part.control}
    assert controls >= {"<|im_start|>", "<|im_end|>"}
    assert spans[0].parts[-1] == Part("<|endoftext|>", True) or not spans[0].ends


def test_decoder_parts(decoder):
    assert decoder.parts(np.array([], np.int64)) == []
    assert decoder.parts(np.array([151643, 151643])) == [Part("<|endoftext|>", True)] * 2


def test_another_tokenizer_is_said(manifest):
    entry = manifest.tokenizer.model_copy(update={"sha256": "0" * 64})
    assert "another one today" in open_decoder(entry).note
    assert open_decoder(manifest.tokenizer).note is None


def test_summary(finished, manifest):
    figures = summary(str(finished.output), manifest)
    written = manifest_of(finished.output)
    assert figures["finished"] and figures["ledger"] == written["ledger"]
    assert figures["outputs"]["train"]["shards"] == len(written["outputs"]["train"]["shards"]) > 1
    assert figures["outputs"]["train"]["sources"] == written["outputs"]["train"]["sources"]
    json.dumps(figures)


def test_what_is_not_there(finished, manifest, decoder, damaged, tmp_path):
    out = str(finished.output)
    with pytest.raises(ConfigError, match="output 'val' is not there; there is train"):
        choose_output(manifest, "val")
    assert choose_output(manifest, None) == choose_output(manifest, "train") == "train"
    with pytest.raises(ConfigError, match="numbered from 0"):
        read_sequence(out, manifest, "train", manifest.outputs["train"].sequences, decoder)
    with pytest.raises(ConfigError, match="no such folder"):
        read_manifest(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"holds no manifest\.json"):
        read_manifest(str(tmp_path))
    (damaged / "manifest.json").write_text("[]")
    with pytest.raises(BeamPrepError, match="is damaged"):
        read_manifest(str(damaged))
    shutil.rmtree(damaged / "train/documents")
    with pytest.raises(BeamPrepError, match="beam-prep verify"):
        read_sequence(str(damaged), manifest, "train", 0, decoder)
    shutil.rmtree(damaged / "train/tokenized-samples")
    with pytest.raises(BeamPrepError, match="beam-prep verify"):
        read_sequence(str(damaged), manifest, "train", 0, decoder)
    (damaged / "_SUCCESS").unlink()
    assert not is_finished(str(damaged), manifest)


def test_shorten():
    parts = [Part("abc", False), Part("<x>", True), Part("defgh", False)]
    assert shorten(parts, 11) == parts
    assert shorten(parts, 8) == [*parts[:2], Part("de", False), Part(" … 3 more characters", False)]
    assert shorten(parts, 2) == [Part("ab", False), Part(" … 9 more characters", False)]


def test_visible():
    assert visible("a\x1b[2J\x00\x7f\x9b\n\té") == "a␛[2J␀␡\ufffd\n\té"


def test_command(finished):
    invoke = CliRunner().invoke
    result = invoke(cli, ["inspect", str(finished.output)])
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("notes", "1.5 epochs", "min_chars", "invalid_json", "padding", "create_from_index_on_filesystem"):
        assert words in result.stdout
    # The lines of Python that it prints do read the output.
    code = re.search(r"read it:\n(.*?token_dtype=np.uint32\))", result.stdout, re.S)[1]
    scope: dict = {}
    exec("\n".join(line.strip() for line in code.splitlines()), scope)
    assert len(scope["train"]) == manifest_of(finished.output)["outputs"]["train"]["sequences"]

    result = invoke(cli, ["inspect", str(finished.output), "--json"])
    assert json.loads(result.stdout)["finished"]

    result = invoke(cli, ["inspect", str(finished.output), "--sequence", "2"])
    assert result.exit_code == 0 and "tokens 0 to " in result.stdout and "<|endoftext|>" in result.stdout
    result = invoke(cli, ["inspect", str(finished.output), "--sequence", "2", "--json"])
    sequence = json.loads(result.stdout)
    assert sequence["spans"][0]["text"] and {"control": "<|endoftext|>"} in sequence["spans"][0]["parts"]

    result = invoke(cli, ["inspect", str(finished.output), "--sequence", "99999"])
    assert result.exit_code == 2 and result.stderr.startswith("error: sequence 99999")
    result = invoke(cli, ["inspect", str(finished.output / "none")])
    assert result.exit_code == 2


def test_command_on_an_unfinished_output(damaged):
    (damaged / "_SUCCESS").unlink()
    result = CliRunner().invoke(cli, ["inspect", str(damaged)])
    assert result.exit_code == 0 and "is not finished" in result.stderr
