"""Resume: what is found again is whole and fits; the rest is made again, and the bytes are the same."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_job import CONFIG, contents, make_small, prepared, start, write_inputs
from steps import Doc, make_run

from beam_prep import output_steps, resume, storage, tokenization
from beam_prep.carrier import Carrier
from beam_prep.launch import run
from beam_prep.resume import FinishedRun, finished_runs, keep_run
from beam_prep.runs import run_digest, run_name
from beam_prep.sources import Position

pytestmark = pytest.mark.usefixtures("no_report")

UNIT = "00ff00ff00ff00ff"


class Killed(Exception):
    """Stands for a process that ends at this place."""


@pytest.fixture
def carrier(tmp_path: Path) -> Carrier:
    return Carrier(str(tmp_path / "work"))


@pytest.fixture
def cut_power(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the machine one that was started again."""
    boots = iter(range(9))

    def cut() -> None:
        boot = f"boot {next(boots)}"
        monkeypatch.setattr(resume, "_boot", lambda: boot)

    return cut


def keep(carrier: Carrier, number: int, end: int, last: bool = False) -> FinishedRun:
    """A run on disk, with its record."""
    docs = [Doc(0, 0, 1000 * number + n, f"document {number} {n}") for n in range(5)]
    made = make_run(carrier, run_name(0, UNIT, number), docs)
    finished = FinishedRun(made, Position(0, end), last)
    keep_run(carrier, finished, run_digest(made))
    return finished


def payload(carrier: Carrier, number: int, kind: str) -> Path:
    assert carrier.work
    return Path(carrier.work, "runs", f"{run_name(0, UNIT, number)}.{kind}")


class TestRuns:
    """Records of runs."""

    def test_found_as_they_were(self, carrier: Carrier) -> None:
        assert finished_runs(carrier, 0, UNIT) == []
        kept = [keep(carrier, n, 100 * (n + 1), n == 2) for n in range(3)]
        assert finished_runs(carrier, 0, UNIT) == kept
        assert finished_runs(carrier, 1, UNIT) == []
        assert finished_runs(carrier, 0, "another unit") == []
        assert finished_runs(Carrier(None), 0, UNIT) == []

    def test_none_behind_a_gap(self, carrier: Carrier) -> None:
        kept = [keep(carrier, n, 100 * (n + 1)) for n in range(4)]
        payload(carrier, 2, "run").unlink()
        assert finished_runs(carrier, 0, UNIT) == kept[:2]

    def test_none_that_begins_elsewhere(self, carrier: Carrier) -> None:
        """A run is made again and ends elsewhere than before: the next one, of the earlier attempt, does not fit."""
        kept = [keep(carrier, n, 100 * (n + 1)) for n in range(4)]
        again = keep(carrier, 1, 190)
        assert finished_runs(carrier, 0, UNIT) == [kept[0], again]
        then = keep(carrier, 2, 300)
        assert finished_runs(carrier, 0, UNIT) == [kept[0], again, then, kept[3]]

    def test_none_without_the_one_before_it(self, carrier: Carrier) -> None:
        keep(carrier, 1, 200)
        first = keep(carrier, 0, 100)
        assert finished_runs(carrier, 0, UNIT) == [first]

    @pytest.mark.parametrize("kind", ["tokens", "entries", "files", "rejects"])
    def test_none_whose_files_are_cut_or_gone(self, carrier: Carrier, kind: str) -> None:
        first, _ = keep(carrier, 0, 100), keep(carrier, 1, 200)
        path = payload(carrier, 1, kind)
        path.write_bytes(path.read_bytes() + b"more")
        assert finished_runs(carrier, 0, UNIT) == [first]
        path.unlink()
        assert finished_runs(carrier, 0, UNIT) == [first]

    @pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 300])
    def test_no_damaged_record(self, carrier: Carrier, damage: bytes) -> None:
        first, _ = keep(carrier, 0, 100), keep(carrier, 1, 200)
        payload(carrier, 1, "run").write_bytes(damage)
        assert finished_runs(carrier, 0, UNIT) == [first]

    def test_no_record_that_somebody_changed(self, carrier: Carrier) -> None:
        keep(carrier, 0, 100)
        path = payload(carrier, 0, "run")
        data = path.read_bytes()
        assert b'"last":false' in data
        path.write_bytes(data.replace(b'"last":false', b'"last":true '))
        assert finished_runs(carrier, 0, UNIT) == []

    def test_no_record_of_another_format(self, carrier: Carrier, monkeypatch: pytest.MonkeyPatch) -> None:
        keep(carrier, 0, 100)
        monkeypatch.setattr(resume, "_FORMAT", resume._FORMAT + 1)
        assert finished_runs(carrier, 0, UNIT) == []

    def test_after_a_power_cut_only_what_is_intact(self, carrier: Carrier, cut_power: Callable[[], None]) -> None:
        kept = [keep(carrier, n, 100 * (n + 1)) for n in range(3)]
        path = payload(carrier, 1, "tokens")
        path.write_bytes(bytes(path.stat().st_size))  # as if the pages had not reached the disk
        assert finished_runs(carrier, 0, UNIT) == kept  # the same boot: nothing can have been lost
        cut_power()
        assert finished_runs(carrier, 0, UNIT) == kept[:1]
        path = payload(carrier, 0, "tokens")
        path.write_bytes(bytes(path.stat().st_size))
        assert finished_runs(carrier, 0, UNIT) == kept[:1]  # found intact in this boot
        cut_power()
        assert finished_runs(carrier, 0, UNIT) == []

    def test_without_a_boot_id_nothing_is_believed_unseen(
        self, carrier: Carrier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resume, "_boot", lambda: None)
        kept = keep(carrier, 0, 100)
        assert finished_runs(carrier, 0, UNIT) == [kept]
        path = payload(carrier, 0, "tokens")
        path.write_bytes(bytes(path.stat().st_size))
        assert finished_runs(carrier, 0, UNIT) == []

    def test_moved_and_copied(self, carrier: Carrier, tmp_path: Path) -> None:
        keep(carrier, 0, 100)
        assert carrier.work
        moved = Carrier(str(tmp_path / "moved"))
        shutil.copytree(carrier.work, tmp_path / "moved")
        found = finished_runs(moved, 0, UNIT)[0].run
        assert found.tokens.path.startswith(moved.work)  # not those of the folder that it is a copy of
        assert run_digest(found) == run_digest(finished_runs(carrier, 0, UNIT)[0].run)


# --- the whole job --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        start(CONFIG.format(folder=folder), folder / "base")
    files = contents(folder / "base")
    assert sum("tokenized-samples" in name for name in files) >= 5
    return files


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def fail_at(patch: pytest.MonkeyPatch, where: Any, name: str, number: int, after: bool) -> list[int]:
    """Has the `number`-th call of a function fail, before or after its work; returns a list with a place a call."""
    function = getattr(where, name)
    calls: list[int] = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == number and not after:
            raise Killed
        result = function(*args, **kwargs)
        if len(calls) == number:
            raise Killed
        return result

    patch.setattr(where, name, failing)
    return calls


def killed(config: str, out: Path, where: Any, name: str, number: int, after: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, where, name, number, after)
        with pytest.raises(Exception, match="Killed"):
            start(config, out)
    assert not (out / "_SUCCESS").exists()


@pytest.fixture(scope="module")
def halfway(folder: Path) -> Path:
    """An output whose run was killed when it had given back the tokens of three shards."""
    out = folder / "halfway"
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        killed(CONFIG.format(folder=folder), out, output_steps, "give_back", 3, True)
    return out


@pytest.fixture
def begun(halfway: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test to go on with."""
    return Path(shutil.copytree(halfway, tmp_path / "out"))


def test_killed_while_shards_are_written(folder: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """Some sources are written once (their tokens are given back), one is not; shards hold documents of both."""
    config, out = CONFIG.format(folder=folder), tmp_path / "out"
    killed(config, out, output_steps, "write_shard", 2, True)  # a shard without its record
    killed(config, out, resume, "keep_shard", 2, True)  # its record, and its tokens are still there
    killed(config, out, output_steps, "give_back", 4, True)  # which is called for shards that are found, too
    assert len(list(out.glob(".work/shards/*"))) == 4
    with pytest.MonkeyPatch.context() as patch:
        written = fail_at(patch, output_steps, "write_shard", -1, False)
        encoded = fail_at(patch, tokenization, "RunBuilder", -1, False)
        run(prepared(config, out))
    assert contents(out) == undisturbed
    assert len(written) == sum("tokenized-samples" in name for name in undisturbed) - 4
    assert encoded == []  # nothing is tokenized twice


def test_a_power_cut_while_shards_are_written(
    folder: Path, undisturbed: dict[str, str], begun: Path, cut_power: Callable[[], None]
) -> None:
    config, out = CONFIG.format(folder=folder), begun
    cut_power()
    killed(config, out, tokenization, "keep_run", 4, True)  # some runs are those of the first attempt, some of this one
    cut_power()
    start(config, out)
    assert contents(out) == undisturbed


def test_a_power_cut_after_all_was_forced_to_the_disk(
    folder: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
    cut_power: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then nothing is tokenized again, though the tokens of finished shards are given back."""
    monkeypatch.setattr(resume, "SETTLE_BYTES", 1)
    config, out = CONFIG.format(folder=folder), tmp_path / "out"
    killed(config, out, output_steps, "give_back", 3, True)
    cut_power()
    with pytest.MonkeyPatch.context() as patch:
        encoded = fail_at(patch, tokenization, "RunBuilder", -1, False)
        killed(config, out, output_steps, "give_back", 5, True)
        assert encoded == []
    sorted(out.glob("*/tokenized-samples/*.bin"))[0].unlink()
    cut_power()
    made = prepared(config, out)
    assert made.claim.lost == 1
    assert not (out / ".work" / "settled").exists()  # what is made again is not on the disk yet
    run(made)
    assert contents(out) == undisturbed


def test_finished_shards_that_are_lost(
    folder: Path, undisturbed: dict[str, str], halfway: Path, tmp_path: Path
) -> None:
    """Their tokens are given back: they are made again."""
    config = CONFIG.format(folder=folder)
    for damage in ("deleted", "changed", "record"):
        out = Path(shutil.copytree(halfway, tmp_path / damage))
        shard = sorted(out.glob("*/tokenized-samples/*.bin"))[0]
        if damage == "deleted":
            shard.unlink()
        elif damage == "changed":
            shard.write_bytes(bytes(shard.stat().st_size))
        else:
            sorted(out.glob(".work/shards/*"))[0].write_bytes(b"nothing")
        made = prepared(config, out)
        assert made.claim.resumed
        assert made.claim.lost == 1
        assert not list(out.glob(".work/runs/*.run"))
        assert made.claim.lock is not None
        made.claim.lock.release()
    start(config, out)
    assert contents(out) == undisturbed


def test_a_moved_output(folder: Path, undisturbed: dict[str, str], begun: Path, tmp_path: Path) -> None:
    config, out = CONFIG.format(folder=folder), begun
    shutil.copytree(out, tmp_path / "copied")
    shutil.move(out, tmp_path / "moved")
    for name in ("moved", "copied"):
        made = prepared(config, tmp_path / name)
        assert made.claim.resumed
        assert made.claim.lost == 0
        run(made)
        assert contents(tmp_path / name) == undisturbed


def test_another_configuration_is_never_mixed_in(folder: Path, undisturbed: dict[str, str], begun: Path) -> None:
    config, out = CONFIG.format(folder=folder), begun
    other = prepared(config, out, seed=9)
    assert other.claim.replaced
    assert not other.claim.resumed
    assert not storage.list_files(f"{out}/.work/runs")
    assert other.claim.lock is not None
    other.claim.lock.release()
    start(config, out)
    assert contents(out) == undisturbed


def test_fresh_starts_over(folder: Path, undisturbed: dict[str, str], begun: Path) -> None:
    config, out = CONFIG.format(folder=folder), begun
    made = prepared(config, out, fresh=True)
    assert not made.claim.resumed
    assert not storage.list_files(f"{out}/.work/runs")
    run(made)
    assert contents(out) == undisturbed
