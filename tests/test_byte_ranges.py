"""Ranges from object stores: gs:// by a stub that speaks its protocol, other schemes through Beam's file systems."""

import http.server
import json
import os
import pickle
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from apache_beam.io.localfilesystem import LocalFileSystem
from fake_output import FakeOutput, write_fake

from beam_prep import PackedDataset, byte_ranges
from beam_prep.byte_ranges import RangeReader, default_open_files
from beam_prep.dataset import EXTRAS
from beam_prep.errors import BeamPrepError, ConfigError


class FolderFileSystem(LocalFileSystem):
    """A folder behind a scheme of its own."""

    root: Path

    @classmethod
    def scheme(cls) -> str:
        return "folder"

    def _local(self, path: str) -> str:
        return str(self.root / path.removeprefix("folder://"))

    def open(self, path, *arguments, **options):
        return super().open(self._local(path), *arguments, **options)

    def exists(self, path):
        return super().exists(self._local(path))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeOutput:
    monkeypatch.setattr(FolderFileSystem, "root", tmp_path, raising=False)
    return write_fake(tmp_path / "data/out", [3, 4], 16)


class Requests(http.server.BaseHTTPRequestHandler):
    """Downloads of an object store: whole objects and ranges, 404 for what is not there."""

    def do_GET(self) -> None:
        name = urllib.parse.unquote(self.path.split("/o/")[1].split("?")[0])
        asked = self.headers.get("Range")
        self.server.asked.append((name, asked))
        path = self.server.root / name
        if "/b/bucket/" not in self.path or not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            part = data[int(begin) : int(end) + 1 if end else None]
            status = 206 if part else 416
            content_range = f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}"
            data = part
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 206:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        """An upload in two parts, of its name and its bytes; 412 where it must not replace an object, and would."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        described, data = (part.partition(b"\r\n\r\n")[2][:-2] for part in body.split(b"--" + boundary)[1:3])
        path = self.server.root / json.loads(described)["name"]
        refused = query.get("ifGenerationMatch") == ["0"] and path.exists()
        answer = json.dumps({"error": {"message": "there is one"}} if refused else {"name": path.name}).encode()
        if not refused:
            path.write_bytes(data)
        self.send_response(412 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    """A store whose bucket `bucket` is a folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    server.root, server.asked = tmp_path, []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(byte_ranges, "_client", None)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def check_reader(reader: PackedDataset, fake: FakeOutput) -> None:
    assert np.array_equal(reader.read(range(7)), fake.tokens)
    local = PackedDataset(fake.folder, extras=EXTRAS)
    for got, wanted in zip(pickle.loads(pickle.dumps(reader))[1:6:2], local[1:6:2], strict=True):
        assert all(np.array_equal(got[key], wanted[key]) for key in wanted)


class TestGoogleCloudStorage:
    """gs://"""

    def test_reads_the_ranges_it_needs(self, tmp_path: Path, bucket) -> None:
        fake = write_fake(tmp_path / "data/out", [3, 4], 16)
        reader = PackedDataset("gs://bucket/data/out/train/", extras=EXTRAS)
        assert reader.path == "gs://bucket/data/out/train"
        check_reader(reader, fake)
        check_reader(PackedDataset("gs://bucket/data/out", "train", extras=EXTRAS), fake)
        bucket.asked.clear()
        row = PackedDataset("gs://bucket/data/out/train")[5]
        assert np.array_equal(row, fake.tokens[5])
        shard = "data/out/train/tokenized-samples/part-00001-of-00002.bin"
        assert [range_ for name, range_ in bucket.asked if name == shard] == ["bytes=128-191"]

    def test_what_is_not_there(self, tmp_path: Path, bucket) -> None:
        fake = write_fake(tmp_path / "data/out", [3, 4], 16)
        for path in ("gs://bucket/data/none", "gs://bucket", "gs://other/data/out"):
            with pytest.raises(ConfigError, match=r"holds no manifest\.json"):
                PackedDataset(path)
        shard = fake.folder / "tokenized-samples/part-00001-of-00002.bin"
        shard.write_bytes(shard.read_bytes()[:-4])
        reader = PackedDataset("gs://bucket/data/out", extras=EXTRAS)
        with pytest.raises(BeamPrepError, match=r"part-00001.*ends before byte 256"):
            reader.read([6])
        shard.write_bytes(b"")
        with pytest.raises(BeamPrepError, match=r"part-00001.*ends before"):
            reader.read([3])
        shard.unlink()
        with pytest.raises(BeamPrepError, match=r"part-00001.*is missing"):
            reader.read([3])
        (fake.folder / "documents/part-00000-of-00002.parquet").unlink()
        with pytest.raises(BeamPrepError, match=r"parquet: cannot be read \(there is no such file\)"):
            reader[0]
        (tmp_path / "data/out/_SUCCESS").unlink()
        with pytest.raises(BeamPrepError, match="is not finished"):
            PackedDataset("gs://bucket/data/out")

    def test_a_client_for_every_process(self, tmp_path: Path, bucket, monkeypatch) -> None:
        fake = write_fake(tmp_path / "data/out", [3, 4], 16)
        reader = PackedDataset("gs://bucket/data/out")
        assert np.array_equal(reader[0], fake.tokens[0])
        first = byte_ranges._client
        assert np.array_equal(reader[1], fake.tokens[1]) and byte_ranges._client is first
        monkeypatch.setattr(os, "getpid", lambda: first[0] + 1)  # as after a fork, which a server's thread forbids here
        assert np.array_equal(reader[:], fake.tokens)
        assert byte_ranges._client[0] == first[0] + 1 and byte_ranges._client[1] is not first[1]

    def test_an_object_that_must_be_the_first(self, bucket: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
        assert byte_ranges.create_object("gs://bucket/next.json", b"{}\r\n1")
        assert not byte_ranges.create_object("gs://bucket/next.json", b"{}\r\n2")
        assert (tmp_path / "next.json").read_bytes() == b"{}\r\n1"


def test_other_schemes(folder: FakeOutput) -> None:
    check_reader(PackedDataset("folder://data/out/train", extras=EXTRAS), folder)
    with pytest.raises(ConfigError, match=r"holds no manifest\.json"):
        PackedDataset("folder://data/none")
    shard = folder.folder / "tokenized-samples/part-00001-of-00002.bin"
    reader = PackedDataset("folder://data/out/train")
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(BeamPrepError, match=r"part-00001.*ends before byte 256"):
        reader[-1]
    shard.unlink()
    with pytest.raises(BeamPrepError, match=r"part-00001.*is missing"):
        reader[-1]


def test_reads_that_give_less_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of more than 2 GiB do."""
    fake = write_fake(tmp_path / "out", [5], 16)
    real = byte_ranges.preadv
    monkeypatch.setattr(byte_ranges, "preadv", lambda fd, out, at: real(fd, [memoryview(out[0]).cast("B")[:50]], at))
    reader = PackedDataset(fake.folder)
    assert np.array_equal(reader[:], fake.tokens)
    assert np.array_equal(reader[3], fake.tokens[3])


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = iter([1024, 20, 10**6, resource.RLIM_INFINITY])
    monkeypatch.setattr(resource, "getrlimit", lambda _: (next(limits), 0))
    assert [default_open_files() for _ in range(4)] == [128, 16, 1024, 1024]
    assert RangeReader([], 0)._limit == 1
