"""Documents that no output will hold are not encoded, and nothing else changes."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from steps import EOD, Doc, deduplicate_runs, make_run, naive_output, write_outputs

from beam_prep.carrier import Carrier, length
from beam_prep.ledger import Tally
from beam_prep.mix import document_ids
from beam_prep.outputs import Output
from beam_prep.runs import RunBuilder, TokenLimits, entries_array, flat_pieces
from beam_prep.selection import select, selection
from beam_prep.transform import DocumentBatch

NO_LIMITS = TokenLimits(0, 2**31)
WHOLE = (0.0, 1.0)


def batch_of(texts: list[str]) -> DocumentBatch:
    chars = np.array([len(t) for t in texts], np.uint32)
    tally = Tally(records=len(texts), rendered=len(texts))
    offsets = np.arange(len(texts), dtype=np.uint64)
    return DocumentBatch(0, "u", True, 0, "f", list(texts), offsets, chars, tally, [], document_ids(list(texts)))


def test_when_everything_must_be_encoded() -> None:
    def of(*outputs: Output, limits: TokenLimits = NO_LIMITS) -> bool:
        return selection(outputs, 0, limits) is None

    assert of(Output("train", 8, WHOLE, (1.0,)))
    assert of(Output("train", 8, (0.0, 0.5), (1.0,)), Output("val", 8, (0.5, 1.0), (2.5,)))
    assert of(Output("train", 8, WHOLE, (None,), (1.0,)))
    assert of(Output("a", 8, WHOLE, (0.1,)), Output("b", 8, WHOLE, (None,), (1.0,)))
    assert of(Output("train", 8, WHOLE, (0.5,), min_tokens=3))
    assert of(Output("train", 8, WHOLE, (0.5,)), limits=TokenLimits(1, 2**31))
    assert of(Output("train", 8, WHOLE, (0.5,)), limits=TokenLimits(0, 100))
    assert not of(Output("train", 8, WHOLE, (0.5,)))
    assert not of(Output("train", 8, WHOLE, (0.0,)))
    assert not of(Output("long", 8, WHOLE, (1.0,), min_chars=5))


@given(
    st.lists(st.text("ab", max_size=9), max_size=60, unique=True),
    st.floats(0, 1.5),
    st.floats(0, 1),
    st.integers(0, 6),
    st.integers(0, 9),
)
def test_the_outputs_are_the_same(texts: list[str], rate: float, cut: float, least: int, seed: int) -> None:
    outputs = (
        Output("train", 7, (0.0, cut), (rate, 1.0, 1.0)),
        Output("long", 7, (cut, 1.0), (rate / 3, 1.0, 1.0), min_chars=least),
    )
    batch = batch_of(texts)
    chosen = select(batch, selection(outputs, 0, NO_LIMITS), seed)
    docs = [Doc(0, 0, n, text) for n, text in enumerate(texts)]
    # The documents that the naive reference writes are exactly those that are encoded.
    written = {
        n
        for n, doc in enumerate(docs)
        for output in outputs
        if len(doc.text) >= output.min_chars and naive_output([doc], output, True, seed, "pad").tokens
    }
    encoded = set(range(len(texts))) if chosen.wanted is None else set(np.nonzero(chosen.wanted)[0].tolist())
    assert written <= encoded
    if chosen.wanted is not None:
        assert written == encoded
        assert [d for n, d in enumerate(chosen.documents) if n not in encoded] == [""] * (len(texts) - len(encoded))
    assert [chosen.documents[n] for n in sorted(encoded)] == [texts[n] for n in sorted(encoded)]


def test_what_is_not_wanted_is_neither_encoded_nor_spilled(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(200)]
    output = Output("train", 16, WHOLE, (0.25, 0.0, 0.0))
    carrier = Carrier(str(tmp_path / "work"))
    chosen = select(batch_of(texts), selection((output,), 0, NO_LIMITS), 0)
    pieces = flat_pieces(chosen)
    assert len(pieces) == 200 and 20 < sum(map(bool, pieces)) < 80
    builder = RunBuilder("run", 0, 0, {}, EOD.to_bytes(4, "little"))
    ids = "".join(pieces).encode("utf-32-le")
    builder.add(chosen, NO_LIMITS, ids, np.cumsum([0, *map(len, pieces)]).astype(np.uint64))
    run = builder.write(carrier)
    entries = entries_array(Path(run.entries.path).read_bytes())
    assert run.documents == 200 and (entries["tokens"] > 0).sum() == sum(map(bool, pieces))
    assert length(run.tokens) == 4 * entries["tokens"].sum()

    docs = [Doc(0, 0, n, text) for n, text in enumerate(texts)]
    whole = make_run(Carrier(str(tmp_path / "other")), "run", docs)
    found = [deduplicate_runs([r], (output,)).counts.cells[0, 0] for r in (run, whole)]
    assert found[0][0] == found[1][0] == 200 and found[0][2] == found[1][2]
    first = write_outputs([run], (output,), carrier, tmp_path / "first")
    second = write_outputs([whole], (output,), Carrier(str(tmp_path / "other")), tmp_path / "second")
    assert first.streams == second.streams == {"train": naive_output(docs, output, True, 0, "pad").shards}
