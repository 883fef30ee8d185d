"""What beam-prep is measured against, each as a process of its own.

    python benchmarks/contenders.py raw --tokenizer tokenizer.json --out DIR FILE ...

Every contender reads the `text` of JSONL files, writes the token ids to DIR, and prints one JSON line: `documents`,
`tokens`, and `steady`, the seconds from the first byte read to the last one written (imports and loading left out).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

EOD = 151_643  # <|endoftext|> of Qwen3
CONTEXT_LENGTH = 32_768
_BATCH = 2_000_000  # characters that are encoded at a time


def raw(files: list[Path], tokenizer: Path, out: Path) -> dict:
    """The raw limit: one loop that reads, parses, encodes and writes; no shuffle, no packing, no checks."""
    import fastokens
    import numpy as np
    import orjson

    encoder = fastokens.Tokenizer.from_json_str(tokenizer.read_text("utf-8"))
    start = time.perf_counter()
    documents = tokens = 0
    with open(out / "tokens.bin", "wb", buffering=0) as sink:
        for texts in _batches(files, orjson.loads):
            ids, bounds = encoder.encode_batch_flat(texts, split_special_tokens=True)
            ends = np.frombuffer(bounds, np.uint64)[1:].astype(np.int64)
            block = np.insert(np.frombuffer(ids, np.uint32), ends, EOD)
            sink.write(block.data)
            documents += len(texts)
            tokens += len(block)
    return {"documents": documents, "tokens": tokens, "steady": time.perf_counter() - start}


def _batches(files: list[Path], loads) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    for path in files:
        with open(path, "rb", buffering=1 << 20) as lines:
            for line in lines:
                text = loads(line)["text"]
                texts.append(text)
                size += len(text)
                if size >= _BATCH:
                    yield texts
                    texts, size = [], 0
    if texts:
        yield texts


def forager(files: list[Path], tokenizer: Path, out: Path) -> dict:
    """data-forager's own tokenizer and indexer, with the Hugging Face tokenizer."""
    import numpy as np
    from data_forager.indexers.tokenization_indexer import create_tokenize_and_index_jsonl_text_func
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    documents = 0

    def encode(text: str) -> list[int]:
        nonlocal documents
        documents += 1
        return encoder.encode(text).ids

    start = time.perf_counter()
    index = create_tokenize_and_index_jsonl_text_func(
        tokenizer_func=encode,
        eos_idx=EOD,
        input_file_paths=[str(path) for path in files],
        output_base_path=str(out),
        sample_size=CONTEXT_LENGTH,
        token_dtype=np.uint32,
    )
    index()
    steady = time.perf_counter() - start
    written = sum(path.stat().st_size for path in (out / "tokenized-samples").glob("*.bin"))
    return {"documents": documents, "tokens": written // 4, "steady": steady}


def datatrove(files: list[Path], tokenizer: Path, out: Path) -> dict:
    """datatrove's JsonlReader and DocumentTokenizer (it shuffles within each file), one task a file, all cores."""
    import os

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    start = time.perf_counter()
    stats = LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(files[0].parent), glob_pattern="*.jsonl"),
            DocumentTokenizer(str(out / "tokens"), str(tokenizer), eos_token="<|endoftext|>", seed=0),
        ],
        tasks=len(files),
        workers=min(len(files), os.cpu_count() or 1),
        logging_dir=str(out / "logs"),
    ).run()
    steady = time.perf_counter() - start
    written = sum(path.stat().st_size for path in (out / "tokens").glob("*.ds"))
    documents = next(step.stats["documents"].total for step in stats.stats if "documents" in step.stats)
    return {"documents": documents, "tokens": written // 4, "steady": steady}


def gigatoken(files: list[Path], tokenizer: Path, out: Path, as_megatron: bool = False) -> dict:
    """The whole corpus in memory, encoded by gigatoken on all cores, written as .bin and .idx.

    The separators are put in by numpy. Megatron-LM's own script joins them on with awkward arrays, which takes longer
    and twice the memory: that is `as_megatron`.
    """
    import awkward as ak
    import gigatoken as gt
    import numpy as np

    encoder = gt.Tokenizer(str(tokenizer))
    start = time.perf_counter()
    encoded = encoder.encode_files(gt.JsonlFileSource([str(path) for path in files], field="text"))
    if as_megatron:
        eod = ak.singletons(ak.Array(np.full(len(encoded), EOD, dtype=np.uint32)))
        encoded = ak.concatenate([encoded, eod], axis=1)
        lengths = ak.to_numpy(ak.num(encoded, axis=1))
        flat = ak.to_numpy(ak.flatten(encoded, axis=1))
    else:
        lengths = ak.to_numpy(ak.num(encoded, axis=1))
        flat = np.insert(ak.to_numpy(ak.flatten(encoded, axis=1)), np.cumsum(lengths), EOD)
        lengths = lengths + 1
    flat.view(np.int32).tofile(out / "tokens.bin")
    with open(out / "tokens.idx", "wb") as index:
        lengths.astype(np.int32).tofile(index)
        (np.cumsum(lengths, dtype=np.int64) - lengths).tofile(index)
    return {"documents": len(encoded), "tokens": len(flat), "steady": time.perf_counter() - start}


def megatron(files: list[Path], tokenizer: Path, out: Path) -> dict:
    """In the manner of Megatron-LM's fast preprocessor; see `gigatoken`."""
    return gigatoken(files, tokenizer, out, as_megatron=True)


CONTENDERS = {"raw": raw, "forager": forager, "datatrove": datatrove, "gigatoken": gigatoken, "megatron": megatron}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of Qwen3")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    print(json.dumps(CONTENDERS[args.contender](args.files, args.tokenizer, args.out)))


if __name__ == "__main__":
    main()
