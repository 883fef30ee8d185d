"""Mix: identity, order and share of a document, all from hashes of its content.

* id: 128-bit XXH3 of the rendered text. Control tokens are set apart from the same characters in data, so that
  equal ids mean equal tokens.
* order key of copy c: 63-bit hash of (seed, id, c). The keys are the global order of an output.
* side of a split: a hash of the id alone, so that it stays when the seed changes.
* copies at rate r: floor(r), and one more where a hash of (seed, id), the share word, falls below the fraction. So
  what a smaller rate takes is always part of what a larger one takes.

The integer hash is the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014), vectorised.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import xxhash

from beam_prep.documents import Document, Segments

KEY_BITS = 63
SHARE_BITS = 53
_COPY_SALT = np.uint64(0x9E3779B97F4A7C15)
_SHARE_SALT = np.uint64(0xD1B54A32D192ED03)
_SPLIT_SALT = np.uint64(0x8CB92BA72F3D8DD7)


def document_ids(documents: list[Document]) -> np.ndarray:
    """uint64[n, 2]: (high, low) halves of each document's id."""
    digest = xxhash.xxh3_128_digest
    joined = b"".join(
        [digest(d.encode()) if type(d) is str else digest(_canonical(d)) for d in documents]  # type: ignore[arg-type]
    )
    return np.frombuffer(joined, ">u8").reshape(-1, 2).astype(np.uint64)


def _canonical(document: Segments) -> bytes:
    """Text with its control tokens between bytes 0xFF, which UTF-8 never holds."""
    parts = [document.pieces[0].encode()]
    for control, piece in zip(document.controls, document.pieces[1:], strict=True):
        parts += (b"\xff", control.encode(), b"\xff", piece.encode())
    return b"".join(parts)


def id_text(high: int, low: int) -> str:
    """An id as it is written in sidecars: 32 hexadecimal digits."""
    return f"{high:016x}{low:016x}"


def _finalise(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _seed_word(seed: int) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(seed.to_bytes(8, "little")))


def order_keys(ids: np.ndarray, seed: int, copy: int | np.ndarray = 0) -> np.ndarray:
    """uint64[n] below 2**63: the order keys of copy `copy` of documents `ids` (uint64[n, 2])."""
    with np.errstate(over="ignore"):
        word = _finalise(ids[:, 0] ^ _seed_word(seed))
        word = _finalise(word ^ ids[:, 1])
        word = _finalise(word + np.asarray(copy, np.uint64) * _COPY_SALT)
    return word >> np.uint64(64 - KEY_BITS)


def share_words(ids: np.ndarray, seed: int) -> np.ndarray:
    """uint64[n] below 2**53: where a fraction of an epoch cuts, see `Rate`."""
    with np.errstate(over="ignore"):
        word = _finalise(_finalise(ids[:, 1] ^ _seed_word(seed) ^ _SHARE_SALT) + ids[:, 0])
    return word >> np.uint64(64 - SHARE_BITS)


def split_points(ids: np.ndarray) -> np.ndarray:
    """float64[n] in [0, 1): which side of a split a document is on, whatever the seed."""
    with np.errstate(over="ignore"):
        word = _finalise(_finalise(ids[:, 0] ^ _SPLIT_SALT) + ids[:, 1])
    return (word >> np.uint64(11)).astype(np.float64) / 2.0**53


class Rate(NamedTuple):
    """How often documents are written: `whole` times, and once more those whose share word is below `cut`."""

    whole: int
    cut: int
    """In [0, 2**53]: the fraction of an epoch, times 2**53."""


def rate_of(epochs: float) -> Rate:
    """The rate that `epochs` asks for."""
    whole = int(epochs)
    return Rate(whole, math.ceil((epochs - whole) * 2**SHARE_BITS))


def copies(ids: np.ndarray, seed: int, rate: Rate) -> np.ndarray:
    """int64[n]: how often each document is written."""
    result = np.full(len(ids), rate.whole, np.int64)
    if rate.cut:
        result += share_words(ids, seed) < np.uint64(rate.cut)
    return result
