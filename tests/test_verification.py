"""verify: an output that a run made has no findings, and whatever is done to it has one."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_prep import balance, split_checks
from beam_prep.cli import cli
from beam_prep.config import parse_config
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.launch import RunOptions, prepare, run
from beam_prep.verification import require_intact, verify

EOD = 151643


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def write(out: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest and signs it, so that what lies behind its checksum is checked."""
    data = json.dumps(manifest).encode()
    (out / "manifest.json").write_bytes(data)
    first = (out / "_SUCCESS").read_bytes().partition(b"\n")[0] if (out / "_SUCCESS").exists() else b""
    (out / "_SUCCESS").write_bytes(first + b"\n" + hashlib.sha256(data).hexdigest().encode() + b"\n")


def edit(out: Path, *path: str | int, to: Any) -> None:
    manifest = read(out)
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to(inner[path[-1]]) if callable(to) else to
    write(out, manifest)


def shard(out: Path, number: int = 0) -> Path:
    return sorted((out / "train/tokenized-samples").iterdir())[number]


def sidecar(out: Path, number: int = 0) -> Path:
    return sorted((out / "train/documents").iterdir())[number]


def sign(out: Path) -> None:
    """Has the manifest agree with the files' checksums, so that what lies behind them is checked."""
    manifest = read(out)
    for name, entry in manifest["outputs"].items():
        for each in entry["shards"]:
            each["sha256"] = hashlib.sha256((out / name / each["path"]).read_bytes()).hexdigest()
            each["documents_sha256"] = hashlib.sha256((out / name / each["documents"]).read_bytes()).hexdigest()
    write(out, manifest)


def change_tokens(path: Path, change: Callable[[np.ndarray], None]) -> None:
    ids = np.fromfile(path, "<u4")
    change(ids)
    ids.tofile(path)


def change_column(path: Path, name: str, change: Callable[[list], None]) -> None:
    table = pq.read_table(path)
    values = table.column(name).to_pylist()
    change(values)
    index = table.schema.get_field_index(name)
    pq.write_table(table.set_column(index, name, pa.array(values, table.schema.field(name).type)), path)


def first(out: Path, quick: bool = False) -> str:
    findings = verify(str(out), quick)
    assert findings
    return f"{findings[0].place}: {findings[0].problem}"


def test_a_finished_output_has_no_findings(finished):
    assert len(read(finished.output)["outputs"]["train"]["shards"]) > 3
    seen = []
    assert verify(str(finished.output), progress=seen.append) == []
    assert sum(seen) == sum(s["bytes"] for s in read(finished.output)["outputs"]["train"]["shards"])
    assert verify(str(finished.output), quick=True) == []
    assert verify(f"{finished.output}/") == []
    require_intact(str(finished.output))


def test_no_folder():
    with pytest.raises(ConfigError, match="no such folder"):
        verify("/nowhere/at/all")


# --- what is found without reading tokens ---------------------------------------------------------------------------

QUICK: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no mark": (lambda out: (out / "_SUCCESS").unlink(), "_SUCCESS: is missing"),
    "another run's mark": (lambda out: (out / "_SUCCESS").write_text("0" * 64), "_SUCCESS: is of run '000000000000'"),
    "empty mark": (lambda out: (out / "_SUCCESS").write_text(""), "_SUCCESS: is of run ''"),
    "no manifest": (lambda out: (out / "manifest.json").unlink(), "manifest.json: is missing"),
    "cut manifest": (lambda out: (out / "manifest.json").write_text('{"outputs": '), "manifest.json: is damaged"),
    "no outputs": (lambda out: edit(out, "outputs", to={}), "manifest.json: is damaged: outputs"),
    "text for a number": (lambda out: edit(out, "outputs", "train", "tokens", to="9"), "is damaged: outputs.train.tok"),
    "negative": (lambda out: edit(out, "ledger", "notes", "records", to=-1), "damaged: ledger.notes.records"),
    "dtype": (lambda out: edit(out, "dtype", to="uint16"), "damaged: dtype"),
    "no shard": (lambda out: shard(out, 1).unlink(), "part-00001-of-"),
    "truncated shard": (lambda out: shard(out).write_bytes(shard(out).read_bytes()[:-4]), "bytes on disk"),
    "longer shard": (lambda out: shard(out).write_bytes(shard(out).read_bytes() + b"\0"), "bytes on disk"),
    "no sidecar": (lambda out: sidecar(out).unlink(), ".parquet: is missing"),
    "truncated index": (
        lambda out: (out / "train/index/sample_locations.bin").write_bytes(b"\0" * 24),
        "sample_locations.bin: 24 bytes, but",
    ),
    "no index": (lambda out: (out / "train/index/sample_locations.bin").unlink(), "sample_locations.bin: is missing"),
    "no paths": (lambda out: (out / "train/index/file_location.txt").unlink(), "file_location.txt: is missing"),
    "other paths": (
        lambda out: (out / "train/index/file_location.txt").write_bytes(
            (out / "train/index/file_location.txt").read_bytes().replace(b"part-00000", b"part-00001", 1)
        ),
        "file_location.txt: differs from what the shards need at byte 27",
    ),
    "orphan": (lambda out: (out / "train/tokenized-samples/old.bin").write_text("x"), "old.bin: belongs to no shard"),
    "temporary file": (
        lambda out: (out / "manifest.json.12.tmp").write_text("x"),
        "manifest.json.12.tmp: belongs to no",
    ),
    "left work": (
        lambda out: ((out / ".work").mkdir(), (out / ".work/run").write_text("x")),
        ".work/run: belongs to no shard",
    ),
    "seed": (lambda out: edit(out, "seed", to=4), "manifest.json: seed is 4, but 3 in `configuration`"),
    "context length": (lambda out: edit(out, "context_length", to=128), "context_length is 128, but 64"),
    "tokenizer": (lambda out: edit(out, "tokenizer", "sha256", to="0" * 64), "tokenizer.sha256 is 000"),
    "separator": (lambda out: edit(out, "tokenizer", "eod_token_id", to=151645), "tokenizer.eod_token_id is 151,645"),
    "vocabulary": (lambda out: edit(out, "tokenizer", "vocab_size", to=10**6), "tokenizer.vocab_size is 1,000,000"),
    "source gone": (
        lambda out: edit(out, "ledger", to=lambda ledger: ledger.pop("notes") and ledger),
        "sources of the",
    ),
    "sequences": (
        lambda out: edit(out, "outputs", "train", "sequences", to=lambda n: n + 1),
        "outputs.train: sequences",
    ),
    "tokens": (lambda out: edit(out, "outputs", "train", "tokens", to=lambda n: n - 1), "outputs.train: tokens is"),
    "packing": (lambda out: edit(out, "outputs", "train", "packing", to="best_fit"), "outputs.train.packing is"),
    "padding": (lambda out: edit(out, "outputs", "train", "padding", to=lambda n: n + 1), "sequences × context_length"),
    "dropped": (lambda out: edit(out, "outputs", "train", "dropped_tokens", to=1), "dropped_tokens is 1: more than"),
    "share": (
        lambda out: edit(out, "outputs", "train", "sources", "notes", "share", to=0.5),
        "sources.notes.share is 0.5",
    ),
    "epochs": (lambda out: edit(out, "outputs", "train", "sources", "talks", "epochs", to=2.5), "talks.epochs is 2.5"),
    "copies": (lambda out: edit(out, "outputs", "train", "sources", "notes", "copies", to=1), "but 1 copies of them"),
    "shard's sequences": (
        lambda out: edit(out, "outputs", "train", "shards", 0, "sequences", to=lambda n: n - 1),
        "outputs.train: sequences",
    ),
    "shard twice": (
        lambda out: edit(out, "outputs", "train", "shards", to=lambda shards: [*shards[:-1], shards[0]]),
        "outputs.train: sequences",
    ),
    "records": (
        lambda out: edit(out, "ledger", "notes", "records", to=lambda n: n + 1),
        "ledger.notes: records is 126, but 125 as rejected + filtered",
    ),
    "duplicates": (lambda out: edit(out, "ledger", "notes", "duplicates", to=1), "ledger.notes: records is"),
    "filtered": (lambda out: edit(out, "ledger", "talks", "filtered", to={}), "ledger.talks: records is"),
    "ledger's tokens": (
        lambda out: edit(out, "ledger", "talks", "tokens", to=lambda n: n + 1),
        "ledger.talks: tokens is",
    ),
}


@pytest.mark.parametrize("name", QUICK)
def test_quick_finds(damaged, name):
    damage, expected = QUICK[name]
    damage(damaged)
    assert expected in first(damaged, quick=True)
    assert expected in first(damaged)
    with pytest.raises(BeamPrepError, match="--overwrite"):
        require_intact(str(damaged))


def test_documents_that_no_output_holds(damaged):
    edit(damaged, "ledger", "notes", "documents", to=lambda n: n + 1)
    edit(damaged, "ledger", "notes", "records", to=lambda n: n + 1)
    assert "ledger.notes: documents is 121, but the outputs hold 120" in first(damaged, quick=True)


# --- what is found in shards, sidecars and rejected records ---------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1])
def test_bit_flip_in_a_shard(damaged, number):
    data = bytearray(shard(damaged, number).read_bytes())
    data[len(data) // 3] ^= 1
    shard(damaged, number).write_bytes(data)
    assert verify(str(damaged), quick=True) == []
    assert "sha256 differs" in first(damaged)


def test_bit_flip_in_a_sidecar(damaged):
    data = bytearray(sidecar(damaged).read_bytes())
    data[len(data) // 2] ^= 8
    sidecar(damaged).write_bytes(data)
    assert ".parquet: sha256 differs" in first(damaged)


def test_swapped_shards_and_sidecars(finished, tmp_path):
    for folder in ("tokenized-samples", "documents"):
        out = Path(shutil.copytree(finished.output, tmp_path / folder))
        one, other = sorted((out / "train" / folder).iterdir())[:2]
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
        assert one.name in first(out)


@settings(max_examples=25)
@given(st.data())
def test_any_flipped_bit_is_found(finished, tmp_path_factory, data):
    out = tmp_path_factory.getbasetemp() / "flipped"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(finished.output, out)
    files = sorted(
        p for p in out.rglob("*") if p.suffix in (".bin", ".parquet", ".txt", ".json") or p.name == "_SUCCESS"
    )
    files.remove(out / "run.json") if (out / "run.json").exists() else None
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert verify(str(out))


def test_id_outside_of_the_vocabulary(damaged):
    change_tokens(shard(damaged, 1), lambda ids: ids.__setitem__(64 * 2 + 5, 151669))
    sign(damaged)
    assert "sequence 2, token 5: an id is outside of the vocabulary of 151,669" in first(damaged)


def test_missing_separator(damaged):
    ends = np.nonzero(np.fromfile(shard(damaged), "<u4") == EOD)[0]
    change_tokens(shard(damaged), lambda ids: ids.__setitem__(ends[3], 5))
    sign(damaged)
    place = f"sequence {ends[3] // 64}, token {ends[3] % 64}: a document ends here without its separator"
    assert place in first(damaged)


def test_missing_separator_where_a_document_goes_on_in_the_last_shard(damaged):
    """The rests of the other shards are whole documents there."""
    rows = pq.read_table(sidecar(damaged, -1)).to_pylist()
    rest = [row for row in rows if row["continuation"]]
    assert rest
    row = next(r for r in rest if r["position"] and r["start"] + r["length"] < 64)
    end = row["sequence"] * 64 + row["start"] + row["length"] - 1
    ids = np.fromfile(shard(damaged, -1), "<u4")
    assert ids[end] == EOD
    change_tokens(shard(damaged, -1), lambda ids: ids.__setitem__(end, 5))
    sign(damaged)
    assert "a document ends here without its separator" in first(damaged)


def test_padding_that_is_no_separator(damaged):
    padding = read(damaged)["outputs"]["train"]["padding"]
    assert padding > 1
    change_tokens(shard(damaged, -1), lambda ids: ids.__setitem__(-1, 5))
    sign(damaged)
    assert "padding that is not the separator" in first(damaged)


COLUMNS: dict[str, tuple[str, Callable[[list], Any], str]] = {
    "length": ("length", lambda v: v.__setitem__(4, v[4] - 1), "leaves tokens before it that no document has"),
    "overlap": ("start", lambda v: v.__setitem__(1, v[1] - 1), "overlaps"),
    "sequence": ("sequence", lambda v: v.__setitem__(-1, 10_000), "is not inside a sequence of its shard"),
    "continuation": ("continuation", lambda v: v.__setitem__(0, not v[0]), "is marked as continuation wrongly"),
    "id": ("id", lambda v: v.__setitem__(2, "x" * 32), "cannot be read"),
    "short id": ("id", lambda v: v.__setitem__(2, "ab"), "an id is not 32 hexadecimal digits"),
    "copy": ("copy", lambda v: v.__setitem__(slice(None), [n + 1 for n in v]), "belongs to another shard"),
    "source": ("source", lambda v: v.__setitem__(slice(None), ["notes"] * len(v)), "sources."),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_edited_sidecar(damaged, name):
    column, change, expected = COLUMNS[name]
    change_column(sidecar(damaged), column, change)
    sign(damaged)
    assert expected in first(damaged)


def test_unknown_source_in_a_sidecar(damaged):
    table = pq.read_table(sidecar(damaged))
    index = table.schema.get_field_index("source")
    pq.write_table(table.set_column(index, "source", pa.array(["else"] * len(table))), sidecar(damaged))
    sign(damaged)
    assert "a source that the ledger does not have" in first(damaged)


def test_spans_that_do_not_join(damaged):
    def move(values: list) -> None:
        row = next(n for n, position in enumerate(values) if position)
        values[row] += 1

    change_column(sidecar(damaged, -1), "position", move)
    sign(damaged)
    assert any(words in first(damaged) for words in ("do not join", "does not go on where it was cut"))


def test_lost_rest_of_a_document(damaged):
    """A document's rest in the last shard under another id."""
    rows = pq.read_table(sidecar(damaged, -1)).to_pylist()
    own = {(row["id"], row["copy"]) for row in rows if row["position"] == 0}
    row = next(n for n, r in enumerate(rows) if r["position"] and (r["id"], r["copy"]) not in own)
    change_column(sidecar(damaged, -1), "id", lambda values: values.__setitem__(row, "0" * 32))
    sign(damaged)
    problems = [finding.problem for finding in verify(str(damaged))]
    assert any("without its separator" in p or "begins in no shard" in p for p in problems)


def mend_shares(out):
    manifest = read(out)
    train = manifest["outputs"]["train"]
    for part in train["sources"].values():
        part["epochs"] = part["copies"] / part["available"]
    train["cut_share"] = train["cut_documents"] / sum(part["copies"] for part in train["sources"].values())
    write(out, manifest)


@pytest.mark.parametrize("key", ["documents", "copies"])
def test_edited_counts_of_a_source(damaged, key):
    """Figures that only the sidecars can contradict."""
    edit(damaged, "outputs", "train", "sources", "talks", key, to=lambda n: n + (1 if key == "copies" else -1))
    mend_shares(damaged)
    assert verify(str(damaged), quick=True) == [] or key == "documents"
    assert f"sources.talks.{key} is" in first(damaged) or "ledger.talks: documents" in first(damaged)


def test_edited_cut_documents(damaged):
    edit(damaged, "outputs", "train", "cut_documents", to=lambda n: n - 1)
    assert "cut_share is" in first(damaged, quick=True)
    mend_shares(damaged)
    assert verify(str(damaged), quick=True) == []
    assert "cut_documents is" in first(damaged)


def test_tokens_moved_from_one_source_to_another(damaged):
    manifest = read(damaged)
    train = manifest["outputs"]["train"]
    for name, more in (("notes", 7), ("talks", -7)):
        part = train["sources"][name]
        part["tokens"] += more
        part["share"] = part["tokens"] / train["tokens"]
        manifest["ledger"][name]["tokens"] += more
    write(damaged, manifest)
    assert verify(str(damaged), quick=True) == []
    assert "sources.notes.tokens is" in first(damaged)


def test_edited_rejects(damaged):
    edit(damaged, "ledger", "notes", "rejected", to={"invalid_json": 2, "missing_field": 1})
    assert verify(str(damaged), quick=True) == []
    assert "ledger.notes: rejected is invalid_json 2, missing_field 1, but the rejected files hold" in first(damaged)


def test_damaged_rejects(damaged):
    path = next((damaged / "rejected").iterdir())
    path.write_bytes(path.read_bytes()[:-12])
    assert f"rejected/{path.name}: cannot be read" in first(damaged)
    path.write_bytes(gzip.compress(b"[]\n"))
    assert "cannot be read" in first(damaged)
    path.unlink()
    assert f"rejected/{path.name}: is missing" in first(damaged)


# --- several outputs ------------------------------------------------------------------------------------------------


def as_outputs(source: Path, out: Path, shards: dict[str, list[int]]) -> Path:
    """An output whose `train` is dealt out, by shards, to several outputs. Only ids are right in it."""
    manifest = read(source)
    train = manifest["outputs"].pop("train")
    for name, numbers in shards.items():
        chosen = [train["shards"][n] for n in numbers]
        manifest["outputs"][name] = {**train, "shards": chosen}
        for each in chosen:
            for key in ("path", "documents"):
                (out / name / each[key]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / "train" / each[key], out / name / each[key])
    write(out, manifest)
    return out


@pytest.mark.parametrize("ids_a_pass", [1 << 20, 20])
@pytest.mark.parametrize(
    ("shards", "leaks"),
    [
        ({"train": [0, 1], "val": [0]}, True),
        ({"S1/train": [0], "S2/val": [0]}, True),
        ({"S1/train": [0], "S2/train": [0], "S1/val": [1]}, False),
        ({"train": [0, 1]}, False),
    ],
)
def test_split_leaks(finished, tmp_path, monkeypatch, shards, leaks, ids_a_pass):
    monkeypatch.setattr(split_checks, "_IDS_A_PASS", ids_a_pass)
    out = as_outputs(finished.output, tmp_path, shards)
    from beam_prep.manifest import read_manifest

    # A document is in one shard only, but for copies of its own.
    ids = [set(pq.read_table(sidecar(finished.output, n)).column("id").to_pylist()) for n in (0, 1)]
    leaks = leaks or ("val" in str(shards) and bool(ids[0] & ids[1]))
    findings = split_checks.check_leaks(str(out), read_manifest(str(out)))
    assert bool(findings) == leaks
    if leaks:
        assert "is in both" in findings[0].problem


# --- other runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize(("tail", "length"), [("drop", 333), ("pad", 7), ("drop", 20)])
def test_outputs_of_other_settings(finished, tmp_path, monkeypatch, tail, length, packing):
    monkeypatch.setattr(balance, "MIN_BUCKET_TOKENS", 1500)
    monkeypatch.setattr(balance, "MAX_BUCKET_TOKENS", 1500)
    text = finished.config.read_text() + f"tail: {tail}\npacking: {packing}\n"
    config = parse_config(text, overrides={"output": str(tmp_path / "out"), "context_length": length})
    run(prepare(config, RunOptions()))
    train = read(tmp_path / "out")["outputs"]["train"]
    assert (train["dropped_tokens"] > 0) == (tail == "drop")
    assert (train["padding"] > 0) == (tail == "pad" or packing == "best_fit")
    assert verify(str(tmp_path / "out")) == []


# --- the command ----------------------------------------------------------------------------------------------------


def test_command(finished, damaged):
    invoke = CliRunner().invoke
    result = invoke(cli, ["verify", str(finished.output)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "sequences" in result.stdout and "every token" in result.stdout
    result = invoke(cli, ["verify", str(finished.output), "--quick"])
    assert result.exit_code == 0 and "tokens not read" in result.stdout

    shard(damaged).unlink()
    result = invoke(cli, ["verify", str(damaged)])
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith(f"error: {damaged}/train/tokenized-samples/part-00000-of-")
    result = invoke(cli, ["verify", str(damaged), "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert not report["ok"] and report["findings"][0]["problem"] == "is missing"

    result = invoke(cli, ["verify", str(damaged / "nothing")])
    assert result.exit_code == 2 and result.stderr.startswith("error: ")
