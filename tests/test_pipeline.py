"""The whole job, from files to an output: the same bytes whatever carries it, exact tokens, a ledger that adds up."""

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import zstandard
from results import (
    Reference,
    Rendered,
    chat,
    manifest_of,
    raw_lines,
    read_documents,
    rejected_letters,
    sequences_by_forager,
    shard_hashes,
    text,
)
from tokenizers import Tokenizer

from beam_prep import balance, output_steps, source_steps, sources, tokenization
from beam_prep.config import parse_config
from beam_prep.documents import Segments
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.launch import AlreadyDone, RunOptions, prepare, run
from beam_prep.mix import copies, document_ids, id_text, rate_of
from beam_prep.tokenizer import TokenizerSpec, decoder

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
RATES = {"notes": 1.0, "maths": 2.5, "chats": 0.3, "articles": 1.0}
LENGTH = 256
CONFIG = f"""
context_length: {LENGTH}
max_rejects: 0.2
datasets:
  - {{name: notes, text_field: text, input: "{{folder}}/notes*"}}
  - {{name: maths, template: gsm8k, input: "{{folder}}/maths*", epochs: 2.5}}
  - {{name: chats, template: toolace, input: "{{folder}}/chats*", epochs: 0.3}}
  - name: articles
    template: wikipedia
    input: ["{{folder}}/articles*"]
    filter:
      - {{min_chars: 30, max_chars: 900, min_tokens: 12, max_tokens: 200}}
      - {{field: score, ge: 3, when_present: true}}
"""


class Record(NamedTuple):
    """A line of a source, and what becomes of it: the rendered document, or why there is none."""

    line: bytes
    document: Rendered | None = None
    reason: str = ""
    """`blank`, or a reason of the ledger."""


# fmt: off
WORDS = [
    "the", "of", "and", "to", "in", "is", "was", "for", "that", "with", "as", "by", "at", "from", "which", "not",
    "e\u0301te\u0301", "naïve", "\u01c4", "\u212b", "\ufb01n", "中文", "漢字", "日本語", "한국어", "\u1112\u1161\u11ab",
    "مرحبا", "हिन्दी", "👩\u200d👩\u200d👧", "🇩🇪", "3.14159", "20240131", "x=1;", "$\\alpha$", "def\u00a0f():",
    "<|endoftext|>", "<|im_start|>user", "<|im_end|>", "<tool_call>", "</think>", "{{x}}", "{%if%}",
    "\r\n", "\u2028", "\u00a0", "\0", "\t\t", "\n\n", "  ",
]
# fmt: on


def words(numbers: random.Random, low: int, high: int) -> str:
    return " ".join(numbers.choices(WORDS, k=numbers.randint(low, high)))


def dumps(numbers: random.Random, record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=numbers.random() < 0.3).encode()


def make_records() -> dict[str, list[Record]]:
    """Records of four sources; each document's rendered form is written out here, by hand."""
    numbers = random.Random(20240131)
    made: dict[str, list[Record]] = {name: [] for name in RATES}

    notes = [words(numbers, 1, 120) for _ in range(300)]
    notes += numbers.sample(notes, 40)  # repeats within the source
    notes += ["one word", "<|endoftext|>", " leading and trailing \n", "\ufeffmark", "x" * 3000]
    for value in notes:
        made["notes"].append(Record(dumps(numbers, {"text": value, "n": numbers.randrange(10**6)}), text(value)))
    made["notes"] += [
        Record(b"", reason="blank"),
        Record(b" \t\r", reason="blank"),
        Record(b'{"text": "cut', reason="invalid_json"),
        Record(b'{"text": "\xff\xfe"}', reason="invalid_utf8"),
        Record(b'{"text": ""}', reason="empty_field"),
        Record(b'{"text": null}', reason="null_field"),
        Record(b'{"text": 3}', reason="wrong_type"),
        Record(b'{"txt": "x"}', reason="missing_field"),
        Record(b'["text"]', reason="not_an_object"),
        Record(b'{"text": "\\ud800"}', reason="lone_surrogate"),
        Record(b'{"text": "huge number", "n": ' + b"9" * 5000 + b"}", text("huge number")),
        Record(b'{"text": "first", "text": "last of two keys"}', text("last of two keys")),
    ]

    for number in range(120):
        question, answer = f"{number}: {words(numbers, 3, 40)}", words(numbers, 3, 60)
        row = {"question": question, "answer": answer}
        made["maths"].append(Record(dumps(numbers, row), text(f"Problem: {question}\n\nSolution: {answer}")))

    for number in range(200):
        turns = [("user", f"{number} {words(numbers, 1, 20)}"), ("assistant", words(numbers, 1, 40))]
        if number % 3 == 0:
            turns += [("tool", words(numbers, 1, 5)), ("assistant", words(numbers, 1, 9))]
        system = words(numbers, 2, 9)
        conversations = [{"from": role, "value": content} for role, content in turns]
        if number % 5 == 0:
            conversations.insert(1, {"from": "narrator", "value": "is skipped"})
        row = {"system": system, "conversations": conversations}
        made["chats"].append(Record(dumps(numbers, row), chat(("system", system), *turns)))
    nobody = [{"from": "user", "value": ""}]
    made["chats"].append(Record(dumps(numbers, {"system": "s", "conversations": nobody}), reason="no_messages"))

    for number in range(150):
        title, body = f"Title {number}", words(numbers, 0, 200) or "-"
        if number % 30 == 1:
            body = f"few{' ' * 40}tokens"
        row: dict[str, Any] = {"title": title, "text": body}
        if number % 10 == 0:
            row["score"] = number // 10 % 5
        made["articles"].append(Record(dumps(numbers, row), text(f"# {title}\n\n{body}")))
    for number in (3, 8, 15):  # texts that another source, named before, has too
        made["notes"].append(Record(dumps(numbers, {"text": made["articles"][number].document.text})))
        made["notes"][-1] = made["notes"][-1]._replace(document=made["articles"][number].document)
    for records in made.values():
        numbers.shuffle(records)
    return made


RECORDS = make_records()


def write_sources(folder: Path, files: int, seed: int | None, endings: Sequence[str]) -> Path:
    """Writes the records as files: so many a source, in another order for another seed, compressed in turn."""
    folder.mkdir(parents=True)
    for name, records in RECORDS.items():
        lines = [record.line for record in records]
        if seed is not None:
            random.Random(seed).shuffle(lines)
        for number in range(files):
            part = lines[number::files]
            content = b"\n".join(part) + (b"\n" if number % 2 else b"")
            if number % 3 == 0:
                content = b"\xef\xbb\xbf" + content
            ending = endings[number % len(endings)]
            (folder / f"{name}-{number:03d}.jsonl{ending}").write_bytes(COMPRESS[ending](content))
    return folder


def start(
    config: str, out: Path, workers: int = 1, carrier: str | None = None, overwrite: bool = False, **overrides: Any
) -> Path:
    """Runs a configuration."""
    parsed = parse_config(config, overrides={"output": str(out), **overrides})
    run(prepare(parsed, RunOptions(workers=workers, carrier=carrier, overwrite=overwrite)))
    return out


def one_source(folder: Path, lines: Sequence[Any], more: str = "", top: str = "context_length: 64\n") -> str:
    """A configuration of one plain source."""
    path = folder / "one.jsonl"
    path.write_bytes(b"".join((v if isinstance(v, bytes) else json.dumps({"text": v}).encode()) + b"\n" for v in lines))
    return f"{top}datasets:\n  - {{name: one, text_field: text, input: {path}{more}}}\n"


def set_small(patch: pytest.MonkeyPatch) -> None:
    """Makes units, runs and buckets so small that a few hundred documents give several of each."""
    patch.setattr(balance, "MIN_BUCKET_TOKENS", 12_000)
    patch.setattr(sources, "MIN_UNIT_BYTES", 15_000)
    patch.setattr(tokenization, "RUN_BYTES", 20_000)
    patch.setattr(tokenization, "ENGINE_RUN_BYTES", 12_000)


# The same for processes of their own, which read this when they start.
SMALL = """
from beam_prep import balance, sources, tokenization

balance.MIN_BUCKET_TOKENS = 12_000
sources.MIN_UNIT_BYTES = 15_000
tokenization.RUN_BYTES = 20_000
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small(monkeypatch)


@pytest.fixture(scope="module")
def reference(qwen3: TokenizerSpec) -> Reference:
    return Reference(decoder(qwen3))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("inputs") / "plain", 2, None, [""])


@pytest.fixture(scope="module")
def base(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output that most tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        set_small(patch)
        return start(CONFIG.replace("{folder}", str(inputs)), tmp_path_factory.mktemp("base") / "out")


class Expected(NamedTuple):
    """What should come of the records of a source."""

    records: int
    rejected: Counter[str]
    filtered: Counter[str]
    duplicates: int
    sampled_out: int
    kept: dict[Rendered, int]
    """Document → how often it is written; 0 where it is sampled out."""


@pytest.fixture(scope="module")
def encoded(reference: Reference) -> dict[Rendered, list[int]]:
    """Hugging Face's tokens of every document, with the separator."""
    documents = {r.document for records in RECORDS.values() for r in records if r.document}
    ordered = sorted(documents)
    return dict(zip(ordered, reference.encode(ordered), strict=True))


def identity(document: Rendered) -> np.ndarray:
    if document.controls:
        return document_ids([Segments(list(document.pieces), list(document.controls))])
    return document_ids([document.text])


@pytest.fixture(scope="module")
def expected(encoded: dict[Rendered, list[int]]) -> dict[str, Expected]:
    """What should come out, worked out from the records alone."""
    result = {}
    seen: set[Rendered] = set()
    for name, records in RECORDS.items():
        rejected: Counter[str] = Counter()
        filtered: Counter[str] = Counter()
        kept: dict[Rendered, int] = {}
        duplicates = 0
        for record in records:
            if record.document is None:
                rejected.update([record.reason] if record.reason != "blank" else [])
                continue
            if name == "articles":
                size, tokens = len(record.document.text), len(encoded[record.document]) - 1
                score = json.loads(record.line).get("score", 3)
                reason = (
                    "score.ge"
                    if score < 3
                    else "min_chars"
                    if size < 30
                    else "max_chars"
                    if size > 900
                    else "min_tokens"
                    if tokens < 12
                    else "max_tokens"
                    if tokens > 200
                    else ""
                )
                if reason:
                    filtered[reason] += 1
                    continue
            if record.document in seen:
                duplicates += 1
                continue
            seen.add(record.document)
            kept[record.document] = int(copies(identity(record.document), 0, rate_of(RATES[name]))[0])
        result[name] = Expected(
            sum(rejected.values()) + sum(filtered.values()) + duplicates + len(kept),
            rejected,
            filtered,
            duplicates,
            sum(not times for times in kept.values()),
            kept,
        )
    return result


class TestOutput:
    """One output, looked at from all sides."""

    def test_the_corpus_is_a_test(self, base: Path, expected: dict[str, Expected]) -> None:
        """Every way in which a record can end is taken, and there are several shards."""
        assert len(shard_hashes(base)) >= 5
        assert {r for e in expected.values() for r in e.rejected} >= {"invalid_json", "invalid_utf8", "no_messages"}
        assert set(expected["articles"].filtered) == {"score.ge", "min_chars", "max_chars", "min_tokens", "max_tokens"}
        assert expected["notes"].duplicates >= 40
        assert expected["articles"].duplicates > 0
        assert set(expected["maths"].kept.values()) == {2, 3}
        assert set(expected["chats"].kept.values()) == {0, 1}

    def test_the_ledger_adds_up_to_the_record(
        self, base: Path, expected: dict[str, Expected], encoded: dict[Rendered, list[int]]
    ) -> None:
        ledger = manifest_of(base)["ledger"]
        assert list(ledger) == list(expected)
        for name, entry in ledger.items():
            wanted = expected[name]
            assert entry["records"] == wanted.records
            assert entry["rejected"] == wanted.rejected
            assert entry["filtered"] == wanted.filtered
            assert entry["duplicates"] == wanted.duplicates
            assert entry["sampled_out"] == wanted.sampled_out
            assert entry["documents"] == len(wanted.kept) - wanted.sampled_out
            assert entry["tokens"] == sum(len(encoded[d]) * times for d, times in wanted.kept.items())
            assert entry["blank_lines"] == sum(r.reason == "blank" for r in RECORDS[name])
        assert ledger["chats"]["skipped_turns"] == {"unknown_role": 40}

    def test_every_document_has_the_tokens_of_hugging_face(
        self, base: Path, expected: dict[str, Expected], encoded: dict[Rendered, list[int]]
    ) -> None:
        """And is there as often as it should be, found through the record that the sidecar names."""
        documents_of_line = {
            (name, record.line): record.document for name, records in RECORDS.items() for record in records
        }
        lines: dict[str, dict[int, bytes]] = {}
        found: dict[str, Counter[Rendered]] = {name: Counter() for name in RATES}
        copies_found: dict[tuple, set[int]] = {}
        for where, tokens in read_documents(base).items():
            own = lines.setdefault(where.file, raw_lines(Path(where.file)))
            document = documents_of_line[where.source, own[where.offset]]
            assert document is not None
            assert tokens.tolist() == encoded[document], where
            copies_found.setdefault(where[:3], set()).add(where.copy)
            found[where.source][document] += 1
        assert found == {
            name: Counter({d: n for d, n in wanted.kept.items() if n}) for name, wanted in expected.items()
        }
        assert all(numbers == set(range(len(numbers))) for numbers in copies_found.values())

    def test_decoding_gives_the_normal_form_back(self, base: Path, reference: Reference) -> None:
        texts = {unicodedata.normalize("NFC", r.document.text) for rs in RECORDS.values() for r in rs if r.document}
        for tokens in read_documents(base).values():
            assert tokens[-1] == reference.eod
            assert reference.plain.decode(tokens[:-1].tolist(), skip_special_tokens=False) in texts

    def test_the_separator_ends_documents_and_pads_and_does_nothing_else(
        self, base: Path, reference: Reference
    ) -> None:
        described = manifest_of(base)["outputs"]["train"]
        sequences = sequences_by_forager(base / "train")
        copies_ = sum(source["copies"] for source in described["sources"].values())
        assert (sequences == reference.eod).sum() == copies_ + described["padding"]
        assert sequences.max() < manifest_of(base)["tokenizer"]["vocab_size"]

    def test_forager_reads_every_sequence(self, base: Path) -> None:
        described = manifest_of(base)["outputs"]["train"]
        sequences = sequences_by_forager(base / "train")
        assert sequences.shape == (described["sequences"], LENGTH)
        stored = b"".join((base / "train" / shard["path"]).read_bytes() for shard in described["shards"])
        assert sequences.astype("<u4").tobytes() == stored
        assert described["sequences"] * LENGTH == described["tokens"] + described["padding"]

    def test_shares_and_epochs(self, base: Path, expected: dict[str, Expected]) -> None:
        described = manifest_of(base)["outputs"]["train"]
        assert sum(source["share"] for source in described["sources"].values()) == pytest.approx(1)
        for name, source in described["sources"].items():
            assert source["copies"] == sum(expected[name].kept.values())
            assert source["documents"] == sum(times > 0 for times in expected[name].kept.values())
            assert source["epochs"] == pytest.approx(RATES[name], rel=0.25)

    def test_sources_are_mixed(self, base: Path) -> None:
        """Every shard holds documents of every source: the order is one of hashes."""
        places = read_documents(base)
        assert len({p.source for p in places}) == 4
        first = manifest_of(base)["outputs"]["train"]["shards"][0]
        import pyarrow.parquet as pq

        assert len(set(pq.read_table(base / "train" / first["documents"])["source"].to_pylist())) == 4

    def test_identity_in_the_sidecar(self, base: Path) -> None:
        import pyarrow.parquet as pq

        known = {id_text(*identity(r.document)[0].tolist()) for rs in RECORDS.values() for r in rs if r.document}
        for shard in manifest_of(base)["outputs"]["train"]["shards"]:
            assert set(pq.read_table(base / "train" / shard["documents"])["id"].to_pylist()) <= known

    def test_rejected_records_are_kept_with_their_place(self, base: Path, inputs: Path) -> None:
        letters = rejected_letters(base)
        wanted = Counter((name, r.reason) for name, rs in RECORDS.items() for r in rs if r.reason not in ("", "blank"))
        assert Counter((letter["dataset"], letter["reason"]) for letter in letters) == wanted
        for letter in letters:
            raw = raw_lines(Path(letter["file"]))[letter["offset"]]
            if "raw" in letter:
                assert letter["raw"].encode() == raw
            else:
                assert letter["reason"] == "invalid_utf8"
            assert letter["message"]
        assert manifest_of(base)["rejected_files"] == sorted(
            str(path.relative_to(base)) for path in (base / "rejected").iterdir()
        )

    def test_nothing_else_is_left(self, base: Path) -> None:
        names = {path.name for path in base.iterdir()}
        assert names == {"_SUCCESS", "inputs", "manifest.json", "rejected", "report.html", "run.json", "train"}
        assert not list(base.rglob("*.tmp"))


@pytest.mark.usefixtures("no_report")
class TestSameBytes:
    """Same configuration and same records, same bytes."""

    def contents(self, out: Path) -> tuple[list[str], dict[str, Any]]:
        """Hashes of the shards, and the ledger without what the files' form decides."""
        ledger = {
            name: {key: value for key, value in entry.items() if key not in ("bytes",)}
            for name, entry in manifest_of(out)["ledger"].items()
        }
        return shard_hashes(out), ledger

    def test_through_the_engines_shuffle(self, base: Path, inputs: Path, tmp_path: Path, small: None) -> None:
        out = start(CONFIG.replace("{folder}", str(inputs)), tmp_path / "out", carrier="engine")
        assert manifest_of(out) == manifest_of(base)  # sidecars included
        assert rejected_letters(out) == rejected_letters(base)

    @pytest.mark.parametrize(
        ("files", "seed", "endings"),
        [(1, 1, [".zst"]), (7, 2, ["", ".gz", ".zst", ".bz2", ".xz"])],
        ids=["one-file-each", "seven-files-of-all-kinds"],
    )
    def test_records_spread_over_other_files(
        self, base: Path, tmp_path: Path, small: None, files: int, seed: int, endings: list[str]
    ) -> None:
        folder = write_sources(tmp_path / "inputs", files, seed, endings)
        out = start(CONFIG.replace("{folder}", str(folder)), tmp_path / "out")
        assert self.contents(out) == self.contents(base)

    def test_other_units_and_runs(
        self, base: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", 12_000)
        out = start(CONFIG.replace("{folder}", str(inputs)), tmp_path / "out")
        assert self.contents(out) == self.contents(base)

    @pytest.mark.slow
    def test_two_processes(
        self, base: Path, inputs: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(SMALL)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
        out = start(CONFIG.replace("{folder}", str(inputs)), tmp_path / "out", workers=2)
        assert len(shard_hashes(out)) > 1
        assert manifest_of(out) == manifest_of(base)

    def test_another_seed_is_another_order_of_the_same_documents(
        self, base: Path, inputs: Path, tmp_path: Path, small: None
    ) -> None:
        out = start(CONFIG.replace("{folder}", str(inputs)), tmp_path / "out", seed=1)
        assert not set(shard_hashes(out)) & set(shard_hashes(base))
        first, second = (
            {where: tokens.tolist() for where, tokens in read_documents(o).items() if where.source == "notes"}
            for o in (base, out)
        )
        assert first == second


@pytest.mark.usefixtures("no_report")
class TestMixing:
    """Deduplication, rates and tails on small corpora."""

    def test_dedup_none_keeps_every_record(self, tmp_path: Path, reference: Reference) -> None:
        lines = ["same", "same", "same", "other"]
        out = start("dedup: none\n" + one_source(tmp_path, lines), tmp_path / "out")
        entry = manifest_of(out)["ledger"]["one"]
        assert (entry["documents"], entry["duplicates"]) == (4, 0)
        decoded = [reference.plain.decode(tokens[:-1].tolist()) for tokens in read_documents(out).values()]
        assert Counter(decoded) == Counter(lines)

    @pytest.mark.parametrize("tail", ["pad", "drop"])
    def test_tails(self, tmp_path: Path, tail: str, small: None, reference: Reference) -> None:
        texts = [f"{n} {words(random.Random(n), 5, 60)}" for n in range(600)]
        total = sum(len(ids) for ids in reference.encode(map(text, texts)))
        out = start(f"tail: {tail}\n" + one_source(tmp_path, texts), tmp_path / "out")
        described = manifest_of(out)["outputs"]["train"]
        assert len(described["shards"]) > 1
        rest = total % 64
        assert rest, "the corpus must not fill its last sequence"
        if tail == "pad":
            assert (described["padding"], described["dropped_tokens"]) == (64 - rest, 0)
            assert (described["tokens"], described["sequences"]) == (total, total // 64 + 1)
            assert len(read_documents(out)) == 600
        else:
            assert (described["padding"], described["dropped_tokens"]) == (0, rest)
            assert (described["tokens"], described["sequences"]) == (total - rest, total // 64)

    def test_a_document_larger_than_a_shard(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Reference
    ) -> None:
        """Then some shards hold nothing, and the run succeeds all the same."""
        monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", 1000)
        texts = ["1234567890" * 1000, "9876543210" * 500, "small", "tiny"]
        out = start(one_source(tmp_path, texts), tmp_path / "out")
        documents = [tokens.tolist() for tokens in read_documents(out).values()]
        assert sorted(documents) == sorted(reference.encode(map(text, texts)))
        assert len(sequences_by_forager(out / "train")) == manifest_of(out)["outputs"]["train"]["sequences"]

    def test_a_corpus_smaller_than_one_sequence(self, tmp_path: Path, reference: Reference) -> None:
        out = start(one_source(tmp_path, ["only this"]), tmp_path / "out")
        (sequence,) = sequences_by_forager(out / "train")
        (ids,) = reference.encode([text("only this")])
        assert sequence.tolist() == ids + [reference.eod] * (64 - len(ids))


class TestFailures:
    """What cannot be done fails, says why, and leaves nothing that looks finished."""

    def failure(self, config: str, out: Path, **options: Any) -> str:
        with pytest.raises(BeamPrepError) as caught:
            start(config, out, **options)
        assert not (out / "_SUCCESS").exists()
        assert "Traceback" not in str(caught.value)
        return str(caught.value)

    def test_too_many_rejects(self, tmp_path: Path) -> None:
        lines = ["fine"] * 8 + [b"{", b'{"text": ""}', b'{"text": ""}']
        config = one_source(tmp_path, lines, ", max_rejects: 0.2")
        message = self.failure(config, tmp_path / "out")
        for part in ("'one'", "3 of 11", "27.3%", "empty_field 2", "invalid_json 1", "max_rejects", "rejected/"):
            assert part in message
        assert len(rejected_letters(tmp_path / "out")) == 3

    def test_the_limit_itself_is_allowed(self, tmp_path: Path) -> None:
        config = one_source(tmp_path, ["a", "b", "c", b"{"], ", max_rejects: 0.25")
        entry = manifest_of(start(config, tmp_path / "out"))["ledger"]["one"]
        assert entry["rejected"] == {"invalid_json": 1}

    @pytest.mark.parametrize(
        "how",
        [{"carrier": "files"}, {"carrier": "engine"}, pytest.param({"workers": 2}, marks=pytest.mark.slow)],
        ids=["files", "engine", "two-processes"],
    )
    def test_a_truncated_file_fails_and_a_mended_one_succeeds(self, tmp_path: Path, how: dict[str, Any]) -> None:
        good = gzip.compress(b"".join(b'{"text": "document %d"}\n' % n for n in range(5000)))
        whole, cut = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
        whole.write_bytes(good)
        cut.write_bytes(good[:-20])
        config = f"datasets: [{{name: one, text_field: text, input: '{tmp_path}/*.gz'}}]\ncontext_length: 64\n"
        message = self.failure(config, tmp_path / "out", **how)
        assert str(cut) in message
        assert str(whole) not in message
        if "workers" in how:
            return
        cut.write_bytes(good)
        entry = manifest_of(start(config, tmp_path / "out", **how))["ledger"]["one"]
        assert (entry["records"], entry["documents"], entry["duplicates"]) == (10_000, 5000, 5000)

    @pytest.mark.parametrize(
        ("lines", "more", "part"),
        [
            ([], "", "0 records"),
            ([b"", b"  "], "", "0 records"),
            (["short", "texts"], ", filter: {min_chars: 100}", "2 filtered"),
            (["a", "b"], ", epochs: 0", "0 epochs"),
        ],
        ids=["empty", "blank", "filtered", "no-epochs"],
    )
    def test_nothing_is_left(self, tmp_path: Path, lines: list[Any], more: str, part: str) -> None:
        message = self.failure(one_source(tmp_path, lines, more), tmp_path / "out")
        assert "'train' has no documents" in message
        assert "one" in message
        assert part in message

    def test_nothing_fills_a_sequence_and_the_tail_is_dropped(self, tmp_path: Path) -> None:
        message = self.failure("tail: drop\n" + one_source(tmp_path, ["only this"]), tmp_path / "out")
        assert "'train'" in message
        assert "tail" in message

    def test_every_pattern_without_a_file_is_named_before_the_work_starts(self, tmp_path: Path) -> None:
        config = (
            f"datasets:\n  - {{name: a, text_field: text, input: {tmp_path}/none*}}\n"
            f"  - {{name: b, text_field: text, input: {tmp_path}/nothing.jsonl}}\n"
        )
        with pytest.raises(ConfigError) as caught:
            prepare(parse_config(config, overrides={"output": str(tmp_path / "out")}), RunOptions())
        assert "none*" in str(caught.value)
        assert "nothing.jsonl" in str(caught.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("fault", ["a document lost", "a block lost", "a shard lost", "a shard cut"])
    def test_a_defect_on_the_way_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
        """Whatever goes missing inside, the ledger or the check of the shards stops the run."""
        step = {
            "a document lost": "transform_batch",
            "a block lost": "blocks.make_blocks",
            "a shard lost": "buckets.pack_bucket",
            "a shard cut": "write_shard",
        }[fault]
        owner: Any = source_steps if fault == "a document lost" else output_steps
        *modules, name = step.split(".")
        for module in modules:
            owner = getattr(owner, module)
        work = getattr(owner, name)

        def faulty(*arguments: Any, **options: Any) -> Any:
            result = work(*arguments, **options)
            if fault == "a document lost" and result.documents:
                kept = result.documents[:-1]
                return result._replace(documents=kept, offsets=result.offsets[:-1], chars=result.chars[:-1])
            if fault == "a block lost":
                return list(result)[:-1]
            if fault == "a shard lost":
                shard, rest = result
                return (shard._replace(sequences=0), rest) if shard.bucket == 0 else result
            if fault == "a shard cut":
                path = Path(arguments[0]) / result.path
                path.write_bytes(path.read_bytes()[:-4])
            return result

        monkeypatch.setattr(owner, name, faulty)
        monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", 400)
        message = self.failure(one_source(tmp_path, [f"document {n}" for n in range(300)]), tmp_path / "out")
        assert any(part in message for part in ("does not add up", "bytes on disk", "no shard"))

    def test_a_difference_between_the_tokenizers_fails_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen3: TokenizerSpec
    ) -> None:
        right = tokenization.encoder(qwen3, "auto")
        wrong = SimpleNamespace(backend="wrong", encode=lambda pieces: right.encode([p.upper() for p in pieces]))
        monkeypatch.setattr(tokenization, "encoder", lambda spec, backend: wrong)
        message = self.failure(one_source(tmp_path, ["some text"]), tmp_path / "out")
        assert "one.jsonl" in message
        assert "tokenizer_backend: huggingface" in message


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A configuration and its output."""
    folder = tmp_path_factory.mktemp("once")
    config = one_source(folder, [f"document {n}" for n in range(50)])
    return config, start(config, folder / "out")


@pytest.mark.usefixtures("no_report")
class TestAgain:
    """An output that is there already."""

    @pytest.fixture
    def finished(self, once: tuple[str, Path], tmp_path: Path) -> tuple[str, Path]:
        """The same, for a test of its own."""
        config, out = once
        shutil.copytree(out, tmp_path / "out")
        return config, tmp_path / "out"

    def prepare(self, config: str, out: Path, overwrite: bool = False, **overrides: Any) -> None:
        parsed = parse_config(config, overrides={"output": str(out), **overrides})
        prepare(parsed, RunOptions(overwrite=overwrite))

    def test_finished_unfinished_and_replaced(self, finished: tuple[str, Path]) -> None:
        config, out = finished
        first = manifest_of(out)

        with pytest.raises(AlreadyDone):
            self.prepare(config, out)
        with pytest.raises(AlreadyDone):  # how a run is carried out is not part of what it is
            self.prepare(f"tokenizer_backend: huggingface\n{config}", out)
        with pytest.raises(BeamPrepError, match="--overwrite"):
            self.prepare(config, out, seed=1)
        with pytest.raises(BeamPrepError, match="--overwrite"):
            self.prepare(config, out, context_length=32)
        assert manifest_of(out) == first

        start(config, out, overwrite=True)
        assert manifest_of(out) == first
        start(config, out, overwrite=True, context_length=32)
        assert manifest_of(out)["context_length"] == 32
        assert len(read_documents(out)) == 50

    def test_other_records_are_another_run(self, finished: tuple[str, Path], tmp_path: Path) -> None:
        _, out = finished
        lines = [f"document {n}" for n in range(50)]
        with pytest.raises(BeamPrepError, match="--overwrite"):
            self.prepare(one_source(tmp_path, [*lines, "one more"]), out)

    def test_an_unfinished_output_is_done_again(self, finished: tuple[str, Path]) -> None:
        config, out = finished
        first = manifest_of(out)
        (out / "_SUCCESS").unlink()
        for shard in (out / "train" / "tokenized-samples").iterdir():
            shard.write_bytes(bytes(shard.stat().st_size))  # of the right size, and wrong
        (out / "train" / "tokenized-samples" / "part-00007-of-00009.bin").write_bytes(b"left from before")
        start(config, out)
        assert manifest_of(out) == first
        assert len(read_documents(out)) == 50
        assert len(list((out / "train" / "tokenized-samples").iterdir())) == 1

    def test_files_of_somebody_else_are_refused(self, finished: tuple[str, Path], tmp_path: Path) -> None:
        config, _ = finished
        target = tmp_path / "mine"
        target.mkdir()
        (target / "thesis.tex").write_text("precious")
        with pytest.raises(BeamPrepError, match=r"thesis\.tex"):
            self.prepare(config, target)
        start(config, target, overwrite=True)
        assert (target / "thesis.tex").read_text() == "precious"

    def test_a_place_that_cannot_be_written(self, finished: tuple[str, Path], tmp_path: Path) -> None:
        config, _ = finished
        (tmp_path / "file").write_text("")
        with pytest.raises(BeamPrepError):
            self.prepare(config, tmp_path / "file" / "out")


@pytest.mark.usefixtures("no_report")
class TestTokenizers:
    """Other tokenizers than the bundled one, end to end."""

    def test_from_the_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen3: TokenizerSpec, reference: Reference
    ) -> None:
        hub = SimpleNamespace(from_pretrained=lambda name, **_: SimpleNamespace(backend_tokenizer=decoder(qwen3)))
        import transformers

        monkeypatch.setattr(transformers, "AutoTokenizer", hub)
        texts = ["some text <|endoftext|>", "and more"]
        out = start(one_source(tmp_path, texts), tmp_path / "out", tokenizer="somebody/model")
        described = manifest_of(out)["tokenizer"]
        assert (described["name"], described["eod_token_id"]) == ("somebody/model", 151_643)
        documents = [tokens.tolist() for tokens in read_documents(out).values()]
        assert sorted(documents) == sorted(reference.encode(map(text, texts)))

    def test_the_reference_does_the_work_when_asked(self, tmp_path: Path, reference: Reference) -> None:
        texts = [words(random.Random(n), 1, 40) for n in range(60)]
        out = start("tokenizer_backend: huggingface\n" + one_source(tmp_path, texts), tmp_path / "out")
        documents = [tokens.tolist() for tokens in read_documents(out).values()]
        assert sorted(documents) == sorted(reference.encode(map(text, texts)))


def test_relative_paths_start_where_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_source(tmp_path, ["a", "b"])
    monkeypatch.chdir(tmp_path)
    config = "datasets: [{name: one, text_field: text, input: one.jsonl}]\ncontext_length: 8\n"
    start(config, Path("out"))
    assert {where.file for where in read_documents(tmp_path / "out")} == {"one.jsonl"}


def test_a_local_tokenizer_without_chat_tokens_refuses_a_chat(tmp_path: Path, qwen3: TokenizerSpec) -> None:
    content = json.loads(decoder(qwen3).to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|im_start|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.jsonl").write_text("{}\n")
    config = f"tokenizer: {tmp_path}\ndatasets: [{{name: c, template: toolace, input: {tmp_path}/a.jsonl}}]\n"
    with pytest.raises(ConfigError, match=r"no <\|im_start\|>"):
        prepare(parse_config(config, overrides={"output": str(tmp_path / "out")}), RunOptions())
