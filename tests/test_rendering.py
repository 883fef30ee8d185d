"""render: raw records beside their text, as a run would make it, reading no more than that takes."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from beam_prep import catalog, rendering
from beam_prep.cli import cli
from beam_prep.config import load_config, parse_config
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.inspection import Part
from beam_prep.rendering import raw_text, render_config, render_example
from beam_prep.rendering_page import page
from beam_prep.tokenizer import HuggingFaceEncoder, resolve

EVIL = "<script>alert(1)</script> & <|im_end|> \x1b[31m"


@pytest.fixture(scope="session")
def small(finished):
    return load_config(str(finished.config)), finished.config.parent


def outcomes(rendered):
    return [row.outcome for row in rendered.rows]


def test_rows_are_what_a_run_makes_of_them(small):
    notes, talks = render_config(*small, n=2)
    assert outcomes(notes) == ["rendered"] * 2 + ["rejected"] * 2
    assert notes.counts == {"rendered": 122, "rejected": 3, "filtered": 0}
    assert notes.blank_lines == 1 and notes.complete
    first, second, bad, missing = notes.rows
    assert first.offset == 0 and second.offset == len(first.raw) + 1
    assert [part.control for part in first.parts] == [False]
    assert first.parts[0].text == f"# Note 0\n\n{json.loads(first.raw)['text']}"
    assert (bad.reason, missing.reason) == ("invalid_json", "missing_field")
    assert bad.raw == b"{not JSON" and bad.message

    assert outcomes(talks) == ["rendered"] * 2 + ["filtered"] * 2
    assert talks.rows[0].parts[0] == Part("<|im_start|>", True)
    assert talks.rows[2].reason == "min_chars" and talks.rows[2].parts


def test_tokens_are_those_of_the_output(small):
    spec = resolve("qwen3")
    reference = HuggingFaceEncoder(spec)
    for rendered in render_config(*small, n=5):
        for row in rendered.rows:
            if row.parts:
                ids, _ = reference.encode([part.text for part in row.parts if not part.control])
                assert row.tokens == len(ids) // 4 + sum(part.control for part in row.parts) + 1
                assert row.chars == sum(len(part.text) for part in row.parts)


def test_one_dataset(small):
    config, base = small
    assert [r.source for r in render_config(config, base, "talks", 1)] == ["talks"]
    with pytest.raises(ConfigError, match="did you mean 'talks'"):
        render_config(config, base, "talk")
    with pytest.raises(ConfigError, match="there is notes, talks"):
        render_config(config, base, "zzz")


def test_token_limits(small):
    config, base = small
    asked = config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    asked["datasets"][0]["filter"] = {"min_tokens": 30, "max_tokens": 60}
    (notes,) = render_config(parse_config(json.dumps(asked)), base, "notes", 200)
    tokens = {outcome: [r.tokens for r in notes.rows if r.outcome == outcome] for outcome in ("rendered", "filtered")}
    assert min(tokens["rendered"]) >= 31 and max(tokens["rendered"]) <= 61
    assert {r.reason for r in notes.rows if r.outcome == "filtered"} == {"min_tokens", "max_tokens"}
    assert all(n <= 30 or n > 61 for n in tokens["filtered"])


def test_reads_only_what_it_needs(tmp_path, monkeypatch):
    """Of 100 files the first is opened, and of it the first batches are read."""
    read, closed = [], []

    def read_span(span):
        try:
            for number in range(1000):
                read.append(span.path)
                lines = [json.dumps({"text": f"{number} {n}"}).encode() for n in range(100)]
                yield lines, np.arange(100, dtype=np.uint64)
        finally:
            closed.append(span.path)

    for n in range(100):
        (tmp_path / f"{n:03d}.jsonl").write_text("{}\n")
    monkeypatch.setattr(rendering, "read_span", read_span)
    config = parse_config(f"datasets: [{{name: a, text_field: text, input: {tmp_path}/*.jsonl}}]")
    (rendered,) = render_config(config, None)
    assert len(rendered.rows) == 3 and not rendered.complete
    assert set(read) == {str(tmp_path / "000.jsonl")} == set(closed)
    assert len(read) <= rendering.ENOUGH_ROWS // 100 + 1


def test_nothing_that_renders(tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "MOST_ROWS", 50)
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n' * 100)
    config = parse_config(f"datasets: [{{name: a, text_field: text, input: {tmp_path}/a.jsonl}}]")
    (rendered,) = render_config(config, None)
    assert rendered.counts["rejected"] == 50 and not rendered.complete


def test_truncated_file_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    config = parse_config(f"datasets: [{{name: a, text_field: text, input: {tmp_path}/a.jsonl.gz}}]")
    with pytest.raises(BeamPrepError, match=r"a\.jsonl\.gz: cannot be read"):
        render_config(config, None)


def test_seed_decides_what_is_drawn(tmp_path):
    example = {**catalog.entry("soda").example, "prompt": ["Talk.", "Chat.", "Speak."]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**example, "n": n}) + "\n" for n in range(60)))
    text = f"datasets: [{{name: drawn, template: soda, input: {tmp_path}/rows.jsonl}}]"
    first, again, other = (
        render_config(parse_config(text, overrides={"seed": seed}), None, n=60)[0].rows for seed in (1, 1, 2)
    )
    assert len(first) == 60 and first == again
    assert [row.parts for row in first] != [row.parts for row in other]


def test_every_entry_has_an_example_that_renders():
    for name in catalog.names():
        parts = render_example(catalog.entry(name))
        assert parts and any(part.text.strip() for part in parts)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b'{"a":1,"b":"\xc3\xa9\\u001b"}', '{\n  "a": 1,\n  "b": "é\\u001b"\n}'),
        (b"[1]", "[1]"),
        (b"{no", "{no"),
        (b"\xff\x00", "\\xff\x00"),
        (b'{"a":"\\ud800"}', '{"a":"\\ud800"}'),
    ],
)
def test_raw_text(raw, shown):
    assert raw_text(raw) == shown


class _Page(HTMLParser):
    """Text of a page by the element it stands in, and what it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.stack: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "img", "br"):
            self.stack.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.stack[-1] if self.stack else "", []).append(data)


def test_page(tmp_path):
    rows = [{"text": EVIL, "n": 1}, {"text": 5}, {"text": "long " * 40_000}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config(
        "datasets:\n  - {name: a, input: "
        f"{tmp_path}/a.jsonl"
        ', template: {required: [text], text: "<|im_start|>user\\n{{ text }}<|im_end|>"}}\n'
    )
    text = page("a <title>", render_config(config, None))
    parsed = _Page(text)
    assert not parsed.stack and not parsed.loads and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "script" not in parsed.texts and "\x1b" not in text
    # Control tokens are marked; the same characters in data are not.
    assert parsed.texts["mark"][1:] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert any("<script>alert(1)</script> & <|im_end|> ␛[31m" in part for part in parsed.texts["pre"])
    assert any("more characters" in part for part in parsed.texts["pre"])
    assert any("rejected: wrong_type" in part for part in parsed.texts["b"])


def test_command(finished, tmp_path):
    invoke = CliRunner().invoke
    result = invoke(cli, ["render", str(finished.config), "-n", "1"])
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("# Note 0", "rejected: invalid_json", "filtered: min_chars", "<|im_start|>user", "tokens"):
        assert words in result.stdout
    target = tmp_path / "deep" / "page.html"
    result = invoke(cli, ["render", str(finished.config), "--dataset", "talks", "--html", str(target), "--seed", "5"])
    assert result.exit_code == 0 and re.search(r"<mark>&lt;\|im_start\|&gt;</mark>", target.read_text())
    assert "# Note" not in target.read_text()
    result = invoke(cli, ["render", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2 and "no such file" in result.stderr


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", "two", None]}), tmp_path / "a.parquet")
    config = parse_config(f"datasets: [{{name: a, text_field: text, input: {tmp_path}/a.parquet}}]")
    (rendered,) = render_config(config, None)
    assert outcomes(rendered) == ["rendered", "rendered", "rejected"] and rendered.rows[1].offset == 1
    assert "a.parquet, row 1" in page("a", [rendered])
