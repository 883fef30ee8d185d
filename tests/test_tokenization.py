"""Tokenize: which documents are held against the reference."""

from pathlib import Path

import numpy as np
import pytest

from beam_prep.carrier import Carrier
from beam_prep.ledger import Tally
from beam_prep.mix import document_ids
from beam_prep.parity import ParityCheck
from beam_prep.runs import TokenLimits
from beam_prep.tokenization import Tokenization
from beam_prep.tokenizer import TokenizerSpec, has_fastokens
from beam_prep.transform import DocumentBatch

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
