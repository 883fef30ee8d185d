"""The tokenizer: where it is found, what identifies it, and the two backends that encode with it.

fastokens does the work; the Hugging Face tokenizer is the reference that a sample of every run is held against.
Control tokens are never looked for in text (`split_special_tokens`): the caller puts their ids in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import orjson
import zstandard

from beam_prep import storage
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.process_setup import limit_arenas

SEPARATOR = "<|endoftext|>"
BUNDLED = {"qwen3": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"}
"""Tokenizers in the package → sha256 of their tokenizer.json."""


class TokenizerSpec(NamedTuple):
    """What identifies a tokenizer; small enough to travel with every step."""

    name: str
    location: str
    """`bundled:NAME`, or the path of a tokenizer.json that every worker can read."""
    sha256: str
    eod_token_id: int
    vocab_size: int
    """One more than the largest id, added tokens included."""
    special_tokens: tuple[tuple[str, int], ...]
    """Tokens that the tokenizer marks special, with their ids."""


class Encoder(Protocol):
    """A backend."""

    backend: str

    def encode(self, pieces: list[str]) -> tuple[bytes, np.ndarray]:
        """Encodes texts, control tokens in them as ordinary text.

        Returns:
          Little-endian uint32 ids of all pieces, and uint64[len(pieces) + 1] bounds of each piece in them.
        """


def resolve(name: str, keep_in: str | None = None) -> TokenizerSpec:
    """Finds the tokenizer that a configuration names.

    Args:
      name: a bundled name, a local or remote folder (or tokenizer.json), or a Hub id.
      keep_in: folder in which a Hub tokenizer is kept for the workers.

    Raises:
      ConfigError: it cannot be found or has no `<|endoftext|>`.
    """
    if name in BUNDLED:
        return _bundled(name)
    path = name if name.endswith(".json") else storage.join(name, "tokenizer.json")
    if "://" in name or os.path.exists(path):
        try:
            return _describe(name, path, storage.read_bytes(path))
        except OSError as error:
            raise ConfigError(f"tokenizer {name!r}: {path} cannot be read ({error})") from None
    if os.path.isdir(name) or name.startswith((".", "/")):
        raise ConfigError(f"tokenizer {name!r}: no tokenizer.json there; give a folder that holds one, or a Hub id")
    data = _from_hub(name)
    location = storage.join(keep_in or ".", "tokenizer.json")
    storage.write_bytes(location, [data])
    return _describe(name, location, data)


@contextmanager
def at_hand(name: str) -> Iterator[TokenizerSpec]:
    """The tokenizer that a configuration or manifest names, its file there as long as the context is open.

    Raises:
      ConfigError: see `resolve`.
    """
    with tempfile.TemporaryDirectory(prefix="beam-prep-") as folder:
        yield resolve(name, folder)


def changed_since(spec: TokenizerSpec, sha256: str) -> str | None:
    """What is wrong if a tokenizer is not the one that made an output; None if it is.

    Args:
      sha256: the tokenizer's in the output's manifest.
    """
    if spec.sha256 == sha256:
        return None
    return (
        f"tokenizer {spec.name!r} is another one today (sha256 {spec.sha256[:12]}…) than the one that made this output "
        f"({sha256[:12]}…)"
    )


def _bundled(name: str) -> TokenizerSpec:
    """The spec of a bundled tokenizer, kept beside it (reading 11 MB of JSON for it would cost half a second)."""
    spec = orjson.loads((resources.files("beam_prep.tokenizers") / f"{name}.json").read_bytes())
    special = tuple((token, id_) for token, id_ in spec["special_tokens"])
    return TokenizerSpec(name, f"bundled:{name}", BUNDLED[name], spec["eod_token_id"], spec["vocab_size"], special)


def _from_hub(name: str) -> bytes:
    from transformers import AutoTokenizer  # costs seconds, and only the launching process needs it

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:  # the Hub's client raises a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"tokenizer {name!r}: not bundled ({', '.join(BUNDLED)}), not a folder, and not to be had from the "
            f"Hub: {reason}"
        ) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"tokenizer {name!r}: has no fast (tokenizer.json) form, which this project needs")
    return backend.to_str().encode()


def _describe(name: str, location: str, data: bytes) -> TokenizerSpec:
    try:
        content = orjson.loads(data)
        added = content.get("added_tokens") or []
        vocabulary = content["model"]["vocab"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"tokenizer {name!r}: {location} is not a tokenizer.json") from None
    largest = max([len(vocabulary) - 1, *(token["id"] for token in added)])
    if isinstance(vocabulary, dict):
        largest = max(largest, max(vocabulary.values(), default=0))
    special = tuple((token["content"], token["id"]) for token in added if token.get("special"))
    ids = dict(special)
    if SEPARATOR not in ids:
        raise ConfigError(
            f"tokenizer {name!r} has no special token {SEPARATOR}, which stands after each document; "
            "add it to the tokenizer or use another one"
        )
    return TokenizerSpec(name, location, hashlib.sha256(data).hexdigest(), ids[SEPARATOR], largest + 1, special)


def _read(location: str, sha256: str) -> bytes:
    """tokenizer.json at a location, checked against its hash."""
    if location.startswith("bundled:"):
        name = location.removeprefix("bundled:")
        packed = (resources.files("beam_prep.tokenizers") / f"{name}.json.zst").read_bytes()
        data = zstandard.ZstdDecompressor().decompress(packed)
    else:
        data = storage.read_bytes(location)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise BeamPrepError(
            f"tokenizer {location}: sha256 is {found}, not {sha256}; "
            "the file is damaged or has changed since the run began"
        )
    return data


def decoder(spec: TokenizerSpec):
    """The Hugging Face tokenizer itself (`tokenizers.Tokenizer`), which also decodes."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_read(spec.location, spec.sha256).decode())


class HuggingFaceEncoder:
    """The reference backend."""

    backend = "huggingface"

    def __init__(self, spec: TokenizerSpec):
        self._tokenizer = decoder(spec)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, pieces: list[str]) -> tuple[bytes, np.ndarray]:
        """See `Encoder.encode`."""
        encoded = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        ids = [np.array(e.ids, "<u4") for e in encoded]
        bounds = np.zeros(len(pieces) + 1, np.uint64)
        np.cumsum([len(i) for i in ids], out=bounds[1:])
        return b"".join([i.tobytes() for i in ids]), bounds


def _one_thread() -> None:
    """Threads of fastokens' own would split single documents; `Tokenization` encodes several batches at once."""
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    os.environ.setdefault("RAYON_NUM_THREADS", "1")


class FastokensEncoder:
    """The fast backend."""

    backend = "fastokens"

    def __init__(self, spec: TokenizerSpec):
        _one_thread()
        import fastokens

        self._tokenizer = fastokens.Tokenizer.from_json_str(_read(spec.location, spec.sha256).decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, pieces: list[str]) -> tuple[bytes, np.ndarray]:
        """See `Encoder.encode`."""
        ids, bounds = self._tokenizer.encode_batch_flat(pieces, add_special_tokens=False, split_special_tokens=True)
        return ids, np.frombuffer(bounds, np.uint64)


def has_fastokens() -> bool:
    """Whether the fast backend is installed (it has no wheel for some platforms)."""
    try:
        import fastokens  # noqa: F401
    except ImportError:
        return False
    return True


_encoders: dict[tuple[str, str], Encoder] = {}
_lock = threading.Lock()


def encoder(spec: TokenizerSpec, backend: str) -> Encoder:
    """The process's one encoder for a tokenizer. `backend`: auto, fastokens or huggingface."""
    if backend == "auto":
        backend = "fastokens" if has_fastokens() else "huggingface"
    with _lock:
        key = (spec.sha256, backend)
        if key not in _encoders:
            _encoders.clear()  # one at a time: each holds some 150 MB
            _encoders[key] = FastokensEncoder(spec) if backend == "fastokens" else HuggingFaceEncoder(spec)
        return _encoders[key]


def load_ahead(spec: TokenizerSpec, backend: str) -> threading.Thread | None:
    """Has a thread load the encoder that this process is about to need; `encoder` waits for it.

    fastokens lets go of the GIL while it loads, so that Beam is imported meanwhile; the Hugging Face tokenizer does
    not, and is left alone.
    """
    if backend == "huggingface" or not has_fastokens():
        return None
    _one_thread()  # before there is a thread: an environment is not safe to change beside others
    limit_arenas()

    def load() -> None:
        with contextlib.suppress(Exception):  # `encoder` tries again, and raises where it can be told
            encoder(spec, backend)

    # A command that fails, or has nothing to do, does not wait for it.
    thread = threading.Thread(target=load, name="beam-prep-load", daemon=True)
    thread.start()
    return thread


def load_bundled_ahead(name: str, backend: str) -> None:
    """`load_ahead` of a tokenizer in the package, as soon as its name is known; of any other, nothing."""
    if name in BUNDLED:
        load_ahead(_bundled(name), backend)


def local_copy(spec: TokenizerSpec, folder: Path) -> Path:
    """Writes the tokenizer.json of `spec` into a folder, for tools that want a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_bytes(_read(spec.location, spec.sha256))
    return path
