"""trace: from sequences back to raw records, and from texts, documents and records to sequences."""

import functools
import gzip
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_job
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from results import OPEN, Reference, chat, manifest_of, raw_lines, sequences_by_forager, text

from beam_prep import find as finding
from beam_prep import find_text, tables
from beam_prep.cli import cli
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.find import find
from beam_prep.find_text import Place, TextFinder, Vocabulary, find_in_file, read_vocabulary
from beam_prep.inspection import open_decoder
from beam_prep.manifest import read_manifest
from beam_prep.tokenizer import decoder as load_tokenizer
from beam_prep.trace import lost, open_records, read_records, trace_sequence, which_output

STAGES = """
dedup: none
stages:
  - {{name: A, context_length: 192, datasets: [plain, columns]}}
  - {{name: B, context_length: 160, packing: best_fit}}
"""


@pytest.fixture(scope="session")
def varied(tmp_path_factory) -> Path:
    """An output with stages, splits, both packings, Parquet, a byte order mark and equal documents kept."""
    folder = tmp_path_factory.mktemp("varied")
    small_job.write_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        small_job.make_small(patch)
        small_job.start((small_job.CONFIG + STAGES).format(folder=folder), folder / "out")
    return folder / "out"


@pytest.fixture(scope="session")
def tokenizer(qwen3):
    return load_tokenizer(qwen3)


@pytest.fixture(scope="session")
def vocabulary(tokenizer):
    return read_vocabulary(tokenizer, "qwen3")


@pytest.fixture(scope="session")
def decoder(finished):
    return open_decoder(read_manifest(str(finished.output)).tokenizer)


@pytest.fixture
def loaded_once(monkeypatch, decoder, tokenizer, vocabulary):
    """`find` with the tokenizer that is there already; loading one takes a second."""
    monkeypatch.setattr(finding, "_open", lambda entry: (decoder, tokenizer))
    monkeypatch.setattr(finding, "read_vocabulary", lambda *_: vocabulary)


def rendered(source: str, record: dict):
    """What the configurations of these tests ask for."""
    if source == "talks":
        return chat(*((turn["role"], turn["content"]) for turn in record["turns"]))
    return text(f"# {record['title']}\n\n{record['text']}" if source == "notes" else record["text"])


@functools.cache
def raw_records(file: str) -> Callable[[int], dict]:
    """Of a file that no test changes: its records by offset."""
    if file.endswith(".parquet"):
        return pq.read_table(file).to_pylist().__getitem__
    lines = raw_lines(Path(file))
    return lambda offset: json.loads(lines[offset])


def raw_record(file: str, offset: int) -> dict:
    return raw_records(file)(offset)


@pytest.mark.parametrize("which", ["finished", "varied"])
def test_records_of_every_span_give_its_tokens(which, request, tokenizer):
    """Read anew by the standard library, and rendered and tokenized by the tests' own means."""
    fixture = request.getfixturevalue(which)
    out = fixture if which == "varied" else fixture.output
    manifest = read_manifest(str(out))
    reference, known = Reference(tokenizer), {}
    sources = Counter()
    assert len(manifest.outputs) == (4 if which == "varied" else 1)
    for name, entry in manifest.outputs.items():
        stored = sequences_by_forager(out / name)
        assert len(stored) == entry.sequences
        for number, tokens in enumerate(stored):
            trace = trace_sequence(str(out), manifest, name, number)
            opened = number % 7 == 0  # compressed inputs are read from their beginning each time
            if opened:
                trace = open_records(trace, str(out), manifest)
            assert trace.sequence.number == number and not lost(trace)
            covered = np.zeros(len(tokens), bool)
            for span, licence, record in trace.spans:
                place = (span.source, span.file, span.offset)
                if place not in known:
                    value = raw_record(span.file, span.offset)
                    known[place] = reference.encode([rendered(span.source, value)])[0]
                end = span.start + span.length
                own = known[place][span.position : span.position + span.length]
                assert tokens[span.start : end].tolist() == own
                assert span.ends == (span.position + span.length == len(known[place]))
                assert licence is None
                if opened:
                    assert record.state == "same" and json.loads(record.raw) == raw_record(span.file, span.offset)
                assert not covered[span.start : end].any()
                covered[span.start : end] = True
                sources[span.source] += 1
            assert trace.sequence.padding == np.count_nonzero(~covered[np.flatnonzero(covered).max(initial=-1) + 1 :])
            assert (tokens[~covered] == reference.eod).all()
    assert set(sources) == set(manifest.ledger)


def test_numbers_from_the_end_and_beyond(finished):
    out, manifest = str(finished.output), read_manifest(str(finished.output))
    count = manifest.outputs["train"].sequences
    assert trace_sequence(out, manifest, "train", -1) == trace_sequence(out, manifest, "train", count - 1)
    assert trace_sequence(out, manifest, "train", -count) == trace_sequence(out, manifest, "train", 0)
    for number in (count, -count - 1, 10**30):
        with pytest.raises(ConfigError, match=f"train has {count} sequences, numbered from 0, or from -{count} to -1"):
            trace_sequence(out, manifest, "train", number)


def test_which_output(finished, varied):
    one, several = read_manifest(str(finished.output)), read_manifest(str(varied))
    assert which_output(one, None) == "train" and which_output(several, "B/val") == "B/val"
    with pytest.raises(ConfigError, match="choose one with --output: A/train, A/val, B/train, B/val"):
        which_output(several, None)
    with pytest.raises(ConfigError, match="output 'A' is not there"):
        which_output(several, "A")


# Finding texts.


def all_places(tokens: list[bytes], ids: np.ndarray, wanted: bytes) -> list[Place]:
    """The occurrences in joined tokens, found one byte after the other."""
    owner = [number for number, id_ in enumerate(ids.tolist()) for _ in tokens[id_]]
    joined = b"".join(tokens[id_] for id_ in ids.tolist())
    starts = [at for at in range(len(joined)) if joined.startswith(wanted, at)]
    return [Place(owner[at], owner[at + len(wanted) - 1] + 1) for at in starts]


TOKENS = st.lists(st.text("ab", min_size=1, max_size=5).map(str.encode), max_size=12)


@settings(max_examples=400)
@given(
    TOKENS,
    st.lists(st.integers(0, 10**6), max_size=120),
    st.text("ab", min_size=1, max_size=9).map(str.encode),
    st.integers(1, 40),
    st.data(),
)
def test_every_occurrence_whatever_the_tokens(tmp_path, more, numbers, wanted, block, data):
    tokens = [b"a", b"b", *more]
    ids = np.array([number % len(tokens) for number in numbers], "<u4")
    if len(ids) and data.draw(st.booleans()):  # a text that is there, however it is cut
        joined = b"".join(tokens[id_] for id_ in ids.tolist())
        at = data.draw(st.integers(0, len(joined) - 1))
        wanted = joined[at : at + data.draw(st.integers(1, 30))]
    path = tmp_path / "tokens.bin"
    path.write_bytes(ids.tobytes())
    sample = ids[: data.draw(st.integers(0, len(ids)))]
    finder = TextFinder(Vocabulary(tokens), wanted, sample)
    assert list(find_in_file(finder, str(path), len(tokens), block)) == all_places(tokens, ids, wanted)


def test_texts_longer_than_the_anchors_window(tmp_path, monkeypatch):
    monkeypatch.setattr(find_text, "_ANCHORS", 3)
    tokens = [b"a", b"b", b"ab", b"ba", b"abba", b"bab"]
    ids = np.array([random.Random(1).randrange(6) for _ in range(3000)], "<u4")
    path = tmp_path / "tokens.bin"
    path.write_bytes(ids.tobytes())
    joined = b"".join(tokens[id_] for id_ in ids.tolist())
    for at in range(0, len(joined) - 50, 97):
        wanted = joined[at : at + 50]
        found = list(find_in_file(TextFinder(Vocabulary(tokens), wanted, ids), str(path), 6, 64))
        assert found == all_places(tokens, ids, wanted) and found


def test_the_bytes_of_every_token(tokenizer, vocabulary, qwen3):
    assert len(vocabulary) == qwen3.vocab_size
    ids = range(0, len(vocabulary), 3)
    texts = tokenizer.decode_batch([[id_] for id_ in ids], skip_special_tokens=False)
    assert texts == [vocabulary.tokens[id_].decode("utf-8", "replace") for id_ in ids]
    raw = "naïve 漢字 🇩🇪\x00\x7f\u00ad\u2028 \t\r\n<|im_end|>"
    assert vocabulary.text(np.array(tokenizer.encode(raw, add_special_tokens=False).ids)) == raw.encode()


def test_other_vocabularies_are_refused():
    from tokenizers import Tokenizer, models

    with pytest.raises(ConfigError, match="not a byte-level one"):
        read_vocabulary(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "words")


def test_ids_beyond_the_vocabulary_are_named(tmp_path):
    path = tmp_path / "tokens.bin"
    path.write_bytes(np.array([0, 1, 2], "<u4").tobytes())
    finder = TextFinder(Vocabulary([b"a", b"b"]), b"a", np.array([0]))
    with pytest.raises(BeamPrepError, match="beyond the vocabulary"):
        list(find_in_file(finder, str(path), 2))


@pytest.fixture(scope="session")
def decoded(finished, varied, decoder) -> dict[str, dict]:
    """Folder → (output, sequence, first token of the span) → its text."""
    spans: dict[str, dict] = {}
    for out in (finished.output, varied):
        manifest = read_manifest(str(out))
        spans[str(out)] = {
            (name, number, traced.span.start): traced.span.text
            for name, entry in manifest.outputs.items()
            for number in range(entry.sequences)
            for traced in trace_sequence(str(out), manifest, name, number, decoder).spans
        }
    return spans


def count_overlapping(value: str, wanted: str) -> int:
    return len(re.findall(f"(?={re.escape(wanted)})", value))


@pytest.mark.usefixtures("loaded_once")
def test_find_agrees_with_a_search_of_the_decoded_text(decoded):
    """Texts cut out of documents anywhere, and some that stand in many: as often in the same documents."""
    numbers = random.Random(5)
    checked = 0
    wanted = ["so on and", "漢字", "字 <", "<|im_end|>", "|im_", "<|endoftext|>", "9", "\n\nNum", " is 3?<|im_end|>\n"]
    for out, spans in decoded.items():
        manifest = read_manifest(out)
        for _ in range(12):
            own = numbers.choice(list(spans.values()))
            at = numbers.randrange(len(own))
            piece = own[at : at + numbers.randint(3, 30)]
            wanted += [piece] if "\ufffd" not in piece else []
        for each in wanted:
            found = find(out, manifest, list(manifest.outputs), each, None)
            assert found.kind == "text" and not found.more
            starts = defaultdict(list)
            for name, number, start in spans:
                starts[name, number].append(start)
            per_span: Counter = Counter()
            for match in found.matches:
                begin = max(start for start in starts[match.output, match.sequence] if start <= match.start)
                per_span[match.output, match.sequence, begin] += 1
                shown = "".join(part.text for part in match.snippet)
                assert each in shown
            expected = {place: count for place, own in spans.items() if (count := count_overlapping(own, each))}
            assert per_span == expected, each
            checked += len(expected)
        wanted = []
    assert checked > 500


def test_matches_say_where_they_are(finished, decoder):
    out, manifest = str(finished.output), read_manifest(str(finished.output))
    stored = sequences_by_forager(finished.output / "train")
    found = find(out, manifest, ["train"], "Number 77, 漢", None)
    assert found.matches
    for match in found.matches:
        own = stored[match.sequence][match.start : match.start + match.length]
        assert "Number 77, 漢" in "".join(part.text for part in decoder.parts(own.astype(np.int64)))
        assert json.loads(raw_lines(Path(match.file))[match.offset])["title"] == "Note 77"
        spans = trace_sequence(out, manifest, "train", match.sequence).spans
        (span,) = [t.span for t in spans if t.span.start <= match.start < t.span.start + t.span.length]
        assert match.position == span.position + match.start - span.start
        assert (match.id, match.copy, match.source) == (span.id, span.copy, "notes")


@pytest.mark.usefixtures("loaded_once")
def test_the_query_is_normalized_as_the_text_was(finished):
    out, manifest = str(finished.output), read_manifest(str(finished.output))
    # U+FA47 is a compatibility form of 漢: NFC writes the one for the other.
    assert find(out, manifest, ["train"], "\ufa47字", 5) == find(out, manifest, ["train"], "漢字", 5)


@pytest.mark.usefixtures("loaded_once")
def test_nothing_across_documents(finished):
    out, manifest = str(finished.output), read_manifest(str(finished.output))
    assert not find(out, manifest, ["train"], "<|endoftext|>#", None).matches
    assert not find(out, manifest, ["train"], "<|endoftext|><|endoftext|>", None).matches


# Finding documents and records.


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("which", ["finished", "varied"])
def test_find_documents_and_records(which, request):
    fixture = request.getfixturevalue(which)
    out = fixture if which == "varied" else fixture.output
    manifest = read_manifest(str(out))
    names = list(manifest.outputs)
    by_id, by_record = defaultdict(list), defaultdict(list)
    for name in names:
        for number in range(manifest.outputs[name].sequences):
            for span in (t.span for t in trace_sequence(str(out), manifest, name, number).spans):
                place = (name, number, span.start, span.length, span.position)
                by_id[span.id].append(place)
                by_record[span.file, span.offset].append(place)
    assert max(map(len, by_id.values())) > 1

    def places(wanted: str, kind: str) -> list:
        found = find(str(out), manifest, names, wanted, None)
        assert found.kind == kind
        return [(m.output, m.sequence, m.start, m.length, m.position) for m in found.matches]

    numbers = random.Random(2)
    for id_ in numbers.sample(sorted(by_id), 12):
        assert places(id_, "document") == by_id[id_]
    for file, offset in numbers.sample(sorted(by_record), 12):
        assert places(f"{file}:{offset}", "record") == by_record[file, offset]
        assert places(f"{Path(file).name}:{offset}", "record") == by_record[file, offset]
    file = next(file for file, _ in by_record if not file.endswith(".parquet"))
    assert places(f"{file}:1", "record") == []
    assert places(f"{Path(file).name[1:]}:0", "text") == []  # part of a name is no file
    assert places("0" * 32, "text") == [] and places("0123:0", "text") == []


@pytest.mark.usefixtures("loaded_once")
def test_the_limit(finished):
    out, manifest = str(finished.output), read_manifest(str(finished.output))
    everything = find(out, manifest, ["train"], "and so on", None)
    count = len(everything.matches)
    for limit in (1, 3, count - 1):
        found = find(out, manifest, ["train"], "and so on", limit)
        assert found.matches == everything.matches[:limit] and found.more
    assert find(out, manifest, ["train"], "and so on", count) == everything


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("wanted", ["", "\udcff"])
def test_what_is_no_text(finished, wanted):
    with pytest.raises(ConfigError):
        find(str(finished.output), read_manifest(str(finished.output)), ["train"], wanted, None)


# Records.


@pytest.mark.parametrize("ending", ["", *OPEN])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [b"\n", b""])
def test_every_record_by_its_offset(tmp_path, ending, mark, last):
    numbers = random.Random(4)
    sizes = [1, 5, 70_000, 65_535, 65_536, 131_071, *(numbers.randint(1, 3000) for _ in range(50))]
    lines = [b"%d" % n + b"x" * size for n, size in enumerate(sizes)]
    path = tmp_path / f"records.jsonl{ending}"
    with open(path, "wb") if not ending else OPEN[ending](path, "wb") as file:
        file.write(mark + b"\n".join(lines) + last)
    offsets = [offset for offset, line in raw_lines(path).items() if line]
    assert offsets[0] == len(mark)
    found = read_records(str(path), numbers.sample(offsets, len(offsets)))
    assert [found[offset].raw for offset in offsets] == lines
    wrong = {offset + 1 for offset in offsets} | {10**9}
    for offset, record in read_records(str(path), wrong).items():
        assert (record.state, record.raw) == ("gone", None)
        assert f"no record begins at byte {offset:,} any more" in record.message


def test_rows_of_parquet(tmp_path):
    rows = [{"text": f"row {n}", "other": {"n": n}} for n in range(100)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    found = read_records(str(path), [99, 0, 7, 6, 50])
    assert {row: json.loads(record.raw) for row, record in found.items()} == {n: rows[n] for n in (99, 0, 7, 6, 50)}
    gone = read_records(str(path), [100, 3])
    assert gone[3].raw and "no record begins at row 100 any more" in gone[100].message
    path.write_bytes(b"PAR1 no longer")
    assert "cannot be read as Parquet" in read_records(str(path), [0])[0].message


@pytest.fixture
def moved(finished, tmp_path):
    """A function: the trace of a sequence, its records taken from changed copies of the inputs."""

    def trace(change):
        out, manifest = str(finished.output), read_manifest(str(finished.output))
        for name in ("notes.jsonl", "talks.jsonl.gz"):
            (tmp_path / name).write_bytes((finished.config.parent / name).read_bytes())
        change(tmp_path)
        plain = trace_sequence(out, manifest, "train", 2)
        spans = [t._replace(span=t.span._replace(file=str(tmp_path / Path(t.span.file).name))) for t in plain.spans]
        return open_records(plain._replace(spans=spans), out, manifest)

    return trace


def states(trace) -> dict[str, set[str]]:
    result = defaultdict(set)
    for traced in trace.spans:
        result[traced.span.source].add(traced.record.state)
    return dict(result)


def test_inputs_that_have_changed(moved):
    same = moved(lambda folder: None)
    assert states(same) == {"notes": {"same"}, "talks": {"same"}} and not lost(same)

    def edit(folder):
        path = folder / "notes.jsonl"
        path.write_bytes(path.read_bytes().replace(b"Number", b"number"))
        with gzip.open(folder / "talks.jsonl.gz") as file:
            content = file.read()
        with gzip.open(folder / "talks.jsonl.gz", "wb") as file:
            file.write(content.replace(b'"turns"', b'"tunrs"'))

    changed = moved(edit)
    assert states(changed) == {"notes": {"changed"}, "talks": {"changed"}} and lost(changed)
    for traced in changed.spans:
        assert traced.record.raw
        words = "no longer renders to this document" if traced.span.source == "notes" else "no longer renders ("
        assert words in traced.record.message

    def shift(folder):
        path = folder / "notes.jsonl"
        path.write_bytes(b" " + path.read_bytes().replace(b"\n", b"\n ")[:-1])
        (folder / "talks.jsonl.gz").unlink()

    gone = moved(shift)
    assert states(gone) == {"notes": {"gone"}, "talks": {"gone"}} and lost(gone)
    messages = {traced.span.source: traced.record.message for traced in gone.spans}
    assert "no record begins at byte" in messages["notes"] and "the file is gone" in messages["talks"]

    def cut(folder):
        path = folder / "talks.jsonl.gz"
        path.write_bytes(path.read_bytes()[:20])

    assert "truncated" in next(t.record.message for t in moved(cut).spans if t.span.source == "talks")


def test_records_that_cannot_be_checked(finished):
    out, manifest = str(finished.output), read_manifest(str(finished.output))
    (notes, talks) = manifest.configuration["datasets"]
    datasets = [{**notes, "template": "no_such_module_here:render"}, talks]
    other = manifest.model_copy(update={"configuration": {**manifest.configuration, "datasets": datasets}})
    trace = open_records(trace_sequence(out, manifest, "train", 2), out, other)
    assert states(trace) == {"notes": {"unchecked"}, "talks": {"same"}} and not lost(trace)
    (message, *_) = [t.record.message for t in trace.spans if t.span.source == "notes"]
    assert "could not be checked" in message and "no_such_module_here" in message


# The command.


def run(*arguments: str):
    return CliRunner().invoke(cli, ["trace", *arguments])


def test_command(finished):
    out = str(finished.output)
    count = manifest_of(finished.output)["outputs"]["train"]["sequences"]
    result = run(out, "-1")
    assert result.exit_code == 0 and result.stdout.startswith(f"train, sequence {count - 1}: 64 tokens")
    result = run(out, "2", "--text", "--open", "--json", "--output", "train")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    for span in shown["spans"]:
        assert span["continuation"] == (span["position"] > 0) and span["licence"] is None
        assert span["record"]["state"] == "same" and span["text"]
        assert json.loads(span["record"]["raw"]) == raw_record(span["file"], span["offset"])
    assert "text" not in json.loads(run(out, "2", "--json").stdout)["spans"][0]
    result = run(out, "2", "--text", "--open")
    assert result.exit_code == 0
    for span in shown["spans"]:
        assert f"id {span['id']}" in result.stdout and f"byte {span['offset']:,}" in result.stdout
    assert result.stdout.count("→ the record, which renders to this document") == len(shown["spans"])


def test_command_shortens_unless_full(finished, monkeypatch):
    monkeypatch.setattr(tables, "SHORT", 5)
    for what in ("--open", "--text"):
        whole, short = (run(str(finished.output), "2", what, *more) for more in (["--full"], []))
        assert whole.exit_code == short.exit_code == 0
        assert "more characters" in short.stdout and "more characters" not in whole.stdout


def test_command_licences_and_changed_inputs(damaged, finished):
    path = damaged / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["licences"] = {"notes": "CC0-1.0", "talks": None}
    manifest["configuration"]["datasets"][0]["template"]["text"] = "{{ title }}"
    path.write_text(json.dumps(manifest))
    result = run(str(damaged), "2", "--open")
    assert result.exit_code == 1
    assert "licence CC0-1.0" in result.stdout and "→ the record as it is now: it no longer renders" in result.stdout


@pytest.mark.usefixtures("loaded_once")
def test_command_find(finished):
    out = str(finished.output)
    result = run(out, "--find", "Number 77, 漢", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["kind"] == "text" and not found["more"]
    match = found["matches"][0]
    result = run(out, "--find", "Number 77, 漢")
    assert f"train, sequence {match['sequence']}, tokens {match['start']} to" in result.stdout
    assert "in all" in result.stdout and f"beam-prep trace {out} {match['sequence']} --output train" in result.stdout
    assert "there are more" in run(out, "--find", "and so on", "--limit", "2").stdout
    assert "in all" in run(out, "--find", "and so on", "--limit", "0").stdout
    result = run(out, "--find", "nowhere to be\nfound")
    assert result.exit_code == 1 and result.stdout == "no document holds 'nowhere to be⏎found'\n"
    result = run(out, "--find", "notes.jsonl:1")
    assert result.exit_code == 1 and result.stdout.startswith("no document comes from notes.jsonl:1: no record")
    result = run(out, "--find", match["id"])
    assert result.exit_code == 0 and f"id {match['id']}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["99999"], "error: sequence 99,999: train has"),
        (["-99999"], "error: sequence -99,999: train has"),
        (["0", "--output", "test"], "error: output 'test' is not there"),
        (["--find", "x", "--output", "test"], "error: output 'test' is not there"),
        ([], "error: give the number of a sequence, or --find WHAT"),
        (["0", "--find", "x"], "error: give the number of a sequence, or --find WHAT"),
        (["--find", "x", "--open"], "error: --text and --open are for one sequence"),
        (["--find", ""], "error: nothing to find"),
        (["0", "--txt"], "unexpected extra argument"),
    ],
)
def test_wrong_calls(finished, arguments, message):
    result = run(str(finished.output), *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_unfinished_and_damaged_outputs(damaged):
    (damaged / "train/documents").rename(damaged / "elsewhere")
    for arguments in (["0"], ["--find", "Number"], ["--find", "0" * 32]):
        result = run(str(damaged), *arguments)
        assert result.exit_code == 1 and "verify" in result.stderr
    (damaged / "_SUCCESS").unlink()
    for arguments in (["0"], ["--find", "x"]):
        result = run(str(damaged), *arguments)
        assert result.exit_code == 1 and "is not finished" in result.stderr


def test_another_tokenizer_than_the_run_s(damaged):
    path = damaged / "manifest.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {"tokenizer": {**json.loads(path.read_text())["tokenizer"], "sha256": "0" * 64}}
        )
    )
    result = run(str(damaged), "--find", "Number")
    assert result.exit_code == 1 and "is another one today" in result.stderr
    result = run(str(damaged), "0", "--text")
    assert result.exit_code == 0 and "is another one today" in result.stderr
