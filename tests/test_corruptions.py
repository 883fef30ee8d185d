"""verify against single faults: whatever is done to an output, it is found, at its place, and exit status says so."""

import gzip
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from small_job import CONFIG, start, write_inputs

from beam_prep import PackedDataset, balance, storage
from beam_prep.cli import cli
from beam_prep.verification import verify

EOD = 151643
STAGES = """
stages:
  - {name: short, context_length: 32, datasets: [plain, packed]}
  - {name: long, context_length: 64, min_tokens: 40}
"""
KINDS = {"concat": "views: [16]\n", "best_fit": "packing: best_fit\n", "stages": STAGES}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An output of each kind, with index files for other trainers."""
    folder = tmp_path_factory.mktemp("corruptions")
    write_inputs(folder)
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "MIN_BUCKET_TOKENS", 16_000)
        patch.setattr(balance, "MAX_BUCKET_TOKENS", 16_000)
        for kind, more in KINDS.items():
            made[kind] = folder / kind
            start(CONFIG.format(folder=folder) + more, made[kind])
            for trainer in ("megatron", "datatrove", "olmo"):
                assert CliRunner().invoke(cli, ["view", str(made[kind]), "--for", trainer]).exit_code == 0
    return made


@pytest.fixture(scope="module", params=KINDS)
def intact(outputs: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return outputs[request.param]


@pytest.fixture
def out(intact: Path, tmp_path: Path) -> Path:
    """A copy, to damage."""
    return Path(shutil.copytree(intact, tmp_path / "out", symlinks=True))


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_bytes())


def first_output(out: Path) -> Path:
    """The folder of an output with several shards."""
    return out / next(n for n, entry in manifest_of(out)["outputs"].items() if len(entry["shards"]) > 2)


def other_split(folder: Path) -> Path:
    return folder.parent / {"train": "val", "val": "train"}[folder.name]


def shard(out: Path, number: int = 0) -> Path:
    return sorted((first_output(out) / "tokenized-samples").glob("*.bin"))[number]


def sidecar(out: Path, number: int = 0) -> Path:
    return sorted((first_output(out) / "documents").iterdir())[number]


def index(out: Path, file: str = "sample_locations.bin") -> Path:
    return first_output(out) / "index" / file


def rejected(out: Path) -> Path:
    return next((out / "rejected").iterdir())


def sign(out: Path, manifest: dict[str, Any] | None = None) -> None:
    """Makes all checksums those of what is there now: a fault that was there before they were taken."""
    manifest = manifest or manifest_of(out)
    for name, entry in manifest["outputs"].items():
        for each in entry["shards"]:
            each["sha256"] = hashlib.sha256((out / name / each["path"]).read_bytes()).hexdigest()
            each["documents_sha256"] = hashlib.sha256((out / name / each["documents"]).read_bytes()).hexdigest()
    data = json.dumps(manifest).encode()
    (out / "manifest.json").write_bytes(data)
    (out / "_SUCCESS").write_text(f"{manifest['fingerprint']}\n{hashlib.sha256(data).hexdigest()}\n")


def flip(path: Path, at: int | None = None) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 4
    path.write_bytes(data)
    return path


def truncate(path: Path, by: int = 1) -> Path:
    path.write_bytes(path.read_bytes()[:-by])
    return path


def lengthen(path: Path, data: bytes = b"\0") -> Path:
    path.write_bytes(path.read_bytes() + data)
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def delete(path: Path) -> Path:
    path.unlink()
    return path


def foreign(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def swap(one: Path, other: Path) -> Path:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return one


def change(path: Path, to: Callable[[Any], Any]) -> Path:
    """A JSON file, edited: `to` changes what it is given."""
    content = json.loads(path.read_bytes())
    to(content)
    path.write_bytes((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def change_rows(path: Path, to: Callable[[list[dict]], list[dict]]) -> Path:
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(to(table.to_pylist()), table.schema), path)
    return path


def signed(out: Path, path: Path) -> Path:
    sign(out)
    return path


def change_tokens(out: Path, at: Callable[[np.ndarray], int], to: int) -> Path:
    ids = np.fromfile(shard(out), "<u4")
    ids[at(ids)] = to
    ids.tofile(shard(out))
    return signed(out, shard(out))


def move_document(out: Path) -> Path:
    """A document's row goes to the sidecar of the other split, in place of one there, under true checksums."""
    here = pq.read_table(sidecar(out)).to_pylist()
    there = sorted((other_split(first_output(out)) / "documents").iterdir())[0]
    moved = next(row for row in here if row["position"] == 0)
    return signed(out, change_rows(there, lambda rows: [{**rows[0], "id": moved["id"]}, *rows[1:]]))


def double_row(rows: list[dict]) -> list[dict]:
    return [rows[0], *rows]


def edit_signed(out: Path, to: Callable[[dict], Any]) -> Path:
    manifest = manifest_of(out)
    to(manifest)
    sign(out, manifest)
    return out / "manifest.json"


def entry_of(manifest: dict) -> dict:
    return next(e for e in manifest["outputs"].values() if len(e["shards"]) > 2)


def both_counts(manifest: dict) -> None:
    """Two counts that agree with each other afterwards."""
    manifest["ledger"]["plain"]["records"] += 1
    manifest["ledger"]["plain"]["sampled_out"] += 1


def moved_share(manifest: dict) -> None:
    sources = list(entry_of(manifest)["sources"].values())
    sources[0]["share"] += 0.001
    sources[1]["share"] -= 0.001


def letter_less(out: Path) -> Path:
    """A rejected record is gone, the file is whole."""
    path = rejected(out)
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    with open(path, "wb") as file, gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=6) as to:
        to.writelines(lines[1:])
    return Path("manifest.json: ledger.plain")


def whole_shard_twice(out: Path) -> Path:
    """A shard and its sidecar in place of the next ones, all figures of both as they were written."""
    shutil.copy(shard(out, 0), shard(out, 1))
    shutil.copy(sidecar(out, 0), sidecar(out, 1))
    manifest = manifest_of(out)
    shards = entry_of(manifest)["shards"]
    for key in ("sequences", "bytes", "spans"):
        shards[1][key] = shards[0][key]
    sign(out, manifest)
    return sidecar(out, 1)


def swapped_with_sidecars(out: Path) -> Path:
    """Two shards, their sidecars, and their entries but for the names."""
    swap(shard(out, 0), shard(out, 1))
    swap(sidecar(out, 0), sidecar(out, 1))
    manifest = manifest_of(out)
    shards = entry_of(manifest)["shards"]
    for key in ("sequences", "bytes", "spans"):
        shards[0][key], shards[1][key] = shards[1][key], shards[0][key]
    sign(out, manifest)
    write = [first_output(out) / "index", *first_output(out).glob("index-*")]
    for folder in write:  # an index that is right for what lies there now
        from beam_prep.index import write_index

        length = entry_of(manifest)["context_length"]
        parts = length // int(folder.name.partition("-")[2] or length)
        paths, counts = [s["path"] for s in shards], [s["sequences"] * parts for s in shards]
        write_index(str(folder.parent), paths, counts, 4 * length // parts, folder.name)
    for path in first_output(out).glob("tokenized-samples/*.idx"):
        path.unlink()
    shutil.rmtree(first_output(out) / "datatrove")
    shutil.rmtree(first_output(out) / "olmo")
    return sidecar(out, 0)


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def link(path: Path, target: str) -> Path:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


def trainer(out: Path, pattern: str) -> Path:
    return sorted(first_output(out).glob(pattern))[0]


# Each damages an output and returns where verify must say so. QUICK ones need no tokens to be found.
QUICK: dict[str, Callable[[Path], Path]] = {
    "shard truncated": lambda out: truncate(shard(out), 4),
    "shard truncated by a sequence": lambda out: truncate(shard(out), 256),
    "shard lengthened": lambda out: lengthen(shard(out)),
    "shard empty": lambda out: empty(shard(out)),
    "shard deleted": lambda out: delete(shard(out)),
    "last shard deleted": lambda out: delete(shard(out, -1)),
    "shard is a folder": lambda out: make_folder(delete(shard(out))),
    "sidecar deleted": lambda out: delete(sidecar(out)),
    "index: bit flip": lambda out: flip(index(out)),
    "index: truncated": lambda out: truncate(index(out), 24),
    "index: lengthened": lambda out: lengthen(index(out), bytes(24)),
    "index: empty": lambda out: empty(index(out)),
    "index: deleted": lambda out: delete(index(out)),
    "index: of the other split": lambda out: swap(
        index(out), other_split(first_output(out)) / "index" / index(out).name
    ),
    "paths: bit flip": lambda out: flip(index(out, "file_location.txt")),
    "paths: deleted": lambda out: delete(index(out, "file_location.txt")),
    "paths: lengthened": lambda out: lengthen(index(out, "file_location.txt"), b"\n"),
    "manifest: bit flip": lambda out: flip(out / "manifest.json"),
    "manifest: deleted": lambda out: delete(out / "manifest.json"),
    "manifest: empty": lambda out: empty(out / "manifest.json"),
    "manifest: truncated": lambda out: truncate(out / "manifest.json", 200),
    "manifest: a space more": lambda out: lengthen(out / "manifest.json", b" "),
    "ledger: a count edited": lambda out: change(
        out / "manifest.json", lambda m: m["ledger"]["plain"].__setitem__("duplicates", 99)
    ),
    "ledger: two counts edited consistently": lambda out: change(out / "manifest.json", both_counts),
    "shares edited consistently": lambda out: change(out / "manifest.json", moved_share),
    "licence edited": lambda out: change(out / "manifest.json", lambda m: m["licences"].__setitem__("plain", "MIT")),
    "seed edited": lambda out: change(out / "manifest.json", lambda m: m.__setitem__("seed", 5)),
    "a checksum edited": lambda out: change(
        out / "manifest.json", lambda m: entry_of(m)["shards"][0].__setitem__("sha256", "0" * 64)
    ),
    "ledger: a count edited, signed": lambda out: edit_signed(
        out, lambda m: m["ledger"]["plain"].__setitem__("duplicates", 99)
    ),
    "shares edited, signed": lambda out: edit_signed(out, moved_share),
    "tokens edited, signed": lambda out: edit_signed(out, lambda m: entry_of(m).__setitem__("tokens", 1)),
    "mark deleted": lambda out: delete(out / "_SUCCESS"),
    "mark empty": lambda out: empty(out / "_SUCCESS"),
    "mark: bit flip": lambda out: flip(out / "_SUCCESS", 3),
    "mark truncated": lambda out: truncate(out / "_SUCCESS", 20),
    "mark of one line": lambda out: truncate(out / "_SUCCESS", 65),
    "mark lengthened": lambda out: lengthen(out / "_SUCCESS", b"\n"),
    "mark of another run": lambda out: (out / "_SUCCESS").write_text("0" * 64 + "\n") and out / "_SUCCESS",
    "foreign file at the top": lambda out: foreign(out / "notes.txt"),
    "foreign file in an output": lambda out: foreign(first_output(out) / "notes.txt"),
    "foreign file between outputs": lambda out: foreign(out / "else/train/x.bin"),
    "foreign shard": lambda out: foreign(first_output(out) / "tokenized-samples/part-00099-of-00100.bin"),
    "foreign sidecar": lambda out: foreign(first_output(out) / "documents/part-00099-of-00100.parquet"),
    "foreign file in the index": lambda out: foreign(first_output(out) / "index/sample_schema.json"),
    "foreign file among the rejected": lambda out: foreign(out / "rejected/else-00000.jsonl.gz"),
    "foreign folder, empty": lambda out: make_folder(out / "else"),
    "foreign link": lambda out: link(out / "else", "/"),
    "temporary file": lambda out: foreign(first_output(out) / "tokenized-samples/part-00000.bin.01234567.tmp"),
    "rejected deleted": lambda out: delete(rejected(out)),
    "view of a length that does not divide": lambda out: (
        foreign(first_output(out) / "index-7/file_location.txt").parent
    ),
    "datatrove's link to another shard": lambda out: link(trainer(out, "datatrove/*.ds"), "../documents"),
    "Megatron's index deleted": lambda out: delete(trainer(out, "tokenized-samples/*.idx")),
    "OLMo's link deleted": lambda out: delete(trainer(out, "olmo/*.npy")),
}
FULL: dict[str, Callable[[Path], Path]] = {
    "shard: bit flip": lambda out: flip(shard(out)),
    "shard: last bit flip": lambda out: flip(shard(out, -1), -1),
    "sidecar: bit flip": lambda out: flip(sidecar(out)),
    "sidecar truncated": lambda out: truncate(sidecar(out)),
    "sidecar lengthened": lambda out: lengthen(sidecar(out)),
    "sidecar empty": lambda out: empty(sidecar(out)),
    "sidecars swapped": lambda out: swap(sidecar(out, 0), sidecar(out, 1)),
    "shards and sidecars swapped, signed": swapped_with_sidecars,
    "document in the other split, signed": move_document,
    "id outside of the vocabulary, signed": lambda out: change_tokens(out, lambda ids: 70, 151669),
    "separator overwritten, signed": lambda out: change_tokens(out, lambda ids: int(np.nonzero(ids == EOD)[0][2]), 9),
    "row lost, signed": lambda out: signed(out, change_rows(sidecar(out), lambda rows: rows[:3] + rows[4:])),
    "row twice, signed": lambda out: signed(out, change_rows(sidecar(out), double_row)),
    "row shifted, signed": lambda out: signed(
        out, change_rows(sidecar(out), lambda rows: [rows[0], {**rows[1], "start": rows[1]["start"] + 1}, *rows[2:]])
    ),
    "row of another document, signed": lambda out: signed(
        out, change_rows(sidecar(out, 1), lambda rows: [{**row, "id": f"{n:032x}"} for n, row in enumerate(rows)])
    ),
    "rejected: bit flip": lambda out: flip(rejected(out)),
    "rejected: bit flip in its header": lambda out: flip(rejected(out), 4),
    "rejected: bit flip in its checksum": lambda out: flip(rejected(out), -6),
    "rejected truncated": lambda out: truncate(rejected(out)),
    "rejected lengthened": lambda out: lengthen(rejected(out)),
    "rejected lengthened by eight": lambda out: lengthen(rejected(out), bytes(8)),
    "rejected empty": lambda out: empty(rejected(out)),
    "rejected record lost": letter_less,
    "Megatron's index: bit flip": lambda out: flip(trainer(out, "tokenized-samples/*.idx")),
    "datatrove's index: bit flip": lambda out: flip(trainer(out, "datatrove/*.index")),
    "OLMo's metadata: bit flip": lambda out: flip(trainer(out, "olmo/*.csv.gz")),
    "OLMo's metadata truncated": lambda out: truncate(trainer(out, "olmo/*.csv.gz")),
}


def report(out: Path, *options: str) -> dict[str, Any]:
    """What the command says, and that its exit status agrees."""
    done = CliRunner().invoke(cli, ["verify", str(out), "--json", *options])
    found = json.loads(done.stdout)
    assert done.exit_code == (0 if found["ok"] else 1) and found["ok"] == (not found["findings"])
    return found


def place_of(out: Path, where: Path) -> str:
    return str(where.relative_to(out)) if where.is_absolute() else str(where)


@pytest.mark.parametrize("name", QUICK)
def test_found_by_a_quick_look(outputs: dict[str, Path], tmp_path: Path, name: str) -> None:
    out = Path(shutil.copytree(outputs["concat"], tmp_path / "out", symlinks=True))
    expected = place_of(out, QUICK[name](out))
    first = report(out, "--quick")["findings"][0]
    assert f"{first['place']}: {first['problem']}".startswith(expected)


@pytest.mark.parametrize("name", FULL)
def test_found(out: Path, name: str) -> None:
    expected = place_of(out, FULL[name](out))
    first = report(out, "--full")["findings"][0]
    assert f"{first['place']}: {first['problem']}".startswith(expected)


def test_views(outputs: dict[str, Path], tmp_path: Path) -> None:
    for number, damage in enumerate((flip, truncate, lengthen, empty, delete)):
        for file in ("sample_locations.bin", "file_location.txt"):
            out = Path(shutil.copytree(outputs["concat"], tmp_path / f"{number}{file}", symlinks=True))
            where = damage(first_output(out) / "index-16" / file)
            assert report(out, "--quick")["findings"][0]["place"] == place_of(out, where)


def test_swapped_shards(out: Path) -> None:
    """Those of one size, if there are any, have nothing but their checksums to tell them apart."""
    where = swap(shard(out, 0), shard(out, 1))
    assert report(out)["findings"][0]["place"] == place_of(out, where)


def test_a_shard_twice(out: Path) -> None:
    """The figures do not add up then, and the sidecar says why."""
    where = place_of(out, whole_shard_twice(out))
    problems = [f["problem"] for f in report(out)["findings"] if f["place"] == where]
    assert any("belongs to another shard" in problem for problem in problems)


def test_manifest_of_another_run(outputs: dict[str, Path], tmp_path: Path) -> None:
    for other in ("best_fit", "stages"):
        out = Path(shutil.copytree(outputs["concat"], tmp_path / other, symlinks=True))
        shutil.copy(outputs[other] / "manifest.json", out / "manifest.json")
        first = report(out, "--quick")["findings"][0]
        assert first["place"] == "_SUCCESS" and "but manifest.json is of run" in first["problem"]
        shutil.copy(outputs[other] / "_SUCCESS", out / "_SUCCESS")
        assert not report(out, "--quick")["ok"]


def test_unreadable(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that this user may not read (the tests may run as root, who may read everything)."""
    open_read = storage.open_read
    for where in (shard(out), sidecar(out), index(out), rejected(out), out / "manifest.json", out / "_SUCCESS"):

        def refuse(path: str, where: Path = where) -> Any:
            if path == str(where):
                raise PermissionError(13, "Permission denied", path)
            return open_read(path)

        monkeypatch.setattr(storage, "open_read", refuse)
        findings = report(out)["findings"]
        assert any(str(where) in f["problem"] and "Permission denied" in f["problem"] for f in findings), where


_opened: list[tuple[str, Any]] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _opened is not None and (event == "open" or event.startswith(("os.", "fcntl.", "shutil."))):
        _opened.append((event, arguments))


@pytest.fixture
def events() -> Iterator[list[tuple[str, Any]]]:
    """What this process asks of the file system."""
    global _opened  # noqa: PLW0603
    if not hasattr(_watch, "there"):
        sys.addaudithook(_watch)
        _watch.there = True  # type: ignore[attr-defined]
    _opened = []
    yield _opened
    _opened = None


def test_while_training_reads(intact: Path, events: list[tuple[str, Any]]) -> None:
    """Files are opened for reading alone, nothing is locked, and a reader in the middle of them goes on."""
    name = next(iter(manifest_of(intact)["outputs"]))
    dataset = PackedDataset(intact, output=name)
    before = [dataset[n].copy() for n in range(len(dataset))]
    states = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(intact.rglob("*"))}
    events.clear()
    read = iter(range(len(dataset)))

    def train(size: int) -> None:
        if (n := next(read, None)) is not None:
            assert np.array_equal(dataset[n], before[n])

    assert verify(str(intact), progress=train) == []
    assert any(event == "open" for event, _ in events)
    write = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    for event, arguments in events:
        if event == "open" and str(arguments[0]).startswith(str(intact)):
            assert not (arguments[2] or 0) & write, arguments
        else:
            assert event in ("open", "os.scandir", "os.listdir"), (event, arguments)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(intact.rglob("*"))} == states


def test_nothing_is_found_where_nothing_is(intact: Path) -> None:
    assert report(intact)["findings"] == [] and report(intact, "--quick")["findings"] == []
    assert len(QUICK) + len(FULL) > 30
