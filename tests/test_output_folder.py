"""The output's folder: whose it is, what is cleared away, who may write into it."""

import json
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from filelock import FileLock
from small_job import prepared

from beam_prep import output_folder, storage
from beam_prep.errors import BeamPrepError
from beam_prep.launch import Prepared
from beam_prep.output_folder import AlreadyDone


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    return f"context_length: 32\ndatasets:\n  - {{name: one, text_field: text, input: {tmp_path}/one.jsonl}}\n"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def let_go(made: Prepared) -> Prepared:
    """As if the process had ended."""
    assert made.claim.lock is not None
    made.claim.lock.release()
    return made


def finish(made: Prepared, outputs: list[str]) -> None:
    """Puts there what a finished run leaves, and its work folder."""
    out = Path(made.job.output)
    for name in outputs:
        storage.write_bytes(str(out / name / "tokenized-samples" / "part-00000-of-00001.bin"), [b"tokens"])
    (out / "manifest.json").write_text(json.dumps({"outputs": dict.fromkeys(outputs, {})}))
    (out / "_SUCCESS").write_text(made.job.fingerprint + "\n")


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_a_second_run_is_refused(config: str, out: Path) -> None:
    first = prepared(config, out)
    storage.write_bytes(f"{out}/.work/runs/0000-a-00000.run", [b"of the first"])
    storage.write_bytes(f"{out}/train/tokenized-samples/part.bin.01234567.tmp", [b"just being written"])
    before = files(out)
    for more in ({}, {"fresh": True}, {"overwrite": True}, {"seed": 5}):
        with pytest.raises(BeamPrepError, match="another run is writing there"):
            prepared(config, out, **more)
        assert files(out) == before
    let_go(first)
    assert let_go(prepared(config, out)).claim.resumed


def test_a_run_that_ends_while_another_one_waits_for_its_lock(
    config: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = let_go(prepared(config, out))
    take = output_folder._take

    def finish_then_take(output: str, work: str) -> FileLock | None:
        finish(first, ["train"])
        return take(output, work)

    monkeypatch.setattr(output_folder, "_take", finish_then_take)
    with pytest.raises(AlreadyDone):
        prepared(config, out)
    assert not (out / ".work").exists()
    assert (out / "_SUCCESS").exists()


def test_a_file_system_without_locks(config: str, out: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert prepared(config, out).claim.lock is None
    assert "no locks" in caplog.text


@pytest.mark.parametrize(
    "torn",
    [
        "manifest.json.0123abcd.tmp",
        "_SUCCESS.0123abcd.tmp",
        "run.json.0123abcd.tmp",
        ".probe-0123abcd.tmp",
        "train/index/file_location.txt.0123abcd.tmp",
        "rejected/one-00000.jsonl.gz.0123abcd.tmp",
        ".work/runs/0000-a-00000.tokens.0123abcd.tmp",
        ".work/claim.json.0123abcd.tmp",
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_torn_files_are_ours_and_go(config: str, out: Path, torn: str, fresh: bool) -> None:
    let_go(prepared(config, out))
    storage.write_bytes(f"{out}/{torn}", [b"half"])
    let_go(prepared(config, out, fresh=fresh))
    assert files(out) == {".work/lock", ".work/claim.json"}


@pytest.mark.parametrize("name", ["thesis.tex", "thesis.tex.0123abcd.tmp", "manifest.json.tmp", "x.probe-0123abcd.tmp"])
def test_what_is_not_ours_is_refused_and_left(config: str, out: Path, name: str) -> None:
    out.mkdir()
    (out / name).write_text("precious")
    with pytest.raises(BeamPrepError, match="not this project's"):
        prepared(config, out)
    assert files(out) == {name}
    let_go(prepared(config, out, overwrite=True))
    assert (out / name).read_text() == "precious"


def test_what_a_killed_run_left_behind_its_end_goes(config: str, out: Path) -> None:
    """Killed after `_SUCCESS`, before the work folder was gone."""
    first = let_go(prepared(config, out))
    finish(first, ["train"])
    storage.write_bytes(f"{out}/.work/runs/0000-a-00000.tokens", [b"spilled"])
    with pytest.raises(AlreadyDone):
        prepared(config, out)
    assert files(out) == {"_SUCCESS", "manifest.json", "train/tokenized-samples/part-00000-of-00001.bin"}


def test_a_run_that_is_just_ending_is_left_alone(config: str, out: Path) -> None:
    first = prepared(config, out)
    finish(first, ["train"])
    with pytest.raises(AlreadyDone):
        prepared(config, out)
    assert (out / ".work" / "claim.json").exists()
    let_go(first)


@pytest.mark.parametrize("killed_after", [None, *range(5)])
def test_overwriting_other_outputs(
    config: str, out: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int | None
) -> None:
    """Nothing of the outputs before stays, whenever the run is killed that replaces them."""
    finish(let_go(prepared(config, out)), ["S1/train", "S2/train", "S2/val"])
    storage.delete(f"{out}/.work")
    with pytest.raises(BeamPrepError, match="--overwrite"):
        prepared(config, out, seed=1)
    if killed_after is not None:
        deleted = []

        def delete(path: str) -> None:
            deleted.append(path)
            if len(deleted) > killed_after:
                raise KeyboardInterrupt
            storage_delete(path)

        storage_delete: Callable[[str], None] = storage.delete
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "delete", delete)
            with pytest.raises(KeyboardInterrupt):
                prepared(config, out, seed=1, overwrite=True)
        assert killed_after == 0 or not (out / "_SUCCESS").exists()
    # Killed before `_SUCCESS` was gone, it is still the run before, which must be replaced knowingly.
    made = let_go(prepared(config, out, seed=1, overwrite=killed_after in (None, 0)))
    assert not made.claim.resumed
    assert files(out) == {".work/lock", ".work/claim.json"}


def test_a_damaged_claim_is_none(config: str, out: Path) -> None:
    let_go(prepared(config, out))
    (out / ".work" / "claim.json").write_bytes(b"{")
    made = let_go(prepared(config, out))
    assert not made.claim.resumed
    assert orjson.loads((out / ".work" / "claim.json").read_bytes())["fingerprint"] == made.job.fingerprint


def test_a_damaged_success_is_of_another_run(config: str, out: Path) -> None:
    out.mkdir()
    (out / "_SUCCESS").write_bytes(b"\xff\xfe")
    with pytest.raises(BeamPrepError, match="--overwrite"):
        prepared(config, out)


def test_a_link_is_taken_away_not_followed(config: str, out: Path, tmp_path: Path) -> None:
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("precious")
    (out / "train").symlink_to(tmp_path / "elsewhere")
    (out / "rejected").symlink_to(tmp_path / "nowhere")
    let_go(prepared(config, out, overwrite=True))
    assert (tmp_path / "elsewhere" / "file").exists()
    assert files(out) == {".work/lock", ".work/claim.json"}
    assert not (out / "rejected").is_symlink()
