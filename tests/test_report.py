"""The report: what it counts against what is stored, what it warns of, and that nothing in the data becomes markup."""

import gzip
import json
import logging
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from small_job import CONFIG, start, write_inputs

from beam_prep import report, report_page
from beam_prep.cli import cli
from beam_prep.inspection import open_decoder, read_sequence
from beam_prep.layout import MANIFEST
from beam_prep.manifest import Manifest, parse_manifest, read_manifest
from beam_prep.report import gather, tokenizer_of, try_report, write_report
from beam_prep.report_distributions import (
    LENGTH_BINS,
    Distribution,
    Distributions,
    length_bins,
    length_of,
    quantile,
    vocabulary,
)
from beam_prep.report_plots import Bar, Ridge, bars, lengths
from beam_prep.report_verdict import findings, headline, percent
from beam_prep.verification import verify

HOSTILE = "<script>alert('x')</script>&\"--><img src=x onerror=y>$a$"
_VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Elements with their attributes, and the text by element; fails on tags that do not nest."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)

    @property
    def words(self) -> str:
        """All text that is seen."""
        return " ".join(" ".join(parts) for tag, parts in self.text.items() if tag != "style")


def made_up(
    sources: dict[str, dict] | None = None, outputs: dict[str, dict] | None = None, licences: dict | None = None
) -> Manifest:
    """A manifest of 1,000 records in 200 sequences, with what is given in place of that."""
    ledger = {
        name: {
            "records": 1000, "rejected": {}, "filtered": {}, "duplicates": 0, "sampled_out": 0, "documents": 1000,
            "tokens": 100_000, "bytes": 400_000, **entry,
        }
        for name, entry in (sources or {"web": {}}).items()
    }  # fmt: skip
    parts = {
        name: {
            "documents": entry["documents"], "copies": entry["documents"], "tokens": entry["tokens"], "epochs": 1.0,
            "share": entry["tokens"] / max(1, sum(e["tokens"] for e in ledger.values())), "asked_epochs": 1.0,
        }
        for name, entry in ledger.items()
    }  # fmt: skip
    described = {
        name: {
            "context_length": 512, "packing": "concat", "sequences": 200, "tokens": 102_400, "padding": 0,
            "dropped_tokens": 0, "cut_documents": 0, "cut_share": 0.0, "fill": 1.0, "sources": parts, "shards": [],
            **entry,
        }
        for name, entry in (outputs or {"train": {}}).items()
    }  # fmt: skip
    return parse_manifest(
        json.dumps(
            {
                "version": "1", "fingerprint": "a" * 64, "dtype": "uint32", "context_length": 512, "seed": 0,
                "tokenizer": {"name": "qwen3", "sha256": "b" * 64, "eod_token_id": 1, "vocab_size": 2},
                "configuration": {"datasets": [{"name": name, "input": "x"} for name in ledger]},
                "licences": dict.fromkeys(ledger, "MIT") if licences is None else licences,
                "outputs": described, "ledger": ledger,
            }
        ).encode()
    )  # fmt: skip


def gathered(tmp_path: Path, manifest: Manifest) -> report.Report:
    """Its report, without files."""
    return gather(str(tmp_path), manifest, None)


def serious(tmp_path: Path, **more: dict) -> dict[str, str]:
    """Headline and text of what a made-up output should be checked for."""
    found = findings(gathered(tmp_path, made_up(**more)))
    return {finding.headline: finding.text for finding in found if finding.serious}


@pytest.fixture(scope="module")
def page(finished) -> Page:
    """The page that the run wrote."""
    return Page((finished.output / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with stages and splits, cut and padded, some of it rejected."""
    folder = tmp_path_factory.mktemp("report")
    write_inputs(folder / "in")
    config = CONFIG.format(folder=folder / "in").replace("context_length: 64", "context_length: 64\npacking: best_fit")
    config += "stages: [{name: S1}, {name: S2, context_length: 128, packing: concat, min_tokens: 20}]\n"
    start(config, folder / "out")
    return folder / "out"


def test_a_run_writes_a_page_of_its_figures(page: Page, finished) -> None:
    manifest = read_manifest(str(finished.output))
    for source, entry in manifest.ledger.items():
        assert source in page.words
        assert f"{entry.records:,}" in page.text["td"] and f"{entry.tokens:,}" in page.text["td"]
    for entry in manifest.outputs.values():
        for part in entry.sources.values():
            assert percent(part.share) in page.text["td"]
    assert manifest.fingerprint in page.text["code"]
    assert manifest.tokenizer.sha256 in page.text["code"]
    assert 'PackedDataset("OUT/train")' in page.words and "TokensDataset.create_from_index" in page.words
    assert verify(str(finished.output)) == []


def test_the_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "form"}
    for tag, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("href", "src", "xlink:href"):
                assert value is not None and value.startswith(("#", "data:,")), (tag, key, value)
    assert "@import" not in "".join(page.text["style"])
    assert "url(" not in "".join(page.text["style"])


def test_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a[key][1:] for _, a in page.elements for key in ("href", "xlink:href") if a.get(key, "")[:1] == "#"}
    clips = {clip for _, a in page.elements for clip in re.findall(r"url\(#([^)]+)\)", a.get("clip-path") or "")}
    named = {name for _, a in page.elements for name in (a.get("aria-labelledby") or "").split()}
    assert clips and named and targets | clips | named <= set(ids)


def test_plots_have_alternatives_and_only_the_pages_colours(page: Page) -> None:
    plots = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(plots) >= 6
    assert all(plot["role"] == "img" and plot["aria-labelledby"] for plot in plots)
    styles = " ".join(a.get("style") or "" for tag, a in page.elements if tag in ("path", "text", "use", "g"))
    used = set(re.findall(r"var\(--([a-z-]+)\)", styles))
    assert {"kept", "ink", "soft", "line", "mark"} <= used
    assert not re.search(r"#[0-9a-f]{3,6}\b", styles)
    defined = [set(re.findall(r"--([a-z-]+):", block)) for block in "".join(page.text["style"]).split(":root")[1:]]
    assert len(defined) == 3 and all(used <= names for names in defined)


def test_rejected_records_are_shown(page: Page, finished) -> None:
    ledger = read_manifest(str(finished.output)).ledger["notes"]
    assert set(ledger.rejected) and set(ledger.rejected) <= set(page.text["b"])
    shown = "".join(page.text["pre"])
    assert "{not JSON" in shown and '"no text"' in shown


def test_lengths_are_those_of_the_stored_documents(stages: Path) -> None:
    manifest = read_manifest(str(stages))
    documents: Counter = Counter()
    for name, entry in manifest.outputs.items():
        for shard in entry.shards:
            for row in pq.read_table(stages / name / shard.documents).to_pylist():
                if row["copy"] & 0xFFFFFFFF == 0:
                    documents[name, row["source"], row["id"], row["copy"]] += row["length"]
    assert any(entry.cut_documents for entry in manifest.outputs.values())
    expected = {name: np.zeros(LENGTH_BINS, np.int64) for name in manifest.ledger}
    for (_, source, _, _), length in documents.items():
        expected[source][int(length_bins(np.array([length]))[0])] += 1
    found = gather(str(stages), manifest, None).distributions
    assert found.shards_read == found.shards
    for name, counts in expected.items():
        assert found.sources[name].lengths.tolist() == counts.tolist()


def test_tokens_per_byte_and_text_are_those_of_the_decoder(finished) -> None:
    output = str(finished.output)
    manifest = read_manifest(output)
    decoder = open_decoder(manifest.tokenizer)
    special = set(dict(tokenizer_of(manifest).special_tokens))
    sums: dict[str, list[int]] = {}
    beginnings: dict[str, set[str]] = {}
    known = vocabulary(tokenizer_of(manifest))
    (entry,) = manifest.outputs.values()
    for number in range(entry.sequences):
        for span in read_sequence(output, manifest, "train", number, decoder).spans:
            if span.position == 0:
                beginnings.setdefault(span.source, set()).add(span.text)
            size = sum(len(part.text.encode()) for part in span.parts if part.text not in special)
            # U+FFFD stands for at most its own three bytes of a character that a cut goes through.
            unsure = 3 * span.text.count("\ufffd")
            bounds = sums.setdefault(span.source, [0, 0])
            bounds[0] += size - unsure if size - unsure >= 64 else 0
            bounds[1] += size if size >= 64 else 0
    found = gather(output, manifest, tokenizer_of(manifest)).distributions.sources
    for name, (least, most) in sums.items():
        assert 0 < least <= found[name].text_bytes <= most < 1.01 * least
        assert 0.1 < found[name].text_tokens / found[name].text_bytes < 1
        shown = "".join(part.text for part in found[name].sample).rstrip("\ufffd")
        assert shown and any(text.startswith(shown) for text in beginnings[name])
    text = "Ein Haus, 漢字 🦉\n\t<|im_start|>"
    ids = decoder._tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(part.text for part in known.text(np.array(ids))) == text
    assert sum(known.lengths[ids]) == len(text.removesuffix("<|im_start|>").encode())


def test_no_tokenizer_no_text(stages: Path) -> None:
    manifest = read_manifest(str(stages))
    other = manifest.model_copy(update={"tokenizer": manifest.tokenizer.model_copy(update={"sha256": "0" * 64})})
    assert tokenizer_of(other) is None
    html = report_page.page(gather(str(stages), other, tokenizer_of(other)))
    assert "What the text looks like" not in Page(html).words


def test_stages_and_splits(stages: Path) -> None:
    manifest = read_manifest(str(stages))
    words = Page((stages / "report.html").read_text("utf-8")).words
    assert list(manifest.outputs) == ["S1/train", "S1/val", "S2/train", "S2/val"]
    for name, entry in manifest.outputs.items():
        assert f"{name}: {entry.tokens:,} tokens" in words
    assert "64 and 128 tokens" in words


def test_equal_outputs_give_equal_pages(stages: Path) -> None:
    first = (stages / "report.html").read_bytes()
    write_report(str(stages), read_manifest(str(stages)), tokenizer_of(read_manifest(str(stages))))
    assert (stages / "report.html").read_bytes() == first
    assert str(stages).encode() not in first


def test_a_clean_output_has_nothing_to_check(tmp_path: Path) -> None:
    assert serious(tmp_path) == {}
    assert "Nothing to worry about" in Page(report_page.page(gathered(tmp_path, made_up()))).words


@pytest.mark.parametrize(
    ("source", "headline_", "text"),
    [
        ({"rejected": {"invalid_json": 20}, "documents": 980}, "Many records were rejected", "web (2.0\u202f%)"),
        ({"duplicates": 150, "documents": 850}, "Many duplicates", "web (15.0\u202f%)"),
        ({"filtered": {"min_chars": 700}, "documents": 300}, "Filters took most of a source", "web (70.0\u202f%)"),
        ({"tokens": 0, "sampled_out": 1000, "documents": 0}, "Sources without a single token", "web:"),
    ],
)
def test_a_source_to_worry_about(tmp_path: Path, source: dict, headline_: str, text: str) -> None:
    found = serious(tmp_path, sources={"web": source, "books": {}})
    assert list(found) == [headline_] and text in found[headline_] and "books" not in found[headline_]


@pytest.mark.parametrize(
    ("output", "headline_", "text"),
    [
        ({"cut_documents": 400, "cut_share": 0.4}, "Many documents are cut", "40.0\u202f% of the documents"),
        ({"padding": 5_000}, "Much padding", "4.7\u202f% of the positions"),
        ({"sequences": 7}, "Very small outputs", "train (7 sequences)"),
    ],
)
def test_an_output_to_worry_about(tmp_path: Path, output: dict, headline_: str, text: str) -> None:
    found = serious(tmp_path, outputs={"train": output})
    assert list(found) == [headline_] and text in found[headline_]


@pytest.mark.parametrize(
    ("part", "headline_", "text"),
    [
        ({"epochs": 6.5}, "Sources that are repeated often", "web (6.5 times)"),
        ({"asked_share": 0.5}, "Shares are not what was asked for", "not 50.0\u202f%"),
    ],
)
def test_a_part_to_worry_about(tmp_path: Path, part: dict, headline_: str, text: str) -> None:
    own = {"documents": 1000, "copies": 1000, "tokens": 102_400, "epochs": 1.0, "share": 1.0, **part}
    found = serious(tmp_path, outputs={"train": {"sources": {"web": own}}})
    assert list(found) == [headline_] and text in found[headline_]


def test_unknown_licences(tmp_path: Path) -> None:
    manifest = made_up(sources={"web": {}, "books": {"tokens": 300_000}}, licences={"web": None, "books": "CC0-1.0"})
    found = {f.headline: f.text for f in findings(gathered(tmp_path, manifest)) if f.serious}
    assert found == {"Licence not known": "25.0\u202f% of the tokens, from web: their templates name none."}
    text = Page(report_page.page(gathered(tmp_path, manifest))).text
    assert "CC0-1.0" in text["th"] and "75.0\u202f%" in text["td"] and "300,000" in text["td"]


def test_many_sources(tmp_path: Path) -> None:
    names = [f"source-{number:03d}" for number in range(200)]
    counts = np.zeros(LENGTH_BINS, np.int64)
    counts[40:60] = 3
    sources = {name: {"tokens": 1000 + number} for number, name in enumerate(names)}
    full = gathered(tmp_path, made_up(sources=sources))
    spread = {name: Distribution(counts, np.ones(150, np.int64), 1, 4, []) for name in names}
    html = report_page.page(full._replace(distributions=Distributions(spread, 1, 1)))
    parsed = Page(html)
    assert set(names) <= set(parsed.text["th"])
    assert "184 more sources" in parsed.words
    assert len(html) < 1_000_000
    assert "source-199 (" in headline(full) and "196 more" in headline(full)


def test_what_the_data_holds_is_text(tmp_path: Path) -> None:
    manifest = made_up(sources={HOSTILE: {"rejected": {HOSTILE: 1}, "filtered": {HOSTILE: 1}, "documents": 998}})
    manifest = manifest.model_copy(update={"version": HOSTILE})
    letter = {"reason": HOSTILE, "file": HOSTILE, "offset": 3, "message": HOSTILE, "raw": HOSTILE * 99 + "\x1b[2J"}
    full = gathered(tmp_path, manifest)._replace(examples={HOSTILE: [report._example(letter)]})
    found = Distribution(
        np.ones(LENGTH_BINS, np.int64), np.ones(150, np.int64), 1, 4, [report_page.Part(HOSTILE, True)]
    )
    html = report_page.page(full._replace(distributions=Distributions({HOSTILE: found}, 1, 1)))
    parsed = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in parsed.elements}
    assert "<script" not in html and "<img" not in html and "\x1b" not in html
    assert HOSTILE in parsed.text["b"] and HOSTILE in parsed.text["mark"]
    assert any(text.startswith("<script>alert") for text in parsed.text["text"])
    assert "more characters" in "".join(parsed.text["pre"])


def test_rejects_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "rejected").mkdir()
    letters = [
        {"dataset": "web", "file": "a.parquet", "offset": n, "reason": reason, "message": "m", **raw}
        for n, (reason, raw) in enumerate(
            [("common", {"raw": "x"})] * 50 + [("rare", {"raw_base64": "/w=="})] + [("common", {"raw": "y"})]
        )
    ]
    with gzip.open(tmp_path / "rejected" / "web-00000.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(letter) + "\n" for letter in letters)
    source = {"rejected": {"rare": 1, "common": 51}, "documents": 948}
    examples = gathered(tmp_path, made_up(sources={"web": source})).examples["web"]
    assert [(e.reason, e.place) for e in examples] == [
        ("common", "a.parquet, row 0"),
        ("common", "a.parquet, row 1"),
        ("rare", "a.parquet, row 50"),
    ]
    assert "/w==" in examples[-1].raw


def test_a_report_that_fails_does_not_fail_the_run(
    damaged: Path, qwen3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> str:
        raise RuntimeError(f"no {HOSTILE}")

    monkeypatch.setattr(report_page, "page", fail)
    with caplog.at_level(logging.WARNING):
        try_report(str(damaged), (damaged / MANIFEST).read_bytes(), qwen3)
    parsed = Page((damaged / "report.html").read_text("utf-8"))
    assert "could not be made" in parsed.words and HOSTILE in "".join(parsed.text["pre"])
    assert "script" not in {tag for tag, _ in parsed.elements}
    assert "report could not be made" in caplog.text


def test_a_page_that_cannot_be_written_does_not_fail_the_run(
    damaged: Path, qwen3, caplog: pytest.LogCaptureFixture
) -> None:
    (damaged / "report.html").unlink()
    (damaged / "report.html").mkdir()
    try_report(str(damaged), (damaged / MANIFEST).read_bytes(), qwen3)
    assert "nor could a page" in caplog.text


def test_the_command(damaged: Path) -> None:
    before = (damaged / "report.html").read_bytes()
    (damaged / "report.html").unlink()
    result = CliRunner().invoke(cli, ["report", str(damaged)])
    assert (result.exit_code, result.output) == (0, f"written: {damaged}/report.html\n")
    assert (damaged / "report.html").read_bytes() == before
    next((damaged / "train" / "documents").iterdir()).write_bytes(b"")
    result = CliRunner().invoke(cli, ["report", str(damaged)])
    assert result.exit_code == 1 and "verify" in result.output
    (damaged / "_SUCCESS").unlink()
    assert "is not finished" in CliRunner().invoke(cli, ["report", str(damaged)]).output


@given(st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=40))
@settings(max_examples=50)
def test_quantiles_are_within_a_bin(values: list[int]) -> None:
    counts = np.bincount(length_bins(np.array(values)), minlength=LENGTH_BINS)
    assert counts.sum() == len(values)
    for part in (0.1, 0.5, 0.9, 1.0):
        expected = np.quantile(values, part, method="inverted_cdf")
        assert length_of(-1) <= length_of(quantile(counts, part)) / expected <= length_of(1)


@given(st.text(max_size=20), st.lists(st.floats(0, 1e12), min_size=1, max_size=4))
@settings(max_examples=25)
def test_any_bar_is_well_formed(label: str, widths: list[float]) -> None:
    rows = [Bar(label, label, tuple(("kept", width) for width in widths), widths[0])]
    svg = bars("plot", label, label, rows)
    parsed = Page(svg)
    assert parsed.elements[0][0] == "svg" and not {"script", "style"} & {tag for tag, _ in parsed.elements}
    assert svg == bars("plot", label, label, rows)


@pytest.mark.parametrize("bin_", [0, LENGTH_BINS - 1])
def test_lengths_at_the_ends_of_the_axis(bin_: int) -> None:
    counts = np.zeros(LENGTH_BINS, np.int64)
    counts[bin_] = 1
    parsed = Page(lengths("plot", "t", "d", [Ridge("a", "b", counts), Ridge("none", "", 0 * counts)], [2, 2**31]))
    assert "tokens" in parsed.text["text"] and "256M" in parsed.text["text"]


@pytest.mark.parametrize(
    ("part", "shown"), [(0, "0 %"), (1, "100 %"), (1e-9, "< 0.1 %"), (1 - 1e-9, "> 99.9 %"), (0.123, "12.3 %")]
)
def test_percent(part: float, shown: str) -> None:
    assert percent(part) == shown.replace(" ", "\u202f")
