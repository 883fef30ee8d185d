"""The reader: every row the right one, in every process, and boundaries as the run stored them."""

import copy
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_output import FINGERPRINT, FakeOutput, write_fake
from hypothesis import given
from hypothesis import strategies as st
from results import manifest_of, sequences_by_forager

import beam_prep
from beam_prep import PackedDataset, dataset, finalize
from beam_prep.dataset import EXTRAS, collate
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.inspection import open_decoder, read_sequence
from beam_prep.manifest import read_manifest

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), *sys.path])}


def run_python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeOutput:
    """Shards of several sizes, two of them empty."""
    return write_fake(tmp_path_factory.mktemp("fake") / "out", [5, 0, 1, 9, 0, 12], 24)


class TestAgainstTheRun:
    """A real output, beside data-forager and `inspect`."""

    def test_every_sequence_as_data_forager_reads_it(self, finished) -> None:
        train = PackedDataset(finished.output / "train")
        stored = sequences_by_forager(finished.output / "train")
        assert len(train) == len(stored) > 20
        assert np.array_equal(train[:], stored)
        assert np.array_equal(np.stack([train[n] for n in range(len(train))]), stored)
        order = np.random.default_rng(0).permutation(len(stored))
        assert np.array_equal(np.stack(train.__getitems__(order)), stored[order])
        assert np.array_equal(np.stack(list(train)), stored)

    def test_what_the_manifest_says(self, finished) -> None:
        manifest = manifest_of(finished.output)
        train = PackedDataset(finished.output, "train")
        assert train.context_length == train.stored_context_length == 64
        assert train.dtype == np.dtype("<u4")
        assert train.fingerprint == manifest["fingerprint"]
        assert train.tokenizer._asdict() == {key: manifest["tokenizer"][key] for key in train.tokenizer._fields}
        assert f"{len(train):,} sequences of 64 tokens, uint32, qwen3" in repr(train)
        assert (dataset.MANIFEST, dataset.SUCCESS) == (finalize.MANIFEST, finalize.SUCCESS)

    def test_documents_as_inspect_shows_them(self, finished) -> None:
        """Boundaries, positions and sources of every sequence; and only true ends hold a separator."""
        manifest = read_manifest(str(finished.output))
        decoder = open_decoder(manifest.tokenizer)
        parts = PackedDataset(finished.output / "train", extras=EXTRAS)
        whole = PackedDataset(finished.output / "train", extras=("position_ids",), positions="document")
        continued = padded = 0
        for number in range(len(parts)):
            sample, shown = parts[number], read_sequence(str(finished.output), manifest, "train", number, decoder)
            assert sample["sources"] == [span.source for span in shown.spans]
            documents, positions = np.full(64, -1), np.arange(64)
            in_document = positions.copy()
            for n, span in enumerate(shown.spans):
                own = slice(span.start, span.start + span.length)
                documents[own], positions[own] = n, np.arange(span.length)
                in_document[own] = np.arange(span.length) + span.position
                continued += span.position > 0
            begin = shown.tokens - shown.padding
            positions[begin:] = in_document[begin:] = np.arange(shown.padding)
            padded += shown.padding
            assert sample["document_ids"].tolist() == documents.tolist()
            assert sample["position_ids"].tolist() == positions.tolist()
            assert whole[number]["position_ids"].tolist() == in_document.tolist()
            assert sample["cu_seqlens"].tolist() == [*np.flatnonzero(positions == 0).tolist(), 64]
        assert continued and padded

    def test_views_of_the_same_tokens(self, finished) -> None:
        stored = sequences_by_forager(finished.output / "train")
        for length in (1, 16, 32, 64):
            view = PackedDataset(finished.output / "train", context_length=length)
            assert (len(view), view.context_length) == (len(stored) * 64 // length, length)
            assert np.array_equal(view[:], stored.reshape(-1, length))
            number = len(view) // 2 + 1
            assert np.array_equal(view[number], stored.reshape(-1, length)[number])


class TestIndexing:
    """As a list."""

    @given(data=st.data())
    def test_integers_and_slices(self, fake: FakeOutput, data: st.DataObject) -> None:
        length = data.draw(st.sampled_from([24, 12, 8, 3]))
        reader = PackedDataset(fake.folder, context_length=length)
        rows = fake.tokens.reshape(-1, length)
        assert len(reader) == len(rows)
        bound = st.none() | st.integers(-len(rows) - 3, len(rows) + 3)
        chosen = slice(data.draw(bound), data.draw(bound), data.draw(st.none() | st.integers(-5, 5).filter(bool)))
        got = reader[chosen]
        assert got.shape == rows[chosen].shape and got.dtype == np.uint32
        assert np.array_equal(got, rows[chosen])
        index = data.draw(st.integers(-len(rows), len(rows) - 1))
        kind = data.draw(st.sampled_from([int, np.int64, np.int32, np.array]))
        assert np.array_equal(reader[kind(index)], rows[index])
        several = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=12))
        batch = reader.__getitems__(several)
        assert isinstance(batch, list) and len(batch) == len(several)
        assert np.array_equal(reader.read(several), rows[several].reshape(-1, length))
        for index, row in zip(several, batch, strict=True):
            assert np.array_equal(row, rows[index])

    def test_out_of_range(self, fake: FakeOutput) -> None:
        reader = PackedDataset(fake.folder)
        for index in (27, -28, 10**30, np.int64(27)):
            with pytest.raises(IndexError, match=rf"sequence {index} is out of range: there are 27"):
                reader[index]
            with pytest.raises(IndexError):
                reader.__getitems__([0, index])
        for index in (1.0, "1", None, [1]):
            with pytest.raises(TypeError):
                reader[index]

    def test_copies(self, fake: FakeOutput) -> None:
        """What a training loop does to a sample, no other one sees."""
        reader = PackedDataset(fake.folder)
        for rows in (reader[3], reader[2:5], reader.__getitems__([3])[0]):
            rows[:] = 7
        assert np.array_equal(reader[:], fake.tokens)

    @pytest.mark.parametrize("length", [24, 8])
    def test_extras(self, fake: FakeOutput, length: int) -> None:
        """Against a loop over positions, gaps and views included."""
        reader = PackedDataset(fake.folder, context_length=length, extras=EXTRAS)
        whole = PackedDataset(fake.folder, context_length=length, extras="position_ids", positions="document")
        samples = reader[:]
        assert len(samples) == len(reader)
        for number, sample in enumerate(samples):
            stored, part = divmod(number, 24 // length)
            documents, positions, names, in_document, bounds = [], [], [], [], []
            previous = None
            for at in range(part * length, (part + 1) * length):
                own = [p for p in fake.parts[stored] if p.start <= at < p.start + p.length]
                now = own[0] if own else None
                if previous is None or now is not previous[0]:
                    bounds.append(at - part * length)
                    names += [own[0].source] if own else []
                    previous = (now,)
                documents.append(len(names) - 1 if own else -1)
                positions.append(at - part * length - bounds[-1])
                in_document.append(own[0].position + at - own[0].start if own else positions[-1])
            assert sample["input_ids"].tolist() == fake.tokens.reshape(-1, length)[number].tolist()
            assert sample["document_ids"].tolist() == documents
            assert sample["position_ids"].tolist() == positions
            assert sample["cu_seqlens"].tolist() == [*bounds, length]
            assert sample["sources"] == names
            assert whole[number]["position_ids"].tolist() == in_document
            assert {sample[key].dtype for key in EXTRAS[:3]} == {np.dtype(np.int32)}
        one = reader.__getitems__([5, -1])[1]
        assert list(one) == ["input_ids", *EXTRAS]
        assert all(np.array_equal(one[key], samples[-1][key]) for key in one)

    def test_dicts_without_extras(self, fake: FakeOutput) -> None:
        """They need no sidecar."""
        reader = PackedDataset(fake.folder, as_dict=True)
        assert list(reader[4]) == ["input_ids"]
        assert np.array_equal(reader[-3:][0]["input_ids"], fake.tokens[-3])

    def test_collate(self, fake: FakeOutput) -> None:
        reader = PackedDataset(fake.folder, extras=EXTRAS)
        samples = [reader[n] for n in (3, 20, 7)]
        batch = collate(samples)
        assert np.array_equal(batch["input_ids"], fake.tokens[[3, 20, 7]])
        assert batch["position_ids"].shape == batch["document_ids"].shape == (3, 24)
        assert batch["sources"] == [s["sources"] for s in samples]
        bounds = [0, *(24 * n + b for n, s in enumerate(samples) for b in s["cu_seqlens"][1:].tolist())]
        assert batch["cu_seqlens"].tolist() == bounds and batch["cu_seqlens"].dtype == np.int32
        assert batch["max_seqlen"] == max(np.diff(bounds))
        flat = batch["position_ids"].reshape(-1)
        assert [*np.flatnonzero(flat == 0).tolist(), 72] == bounds

    def test_sampler(self, fake: FakeOutput) -> None:
        reader = PackedDataset(fake.folder, context_length=12)
        assert sorted(reader.sampler(seed=1)) == list(range(54))
        state = reader.sampler(seed=1).state_dict()
        with pytest.raises(ConfigError, match="another order"):
            PackedDataset(fake.folder).sampler(seed=1).load_state_dict(state)
        halves = [list(reader.sampler(seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
        assert sorted(sum(halves, [])) == list(range(54))


class TestFinding:
    """Which output a path names."""

    def test_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "out"
        only = write_fake(out, [3], 8, "S1/train")
        for path, output in ((out, None), (out / "S1/train", None), (f"{out}/S1/train/", None), (out, "S1/train")):
            assert np.array_equal(PackedDataset(path, output)[:], only.tokens)
        val = write_fake(out, [2], 8, "val")
        assert np.array_equal(PackedDataset(out / "val")[:], val.tokens)
        with pytest.raises(ConfigError, match=r"say which output; there is S1/train, val"):
            PackedDataset(out)
        for path, output in ((out, "train"), (out / "S1", None), (out / "val", "train")):
            with pytest.raises(ConfigError, match=r"is not there; there is S1/train, val|holds no manifest\.json"):
                PackedDataset(path, output)
        with pytest.raises(ConfigError, match="no such folder"):
            PackedDataset(tmp_path / "none")
        with pytest.raises(ConfigError, match=r"holds no manifest\.json, nor does a folder above it"):
            PackedDataset(tmp_path)
        monkeypatch.chdir(out / "S1")
        here = PackedDataset("train")
        monkeypatch.chdir(tmp_path)
        assert np.array_equal(here[:], only.tokens)
        moved = shutil.copytree(out, tmp_path / "moved")
        shutil.rmtree(out)
        assert np.array_equal(PackedDataset(moved / "val")[:], val.tokens)

    def test_unfinished(self, tmp_path: Path) -> None:
        fake = write_fake(tmp_path / "out", [3], 8)
        for content in (None, "another run"):
            (tmp_path / "out/_SUCCESS").unlink(missing_ok=True)
            if content:
                (tmp_path / "out/_SUCCESS").write_text(content)
            with pytest.raises(BeamPrepError, match="is not finished"):
                PackedDataset(fake.folder)
            assert np.array_equal(PackedDataset(fake.folder, allow_unfinished=True)[:], fake.tokens)

    def test_arguments(self, fake: FakeOutput) -> None:
        for arguments, message in (
            ({"context_length": 7}, "7 does not divide the stored 24"),
            ({"context_length": 48}, "48 does not divide"),
            ({"context_length": 0}, "0 does not divide"),
            ({"context_length": -24}, "-24 does not divide"),
            ({"extras": ["labels"]}, "'labels' is not one of document_ids"),
            ({"positions": "doc"}, "neither 'part' nor 'document'"),
            ({"open_files": 0}, "open_files"),
        ):
            with pytest.raises(ConfigError, match=message):
                PackedDataset(fake.folder, **arguments)

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.pop("outputs"),
            lambda m: m.update(dtype="uint8"),
            lambda m: m.pop("fingerprint"),
            lambda m: m["tokenizer"].pop("name"),
            lambda m: m["outputs"]["train"]["shards"][0].update(bytes=7),
            lambda m: m["outputs"]["train"]["shards"][0].update(sequences="5"),
            lambda m: m["outputs"]["train"]["shards"][0].pop("documents"),
            lambda m: m["outputs"].update(train=[]),
        ],
    )
    def test_a_damaged_manifest(self, tmp_path: Path, change) -> None:
        write_fake(tmp_path, [3], 8)
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        change(manifest)
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BeamPrepError, match=r"manifest\.json: is damaged"):
            PackedDataset(tmp_path / "train")

    def test_no_json(self, tmp_path: Path) -> None:
        for content in (b"", b"[]", b"{", b"\xff", b'"outputs"'):
            (tmp_path / "manifest.json").write_bytes(content)
            with pytest.raises(BeamPrepError, match="is damaged"):
                PackedDataset(tmp_path)


class TestDamage:
    """Files that are not as the manifest says end in an error, never in other rows."""

    def test_shards(self, tmp_path: Path) -> None:
        fake = write_fake(tmp_path / "out", [4, 4], 8)
        shard = fake.folder / "tokenized-samples/part-00001-of-00002.bin"
        reader = PackedDataset(fake.folder)
        assert np.array_equal(reader[7], fake.tokens[7])
        shard.write_bytes(shard.read_bytes()[:-4])  # below an open file
        with pytest.raises(BeamPrepError, match=r"part-00001.*ends before byte 128.*beam-prep verify"):
            reader[7]
        with pytest.raises(BeamPrepError, match="ends before"):
            reader[2:]
        assert np.array_equal(reader[6], fake.tokens[6])
        with pytest.raises(BeamPrepError, match=r"part-00001.*has 124 bytes, the manifest says 128"):
            PackedDataset(fake.folder)[4]
        shard.unlink()
        with pytest.raises(BeamPrepError, match=r"part-00001.*cannot be opened"):
            PackedDataset(fake.folder)[4]
        assert np.array_equal(PackedDataset(fake.folder)[3], fake.tokens[3])

    def test_sidecars(self, tmp_path: Path) -> None:
        fake = write_fake(tmp_path / "out", [4], 8)
        sidecar = fake.folder / "documents/part-00000-of-00001.parquet"
        content = sidecar.read_bytes()
        for damaged in (content[:-20], b"", None, content[:4] + bytes(len(content) - 12) + content[-8:]):
            sidecar.unlink()
            if damaged is not None:
                sidecar.write_bytes(damaged)
            reader = PackedDataset(fake.folder, extras="cu_seqlens")
            with pytest.raises(BeamPrepError, match=r"\.parquet: cannot be read.*beam-prep verify"):
                reader[0]
            assert np.array_equal(reader.read([0])[0], fake.tokens[0])
            sidecar.touch()

    def test_spans_that_cannot_be(self, tmp_path: Path) -> None:
        fake = write_fake(tmp_path / "out", [2], 8)
        path = fake.folder / "documents/part-00000-of-00001.parquet"
        row = {"sequence": 0, "start": 0, "length": 5, "source": "web", "position": 0}
        for change in ({"start": 4}, {"start": 5, "length": 4}):
            pq.write_table(pa.Table.from_pylist([row, {**row, **change}]), path)
            with pytest.raises(BeamPrepError, match="spans of sequence 0 overlap or leave it"):
                PackedDataset(fake.folder, extras="document_ids")[0]
        pq.write_table(pa.Table.from_pylist([{**row, "sequence": 1}, row]), path)
        with pytest.raises(BeamPrepError, match="not in order"):
            PackedDataset(fake.folder, extras="document_ids")[0]


class TestProcesses:
    """Workers, threads, pickles, and how many files are open."""

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    @pytest.mark.parametrize("opened", ["unread", "read", "inside"])
    def test_no_wrong_row(self, tmp_path: Path, method: str, opened: str) -> None:
        """Two processes and their parent at once, on more shards than stay open."""
        fake = write_fake(tmp_path / "out", [40] * 8, 256, sidecars=False)
        script = str(TESTS / "read_in_workers.py")
        assert run_python(script, str(fake.folder), method, opened, "6000") == "0"

    def test_pickles_hold_no_file(self, fake: FakeOutput) -> None:
        reader = PackedDataset(fake.folder, extras=EXTRAS, context_length=12)
        fresh = pickle.dumps(reader)
        expected = reader[:]
        assert len(pickle.dumps(reader)) == len(fresh)
        for other in (pickle.loads(pickle.dumps(reader)), copy.copy(reader), copy.deepcopy(reader)):
            for got, wanted in zip(other[:], expected, strict=True):
                assert all(np.array_equal(got[key], wanted[key]) for key in wanted)
        assert pickle.loads(fresh)._reader.open_files == 0 < reader._reader.open_files

    def test_threads(self, tmp_path: Path) -> None:
        """Eight of them, on a reader that keeps two of nine shards open: descriptors come and go below their reads."""
        fake = write_fake(tmp_path / "out", [7] * 9, 64)
        reader = PackedDataset(fake.folder, open_files=2, extras="document_ids")
        reader._boundaries._limit = 500
        plain = PackedDataset(fake.folder, extras="document_ids")[:]
        wrong: list[object] = []

        def read(seed: int) -> None:
            numbers = random.Random(seed)
            try:
                for _ in range(600):
                    n = numbers.randrange(len(reader))
                    sample = reader[n]
                    if not all(np.array_equal(sample[key], plain[n][key]) for key in sample):
                        wrong.append(n)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert reader._reader.open_files <= 2

    def test_ten_thousand_shards(self, tmp_path: Path) -> None:
        """Within 256 open files, a quarter of the usual limit; and what is dropped is closed."""
        write_fake(tmp_path / "out", [1] * 10_000, 4, sidecars=False)
        code = """
import os, random, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from beam_prep.dataset import PackedDataset
before = len(os.listdir("/dev/fd"))
reader = PackedDataset(sys.argv[1])
order = list(range(len(reader)))
random.Random(0).shuffle(order)
for index in order:
    assert reader[index].tolist() == list(range(index * 4 + 2**31, index * 4 + 4 + 2**31)), index
reader.__getitems__(order[:3000])
assert reader._reader.open_files == 32
assert len(os.listdir("/dev/fd")) == before + 32
del reader
assert len(os.listdir("/dev/fd")) == before
print(len(order))
"""
        assert run_python("-c", code, str(tmp_path / "out/train")) == "10000"

    def test_needs_numpy_alone(self, fake: FakeOutput) -> None:
        code = """
import sys, beam_prep
assert "numpy" not in sys.modules
reader = beam_prep.PackedDataset(sys.argv[1])
reader[0], reader.__getitems__([1, 2]), list(reader.sampler())
print(*({"apache_beam", "pyarrow", "pydantic", "torch", "jinja2", "tokenizers", "data_forager"} & set(sys.modules)))
"""
        assert run_python("-c", code, str(fake.folder)) == ""

    def test_lazy_export(self) -> None:
        assert beam_prep.PackedDataset is PackedDataset
        with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
            _ = beam_prep.Nothing


def test_sidecars_are_kept_within_bounds(tmp_path: Path) -> None:
    """Small row groups: sequences that lie across two, and only as many kept as the limit allows."""
    for size in (1, 2, 7):
        fake = write_fake(tmp_path / f"out{size}", [30, 30], 16, row_group_size=size, seed=size)
        whole = write_fake(tmp_path / f"whole{size}", [30, 30], 16, seed=size)
        assert fake.parts == whole.parts
        reader, plain = PackedDataset(fake.folder, extras=EXTRAS), PackedDataset(whole.folder, extras=EXTRAS)
        reader._boundaries._limit = 400
        order = list(range(60))
        random.Random(size).shuffle(order)
        for number in order:
            got, wanted = reader[number], plain[number]
            assert all(np.array_equal(got[key], wanted[key]) for key in wanted)
            assert reader._boundaries.nbytes <= 400 + 20 * size
        assert reader.fingerprint == FINGERPRINT
