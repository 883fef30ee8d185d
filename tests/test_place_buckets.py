"""From runs to shards: both carriers, any runs and any repetition give the bytes that a naive reference gives."""

import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import EOD, NAMES, Doc, Written, make_run, naive_output, toy_tokens, write_outputs

from beam_prep import balance, buckets, place, shards
from beam_prep.blocks import PLACED, Block, bucket_key, make_blocks, split_key
from beam_prep.buckets import load_bucket, pack_bucket
from beam_prep.carrier import (
    Carrier,
    Compressed,
    FileSlice,
    Payload,
    carried,
    chunks,
    compress,
    length,
    load,
    part,
    release,
)
from beam_prep.mix import document_ids, id_text, rate_of
from beam_prep.mixture import Share
from beam_prep.outputs import Output
from beam_prep.shards import ShardRecord, write_shard
from beam_prep.tokenizer import TokenizerSpec, encoder


class Case(NamedTuple):
    """What is packed, and how."""

    docs: list[Doc]
    outputs: tuple[Output, ...]
    drop: bool
    seed: int
    tail: str
    bucket_tokens: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Documents are drawn from a seed: their order is one of hashes, which nothing could be shrunk to."""
    numbers = random.Random(draw(st.integers(0, 2**32)))
    longest = draw(st.sampled_from([3, 30, 90]))
    docs = []
    for offset in range(draw(st.sampled_from([1, 2, 10, 50]))):
        text = "".join(numbers.choices("abcdefghijklmnopqrstuvwxyz", k=numbers.randint(0, longest)))
        docs.append(Doc(numbers.randrange(3), numbers.randrange(3), offset, text))
    rates = draw(st.sampled_from([(1.0, 1.0, 1.0), (1.0, 0.0, 0.4), (2.5, 0.4, 2.0)]))
    cut = draw(st.sampled_from([0.0, 0.5]))
    lengths = st.integers(2, 40)
    outputs = [Output("train", draw(lengths), (cut, 1.0), rates)]
    if cut:
        outputs.append(Output("val", draw(lengths), (0.0, cut), rates))
    return Case(
        docs,
        tuple(outputs),
        draw(st.booleans()),
        draw(st.integers(0, 2**63 - 1)),
        draw(st.sampled_from(["pad", "drop"])),
        draw(st.sampled_from([10, 50, 200, 10_000])),
    )


def written(case: Case, carrier: Carrier, folder: Path, numbers: random.Random) -> Written:
    """Deals the documents out to runs at random and takes them through the steps."""
    hands: dict[tuple[int, int], list[Doc]] = {}
    for doc in numbers.sample(case.docs, len(case.docs)):
        hands.setdefault((doc.source, numbers.randrange(2)), []).append(doc)
    runs = [make_run(carrier, f"run-{s}-{n}", hand, case.seed) for (s, n), hand in hands.items()]
    return write_outputs(runs, case.outputs, carrier, folder, case.drop, case.seed, case.tail)


@settings(max_examples=60)
@given(case=cases(), numbers=st.randoms(use_true_random=False), files=st.booleans())
def test_against_the_reference(
    case: Case,
    numbers: random.Random,
    files: bool,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", case.bucket_tokens)
    monkeypatch.setattr(buckets, "_RELEASE_BYTES", 1)  # the spill is given back to the byte
    wanted = {o.name: naive_output(case.docs, o, case.drop, case.seed, case.tail) for o in case.outputs}
    folder = tmp_path_factory.mktemp("case")
    carrier = Carrier(str(folder / "work") if files else None)
    if not all(output.tokens for output in wanted.values()):
        with pytest.raises(balance.BeamPrepError, match="has no documents"):
            written(case, carrier, folder, numbers)
        return
    found = written(case, carrier, folder, numbers)
    for number, output in enumerate(case.outputs):
        naive = wanted[output.name]
        shards_ = [tokens for tokens in found.streams[output.name] if tokens]
        assert shards_ == [tokens for tokens in naive.shards if tokens]
        own = [record for record in found.records if record.output == number]
        assert sum(sum(r.source_tokens) + r.dropped_tokens for r in own) == naive.tokens
        assert sum(p.tokens[number] for p in found.placed) == naive.tokens == found.plan.outputs[number].tokens
        assert sum(sum(r.source_documents) for r in own) <= naive.documents
        if case.tail == "pad":
            assert sum(sum(r.source_documents) for r in own) == naive.documents
            assert sum(r.padding for r in own) < output.context_length
        else:
            assert sum(r.padding for r in own) == 0
            assert sum(r.dropped_tokens for r in own) < output.context_length
    for tally in found.placed:
        run = sum(doc.source == tally.source for doc in case.docs)
        assert 0 <= tally.documents + tally.sampled_out + tally.duplicates <= run
    ends = sum(p.documents + p.sampled_out + p.duplicates for p in found.placed)
    assert ends == len(case.docs)


def documents_of(record: ShardRecord, folder: Path) -> list[dict]:
    return pq.read_table(folder / record.documents_path).to_pylist()


@settings(max_examples=30)
@given(case=cases(), numbers=st.randoms(use_true_random=False))
def test_the_sidecar_finds_every_document_again(
    case: Case,
    numbers: random.Random,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", case.bucket_tokens)
    case = case._replace(outputs=(Output("train", 13, (0.0, 1.0), (1.0, 2.0, 1.0)),), tail="pad")
    folder = tmp_path_factory.mktemp("case")
    found = written(case, Carrier(None), folder, numbers)
    texts = {(NAMES[doc.source], f"{NAMES[doc.source]}/{doc.file}.jsonl", doc.offset): doc.text for doc in case.docs}
    parts: dict[tuple, list[tuple[int, list[int]]]] = {}
    for record, tokens in zip(found.records, found.streams["train"], strict=True):
        covered = np.zeros(len(tokens), int)
        for row in documents_of(record, folder / "train"):
            start = row["sequence"] * 13 + row["start"]
            own = tokens[start : start + row["length"]]
            covered[start : start + row["length"]] += 1
            assert len(own) == row["length"] > 0
            assert row["start"] + row["length"] <= 13
            assert row["continuation"] == (row["position"] > 0)
            key = row["source"], row["file"], row["offset"]
            assert row["id"] == id_text(*document_ids([texts[key]])[0].tolist())
            parts.setdefault((*key, row["copy"]), []).append((row["position"], own))
        assert covered.max(initial=1) == 1
        assert (covered == 0).sum() == record.padding
        assert all(tokens[at] == EOD for at in np.nonzero(covered == 0)[0])
    for (*key, _), spans in parts.items():
        at, joined = 0, []
        for position, own in sorted(spans):
            assert position == at
            at += len(own)
            joined += own
        assert joined == toy_tokens(texts[tuple(key)])
    copies = Counter(key[:3] for key in parts)
    assert set(copies) <= set(texts)
    assert all(count == (2 if source == NAMES[1] else 1) for (source, _, _), count in copies.items())
    if not case.drop:
        assert set(copies) == set(texts)


DOCS = [Doc(n % 3, n % 2, n, f"{n} " * (n % 23)) for n in range(400)]
RATES = (1.0, 1.0, 1.0)
SPLITS = (Output("train", 64, (0.0, 0.8), RATES), Output("val", 32, (0.8, 1.0), RATES))
SEVERAL = Case(DOCS, (Output("train", 64, (0.0, 1.0), RATES),), True, 0, "pad", 1000)


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in an output, but for the spilled payloads."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "work" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("outputs", [SEVERAL.outputs, SPLITS], ids=["one-output", "splits"])
@pytest.mark.parametrize("rates", [RATES, (2.5, 0.3, 1.0)], ids=["once", "epochs"])
def test_carriers_give_the_same_files(
    outputs: tuple[Output, ...], rates: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", 1000)
    case = SEVERAL._replace(outputs=tuple(output._replace(epochs=rates) for output in outputs))
    engine = written(case, Carrier(None), tmp_path / "engine", random.Random(0))
    files = written(case, Carrier(str(tmp_path / "files" / "work")), tmp_path / "files", random.Random(1))
    assert engine.records == files.records
    assert len(engine.records) > 2 * len(outputs)
    assert files_of(tmp_path / "engine") == files_of(tmp_path / "files")


@pytest.mark.parametrize("rates", [RATES, (2.0, 2.0, 2.0)], ids=["once", "twice"])
def test_writing_a_shard_again_changes_nothing(
    rates: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner may do a step again: after it was done, after half of it, and at the same time."""
    monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", 1000)
    calls = []

    def twice(*arguments) -> ShardRecord:  # type: ignore[no-untyped-def]
        first = write_shard(*arguments)
        before = files_of(tmp_path)
        assert write_shard(*arguments) == first
        (Path(arguments[0]) / first.documents_path).unlink()
        assert write_shard(*arguments) == first
        assert files_of(tmp_path) == before
        calls.append(first)
        return first

    monkeypatch.setattr("steps.write_shard", twice)
    case = SEVERAL._replace(outputs=(SEVERAL.outputs[0]._replace(epochs=rates),))
    found = written(case, Carrier(str(tmp_path / "work")), tmp_path, random.Random(0))
    assert calls == found.records
    naive = naive_output(case.docs, case.outputs[0], True, 0, "pad")
    assert found.streams["train"] == naive.shards
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_shard_that_was_written_half_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", 10_000_000)

    def broken_first(*arguments) -> ShardRecord:  # type: ignore[no-untyped-def]
        with monkeypatch.context() as patch:
            patch.setattr(shards, "_WRITE_BYTES", 1000)
            real, count = shards.gather, []

            def fails(*args):  # type: ignore[no-untyped-def]
                count.append(1)
                views = real(*args)
                return views[:10]

            patch.setattr(shards, "gather", fails)
            with pytest.raises(IndexError):
                write_shard(*arguments)
        assert count
        assert not [path for path in (tmp_path / "train").rglob("*") if path.is_file()]
        return write_shard(*arguments)

    monkeypatch.setattr("steps.write_shard", broken_first)
    found = written(SEVERAL, Carrier(str(tmp_path / "work")), tmp_path, random.Random(0))
    assert found.streams["train"] == naive_output(DOCS, SEVERAL.outputs[0], True, 0, "pad").shards


class TestBucket:
    """One bucket by itself."""

    def blocks(self, tmp_path: Path, docs: list[Doc], hands: int = 3) -> tuple[Carrier, list[Block]]:
        carrier = Carrier(str(tmp_path / "work"))
        output = Output("train", 16, (0.0, 1.0), RATES)
        tokens = sum(len(doc.text) + 1 for doc in docs)
        shares = tuple(Share(None, rate_of(rate), tokens) for rate in RATES)
        planned = balance.PlannedOutput(output, 1, tokens, (0, 0, 0), (0, 0, 0), shares)
        plan = balance.Plan((planned,), ({}, {}, {}), (0, 0, 0))
        blocks = []
        for number in range(hands):
            run = make_run(carrier, f"run-{number}", docs[number::hands])
            placed, _ = place.place_run(run, [], plan, 0, True)
            pairs = list(make_blocks([placed], plan, carrier))
            assert [split_key(key) for key, _ in pairs] == [(0, 0)]
            blocks += [block for _, block in pairs]
        return carrier, blocks

    def test_the_order_of_arrival_means_nothing(self, tmp_path: Path) -> None:
        _, blocks = self.blocks(tmp_path, [Doc(0, 0, n, f"document {n}") for n in range(100)])
        first = load_bucket(blocks)
        for seed in range(5):
            again = load_bucket(random.Random(seed).sample(blocks, len(blocks)))
            for column in set(PLACED.names or ()) - {"origin"}:
                assert (again.placed[column] == first.placed[column]).all()
            offsets = [again.placed["offset"][n] for n in range(len(again.placed))]
            assert offsets == first.placed["offset"].tolist()
        assert (np.diff(first.placed["key"].astype(np.int64)) >= 0).all()

    @pytest.mark.parametrize("last", [True, False])
    @pytest.mark.parametrize("tail", ["pad", "drop"])
    def test_what_becomes_of_the_rest(self, tmp_path: Path, last: bool, tail: str) -> None:
        carrier, blocks = self.blocks(tmp_path, [Doc(0, 0, n, "x" * (n % 7)) for n in range(50)])
        total = sum(n % 7 + 1 for n in range(50))
        shard, rest = pack_bucket(0, 3, blocks, 16, last, tail, carrier)
        over = total % 16
        assert over
        assert (shard.output, shard.bucket) == (0, 3)
        assert shard.sequences == total // 16 + (last and tail == "pad")
        assert shard.dropped_tokens == (over if last and tail == "drop" else 0)
        moved = sum(int(np.frombuffer(load(block.placed), PLACED)["tokens"].sum()) for block in rest)
        assert moved == (0 if last else over)
        assert all(block.rank == 4 for block in rest)

    def test_a_bucket_below_one_sequence(self, tmp_path: Path) -> None:
        carrier, blocks = self.blocks(tmp_path, [Doc(0, 0, n, "x") for n in range(3)])
        shard, rest = pack_bucket(0, 0, blocks, 1000, False, "pad", carrier)
        assert shard.sequences == 0
        assert [len(np.frombuffer(load(block.placed), PLACED)) for block in rest] == [3]
        record = write_shard(str(tmp_path / "train"), shard, 2, 1000, EOD, NAMES)
        assert (record.sequences, record.bytes, record.spans) == (0, 0, 0)
        assert (tmp_path / "train" / record.path).read_bytes() == b""
        assert documents_of(record, tmp_path / "train") == []


class TestKeys:
    """The shuffle's keys and the buckets' bounds."""

    @given(output=st.integers(0, 2**20), bucket=st.integers(0, 2**32 - 1))
    def test_round_trip(self, output: int, bucket: int) -> None:
        assert split_key(bucket_key(output, bucket)) == (output, bucket)
        assert bucket_key(output, bucket) < 2**63

    @given(buckets=st.integers(1, 5000))
    @settings(max_examples=30)
    def test_edges_cover_all_keys_evenly(self, buckets: int) -> None:
        edges = balance.bucket_edges(buckets)
        assert len(edges) == buckets + 1
        assert (int(edges[0]), int(edges[-1])) == (0, 2**63)
        sizes = np.diff(edges.astype(object))
        assert max(sizes) - min(sizes) <= 1

    @pytest.mark.parametrize("tokens", [1, 10**6, 10**8, 10**9, 10**10, 10**12, 10**14])
    def test_buckets_have_a_sensible_size(self, tokens: int) -> None:
        count = balance.bucket_count(tokens)
        assert count >= 1
        assert 4 * tokens / count <= 300 << 20
        assert count == 1 or 4 * tokens / count >= 40 << 20


class TestPayloads:
    """The two forms in which steps hand bytes on."""

    @pytest.mark.parametrize("files", [True, False])
    def test_put_load_part(self, tmp_path: Path, files: bool) -> None:
        carrier = Carrier(str(tmp_path / "work") if files else None)
        payload: Payload = carrier.put("some/name", iter([b"ab", b"", b"cdef"]))
        assert isinstance(payload, FileSlice if files else bytes)
        assert load(payload) == b"abcdef"
        assert length(payload) == 6
        inner = part(part(payload, 1, 4), 1, 2)
        assert (load(inner), length(inner)) == (b"cd", 2)
        assert load(carrier.put("empty", [])) == b""
        assert carrier.put("some/name", [b"abcdef"]) == payload

    @given(st.lists(st.binary(max_size=500), max_size=5), st.booleans(), st.data())
    def test_tokens_come_back(self, tmp_path: Path, parts: list[bytes], files: bool, data: st.DataObject) -> None:
        whole = b"".join(parts)
        payload = Carrier(str(tmp_path / "work") if files else None).put_tokens("tokens", parts)
        assert isinstance(payload, FileSlice if files else Compressed)
        assert (load(payload), length(payload), b"".join(chunks(payload))) == (whole, len(whole), whole)
        begin = data.draw(st.integers(0, len(whole)))
        assert load(part(payload, begin, len(whole) - begin)) == whole[begin:]
        assert carried(b"abc", payload) == 3 + (0 if files else len(payload[0]))

    def test_tokens_travel_in_less_than_half_of_their_bytes(self, qwen3: TokenizerSpec) -> None:
        from pydoc_data.topics import topics

        ids = encoder(qwen3, "auto").encode([" ".join(topics.values())])[0]
        assert carried(compress(bytes(ids))) < len(ids) / 2

    def test_a_file_that_is_too_short_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "short"
        path.write_bytes(b"abc")
        with pytest.raises(OSError, match="short"):
            load(FileSlice(str(path), 1, 3))

    def test_release_takes_its_part_and_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "spilled"
        data = bytes(range(1, 251)) * 100
        path.write_bytes(data)
        release(FileSlice(str(path), 100, 20_000), 50, 10_000)
        left = path.read_bytes()
        assert len(left) == len(data)
        assert left[:150] == data[:150]
        assert left[10_150:] == data[10_150:]
        assert left[150:10_150] in (data[150:10_150], bytes(10_000))  # as the file system can
        release(FileSlice(str(path), 0, 10), 0, 0)
        assert path.read_bytes() == left
