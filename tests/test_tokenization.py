"""Tokenize: which documents are held against the reference, and batches that an engine deals out."""

import random
from pathlib import Path

import numpy as np
import orjson
import pytest

from beam_prep.carrier import Carrier, load
from beam_prep.ledger import Tally
from beam_prep.mix import document_ids
from beam_prep.parity import ParityCheck
from beam_prep.reading import read_unit
from beam_prep.runs import TokenLimits, entries_array
from beam_prep.sources import Span, Unit
from beam_prep.templates import Filter, Template, compile_template
from beam_prep.tokenization import Tokenization
from beam_prep.tokenizer import TokenizerSpec, has_fastokens
from beam_prep.transform import DocumentBatch, compile_transformer, transform_batch

COUNT = 300


def checked(
    spec: TokenizerSpec, folder: Path, wanted: list[int] | None, one_in: int, patch: pytest.MonkeyPatch
) -> list[str]:
    """The texts that are compared, of `COUNT` documents of which only `wanted` are to be encoded."""
    texts = [f"document {n}" for n in range(COUNT)]
    mask = None if wanted is None else np.isin(np.arange(COUNT), wanted)
    documents = [text if mask is None or mask[n] else "" for n, text in enumerate(texts)]
    seen: list[str] = []
    check = ParityCheck.check

    def record(self: ParityCheck, pieces: list[str], produced: list[bytes], where: str) -> None:
        seen.append("".join(pieces))
        check(self, pieces, produced, where)

    patch.setattr(ParityCheck, "check", record)
    patch.setattr("beam_prep.parity.SAMPLE_ONE_IN", one_in)
    batch = DocumentBatch(
        0,
        "unit",
        True,
        0,
        "a.jsonl",
        documents,
        np.arange(COUNT, dtype=np.uint64),
        np.array([len(text) for text in texts], np.uint32),
        Tally(records=COUNT, rendered=COUNT),
        [],
        document_ids(texts),
        wanted=mask,
    )
    tokenization = Tokenization(spec, "auto", Carrier(str(folder)), 0, [TokenLimits(0, 2**31)])
    assert sum(run.documents for run in [*tokenization.add(batch), *tokenization.finish()]) == COUNT
    tokenization.shutdown()
    return seen


@pytest.mark.skipif(not has_fastokens(), reason="the reference itself does the work")
class TestSample:
    """A sample of every run's documents is encoded by both tokenizers."""

    @pytest.mark.parametrize("one_in", [2**62, 1])
    def test_only_what_is_encoded_counts(
        self, qwen3: TokenizerSpec, tmp_path: Path, one_in: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor is the one document of a small corpus an empty one, of which nothing could differ."""
        assert checked(qwen3, tmp_path, [7], one_in, monkeypatch) == ["document 7"]

    def test_the_least_id_of_a_small_corpus(
        self, qwen3: TokenizerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert len(checked(qwen3, tmp_path, None, 2**62, monkeypatch)) == 1

    def test_nothing_is_encoded(self, qwen3: TokenizerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert checked(qwen3, tmp_path, [], 1, monkeypatch) == []


class TestDealtOut:
    """Engines may hand the batches of a unit to any workers, in any order."""

    def batches(self, tmp_path: Path) -> list[DocumentBatch]:
        path = tmp_path / "a.jsonl"
        lines = [orjson.dumps({"text": f"document {n} " + "x" * (n % 50)}) for n in range(2000)]
        path.write_bytes(b"\n".join(lines) + b"\n")
        unit = Unit(0, "unit", (Span(0, str(path), 0, -1),))
        template = Template(name="t", text="{{ text }}")
        transformer = compile_transformer(compile_template(template, []), Filter(), 0, False)
        made = [transform_batch(batch, transformer) for batch in read_unit(unit)]
        return [batch._replace(ids=document_ids(batch.documents)) for batch in made]

    @pytest.mark.parametrize("workers", [1, 3])
    def test_nothing_is_lost(
        self, qwen3: TokenizerSpec, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("beam_prep.compression.CHUNK_BYTES", 4000)
        batches = self.batches(tmp_path)
        assert len(batches) > 20
        for seed in range(3):
            dealt = random.Random(seed).sample(batches, len(batches))
            runs = []
            for worker in range(workers):
                tokenization = Tokenization(qwen3, "auto", Carrier(None), 0, [TokenLimits(0, 2**31)], run_bytes=20_000)
                for batch in dealt[worker::workers]:
                    runs += tokenization.add(batch)
                runs += tokenization.finish()
                tokenization.shutdown()
            assert len({run.name for run in runs}) == len(runs) > workers
            entries = np.concatenate([entries_array(run.entries) for run in runs])  # type: ignore[arg-type]
            assert sorted(entries["offset"].tolist()) == sorted(o for batch in batches for o in batch.offsets.tolist())
            assert sum(run.tally["records"] for run in runs) == 2000
            assert sum(len(load(run.tokens)) for run in runs) == 4 * entries["tokens"].sum()
