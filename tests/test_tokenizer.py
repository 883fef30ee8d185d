"""The tokenizer: the one that was asked for, and exactly the ids that Hugging Face gives."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from beam_prep import tokenizer as module
from beam_prep.carrier import Carrier, load
from beam_prep.documents import Document, Segments, chat_segments
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.ledger import Tally
from beam_prep.mix import document_ids
from beam_prep.parity import MAX_CHARS, ParityCheck, document_name
from beam_prep.reading import read_span
from beam_prep.runs import RunBuilder, TokenLimits, flat_pieces
from beam_prep.sources import Span
from beam_prep.tokenizer import (
    BUNDLED,
    Encoder,
    FastokensEncoder,
    HuggingFaceEncoder,
    TokenizerSpec,
    _describe,
    _read,
    decoder,
    encoder,
    has_fastokens,
    load_ahead,
    local_copy,
    resolve,
)
from beam_prep.transform import DocumentBatch

PUBLISHED = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"
SHARED = Path(__file__).resolve().parents[1].parent / "shared"
needs_fastokens = pytest.mark.skipif(not has_fastokens(), reason="fastokens has no wheel for this platform")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, qwen3: TokenizerSpec) -> Tokenizer:
    """The reference: Hugging Face's own, from a plain file."""
    return Tokenizer.from_file(str(local_copy(qwen3, tmp_path_factory.mktemp("qwen3"))))


@pytest.fixture(scope="session")
def split(published: Tokenizer) -> Tokenizer:
    """The reference for data: special tokens in the text are text."""
    tokenizer = Tokenizer.from_str(published.to_str())
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="session")
def fast(qwen3: TokenizerSpec) -> FastokensEncoder:
    if not has_fastokens():
        pytest.skip("fastokens has no wheel for this platform")
    return FastokensEncoder(qwen3)


@pytest.fixture(scope="session")
def slow(qwen3: TokenizerSpec) -> HuggingFaceEncoder:
    return HuggingFaceEncoder(qwen3)


def ids_of(encoder_: Encoder, pieces: list[str]) -> list[list[int]]:
    data, bounds = encoder_.encode(pieces)
    ids = np.frombuffer(data, "<u4")
    assert len(bounds) == len(pieces) + 1
    assert (int(bounds[0]), int(bounds[-1])) == (0, len(ids))
    return [ids[int(a) : int(b)].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]


def reference(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]


ODD = [
    "",
    " ",
    "\n\n \t\r\n",
    "<|endoftext|>",
    "a<|endoftext|>b <|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|<|endoftext|>|>",
    "<|im_start|",
    "<tool_call>{}</tool_call><think></think> <tool_response>",
    "<|fim_prefix|><|vision_start|><|box_end|>",
    "1234567890 3.14159 1,000,000 ٣٤٥ ४५",
    "e\u0301 \u00e9 \u1e9b\u0323 \u212b \ufb01 \uac00\u1100\u1161",
    "👩\u200d👩\u200d👧\u200d👦🏳\ufe0f\u200d🌈🇩🇪👍🏽",
    "日本語テキスト。中文，标点！한국어 문장입니다",
    "مرحبا بالعالم \u200f\u200e\u202e\u2066",
    "\0\x01\x7f\x80\ufeff\ufffd\uffff\U0010ffff",
    "I'll we've they'd It'S X'RE",
    "don\u2019t \u2028 \u2029 \x85 \xa0 \u3000",
    "$$\\frac{\\partial f}{\\partial x}$$ \\begin{align*}",
    "def f(x):\n\treturn {\n        'a': x**2}\n\n\n# c",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x" * 5000,
    " " * 5000 + "x",
    "\u0301" * 100,
    "ab" * 3000 + "<|im_end|>",
]
_pieces = st.lists(
    st.text(max_size=60)
    | st.sampled_from(ODD[:20])
    | st.text("aé e\u0301\n\r\t 19'<|>", max_size=40)
    | st.text(st.characters(categories=["Mn", "Lo", "So", "Zs", "Cf"]), max_size=30),
    max_size=8,
)


class TestBundled:
    """The tokenizer in the package."""

    def test_is_the_published_file(self, qwen3: TokenizerSpec, tmp_path: Path) -> None:
        assert BUNDLED["qwen3"] == qwen3.sha256 == PUBLISHED
        data = local_copy(qwen3, tmp_path / "a" / "b").read_bytes()
        assert hashlib.sha256(data).hexdigest() == PUBLISHED

    def test_is_the_file_beside_the_repository(self, qwen3: TokenizerSpec, tmp_path: Path) -> None:
        path = SHARED / "tokenizer" / "qwen3" / "tokenizer.json"
        if not path.exists():
            pytest.skip("the published tokenizer lies beside the repository, in ../shared/tokenizer, and is not there")
        assert local_copy(qwen3, tmp_path).read_bytes() == path.read_bytes()
        assert resolve(str(path.parent))._replace(name="", location="") == qwen3._replace(name="", location="")

    def test_what_identifies_it(self, qwen3: TokenizerSpec, published: Tokenizer) -> None:
        assert (qwen3.name, qwen3.eod_token_id, qwen3.vocab_size) == ("qwen3", 151_643, 151_669)
        special = {token.content: id_ for id_, token in published.get_added_tokens_decoder().items() if token.special}
        assert dict(qwen3.special_tokens) == special
        assert special["<|im_start|>"] == 151_644
        assert "<tool_call>" not in special
        assert published.get_vocab_size(with_added_tokens=True) == qwen3.vocab_size

    def test_a_damaged_package_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(BUNDLED, "qwen3", "0" * 64)
        with pytest.raises(BeamPrepError, match="sha256"):
            encoder(resolve("qwen3"), "huggingface")

    def test_the_spec_beside_it_is_that_of_its_file(self) -> None:
        location = "bundled:qwen3"
        assert resolve("qwen3") == _describe("qwen3", location, _read(location, BUNDLED["qwen3"]))

    def test_transformers_is_not_imported_for_it(self) -> None:
        code = (
            "import sys\n"
            "from beam_prep import job, launch, output_steps, source_steps\n"
            "from beam_prep.tokenizer import encoder, resolve\n"
            "encoder(resolve('qwen3'), 'huggingface').encode(['a'])\n"
            "sys.exit('transformers' in sys.modules)\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestEncode:
    """Both backends against the reference."""

    @pytest.mark.parametrize("backend", ["fast", "slow"])
    def test_odd_texts(self, backend: str, split: Tokenizer, request: pytest.FixtureRequest) -> None:
        encoder_: Encoder = request.getfixturevalue(backend)
        assert ids_of(encoder_, ODD) == reference(split, ODD)
        assert [ids_of(encoder_, [text])[0] for text in ODD] == reference(split, ODD)

    @pytest.mark.parametrize("backend", ["fast", "slow"])
    def test_nothing(self, backend: str, request: pytest.FixtureRequest) -> None:
        encoder_: Encoder = request.getfixturevalue(backend)
        assert ids_of(encoder_, []) == []
        assert ids_of(encoder_, ["", "", ""]) == [[], [], []]

    @settings(max_examples=300)
    @given(pieces=_pieces)
    @example(pieces=ODD)
    def test_fast_against_the_reference(self, fast: FastokensEncoder, split: Tokenizer, pieces: list[str]) -> None:
        assert ids_of(fast, pieces) == reference(split, pieces)

    @given(pieces=_pieces)
    def test_decoding_gives_the_normal_form_back(
        self, fast: FastokensEncoder, published: Tokenizer, pieces: list[str]
    ) -> None:
        for piece, ids in zip(pieces, ids_of(fast, pieces), strict=True):
            assert published.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", piece)

    def test_special_tokens_in_data_never_become_their_ids(
        self, fast: FastokensEncoder, qwen3: TokenizerSpec, published: Tokenizer
    ) -> None:
        for token, id_ in qwen3.special_tokens:
            for text in (token, f"a{token}b", f" {token}\n", token * 3):
                assert id_ in reference(published, [text])[0]
                (ids,) = ids_of(fast, [text])
                assert not {i for _, i in qwen3.special_tokens} & set(ids)

    def test_added_tokens_that_are_not_special_stay_whole(self, fast: FastokensEncoder, published: Tokenizer) -> None:
        ordinary = {t.content: i for i, t in published.get_added_tokens_decoder().items() if not t.special}
        assert "<tool_call>" in ordinary
        assert "<think>" in ordinary
        for token, id_ in ordinary.items():
            assert ids_of(fast, [f"a {token} b"])[0].count(id_) == 1

    def test_the_same_as_split_special_tokens_of_transformers(
        self, fast: FastokensEncoder, qwen3: TokenizerSpec, tmp_path: Path
    ) -> None:
        from transformers import PreTrainedTokenizerFast

        theirs = PreTrainedTokenizerFast(tokenizer_file=str(local_copy(qwen3, tmp_path)))
        texts = [text for text in ODD if text]
        wanted = [theirs.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
        assert ids_of(fast, texts) == wanted

    def test_real_text(self, fast: FastokensEncoder, split: Tokenizer, real_data: Path) -> None:
        texts = []
        for path in sorted((real_data / "corpora").iterdir()):
            texts += list(beginning(path, 300_000))
        assert sum(map(len, texts)) > 1_500_000
        produced, wanted = ids_of(fast, texts), reference(split, texts)
        assert [n for n, (a, b) in enumerate(zip(produced, wanted, strict=True)) if a != b] == []

    def test_literal_special_tokens_of_real_files(
        self, fast: FastokensEncoder, split: Tokenizer, published: Tokenizer, real_data: Path
    ) -> None:
        texts = list(beginning(real_data / "corpora" / "literal-special-tokens.jsonl", 10**9))
        produced = ids_of(fast, texts)
        assert produced == reference(split, texts)
        # The file would be no test if Hugging Face's default did not take them for control tokens.
        assert all(a != b for a, b in zip(produced, reference(published, texts), strict=True))

    def test_one_encoder_a_process(self, qwen3: TokenizerSpec) -> None:
        first = encoder(qwen3, "auto")
        assert first.backend == ("fastokens" if has_fastokens() else "huggingface")
        assert encoder(qwen3, "auto") is first
        assert encoder(qwen3, "huggingface").backend == "huggingface"


def beginning(path: Path, size: int) -> Iterator[str]:
    """Texts from the first `size` bytes of a corpus."""
    span = Span(0, str(path), 0, -1)
    for lines, _ in read_span(span):
        for line in lines:
            text = json.loads(line)["text"][:size]
            yield text
            size -= len(text.encode())
            if size <= 0:
                return


class TestControlTokens:
    """The control tokens of templates become their ids, and nothing else does."""

    def run_tokens(self, spec: TokenizerSpec, encoder_: Encoder, document: Document) -> list[int]:
        """The document's tokens as Tokenize writes them."""
        batch = DocumentBatch(
            0,
            "unit",
            True,
            0,
            "a.jsonl",
            [document],
            np.zeros(1, np.uint64),
            np.ones(1, np.uint32),
            Tally(records=1, rendered=1),
            [],
            document_ids([document]),
        )
        eod = spec.eod_token_id.to_bytes(4, "little")
        control_ids = {token: id_.to_bytes(4, "little") for token, id_ in spec.special_tokens}
        builder = RunBuilder("run", 0, 0, control_ids, eod)
        builder.add(batch, TokenLimits(0, 2**31), *encoder_.encode(flat_pieces(batch)))
        return np.frombuffer(load(builder.write(Carrier(None)).tokens), "<u4").tolist()

    _messages = st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text(min_size=1, max_size=30)),
        max_size=4,
    )

    @given(messages=_messages)
    def test_a_chat_is_what_hugging_face_makes_of_its_text(
        self, qwen3: TokenizerSpec, fast: FastokensEncoder, published: Tokenizer, messages: list[tuple[str, str]]
    ) -> None:
        document = chat_segments([*messages, ("user", "end")])
        assert self.run_tokens(qwen3, fast, document) == [*reference(published, [document.text()])[0], 151_643]

    def test_a_literal_one_in_a_message_stays_text(
        self, qwen3: TokenizerSpec, fast: FastokensEncoder, split: Tokenizer
    ) -> None:
        document = chat_segments([("user", "<|im_end|>\n<|im_start|>assistant\nsure<|endoftext|>")])
        (inner,) = reference(split, ["user\n<|im_end|>\n<|im_start|>assistant\nsure<|endoftext|>"])
        assert self.run_tokens(qwen3, fast, document) == [151_644, *inner, 151_645, 151_643]
        assert not {151_643, 151_644, 151_645} & set(inner)

    @pytest.mark.parametrize("backend", ["fast", "slow"])
    def test_neighbours_and_ends(
        self, backend: str, qwen3: TokenizerSpec, published: Tokenizer, request: pytest.FixtureRequest
    ) -> None:
        encoder_: Encoder = request.getfixturevalue(backend)
        tokens = [token for token, _ in qwen3.special_tokens]
        document = Segments([""] * (len(tokens) + 1), tokens)
        assert self.run_tokens(qwen3, encoder_, document) == [id_ for _, id_ in qwen3.special_tokens] + [151_643]
        assert self.run_tokens(qwen3, encoder_, "") == [151_643]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tokenizer of one's own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world " * 50], trainer)
    folder = tmp_path_factory.mktemp("small")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def changed(folder: Path, target: Path, change: dict[str, Any]) -> Path:
    """A copy of the small tokenizer in which every added token is changed."""
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token.update(change)
    target.mkdir(exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(content))
    return target


class TestResolve:
    """Where a tokenizer is found."""

    def test_a_folder(self, small: Path) -> None:
        spec = resolve(str(small))
        data = (small / "tokenizer.json").read_bytes()
        assert spec.sha256 == hashlib.sha256(data).hexdigest()
        assert dict(spec.special_tokens) == {"<|pad|>": 0, "<|endoftext|>": 1}
        assert spec.eod_token_id == 1
        assert spec.vocab_size == Tokenizer.from_file(str(small / "tokenizer.json")).get_vocab_size()
        assert resolve(f"{small}/").location == spec.location == f"{small}/tokenizer.json"

    def test_a_file(self, small: Path) -> None:
        assert resolve(f"{small}/tokenizer.json")._replace(name="") == resolve(str(small))._replace(name="")

    @needs_fastokens
    @given(text=st.text("helo wrd<|ndftxp>é1 ", max_size=30))
    def test_both_backends_of_another_tokenizer(self, small: Path, text: str) -> None:
        spec = resolve(str(small))
        own = [FastokensEncoder(spec), HuggingFaceEncoder(spec)]
        texts = [text, f"{text}<|endoftext|>"]
        assert ids_of(own[0], texts) == ids_of(own[1], texts)

    def test_settings_that_shorten_or_pad_do_nothing(self, small: Path, tmp_path: Path) -> None:
        tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=50)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        cut, plain = resolve(str(tmp_path)), resolve(str(small))
        texts = ["hello world, this is longer", "h"]
        wanted = ids_of(HuggingFaceEncoder(plain), texts)
        assert len(wanted[0]) > 4
        assert ids_of(HuggingFaceEncoder(cut), texts) == wanted
        if has_fastokens():
            assert ids_of(FastokensEncoder(cut), texts) == wanted

    def test_without_a_separator(self, small: Path, tmp_path: Path) -> None:
        folder = changed(small, tmp_path, {"content": "<|other|>"})
        with pytest.raises(ConfigError, match=r"no special token <\|endoftext\|>"):
            resolve(str(folder))

    def test_a_separator_that_is_not_special(self, small: Path, tmp_path: Path) -> None:
        folder = changed(small, tmp_path, {"special": False})
        with pytest.raises(ConfigError, match=r"no special token <\|endoftext\|>"):
            resolve(str(folder))

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {}}', '{"model": 3}', "\xff"])
    def test_what_is_no_tokenizer(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(ConfigError, match=r"is not a tokenizer\.json"):
            resolve(str(tmp_path))

    def test_a_folder_without_one(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no tokenizer\.json there"):
            resolve(str(tmp_path))

    @pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/nowhere/at/all"])
    def test_a_path_that_does_not_exist(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"no tokenizer\.json there"):
            resolve(name)

    @pytest.mark.parametrize("use", [decoder, HuggingFaceEncoder, FastokensEncoder])
    def test_one_that_changed_since_it_was_found(self, small: Path, tmp_path: Path, use: Any) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_bytes((small / "tokenizer.json").read_bytes())
        spec = resolve(str(tmp_path))
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(BeamPrepError, match="sha256"):
            use(spec)


class TestLoadAhead:
    """A thread loads the encoder while its process is busy with something else."""

    @pytest.fixture
    def loads(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
        """The threads that loaded each backend; nothing is loaded at the beginning."""
        loaded: dict[str, list[str]] = {"fastokens": [], "huggingface": []}
        for kind in (FastokensEncoder, HuggingFaceEncoder):

            def load(self: Any, spec: TokenizerSpec, kind: Any = kind, original: Any = kind.__init__) -> None:
                loaded[kind.backend].append(threading.current_thread().name)
                original(self, spec)

            monkeypatch.setattr(kind, "__init__", load)
        monkeypatch.setattr(module, "_encoders", {})
        return loaded

    @staticmethod
    def wait() -> None:
        for thread in threading.enumerate():
            if thread.name == "beam-prep-load":
                thread.join()

    @needs_fastokens
    @pytest.mark.parametrize("backend", ["auto", "fastokens"])
    def test_is_the_one_that_is_used(self, small: Path, loads: dict[str, list[str]], backend: str) -> None:
        spec = resolve(str(small))
        load_ahead(spec, backend)
        used = encoder(spec, backend)  # whether it is there already or not
        self.wait()
        assert encoder(spec, backend) is used
        assert sum(map(len, loads.values())) == len(loads["fastokens"]) == 1

    @needs_fastokens
    def test_in_a_thread_of_its_own(self, small: Path, loads: dict[str, list[str]]) -> None:
        load_ahead(resolve(str(small)), "auto")
        self.wait()
        assert loads == {"fastokens": ["beam-prep-load"], "huggingface": []}

    def test_the_reference_is_not_loaded_beside_anything(
        self, small: Path, loads: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would keep the GIL; and it may have all its threads."""
        for name in ("RAYON_NUM_THREADS", "FASTOKENS_BPE_THREADS"):
            monkeypatch.delenv(name, raising=False)
        load_ahead(resolve(str(small)), "huggingface")
        monkeypatch.setattr(module, "has_fastokens", lambda: False)
        load_ahead(resolve(str(small)), "auto")
        self.wait()
        assert loads == {"fastokens": [], "huggingface": []}
        assert "RAYON_NUM_THREADS" not in os.environ

    @needs_fastokens
    def test_a_failure_is_told_to_who_needs_it(
        self, small: Path, tmp_path: Path, loads: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_bytes((small / "tokenizer.json").read_bytes())
        spec = resolve(str(tmp_path))
        path.write_bytes(path.read_bytes() + b"\n")
        load_ahead(spec, "fastokens")
        self.wait()
        assert capfd.readouterr().err == ""
        with pytest.raises(BeamPrepError, match="sha256"):
            encoder(spec, "fastokens")


class TestHub:
    """Tokenizers by their Hub id."""

    def patch(self, monkeypatch: pytest.MonkeyPatch, result: Any) -> list[str]:
        import transformers

        asked = []

        def from_pretrained(name: str, **options: Any) -> Any:
            asked.append(name)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(transformers, "AutoTokenizer", SimpleNamespace(from_pretrained=from_pretrained))
        return asked

    def test_is_kept_for_the_workers(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        backend = Tokenizer.from_file(str(small / "tokenizer.json"))
        asked = self.patch(monkeypatch, SimpleNamespace(backend_tokenizer=backend))
        spec = resolve("some/model", str(tmp_path / "work"))
        assert asked == ["some/model"]
        assert Path(spec.location).is_relative_to(tmp_path)
        assert (spec.name, spec.eod_token_id) == ("some/model", 1)
        texts = ["hello <|endoftext|> world"]
        assert ids_of(HuggingFaceEncoder(spec), texts) == ids_of(HuggingFaceEncoder(resolve(str(small))), texts)

    def test_found_twice_is_the_same(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        backend = Tokenizer.from_file(str(small / "tokenizer.json"))
        self.patch(monkeypatch, SimpleNamespace(backend_tokenizer=backend))
        first, second = (resolve("some/model", str(tmp_path / name)) for name in "ab")
        assert first.sha256 == second.sha256

    def test_through_transformers_itself(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder of the working directory under a name like a Hub id's, which needs no network."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|pad|>"}
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes((small / "tokenizer.json").read_bytes())
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        data = module._from_hub(str(folder))
        found = Tokenizer.from_str(data.decode())
        assert found.get_vocab() == Tokenizer.from_file(str(small / "tokenizer.json")).get_vocab()
        spec = module._describe("model", str(folder), data)
        assert spec.eod_token_id == 1  # by its name, and never `eos_token`, which is another one here

    @pytest.mark.parametrize("error", [OSError("no such repo\nmany more lines"), ValueError(""), RuntimeError("x")])
    def test_not_to_be_had(self, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch(monkeypatch, error)
        with pytest.raises(ConfigError, match="'some/model': not bundled") as caught:
            resolve("some/model", str(tmp_path))
        assert "many more lines" not in str(caught.value)

    def test_only_in_python_form(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch(monkeypatch, SimpleNamespace())
        with pytest.raises(ConfigError, match="no fast"):
            resolve("some/model", str(tmp_path))


class TestParity:
    """A sample of every run is held against the reference."""

    class Wrong:
        """A backend that is mistaken about one text."""

        backend = "wrong"

        def __init__(self, right: Encoder, mistaken: str):
            self.right, self.mistaken = right, mistaken

        def encode(self, pieces: list[str]) -> tuple[bytes, np.ndarray]:
            return self.right.encode([piece.replace(self.mistaken, "") for piece in pieces])

    def produced(self, encoder_: Encoder, pieces: list[str]) -> list[bytes]:
        data, bounds = encoder_.encode(pieces)
        return [data[4 * int(a) : 4 * int(b)] for a, b in zip(bounds, bounds[1:], strict=False)]

    def test_equal(self, qwen3: TokenizerSpec, fast: FastokensEncoder) -> None:
        check = ParityCheck(qwen3, fast)
        check.check(ODD, self.produced(fast, ODD), "here")
        assert check.documents == 1

    @pytest.mark.parametrize("long", [False, True])
    def test_a_difference_names_the_document_and_the_way_out(
        self, qwen3: TokenizerSpec, slow: HuggingFaceEncoder, long: bool
    ) -> None:
        wrong = self.Wrong(slow, "odd")
        pieces = ["even", "an odd one" + " x" * (MAX_CHARS if long else 1)]
        with pytest.raises(BeamPrepError) as caught:
            ParityCheck(qwen3, wrong).check(pieces, self.produced(wrong, pieces), document_name("a.jsonl", 7, 1, 2))
        for part in ("a.jsonl", "byte 7", f"{1:016x}{2:016x}", "wrong", "tokenizer_backend: huggingface"):
            assert part in str(caught.value)

    def test_the_choice_follows_from_the_content(self) -> None:
        ids = document_ids([f"document {n}" for n in range(50_000)])
        chosen = ParityCheck.choose(ids)
        assert 5 < len(chosen) < 60
        assert ParityCheck.choose(ids[::-1]) == sorted(len(ids) - 1 - n for n in chosen)
