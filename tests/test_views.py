"""Views: shorter sequences over the same shards, read by data-forager, held against the shards by verify."""

import json
import logging
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from apache_beam.io.filesystem import FileMetadata, FileSystem
from click.testing import CliRunner
from conftest import write_small_data
from hypothesis import given
from hypothesis import strategies as st
from results import manifest_of, sequences_by_forager

from beam_prep import balance, index
from beam_prep.cli import cli
from beam_prep.config import load_config
from beam_prep.errors import ConfigError
from beam_prep.index import read_index, sample_locations
from beam_prep.launch import AlreadyDone, RunOptions, prepare, run
from beam_prep.manifest import read_manifest
from beam_prep.verification import verify
from beam_prep.views import choose, divisors_near, fitting, refusal, view_lengths, write_view


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["view", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def by_forager(folder: Path, index: str) -> np.ndarray:
    """Every sequence of one index, through data-forager's own class."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    from data_forager.datasets.tokens import TokensDataset

    root.setLevel(level)
    root.handlers[:] = handlers
    dataset = TokensDataset.create_from_index_on_filesystem(str(folder), index_data_folder=index, token_dtype=np.uint32)
    return np.stack([dataset[n] for n in range(len(dataset))])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- which lengths -----


@given(st.integers(2, 3000), st.integers(1, 3000))
def test_divisors_near_against_all_divisors(number: int, wanted: int) -> None:
    divisors = [n for n in range(1, number) if number % n == 0]
    expected = [max((n for n in divisors if n <= wanted), default=None)]
    expected += [min((n for n in divisors if n > wanted), default=None)]
    assert divisors_near(number, wanted) == [n for n in expected if n is not None]


@given(st.integers(2, 500), st.integers(1, 600))
def test_a_length_is_refused_or_divides(context_length: int, length: int) -> None:
    reason = refusal(context_length, length)
    assert (reason is None) == (length < context_length and context_length % length == 0)
    assert fitting([length, length], context_length) == ([] if reason else [length])


def test_reasons() -> None:
    assert refusal(32768, 4096) is None
    assert "no multiple of 5000; the nearest that divide it: 4096 and 8192" in refusal(32768, 5000)
    assert "the nearest that divide it: 1" in refusal(7, 3)
    assert "those of a view are shorter" in refusal(4096, 4096)
    assert "those of a view are shorter" in refusal(4096, 32768)


class Entry:
    def __init__(self, context_length: int):
        self.context_length = context_length


STAGES = {"S1/train": Entry(4096), "S1/val": Entry(4096), "S3/train": Entry(32768), "S3/val": Entry(32768)}


def test_outputs_of_several_lengths() -> None:
    chosen, left_out = choose(STAGES, [], 4096)
    assert chosen == ["S3/train", "S3/val"]
    assert [name for name, _ in left_out] == ["S1/train", "S1/val"]
    assert choose(STAGES, [], 1024) == (list(STAGES), [])
    assert choose(STAGES, ["S3/val", "S3/val"], 4096) == (["S3/val"], [])


@pytest.mark.parametrize(
    ("names", "length", "words"),
    [
        ([], 32768, ["'S1/train'", "'S3/val'", "shorter"]),
        ([], 3000, ["no view of 3000", "2048 and 4096", "'S1/val'"]),
        (["S1/train"], 4096, ["output 'S1/train'", "shorter"]),
        (["S3/train", "S1/train"], 4096, ["output 'S1/train'"]),
        (["S2/train"], 1024, ["'S2/train' is not there", "S3/val"]),
    ],
)
def test_outputs_that_cannot_be_chosen(names: list[str], length: int, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        choose(STAGES, names, length)
    assert all(word in error.value.message for word in words)


# --- what is written -----


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(1, 6), st.integers(2, 9), st.integers(1, 7))
def test_against_the_index_of_shorter_sequences(
    tmp_path: Path, counts: list[int], length: int, times: int, rows: int
) -> None:
    """A view is the index of an output that had been packed so, in whatever pieces it is written."""
    paths = [f"tokenized-samples/part-{n}.bin" for n in range(len(counts))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_ROWS", rows)
        assert write_view(str(tmp_path), paths, counts, length * times, length) == sum(counts) * times
    found_paths, found = read_index(str(tmp_path), f"index-{length}")
    assert found_paths == paths
    assert (found == sample_locations([n * times for n in counts], 4 * length)).all()


def test_offsets_beyond_four_gibibytes(tmp_path: Path) -> None:
    write_view(str(tmp_path), ["a", "b"], [1, 3], 2**30, 2**29)
    assert read_index(str(tmp_path), f"index-{2**29}")[1][-1].tolist() == [1, 5 * 2**31, 2**31]


def test_a_length_that_does_not_divide_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no multiple of 5"):
        write_view(str(tmp_path), ["a"], [1], 64, 5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [1, 2, 16, 32])
def test_the_command(damaged: Path, length: int) -> None:
    before = files_of(damaged)
    assert call(damaged, "--context-length", length)[0] == 0
    written = files_of(damaged)
    assert {p.split("/")[1] for p in written.keys() - before.keys()} == {f"index-{length}"}
    assert all(written[path] == data for path, data in before.items())  # manifest and _SUCCESS among them
    stored = sequences_by_forager(damaged / "train")
    if length > 1:  # of one token each they are many
        assert (by_forager(damaged / "train", f"index-{length}") == stored.reshape(-1, length)).all()
    assert verify(str(damaged)) == []
    assert call(damaged, "--context-length", length)[0] == 0
    assert files_of(damaged) == written


def test_what_the_command_says(damaged: Path, tmp_path: Path) -> None:
    code, out, err = call(damaged, "--context-length", 16, "--context-length", 32)
    assert (code, err) == (0, "")
    assert f"{damaged}/train/index-16: " in out and "sequences of 16" in out and 'index_data_folder="index-32"' in out
    for arguments, words in (
        (["--context-length", 48], "nearest that divide it: 32"),
        (["--context-length", 64], "those of a view are shorter"),
        (["--context-length", 16, "--output", "val"], "there is train"),
        ([], "give --context-length N, --for TRAINER, or both"),
        (["--context-length", 0], "0 is not in the range"),
    ):
        code, out, err = call(damaged, *arguments)
        assert code == 2 and words in err and not out
    assert call(tmp_path / "none", "--context-length", 16)[0] == 2
    # Nothing is written if one of several lengths is refused.
    assert call(damaged, "--context-length", 8, "--context-length", 48)[0] == 2
    assert not (damaged / "train/index-8").exists()
    (damaged / "_SUCCESS").write_text("0" * 64)
    code, _, err = call(damaged, "--context-length", 8)
    assert code == 1 and "is not finished" in err


def test_outputs_that_the_command_skips(damaged: Path) -> None:
    """`train` twice, the second as if it were of another length."""
    manifest = manifest_of(damaged)
    manifest["outputs"]["S3/train"] = {**manifest["outputs"]["train"], "context_length": 16}
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = call(damaged, "--context-length", 16)
    assert code == 0 and "skipped S3/train: its sequences have 16 tokens" in out
    assert (damaged / "train/index-16").is_dir() and not (damaged / "S3").exists()
    code, out, _ = call(damaged, "--context-length", 8, "--output", "S3/train")
    assert code == 0 and (damaged / "S3/train/index-8").is_dir() and not (damaged / "train/index-8").exists()


# --- asked for by the configuration -----


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages with `views`; the folder of its data."""
    folder = tmp_path_factory.mktemp("viewed")
    config = write_small_data(folder)
    stages = "[{name: S1, context_length: 16}, {name: S3, context_length: 64}]"
    config.write_text(config.read_text() + f"views: [32, 8, 32]\nsplits: {{train: 0.8, val: 0.2}}\nstages: {stages}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "MIN_BUCKET_TOKENS", 1500)
        patch.setattr(balance, "MAX_BUCKET_TOKENS", 1500)
        run(prepare(load_config(str(config)), RunOptions(), folder))
    return folder


def test_views_of_the_configuration(viewed: Path) -> None:
    out = viewed / "out"
    wanted = {"S1/train": [8], "S1/val": [8], "S3/train": [32, 8], "S3/val": [32, 8]}
    assert {name: entry["views"] for name, entry in manifest_of(out)["outputs"].items()} == wanted
    for name, lengths in wanted.items():
        folder = out / name
        assert sorted(p.name for p in folder.glob("index*")) == sorted(["index", *(f"index-{n}" for n in lengths)])
        for length in lengths:
            stored = sequences_by_forager(folder)
            assert (by_forager(folder, f"index-{length}") == stored.reshape(-1, length)).all()
    assert verify(str(out)) == []
    with pytest.raises(AlreadyDone):
        prepare(load_config(str(viewed / "small.yaml")), RunOptions(), viewed)


def test_a_view_of_the_configuration_must_be_there(viewed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(viewed / "out", tmp_path / "out"))
    shutil.rmtree(out / "S3/val/index-32")
    found = verify(str(out), quick=True)
    assert [f.place for f in found] == [f"S3/val/index-32/{n}" for n in ("file_location.txt", "sample_locations.bin")]
    assert "is missing; `beam-prep view OUT --context-length 32` writes it again" in found[0].problem
    assert call(out, "--context-length", 32)[0] == 0
    assert verify(str(out)) == []
    assert files_of(out) == files_of(viewed / "out")


def test_overwrite_takes_views_away(finished, damaged: Path) -> None:
    assert call(damaged, "--context-length", 8, "--for", "datatrove")[0] == 0
    config = load_config(str(finished.config), {"output": str(damaged), "seed": 4})
    prepare(config, RunOptions(overwrite=True), finished.config.parent)
    assert not (damaged / "train").exists()


def test_no_views_are_recorded_as_none(finished) -> None:
    assert manifest_of(finished.output)["outputs"]["train"]["views"] == []


# --- what verify finds -----


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-24])


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 24)


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["file_location.txt", "sample_locations.bin"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "is missing"),
        (_cut, "but the shards need more"),
        (_grow, "bytes that the shards need"),
        (_change, "differs from what the shards need at byte"),
        (lambda path: path.write_bytes(b""), "ends after 0 bytes"),
    ],
)
def test_damaged_views(damaged: Path, file: str, damage, words: str) -> None:
    call(damaged, "--context-length", 16)
    damage(damaged / "train/index-16" / file)
    found = verify(str(damaged), quick=True)
    assert [f.place for f in found] == [f"train/index-16/{file}"]
    assert words in found[0].problem
    assert call(damaged, "--context-length", 16)[0] == 0
    assert verify(str(damaged), quick=True) == []


def test_every_changed_byte_is_found(damaged: Path) -> None:
    call(damaged, "--context-length", 32)
    path = damaged / "train/index-32/sample_locations.bin"
    data = path.read_bytes()
    for at in (0, 7, 8, 23, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        (finding,) = verify(str(damaged), quick=True)
        assert f"at byte {at};" in finding.problem


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("index-48", "can be no view"),
        ("index-64", "can be no view"),
        ("index-128", "can be no view"),
        ("index-016", "belongs to no shard"),
        ("index-16b", "belongs to no shard"),
    ],
)
def test_folders_that_are_no_views(damaged: Path, folder: str, words: str) -> None:
    shutil.copytree(damaged / "train/index", damaged / "train" / folder)
    findings = verify(str(damaged), quick=True)
    assert findings and words in findings[0].problem and folder in findings[0].place


def test_foreign_files_in_a_view(damaged: Path) -> None:
    call(damaged, "--context-length", 16)
    (damaged / "train/index-16/more").write_text("x")
    (finding,) = verify(str(damaged), quick=True)
    assert finding.place == "train/index-16/more" and "belongs to no shard" in finding.problem


@pytest.mark.parametrize("value", ["8", [8], {"a": 1}, [0, -1, "8"]])
def test_a_manifest_with_other_views(damaged: Path, value: object) -> None:
    manifest = manifest_of(damaged)
    manifest["configuration"]["views"] = value
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    first, *found = verify(str(damaged), quick=True)
    assert first.place == "manifest.json" and "has changed" in first.problem
    assert bool(found) == (value == [8])


def test_lengths_of_another_output() -> None:
    paths = [
        "S1/train/index-8/a",
        "S1/train/index-16/a",
        "S3/train/index-32/a",
        "xS1/train/index-4/a",
        "S1/train/index-2",
    ]
    assert view_lengths("S1/train", paths) == [8, 16]


# --- elsewhere than on a disk -----


class KeptFileSystem(FileSystem):
    """Beam's interface over a dict; objects appear on close, as in an object store."""

    kept: dict[str, bytes] = {}

    @classmethod
    def scheme(cls) -> str:
        return "kept"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path: str) -> None:
        return None

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path, data in sorted(self.kept.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(data), 0.0)

    def create(self, path: str, mime_type: str = "", compression_type: str = "") -> BytesIO:
        kept = self.kept

        class Writer(BytesIO):
            def close(self) -> None:
                if not self.closed:
                    kept[path] = self.getvalue()
                super().close()

        return Writer()

    def open(self, path: str, mime_type: str = "", compression_type: str = "") -> BytesIO:
        return BytesIO(self.kept[path])

    def exists(self, path: str) -> bool:
        return path in self.kept

    def size(self, path: str) -> int:
        return len(self.kept[path])

    def last_updated(self, path: str) -> float:
        return 0.0

    def checksum(self, path: str) -> str:
        return ""

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, self.size(path), 0.0)

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise NotImplementedError

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise NotImplementedError

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            del self.kept[path]


@pytest.fixture
def remote(finished) -> Iterator[dict[str, bytes]]:
    """The finished output as objects below `kept://out/`, by path."""
    KeptFileSystem.kept.clear()
    KeptFileSystem.kept.update({f"kept://out/{p}": data for p, data in files_of(finished.output).items()})
    yield KeptFileSystem.kept
    KeptFileSystem.kept.clear()


def test_in_an_object_store(remote: dict[str, bytes], damaged: Path) -> None:
    assert verify("kept://out") == []
    code, out, err = call("kept://out", "--context-length", 16, "--for", "megatron", "--for", "datatrove")
    assert code == 0, err
    call(damaged, "--context-length", 16, "--for", "megatron", "--for", "datatrove")
    local = files_of(damaged)
    beside = {
        path: data for path, data in remote.items() if path.removeprefix("kept://out/") not in local
    }  # datatrove's, which are elsewhere on a disk
    assert len(beside) == sum(path.endswith(".ds.index") for path in local) > 3
    for path, data in beside.items():
        name = path.removeprefix("kept://out/train/tokenized-samples/").removesuffix(".bin.index")
        assert data == local[f"train/datatrove/{name}.ds.index"]
    assert all(local[p.removeprefix("kept://out/")] == data for p, data in remote.items() if p not in beside)
    assert verify("kept://out") == []
    for path in (next(iter(beside)), "kept://out/train/index-16/sample_locations.bin"):
        data = remote[path]
        remote[path] = data[:-1] + b"\xff"
        assert [f"kept://out/{f.place}" for f in verify("kept://out")] == [path]
        remote[path] = data
    code, _, err = call("kept://out", "--for", "olmo")
    assert code == 2 and "an object store has none" in err
    assert read_manifest("kept://out").outputs["train"].sequences
