"""Increments: an output grows by what is new, the old stays as it was, and together it is what one run would make."""

import hashlib
import json
import os
import random
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from faulty_files import SCHEME
from hypothesis import given
from hypothesis import strategies as st
from results import sequences_by_forager
from small_job import contents
from test_chaos import Runs

from beam_prep import PackedDataset, balance, increments, publish, report, storage, tokenization
from beam_prep import carrier as carriers
from beam_prep.blocks import COPY_BITS
from beam_prep.carrier import Carrier
from beam_prep.cli import cli
from beam_prep.config import parse_config
from beam_prep.dedup import is_among
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.generations import label, label_of, split
from beam_prep.inputs import KnownFile, compare, inputs_path
from beam_prep.inspection import open_decoder
from beam_prep.job import Base
from beam_prep.launch import NothingNew, Prepared, RunOptions, main, prepare, run
from beam_prep.layout import NEXT
from beam_prep.manifest import read_manifest
from beam_prep.mix import order_keys
from beam_prep.seen import sidecars, slice_sidecar
from beam_prep.shards import shard_name
from beam_prep.sources import InputFile
from beam_prep.success import success_mark
from beam_prep.trace import trace_sequence
from beam_prep.verification import verify

DAYS = 10
KILLED = {  # day → of what a new file is there when the run of that day is killed
    1: ".work/claim.json",
    3: ".work/runs/*.run",
    4: ".work/seen/*",
    6: "train/tokenized-samples/part-g*.bin",
    8: NEXT,
}
BUCKET_TOKENS = 4_000
CONFIG = """
context_length: 64
max_rejects: 0.5
splits: {{train: 0.8, val: 0.2}}
views: [16]
datasets:
  - {{name: plain, text_field: text, input: "{folder}/plain-{days}.jsonl", epochs: 1.5}}
  - {{name: half, text_field: text, input: "{folder}/half-{days}.jsonl", epochs: 0.5}}
"""
# The processes that are killed read this when they start.
SMALL = f"""
from beam_prep import balance, report, tokenization

balance.MIN_BUCKET_TOKENS = balance.MAX_BUCKET_TOKENS = {BUCKET_TOKENS}
tokenization.RUN_BYTES = 8_000
report.try_report = lambda *_: None
"""


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Shards and runs so small that a little data gives several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "MIN_BUCKET_TOKENS", BUCKET_TOKENS)
        patch.setattr(balance, "MAX_BUCKET_TOKENS", BUCKET_TOKENS)
        patch.setattr(tokenization, "RUN_BYTES", 8_000)
        patch.setattr(report, "try_report", lambda *_: None)  # a second each; `test_the_report` has it made
        yield


class Landing:
    """A folder in which files arrive day by day: new texts, texts of days before, and a line that is no record."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._numbers = random.Random(7)
        self._texts: dict[str, list[str]] = defaultdict(list)

    def arrive(self, day: int, records: int) -> None:
        """Files of one day; of their texts three in ten were there before, in the same source."""
        numbers = self._numbers
        for source in ("plain", "half"):
            known = self._texts[source]
            lines = []
            for _ in range(records):
                if known and numbers.random() < 0.3:
                    text = numbers.choice(known)
                else:
                    size = numbers.randint(2, 60)
                    text = f"{source} " + " ".join(str(numbers.randint(0, 99_999)) for _ in range(size))
                    known.append(text)
                lines.append(json.dumps({"text": text}))
            self.put(f"{source}-{day}", *lines, "{not JSON")

    def put(self, name: str, *lines: str) -> Path:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def config(self, days: str = "[0-9]", more: str = "") -> str:
        """Its configuration. `days`: pattern of those that are looked at."""
        return CONFIG.format(folder=self.folder, days=days) + more


def job(config: str, out: Path | str, increment: bool = True, **options: Any) -> Prepared:
    return prepare(parse_config(config, overrides={"output": str(out)}), RunOptions(increment=increment, **options))


def grow(config: str, out: Path | str, **options: Any) -> None:
    run(job(config, out, **options))


def cut_short(made: Prepared) -> Prepared:
    """As if its process had ended before it did anything."""
    assert made.claim.lock is not None
    made.claim.lock.release()
    return made


def documents(out: Path, name: str) -> Counter:
    """(id, number of the copy, its tokens) of everything in an output, put together from the files alone."""
    entry = json.loads((out / "manifest.json").read_text())["outputs"][name]
    parts: dict[tuple[str, int], list[tuple[int, bytes]]] = defaultdict(list)
    for shard in entry["shards"]:
        tokens = np.fromfile(out / name / shard["path"], "<u4")
        for row in pq.read_table(out / name / shard["documents"]).to_pylist():
            begin = row["sequence"] * entry["context_length"] + row["start"]
            part = tokens[begin : begin + row["length"]].tobytes()
            parts[row["id"], row["copy"] & (2**COPY_BITS - 1)].append((row["position"], part))
    return Counter((*key, b"".join(part for _, part in sorted(found))) for key, found in parts.items())


def data_files(out: Path) -> dict[str, str]:
    """Path → hash of what no increment may ever touch."""
    folders = ("tokenized-samples", "documents", "rejected", "inputs")
    files = [p for p in out.rglob("*") if p.is_file() and p.parent.name in folders and ".work" not in p.parts]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_continues(before: dict[str, str], out: Path) -> dict[str, str]:
    after = data_files(out)
    assert before.items() <= after.items()
    return after


class Grown(NamedTuple):
    """An output that has grown for ten days, and copies of it as it was."""

    landing: Landing
    out: Path
    first: Path
    """After the first day, with index files for other trainers."""
    second: Path
    kills: int


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Ten generations, one after the other, killed in between; checked at every step."""
    folder = tmp_path_factory.mktemp("grown")
    landing, out = Landing(folder / "in"), folder / "out"
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SMALL)
    (folder / "c.yaml").write_text(landing.config())
    command = ("run", "c.yaml", "--output", "out", "--increment", "--quiet")
    runs = Runs(folder)
    before: dict[str, str] = {}
    old = np.empty((0, 64), np.uint32)
    kills = 0
    for day in range(DAYS):
        landing.arrive(day, 12 if day else 40)
        if day in KILLED:
            status = runs.run(*command, kill_when=something_new(out, KILLED[day]))
            assert status in (0, -signal.SIGKILL), runs.log
            kills += status != 0
            assert_continues(before, out)
            findings = verify(str(out))
            assert not findings or findings[0].place == NEXT, findings
            assert np.array_equal(PackedDataset(out / "train")[: len(old)], old)
            assert np.array_equal(sequences_by_forager(out / "train")[: len(old)], old)
        with suppress(NothingNew):  # but for the rest of its publication
            grow(landing.config(), out)
        assert verify(str(out)) == []
        assert len(read_manifest(str(out)).generations) == day + 1
        assert not (out / ".work").exists()
        before = assert_continues(before, out)
        new = PackedDataset(out / "train")[:]
        assert np.array_equal(new[: len(old)], old) and len(new) > len(old)
        old = new
        if day == 0:
            for trainer in ("megatron", "datatrove", "olmo"):
                assert CliRunner().invoke(cli, ["view", str(out), "--for", trainer]).exit_code == 0
        if day < 2:
            shutil.copytree(out, folder / f"after-{day}", symlinks=True)
    runs.end()
    return Grown(landing, out, folder / "after-0", folder / "after-1", kills)


def something_new(out: Path, pattern: str) -> Callable[[], bool]:
    """Whether there is a file that was not there before."""
    before = set(out.glob(pattern))

    def check() -> bool:
        try:
            return not before.issuperset(out.glob(pattern))
        except OSError:  # a folder that goes while it is listed
            return False

    return check


class TestTenGenerations:
    """What has become of them."""

    def test_some_were_killed(self, grown: Grown) -> None:
        assert grown.kills >= len(KILLED) - 1  # the others were faster than the look at their files

    def test_the_union_is_one_run_over_everything(self, grown: Grown, tmp_path: Path) -> None:
        whole = tmp_path / "whole"
        grow(grown.landing.config(), whole, increment=False)
        for name in ("train", "val"):
            assert documents(grown.out, name) == documents(whole, name)
        by_days, at_once = (read_manifest(str(o)).ledger for o in (grown.out, whole))
        for name, entry in at_once.items():
            for key in ("records", "rejected", "documents", "tokens"):
                assert getattr(by_days[name], key) == getattr(entry, key)
        assert by_days["plain"].duplicates == at_once["plain"].duplicates

    def test_readers_see_all_generations(self, grown: Grown) -> None:
        out, manifest = grown.out, read_manifest(str(grown.out))
        for name, entry in manifest.outputs.items():
            rows = PackedDataset(out / name, extras=("document_ids",))
            assert len(rows) == entry.sequences
            assert np.array_equal(sequences_by_forager(out / name), rows.read(range(len(rows))))
            for number in (0, entry.sequences - 1):
                traced = trace_sequence(str(out), manifest, name, number, open_decoder(manifest.tokenizer))
                assert "".join(span.span.text for span in traced.spans)
                assert rows[number]["document_ids"].max() == len(traced.spans) - 1
        last = trace_sequence(str(out), manifest, "train", -1)
        assert last.spans[0].span.file.endswith(f"-{DAYS - 1}.jsonl")
        result = CliRunner().invoke(cli, ["inspect", str(out)])
        assert "10 generations" in result.output, result.output

    def test_an_earlier_state_can_be_read(self, grown: Grown) -> None:
        whole = PackedDataset(grown.out / "train")
        counts = []
        for generations in range(1, DAYS + 1):
            part = PackedDataset(grown.out / "train", generations=generations)
            counts.append(len(part))
            assert np.array_equal(part[:], whole[: len(part)])
        assert counts == sorted(counts) and counts[-1] == len(whole)
        for wrong in (0, 11):
            with pytest.raises(ConfigError, match="from 1 to 10"):
                PackedDataset(grown.out / "train", generations=wrong)

    def test_training_goes_on_over_what_it_began_with(self, grown: Grown) -> None:
        began = PackedDataset(grown.second / "train").sampler(seed=1)
        taken = [next(iterator) for iterator in [iter(began)] for _ in range(5)]
        began.advance(5)
        pinned = PackedDataset(grown.out / "train", generations=2).sampler(seed=1)
        pinned.load_state_dict(began.state_dict())
        fresh = PackedDataset(grown.second / "train").sampler(seed=1)
        assert [*taken, *pinned] == list(fresh)

    def test_at_most_one_padded_sequence_a_generation(self, grown: Grown) -> None:
        generations = read_manifest(str(grown.out)).generations
        assert all(0 <= entry.padding < 64 for part in generations for entry in part.outputs.values())

    def test_names_sort_in_the_order_of_the_manifest(self, grown: Grown) -> None:
        for entry in read_manifest(str(grown.out)).outputs.values():
            paths = [shard.path for shard in entry.shards]
            assert paths == sorted(paths)

    def test_views_and_other_trainers_indexes_grew_too(self, grown: Grown) -> None:
        shards = len(list(grown.out.glob("*/tokenized-samples/*.bin")))
        for pattern in ("*/tokenized-samples/*.idx", "*/datatrove/*.ds", "*/olmo/*.npy"):
            assert len(list(grown.out.glob(pattern))) == shards
        assert len(list(grown.out.glob("*/index-16/*"))) == 4

    def test_taken_apart_it_is_what_it_was(self, grown: Grown) -> None:
        parts = split(read_manifest(str(grown.out)))
        first = read_manifest(str(grown.first))
        assert (parts[0].outputs, parts[0].ledger) == (first.outputs, first.ledger)
        assert [part.fingerprint for part in parts[:2]] == [
            first.fingerprint,
            read_manifest(str(grown.second)).fingerprint,
        ]

    def test_the_report(self, grown: Grown, tmp_path: Path) -> None:
        out = shutil.copytree(grown.out, tmp_path / "out", symlinks=True)
        result = CliRunner().invoke(cli, ["report", str(out)])
        assert result.exit_code == 0, result.output
        assert "<dt>generations</dt><dd>10</dd>" in (out / "report.html").read_text()
        assert verify(str(out), quick=True) == []

    @pytest.mark.parametrize("seed", range(8))
    def test_any_edited_figure_is_found(self, grown: Grown, tmp_path: Path, seed: int) -> None:
        """Even where `_SUCCESS` is made to agree."""
        for path in ("_SUCCESS", "manifest.json"):
            shutil.copy(grown.out / path, tmp_path / path)
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        places = [place for place in numbers_in(manifest) if place[0] in ("outputs", "ledger", "generations")]
        place = random.Random(seed).choice(places)
        holder = manifest
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] += 1
        for path in grown.out.iterdir():
            if not (tmp_path / path.name).exists():
                (tmp_path / path.name).symlink_to(path)
        data = publish.manifest_bytes(manifest)
        (tmp_path / "manifest.json").write_bytes(data)
        (tmp_path / "_SUCCESS").write_bytes(success_mark(manifest["fingerprint"], data))
        assert any(f.problem != "" for f in verify(str(tmp_path), quick=place[-1] != "spans")), place


def numbers_in(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """The places of all figures in a manifest that verify holds against others."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers_in(part, (*place, key))
    elif isinstance(value, int) and place[-1] not in ("blank_lines", "skipped_turns"):
        yield place


@pytest.fixture
def one(grown: Grown, tmp_path: Path) -> Path:
    """A copy of the first generation."""
    return Path(shutil.copytree(grown.first, tmp_path / "out", symlinks=True))


@pytest.fixture
def two(grown: Grown, tmp_path: Path) -> Path:
    """A copy of the first two."""
    return Path(shutil.copytree(grown.second, tmp_path / "out", symlinks=True))


@pytest.fixture
def more(grown: Grown) -> Iterator[Callable[..., Path]]:
    """Puts more files there, which go with the test."""
    made = []

    def put(name: str, *lines: str) -> Path:
        made.append(grown.landing.put(name, *lines))
        return made[-1]

    yield put
    for path in made:
        path.unlink(missing_ok=True)


class TestFirstRun:
    """With nothing there, --increment is an ordinary run."""

    def test_the_same_job(self, grown: Grown, tmp_path: Path) -> None:
        ordinary = cut_short(job(grown.landing.config(), tmp_path / "out", increment=False))
        assert cut_short(job(grown.landing.config(), tmp_path / "out")).job == ordinary.job

    def test_shares_are_refused_before_anything_is_done(self, grown: Grown, tmp_path: Path) -> None:
        weighted = grown.landing.config().replace("epochs: 0.5", "weight: 0.5")
        for config in (weighted, f"{weighted}total_tokens: 1000\n"):
            with pytest.raises(ConfigError, match="parts of a whole"):
                job(config, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestSecondRun:
    """One more generation."""

    def test_nothing_new(self, grown: Grown, two: Path) -> None:
        before = contents(two)
        config = two.parent / "c.yaml"
        config.write_text(grown.landing.config("[01]"))
        for arguments in ((), ("--quiet",)):
            result = CliRunner().invoke(cli, ["run", str(config), "--output", str(two), "--increment", *arguments])
            assert result.exit_code == 0 and ("nothing new" in result.output) == (not arguments)
        assert main(["--config", str(config), "--output", str(two), "--increment"]) == 0
        assert contents(two) == before

    def test_files_of_nothing_but_known_documents(self, grown: Grown, two: Path, more: Callable[..., Path]) -> None:
        lines = (grown.landing.folder / "plain-0.jsonl").read_text().splitlines()
        more("plain-a", *lines)
        more("half-a", *lines)  # another source's
        grow(grown.landing.config("[01a]"), two)
        added = read_manifest(str(two)).generations[2]
        assert [entry.sequences for entry in added.outputs.values()] == [0, 0]
        for entry in added.ledger.values():
            assert (entry.records, entry.duplicates, entry.documents) == (41, 40, 0)
        assert verify(str(two)) == []
        assert np.array_equal(PackedDataset(two / "train")[:], PackedDataset(grown.second / "train")[:])

    def test_another_configuration(self, tmp_path: Path) -> None:
        """Repeats kept, so that a text may come in several generations; stages; rests dropped."""
        stages = "\n  - {name: short, context_length: 32, datasets: [plain]}\n  - {name: long, packing: best_fit}\n"
        landing, out = Landing(tmp_path / "in"), tmp_path / "out"
        config = landing.config(more=f"dedup: none\ntail: drop\nstages:{stages}")
        for day in range(2):
            landing.arrive(day, 40)
            grow(config, out)
            assert verify(str(out)) == []
        ledger = read_manifest(str(out)).ledger
        assert all(entry.records == 82 and entry.duplicates == 0 for entry in ledger.values())


class TestRefusals:
    """What does not go together with what is there."""

    def test_what_was_made_in_another_way(self, grown: Grown, one: Path) -> None:
        before = contents(one)
        config = grown.landing.config()
        for wrong, what in (
            (f"seed: 4\n{config}", "`seed`"),
            (f"tail: drop\n{config}", "`tail`"),
            (config.replace("epochs: 1.5", "epochs: 2"), "`epochs` of dataset 'plain'"),
            (config.replace("name: half", "name: other"), "the names or the order of the datasets"),
            (config.replace("context_length: 64", "context_length: 32"), "`context_length`"),
        ):
            with pytest.raises(ConfigError, match=what):
                job(wrong, one)
        assert contents(one) == before

    def test_an_ordinary_run_leaves_it_alone(self, grown: Grown, two: Path) -> None:
        with pytest.raises(BeamPrepError, match="--overwrite"):
            job(grown.landing.config("[01]"), two, increment=False)
        assert verify(str(two), quick=True) == []
        cut_short(job(grown.landing.config("[01]"), two, increment=False, overwrite=True))
        assert set(contents(two)) == {".work/claim.json", ".work/lock"}

    def test_options_that_contradict(self, grown: Grown, one: Path) -> None:
        with pytest.raises(ConfigError, match="give one of them"):
            job(grown.landing.config(), one, overwrite=True)
        config = one.parent / "c.yaml"
        config.write_text(grown.landing.config())
        result = CliRunner().invoke(cli, ["run", str(config), "--accept-changed-inputs"])
        assert result.exit_code == 2 and "--increment" in result.output

    def test_without_its_mark_nothing_is_thrown_away(self, grown: Grown, two: Path) -> None:
        (two / "_SUCCESS").unlink()
        before = contents(two)
        with pytest.raises(BeamPrepError, match="_SUCCESS is missing"):
            job(grown.landing.config(), two)
        assert contents(two) == before

    def test_an_output_of_an_earlier_version(self, grown: Grown, one: Path) -> None:
        manifest = json.loads((one / "manifest.json").read_text())
        del manifest["generations"]
        (one / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BeamPrepError, match="kept no list of its inputs"):
            job(grown.landing.config(), one)

    def test_a_damaged_list_of_inputs(self, grown: Grown, one: Path) -> None:
        path = one / "inputs" / "00000.jsonl.gz"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(BeamPrepError, match="list of inputs cannot be read"):
            job(grown.landing.config(), one)
        assert [finding.place for finding in verify(str(one))] == ["inputs/00000.jsonl.gz"]


class TestChangedInputs:
    """Files that the output holds, and that are not as they were."""

    def test_a_changed_file_and_one_that_is_gone(
        self, grown: Grown, two: Path, more: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = grown.landing.folder
        kept = {path: (path.read_bytes(), path.stat()) for path in (folder / "plain-0.jsonl", folder / "half-1.jsonl")}
        changed, gone = kept
        config = grown.landing.config("[01a]").replace("max_rejects: 0.5", "max_rejects: 0.9")
        config = config.replace("views: [16]", "views: [8]")  # which, as the inputs, may be others every time
        before = contents(two)
        try:
            changed.write_bytes(changed.read_bytes() + b'{"text": "one more line"}\n')
            gone.unlink()
            more("half-a", '{"text": "one more file"}')
            message = r"1 changed since they were read \(.*/plain-0.jsonl\); 1 gone, or found by no pattern \(.*/half-1"
            with pytest.raises(BeamPrepError, match=message):
                job(config, two)
            assert contents(two) == before
            grow(config, two, accept_changed=True)
            assert "1 changed since they were read" in capsys.readouterr().err
            with pytest.raises(BeamPrepError, match="^inputs that .* holds: 1 gone"):  # the changed one is known now
                job(config, two)
            with pytest.raises(NothingNew):
                job(config, two, accept_changed=True)
        finally:
            for path, (data, stat) in kept.items():
                path.write_bytes(data)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        added = read_manifest(str(two)).generations[2]
        assert added.inputs.files == 2
        assert (added.ledger["plain"].documents, added.ledger["plain"].duplicates) == (1, 40)
        assert verify(str(two)) == []
        assert {path.name for path in (two / "train").glob("index*")} == {"index", "index-8", "index-16"}

    @given(
        st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from("uvwxyz")), st.integers(0, 2)),
        st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from("uvwxyz")), st.integers(0, 2)),
    )
    def test_what_is_new(self, before: dict[tuple[str, str], int], now: dict[tuple[str, str], int]) -> None:
        files = [[InputFile(9, path, size, 0.0) for (s, path), size in sorted(now.items()) if s == n] for n in "ab"]
        found = compare({key: KnownFile(size, 0.0) for key, size in before.items()}, "ab", files)
        wanted = {key for key, size in now.items() if before.get(key) != size}
        assert {(name, file.path) for name, own in zip("ab", found.new, strict=True) for file in own} == wanted
        assert all([file.number for file in own] == list(range(len(own))) for own in found.new)
        assert sorted(found.changed) == sorted(key[1] for key in wanted & before.keys())
        assert sorted(found.gone) == sorted(key[1] for key in before.keys() - now.keys())


class TestTwoAtOnce:
    """Two schedulers."""

    def test_the_second_is_told_at_once(self, grown: Grown, one: Path) -> None:
        holding = job(grown.landing.config("[01]"), one)
        before = contents(one)
        for options in ({"increment": True}, {"increment": False, "overwrite": True}):
            with pytest.raises(BeamPrepError, match="another run is writing there"):
                job(grown.landing.config("[01]"), one, **options)
        assert contents(one) == before
        cut_short(holding)

    def test_on_an_object_store_the_first_to_end_wins(self, grown: Grown, one: Path, more: Callable[..., Path]) -> None:
        for path in [*one.glob("*/olmo"), *one.glob("*/datatrove")]:  # links, which an object store has none of
            shutil.rmtree(path)
        out = f"{SCHEME}{one}"
        slow = job(grown.landing.config("[01]"), out, carrier="engine")
        assert slow.claim.lock is None
        storage.write_bytes(f"{out}/train/tokenized-samples/part-g{slow.job.label}-00000-of-00009.bin", [b"of it"])
        assert verify(out) == []  # the old state is whole, and stays in use
        more("half-a", '{"text": "arrived meanwhile"}')
        grow(grown.landing.config("[01a]"), out, carrier="engine")
        assert verify(out) == []  # what the slow one had written is gone
        won = contents(one)
        with pytest.raises(BeamPrepError, match="give the command again"):
            run(slow)
        assert won.items() <= contents(one).items()
        assert "belongs to no shard" in verify(out, quick=True)[0].problem  # the next one deletes it
        with pytest.raises(NothingNew):
            job(grown.landing.config("[01a]"), out, carrier="engine")
        assert contents(one) == won

    def test_one_that_comes_to_its_end_when_another_one_has_just_gone(self, grown: Grown, two: Path) -> None:
        """It read the manifest before, and finds no other one's in its way any more."""
        before = (grown.first / "manifest.json").read_bytes()
        assert not publish._commit(str(two), before, b"{}")
        assert contents(two) == contents(grown.second)

    def test_one_that_was_killed_before_it_saw_that(self, grown: Grown, two: Path) -> None:
        third = json.loads((grown.second / "manifest.json").read_text())
        third["generations"][-1]["fingerprint"] = "0" * 64
        (two / NEXT).write_text(json.dumps(third))
        assert not publish.finish_publication(str(two))
        assert contents(two) == contents(grown.second)


class TestSeen:
    """The ids of what is there."""

    def test_the_same_by_files_and_through_the_engine(self, grown: Grown, tmp_path: Path) -> None:
        manifest = read_manifest(str(grown.out))
        paths = sidecars(str(grown.out), Base(manifest.fingerprint, DAYS))
        found: dict[str | None, list] = {}
        for work in (None, str(tmp_path)):
            slices = [s for path in paths for s in slice_sidecar(str(grown.out), path, 0, Carrier(work))]
            found[work] = [(n, s.run, s.source, s.first, carriers.load(s.entries)) for n, s in slices]
        assert found[None] == found[str(tmp_path)]
        ids = np.concatenate([np.frombuffer(entry[-1], np.uint64).reshape(-1, 2) for entry in found[None]])
        assert len(np.unique(ids, axis=0)) == sum(entry.documents for entry in manifest.ledger.values())
        for number, *_, entries in found[None]:
            keys = order_keys(np.frombuffer(entries, np.uint64).reshape(-1, 2), 0)
            assert set((keys >> np.uint64(57)).tolist()) == {number}

    def test_an_output_that_has_grown_meanwhile(self, grown: Grown) -> None:
        with pytest.raises(BeamPrepError, match="give the command again"):
            sidecars(str(grown.out), Base("0" * 64, DAYS))

    def test_a_damaged_sidecar(self, one: Path) -> None:
        path = next((one / "train" / "documents").iterdir())
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(BeamPrepError, match=f"{path.name}: cannot be read"):
            list(slice_sidecar(str(one), f"train/documents/{path.name}", 0, Carrier(None)))


_IDS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)))


@given(_IDS, _IDS)
def test_ids_that_are_there(ids: list[tuple[int, int]], known: list[tuple[int, int]]) -> None:
    """Halves that agree, repeated ones, none at all."""
    found = is_among(*(np.array(part, np.uint64).reshape(-1, 2) for part in (ids, known)))
    assert found.tolist() == [id_ in known for id_ in ids]


@given(st.integers(1, 99_999), st.binary(min_size=32, max_size=32))
def test_labels_are_found_in_names(number: int, fingerprint: bytes) -> None:
    own = label(number, fingerprint.hex())
    names = [
        f"S1/train/tokenized-samples/{shard_name(3, 9, own)}.bin",
        f"train/documents/{shard_name(3, 9, own)}.parquet",
        f"train/olmo/{shard_name(3, 9, own)}.csv.gz.0123abcd.tmp",
        f"rejected/a-00000-{own}.jsonl.gz",
        inputs_path(own),
    ]
    assert [label_of(name) for name in names] == [own] * len(names)
    for name in (f"train/tokenized-samples/{shard_name(3, 9)}.bin", "rejected/a-00000.jsonl.gz", inputs_path("")):
        assert label_of(name) is None


class Stopped(BaseException):
    """Stands for a process that ends at this place."""


def test_killed_at_every_step_of_the_publication(grown: Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was written last: every reader sees the old sequences or all, and the next run does the rest."""
    first, second = grown.first, grown.second
    old, new = (PackedDataset(out / "train")[:] for out in (first, second))
    write, delete = storage.write_bytes, storage.delete
    wanted = contents(second)
    done = 0
    for steps in range(60):
        out = unpublished(first, second, tmp_path / str(steps))
        left = steps

        def counted(action: Any, *arguments: Any) -> None:
            nonlocal left
            if not left:
                raise Stopped
            left -= 1
            action(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_bytes", lambda *arguments: counted(write, *arguments))
            patch.setattr(storage, "delete", lambda *arguments: counted(delete, *arguments))
            try:
                publish.finish_publication(str(out))
                done += 1
            except Stopped:
                pass
        for rows in (PackedDataset(out / "train")[:], sequences_by_forager(out / "train")):
            assert any(np.array_equal(rows, state) for state in (old, new))
        findings = verify(str(out), quick=True)
        assert not findings or findings[0].place == NEXT
        increments.open_output(str(out), None, lambda _: None)
        shutil.rmtree(out / ".work", ignore_errors=True)
        assert contents(out) == wanted
        shutil.rmtree(out)
        if done:
            break
    assert done and steps >= 12


def unpublished(first: Path, second: Path, out: Path) -> Path:
    """The second generation's files, and its manifest as the next one, in an output of the first one."""
    shutil.copytree(first, out, symlinks=True)
    for path in second.rglob("*"):
        name = str(path.relative_to(second))
        if label_of(name) and path.suffix in (".bin", ".parquet", ".gz") and path.parent.name != "olmo":
            shutil.copy(path, out / name)
    shutil.copy(second / "manifest.json", out / NEXT)
    return out
