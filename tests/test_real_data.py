"""Real data of many scripts, through `examples/real_data.yaml`: every token is Hugging Face's.

The data lies beside the repository; where it is absent, these tests are skipped.
"""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from results import Place, Reference, Rendered, chat, manifest_of, raw_lines, read_documents, sequences_by_forager, text

from beam_prep.config import load_config
from beam_prep.launch import AlreadyDone, RunOptions, prepare, run
from beam_prep.tokenizer import TokenizerSpec, decoder

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "real_data.yaml"

FIRST_BYTES = 2_200_000
"""Documents that begin before this byte of their file are compared."""


def render(source: str, record: dict[str, Any]) -> Rendered:
    """What a record of the example should render to, by the catalogue's description."""
    match source:
        case "wikipedia":
            return text(f"# {record['title']}\n\n{record['text']}")
        case "gsm8k":
            return text(f"Problem: {record['question']}\n\nSolution: {record['answer']}")
        case "codesearchnet":
            return text(record["whole_func_string"])
        case "toolace":
            turns = [(turn["from"], turn["value"]) for turn in record["conversations"]]
            return chat(*[turn for turn in [("system", record["system"]), *turns] if turn[1]])
        case "sharegpt":
            pairs = [(t["user utterance"], t["system response"]) for t in record["log"]]
            turns = [turn for user, answer in pairs for turn in (("user", user), ("assistant", answer))]
            return chat(*[turn for turn in turns if turn[1]])
    return text(record["text"])


class Sample(NamedTuple):
    """The documents of the output that are looked at."""

    places: list[Place]
    rendered: list[Rendered]
    produced: list[np.ndarray]
    wanted: list[list[int]]


@pytest.fixture(scope="module")
def out(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The output of the example as it stands, in a folder that has the data where the example looks for it."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "data").symlink_to(real_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = load_config(str(EXAMPLE), {"output": str(folder / "out")})
        run(prepare(config, RunOptions()))
        yield folder / "out"


@pytest.fixture(scope="module")
def reference(qwen3: TokenizerSpec) -> Reference:
    return Reference(decoder(qwen3))


@pytest.fixture(scope="module")
def documents(out: Path) -> dict[Place, np.ndarray]:
    return read_documents(out)


@pytest.fixture(scope="module")
def records(out: Path, documents: dict[Place, np.ndarray]) -> dict[str, dict[int, bytes]]:
    """File → offset → line, of every input."""
    return {file: raw_lines(out.parent / file) for file in sorted({where.file for where in documents})}


@pytest.fixture(scope="module")
def sample(documents: dict[Place, np.ndarray], records: dict[str, dict[int, bytes]], reference: Reference) -> Sample:
    chosen = [p for p in sorted(documents) if p.offset < FIRST_BYTES]
    rendered = [render(where.source, json.loads(records[where.file][where.offset])) for where in chosen]
    distinct = sorted(set(rendered))
    encoded = dict(zip(distinct, reference.encode(distinct), strict=True))
    return Sample(chosen, rendered, [documents[where] for where in chosen], [encoded[r] for r in rendered])


def test_every_token_of_a_mixed_sample(sample: Sample) -> None:
    size = sum(len(document.text.encode()) for document in set(sample.rendered))
    assert size > 20_000_000
    files = {Path(where.file).name.split(".")[0] for where in sample.places}
    assert files >= {
        "wikipedia-zh",
        "wikipedia-ko",
        "ar-openiti",
        "emoji-unicode-cldr",
        "math-stacks-project-tex",
        "code-go",
        "code-rust",
        "literal-special-tokens",
        "toolace",
        "sharegpt",
    }
    wrong = [
        where
        for where, produced, wanted in zip(sample.places, sample.produced, sample.wanted, strict=True)
        if not np.array_equal(produced, np.array(wanted, np.uint32))
    ]
    assert wrong == []


def test_decoding_gives_the_normal_form_back(sample: Sample, reference: Reference) -> None:
    bodies = [tokens[:-1].tolist() for tokens in sample.produced]
    decoded = reference.plain.decode_batch(bodies, skip_special_tokens=False)
    for where, found, document in zip(sample.places, decoded, sample.rendered, strict=True):
        assert found == unicodedata.normalize("NFC", document.text), where


def test_control_tokens_come_from_templates_only(
    documents: dict[Place, np.ndarray], qwen3: TokenizerSpec, reference: Reference
) -> None:
    control = np.array([id_ for _, id_ in qwen3.special_tokens], np.uint32)
    for where, tokens in documents.items():
        assert tokens[-1] == reference.eod
        if where.source not in ("toolace", "sharegpt"):
            assert not np.isin(tokens[:-1], control).any(), where
        else:
            assert (tokens[:-1] != reference.eod).all()
            assert (tokens == dict(qwen3.special_tokens)["<|im_start|>"]).sum() >= 2


def test_the_ledger_adds_up_to_the_record(
    out: Path, documents: dict[Place, np.ndarray], records: dict[str, dict[int, bytes]]
) -> None:
    manifest = manifest_of(out)
    for name, entry in manifest["ledger"].items():
        own = [where for where in documents if where.source == name]
        lines = sum(
            sum(bool(line.strip()) for line in records[file].values()) for file in {where.file for where in own}
        )
        assert entry["records"] == lines, name
        ends = sum(entry["rejected"].values()) + sum(entry["filtered"].values())
        ends += entry["duplicates"] + entry["sampled_out"] + entry["documents"]
        assert entry["records"] == ends
        assert entry["documents"] == len({where[:3] for where in own})
        assert entry["tokens"] == sum(len(documents[where]) for where in own)
    assert set(manifest["outputs"]["train"]["sources"]) == set(manifest["ledger"])
    assert manifest["outputs"]["train"]["sources"]["gsm8k"]["epochs"] == 2


def test_forager_reads_every_sequence(out: Path) -> None:
    described = manifest_of(out)["outputs"]["train"]
    sequences = sequences_by_forager(out / "train")
    assert sequences.shape == (described["sequences"], 4096)
    stored = b"".join((out / "train" / shard["path"]).read_bytes() for shard in described["shards"])
    assert sequences.astype("<u4").tobytes() == stored


def test_there_is_nothing_to_do_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out.parent)
    with pytest.raises(AlreadyDone):
        prepare(load_config(str(EXAMPLE), {"output": str(out)}), RunOptions())
