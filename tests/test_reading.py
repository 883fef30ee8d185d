"""Reading: every line once, with its offset, from any file and any cut; never less than the file holds."""

import bz2
import gzip
import lzma
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beam_prep import compression
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.reading import prefetch, read_span, read_unit, split_lines
from beam_prep.sources import InputFile, Span, Unit, is_compressed, match_source, signature, split_source

BOM = b"\xef\xbb\xbf"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
COMPRESSED = [ending for ending in COMPRESS if ending]
SAMPLE = b'{"text": "one"}\n\n{"text": "two \xe2\x80\xa8 \xc3\xa9"}\r\n{"text": "three"}'

Lines = list[tuple[int, bytes]]


def naive_lines(content: bytes) -> Lines:
    """(offset, line) of every line: only LF ends one, and a BOM belongs to none."""
    start = len(BOM) if content.startswith(BOM) else 0
    found = [(m.start(), m.group()[:-1]) for m in re.finditer(rb"[^\n]*\n", content[start:])]
    tail = content[start:].rpartition(b"\n")[2]
    if tail or (start and len(content) == start):
        found.append((len(content) - start - len(tail), tail))
    return [(start + offset, line) for offset, line in found]


def lines_of(spans: Iterable[Span]) -> Lines:
    found: Lines = []
    for span in spans:
        for lines, offsets in read_span(span):
            assert len(lines) == len(offsets)
            assert offsets.dtype == "uint64"
            found += zip(offsets.tolist(), lines, strict=True)
    return found


def whole(path: Path) -> Lines:
    return lines_of([Span(0, str(path), 0, -1)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets how many bytes are read at a time."""

    def set_bytes(size: int) -> None:
        monkeypatch.setattr(compression, "CHUNK_BYTES", size)
        monkeypatch.setattr(compression, "_SLICE_BYTES", max(1, size // 2))

    yield set_bytes


_contents = (
    st.lists(
        st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r", BOM, b"\xe2\x80\xa8", b"\xff", b"\0", b"{}", b"abc", b" "])
        | st.binary(max_size=12),
        max_size=24,
    )
    .map(b"".join)
    .filter(lambda content: compression.recognise(content) is None)
)


class TestRanges:
    """Lines of plain files, cut into byte ranges."""

    @given(content=_contents, cuts=st.lists(st.integers(0, 200), max_size=8), chunk=st.integers(1, 64))
    @example(content=BOM + b"a\nb", cuts=[1], chunk=64)
    @example(content=BOM + b"a\nb", cuts=[2, 3, 4], chunk=1)
    @example(content=BOM + b"\n" + BOM + b"b", cuts=[3], chunk=3)
    @example(content=b"\n\n\n", cuts=[0, 1, 2, 3], chunk=1)
    def test_any_cut_owns_every_line_once(
        self, folder: Path, small_chunks: Callable[[int], None], content: bytes, cuts: list[int], chunk: int
    ) -> None:
        small_chunks(chunk)
        path = folder / "any.jsonl"
        path.write_bytes(content)
        edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
        spans = [Span(0, str(path), a, b) for a, b in zip(edges, edges[1:], strict=False)]
        assert lines_of(spans) == naive_lines(content)

    @given(content=_contents, at=st.integers(0, 200), chunk=st.integers(1, 64))
    def test_a_range_owns_the_lines_that_begin_in_it(
        self, folder: Path, small_chunks: Callable[[int], None], content: bytes, at: int, chunk: int
    ) -> None:
        small_chunks(chunk)
        path = folder / "one.jsonl"
        path.write_bytes(content)
        at = min(at, len(content))
        first = content.startswith(BOM)
        owned = [
            (offset, line)
            for offset, line in naive_lines(content)
            if (0 if first and offset == len(BOM) else offset) < at  # the BOM is part of the first line's place
        ]
        assert lines_of([Span(0, str(path), 0, at)]) == owned

    @given(chunks=st.lists(st.binary(max_size=8) | st.just(b"\n"), max_size=16), position=st.integers(0, 2**40))
    def test_split_lines(self, chunks: list[bytes], position: int) -> None:
        content = b"".join(chunks)
        wanted, at = [], position
        for line in content.split(b"\n")[: None if content and not content.endswith(b"\n") else -1]:
            wanted.append((at, line))
            at += len(line) + 1
        batches = split_lines((chunk for chunk in chunks if chunk), position)
        found = [pair for lines, offsets in batches for pair in zip(offsets.tolist(), lines, strict=True)]
        assert found == wanted

    def test_offsets_beyond_four_gibibytes(self) -> None:
        ((lines, offsets),) = split_lines([b"a\nb\n"], 2**33)
        assert (lines, offsets.tolist()) == ([b"a", b"b"], [2**33, 2**33 + 2])


class TestLines:
    """What is a line."""

    @pytest.mark.parametrize("ending", COMPRESS)
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", []),
            (b"\n", [(0, b"")]),
            (b"a", [(0, b"a")]),
            (b"a\n", [(0, b"a")]),
            (b"a\n\n", [(0, b"a"), (2, b"")]),
            (b"a\r\nb\r\n", [(0, b"a\r"), (3, b"b\r")]),
            (b"a\rb", [(0, b"a\rb")]),
            ("a\u2028b\u2029c\x85d\n".encode(), [(0, "a\u2028b\u2029c\x85d".encode())]),
            (b"a\x0bb\x0cc\n", [(0, b"a\x0bb\x0cc")]),
            (BOM, [(3, b"")]),
            (BOM + b"a\n", [(3, b"a")]),
            (BOM + BOM + b"a\n", [(3, BOM + b"a")]),
            (b"a\n" + BOM + b"b", [(0, b"a"), (2, BOM + b"b")]),
            (b"\xef\xbb", [(0, b"\xef\xbb")]),
        ],
    )
    def test_content(self, tmp_path: Path, ending: str, content: bytes, expected: Lines) -> None:
        path = tmp_path / f"a.jsonl{ending}"
        path.write_bytes(COMPRESS[ending](content))
        assert whole(path) == expected == naive_lines(content)

    @pytest.mark.parametrize("ending", ["", ".zst"])
    def test_a_line_of_100_megabytes(self, tmp_path: Path, ending: str) -> None:
        line = b'{"text": "' + b"0123456789" * 10_000_000 + b'"}'
        path = tmp_path / f"a.jsonl{ending}"
        path.write_bytes(COMPRESS[ending](b"first\n" + line + b"\nlast\n"))
        found = whole(path)
        assert [offset for offset, _ in found] == [0, 6, 7 + len(line)]
        assert found[1][1] == line

    def test_a_line_longer_than_its_range(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b"a" * 1000 + b"\n" + b"b" * 1000 + b"\n")
        spans = [Span(0, str(path), at, at + 100) for at in range(0, 2100, 100)]
        assert lines_of(spans) == [(0, b"a" * 1000), (1001, b"b" * 1000)]


class TestCompressed:
    """Compressed files give all that they hold, or an error that names them."""

    @settings(max_examples=40)
    @given(content=_contents, chunk=st.integers(1, 64), parts=st.integers(1, 4), ending=st.sampled_from(COMPRESSED))
    def test_round_trip_in_any_number_of_frames(
        self, folder: Path, small_chunks: Callable[[int], None], content: bytes, chunk: int, parts: int, ending: str
    ) -> None:
        small_chunks(chunk)
        size = -(-len(content) // parts) or 1
        frames = [content[at : at + size] for at in range(0, len(content), size)] or [b""]
        path = folder / f"frames.jsonl{ending}"
        path.write_bytes(b"".join(map(COMPRESS[ending], frames)))
        assert whole(path) == naive_lines(content)

    @pytest.mark.parametrize("ending", COMPRESSED)
    def test_more_than_one_chunk(self, tmp_path: Path, ending: str) -> None:
        numbers = random.Random(0)
        content = b"".join(b"%d\n" % numbers.getrandbits(200) for _ in range(60_000))
        assert len(content) > 1.5 * compression.CHUNK_BYTES
        half = content.index(b"\n", len(content) // 2) + 5
        path = tmp_path / f"a{ending.upper()}"
        path.write_bytes(COMPRESS[ending](content[:half]) + COMPRESS[ending](content[half:]))
        assert whole(path) == naive_lines(content)

    @pytest.mark.parametrize("ending", COMPRESSED)
    def test_cut_anywhere(self, tmp_path: Path, ending: str) -> None:
        data = COMPRESS[ending](SAMPLE)
        path = tmp_path / f"cut.jsonl{ending}"
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(BeamPrepError) as caught:
                whole(path)
            assert str(path) in str(caught.value), size

    @pytest.mark.parametrize("ending", COMPRESSED)
    def test_cut_anywhere_in_the_second_frame(self, tmp_path: Path, ending: str) -> None:
        first, second = COMPRESS[ending](SAMPLE + b"\n"), COMPRESS[ending](SAMPLE)
        path = tmp_path / f"cut.jsonl{ending}"
        for size in range(1, len(second)):
            path.write_bytes(first + second[:size])
            with pytest.raises(BeamPrepError, match="cut.jsonl"):
                whole(path)

    @pytest.mark.parametrize("ending", COMPRESSED)
    def test_cut_far_into_a_large_file(self, tmp_path: Path, ending: str) -> None:
        data = COMPRESS[ending](random.Random(1).randbytes(200_000).hex().encode())
        path = tmp_path / f"cut.jsonl{ending}"
        path.write_bytes(data[: len(data) - 3])
        with pytest.raises(BeamPrepError, match="cut.jsonl"):
            whole(path)

    @pytest.mark.parametrize("ending", COMPRESSED)
    def test_a_changed_byte_is_found_or_changes_nothing(self, tmp_path: Path, ending: str) -> None:
        data, wanted = COMPRESS[ending](SAMPLE), naive_lines(SAMPLE)
        path = tmp_path / f"bad.jsonl{ending}"
        found = 0
        for at in range(len(data)):
            for mask in (0x01, 0x80, 0xFF):
                path.write_bytes(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
                try:
                    assert whole(path) == wanted, (at, mask)
                except BeamPrepError as error:
                    assert str(path) in str(error)
                    found += 1
        assert found > len(data)  # but for fields like gzip's time, every change is found

    @pytest.mark.parametrize("ending", COMPRESSED)
    @pytest.mark.parametrize("tail", [b"x", b"not compressed", b"\0\0\0x"])
    def test_garbage_behind_the_end(self, tmp_path: Path, ending: str, tail: bytes) -> None:
        path = tmp_path / f"bad.jsonl{ending}"
        path.write_bytes(COMPRESS[ending](SAMPLE) + tail)
        with pytest.raises(BeamPrepError, match="bad.jsonl"):
            whole(path)

    @pytest.mark.parametrize("ending", COMPRESSED)
    def test_another_format_than_the_name_says(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"bad.jsonl{ending}"
        path.write_bytes(SAMPLE)
        with pytest.raises(BeamPrepError, match="bad.jsonl"):
            whole(path)

    @pytest.mark.parametrize("ending", COMPRESSED)
    def test_an_empty_stored_file_is_a_truncated_one(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"empty.jsonl{ending}"
        path.write_bytes(b"")
        with pytest.raises(BeamPrepError, match="empty.jsonl"):
            whole(path)

    @pytest.mark.parametrize("ending", COMPRESSED)
    @pytest.mark.parametrize("size", [4, 512, 600_000])
    def test_zero_padding_at_the_end(self, tmp_path: Path, ending: str, size: int) -> None:
        path = tmp_path / f"padded.jsonl{ending}"
        path.write_bytes(COMPRESS[ending](SAMPLE) + b"\0" * size)
        assert whole(path) == naive_lines(SAMPLE)

    def test_zero_padding_between_xz_streams(self, tmp_path: Path) -> None:
        path = tmp_path / "padded.jsonl.xz"
        path.write_bytes(lzma.compress(b"a\n") + b"\0" * 8 + lzma.compress(b"b\n"))
        assert whole(path) == [(0, b"a"), (2, b"b")]

    def test_a_seekable_zstd_file_ends_with_a_frame_to_skip(self, tmp_path: Path) -> None:
        path = tmp_path / "seekable.jsonl.zst"
        skippable = b"\x5e\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
        path.write_bytes(skippable + COMPRESS[".zst"](SAMPLE) + skippable)
        assert whole(path) == naive_lines(SAMPLE)

    def test_zstd_without_sizes_and_with_a_long_window(self, tmp_path: Path) -> None:
        parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        content = b"0123456789abcde\n" * 100_000
        path = tmp_path / "long.jsonl.zst"
        path.write_bytes(compressor.compress(content) + compressor.flush())
        assert len(whole(path)) == 100_000

    def test_a_bomb_unfolds_in_chunks(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.jsonl.gz"
        path.write_bytes(gzip.compress(b"0" * 255 + b"\n") * 1000 + gzip.compress((b"0" * 255 + b"\n") * 100_000))
        sizes = [sum(map(len, lines)) for lines, _ in read_span(Span(0, str(path), 0, -1))]
        assert sum(sizes) == 101_000 * 255
        assert max(sizes) <= 3 * compression.CHUNK_BYTES


class TestFiles:
    """Errors that are no content's fault."""

    def test_a_file_that_went_away(self, tmp_path: Path) -> None:
        with pytest.raises(BeamPrepError, match=r"gone\.jsonl: the file is gone"):
            whole(tmp_path / "gone.jsonl")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(BeamPrepError, match=tmp_path.name):
            whole(tmp_path)


class TestUnits:
    """From files to units of work."""

    @given(
        sizes=st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=1, max_size=12),
        unit=st.integers(1, 300),
    )
    def test_units_cover_everything_exactly_once(self, sizes: list[tuple[int, bool]], unit: int) -> None:
        files = [InputFile(n, f"f{n}.jsonl{'.gz' if z else ''}", size, 0.0) for n, (size, z) in enumerate(sizes)]
        units = list(split_source(3, files, unit))
        spans = [span for u in units for span in u.spans]
        for file in files:
            own = [(s.start, s.end) for s in spans if s.file == file.number]
            assert {s.path for s in spans if s.file == file.number} == {file.path}
            if is_compressed(file.path):
                assert own == [(0, -1)]
            else:
                assert own[0][0] == 0
                assert own[-1][1] == file.size
                assert all(a[1] == b[0] for a, b in zip(own, own[1:], strict=False))
        assert all(u.source == 3 and u.spans for u in units)
        assert len({u.name for u in units}) == len(units)
        for u in units:  # as large as was asked, give or take
            plain = [s.end - s.start for s in u.spans if s.end >= 0]
            assert max(plain, default=0) <= 1.5 * unit + 1

    def test_units_follow_from_the_files_alone(self) -> None:
        files = [InputFile(0, "a.jsonl", 1000, 1.0), InputFile(1, "b.jsonl", 10, 2.0)]
        assert list(split_source(0, files, 100)) == list(split_source(0, files, 100))
        assert {u.name for u in split_source(0, files, 100)}.isdisjoint(u.name for u in split_source(1, files, 100))

    def test_read_unit_goes_through_its_spans_and_marks_the_end(self, tmp_path: Path) -> None:
        for name, content in (("a.jsonl", b"1\n2\n"), ("b.jsonl", b"3"), ("c.jsonl", b"")):
            (tmp_path / name).write_bytes(content)
        spans = tuple(Span(n, str(tmp_path / f"{name}.jsonl"), 0, -1) for n, name in enumerate("abc"))
        batches = list(read_unit(Unit(5, "unit", spans)))
        assert [b.last for b in batches] == [False] * (len(batches) - 1) + [True]
        assert batches[-1].lines == []
        assert [(b.file, Path(b.path).name, line) for b in batches for line in b.lines] == [
            (0, "a.jsonl", b"1"),
            (0, "a.jsonl", b"2"),
            (1, "b.jsonl", b"3"),
        ]
        assert {(b.source, b.unit) for b in batches} == {(5, "unit")}

    def test_read_unit_passes_an_error_on(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.jsonl.gz"
        path.write_bytes(gzip.compress(SAMPLE)[:-1])
        with pytest.raises(BeamPrepError, match="bad.jsonl.gz"):
            list(read_unit(Unit(0, "unit", (Span(0, str(path), 0, -1),))))


class TestMatch:
    """From patterns to files."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        for name in ("b.jsonl", "a.jsonl", "c[1].jsonl", "é.jsonl"):
            (tmp_path / name).write_bytes(b"{}")
        (tmp_path / "folder.jsonl").mkdir()
        (tmp_path / "folder.jsonl" / "d.jsonl").write_bytes(b"{}{}")
        return tmp_path

    def names(self, files: list[InputFile]) -> list[str]:
        assert [f.number for f in files] == list(range(len(files)))
        return [Path(f.path).name for f in files]

    def test_sorted_whatever_the_patterns(self, files: Path) -> None:
        found = match_source("x", [f"{files}/b*", f"{files}/a.jsonl"])
        assert self.names(found) == ["a.jsonl", "b.jsonl"]
        assert found == match_source("x", [f"{files}/[ab].jsonl"])

    def test_a_file_that_two_patterns_match_is_one_file(self, files: Path) -> None:
        assert self.names(match_source("x", [f"{files}/a*", f"{files}/*a.jsonl", f"{files}/a.jsonl"])) == ["a.jsonl"]

    def test_however_it_is_spelled(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(files)
        (found,) = match_source("x", ["a.jsonl", "./a.jsonl", f"{files}/*a.jsonl", f"../{files.name}/a.jsonl"])
        assert found.path == "a.jsonl"

    def test_a_name_that_is_not_utf8(self, files: Path) -> None:
        try:
            (files / "caf\udce9.jsonl").write_bytes(b"{}")
        except (OSError, UnicodeError):
            pytest.skip("this file system has no such names")
        with pytest.raises(ConfigError, match="is not UTF-8"):
            match_source("x", [f"{files}/c*.jsonl"])

    def test_a_name_with_glob_characters(self, files: Path) -> None:
        assert self.names(match_source("x", [f"{files}/c[1].jsonl"])) == ["c[1].jsonl"]

    def test_folders_are_no_files(self, files: Path) -> None:
        assert "folder.jsonl" not in self.names(match_source("x", [f"{files}/*.jsonl"]))

    def test_sizes_and_subfolders(self, files: Path) -> None:
        (found,) = match_source("x", [f"{files}/*/d.jsonl"])
        assert found.size == 4

    @pytest.mark.parametrize("pattern", ["none*.jsonl", "folder.jsonl", "none.jsonl"])
    def test_nothing_matches(self, files: Path, pattern: str) -> None:
        with pytest.raises(ConfigError) as caught:
            match_source("wiki", [f"{files}/a.jsonl", f"{files}/{pattern}"])
        assert "'wiki'" in str(caught.value)
        assert pattern in str(caught.value)


class TestSignature:
    """Equal inputs have equal signatures, and no others."""

    A, B, C = (InputFile(n, f"{n}.jsonl", 10, 1.0) for n in range(3))

    def test_equal(self) -> None:
        assert signature([self.A, self.B]) == signature(iter([self.A, self.B]))

    def test_every_part_counts(self) -> None:
        changed = [self.A._replace(path="x"), self.A._replace(size=11), self.A._replace(modified=2.0)]
        signatures = [signature([file]) for file in [self.A, *changed]]
        signatures += [signature([]), signature([self.A, self.B]), signature([self.B, self.A])]
        assert len(set(signatures)) == len(signatures)

    def test_files_that_change_their_source(self) -> None:
        """A file that one source gives to another makes another job."""
        x, y, z = "x.jsonl", "y.jsonl", "z.jsonl"

        def two_sources(first: list[str], second: list[str]) -> str:
            return signature(InputFile(n, p, 10, 1.0) for paths in (first, second) for n, p in enumerate(paths))

        assert two_sources([x, y], [z]) != two_sources([x], [y, z])


class TestPrefetch:
    """Iterators that run ahead in a thread."""

    def test_all_items_in_order(self) -> None:
        assert list(prefetch(lambda: iter(range(1000)))) == list(range(1000))

    def test_an_error_arrives_after_what_came_before(self) -> None:
        class Odd(NamedTuple):
            number: int

        def make() -> Iterator[Odd]:
            yield Odd(1)
            raise ValueError("broken")

        items = prefetch(make)
        assert next(items) == Odd(1)
        with pytest.raises(ValueError, match="broken"):
            next(items)

    def test_the_thread_ends_when_nobody_reads_on(self) -> None:
        import threading
        import time

        before = threading.active_count()
        items = prefetch(lambda: iter(range(10**9)))
        assert next(items) == 0
        items.close()
        deadline = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() <= before
