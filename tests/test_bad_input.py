"""The zoo: every kind of bad input gives a clear error or a counted reject; memory stays bounded; nothing hangs."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import textwrap
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from results import manifest_of, rejected_letters

from beam_prep import compression, lines, local_match, tokenization
from beam_prep.catalog import dialogstudio
from beam_prep.config import Filter, load_config
from beam_prep.documents import Draw
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.launch import RunOptions, prepare, run
from beam_prep.lines import CutLine, split_lines
from beam_prep.reading import read_span, read_unit
from beam_prep.retry_rejected import retry
from beam_prep.runs import RunBuilder
from beam_prep.sources import Span, match_source, split_source
from beam_prep.templates import Template, compile_template
from beam_prep.transform import Rejected, compile_transformer, dead_letter, transform_batch

GOOD = b'{"text": "a good record"}\n'
TEXT = Template(name="t", required={"text": "string"}, text="{{ text }}")


def zstd(data: bytes, **parameters: int) -> bytes:
    """Without the size in its head, as a stream."""
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(**parameters)  # type: ignore[arg-type]
    ).compressobj()
    return compressor.compress(data) + compressor.flush()


def tar(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zip_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", content)
    return file.getvalue()


def parquet_of(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


class Outcome(Counter):
    """`documents`, `blank` and reasons, with the rejected rows."""

    rejects: list[Rejected]
    bytes: int


def read(paths: list[Path]) -> Outcome:
    """What becomes of files on their way through matching, splitting, reading and rendering."""
    transformer = compile_transformer(compile_template(TEXT, []), Filter(), 0, False)
    outcome = Outcome()
    outcome.rejects, outcome.bytes = [], 0
    for unit in split_source(0, match_source("zoo", [str(path) for path in paths])):
        for batch in read_unit(unit):
            result = transform_batch(batch, transformer)
            outcome.update(result.tally.rejected)
            outcome.update({"documents": result.tally.rendered, "blank": result.tally.blank_lines})
            outcome.rejects += result.rejects
            outcome.bytes += result.tally.bytes
    for reject in outcome.rejects:
        assert reject.message
        json.loads(dead_letter("zoo", reject))
    return +outcome if not outcome.rejects else outcome  # type: ignore[return-value]


def counts(outcome: Counter) -> dict[str, int]:
    return {key: count for key, count in outcome.items() if count}


def deep(opening: bytes, closing: bytes, levels: int = 10_000) -> bytes:
    return opening * levels + b"1" + closing * levels


COUNTED: dict[str, tuple[str, bytes, dict[str, int]]] = {
    "empty": ("a.jsonl", b"", {}),
    "blank lines": ("a.jsonl", b"\n \n\t\r\n\n", {"blank": 4}),
    "empty in gzip": ("a.jsonl.gz", gzip.compress(b""), {}),
    "a lone BOM": ("a.jsonl", b"\xef\xbb\xbf", {"blank": 1}),
    "a BOM before the first record": ("a.jsonl", b"\xef\xbb\xbf" + GOOD, {"documents": 1}),
    "CRLF": ("a.jsonl", GOOD[:-1] + b"\r\n" + GOOD[:-1] + b"\r\n", {"documents": 2}),
    "no final newline": ("a.jsonl", GOOD + GOOD[:-1], {"documents": 2}),
    "not UTF-8": ("a.jsonl", GOOD + b'{"text": "\xe9"}\n' + GOOD, {"documents": 2, "invalid_utf8": 1}),
    "NUL bytes": ("a.jsonl", GOOD + b"\0" * 4096 + b"\n" + GOOD, {"documents": 2, "invalid_json": 1}),
    "a NUL inside a string": ("a.jsonl", b'{"text": "a\0b"}\n', {"invalid_json": 1}),
    "an escaped NUL": ("a.jsonl", b'{"text": "a\\u0000b"}\n', {"documents": 1}),
    "lone surrogates": ("a.jsonl", b'{"text": "\\ud800"}\n{"\\udfff": 1, "text": "a"}\n', {"lone_surrogate": 2}),
    "a surrogate pair": ("a.jsonl", b'{"text": "\\ud83d\\ude00"}\n', {"documents": 1}),
    "equal keys": ("a.jsonl", b'{"text": null, "text": "a"}\n', {"documents": 1}),
    "NaN and Infinity": (
        "a.jsonl",
        b'{"text": NaN}\n{"text": "a", "n": Infinity}\n{"text": "a", "n": -Infinity}\n',
        {"invalid_json": 3},
    ),
    "10,000 digits": (
        "a.jsonl",
        b'{"text": "a", "n": %b}\n{"text": "a", "n": -%b.5}\n{"text": "a", "n": 1e%b}\n%b\n' % ((b"9" * 10_000,) * 4),
        {"documents": 3, "not_an_object": 1},
    ),
    "arrays 10,000 deep": (
        "a.jsonl",
        b'{"text": "a", "n": ' + deep(b"[", b"]") + b"}\n" + GOOD,
        {"invalid_json": 1, "documents": 1},
    ),
    "objects 10,000 deep": ("a.jsonl", deep(b'{"n":', b"}") + b"\n", {"invalid_json": 1}),
    "brackets never closed": ("a.jsonl", b"[" * 1_000_000, {"invalid_json": 1}),
    "other values": ("a.jsonl", b'[1]\n3\n"text"\nnull\ntrue\n', {"not_an_object": 5}),
    "trailing garbage": ("a.jsonl", GOOD[:-1] + b" x\n" + GOOD[:-1] + GOOD, {"invalid_json": 2}),
    "a comma behind each record": ("a.jsonl", b'{"text": "a"},\n{"text": "b"}\n', {"invalid_json": 1, "documents": 1}),
    "pretty-printed": ("a.jsonl", b'{\n  "text": "a"\n}\n', {"invalid_json": 3}),
    "an array over lines": ("a.jsonl", b'[\n{"text": "a"},\n{"text": "b"}\n]\n', {"invalid_json": 3, "documents": 1}),
    "an array on one line": ("a.jsonl", b'[{"text": "a"}, {"text": "b"}]\n', {"not_an_object": 1}),
    "binary": ("a.jsonl", bytes(range(256)) * 3, {"invalid_utf8": 3, "invalid_json": 1}),
    "a name of 253 bytes, not ASCII": ("é漢" * 49 + "ab.jsonl", GOOD, {"documents": 1}),
    "glob characters in a name": ("[a-b]*?.jsonl", GOOD, {"documents": 1}),
    "an upper-case ending": ("A.JSONL.GZ", gzip.compress(GOOD), {"documents": 1}),
    "Parquet without rows": ("a.parquet", parquet_of(pa.table({"text": pa.array([], pa.string())})), {}),
    "Parquet text that is not UTF-8": (
        "a.parquet",
        parquet_of(pa.table({"text": pa.array([b"a", b"\xff\xfe", None, b"b"]).view(pa.string())})),
        {"documents": 2, "invalid_utf8": 1, "null_field": 1},
    ),
    "Parquet lists of such text": (
        "a.parquet",
        parquet_of(
            pa.table(
                {
                    "text": ["a", "b"],
                    "n": pa.ListArray.from_arrays([0, 1, 2], pa.array([b"\xff", b"b"]).view(pa.string())),
                }
            )
        ),
        {"documents": 1, "invalid_utf8": 1},
    ),
    "Parquet times that Python has none for": (
        "a.parquet",
        parquet_of(
            pa.table(
                {
                    "text": ["a", "b"],
                    "ns": pa.array([1, None], pa.timestamp("ns")),
                    "far": pa.array([2**60, 0], pa.timestamp("us")),
                }
            )
        ),
        {"documents": 2},
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_counted(tmp_path: Path, case: str) -> None:
    name, content, expected = COUNTED[case]
    path = tmp_path / name
    path.write_bytes(content)
    assert counts(read([path])) == expected


UTF16 = GOOD.decode()
FAILS: dict[str, tuple[str, bytes, str]] = {
    "gzip in a plain name": ("a.jsonl", gzip.compress(GOOD), "is gzip data, not lines of JSON; rename it .* in .gz"),
    "zstd in a plain name": ("a.jsonl", zstd(GOOD), "is zstd data.* in .zst"),
    "bzip2 in a plain name": ("a.jsonl", bz2.compress(GOOD), "is bzip2 data.* in .bz2"),
    "xz in a plain name": ("a.jsonl", lzma.compress(GOOD), "is xz data.* in .xz"),
    "Parquet in a plain name": ("a.jsonl", parquet_of(pa.table({"a": [1]})), "is a Parquet file.* in .parquet"),
    "zip": ("a.jsonl", zip_of(GOOD), "is a zip archive.*unpack it first"),
    "zip named gz": ("a.jsonl.gz", zip_of(GOOD), "is a zip archive, not gzip data.*unpack it first"),
    "tar": ("a.jsonl", tar("a.jsonl", GOOD), "is a tar archive.*unpack it first"),
    "tar in gzip": ("a.tar.gz", gzip.compress(tar("a.jsonl", GOOD)), "unpacked it is a tar archive.*unpack it"),
    "gzip in gzip": ("a.jsonl.gz", gzip.compress(gzip.compress(GOOD)), "unpacked it is gzip data.*unpack it once"),
    "zstd named gz": ("a.jsonl.gz", zstd(GOOD), "is zstd data, not gzip data as its name says; rename it .* in .zst"),
    "Parquet named zst": ("a.zst", parquet_of(pa.table({"a": [1]})), "is a Parquet file, not zstd data"),
    "text named parquet": ("a.parquet", GOOD, "it is text: take .parquet off its name"),
    "gzip named parquet": ("a.parquet", gzip.compress(GOOD), "it is gzip data: rename it .* in .gz"),
    "UTF-16 with a BOM": ("a.jsonl", UTF16.encode("utf-16"), "is text in UTF-16.*iconv -f UTF-16 -t UTF-8"),
    "UTF-16, big end first": ("a.jsonl", b"\xfe\xff" + UTF16.encode("utf-16-be"), "iconv -f UTF-16 "),
    "UTF-16 without a BOM": ("a.jsonl", UTF16.encode("utf-16-le"), "iconv -f UTF-16LE "),
    "UTF-16 without a BOM, big end": ("a.jsonl", UTF16.encode("utf-16-be"), "iconv -f UTF-16BE "),
    "UTF-32": ("a.jsonl", UTF16.encode("utf-32"), "iconv -f UTF-32 "),
    "UTF-16 in gzip": ("a.jsonl.gz", gzip.compress(UTF16.encode("utf-16")), "unpacked it is text in UTF-16"),
    "an empty Parquet file": ("a.parquet", b"", "cannot be read as Parquet"),
    "a Parquet file cut short": ("a.parquet", parquet_of(pa.table({"a": [1]}))[:-9], "cannot be read as Parquet"),
    "a zstd window beyond the limit": (
        "a.jsonl.zst",
        # magic, no size, window exponent 31 (2 TiB), an empty last block
        b"\x28\xb5\x2f\xfd\x00" + bytes([31 << 3]) + b"\x01\x00\x00",
        "the 2 GiB that are allowed.*smaller window",
    ),
}
for _ending in (".gz", ".zst", ".bz2", ".xz"):
    FAILS[f"text named {_ending}"] = (f"a.jsonl{_ending}", GOOD, f"is text, not .* data.*take {_ending} off")
    FAILS[f"an empty file named {_ending}"] = (f"a.jsonl{_ending}", b"", "no compressed stream")
    FAILS[f"noise named {_ending}"] = (f"a.jsonl{_ending}", b"\x80noise" * 99, "truncated or corrupt")


@pytest.mark.parametrize("case", FAILS)
def test_fails_with_the_files_name_and_a_remedy(tmp_path: Path, case: str) -> None:
    name, content, expected = FAILS[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BeamPrepError, match=expected) as error:
        read([path])
    assert str(path) in error.value.message


@pytest.mark.parametrize("pack", [gzip.compress, zstd, bz2.compress, lzma.compress])
def test_damage_says_how_far_it_went(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    ending = {"compress": ".gz", "zstd": ".zst"}.get(pack.__name__, "")
    ending = {"gzip": ".gz", "bz2": ".bz2", "lzma": ".xz"}.get(pack.__module__, ending)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(GOOD * 10) + pack(np.random.default_rng(0).bytes(5000))[:-40])
    with pytest.raises(BeamPrepError, match=r"after [0-9,]+ unpacked bytes"):
        read([path])


HINTS = {
    b'{\n  "text": "a"\n}\n': ["pretty-printed"] * 3,
    b'[\n{"text": "a"},\n{"text": "b"}\n]\n': ["JSON array", "JSON array", "JSON array"],
    b'[{"text": "a"}, {"text": "b"}]\n': ["each of its items on a line"],
    b'{"text": "a"\n{"text": "b"}}\n': ["", ""],
}


@pytest.mark.parametrize("content", HINTS)
def test_messages_guess_the_layout(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    messages = [reject.message for reject in read([path]).rejects]
    assert len(messages) == len(HINTS[content])
    for message, hint in zip(messages, HINTS[content], strict=True):
        assert hint in message
        assert hint or "looks" not in message


@pytest.mark.parametrize("information", ['{"a":' * 10_000 + "1" + "}" * 10_000, "[" * 10_000, '"\\ud800"', "{", ""])
def test_json_inside_a_field(tmp_path: Path, information: str) -> None:
    """Such information is as if it were absent."""
    row = {"log": [{"user utterance": "a", "system response": "b"}], "original dialog info": information}
    assert dialogstudio.samsum(row, Draw(0, row))["summary"] == ""


class TestTooLong:
    """Lines beyond the limit are rejected by their length alone, wherever chunks and ranges end."""

    @given(
        chunks=st.lists(st.sampled_from([b"\n", b"a", b"bcd", b"efghijkl", b"\n\n", b"x" * 30]), max_size=20),
        limit=st.integers(1, 12),
        kept=st.integers(0, 5),
    )
    def test_against_a_loop(self, chunks: list[bytes], limit: int, kept: int) -> None:
        content = b"".join(chunks)
        whole = content.split(b"\n")
        whole = whole[:-1] if not whole[-1] else whole
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lines, "MAX_RECORD_BYTES", limit)
            patch.setattr(lines, "KEPT_BYTES", kept)
            found = [pair for ls, offsets in split_lines(chunks, 7) for pair in zip(ls, offsets.tolist(), strict=True)]
        at = 7
        assert len(found) == len(whole)
        for (line, offset), wanted in zip(found, whole, strict=True):
            assert offset == at
            at += len(wanted) + 1
            if len(wanted) > limit:
                assert isinstance(line, CutLine)
                assert (bytes(line), line.size) == (wanted[:kept], len(wanted))
            else:
                assert type(line) is bytes
                assert line == wanted

    @pytest.mark.parametrize("unit_bytes", [40, 1 << 20])
    @pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
    def test_rejected_with_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int, head: bytes
    ) -> None:
        monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 100)
        monkeypatch.setattr(lines, "KEPT_BYTES", 20)
        monkeypatch.setattr(compression, "CHUNK_BYTES", 16)
        long = b'{"text": "' + b"x" * 300 + b'"}\n'
        path = tmp_path / "a.jsonl"
        path.write_bytes(head + long + GOOD + b" " * 150 + b"\n" + GOOD + long)
        transformer = compile_transformer(compile_template(TEXT, []), Filter(), 0, False)
        rejects, tally_bytes, documents = [], 0, 0
        for unit in split_source(0, match_source("x", [str(path)]), unit_bytes):
            for batch in read_unit(unit):
                result = transform_batch(batch, transformer)
                rejects += result.rejects
                tally_bytes += result.tally.bytes
                documents += result.tally.rendered
        assert (
            [(r.reason, r.offset, r.raw) for r in rejects]
            == [
                ("too_long", len(head), long[: 20 - len(head)]),  # the mark counts as kept
                ("too_long", len(head + long + GOOD), b" " * 20),
                ("too_long", len(head + long + GOOD * 2) + 151, long[:20]),
            ]
        )
        assert documents == 2
        assert tally_bytes == path.stat().st_size - len(head)
        assert f"{len(long) - 1:,} bytes" in rejects[0].message
        assert all(type(reject.raw) is bytes for reject in rejects)

    def test_a_parquet_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 100)
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": ["a", "x" * 300, "b"]}), path)
        outcome = read([path])
        assert counts(outcome) == {"documents": 2, "too_long": 1}
        assert outcome.rejects[0].offset == 1

    def test_a_line_of_many_ranges_is_not_read_once_for_each(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A range within the line ends where it owns nothing any more."""
        monkeypatch.setattr(compression, "CHUNK_BYTES", 1000)
        path = tmp_path / "a.jsonl"
        path.write_bytes(b"x" * 100_000 + b"\n" + GOOD)
        real, reads = compression._stored, []

        def stored(file):
            for chunk in real(file):
                reads.append(len(chunk))
                yield chunk

        monkeypatch.setattr(compression, "_stored", stored)
        found = [read_span(Span(0, str(path), at, at + 1000)) for at in range(1000, 100_000, 1000)]
        assert all(list(span) == [] for span in found)
        assert sum(reads) < 4 * 100_000

    def test_travels_between_processes(self) -> None:
        line = pickle.loads(pickle.dumps(CutLine(b"abc", 10**10)))
        assert (type(line), bytes(line), line.size) == (CutLine, b"abc", 10**10)


class TestPlaces:
    """What matches a pattern and is no file."""

    @pytest.fixture
    def zoo(self, tmp_path: Path) -> Path:
        (tmp_path / "good.jsonl").write_bytes(GOOD)
        (tmp_path / "folder.jsonl").mkdir()
        (tmp_path / "folder.jsonl" / "inside.jsonl").write_bytes(GOOD)
        return tmp_path

    def test_folders_are_left_out(self, zoo: Path) -> None:
        assert counts(read([zoo / "*.jsonl"])) == {"documents": 1}
        with pytest.raises(ConfigError, match="it is a folder"):
            match_source("x", [str(zoo / "folder.jsonl")])

    def make_pipe(self, zoo: Path) -> str:
        os.mkfifo(zoo / "bad.jsonl")
        return "a named pipe"

    def make_socket(self, zoo: Path) -> str:
        before = os.getcwd()
        os.chdir(zoo)  # a socket's path is short
        try:
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind("bad.jsonl")
        finally:
            os.chdir(before)
        return "a socket"

    def make_device(self, zoo: Path) -> str:
        (zoo / "bad.jsonl").symlink_to("/dev/zero")
        return "a device"

    def make_dangling(self, zoo: Path) -> str:
        (zoo / "bad.jsonl").symlink_to(zoo / "nowhere")
        return "is a link to .*nowhere, where no file can be found"

    def make_loop(self, zoo: Path) -> str:
        (zoo / "bad.jsonl").symlink_to(zoo / "bad2")
        (zoo / "bad2").symlink_to(zoo / "bad.jsonl")
        return "is a link to .*bad2, where no file can be found"

    @pytest.mark.parametrize("kind", ["pipe", "socket", "device", "dangling", "loop"])
    @pytest.mark.parametrize("pattern", ["*.jsonl", "bad.jsonl", "**/b?d.jsonl"])
    def test_named(self, zoo: Path, kind: str, pattern: str) -> None:
        expected = getattr(self, f"make_{kind}")(zoo)
        with pytest.raises(ConfigError, match=expected) as error:
            match_source("wiki", [str(zoo / pattern)])
        assert str(zoo / "bad.jsonl") in error.value.message
        assert "'wiki'" in error.value.message
        assert counts(read([zoo / "good.jsonl"])) == {"documents": 1}

    def test_folders_that_contain_themselves(self, zoo: Path) -> None:
        (zoo / "folder.jsonl" / "up").symlink_to(zoo)
        assert [Path(f.path).name for f in match_source("x", [str(zoo / "**")])] == ["inside.jsonl", "good.jsonl"]
        (found,) = match_source("x", [str(zoo / "*" / "up" / "good.jsonl")])
        assert found.path.endswith("folder.jsonl/up/good.jsonl")

    def test_relative_to_here(self, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(zoo)
        assert [f.path for f in match_source("x", ["*.jsonl"])] == ["good.jsonl"]
        assert [f.path for f in match_source("x", ["**inside.jsonl"])] == ["folder.jsonl/inside.jsonl"]

    @pytest.mark.parametrize("pattern", ["x" * 300, "y/" * 3000 + "*.jsonl", "a\0b", "y/" * 3000 + "z"])
    def test_paths_that_cannot_be(self, pattern: str) -> None:
        with pytest.raises(ConfigError, match="matches no file"):
            match_source("x", [pattern])

    def test_a_long_path(self, tmp_path: Path) -> None:
        folder = tmp_path / ("é" * 100) / ("漢" * 80) / ("n" * 250) / ("m" * 250)
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_bytes(GOOD)
        assert counts(read([tmp_path / "**" / "a.jsonl"])) == {"documents": 1}

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(GOOD)

        def refuse(path: str):
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr("beam_prep.storage.open_read", refuse)
        with pytest.raises(BeamPrepError, match=r"a\.jsonl: may not be read .*right to"):
            read([path])

    @given(st.text("ab*?[]/", min_size=1, max_size=8))
    def test_patterns_against_pathlib(self, tmp_path_factory: pytest.TempPathFactory, pattern: str) -> None:
        folder = tmp_path_factory.getbasetemp() / "patterns"
        if not folder.exists():
            for name in ("a", "b", "ab", "d/a", "d/b", "a.b/a", "a.b/b/ab"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(b"")
        if "**" in pattern or pattern.startswith("/") or pattern.endswith("/"):
            return
        try:
            wanted = sorted(str(path) for path in folder.glob(pattern) if path.is_file())
        except (ValueError, IndexError):
            return
        assert [os.path.normpath(p) for p in local_match.local_match(f"{folder}/{pattern}")] == wanted


CHILD = """
import resource, sys, threading
from beam_prep.reading import read_unit
from beam_prep.sources import match_source, split_source
from beam_prep.transform import compile_transformer, transform_batch
from beam_prep.templates import Template, compile_template
from beam_prep.config import Filter
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
template = Template(name="t", required={"text": "string"}, text="{{ text }}")
transformer = compile_transformer(compile_template(template, []), Filter(), 0, False)
reasons, size = {}, 0
for unit in split_source(0, match_source("x", [sys.argv[1]])):
    for batch in read_unit(unit):
        result = transform_batch(batch, transformer)
        size += result.tally.bytes
        for reason, count in result.tally.rejected.items():
            reasons[reason] = reasons.get(reason, 0) + count
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(reasons, size, grown >> 10)
"""


def grown_by(path: Path) -> tuple[str, int, int]:
    """(reasons, uncompressed bytes, MiB that a process of its own grew by) for reading a file."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path)],
        capture_output=True,
        check=False,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reasons, size, grown = done.stdout.rsplit(maxsplit=2)
    return reasons, int(size), int(grown)


class TestMemory:
    """A process that reads a bomb grows by about the limit of one record at most, not by what the file holds."""

    MOST_MB = (lines.MAX_RECORD_BYTES >> 20) + 200

    @pytest.fixture(scope="class")
    def bombs(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("bombs")

    def test_a_plain_line_of_a_gigabyte(self, bombs: Path) -> None:
        path = bombs / "a.jsonl"
        with open(path, "wb") as file:
            file.write(GOOD)
            file.truncate(1 << 30)  # zeros that take no room
        assert read_sizes(path) == ("{'too_long': 1}", (1 << 30) + 1)
        path.unlink()

    @pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
    def test_one_line(self, bombs: Path, ending: str) -> None:
        path = bombs / f"a.jsonl{ending}"
        write_zeros(path, 3 << 28, b"\0")
        assert path.stat().st_size < 2 << 20
        assert read_sizes(path) == ("{'too_long': 1}", (3 << 28) + 1)

    @pytest.mark.parametrize("ending", [".zst", ".bz2"])
    def test_blank_lines(self, bombs: Path, ending: str) -> None:
        path = bombs / f"blank.jsonl{ending}"
        write_zeros(path, 4 << 20, b"\n")
        assert read_sizes(path) == ("{}", 4 << 20)

    def test_a_dictionary_whose_long_value_every_row_repeats(self, bombs: Path) -> None:
        path = bombs / "a.parquet"
        rows = 150
        text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * (4 << 20)]))
        pq.write_table(pa.table({"text": text}), path, store_schema=False, dictionary_pagesize_limit=1 << 30)
        assert path.stat().st_size < 1 << 20
        assert read_sizes(path)[1] > rows * (4 << 20)


def read_sizes(path: Path) -> tuple[str, int]:
    reasons, size, grown = grown_by(path)
    assert grown < TestMemory.MOST_MB
    return reasons, size


def write_zeros(path: Path, size: int, byte: bytes) -> None:
    compressors = {
        ".gz": lambda: zlib.compressobj(9, wbits=31),
        ".zst": lambda: zstandard.ZstdCompressor(level=1).compressobj(),
        ".bz2": lambda: bz2.BZ2Compressor(1),
        ".xz": lambda: lzma.LZMACompressor(preset=0),
    }
    compressor = compressors[path.suffix]()
    part = byte * (1 << 22)
    with open(path, "wb") as file:
        for _ in range(size // len(part)):
            file.write(compressor.compress(part))
        file.write(compressor.flush())


class TestRuns:
    """The whole pipeline on bad input."""

    def prepared(self, folder: Path, pattern: str, **more: float):
        config = {
            "context_length": 32,
            "output": str(folder / "out"),
            "datasets": [
                {"name": "zoo", "input": pattern, "template": {"required": {"text": "string"}, "text": "{{ text }}"}}
            ],
            **more,
        }
        path = folder / "zoo.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        return prepare(load_config(str(path)), RunOptions(), folder)

    def test_every_counted_reject_is_in_ledger_and_dead_letters(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 2_000_000)
        (tmp_path / "in").mkdir()
        expected: Counter = Counter()
        for number, (name, content, wanted) in enumerate(COUNTED.values()):
            (tmp_path / "in" / f"{number:03d}-{name[-60:]}").write_bytes(content)
            expected.update(wanted)
        (tmp_path / "in" / "long.jsonl").write_bytes(b"\xff" * 3_000_000 + b"\n" + GOOD)
        expected.update({"too_long": 1, "documents": 1})
        run(self.prepared(tmp_path, f"{tmp_path}/in/*", max_rejects=1, dedup="none"))  # type: ignore[arg-type]
        entry = manifest_of(tmp_path / "out")["ledger"]["zoo"]
        documents, blank = expected.pop("documents"), expected.pop("blank")
        assert entry["rejected"] == dict(expected)
        assert (entry["documents"], entry["blank_lines"]) == (documents, blank)
        letters = rejected_letters(tmp_path / "out")
        assert Counter(letter["reason"] for letter in letters) == expected
        (long,) = (letter for letter in letters if letter["reason"] == "too_long")
        assert Path(long["file"]).name == "long.jsonl"
        assert "3,000,000 bytes" in long["message"]

    def test_only_rejected_leaves_the_cut_ones(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A beginning that happens to be a record is none."""
        monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 1000)
        monkeypatch.setattr(lines, "KEPT_BYTES", len(GOOD) - 1)
        (tmp_path / "a.jsonl").write_bytes(GOOD[:-1] + b" " * 2000 + b"\n" + GOOD + b"{\n")
        prepared = self.prepared(tmp_path, f"{tmp_path}/a.jsonl", max_rejects=1)
        run(prepared)
        (result,) = retry(prepared.job.config, prepared.job.sources, [], str(tmp_path / "out"))
        assert result.before == result.rejected == {"too_long": 1, "invalid_json": 1}
        assert "2,025 bytes" in result.first["too_long"]

    def test_rejects_close_a_run_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A large file of which nothing is a record is not held in memory until its end."""
        monkeypatch.setattr(tokenization, "RUN_BYTES", 1 << 20)
        monkeypatch.setattr(compression, "CHUNK_BYTES", 1 << 18)
        (tmp_path / "a.jsonl").write_bytes((b"x" * 999 + b"\n") * 5000 + GOOD)
        sizes = []
        real = RunBuilder.write

        def write(self: RunBuilder, carrier):
            sizes.append(self.reject_bytes)
            return real(self, carrier)

        monkeypatch.setattr(RunBuilder, "write", write)
        run(self.prepared(tmp_path, f"{tmp_path}/a.jsonl", max_rejects=1))
        assert len(sizes) >= 4
        assert max(sizes) < 2 << 20
        assert manifest_of(tmp_path / "out")["ledger"]["zoo"]["rejected"] == {"invalid_json": 5000}

    def test_a_pretty_printed_file_fails_with_a_hint(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=1), encoding="utf-8")
        prepared = self.prepared(tmp_path, f"{tmp_path}/a.jsonl")
        with pytest.raises(BeamPrepError, match=r"every line must be one JSON object.*jq -c"):
            run(prepared)

    @pytest.mark.parametrize(
        "case", ["gzip in a plain name", "text named .zst", "UTF-16 with a BOM", "text named parquet"]
    )
    def test_a_wrong_file_fails_and_leaves_nothing_finished(self, tmp_path: Path, case: str) -> None:
        name, content, expected = FAILS[case]
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BeamPrepError, match=expected):
            run(self.prepared(tmp_path, f"{tmp_path}/{name}"))
        assert not (tmp_path / "out" / "_SUCCESS").exists()
