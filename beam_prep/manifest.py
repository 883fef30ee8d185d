"""The manifest as typed models: what tools read of a finished output."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from beam_prep import storage
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.layout import MANIFEST, SUCCESS
from beam_prep.success import answers_for

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    # Keys that a later version adds are no error; a string where a number belongs is one.
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class TokenizerEntry(_Entry):
    """Which tokenizer made the ids."""

    name: str
    sha256: Sha256
    eod_token_id: Count
    vocab_size: Count


class ShardEntry(_Entry):
    """A shard and the sidecar of its documents; paths are relative to the output's folder."""

    path: str
    sequences: Count
    bytes: Count
    sha256: Sha256
    documents: str
    documents_sha256: Sha256
    spans: Count


class SourceEntry(_Entry):
    """A source's part in one output."""

    documents: Count
    available: Count | None = None
    """Distinct documents that belong to the output, whether a copy of them is in it or not."""
    copies: Count
    tokens: Count
    share: float
    epochs: float
    asked_share: float | None = None
    """What its weight asked for; None for a source with `epochs`."""
    asked_epochs: float | None = None
    """None for a source with a weight, and for one that has nothing to give to this output."""


class OutputFigures(_Entry):
    """The figures of one output (`train`, `val`, `S1/train` …)."""

    context_length: Annotated[int, Field(ge=1)]
    packing: Literal["concat", "best_fit"] = "concat"
    sequences: Count
    tokens: Count
    padding: Count
    dropped_tokens: Count
    cut_documents: Count
    """Copies that do not end in the sequence in which they began."""
    fill: float
    """Share of the positions that hold documents' tokens."""
    cut_share: float
    """Of all copies."""
    sources: dict[str, SourceEntry]


class GenerationOutput(OutputFigures):
    """What a generation added to an output."""

    shards: Count
    """Its own; those of all generations stand one after the other in the output."""


class OutputEntry(OutputFigures):
    """One output."""

    shards: list[ShardEntry]
    views: list[Annotated[int, Field(ge=1)]] = []
    """Context lengths that the configuration asked an index for, beside its own."""


class LedgerEntry(_Entry):
    """What became of every record of a source."""

    records: Count
    rejected: dict[str, Count]
    filtered: dict[str, Count]
    duplicates: Count
    sampled_out: Count
    documents: Count
    tokens: Count
    blank_lines: Count = 0


class InputsEntry(_Entry):
    """The list of a generation's input files."""

    path: str
    """Relative to the run's folder."""
    sha256: Sha256
    files: Count
    bytes: Count
    """Of the input files, as stored."""


class GenerationEntry(_Entry):
    """One generation; see `generations`. Its figures are the output's own while it is the only one."""

    fingerprint: Sha256
    version: str
    inputs: InputsEntry
    outputs: dict[str, GenerationOutput] = {}
    ledger: dict[str, LedgerEntry] = {}
    rejected_files: list[str] = []


class Manifest(_Entry):
    """The whole of `manifest.json`."""

    version: str
    fingerprint: Sha256
    tokenizer: TokenizerEntry
    dtype: Literal["uint32"]
    context_length: Annotated[int, Field(ge=1)]
    seed: Count
    configuration: dict[str, Any]
    outputs: Annotated[dict[str, OutputEntry], Field(min_length=1)]
    ledger: dict[str, LedgerEntry]
    rejected_files: list[str] = []
    recipe: Sha256 | None = None
    """What all generations have in common; see `job.recipe`."""
    generations: list[GenerationEntry] = []

    def dataset(self, source: str) -> dict[str, Any]:
        """What the configuration said about a source."""
        datasets = self.configuration.get("datasets") or []
        return next((d for d in datasets if isinstance(d, dict) and d.get("name") == source), {})


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in a file's bytes.

    Raises:
      ValueError: it is not one; the message names the first key that is wrong.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def read_manifest(output: str) -> Manifest:
    """The manifest of an output.

    Raises:
      ConfigError: there is no such folder, or no output in it.
      BeamPrepError: the manifest is damaged.
    """
    path = storage.join(output, MANIFEST)
    if not storage.exists(path):
        if storage.is_local(output) and not storage.exists(output):
            raise ConfigError(f"{output}: no such folder; give the output of a run")
        raise ConfigError(f"{output}: holds no {MANIFEST}; give the output of a run that has finished")
    try:
        return parse_manifest(storage.read_bytes(path))
    except ValueError as error:
        raise BeamPrepError(f"{path}: is damaged ({error}); run the job again with --overwrite") from None


def is_finished(output: str, manifest: Manifest) -> bool:
    """Whether `_SUCCESS` stands there and names the manifest's fingerprint."""
    path = storage.join(output, SUCCESS)
    return storage.exists(path) and answers_for(storage.read_bytes(path), manifest.fingerprint)


def require_finished(output: str, manifest: Manifest) -> None:
    """Raises BeamPrepError if the output has no `_SUCCESS`, or that of another run."""
    if not is_finished(output, manifest):
        raise BeamPrepError(f"{output}: is not finished (no matching {SUCCESS}); run the job again")
