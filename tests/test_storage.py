"""Local files: they appear whole or not at all, and are found by any pattern."""

import threading
from pathlib import Path

import pytest

from beam_prep import storage
from beam_prep.errors import BeamPrepError


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestWriteAtomic:
    """Files under construction."""

    @pytest.mark.parametrize("durable", [True, False])
    def test_appears_when_it_is_complete(self, tmp_path: Path, durable: bool) -> None:
        path = tmp_path / "a" / "b" / "file"
        with storage.write_atomic(str(path), durable) as file:
            file.write(b"half")
            file.flush()
            assert not path.exists()
            file.write(b" and half")
        assert path.read_bytes() == b"half and half"
        assert names(tmp_path) == ["a/b/file"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
    def test_a_failure_leaves_what_was_there(self, tmp_path: Path, error: type[BaseException]) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"before")
        with pytest.raises(error), storage.write_atomic(str(path)) as file:
            file.write(b"after")
            raise error
        assert path.read_bytes() == b"before"
        assert names(tmp_path) == ["file"]

    def test_two_writers_of_one_file(self, tmp_path: Path) -> None:
        """A runner may do a step twice at the same time; whoever is last, the file is whole."""
        path = tmp_path / "file"
        content = b"0123456789" * 50_000
        barrier = threading.Barrier(4)

        def write() -> None:
            barrier.wait()
            storage.write_bytes(str(path), [content[:1000], content[1000:]])

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path.read_bytes() == content
        assert names(tmp_path) == ["file"]

    def test_written_through_to_the_disk(self, tmp_path: Path) -> None:
        chunks = [bytes([n]) * (5 << 20) for n in range(9)]
        with storage.write_atomic(str(tmp_path / "file")) as file:
            storage.write_through(file, iter(chunks))
        assert storage.size(str(tmp_path / "file")) == 45 << 20
        assert storage.read_bytes(str(tmp_path / "file")) == b"".join(chunks)


class TestFiles:
    """Looking, listing, deleting."""

    def test_size_and_existence(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"abc")
        assert storage.size(f"{tmp_path}/file") == 3
        assert storage.size(f"{tmp_path}/none") is None
        assert storage.size(str(tmp_path)) is None
        assert storage.exists(f"{tmp_path}/file")
        assert not storage.exists(f"{tmp_path}/none")

    def test_list_and_delete(self, tmp_path: Path) -> None:
        for name in ("a/b/c", "a/d", "e"):
            storage.write_bytes(f"{tmp_path}/{name}", [b"x"])
        assert [found.path for found in storage.list_files(f"{tmp_path}/a")] == [f"{tmp_path}/a/b/c", f"{tmp_path}/a/d"]
        storage.delete(f"{tmp_path}/a")
        storage.delete(f"{tmp_path}/none")
        storage.delete(f"{tmp_path}/e")
        assert names(tmp_path) == []

    @pytest.mark.parametrize(("base", "joined"), [("a", "a/b/c"), ("a/", "a/b/c"), ("gs://x", "gs://x/b/c")])
    def test_join(self, base: str, joined: str) -> None:
        assert storage.join(base, "b", "c") == joined

    def test_a_folder_that_can_be_written(self, tmp_path: Path) -> None:
        storage.require_writable(f"{tmp_path}/a/b")
        assert names(tmp_path) == []
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(BeamPrepError, match="cannot be written"):
            storage.require_writable(f"{tmp_path}/file")
