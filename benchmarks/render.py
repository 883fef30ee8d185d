"""How fast raw rows become text: MB/s and documents/s of every catalogue entry, parsing included.

    python benchmarks/render.py [--seconds 0.5] [--bytes 2048] [NAME ...]

Rows are the entries' own examples, their texts repeated until a row has at least `--bytes` bytes of JSON. For
entries that are plain text, `function` is the same document by a hand-written f-string; `jinja` is the same
template without the short cut for templates that only join fields.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import orjson

from beam_prep import catalog
from beam_prep.templates import Context, Template, compile_template

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ROWS = 64
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
    "rag-dataset-12000": lambda r: (
        f"Context:\n{r['context']}\n\nQuestion: {r['question']}\n\nAnswer: {r['answer']}"
    ),
    "ragbench-hotpotqa": lambda r: (
        f"Question: {r['question']}\n\nRetrieved documents:\n"
        + "\n".join(f"[{n}] {d}" for n, d in enumerate(r["documents"], 1))
        + f"\n\nAnswer: {r['response']}"
    ),
}


def grow(value: Any, times: int, key: str = "") -> Any:
    """`value` with every text in it repeated."""
    if isinstance(value, str) and key not in KEPT:
        return " ".join([value] * times)
    if isinstance(value, list):
        return [grow(item, times, key) for item in value]
    if isinstance(value, dict):
        return {name: grow(item, times, name) for name, item in value.items()}
    return value


def rows_of(entry: Template, size: int) -> list[bytes]:
    """Different rows of at least `size` bytes."""
    record = copy.deepcopy(entry.example)
    assert record is not None
    if isinstance(record.get("original dialog info"), dict):  # as published
        record["original dialog info"] = orjson.dumps(record["original dialog info"]).decode()
    info = record.pop("original dialog info", None)
    times = 1
    while len(orjson.dumps(grow(record, times))) < size:
        times += 1
    grown = grow(record, times)
    if info is not None:
        grown["original dialog info"] = info
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
    arguments = parser.parse_args()

    context = Context(0, {})
    print(f"{'entry':26} {'bytes':>6} {'MB/s':>7} {'docs/s':>9}   {'function MB/s':>13} {'jinja MB/s':>10}")
    slowest = ("", float("inf"))
    for name in arguments.names or catalog.names():
        entry = catalog.entry(name)
        rows = rows_of(entry, arguments.bytes)
        renderer = compile_template(entry, SPECIAL_TOKENS)
        rate, documents = speed(rows, lambda record, r=renderer: r(record, context), arguments.seconds)
        slowest = min(slowest, (name, rate), key=lambda pair: pair[1])
        line = f"{name:26} {len(rows[0]):6} {rate:7.0f} {documents:9,.0f}"
        if name in FUNCTIONS:
            function = FUNCTIONS[name]
            by_jinja = compile_template(
                entry.model_copy(update={"text": f"{{% if true %}}{entry.text}{{% endif %}}"}), SPECIAL_TOKENS
            )
            record = orjson.loads(rows[0])
            assert function(record) == renderer(record, context) == by_jinja(record, context).rstrip("\n")
            plain, _ = speed(rows, function, arguments.seconds)
            jinja, _ = speed(rows, lambda record, r=by_jinja: r(record, context), arguments.seconds)
            line += f"   {plain:13.0f} {jinja:10.0f}"
        print(line, flush=True)
    print(f"slowest: {slowest[0]}, {slowest[1]:.0f} MB/s")


if __name__ == "__main__":
    main()
