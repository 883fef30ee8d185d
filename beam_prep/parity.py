"""Parity: in every run a hash-chosen sample of documents is encoded by the Hugging Face tokenizer too."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from beam_prep.errors import BeamPrepError
from beam_prep.mix import id_text
from beam_prep.tokenizer import Encoder, HuggingFaceEncoder, TokenizerSpec

SAMPLE_ONE_IN = 2048
MAX_CHARS = 16_384
"""A longer piece is compared by its beginning."""


@lru_cache(maxsize=1)  # it takes 0.6 s, and there may be many bundles
def reference(spec: TokenizerSpec) -> HuggingFaceEncoder:
    """The process's one Hugging Face tokenizer to compare with."""
    return HuggingFaceEncoder(spec)


class ParityCheck:
    """Compares a fast encoder with the reference; loads the reference at the first document."""

    def __init__(self, spec: TokenizerSpec, fast: Encoder):
        self._spec, self._fast = spec, fast
        self.documents = 0

    @staticmethod
    def choose(ids: np.ndarray) -> list[int]:
        """Indexes of the documents to compare, by their ids (uint64[n, 2])."""
        return np.nonzero(ids[:, 1] % np.uint64(SAMPLE_ONE_IN) == 0)[0].tolist()

    def check(self, pieces: list[str], produced: list[bytes], where: str) -> None:
        """Holds what was produced for one document's pieces against the reference.

        Raises:
          BeamPrepError: they differ; names the document and the way out.
        """
        shortened = [piece[:MAX_CHARS] for piece in pieces]
        ids, bounds = reference(self._spec).encode(shortened)
        for number, piece in enumerate(pieces):
            wanted = ids[4 * int(bounds[number]) : 4 * int(bounds[number + 1])]
            got = produced[number] if len(piece) <= MAX_CHARS else self._fast.encode([shortened[number]])[0]
            if bytes(got) != wanted:
                raise BeamPrepError(
                    f"{where}: {self._fast.backend} and the Hugging Face tokenizer give different ids for this "
                    "document; set `tokenizer_backend: huggingface` (slower, exact) and report the text"
                )
        self.documents += 1


def document_name(path: str, offset: int, high: int, low: int) -> str:
    """How a document is named in an error."""
    return f"{path}, byte {offset} (document {id_text(high, low)})"
