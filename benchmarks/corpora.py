"""Any number of bytes of real text as JSONL, made from a folder of corpora by repeating it with distinct content.

    python benchmarks/corpora.py --bytes 1e9 --out benchmarks/data/corpus --files 4

Reads every `*.jsonl`, `*.jsonl.gz` and `*.jsonl.zst` of the source folder (records with a `text`). The documents of all
files are interleaved in proportion to their bytes, so that any part of the result has nearly the mixture of the whole.
Each repetition begins every document with a number of its own and rotates its lines (or its words, where it is one
line) by another step, so that no two texts are equal and exact deduplication keeps them all. The same arguments always
give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson
import zstandard

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_SOURCE = REPOSITORY.parent / "shared" / "data" / "corpora"
DEFAULT_OUT = REPOSITORY / "benchmarks" / "data" / "corpus"
_FORM = 1  # changes whenever the same arguments would give other bytes
_STEP = 0.381966  # of a document's length, per repetition: the golden section, so that no two repetitions begin alike


def read_texts(path: Path) -> Iterator[str]:
    """The `text` of every record of a .jsonl, .jsonl.gz or .jsonl.zst file."""
    with open(path, "rb") as raw:
        if path.suffix == ".gz":
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".zst":
            lines = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw), 1 << 20)
        else:
            lines = raw
        for line in lines:
            if line.strip():
                yield orjson.loads(line)["text"]


def interleaved(sources: list[list[str]]) -> list[str]:
    """One list in which every source is spread evenly over its bytes; a source's own order is kept."""
    placed = []
    for number, texts in enumerate(sources):
        total, seen = sum(map(len, texts)) or 1, 0
        for text in texts:
            placed.append(((seen + len(text) / 2) / total, number, text))
            seen += len(text)
    return [text for _, _, text in sorted(placed, key=lambda entry: entry[:2])]


def distinct(text: str, number: int, repetition: int) -> str:
    """`text` under a number of its own, rotated by lines (or words) as the repetition says; repetition 0 is not."""
    between = "\n" if text.count("\n") > 1 else " "
    pieces = text.split(between)
    start = int(len(pieces) * (repetition * _STEP % 1))
    return f"{number} {between.join(pieces[start:] + pieces[:start])}"


def records(texts: list[str]) -> Iterator[bytes]:
    """JSONL records without end."""
    number = repetition = 0
    while True:
        for text in texts:
            yield orjson.dumps({"text": distinct(text, number, repetition)}, option=orjson.OPT_APPEND_NEWLINE)
            number += 1
        repetition += 1


def make_corpus(size: int, out: Path, files: int = 4, source: Path = DEFAULT_SOURCE) -> list[Path]:
    """Writes `files` .jsonl files of nearly equal size into `out`, unless they are there already.

    Args:
      size: bytes of all files; the last record is written whole, so that there may be a little more.

    Returns:
      The files, in order.

    Raises:
      FileNotFoundError: the source folder is not there or holds no corpora.
    """
    found = sorted(p for suffix in ("", ".gz", ".zst") for p in source.glob(f"*.jsonl{suffix}"))
    if not found:
        raise FileNotFoundError(f"no *.jsonl, *.jsonl.gz or *.jsonl.zst in {source}; give a folder of corpora")
    asked = {"form": _FORM, "size": size, "files": files, "source": [[p.name, p.stat().st_size] for p in found]}
    paths = [out / f"corpus-{n:03d}-of-{files:03d}.jsonl" for n in range(files)]
    stamp = out / "corpus.json"
    if stamp.exists():
        made = json.loads(stamp.read_text())
        if made["asked"] == asked and made["sizes"] == [p.stat().st_size if p.exists() else -1 for p in paths]:
            return paths
    out.mkdir(parents=True, exist_ok=True)
    for old in (stamp, *out.glob("corpus-*.jsonl")):
        old.unlink(missing_ok=True)
    texts = interleaved([list(read_texts(p)) for p in found])
    stream, written = records(texts), 0
    for n, path in enumerate(paths):
        with open(path, "wb", buffering=1 << 20) as file:
            while written < size * (n + 1) // files:
                written += file.write(next(stream))
    sizes = [path.stat().st_size for path in paths]
    stamp.write_text(json.dumps({"asked": asked, "sizes": sizes}))
    return paths


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=float, default=1e9, help="bytes to write (default 1e9)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the result (default %(default)s)")
    parser.add_argument("--files", type=int, default=4, help="number of files (default 4)")
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder of corpora (default %(default)s)")
    args = parser.parse_args()
    try:
        paths = make_corpus(int(args.bytes), args.out, args.files, args.source)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    for path in paths:
        print(f"{path}  {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
