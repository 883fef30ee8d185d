"""How fast raw rows become text: MB/s and documents/s of every catalogue entry, parsing included.

    python benchmarks/render.py [--seconds 0.5] [--bytes 2048] [--raw FOLDER] [NAME ...]

Rows are the entries' own examples, their texts repeated until a row has at least `--bytes` bytes of JSON; or, with
`--raw`, the rows of FOLDER/NAME.jsonl or .jsonl.gz that are that long. `function` is the same document by a
hand-written f-string; `jinja` is the same template without the short cut for templates that only join fields.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from beam_prep import catalog
from beam_prep.templates import Context, Template, compile_template

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ROWS = 64
MOST_ROWS = 500
# What is structure rather than text, and must stay as it is.
KEPT = ("from", "label", "answerKey")

FUNCTIONS: dict[str, Callable[[dict], str]] = {
    "wikipedia": lambda r: f"# {r['title']}\n\n{r['text']}",
    "gsm8k": lambda r: f"Problem: {r['question']}\n\nSolution: {r['answer']}",
    "math": lambda r: (
        f"Problem ({r.get('type') or 'Math'}, {r.get('level') or 'Unknown'}): {r['problem']}\n\n"
        f"Solution: {r['solution']}"
    ),
    "swe-bench": lambda r: f"Repository: {r['repo']}\n\nIssue: {r['problem_statement']}\n\nSolution:\n{r['patch']}",
    "rag-dataset-12000": lambda r: f"Context:\n{r['context']}\n\nQuestion: {r['question']}\n\nAnswer: {r['answer']}",
    "ragbench-hotpotqa": lambda r: (
        f"Question: {r['question']}\n\nRetrieved documents:\n"
        + "\n".join(f"[{n}] {d}" for n, d in enumerate(r["documents"], 1))
        + f"\n\nAnswer: {r['response']}"
    ),
}


def grow(value: Any, times: int, key: str = "") -> Any:
    """`value` with every text in it repeated."""
    if key == "chat":  # what the turns say, and not the markers before it
        return re.sub(r"(?<=: )\S.*", lambda said: " ".join([said[0]] * times), value)
    if isinstance(value, str) and key not in KEPT:
        return " ".join([value] * times)
    if isinstance(value, list):
        return [grow(item, times, key) for item in value]
    if isinstance(value, dict):
        return {name: grow(item, times, name) for name, item in value.items()}
    return value


def raw_rows(folder: Path, name: str, size: int) -> list[bytes]:
    """Real rows of at least `size` bytes; [] if there are none."""
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if path.exists():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            return [row for row in data.split(b"\n") if len(row) >= size][:MOST_ROWS]
    return []


def grown_rows(entry: Template, size: int) -> list[bytes]:
    """Different rows of at least `size` bytes."""
    record = copy.deepcopy(entry.example)
    assert record is not None
    times = 1
    while len(orjson.dumps(grown := grow(record, times))) < size:
        times += 1
    if isinstance(info := grown.get("original dialog info"), dict):  # a string, as published
        grown["original dialog info"] = orjson.dumps(info).decode()
    return [orjson.dumps({**grown, "row": number}) for number in range(ROWS)]


def speed(rows: list[bytes], render: Callable[[dict], Any], seconds: float) -> tuple[float, float]:
    """(MB/s, documents/s) of parsing and rendering, the best of five."""
    best = 0.0
    for _ in range(5):
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds / 5:
            for row in rows:
                render(orjson.loads(row))
            count += len(rows)
        best = max(best, count / spent)
    return best * sum(map(len, rows)) / len(rows) / 1e6, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries to measure (all)")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each figure (0.5)")
    parser.add_argument("--bytes", type=int, default=2048, help="least size of a row (2048)")
    parser.add_argument("--raw", type=Path, help="folder of real rows")
    arguments = parser.parse_args()

    context = Context(0, {})
    print(f"{'entry':26} {'bytes':>6} {'MB/s':>7} {'docs/s':>9}   {'function MB/s':>13} {'jinja MB/s':>10}")
    slowest = ("", float("inf"))
    for name in arguments.names or catalog.names():
        entry = catalog.entry(name)
        rows = raw_rows(arguments.raw, name, arguments.bytes) if arguments.raw else grown_rows(entry, arguments.bytes)
        if not rows:
            continue
        renderer = compile_template(entry, SPECIAL_TOKENS)
        rate, documents = speed(rows, lambda record, r=renderer: r(record, context), arguments.seconds)
        slowest = min(slowest, (name, rate), key=lambda pair: pair[1])
        line = f"{name:26} {sum(map(len, rows)) // len(rows):6} {rate:7.0f} {documents:9,.0f}"
        if name in FUNCTIONS:
            function = FUNCTIONS[name]
            by_jinja = compile_template(
                entry.model_copy(update={"text": f"{{% if true %}}{entry.text.strip()}{{% endif %}}"}), SPECIAL_TOKENS
            )
            record = orjson.loads(rows[0])
            assert function(record) == renderer(record, context) == by_jinja(record, context)
            plain, _ = speed(rows, function, arguments.seconds)
            jinja, _ = speed(rows, lambda record, r=by_jinja: r(record, context), arguments.seconds)
            line += f"   {plain:13.0f} {jinja:10.0f}"
        print(line, flush=True)
    print(f"slowest: {slowest[0]}, {slowest[1]:.0f} MB/s")


if __name__ == "__main__":
    main()
