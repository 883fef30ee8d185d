"""What packing costs, and what it does to documents: concat and best_fit on the same lengths.

    python benchmarks/packing.py                       # log-normal lengths with FineWeb's mean, and very short ones
    python benchmarks/packing.py --file wikipedia.jsonl.zst --file books.jsonl.gz

A file's records have a `text`; its documents are tokenized with the bundled tokenizer, and drawn with replacement
until there are `--documents`. As in a run, documents are dealt out to buckets, and what a bucket leaves over is packed
with the last one. `cut` is the share of documents that end in another sequence than they began in; `needless` of those
that would have fitted one; `fill` the share of positions that hold a document's token; `rest` the tokens that go to the
last bucket, in sequences. Times are of packing alone: a run moves the same tokens either way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from corpora import read_texts

from beam_prep.balance import bucket_count
from beam_prep.best_fit import pack_best_fit
from beam_prep.packing import Packed, pack_concat, with_rest
from beam_prep.tokenizer import encoder, resolve

CONTEXT_LENGTHS = (4096, 32_768)
PACKERS = {"concat": pack_concat, "best_fit": pack_best_fit}
MEAN, SIGMA = 653, 1.2  # tokens a document
_BATCH = 256


class Result(NamedTuple):
    """One packing of all buckets of an output."""

    seconds: float
    cut: float
    needless: float
    fill: float
    rest: float


def encoded_lengths(path: Path) -> np.ndarray:
    """int64[n]: tokens of each document of a file, separator included."""
    encode = encoder(resolve("qwen3"), "auto").encode
    texts = list(read_texts(path))
    parts = [np.diff(encode(texts[n : n + _BATCH])[1].astype(np.int64)) for n in range(0, len(texts), _BATCH)]
    return np.concatenate(parts) + 1


def lognormal_lengths(numbers: np.random.Generator, documents: int) -> np.ndarray:
    """int64[documents]."""
    drawn = numbers.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, documents)
    return np.maximum(drawn, 2).astype(np.int64)


def pack_output(lengths: np.ndarray, context_length: int, packer: Callable[[np.ndarray, int], Packed]) -> Result:
    """Packs documents as a run does, bucket by bucket."""
    buckets = np.array_split(lengths, bucket_count(int(lengths.sum())))
    sequences = cut = needless = rest = 0
    rests: list[np.ndarray] = []
    seconds = 0.0
    for number, own in enumerate(buckets):
        last = number == len(buckets) - 1
        documents = len(own)
        if last:
            own = np.concatenate([own, *rests])
        start = time.perf_counter()
        packed = packer(own, context_length)
        if last:
            packed = with_rest(packed)
        seconds += time.perf_counter() - start
        rests.append(packed.rest["length"].astype(np.int64))
        rest += 0 if last else int(rests[-1].sum())
        sequences += packed.sequences
        begins = np.concatenate([packed.spans, packed.rest])
        begins = begins[(begins["position"] == 0) & (begins["row"] < documents)]
        broken = begins["length"] < own[begins["row"]]
        cut += int(broken.sum())
        needless += int((broken & (own[begins["row"]] <= context_length)).sum())
    fill = int(lengths.sum()) / (sequences * context_length)
    return Result(seconds, cut / len(lengths), needless / len(lengths), fill, rest / context_length)


def report(name: str, lengths: np.ndarray, repeats: int) -> None:
    """Prints a line for each context length and packer."""
    mean, most = int(lengths.mean()), int(lengths.max())
    print(f"\n{name}: {len(lengths):,} documents, {lengths.sum():,} tokens, mean {mean:,}, longest {most:,}")
    print(
        f"{'context':>9} {'packing':>9} {'seconds':>8} {'ns/doc':>7} {'cut':>9} {'needless':>9} {'fill':>9} {'rest':>7}"
    )
    for context_length in CONTEXT_LENGTHS:
        for packing, packer in PACKERS.items():
            results = [pack_output(lengths, context_length, packer) for _ in range(repeats)]
            seconds, cut, needless, fill, rest = min(results)
            nanoseconds = seconds / len(lengths) * 1e9
            print(
                f"{context_length:>9,} {packing:>9} {seconds:>8.3f} {nanoseconds:>7,.0f} {cut:>9.3%} {needless:>9.3%} "
                f"{fill:>9.3%} {rest:>7.2f}"
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, action="append", default=[], help=".jsonl, .jsonl.gz or .jsonl.zst")
    parser.add_argument("--documents", type=int, default=260_000, help="documents to pack (%(default)s)")
    parser.add_argument("-n", "--repeats", type=int, default=3, help="the fastest of so many counts (%(default)s)")
    args = parser.parse_args()
    numbers = np.random.default_rng(0)
    for path in args.file:
        found = encoded_lengths(path)
        report(f"{path.name} ({len(found):,} documents)", numbers.choice(found, args.documents), args.repeats)
    if not args.file:
        report("log-normal", lognormal_lengths(numbers, args.documents), args.repeats)
        # As many as fill a bucket of 64 Mi tokens.
        report("short", np.maximum(numbers.poisson(60, 1_100_000), 2), args.repeats)


if __name__ == "__main__":
    main()
