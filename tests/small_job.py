"""A small job with several units, runs and shards of everything, carried out in this process."""

import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_prep import balance, blocks, buckets, compression, sources, tokenization
from beam_prep.config import parse_config
from beam_prep.launch import Prepared, RunOptions, prepare, run

CONFIG = """
context_length: 64
max_rejects: 0.2
splits: {{train: 0.8, val: 0.2}}
datasets:
  - {{name: plain, text_field: text, input: "{folder}/plain.jsonl"}}
  - {{name: packed, text_field: text, input: "{folder}/packed.jsonl.gz", epochs: 1.5}}
  - {{name: columns, text_field: text, input: "{folder}/columns.parquet"}}
"""


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Units, runs and shards so small that a little data gives several."""
    patch.setattr(balance, "MIN_BUCKET_TOKENS", 8_000)
    patch.setattr(balance, "MAX_BUCKET_TOKENS", 8_000)
    patch.setattr(blocks, "GROUP_BYTES", 4_000)
    patch.setattr(buckets, "_RELEASE_BYTES", 1)
    patch.setattr(compression, "CHUNK_BYTES", 8_000)
    patch.setattr(sources, "MIN_UNIT_BYTES", 60_000)
    patch.setattr(tokenization, "RUN_BYTES", 20_000)


def write_inputs(folder: Path) -> None:
    """Three sources; a rejected record, repeated ones, blank lines, a byte order mark, no line feed at the end."""
    numbers = random.Random(3)
    folder.mkdir(parents=True, exist_ok=True)

    def record() -> dict[str, str]:
        return {"text": " ".join(str(numbers.randint(0, 99_999)) for _ in range(numbers.randint(3, 60)))}

    lines = [json.dumps(record()) for _ in range(220)]
    lines[9:9] = ["", "{not JSON", lines[3]]
    (folder / "plain.jsonl").write_text("\ufeff" + "\n".join(lines))
    with gzip.open(folder / "packed.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record()) + "\n" for _ in range(120))
    pq.write_table(pa.Table.from_pylist([record() for _ in range(120)]), folder / "columns.parquet", row_group_size=50)


def prepared(config: str, out: Path | str, overwrite: bool = False, fresh: bool = False, **more: Any) -> Prepared:
    """A run that holds its output."""
    parsed = parse_config(config, overrides={"output": str(out), **more})
    return prepare(parsed, RunOptions(overwrite=overwrite, fresh=fresh))


def start(config: str, out: Path | str, **more: Any) -> None:
    """Carries a job out."""
    run(prepared(config, out, **more))


TIMED = ("run.json", "report.html")
"""Files that hold times."""


def contents(out: Path) -> dict[str, str]:
    """Path → hash of every file of an output that is the same for equal runs."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in TIMED)
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
