"""Stages, splits and weights through the whole job: each output holds what was asked, and everything is made once."""

import gzip
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard
from results import Reference, manifest_of, read_documents, sequences_by_forager, shard_hashes, text

from beam_prep import balance, source_steps, sources, tokenization
from beam_prep.config import parse_config
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.launch import RunOptions, prepare, run
from beam_prep.mix import document_ids, split_points
from beam_prep.tokenizer import TokenizerSpec, decoder

pytestmark = pytest.mark.usefixtures("no_report")

LONG = 32_000
SPLITS = {"train": 0.8, "val": 0.2}
WEIGHTS = {"books": 2.0, "notes": 1.0, "code": 3.0, "proofs": 1.0}
PURPOSES = {"books": "grammar", "notes": "dialogue", "code": "code", "proofs": "reasoning"}
STAGES = {"S1": ("books", "notes"), "S2": ("code", "proofs"), "S3": ("books", "notes", "code", "proofs")}
CONFIG = """
stages: qwen3
seed: 11
splits: {train: 0.8, val: 0.2}
datasets:
  - {name: books, text_field: text, purpose: grammar, input: "{folder}/books*", weight: 2}
  - {name: notes, text_field: text, purpose: dialogue, input: "{folder}/notes*", weight: 1}
  - {name: code, text_field: text, purpose: code, input: "{folder}/code*", weight: 3}
  - {name: proofs, text_field: text, purpose: reasoning, input: "{folder}/proofs*", weight: 1}
  - {name: sums, template: gsm8k, input: "{folder}/sums*", epochs: 1.5}
"""
WORDS = ["the", "of", "return", "naïve", "x=1;", "中文", "3.14", "\n", "<|im_end|>", "and", "so", "on", "theorem", "🇩🇪"]


def made_up(numbers: random.Random, words: int) -> str:
    return " ".join(numbers.choices(WORDS, k=words))


def make_texts() -> dict[str, list[str]]:
    """Texts of each source: short ones, long ones of some, and repeats within and across sources."""
    numbers = random.Random(7)
    texts = {
        name: [f"{name} {n} {made_up(numbers, 5 + int(numbers.lognormvariate(3.5, 0.8)))}" for n in range(count)]
        for name, count in {"books": 300, "notes": 500, "code": 400, "proofs": 200}.items()
    }
    for name, count in {"books": 25, "code": 15}.items():
        texts[name] += [f"long {name} {n} {made_up(numbers, numbers.randint(9000, 12_000))}" for n in range(count)]
    texts["notes"] += numbers.sample(texts["books"][:300], 20)
    texts["code"] += numbers.sample(texts["notes"][:500], 20) + numbers.sample(texts["code"], 10)
    for own in texts.values():
        numbers.shuffle(own)
    return texts


TEXTS = make_texts()
SUMS = [{"question": f"How much is {n} and {n % 7}?", "answer": f"It is {n + n % 7}."} for n in range(120)]


def write_inputs(folder: Path, files: int, seed: int | None, pack: Callable[[bytes], bytes], ending: str) -> Path:
    """The records in so many files a source, in another order for another seed."""
    folder.mkdir(parents=True)
    for name, records in {**{n: [{"text": t} for t in own] for n, own in TEXTS.items()}, "sums": SUMS}.items():
        lines = [json.dumps(record).encode() for record in records]
        if seed is not None:
            random.Random(seed).shuffle(lines)
        for number in range(files):
            path = folder / f"{name}-{number}.jsonl{ending}"
            path.write_bytes(pack(b"".join(line + b"\n" for line in lines[number::files])))
    return folder


def start(config: str, out: Path, workers: int = 1, carrier: str | None = None) -> Path:
    run(prepare(parse_config(config, overrides={"output": str(out)}), RunOptions(workers=workers, carrier=carrier)))
    return out


def hashes(out: Path) -> dict[str, list[str]]:
    return {name: shard_hashes(out, name) for name in manifest_of(out)["outputs"]}


class Counts(NamedTuple):
    """How often the expensive steps were done."""

    lines: list[int]
    records: list[int]
    pieces: list[int]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs") / "plain", 2, None, bytes, "")


@pytest.fixture(scope="module")
def counted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counts]:
    """The output that most tests look at, and what was done for it."""
    counts = Counts([], [], [])

    def counting(function: Callable[..., Any], sizes: list[int], size: Callable[[Any], int]) -> Callable[..., Any]:
        def wrapped(first: Any, *args: Any, **more: Any) -> Any:
            sizes.append(size(first))
            return function(first, *args, **more)

        return wrapped

    def read(*args: Any, **more: Any) -> Any:
        for batch in read_unit(*args, **more):
            counts.lines.append(len(batch.lines))
            yield batch

    def encoder(*args: Any) -> Any:
        made = tokenization_encoder(*args)

        class Counting:
            backend = made.backend
            encode = staticmethod(counting(made.encode, counts.pieces, len))

        return Counting()

    read_unit, tokenization_encoder = source_steps.read_unit, tokenization.encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_steps, "read_unit", read)
        patch.setattr(
            source_steps,
            "transform_batch",
            counting(source_steps.transform_batch, counts.records, lambda b: len(b.lines)),
        )
        patch.setattr(tokenization, "encoder", encoder)
        out = start(CONFIG.replace("{folder}", str(inputs)), tmp_path_factory.mktemp("stages") / "out")
    return out, counts


@pytest.fixture(scope="module")
def base(counted: tuple[Path, Counts]) -> Path:
    return counted[0]


@pytest.fixture(scope="module")
def reference(qwen3: TokenizerSpec) -> Reference:
    return Reference(decoder(qwen3))


class Known(NamedTuple):
    """A document that deduplication keeps."""

    text: str
    tokens: list[int]
    split: str


@pytest.fixture(scope="module")
def known(reference: Reference) -> dict[str, list[Known]]:
    """What each weighted source has after exact deduplication, by the order of the configuration."""
    seen: set[str] = set()
    result = {}
    for name, own in TEXTS.items():
        kept = list(dict.fromkeys(t for t in own if t not in seen))
        seen.update(kept)
        points = split_points(document_ids(kept))
        tokens = reference.encode(map(text, kept))
        result[name] = [
            Known(t, ids, "train" if point < 0.8 else "val")
            for t, ids, point in zip(kept, tokens, points.tolist(), strict=True)
        ]
    return result


def shares_hold(
    output: dict[str, Any],
    supply: dict[str, Sequence[int]],
    weights: dict[str, float],
    max_epochs: float = 1,
    total: float | None = None,
    fixed: int = 0,
) -> None:
    """Realised shares against exact ones. `supply`: tokens of each document of the weighted sources."""
    weights = {name: weight for name, weight in weights.items() if supply[name]}
    shares = {name: Fraction(weight) / sum(map(Fraction, weights.values())) for name, weight in weights.items()}
    largest = min(Fraction(max_epochs) * sum(supply[name]) / share for name, share in shares.items())
    rest = largest if total is None else Fraction(total) - fixed
    assert rest <= largest
    for name, share in shares.items():
        wanted = share * rest
        assert abs(output["sources"][name]["tokens"] - wanted) <= max(0.005 * wanted, *supply[name]), name
        assert output["sources"][name]["asked_share"] == pytest.approx(float(wanted / (rest + fixed)))


class TestQwen3:
    """`stages: qwen3` with weights, epochs and splits."""

    def test_context_lengths_and_cut_documents(self, base: Path) -> None:
        manifest = manifest_of(base)
        assert list(manifest["outputs"]) == [f"{stage}/{split}" for stage in STAGES for split in SPLITS]
        for name, output in manifest["outputs"].items():
            assert output["context_length"] == (32_768 if name.startswith("S3") else 4096)
            assert sequences_by_forager(base / name).shape == (output["sequences"], output["context_length"])
            assert output["cut_share"] == pytest.approx(
                output["cut_documents"] / sum(s["copies"] for s in output["sources"].values())
            )
        assert manifest["outputs"]["S1/train"]["cut_documents"] > 0

    def test_shares(self, base: Path, known: dict[str, list[Known]]) -> None:
        for name, output in manifest_of(base)["outputs"].items():
            stage, split = name.split("/")
            supply = {
                source: [
                    len(d.tokens) for d in known[source] if d.split == split and (stage != "S3" or len(d.text) >= LONG)
                ]
                for source in WEIGHTS
                if source in STAGES[stage]
            }
            fixed = output["sources"].get("sums", {"tokens": 0})["tokens"]
            shares_hold(output, supply, {s: WEIGHTS[s] for s in supply}, fixed=fixed)
            assert set(output["sources"]) == {s for s, own in supply.items() if own} | ({"sums"} if fixed else set())
            assert (fixed > 0) == (stage == "S2")

    def test_documents_of_each_stage(self, base: Path, known: dict[str, list[Known]]) -> None:
        """Each is what its record says, on the side that its text says, and long where long ones are asked for."""
        by_tokens = {tuple(d.tokens): d for own in known.values() for d in own}
        sides: dict[str, set[str]] = defaultdict(set)
        longest = Counter()
        for name in manifest_of(base)["outputs"]:
            stage, split = name.split("/")
            for where, tokens in read_documents(base, name).items():
                assert where.source in (*STAGES[stage], "sums")
                if where.source == "sums":
                    continue
                document = by_tokens[tuple(tokens.tolist())]
                assert document.split == split
                sides[document.text].add(split)
                assert stage != "S3" or len(document.text) >= LONG
                longest[name] += 1
        assert all(len(found) == 1 for found in sides.values())
        assert min(longest.values()) >= 2

    def test_no_id_is_in_two_splits(self, base: Path) -> None:
        ids: dict[str, set[str]] = defaultdict(set)
        for name, output in manifest_of(base)["outputs"].items():
            for shard in output["shards"]:
                ids[name.split("/")[1]] |= set(pq.read_table(base / name / shard["documents"])["id"].to_pylist())
        assert not ids["train"] & ids["val"]
        total = len(ids["train"] | ids["val"])
        assert abs(len(ids["val"]) - 0.2 * total) <= 5 * math.sqrt(0.2 * 0.8 * total)

    def test_the_ledger_adds_up(self, base: Path, known: dict[str, list[Known]]) -> None:
        manifest = manifest_of(base)
        for name, entry in manifest["ledger"].items():
            assert entry["records"] == entry["duplicates"] + entry["sampled_out"] + entry["documents"]
            outputs = [o["sources"][name] for o in manifest["outputs"].values() if name in o["sources"]]
            assert entry["tokens"] == sum(output["tokens"] for output in outputs)
            if name == "sums":
                assert (entry["records"], entry["documents"], entry["sampled_out"]) == (120, 120, 0)
                continue
            assert entry["records"] == len(TEXTS[name])
            assert entry["duplicates"] == len(TEXTS[name]) - len(known[name])
            written = {
                where[:3]
                for output in manifest["outputs"]
                for where in read_documents(base, output)
                if where.source == name
            }
            assert entry["documents"] == len(written)
        assert manifest["ledger"]["code"]["duplicates"] == 30
        assert manifest["ledger"]["notes"]["duplicates"] == 20

    def test_everything_is_made_once(self, counted: tuple[Path, Counts]) -> None:
        """Whatever the number of stages and splits that want a document."""
        records = sum(map(len, TEXTS.values())) + len(SUMS)
        assert sum(counted[1].lines) == sum(counted[1].records) == sum(counted[1].pieces) == records


class TestSameBytes:
    """With weights, stages and splits on."""

    def test_two_processes_read_other_files(self, base: Path, tmp_path: Path) -> None:
        folder = write_inputs(tmp_path / "in", 5, 3, zstandard.ZstdCompressor().compress, ".zst")
        out = start(CONFIG.replace("{folder}", str(folder)), tmp_path / "out", workers=2)
        assert hashes(out) == hashes(base)

    def test_through_the_engines_shuffle_and_in_many_small_parts(
        self, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", 20_000)
        monkeypatch.setattr(sources, "MIN_UNIT_BYTES", 200_000)
        monkeypatch.setattr(tokenization, "RUN_BYTES", 40_000)
        monkeypatch.setattr(tokenization, "ENGINE_RUN_BYTES", 90_000)
        first = start(CONFIG.replace("{folder}", str(inputs)), tmp_path / "files")
        second = start(CONFIG.replace("{folder}", str(inputs)), tmp_path / "engine", carrier="engine")
        assert manifest_of(first) == manifest_of(second)
        assert len(shard_hashes(first, "S3/train")) > 2
        folder = write_inputs(tmp_path / "in", 3, 5, gzip.compress, ".gz")
        third = start(CONFIG.replace("{folder}", str(folder)), tmp_path / "other")
        assert hashes(third) == hashes(first)


OWN = """
context_length: 128
total_tokens: 20000
splits: {train: 0.8, val: 0.2}
stages:
  - {name: prose, purposes: [grammar, dialogue], max_epochs: 3.7, context_length: 64}
  - {name: listed, datasets: [books, code], min_tokens: 60, total_tokens: 10000}
  - {name: shared, datasets: {code: {weight: 1}, proofs: {weight: 4}, sums: {epochs: 0.5}}, total_tokens: 15000}
"""


def test_stages_of_ones_own(inputs: Path, tmp_path: Path, known: dict[str, list[Known]], reference: Reference) -> None:
    config = OWN + CONFIG[CONFIG.index("datasets:") :].replace("{folder}", str(inputs))
    manifest = manifest_of(start(config, tmp_path / "out"))

    def supply(names: Sequence[str], split: str, least: int = 0) -> dict[str, list[int]]:
        return {
            name: [len(d.tokens) for d in known[name] if d.split == split and len(d.tokens) > least] for name in names
        }

    assert list(manifest["outputs"]) == [f"{s}/{x}" for s in ("prose", "listed", "shared") for x in SPLITS]
    for split, fraction in SPLITS.items():
        prose, listed, shared = (manifest["outputs"][f"{s}/{split}"] for s in ("prose", "listed", "shared"))
        assert [o["context_length"] for o in (prose, listed, shared)] == [64, 128, 128]
        shares_hold(prose, supply(["books", "notes"], split), {"books": 2, "notes": 1}, 3.7, 20_000 * fraction)
        shares_hold(listed, supply(["books", "code"], split, 60), {"books": 2, "code": 3}, 1, 10_000 * fraction)
        fixed = shared["sources"]["sums"]["tokens"]
        assert shared["sources"]["sums"]["epochs"] == pytest.approx(0.5, abs=0.3)
        weights = {"code": 1.0, "proofs": 4.0}
        shares_hold(shared, supply(["code", "proofs"], split), weights, 1, 15_000 * fraction, fixed)
        assert set(prose["sources"]) == {"books", "notes"}
        assert set(listed["sources"]) == {"books", "code"}
    for name in ("listed/train", "listed/val"):
        assert min(len(tokens) for tokens in read_documents(tmp_path / "out", name).values()) > 60


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def test_following_the_advice_of_a_failed_run(tmp_path: Path) -> None:
    """And up-sampling to 3.7 epochs."""
    many = write_texts(tmp_path / "many.jsonl", [f"{n} and so on, and so forth" for n in range(2000)])
    few = write_texts(tmp_path / "few.jsonl", [f"only {n} of these" for n in range(300)])
    config = (
        f"context_length: 32\ntotal_tokens: 20000\nmax_epochs: 2\ndatasets:\n"
        f"  - {{name: many, text_field: text, weight: 3, input: {many}}}\n"
        f"  - {{name: few, text_field: text, weight: 2, input: {few}}}\n"
    )
    with pytest.raises(BeamPrepError) as caught:
        start(config, tmp_path / "out")
    assert "'few', which has" in str(caught.value)
    advised = re.findall(r"`(total_tokens|max_epochs): ([\d.]+)`", str(caught.value))
    assert [key for key, _ in advised] == ["total_tokens", "max_epochs"]
    assert 3 < float(advised[1][1]) < 5
    for number, (key, value) in enumerate(advised):
        changed = re.sub(f"{key}: .*", f"{key}: {value}", config)
        output = manifest_of(start(changed, tmp_path / f"out-{number}"))["outputs"]["train"]
        for name, share in (("many", 0.6), ("few", 0.4)):
            source = output["sources"][name]
            assert source["share"] == pytest.approx(share, rel=0.006)
            assert source["asked_share"] == pytest.approx(share)
        assert output["sources"]["few"]["epochs"] == pytest.approx(2 if key == "total_tokens" else float(value), 0.01)


def test_sources_of_which_nothing_is_left_are_named_with_the_reason(tmp_path: Path) -> None:
    texts = [f"text number {n}" for n in range(50)]
    fine = write_texts(tmp_path / "fine.jsonl", texts)
    again = write_texts(tmp_path / "again.jsonl", texts[:30])
    short = write_texts(tmp_path / "short.jsonl", ["a", "b"])
    empty = write_texts(tmp_path / "empty.jsonl", [])
    config = (
        "context_length: 32\ndatasets:\n"
        f"  - {{name: fine, text_field: text, weight: 1, input: {fine}}}\n"
        f"  - {{name: again, text_field: text, weight: 1, input: {again}}}\n"
        f"  - {{name: short, text_field: text, weight: 1, input: {short}, filter: {{min_chars: 5}}}}\n"
        f"  - {{name: empty, text_field: text, weight: 1, input: {empty}}}\n"
    )
    with pytest.raises(BeamPrepError) as caught:
        start(config, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "'again' has a weight, but all of its 30 documents repeat documents of datasets before it" in lines[0]
    assert "'short' has a weight, but all of its 2 records are filtered or rejected (min_chars 2)" in lines[1]
    assert "'empty' has a weight, but its input holds no records" in lines[2]
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_stages_that_cannot_be_are_refused_before_the_work(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", ["text"])
    config = f"stages: qwen3\ndatasets:\n  - {{name: a, text_field: text, input: {path}}}\n"
    with pytest.raises(ConfigError, match="places datasets by purpose"):
        prepare(parse_config(config, overrides={"output": str(tmp_path / "out")}), RunOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dedup", ["exact", "none"])
def test_one_text_in_two_sources_is_on_one_side(tmp_path: Path, dedup: str) -> None:
    texts = [f"text number {n}, which two sources have" for n in range(400)]
    paths = [write_texts(tmp_path / f"{name}.jsonl", texts) for name in "ab"]
    config = f"context_length: 32\ndedup: {dedup}\nsplits: {{train: 0.7, test: 0.3}}\ndatasets:\n" + "".join(
        f"  - {{name: {p.stem}, text_field: text, epochs: 1, input: {p}}}\n" for p in paths
    )
    out = start(config, tmp_path / "out")
    found = [read_documents(out, name) for name in ("train", "test")]
    sides = [{tokens.tobytes() for tokens in own.values()} for own in found]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 400
    assert sum(map(len, found)) == (400 if dedup == "exact" else 800)
    assert abs(len(sides[1]) - 120) <= 5 * math.sqrt(400 * 0.3 * 0.7)
    wanted = {t for t, point in zip(texts, split_points(document_ids(texts)).tolist(), strict=True) if point < 0.7}
    assert len(sides[0]) == len(wanted)
    assert np.isclose(manifest_of(out)["ledger"]["b"]["duplicates"], 400 if dedup == "exact" else 0)
