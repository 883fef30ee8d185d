"""Index files for other trainers: byte for byte as published, and read by the trainers' own code where it is there."""

import csv
import gzip
import io
import os
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import write_small_data
from hypothesis import given
from hypothesis import strategies as st
from results import sequences_by_forager

from beam_prep import balance, trainer_views
from beam_prep.best_fit import pack_best_fit
from beam_prep.cli import cli
from beam_prep.cli_outputs import _TRAINERS
from beam_prep.config import load_config
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.launch import RunOptions, prepare, run
from beam_prep.manifest import read_manifest
from beam_prep.packing import pack_concat, with_rest
from beam_prep.trainer_views import (
    TRAINERS,
    Documents,
    datatrove_index,
    join_parts,
    megatron_index,
    olmo_metadata,
    read_documents,
    write_trainer_view,
)
from beam_prep.verification import verify

EOD = 151643
LENGTH = 64


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["view", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module", params=["concat", "best_fit"])
def output(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of several shards with the index files of every trainer. Read it only."""
    folder = tmp_path_factory.mktemp("trainers")
    path = write_small_data(folder)
    path.write_text(path.read_text() + f"packing: {request.param}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "MIN_BUCKET_TOKENS", 1500)
        patch.setattr(balance, "MAX_BUCKET_TOKENS", 1500)
        run(prepare(load_config(str(path)), RunOptions(), folder))
    code, _, err = call(folder / "out", *(a for trainer in TRAINERS for a in ("--for", trainer)))
    assert code == 0, err
    return folder / "out"


@pytest.fixture
def spoilt(output: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test to damage."""
    return Path(shutil.copytree(output, tmp_path / "out", symlinks=True))


def shards(out: Path) -> list[Path]:
    return [path for path in sorted((out / "train/tokenized-samples").glob("*.bin")) if path.stat().st_size]


def naive(shard: Path) -> tuple[list[list[Any]], list[tuple[int, int]]]:
    """([begin, end, id, file, offset] of every document, [begin, end) of the padding), by a loop over the sidecar."""
    rows = pq.read_table(shard.parents[1] / "documents" / f"{shard.stem}.parquet").to_pylist()
    documents: list[list[Any]] = []
    padding, last, at = [], (), 0
    for row in rows:
        begin = row["sequence"] * LENGTH + row["start"]
        if begin > at:
            padding.append((at, begin))
        identity = (row["id"], row["copy"])
        if begin == at and (*identity, row["position"]) == last:
            documents[-1][1] += row["length"]
        else:
            documents.append([begin, begin + row["length"], row["id"], row["file"], row["offset"]])
        at = begin + row["length"]
        last = (*identity, row["position"] + row["length"])
    size = shard.stat().st_size // 4
    return documents, [*padding, *([(at, size)] if at < size else [])]


# --- documents from parts of documents -----


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 16), st.booleans())
def test_documents_of_a_packing(lengths: list[int], context_length: int, best_fit: bool) -> None:
    """`concat` gives every document back; of `best_fit` those that fit, and the others in parts of whole sequences."""
    packed = with_rest((pack_best_fit if best_fit else pack_concat)(np.array(lengths, np.int64), context_length))
    spans = packed.spans
    table = pa.table(
        {
            **{name: spans[name] for name in ("sequence", "start", "length", "position")},
            "id": [f"{row:032x}" for row in spans["row"].tolist()],
            "copy": np.zeros(len(spans), np.uint64),
            "file": ["f"] * len(spans),
            "offset": spans["row"].astype(np.uint64),
        }
    )
    tokens = packed.sequences * context_length
    found = join_parts(table, context_length, tokens)
    assert (found.begin < found.end).all() and (found.begin[1:] >= found.end[:-1]).all()
    rows = found.table.column("offset").to_pylist()
    assert found.table.column("id").to_pylist() == [f"{row:032x}" for row in rows]
    sizes = (found.end - found.begin).tolist()
    if best_fit:
        for row, length in enumerate(lengths):
            own = [size for r, size in zip(rows, sizes, strict=True) if r == row]
            assert sum(own) == length
            assert len(own) == 1 or length > context_length
    else:
        assert (rows, sizes) == (list(range(len(lengths))), lengths)
    # Documents and padding cover the shard, and padding is as long as it should be.
    assert found.ends.tolist() == sorted({*found.begin.tolist(), *found.end.tolist(), tokens} - {0})
    pieces = np.diff(found.ends, prepend=0)
    assert (pieces > 0).all() and pieces.sum() == tokens


def test_neighbours_that_are_not_one_document() -> None:
    """The same document's next copy, a part that does not follow, a part behind a gap."""
    columns = {
        "sequence": [0, 0, 0, 1, 1],
        "start": [0, 2, 4, 0, 5],
        "length": [2, 2, 4, 4, 3],
        "position": [0, 2, 0, 5, 9],
        "id": ["a"] * 5,
        "copy": pa.array([0, 1, 1, 1, 1], pa.uint64()),
        "file": ["f"] * 5,
        "offset": [0] * 5,
    }
    found = join_parts(pa.table(columns), 8, 16)
    assert found.begin.tolist() == [0, 2, 4, 8, 13]
    assert found.end.tolist() == [2, 4, 8, 12, 16]
    assert found.ends.tolist() == [2, 4, 8, 12, 13, 16]


def test_no_documents_at_all() -> None:
    schema = pa.schema([(n, pa.uint32()) for n in ("sequence", "start", "length", "position")])
    for name, kind in (("id", pa.string()), ("copy", pa.uint64()), ("file", pa.string()), ("offset", pa.uint64())):
        schema = schema.append(pa.field(name, kind))
    found = join_parts(schema.empty_table(), 8, 0)
    assert len(found.begin) == len(found.end) == len(found.ends) == 0
    assert len(megatron_index(found)) == 34 + 8


def test_documents_of_an_output(output: Path) -> None:
    entry = read_manifest(str(output)).outputs["train"]
    gaps, parts = 0, []
    for shard, path in zip([s for s in entry.shards if s.sequences], shards(output), strict=True):
        found = read_documents(str(output / "train"), shard, LENGTH)
        documents, padding = naive(path)
        columns = [found.table.column(name).to_pylist() for name in ("id", "file", "offset")]
        assert list(zip(found.begin.tolist(), found.end.tolist(), *columns, strict=True)) == [*map(tuple, documents)]
        assert found.ends.tolist() == sorted([d[1] for d in documents] + [p[1] for p in padding])
        ids = np.fromfile(path, "<u4")
        assert all((ids[low:high] == EOD).all() for low, high in padding)
        gaps += sum(high - low for low, high in padding)
        parts += documents
    assert gaps == entry.padding
    assert sum(end - begin for begin, end, *_ in parts) == entry.tokens
    copies = sum(source.copies for source in entry.sources.values())
    # A document that is cut between shards counts in both.
    assert (
        copies <= len(parts) <= copies + (len(shards(output)) if entry.packing == "concat" else entry.cut_documents * 9)
    )


# --- the published layouts -----


def plain(ends: list[int], begins: list[int], tokens: int) -> Documents:
    columns = {"id": ["ab" * 16] * len(begins), "file": ["a, b.jsonl"] * len(begins), "offset": [7] * len(begins)}
    return Documents(np.array(begins), np.array(ends), pa.table(columns), tokens)


def test_megatron_layout() -> None:
    """Two documents of 3 and 5 tokens, and 2 of padding."""
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, 4) + struct.pack("<QQ", 3, 4)
    expected += struct.pack("<3i", 3, 5, 2) + struct.pack("<3q", 0, 12, 32) + struct.pack("<4q", 0, 1, 2, 3)
    assert megatron_index(plain([3, 8], [0, 3], 10)) == expected


def test_megatron_offsets_beyond_four_gibibytes() -> None:
    index = megatron_index(plain([2**31 - 1, 2**31 + 5], [0, 2**31 - 1], 2**31 + 5))
    assert struct.unpack("<2i2q", index[34:58]) == (2**31 - 1, 6, 0, 4 * (2**31 - 1))
    with pytest.raises(BeamPrepError, match="2,147,483,648 tokens"):
        megatron_index(plain([2**31], [0], 2**31))


def test_datatrove_layout() -> None:
    assert datatrove_index(plain([3, 8], [0, 3], 10)) == struct.pack("<3Q", 3, 8, 10)
    assert datatrove_index(plain([2**33], [0], 2**33)) == struct.pack("<Q", 2**33)


def test_olmo_layout() -> None:
    line = "{},{}," + "ab" * 16 + ',"a, b.jsonl",7\r\n'
    assert olmo_metadata(plain([3, 8], [0, 3], 10)).decode() == line.format(0, 3) + line.format(3, 8)


def test_files_of_an_output(output: Path) -> None:
    for path in shards(output):
        documents, padding = naive(path)
        ends = sorted([d[1] for d in documents] + [p[1] for p in padding])
        lengths = np.diff(ends, prepend=0)
        index = path.with_suffix(".idx").read_bytes()
        assert index[:34] == b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, len(ends), len(ends) + 1)
        count = len(ends)
        assert np.frombuffer(index, "<i4", count, 34).tolist() == lengths.tolist()
        pointers = np.frombuffer(index, "<i8", count, 34 + 4 * count)
        assert pointers.tolist() == (4 * (np.array(ends) - lengths)).tolist()
        assert np.frombuffer(index, "<i8", count + 1, 34 + 12 * count).tolist() == list(range(count + 1))
        assert len(index) == 34 + 12 * count + 8 * (count + 1)

        beside = output / "train/datatrove" / f"{path.stem}.ds"
        assert np.frombuffer(Path(f"{beside}.index").read_bytes(), "<u8").tolist() == ends
        array = output / "train/olmo" / f"{path.stem}.npy"
        with gzip.open(array.with_suffix(".csv.gz"), "rt", newline="") as file:
            rows = [[int(b), int(e), i, f, int(o)] for b, e, i, f, o in csv.reader(file)]
        assert rows == documents
        for link in (beside, array):
            assert link.is_symlink() and not os.path.isabs(os.readlink(link)) and link.samefile(path)


def test_names_on_the_command_line() -> None:
    assert tuple(TRAINERS) == _TRAINERS


def test_the_command_again(spoilt: Path) -> None:
    def state() -> dict[str, Any]:
        paths = [p for p in sorted(spoilt.rglob("*")) if p.is_symlink() or p.is_file()]
        return {str(p): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in paths}

    before = state()
    for trainer in TRAINERS:
        code, out, err = call(spoilt, "--for", trainer, "--output", "train")
        assert (code, err) == (0, "") and f"index files for {trainer}: " in out
    assert state() == before


def test_shards_without_a_sequence(spoilt: Path) -> None:
    """They get no file: no trainer opens an empty one."""
    entry = read_manifest(str(spoilt)).outputs["train"]
    empty = entry.shards[0].model_copy(update={"sequences": 0, "path": "tokenized-samples/part-empty.bin"})
    entry = entry.model_copy(update={"shards": [empty, *entry.shards]})
    for trainer in TRAINERS:
        written = write_trainer_view(str(spoilt), "train", entry, 1000, trainer)
        assert written.files == len([s for s in entry.shards if s.sequences])
    assert not list(spoilt.rglob("part-empty*"))


def test_refusals(spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = read_manifest(str(spoilt)).outputs["train"]
    with pytest.raises(ConfigError, match="int32"):
        write_trainer_view(str(spoilt), "train", entry, 2**31 + 1, "megatron")
    with pytest.raises(ConfigError, match="object store"):
        write_trainer_view("gs://bucket/out", "train", entry, 1000, "olmo")

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    shutil.rmtree(spoilt / "train/olmo")
    monkeypatch.setattr(trainer_views.os, "symlink", refuse)
    code, _, err = call(spoilt, "--for", "olmo")
    assert code == 1 and "no link can be made here (Operation not permitted)" in err
    assert not [p for p in (spoilt / "train/olmo").iterdir() if p.suffix == ".tmp"]
    monkeypatch.undo()
    sidecar = next((spoilt / "train/documents").iterdir())
    sidecar.write_bytes(sidecar.read_bytes()[:-1])
    code, _, err = call(spoilt, "--for", "megatron")
    assert code == 1 and "is not what was written" in err and sidecar.name in err
    sidecar.unlink()
    code, _, err = call(spoilt, "--for", "megatron")
    assert code == 1 and "is missing" in err


def test_a_sidecar_of_another_shard(spoilt: Path) -> None:
    """A sidecar of another shard is a valid file, but not this one's."""
    first, second = sorted((spoilt / "train/documents").iterdir())[:2]
    shutil.copy(second, first)
    assert call(spoilt, "--for", "datatrove")[0] == 1


# --- verify -----


def test_verify_knows_the_files(output: Path) -> None:
    assert verify(str(output)) == []
    assert verify(str(output), quick=True) == []


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _as_copy(path: Path) -> None:
    target = path.resolve()
    path.unlink()
    shutil.copy(target, path)


def _elsewhere(path: Path) -> None:
    other = next(p for p in path.parent.iterdir() if p.is_symlink() and p != path)
    path.unlink()
    path.symlink_to(os.readlink(other))


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str, bool]] = {
    "idx gone": ("tokenized-samples/*.idx", Path.unlink, "is missing; `beam-prep view OUT --for megatron`", True),
    "ends gone": ("datatrove/*.index", Path.unlink, "is missing; `beam-prep view OUT --for datatrove`", True),
    "ds gone": ("datatrove/*.ds", Path.unlink, "is missing", True),
    "csv gone": ("olmo/*.csv.gz", Path.unlink, "is missing; `beam-prep view OUT --for olmo`", True),
    "npy gone": ("olmo/*.npy", Path.unlink, "is missing", True),
    "a copy": ("olmo/*.npy", _as_copy, "is no link to its shard", True),
    "another shard": ("datatrove/*.ds", _elsewhere, "is no link to its shard", True),
    "idx": ("tokenized-samples/*.idx", _flip, "differs from what the documents give", False),
    "ends": ("datatrove/*.index", _flip, "differs from what the documents give", False),
    "csv": ("olmo/*.csv.gz", lambda p: p.write_bytes(gzip.compress(b"0,1\r\n")), "differs from what", False),
    "csv text": ("olmo/*.csv.gz", lambda p: p.write_bytes(b"0,1\r\n"), "cannot be read", False),
    "csv cut": ("olmo/*.csv.gz", lambda p: p.write_bytes(p.read_bytes()[:-9]), "cannot be read", False),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(spoilt: Path, name: str) -> None:
    pattern, damage, words, quick = DAMAGE[name]
    path = sorted((spoilt / "train").glob(pattern))[1]
    damage(path)
    (finding,) = verify(str(spoilt))
    assert finding.place == str(path.relative_to(spoilt)) and words in finding.problem
    assert bool(verify(str(spoilt), quick=True)) == quick
    assert call(spoilt, *(a for trainer in TRAINERS for a in ("--for", trainer)))[0] == 0
    assert verify(str(spoilt)) == []


def test_links_to_a_missing_shard(spoilt: Path) -> None:
    path = shards(spoilt)[0]
    path.unlink()
    findings = verify(str(spoilt))
    assert findings[0].place == str(path.relative_to(spoilt)) and findings[0].problem == "is missing"


def test_foreign_files_are_still_found(spoilt: Path) -> None:
    (spoilt / "train/olmo/part-9.npy").write_bytes(b"x")
    (finding,) = verify(str(spoilt), quick=True)
    assert finding.place == "train/olmo/part-9.npy" and "belongs to no shard" in finding.problem


# --- read by the trainers' own code -----


def theirs(module: str, attribute: str) -> Any:
    """Something of a trainer's library, or a skip that says which is not there."""
    pytest.importorskip("torch", reason=f"{module} needs torch, which is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)
    return getattr(found, attribute)


def test_megatron_reads_it(output: Path) -> None:
    indexed_dataset = theirs("megatron.core.datasets.indexed_dataset", "IndexedDataset")
    for path in shards(output):
        documents, padding = naive(path)
        ids = np.fromfile(path, "<u4")
        dataset = indexed_dataset(str(path.with_suffix("")))
        bounds = sorted([(d[0], d[1]) for d in documents] + padding)
        assert len(dataset) == len(bounds)
        for number, (begin, end) in enumerate(bounds):
            assert (dataset[number] == ids[begin:end]).all() and dataset.index.dtype is np.int32
        assert (np.concatenate(dataset[0 : len(bounds)]) == ids).all()
        assert dataset.document_indices.tolist() == list(range(len(bounds) + 1))


def test_megatron_writes_the_same(output: Path, tmp_path: Path) -> None:
    """Its own builder, given the documents, writes our index; its merge of all shards holds every token."""
    builder = theirs("megatron.core.datasets.indexed_dataset", "IndexedDatasetBuilder")
    torch = pytest.importorskip("torch")
    merged = builder(str(tmp_path / "merged.bin"), dtype=np.int32)
    for path in shards(output):
        documents, padding = naive(path)
        ids = np.fromfile(path, "<i4")
        own = builder(str(tmp_path / "own.bin"), dtype=np.int32)
        for begin, end in sorted([(d[0], d[1]) for d in documents] + padding):
            own.add_item(torch.from_numpy(ids[begin:end].copy()))
            own.end_document()
        own.finalize(str(tmp_path / "own.idx"))
        assert (tmp_path / "own.idx").read_bytes() == path.with_suffix(".idx").read_bytes()
        assert (tmp_path / "own.bin").read_bytes() == path.read_bytes()
        merged.add_index(str(path.with_suffix("")))
    merged.finalize(str(tmp_path / "merged.idx"))
    dataset = theirs("megatron.core.datasets.indexed_dataset", "IndexedDataset")(str(tmp_path / "merged"))
    everything = np.concatenate([np.fromfile(path, "<i4") for path in shards(output)])
    assert (np.concatenate([dataset[n] for n in range(len(dataset))]) == everything).all()


def test_datatrove_reads_it(output: Path) -> None:
    folder_dataset = theirs("datatrove.utils.dataset", "DatatroveFolderDataset")
    stored = sequences_by_forager(output / "train")
    dataset = folder_dataset(str(output / "train/datatrove"), seq_len=LENGTH - 1, token_size=4, return_positions=True)
    assert len(dataset) == len(stored)
    ends = {path: set(naive_ends(path)) for path in shards(output)}
    number = 0
    for path in shards(output):
        for sequence in range(path.stat().st_size // 4 // LENGTH):
            sample = dataset[number]
            assert (sample["input_ids"].numpy() == stored[number]).all()
            expected, position = [], 0
            for at in range(sequence * LENGTH, (sequence + 1) * LENGTH):
                position = 0 if at in ends[path] or at == sequence * LENGTH else position + 1
                expected.append(position)
            assert sample["positions"].tolist() == expected
            number += 1
    # Another length, found as nanotron finds it.
    pattern = folder_dataset(str(output / "train/datatrove"), LENGTH, "*.ds", recursive=False, token_size=4)
    assert len(pattern) == sum(path.stat().st_size // 4 // (LENGTH + 1) for path in shards(output))


def naive_ends(path: Path) -> list[int]:
    documents, padding = naive(path)
    return sorted([d[1] for d in documents] + [p[1] for p in padding])


def test_datatrove_writes_the_same(output: Path, tmp_path: Path) -> None:
    theirs("datatrove.utils.dataset", "DatatroveFileDataset")
    tokenized_file = theirs("datatrove.pipeline.tokens.tokenizer", "TokenizedFile")
    for path in shards(output):
        ids = np.fromfile(path, "<u4")
        file = tokenized_file(str(tmp_path), "own.ds", token_size=4)
        begin = 0
        for end in naive_ends(path):
            file.write(ids[begin:end].tolist(), None)
            begin = end
        file.close()
        index = output / "train/datatrove" / f"{path.stem}.ds.index"
        assert (tmp_path / "own.ds.index").read_bytes() == index.read_bytes()
        assert (tmp_path / "own.ds").read_bytes() == path.read_bytes()


def olmo_config(output: Path, name: str, folder: Path, **more: Any) -> Any:
    config = theirs("olmo_core.data", name)
    tokenizer = theirs("olmo_core.data", "TokenizerConfig")(vocab_size=151669, eos_token_id=EOD, pad_token_id=EOD)
    dtype = theirs("olmo_core.data", "NumpyDatasetDType").uint32
    paths = [f"{output}/train/olmo/*.npy"]
    return config(tokenizer=tokenizer, paths=paths, expand_glob=True, dtype=dtype, work_dir=str(folder), **more).build()


def test_olmo_reads_it(output: Path, tmp_path: Path) -> None:
    """Its fixed sequence length: the sequences as they were packed."""
    dataset = olmo_config(output, "NumpyFSLDatasetConfig", tmp_path, sequence_length=LENGTH)
    dataset.prepare()
    stored = sequences_by_forager(output / "train")
    assert len(dataset) == len(stored)
    assert all((dataset[n]["input_ids"].numpy() == stored[n]).all() for n in range(len(stored)))


def test_olmo_reads_the_documents(output: Path) -> None:
    iterate = theirs("olmo_core.data.utils", "iter_document_indices")
    for path in shards(output):
        array = output / "train/olmo" / f"{path.stem}.npy"
        documents, _ = naive(path)
        expected = [(begin, end) for begin, end, *_ in documents]
        assert list(iterate(array, use_array_if_local=False, dtype=np.uint32)) == expected


def test_olmo_packs_the_documents(output: Path, tmp_path: Path) -> None:
    """Its best-fit packing, by our metadata: every document that fits is whole in it, and no padding is a document."""
    dataset = olmo_config(
        output, "NumpyPackedFSLDatasetConfig", tmp_path, sequence_length=2 * LENGTH, use_array_if_local=False
    )
    dataset.prepare()
    packed = np.stack([dataset[n]["input_ids"].numpy() for n in range(len(dataset))])
    tokens = sum(min(end - begin, 2 * LENGTH) for path in shards(output) for begin, end, *_ in naive(path)[0])
    labels = sum(int(dataset[n]["label_mask"].sum()) for n in range(len(dataset)))
    assert labels == tokens
    assert packed.shape[1] == 2 * LENGTH


def test_file_names_that_csv_quotes() -> None:
    """What a file name may hold is quoted as csv does, so that the first two fields stay numbers."""
    documents = plain([3], [0], 3)
    table = documents.table.set_column(1, "file", pa.array(['a"b\n,c']))
    text = olmo_metadata(documents._replace(table=table)).decode()
    assert next(csv.reader(io.StringIO(text, newline=""))) == ["0", "3", "ab" * 16, 'a"b\n,c', "7"]
