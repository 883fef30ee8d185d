"""Best-fit packing: against a naive best-fit decreasing, and through bucket and shard to what can be read back."""

import hashlib
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from steps import EOD, NAMES, Doc, Written, make_run, toy_tokens, write_outputs

from beam_prep import balance
from beam_prep.best_fit import pack_best_fit
from beam_prep.carrier import Carrier
from beam_prep.manifest import LedgerEntry, Manifest, OutputEntry, ShardEntry, SourceEntry, TokenizerEntry
from beam_prep.outputs import Output
from beam_prep.packing import SPAN, Packed, with_rest
from beam_prep.shards import ShardRecord
from beam_prep.token_checks import check_tokens
from beam_prep.verification import check_figures


def naive_fills(lengths: list[int], context_length: int) -> list[int]:
    """Tokens in each sequence: every piece, longest first, goes to the fullest sequence that still holds it."""
    fills = [context_length for length in lengths for _ in range(length // context_length)]
    for piece in sorted((length % context_length for length in lengths), reverse=True):
        fitting = [fill for fill in fills if fill + piece <= context_length]
        if piece and fitting:
            fills[fills.index(max(fitting))] += piece
        elif piece:
            fills.append(piece)
    return fills


def everything(packed: Packed) -> np.ndarray:
    """The spans of all sequences, the rest's too."""
    assert packed.spans.dtype == packed.rest.dtype == SPAN
    return with_rest(packed).spans


def fills_of(packed: Packed) -> list[int]:
    """Tokens in each sequence, the rest last."""
    spans = everything(packed)
    return np.bincount(spans["sequence"], weights=spans["length"]).astype(int).tolist()


_lengths = st.one_of(
    st.lists(st.integers(1, 40), max_size=60),
    st.lists(st.sampled_from([3, 5, 8, 21]), max_size=200),  # many of one length
    st.lists(st.integers(1, 200), max_size=20),
)
_contexts = st.integers(1, 60)


@given(lengths=_lengths, context_length=_contexts)
def test_against_the_reference(lengths: list[int], context_length: int) -> None:
    packed = pack_best_fit(np.array(lengths, np.uint32), context_length)
    assert sorted(fills_of(packed)) == sorted(naive_fills(lengths, context_length))


def test_against_the_reference_on_many_documents() -> None:
    numbers = np.random.default_rng(0)
    for context_length in (100, 512, 4096):
        lengths = np.maximum(numbers.lognormal(5.5, 1.2, 1500), 2).astype(np.uint32)
        packed = pack_best_fit(lengths, context_length)
        assert sorted(fills_of(packed)) == sorted(naive_fills(lengths.tolist(), context_length))


@given(lengths=_lengths, context_length=_contexts)
def test_documents_lie_somewhere_once_and_are_cut_where_they_must_be(lengths: list[int], context_length: int) -> None:
    spans = everything(pack_best_fit(np.array(lengths, np.int64), context_length))
    assert (spans["start"] + spans["length"] <= context_length).all()
    for row, length in enumerate(lengths):
        own = np.sort(spans[spans["row"] == row], order="position")
        wanted = [context_length] * (length // context_length) + [length % context_length] * bool(
            length % context_length
        )
        assert own["length"].tolist() == wanted
        assert own["position"].tolist() == [n * context_length for n in range(len(wanted))]
    assert len(spans) == sum(-(-length // context_length) for length in lengths)


@given(lengths=_lengths, context_length=_contexts)
def test_the_order_of_spans(lengths: list[int], context_length: int) -> None:
    packed = pack_best_fit(np.array(lengths, np.int64), context_length)
    spans = everything(packed)
    assert np.unique(spans["sequence"]).tolist() == list(range(packed.sequences + bool(len(packed.rest))))
    places = list(zip(spans["sequence"].tolist(), spans["row"].tolist(), strict=True))
    assert places == sorted(set(places))
    # Gaps stand at the ends of sequences alone.
    for before, span in zip([None, *spans], spans, strict=False):
        same = before is not None and before["sequence"] == span["sequence"]
        assert span["start"] == (before["start"] + before["length"] if same else 0)


@given(lengths=_lengths, context_length=_contexts)
def test_the_rest_is_the_emptiest_sequence(lengths: list[int], context_length: int) -> None:
    packed = pack_best_fit(np.array(lengths, np.int64), context_length)
    fills = fills_of(packed)
    assert bool(len(packed.rest)) == (min(fills, default=context_length) < context_length)
    if len(packed.rest):
        rest = packed.rest
        assert fills[-1] == min(fills)
        assert (rest["position"] + rest["length"] == np.array(lengths)[rest["row"]]).all()
        assert len(set(rest["row"].tolist())) == len(rest)
    assert packed.sequences == len(fills) - bool(len(packed.rest))


@given(lengths=_lengths, context_length=_contexts)
def test_no_two_sequences_would_fit_one(lengths: list[int], context_length: int) -> None:
    fills = sorted(fills_of(pack_best_fit(np.array(lengths, np.int64), context_length)))
    assert len(fills) < 2 or fills[0] + fills[1] > context_length
    assert len(fills) <= 2 * -(-sum(lengths) // context_length)


@given(lengths=_lengths, context_length=_contexts, dtype=st.sampled_from([np.uint16, np.uint32, np.int32, np.uint64]))
def test_the_result_follows_from_the_lengths(lengths: list[int], context_length: int, dtype: type) -> None:
    first = pack_best_fit(np.array(lengths, np.int64), context_length)
    again = pack_best_fit(np.array(lengths, dtype), context_length)
    assert first.spans.tobytes() == again.spans.tobytes()
    assert (first.sequences, first.rest.tobytes()) == (again.sequences, again.rest.tobytes())


def test_by_hand() -> None:
    packed = pack_best_fit(np.array([3, 25, 6, 4, 7, 2]), 10)
    # 25 = 10 + 10 + 5; then 7, 6, 5, 4 (with the 6), 3 (with the 7), 2 (with the 5).
    assert packed.sequences == 4
    assert packed.rest[["row", "position", "length", "sequence", "start"]].tolist() == [
        (1, 20, 5, 4, 0),
        (5, 0, 2, 4, 5),
    ]
    together = defaultdict(list)
    for row, position, length, sequence, start in packed.spans.tolist():
        together[sequence].append((row, position, length, start))
    assert sorted(together.values()) == [
        [(0, 0, 3, 0), (4, 0, 7, 3)],
        [(1, 0, 10, 0)],
        [(1, 10, 10, 0)],
        [(2, 0, 6, 0), (3, 0, 4, 6)],
    ]


def test_no_documents() -> None:
    packed = pack_best_fit(np.empty(0, np.uint32), 8)
    assert (len(packed.spans), packed.sequences, len(packed.rest)) == (0, 0, 0)


def test_documents_of_half_a_sequence_and_one_leave_no_more_than_one_of_them() -> None:
    packed = pack_best_fit(np.full(1000, 33, np.uint32), 64)
    assert (packed.sequences, len(packed.rest)) == (999, 1)
    assert type(packed.sequences) is int  # it goes into the manifest


def test_the_longest_context() -> None:
    packed = pack_best_fit(np.array([2**31 + 5, 2**31 - 5, 1], np.int64), 2**31)
    assert packed.sequences == 2
    assert packed.rest.tolist() == [(2, 0, 1, 2, 0)]


def test_neither_length_nor_fill_shows_in_the_order() -> None:
    """Sequences of one long document, of many short ones, and incomplete ones."""
    numbers = np.random.default_rng(1)
    lengths = np.concatenate([numbers.integers(5, 30, 40_000), np.full(2000, 512), numbers.integers(400, 512, 3000)])
    packed = pack_best_fit(numbers.permutation(lengths), 512)
    spans, count = packed.spans, packed.sequences
    documents = np.bincount(spans["sequence"])
    fill = np.bincount(spans["sequence"], weights=spans["length"])
    place = np.arange(count)
    assert len(np.unique(fill)) > 1 and len(np.unique(documents)) > 10
    for measure in (documents, fill, spans["length"][np.searchsorted(spans["sequence"], place)]):
        assert abs(np.corrcoef(place, measure)[0, 1]) < 4 / np.sqrt(count)
        assert abs(np.corrcoef(measure[1:], measure[:-1])[0, 1]) < 4 / np.sqrt(count)
    # Within sequences of several documents the longest one is first as often as chance has it.
    several = [spans["length"][a:b] for a, b in zip(*_bounds(spans), strict=True) if b - a > 1]
    first = np.mean([own[0] == own.max() for own in several])
    chance = [(own == own.max()).mean() for own in several]
    assert abs(first - np.mean(chance)) < 4 * np.sqrt(0.25 / len(several))


def _bounds(spans: np.ndarray) -> tuple[list[int], list[int]]:
    heads = np.flatnonzero(np.diff(spans["sequence"].astype(np.int64), prepend=-1))
    return heads.tolist(), np.append(heads[1:], len(spans)).tolist()


# --- through buckets and shards -------------------------------------------------------------------------------------

LENGTH = 32


def toy_documents(seed: int, count: int, longest: int) -> list[Doc]:
    """Documents of distinct texts, some longer than a sequence."""
    numbers = random.Random(seed)
    docs = []
    for n in range(count):
        text = f"{n} " + "".join(numbers.choices("abcdefgh", k=int(longest * numbers.random() ** 3)))
        docs.append(Doc(numbers.randrange(3), numbers.randrange(2), n, text))
    return docs


def packed_output(
    docs: list[Doc], folder: Path, patch: pytest.MonkeyPatch, files: bool, tail: str, bucket_tokens: int
) -> Written:
    """Takes documents through all steps, packed by best fit."""
    patch.setattr(balance, "MIN_BUCKET_TOKENS", bucket_tokens)
    carrier = Carrier(str(folder / "work") if files else None)
    runs = [make_run(carrier, f"run-{s}", own) for s in range(3) if (own := [d for d in docs if d.source == s])]
    output = Output("train", LENGTH, (0.0, 1.0), (1.0, 2.0, 1.0), packing="best_fit")
    return write_outputs(runs, (output,), carrier, folder, tail=tail)


def manifest_of(records: list[ShardRecord], tail: str) -> Manifest:
    """What verify reads of an output."""
    shards, sources = [], {}
    for r in records:
        sums = r.path, r.sequences, r.bytes, r.sha256, r.documents_path, r.documents_sha256, r.spans
        shards.append(ShardEntry(**dict(zip(ShardEntry.model_fields, sums, strict=True))))
    tokens = sum(sum(r.source_tokens) for r in records)
    for n, name in enumerate(NAMES):
        counts = [
            sum(getattr(r, key)[n] for r in records) for key in ("source_documents", "source_copies", "source_tokens")
        ]
        sources[name] = SourceEntry(
            documents=counts[0], copies=counts[1], tokens=counts[2], share=counts[2] / tokens, epochs=1.0
        )
    sequences = sum(r.sequences for r in records)
    cut = sum(r.cut for r in records)
    entry = OutputEntry(
        context_length=LENGTH,
        packing="best_fit",
        sequences=sequences,
        tokens=tokens,
        padding=sum(r.padding for r in records),
        dropped_tokens=sum(r.dropped_tokens for r in records),
        cut_documents=cut,
        fill=tokens / (sequences * LENGTH),
        cut_share=cut / sum(s.copies for s in sources.values()),
        sources=sources,
        shards=shards,
    )
    record = LedgerEntry(records=1, rejected={}, filtered={}, duplicates=0, sampled_out=0, documents=1, tokens=1)
    return Manifest(
        version="0",
        fingerprint="0" * 64,
        tokenizer=TokenizerEntry(name="toy", sha256="0" * 64, eod_token_id=EOD, vocab_size=EOD + 1),
        dtype="uint32",
        context_length=LENGTH,
        seed=0,
        configuration={"packing": "best_fit", "tail": tail, "stages": []},
        outputs={"train": entry},
        ledger=dict.fromkeys(NAMES, record),
    )


def findings(folder: Path, manifest: Manifest) -> list[str]:
    entry = manifest.outputs["train"]
    found = check_figures(manifest, "train", entry)
    found += check_tokens(str(folder), "train", entry, manifest, lambda size: None)
    return [finding.problem for finding in found]


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from([1, 7, 60]),
    longest=st.sampled_from([10, 40, 300]),
    files=st.booleans(),
    tail=st.sampled_from(["pad", "drop"]),
    bucket_tokens=st.sampled_from([40, 300, 100_000]),
)
@example(seed=0, count=200, longest=300, files=True, tail="drop", bucket_tokens=1000)
@example(seed=0, count=200, longest=300, files=False, tail="pad", bucket_tokens=1000)
def test_documents_are_found_again_in_the_shards(
    seed: int,
    count: int,
    longest: int,
    files: bool,
    tail: str,
    bucket_tokens: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    docs = toy_documents(seed, count, longest)
    folder = tmp_path_factory.mktemp("case")
    written = packed_output(docs, folder, monkeypatch, files, tail, bucket_tokens)
    parts: dict[tuple[int, int], list[tuple[int, int, list[int]]]] = defaultdict(list)
    for number, (record, tokens) in enumerate(zip(written.records, written.streams["train"], strict=True)):
        covered = np.zeros(len(tokens), bool)
        for row in pq.read_table(folder / "train" / record.documents_path).to_pylist():
            at = row["sequence"] * LENGTH + row["start"]
            assert not covered[at : at + row["length"]].any()
            covered[at : at + row["length"]] = True
            sequence = (number, row["sequence"])
            parts[row["offset"], row["copy"]].append((row["position"], sequence, tokens[at : at + row["length"]]))
        assert (np.diff(covered.reshape(-1, LENGTH).astype(int), axis=1) <= 0).all()  # gaps at ends alone
        assert covered.reshape(-1, LENGTH).any(axis=1).all()
        assert all(tokens[at] == EOD for at in np.flatnonzero(~covered))
        assert record.padding == (~covered).sum()
    dropped = sum(r.dropped_tokens for r in written.records)
    assert dropped < LENGTH and (tail == "drop" or not dropped)
    cut = lost = 0
    for (offset, _), spans in parts.items():
        wanted = toy_tokens(docs[offset].text)
        found = [token for *_, own in sorted(spans) for token in own]
        assert [position for position, *_ in sorted(spans)] == list(range(0, len(found), LENGTH))
        assert wanted[: len(found)] == found and len(found) in (len(wanted), len(wanted) // LENGTH * LENGTH)
        lost += len(wanted) - len(found)
        cut += len(wanted) > LENGTH
        assert len(spans) == 1 or len(wanted) > LENGTH
    copies = sum(2 if doc.source == 1 else 1 for doc in docs)
    total = sum(len(toy_tokens(doc.text)) * (2 if doc.source == 1 else 1) for doc in docs)
    assert len(parts) == copies or (dropped and len(parts) < copies)
    assert lost <= dropped and sum(sum(r.source_tokens) for r in written.records) == total - dropped
    assert sum(r.cut for r in written.records) == cut
    # `finalize` writes the shards of buckets that nothing falls into; here they are missing, and shards are numbered.
    if len(written.records) == written.plan.outputs[0].buckets and any(r.sequences for r in written.records):
        assert findings(folder, manifest_of(written.records, tail)) == []


def test_several_buckets_leave_rests_of_cut_documents_to_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests above and below lean on."""
    written = packed_output(toy_documents(0, 200, 300), tmp_path, monkeypatch, True, "pad", 1000)
    assert len(written.records) > 5
    last = pq.read_table(tmp_path / "train" / written.records[-1].documents_path).to_pylist()
    ids = [
        {row["id"] for row in pq.read_table(tmp_path / "train" / record.documents_path).to_pylist()}
        for record in written.records
    ]
    gone_on = [row for row in last if row["position"] and any(row["id"] in own for own in ids[:-1])]
    assert gone_on and sum(r.padding for r in written.records[:-1]) > 0


def test_both_carriers_give_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = toy_documents(3, 300, 120)
    one = packed_output(docs, tmp_path / "one", monkeypatch, True, "pad", 1000)
    other = packed_output(docs[::-1], tmp_path / "other", monkeypatch, False, "pad", 1000)
    assert [r.sha256 for r in one.records] == [r.sha256 for r in other.records]
    assert [r.documents_sha256 for r in one.records] == [r.documents_sha256 for r in other.records]


class TestVerify:
    """What the checks of verify find in outputs of best fit, and only there."""

    @pytest.fixture
    def output(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Manifest]:
        written = packed_output(toy_documents(1, 200, 300), tmp_path, monkeypatch, True, "pad", 1000)
        manifest = manifest_of(written.records, "pad")
        assert findings(tmp_path, manifest) == [] and len(manifest.outputs["train"].shards) > 3
        return tmp_path, manifest

    def changed(self, output: tuple[Path, Manifest], more: int = 0, **columns) -> str:  # type: ignore[no-untyped-def]
        """The first problem in the shards when functions of columns have been applied to the first sidecar.

        `more`: sequences that the manifest states in excess.
        """
        folder, manifest = output
        entry = manifest.outputs["train"]
        path = folder / "train" / entry.shards[0].documents
        table = pq.read_table(path)
        for name, change in columns.items():
            values = table.column(name).to_numpy().copy()
            change(values)
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(index), [values])
        pq.write_table(table, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sequences = entry.shards[0].sequences + more
        shard = entry.shards[0].model_copy(update={"documents_sha256": digest, "sequences": sequences})
        entry = entry.model_copy(update={"shards": [shard, *entry.shards[1:]]})
        return check_tokens(str(folder), "train", entry, manifest, lambda size: None)[0].problem

    def first(self, folder: Path, manifest: Manifest, **update) -> str:  # type: ignore[no-untyped-def]
        entry = manifest.outputs["train"].model_copy(update=update)
        return findings(folder, manifest.model_copy(update={"outputs": {"train": entry}}))[0]

    def test_padding_of_concat_stands_at_the_end(self, output: tuple[Path, Manifest]) -> None:
        folder, manifest = output
        assert "padding is" in self.first(folder, manifest, packing="concat")
        entry = manifest.outputs["train"].model_copy(update={"packing": "concat"})
        found = check_tokens(str(folder), "train", entry, manifest, lambda size: None)
        assert any("leaves tokens before it that no document has" in finding.problem for finding in found)

    def test_a_gap_inside_a_sequence(self, output: tuple[Path, Manifest]) -> None:
        def shorten(lengths: np.ndarray) -> None:
            starts = pq.read_table(output[0] / "train" / output[1].outputs["train"].shards[0].documents).column("start")
            lengths[int(np.flatnonzero(starts.to_numpy())[0]) - 1] -= 1

        assert "leaves tokens before it that no document has" in self.changed(output, length=shorten)

    def test_a_gap_at_the_beginning_of_a_sequence(self, output: tuple[Path, Manifest]) -> None:
        def later(starts: np.ndarray) -> None:
            assert starts[0] == 0
            starts[0] += 1

        def shorten(lengths: np.ndarray) -> None:
            lengths[0] -= 1

        assert "row 0" in (problem := self.changed(output, start=later, length=shorten))
        assert "leaves tokens before it" in problem

    def test_a_sequence_without_documents(self, output: tuple[Path, Manifest]) -> None:
        def onwards(sequences: np.ndarray) -> None:
            sequences[sequences >= 2] += 1

        problem = self.changed(output, more=1, sequence=onwards)
        assert "leaves a sequence before it that no document has" in problem

    def test_sequences_without_documents_at_the_end(self, output: tuple[Path, Manifest]) -> None:
        assert "at the end of the shard belong to no document" in self.changed(output, more=1)

    def test_a_cut_that_was_not_needed(self, output: tuple[Path, Manifest]) -> None:
        def elsewhere(positions: np.ndarray) -> None:
            positions[np.flatnonzero(positions)[0]] += 1

        assert "begins where `best_fit` cuts no document" in self.changed(output, position=elsewhere)

    def test_padding_that_is_no_separator(self, output: tuple[Path, Manifest]) -> None:
        folder, manifest = output
        shard = manifest.outputs["train"].shards[0]
        table = pq.read_table(folder / "train" / shard.documents)
        ends = (table.column("start").to_numpy() + table.column("length").to_numpy()).astype(int)
        row = next(n for n in range(len(ends) - 1) if ends[n] < LENGTH and table.column("start")[n + 1].as_py() == 0)
        at = table.column("sequence")[row].as_py() * LENGTH + int(ends[row])
        path = folder / "train" / shard.path
        tokens = np.fromfile(path, "<u4")
        assert tokens[at] == EOD
        tokens[at] = 5
        tokens.tofile(path)
        shards = list(manifest.outputs["train"].shards)
        shards[0] = shard.model_copy(update={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        assert "padding that is not the separator" in self.first(folder, manifest, shards=shards)
