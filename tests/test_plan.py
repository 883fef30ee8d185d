"""Plan: exact on small data, held against real runs; on samples within its own error; the same errors as a run."""

import bz2
import gzip
import json
import lzma
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from results import manifest_of

from beam_prep import balance, cost, estimate, plan, sample_records, sources, tokenization
from beam_prep.cli import cli
from beam_prep.config import parse_config
from beam_prep.cost import dataflow_cost, output_bytes
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.launch import RunOptions, prepare, run
from beam_prep.output_estimate import expected_cut
from beam_prep.packing import pack_concat
from beam_prep.reading import read_unit
from beam_prep.sample_records import PLACES, Part, choose_places, kind_of, read_sample
from beam_prep.sampled_source import ratio_error
from beam_prep.sizes import parse_size
from beam_prep.sources import InputFile, match_source, split_source

pytestmark = pytest.mark.usefixtures("no_report")

WORDS = ["the", "of", "return", "naïve", "x=1;", "中文", "3.14", "<|im_end|>", "and", "theorem", "🇩🇪", "123"]
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def prose(numbers: random.Random, words: int) -> str:
    return " ".join(numbers.choices(WORDS, k=words))


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    raw = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](b"\n".join(raw) + b"\n"))


def set_small(patch: pytest.MonkeyPatch) -> None:
    """So that small outputs have several shards."""
    patch.setattr(balance, "MIN_BUCKET_TOKENS", 6_000)
    patch.setattr(sources, "MIN_UNIT_BYTES", 15_000)
    patch.setattr(tokenization, "RUN_BYTES", 20_000)


def start(config: str, out: Path) -> dict[str, Any]:
    """Runs a configuration; its manifest."""
    run(prepare(parse_config(config, overrides={"output": str(out)}), RunOptions()))
    return manifest_of(out)


def planned(config: str, **options: Any) -> plan.Forecast:
    return plan.forecast(parse_config(config), **options)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources in several formats, with repeats within and across them, rejects, blank lines, short and long."""
    folder = tmp_path_factory.mktemp("inputs")
    numbers = random.Random(5)
    notes = [{"text": f"{n} {prose(numbers, numbers.randint(1, 90))}", "score": n % 7} for n in range(300)]
    notes += numbers.sample(notes, 30) + [{"text": f"long {prose(numbers, 1500)}", "score": 6}]
    write_lines(folder / "notes-0.jsonl", [*notes[::2], b"", b"{not JSON", {"text": None}, b"  "])
    write_lines(folder / "notes-1.jsonl.gz", [*notes[1::2], b'{"text": "\\ud800"}'])
    sums = [{"question": f"{n}?", "answer": prose(numbers, numbers.randint(1, 40))} for n in range(200)]
    write_lines(folder / "sums.jsonl.zst", sums)
    texts = [f"book {n} {prose(numbers, numbers.randint(20, 400))}" for n in range(80)]
    texts += [note["text"] for note in notes[:25]] + texts[:5]
    pq.write_table(pa.table({"text": texts}), folder / "books.parquet", row_group_size=30)
    return folder


TOP = "max_rejects: 0.1\nseed: 3\n"
NOTES = 'name: notes, text_field: text, input: "{folder}/notes*", filter: {min_chars: 30, field: score, ge: 1}'
SUMS = 'name: sums, template: gsm8k, input: "{folder}/sums*", purpose: reasoning'
BOOKS = 'name: books, text_field: text, input: "{folder}/books*", filter: {max_tokens: 1200, min_tokens: 20}'


def config_of(top: str, *datasets: str) -> str:
    return TOP + top + "datasets:\n" + "".join(f"  - {{{dataset}}}\n" for dataset in datasets)


CONFIGS = {
    "epochs": config_of(
        "context_length: 256\nviews: [64]\n", f"{NOTES}, epochs: 2.7", f"{SUMS}, epochs: 0.5", f"{BOOKS}, epochs: 1"
    ),
    "weights": config_of("context_length: 128\n", f"{NOTES}, weight: 3", f"{SUMS}, weight: 1", f"{BOOKS}, weight: 0.5"),
    "splits and a dropped tail": config_of(
        "context_length: 128\ntail: drop\nsplits: {train: 0.9, val: 0.1}\n",
        f"{NOTES}, weight: 2",
        f"{SUMS}, epochs: 1.3",
        f"{BOOKS}, weight: 1",
    ),
    "budget": config_of(
        "context_length: 200\ntotal_tokens: 20000\nmax_epochs: 3\n", f"{NOTES}, weight: 0.2", f"{BOOKS}, weight: 0.8"
    ),
    "no dedup": config_of("context_length: 64\ndedup: none\n", NOTES, f"{BOOKS}, epochs: 3.5"),
    "best_fit": config_of(
        "context_length: 512\npacking: best_fit\nsplits: {train: 0.7, val: 0.3}\n", f"{NOTES}, epochs: 1.6", SUMS, BOOKS
    ),
    "best_fit and a dropped tail": config_of("context_length: 96\npacking: best_fit\ntail: drop\n", NOTES, BOOKS),
    "stages": config_of(
        """context_length: 64
stages:
  - {name: short, datasets: {sums: {epochs: 1.5}, notes: {weight: 1}}, packing: best_fit}
  - {name: rest, context_length: 512, min_chars: 400, datasets: [notes, books]}
  - {name: tokens, context_length: 128, min_tokens: 25, datasets: {books: {weight: 1}, notes: {weight: 3}}}
splits: {train: 0.8, val: 0.2}
""",
        NOTES,
        SUMS,
        f"{BOOKS}, epochs: 0.6",
    ),
}


class TestExact:
    """Where the whole of the data fits the sample, every figure is that of the manifest of the run."""

    @pytest.mark.parametrize("name", CONFIGS)
    def test_plan_is_what_run_does(
        self, name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_small(monkeypatch)
        config = CONFIGS[name].replace("{folder}", str(inputs))
        made = plan.as_json(planned(config))
        manifest = start(config, tmp_path / "out")
        assert made["exact"] and made["problems"] == []
        self.compare_ledger(made, manifest)
        self.compare_outputs(made, manifest)
        views = parse_config(config).views
        for output, own in made["outputs"].items():
            assert own["bytes"] == pytest.approx(stored_bytes(tmp_path / "out" / output), rel=0.5)
            shards = sum(path.stat().st_size for path in (tmp_path / "out" / output / "tokenized-samples").iterdir())
            assert shards == own["sequences"] * own["context_length"] * 4
        assert views == ([64] if name == "epochs" else [])

    def compare_ledger(self, made: dict[str, Any], manifest: dict[str, Any]) -> None:
        assert made["sources"].keys() == manifest["ledger"].keys()
        for source, entry in manifest["ledger"].items():
            own = made["sources"][source]
            assert own["exact"] and own["tokens_error"] == 0 and own["bytes"] == entry["bytes"] == own["sampled_bytes"]
            for key in ("records", "rejected", "filtered", "duplicates"):
                assert own[key] == entry[key], (source, key)

    def compare_outputs(self, made: dict[str, Any], manifest: dict[str, Any]) -> None:
        assert made["outputs"].keys() == manifest["outputs"].keys()
        for output, described in manifest["outputs"].items():
            own = made["outputs"][output]
            for key in ("sequences", "tokens", "padding", "dropped_tokens", "cut_share", "context_length", "packing"):
                assert own[key] == described[key], (output, key)
            assert own["shards"] == len(described["shards"])
            assert own["sources"].keys() >= described["sources"].keys()
            for source, entry in described["sources"].items():
                share = own["sources"][source]
                assert (share["tokens"], share["share"], share["epochs"]) == (
                    entry["tokens"],
                    entry["share"],
                    entry["epochs"],
                ), (output, source)
                assert share.get("asked_share") == entry.get("asked_share")

    def test_the_configurations_test_something(self, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        set_small(monkeypatch)
        made = plan.as_json(planned(CONFIGS["epochs"].replace("{folder}", str(inputs))))
        notes = made["sources"]["notes"]
        assert sum(notes["rejected"].values()) == 3 and {"min_chars", "score.ge"} <= set(notes["filtered"])
        assert notes["duplicates"] > 0 and made["sources"]["books"]["duplicates"] > 5
        assert {"min_tokens", "max_tokens"} & set(made["sources"]["books"]["filtered"])
        assert made["outputs"]["train"]["shards"] > 2
        best_fit = plan.as_json(planned(CONFIGS["best_fit"].replace("{folder}", str(inputs))))["outputs"]["train"]
        assert best_fit["shards"] > 1 and best_fit["padding"] > 0

    def test_the_distinct_tokens_of_a_source(self, inputs: Path, tmp_path: Path) -> None:
        """Without splits and rates those are what is written."""
        config = config_of("context_length: 64\n", NOTES, SUMS, BOOKS).replace("{folder}", str(inputs))
        made, manifest = plan.as_json(planned(config)), start(config, tmp_path / "out")
        for source, entry in manifest["ledger"].items():
            assert made["sources"][source]["tokens"] == entry["tokens"]

    def test_nothing_is_written(self, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        planned(CONFIGS["stages"].replace("{folder}", str(inputs)) + f"output: {tmp_path}/out\n")
        assert list(tmp_path.iterdir()) == []

    def test_many_epochs_are_not_packed_one_by_one(
        self, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then concat's sequences are still exact, and what is cut is near."""
        config = config_of("context_length: 256\n", f"{NOTES}, epochs: 20", BOOKS).replace("{folder}", str(inputs))
        exact = plan.as_json(planned(config))["outputs"]["train"]
        monkeypatch.setattr(estimate, "_MOST_COPIES", 100)
        made = plan.as_json(planned(config))["outputs"]["train"]
        for key in ("sequences", "tokens", "shards", "padding"):
            assert made[key] == exact[key]
        assert made["cut_share"] == pytest.approx(exact["cut_share"], rel=0.1)
        assert made["sources"] == exact["sources"]


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class TestFailures:
    """What a run would refuse, plan refuses in the same words."""

    def same(self, config: str, tmp_path: Path) -> str:
        with pytest.raises(BeamPrepError) as caught:
            start(config, tmp_path / "out")
        assert planned(config).estimate.problems == str(caught.value)
        return str(caught.value)

    def test_a_budget_that_cannot_be_met(self, inputs: Path, tmp_path: Path) -> None:
        config = config_of("total_tokens: 1e6\n", f"{NOTES}, weight: 3", f"{SUMS}, weight: 1", f"{BOOKS}, epochs: 1")
        message = self.same(config.replace("{folder}", str(inputs)), tmp_path)
        assert "notes" in message and "sums" in message
        made = planned(config.replace("{folder}", str(inputs)))
        train = plan.as_json(made)["outputs"]["train"]["sources"]
        tokens = {name: source["tokens"] for name, source in plan.as_json(made)["sources"].items()}
        assert train["notes"]["asked_share"] == pytest.approx(0.75 * (1 - tokens["books"] / 1e6))
        for name in ("notes", "sums"):
            assert train[name]["tokens"] == tokens[name] and train[name]["epochs"] == 1
            assert train[name]["share"] == tokens[name] / 1e6 < train[name]["asked_share"]

    def test_epochs_leave_nothing(self, inputs: Path, tmp_path: Path) -> None:
        config = config_of("total_tokens: 100\n", f"{NOTES}, weight: 3", f"{BOOKS}, epochs: 1")
        self.same(config.replace("{folder}", str(inputs)), tmp_path)

    @pytest.mark.parametrize(
        ("lines", "more", "top"),
        [
            ([], ", weight: 1", ""),
            ([{"text": "short"}], ", weight: 1, filter: {min_chars: 100}", ""),
            ([{"text": "a"}, b"{", b"{"], "", ""),
            ([{"text": "a"}], "", "tail: drop\n"),
            ([{"text": "a"}], ", epochs: 0", ""),
            ([{"text": "a"}], "", "splits: {train: 0.001, val: 0.999}\n"),
        ],
        ids=["empty", "filtered with a weight", "rejected", "no sequence", "no epochs", "empty split"],
    )
    def test_nothing_is_left(self, lines: list[Any], more: str, top: str, tmp_path: Path) -> None:
        write_lines(tmp_path / "one.jsonl", lines)
        self.same(f"{top}datasets: [{{name: one, text_field: text, input: {tmp_path}/one.jsonl{more}}}]\n", tmp_path)

    @pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
    @pytest.mark.parametrize("how", ["truncated", "corrupt"])
    def test_a_file_that_cannot_be_read(self, ending: str, how: str, tmp_path: Path) -> None:
        path = tmp_path / f"a.jsonl{ending}"
        write_lines(path, [{"text": f"{n} {prose(random.Random(n), 30)}"} for n in range(500)])
        data = path.read_bytes()
        half = len(data) // 2
        path.write_bytes(data[:-40] if how == "truncated" else data[:half] + b"\xff" * 200 + data[half + 200 :])
        config = f"datasets: [{{name: a, text_field: text, input: {path}}}]\n"
        with pytest.raises(BeamPrepError) as by_run:  # by what Read of a run does
            for unit in split_source(0, match_source("a", [str(path)])):
                list(read_unit(unit))
        with pytest.raises(BeamPrepError) as by_plan:
            planned(config)
        assert str(by_plan.value) == str(by_run.value) and str(path) in str(by_plan.value)

    def test_corruption_where_a_large_file_begins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sample_records, "_FIRST_BYTES", 4000)
        path = tmp_path / "a.jsonl.gz"
        write_lines(path, [{"text": f"{n} {prose(random.Random(n), 30)}"} for n in range(3000)])
        data = path.read_bytes()
        path.write_bytes(data[:2000] + b"\xff" * 100 + data[2100:])
        with pytest.raises(BeamPrepError, match=r"a\.jsonl\.gz: cannot be read .* truncated or corrupt"):
            planned(f"datasets: [{{name: a, text_field: text, input: {path}}}]\n", sample=4000)

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        """Its places are read from the middle, where nothing tells what it is."""
        path = tmp_path / "a.jsonl"
        path.write_bytes(gzip.compress(random.Random(1).randbytes(200_000)))
        with pytest.raises(BeamPrepError, match="gzip"):
            planned(f"datasets: [{{name: a, text_field: text, input: {path}}}]\n", sample=40_000)

    def test_inputs_that_are_not_there(self, tmp_path: Path) -> None:
        config = "".join(f"  - {{name: {n}, text_field: text, input: {tmp_path}/{n}*}}\n" for n in "ab")
        with pytest.raises(ConfigError) as caught:
            planned("datasets:\n" + config)
        assert f"{tmp_path}/a*" in str(caught.value) and f"{tmp_path}/b*" in str(caught.value)


FILES = st.lists(st.tuples(st.integers(0, 10**7), st.sampled_from(["", ".gz", ".zst"])), min_size=1, max_size=40).map(
    lambda pairs: [InputFile(n, f"{n}.jsonl{ending}", size, 0.0) for n, (size, ending) in enumerate(pairs)]
)


class TestPlaces:
    @given(FILES, st.integers(1, 10**7))
    def test_places(self, files: list[InputFile], wanted: int) -> None:
        places = choose_places(files, wanted)
        assert places == choose_places(files, wanted)
        if all(place.windows == 0 for place in places):
            assert [place.file for place in places] == files
            assert sum(file.size * (4 if kind_of(file) == "compressed" else 1) for file in files) <= wanted
            return
        assert 1 <= len(places) <= PLACES
        before: dict[int, int] = {}
        for place in places:
            if kind_of(place.file) == "plain":
                assert before.get(place.file.number, 0) <= place.start <= place.end <= place.file.size
                before[place.file.number] = place.end
            else:
                assert place.file.number not in before
                before[place.file.number] = 0
        plain = sum(place.end - place.start for place in places if kind_of(place.file) == "plain")
        inside = sum(place.wanted * 4 for place in places if kind_of(place.file) != "plain")
        assert plain + inside <= wanted + 2 * len(places)

    @pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".bz2", ".xz", ".parquet"])
    def test_what_is_read_is_there(self, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lines of the file at their offsets, none twice, about as many as wanted, from all over the file."""
        monkeypatch.setattr(sample_records, "_FIRST_BYTES", 2000)
        numbers = random.Random(1)
        records = [{"text": f"{n} {prose(numbers, int(numbers.lognormvariate(3, 1)))}"} for n in range(8000)]
        path = tmp_path / f"a.jsonl{ending}"
        if ending == ".parquet":
            path = tmp_path / "a.parquet"
            pq.write_table(pa.Table.from_pylist(records), path, row_group_size=100)
            known = {n: record for n, record in enumerate(records)}
        else:
            write_lines(path, records)
            raw = [json.dumps(record, ensure_ascii=False).encode() for record in records]
            starts = np.cumsum([0, *(len(line) + 1 for line in raw)]).tolist()
            known = dict(zip(starts, records, strict=False))
        total = sum(len(json.dumps(r, ensure_ascii=False).encode()) + 1 for r in records)
        wanted = total // 10
        parts = list(read_sample(match_source("a", [str(path)]), wanted))
        assert not any(part.whole for part in parts) and len(parts) > 8
        offsets = [offset for part in parts for offset in part.offsets.tolist()]
        assert len(set(offsets)) == len(offsets)
        for part in parts:
            for line, offset in zip(part.lines, part.offsets.tolist(), strict=True):
                assert json.loads(line) == known[offset]
        assert 0.5 * wanted < sum(part.size for part in parts) < 4 * wanted
        assert max(offsets) > 0.9 * max(known) and min(offsets) < 0.1 * max(known)
        # What the lines take of the file is known well enough to scale by.
        stored = sum(part.stored for part in parts) / path.stat().st_size
        assert stored == pytest.approx(sum(part.size for part in parts) / total, rel=0.05)

    def test_only_the_beginning_of_a_large_compressed_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sample_records, "_FIRST_BYTES", 2000)
        path = tmp_path / "a.jsonl.gz"
        write_lines(path, [{"text": f"{n} {prose(random.Random(n), 30)}"} for n in range(8000)])
        parts = list(read_sample(match_source("a", [str(path)]), 20_000))
        assert all(part.begun for part in parts)
        assert 10_000 < sum(part.size for part in parts) < 50_000
        assert sum(part.scanned for part in parts) < len(gzip.decompress(path.read_bytes())) / 2

    def test_a_file_that_unfolds_to_far_more_than_usual(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl.gz"
        write_lines(path, [{"text": "again and again " * 50}] * 40_000)
        assert path.stat().st_size < 200_000
        parts = list(read_sample(match_source("a", [str(path)]), 1_000_000))
        assert sum(part.size for part in parts) < 5_000_000

    def test_a_document_longer_than_every_place(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        write_lines(path, [{"text": "x" * 100_000}] * 20)
        lines = [line for part in read_sample(match_source("a", [str(path)]), 100_000) for line in part.lines]
        assert {len(line) for line in lines} <= {len(b'{"text": ""}') + 100_000}

    def test_sizes(self) -> None:
        for text, size in {"5": 5, "8e6": 8_000_000, "64MB": 64_000_000, "1.5 gb": 1_500_000_000, "2KiB": 2000}.items():
            assert parse_size(text, "--sample") == size
        for text in ("", "MB", "-5", "0", "ten", "1e400", "nan"):
            with pytest.raises(ConfigError, match="--sample"):
                parse_size(text, "--sample")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that grow on their way through the files, some filtered, repeats, in three formats."""
    folder = tmp_path_factory.mktemp("corpus")
    numbers = random.Random(2)
    for ending in ("", ".gz", ".parquet"):
        records = [{"text": f"{ending} {n} {prose(numbers, 3 + n // 40)}"} for n in range(4000)]
        records += records[:200]
        if ending == ".parquet":
            pq.write_table(pa.Table.from_pylist(records), folder / "c.parquet", row_group_size=200)
        else:
            write_lines(folder / f"c.jsonl{ending}", records)
    return folder


class TestEstimates:
    def config(self, corpus: Path, ending: str = "*", more: str = "", top: str = "") -> str:
        own = f"name: c, text_field: text, filter: {{min_chars: 100}}, input: '{corpus}/c{ending}'{more}"
        return f"context_length: 512\n{top}datasets: [{{{own}}}]\n"

    @pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet", "*"])
    def test_an_estimate_is_within_its_error(self, corpus: Path, ending: str) -> None:
        config = self.config(corpus, ending)
        exact = plan.as_json(planned(config, sample=10**9))
        made = plan.as_json(planned(config, sample=150_000))
        assert exact["exact"] and not made["exact"]
        true, own = exact["sources"]["c"], made["sources"]["c"]
        assert own["sampled_bytes"] < true["bytes"] / 4
        assert own["bytes"] == pytest.approx(true["bytes"], rel=0.05)
        seen = true["tokens"] * (1 + 200 / 4000 * 0.01)  # repeats of short documents, which a sample does not see
        assert abs(own["tokens"] / seen - 1) < max(1.5 * own["tokens_error"], 0.03)
        assert own["tokens_error"] < 0.2
        assert abs(own["records"] / true["records"] - 1) < 1.5 * own["records_error"]
        filtered = sum(own["filtered"].values()) / own["records"]
        assert filtered == pytest.approx(sum(true["filtered"].values()) / true["records"], abs=0.1)
        train, truth = made["outputs"]["train"], exact["outputs"]["train"]
        assert train["sequences"] == pytest.approx(truth["sequences"], rel=0.1)
        assert train["cut_share"] == pytest.approx(truth["cut_share"], rel=0.25)
        assert train["bytes"] == pytest.approx(truth["bytes"], rel=0.1)

    def test_the_same_estimate_every_time(self, corpus: Path) -> None:
        config = self.config(corpus)
        first, second = (plan.as_json(planned(config, sample=100_000)) for _ in range(2))
        for made in (first, second):
            made.pop("resources")
        assert first == second

    def test_a_larger_sample_has_a_smaller_error(self, corpus: Path) -> None:
        errors = [
            plan.as_json(planned(self.config(corpus, ".jsonl"), sample=n))["sources"]["c"]["tokens_error"]
            for n in (50_000, 800_000, 10**9)
        ]
        assert errors[0] > errors[1] > errors[2] == 0

    def test_weights_are_solved_on_what_is_expected(self, corpus: Path, tmp_path: Path) -> None:
        write_lines(tmp_path / "few.jsonl", [{"text": f"{n} {prose(random.Random(n), 40)}"} for n in range(100)])
        more = f"}}, {{name: few, text_field: text, input: {tmp_path}/few.jsonl, weight: 1"
        config = self.config(corpus, ".jsonl", f", weight: 9{more}", "max_epochs: 3\n")
        made, exact = (plan.as_json(planned(config, sample=n)) for n in (150_000, 10**9))
        own, truth = made["outputs"]["train"], exact["outputs"]["train"]
        assert made["sources"]["few"]["exact"] and not made["sources"]["c"]["exact"]
        assert own["sources"]["c"]["share"] == pytest.approx(0.9, abs=0.005)
        # The small source, which was read as a whole, decides the total: it is known exactly.
        assert own["tokens_error"] == 0 and own["tokens"] == pytest.approx(truth["tokens"], rel=0.005)
        assert own["sources"]["few"]["epochs"] == pytest.approx(3, abs=0.01)

    def test_an_impossible_wish_is_seen_in_a_sample(self, corpus: Path) -> None:
        config = self.config(corpus, ".jsonl", ", weight: 1", "total_tokens: 1e9\n")
        made = planned(config, sample=150_000)
        assert "'c'" in made.estimate.problems and "epochs" in made.estimate.problems
        assert made.resources is None and plan.as_json(made)["resources"] is None

    def test_what_a_sample_does_not_show_is_no_failure(self, corpus: Path) -> None:
        """A split so small that none of its documents is read."""
        top = "splits: {train: 0.997, val: 0.003}\n"
        made = plan.as_json(planned(self.config(corpus, ".jsonl", ", weight: 1", top), sample=40_000))
        assert made["problems"] == [] and list(made["outputs"]) == ["train"]
        (note,) = made["notes"]
        assert "'val'" in note and "--sample" in note and " c " in note
        exact = plan.as_json(planned(self.config(corpus, ".jsonl", ", weight: 1", top), sample=10**9))
        assert list(exact["outputs"]) == ["train", "val"] and exact["notes"] == []

    def test_best_fit(self, corpus: Path) -> None:
        config = self.config(corpus, ".jsonl", "", "packing: best_fit\n")
        made, exact = (plan.as_json(planned(config, sample=n))["outputs"]["train"] for n in (200_000, 10**9))
        assert made["sequences"] == pytest.approx(exact["sequences"], rel=0.1)
        assert made["cut_share"] == exact["cut_share"] == 0

    @settings(max_examples=20)
    @given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(2, 100))
    def test_the_chance_of_a_cut(self, lengths: list[int], context_length: int) -> None:
        """Over all places where a stream may begin, it is what concat cuts."""
        own = np.array(lengths)
        cut = 0
        for shift in range(context_length):
            spans = pack_concat(np.array([shift + 1, *lengths]), context_length)
            parts = np.bincount(np.concatenate([spans.spans["row"], spans.rest["row"]]))
            cut += int((parts[1:] > 1).sum())
        expected = float(expected_cut(own, context_length, "concat").sum())
        assert cut / context_length == pytest.approx(expected, rel=1e-9)

    def test_the_interval_holds_the_truth_as_often_as_it_says(self) -> None:
        numbers = np.random.default_rng(0)
        size = numbers.uniform(50, 150, 4000)
        value = 0.25 * size * numbers.lognormal(0, 0.3, 4000)
        held = 0
        for _ in range(1000):
            own = numbers.choice(4000, 24, replace=False)
            estimated = value[own].sum() / size[own].sum() * size.sum()
            held += abs(estimated - value.sum()) <= ratio_error(value[own], size[own], 24 / 4000) * estimated
        assert 0.9 < held / 1000 < 0.985

    def test_what_says_nothing_of_an_error(self) -> None:
        assert ratio_error([1.0], [1.0], 0) == ratio_error([], [], 0) == ratio_error([0, 0], [1, 1], 0) == math.inf
        assert ratio_error([2.0, 4.0], [1.0, 2.0], 0) == 0
        assert ratio_error([2.0, 5.0], [1.0, 2.0], 1) == 0

    def test_a_source_in_one_block(self, tmp_path: Path) -> None:
        """Of one document that is larger than the sample, nothing can be said, and nothing breaks."""
        write_lines(tmp_path / "a.jsonl", [{"text": prose(random.Random(1), 20_000)}])
        made = planned(f"datasets: [{{name: a, text_field: text, input: {tmp_path}/a.jsonl}}]\n", sample=5000)
        assert not made.estimate.exact
        assert plan.as_json(made)["sources"]["a"]["tokens_error"] in (None, 0)

    def test_stored_and_read(self) -> None:
        part = Part(InputFile(0, "a", 1, 0.0), [b"ab", b"c"], np.zeros(2, np.uint64), 5.0, True)
        assert part.size == 5


@pytest.fixture(scope="module")
def made(inputs: Path) -> plan.Forecast:
    config = CONFIGS["epochs"].replace("{folder}", str(inputs))
    return planned(config, runner=plan.DATAFLOW)


class TestNeeds:
    def test_this_machine(self, made: plan.Forecast) -> None:
        needs = made.resources
        assert needs is not None
        assert needs.output_bytes == sum(output_bytes(output, [64]) for output in made.estimate.outputs)
        assert needs.disk_bytes > needs.output_bytes and needs.disk_bytes > 4 * sum(made.estimate.encoded)
        assert needs.memory_bytes > 500e6 and needs.seconds > cost.START_SECONDS
        assert needs.tokens_per_second > 0 and needs.read_bytes_per_second > 0

    def test_indexes_of_views(self, made: plan.Forecast) -> None:
        (output,) = made.estimate.outputs
        plain = output_bytes(output, [])
        assert output_bytes(output, [64]) == plain + 24 * 4 * output.sequences
        assert output_bytes(output, [256, 512]) == plain

    def test_dataflow(self, made: plan.Forecast) -> None:
        own = made.dataflow
        assert own is not None
        prices = own.prices
        machines = own.vcpu_hours * prices.vcpu_hour + own.memory_gib_hours * prices.memory_gib_hour
        rest = own.disk_gib_hours * prices.disk_gib_hour + own.shuffle_gib * prices.shuffle_gib
        assert own.dollars == pytest.approx(machines + rest)
        assert own.dollars_flexrs == pytest.approx(0.6 * machines + rest)
        assert own.vcpu_hours == pytest.approx(own.hours * own.workers * cost.MACHINE_VCPUS)
        tokens = sum(made.estimate.encoded) + sum(output.tokens for output in made.estimate.outputs)
        assert own.shuffle_gib > 2 * 4 * tokens / 2**30

    def test_a_hundred_times_the_data(self, made: plan.Forecast) -> None:
        """Takes more of everything, about a hundred times the shuffle, and more workers where it pays."""
        small = made.estimate
        large = small._replace(
            sources=tuple(s._replace(complete=False, bytes=1e6 * s.bytes, tokens_error=0.1) for s in small.sources),
            outputs=tuple(
                o._replace(
                    tokens=o.tokens * 10**6,
                    shares=tuple(s._replace(copies=s.copies * 10**6, tokens=s.tokens * 10**6) for s in o.shares),
                )
                for o in small.outputs
            ),
            encoded=tuple(n * 10**6 for n in small.encoded),
        )
        before, after = dataflow_cost(small), dataflow_cost(large)
        assert after.shuffle_gib == pytest.approx(before.shuffle_gib * 1e6)
        assert after.workers > before.workers and after.vcpu_hours > 10 * before.vcpu_hours
        assert after.dollars > 10 * before.dollars
        few = dataflow_cost(large, workers=1)
        assert few.workers == 1 and few.hours > after.hours and few.vcpu_hours < after.vcpu_hours


class TestCommand:
    def invoke(self, *arguments: Any) -> Any:
        return CliRunner().invoke(cli, ["plan", *map(str, arguments)])

    @pytest.fixture
    def config(self, inputs: Path, tmp_path: Path) -> Path:
        path = tmp_path / "my.yaml"
        path.write_text(CONFIGS["stages"].replace("{folder}", str(inputs)) + f"output: {tmp_path}/out\n")
        return path

    def test_tables(self, config: Path) -> None:
        result = self.invoke(config)
        assert result.exit_code == 0 and result.stderr == "", result.stderr
        for part in ("notes", "short/train", "tokens/val", "1.5 epochs", "75.00%", "every record was read", "best_fit"):
            assert part in result.stdout
        assert result.stdout.splitlines()[-1] == f"next: beam-prep run {config}"
        assert "±" not in result.stdout and "Dataflow" not in result.stdout and "\x1b" not in result.stdout
        assert not (config.parent / "out").exists()

    def test_a_sample(self, config: Path) -> None:
        result = self.invoke(config, "--sample", "20kB")
        assert result.exit_code == 0 and "±" in result.stdout and "about" in result.stdout

    def test_json(self, config: Path) -> None:
        result = self.invoke(config, "--json", "--runner", "DataflowRunner", "--seed", 9)
        made = json.loads(result.stdout)
        assert result.exit_code == 0 and made["exact"] and made["dataflow"]["prices"]["region"] == "us-central1"
        assert list(made["outputs"]) == [
            f"{stage}/{side}" for stage in ("short", "rest", "tokens") for side in ("train", "val")
        ]

    def test_dataflow(self, config: Path) -> None:
        result = self.invoke(config, "--runner", "DataflowRunner", "--workers", 3)
        for part in ("vCPU hours", "3 workers", "FlexRS", "us-central1", "2023-09", "$0.056", "assumed"):
            assert part in result.stdout
        assert result.stdout.splitlines()[-1] == f"next: beam-prep run {config} --runner DataflowRunner"

    def test_a_wish_that_cannot_be_met(self, inputs: Path, tmp_path: Path) -> None:
        path = tmp_path / "my.yaml"
        path.write_text(config_of("total_tokens: 1e6\n", f"{NOTES}, weight: 1").replace("{folder}", str(inputs)))
        result = self.invoke(path)
        assert result.exit_code == 1 and "reachable" in result.stdout and "next:" not in result.stdout
        assert result.stderr.startswith("error: the run would fail:\noutput 'train'")
        assert "estimated" in self.invoke(path, "--sample", 5000).stderr
        made = json.loads(self.invoke(path, "--json").stdout)
        assert made["problems"] and made["resources"] is None

    def test_wrong_calls(self, config: Path, tmp_path: Path) -> None:
        for arguments in ((config, "--sample", "much"), (config, "--runner", "NoRunner"), (tmp_path / "none.yaml",)):
            result = self.invoke(*arguments)
            assert result.exit_code == 2 and result.stderr.startswith("error: ") and not result.stdout
