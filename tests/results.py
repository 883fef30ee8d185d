"""What is in a finished output, read back with nothing but its files."""

import bz2
import gzip
import hashlib
import json
import logging
import lzma
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import zstandard
from tokenizers import Tokenizer

OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": zstandard.open}


class Place(NamedTuple):
    """Where a document of an output comes from, and which copy of it it is."""

    source: str
    file: str
    offset: int
    copy: int


def manifest_of(out: Path) -> dict[str, Any]:
    assert (out / "_SUCCESS").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    digest = hashlib.sha256((out / "manifest.json").read_bytes()).hexdigest()
    assert (out / "_SUCCESS").read_text() == f"{manifest['fingerprint']}\n{digest}\n"
    return manifest


def shard_hashes(out: Path, output: str = "train") -> list[str]:
    return [shard["sha256"] for shard in manifest_of(out)["outputs"][output]["shards"]]


def sequences_by_forager(folder: Path) -> np.ndarray:
    """uint32[n, context_length]: every sequence, through data-forager's own class."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    from data_forager.datasets.tokens import TokensDataset

    root.setLevel(level)
    root.handlers[:] = handlers  # the import had every logger of the process print its details

    dataset = TokensDataset.create_from_index_on_filesystem(str(folder), token_dtype=np.uint32)
    return np.stack([dataset[n] for n in range(len(dataset))])


def read_documents(out: Path, output: str = "train") -> dict[Place, np.ndarray]:
    """The tokens of every document, put together from its spans in the shards.

    Fails if two spans overlap, a span or a position is missing in between, or what no span covers is not padding.
    """
    manifest = manifest_of(out)
    described = manifest["outputs"][output]
    length, eod = described["context_length"], manifest["tokenizer"]["eod_token_id"]
    spans: dict[Place, list[tuple[int, np.ndarray]]] = defaultdict(list)
    padding = 0
    for shard in described["shards"]:
        tokens = np.fromfile(out / output / shard["path"], "<u4")
        assert len(tokens) == shard["sequences"] * length
        rows = pq.read_table(out / output / shard["documents"]).to_pylist()
        assert len(rows) == shard["spans"]
        covered = np.zeros(len(tokens), np.int8)
        for row in rows:
            start = row["sequence"] * length + row["start"]
            end = start + row["length"]
            assert row["start"] + row["length"] <= length
            assert row["continuation"] == (row["position"] > 0)
            covered[start:end] += 1
            where = Place(row["source"], row["file"], row["offset"], row["copy"])
            spans[where].append((row["position"], tokens[start:end]))
        assert covered.max(initial=1) == 1
        assert (tokens[covered == 0] == eod).all()
        padding += int((covered == 0).sum())
    assert padding == described["padding"]
    assert padding < length or described["packing"] == "best_fit"
    documents = {}
    for where, parts in spans.items():
        parts.sort(key=lambda part: part[0])
        assert [position for position, _ in parts] == [0, *np.cumsum([len(p) for _, p in parts])[:-1].tolist()], where
        documents[where] = np.concatenate([tokens for _, tokens in parts])
    return documents


def raw_lines(path: Path) -> dict[int, bytes]:
    """Byte offset → line of a file, by the standard library."""
    with open(path, "rb") as stored, OPEN.get(path.suffix, lambda file: file)(stored) as file:  # type: ignore[operator]
        content = file.read()
    lines, at = {}, 0
    for line in content.split(b"\n"):
        bom = 3 if not at and line.startswith(b"\xef\xbb\xbf") else 0
        lines[at + bom] = line[bom:]
        at += len(line) + 1
    return lines


def rejected_letters(out: Path) -> list[dict[str, Any]]:
    letters = []
    for path in sorted((out / "rejected").glob("*.jsonl.gz")):
        letters += [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return letters


class Reference:
    """Hugging Face's tokenizer, for documents as lists of text and control tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self.plain = tokenizer
        self._split = Tokenizer.from_str(tokenizer.to_str())
        self._split.encode_special_tokens = True
        self.eod = tokenizer.token_to_id("<|endoftext|>")

    def encode(self, documents: Iterable["Rendered"]) -> list[list[int]]:
        """The ids of each document, with the separator. Control tokens in data are encoded as text."""
        documents = list(documents)
        data = [piece for document in documents for piece in document.pieces]
        encoded = iter(self._split.encode_batch_fast(data, add_special_tokens=False))
        result = []
        for document in documents:
            ids = list(next(encoded).ids)
            for control in document.controls:
                ids += [self.plain.token_to_id(control), *next(encoded).ids]
            result.append([*ids, self.eod])
        return result


class Rendered(NamedTuple):
    """A document as the tests expect it: `pieces[0] controls[0] pieces[1] …`."""

    pieces: tuple[str, ...]
    controls: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As a person reads it."""
        return self.pieces[0] + "".join(c + p for c, p in zip(self.controls, self.pieces[1:], strict=True))


def text(value: str) -> Rendered:
    return Rendered((value,))


def chat(*messages: tuple[str, str]) -> Rendered:
    pieces, controls = [""], []
    for number, (role, content) in enumerate(messages):
        pieces[-1] = "\n" if number else ""
        pieces += [f"{role}\n{content}", ""]
        controls += ["<|im_start|>", "<|im_end|>"]
    return Rendered(tuple(pieces), tuple(controls))
