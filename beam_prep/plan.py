"""Plan: before any work, what a run would find, make, need and cost. Writes nothing and leaves the output alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from beam_prep.config import Config
from beam_prep.cost import DataflowCost, Resources, dataflow_cost, local_resources, output_bytes
from beam_prep.errors import ConfigError
from beam_prep.estimate import Estimate, estimate
from beam_prep.job import resolve_sources
from beam_prep.machine import allot
from beam_prep.output_estimate import OutputEstimate, SourceShare
from beam_prep.outputs import outputs_of
from beam_prep.sample_records import SAMPLE_BYTES
from beam_prep.sampled_source import SampledSource, sample_source
from beam_prep.sources import InputFile, match_source
from beam_prep.tokenizer import at_hand, encoder

DATAFLOW = "DataflowRunner"


class Forecast(NamedTuple):
    """Everything that `beam-prep plan` prints."""

    config: Config
    estimate: Estimate
    resources: Resources | None
    """None where the run would fail."""
    dataflow: DataflowCost | None
    """Where it was asked for and the run would not fail."""


def forecast(
    config: Config,
    base: Path | None = None,
    sample: int = SAMPLE_BYTES,
    runner: str = "local",
    workers: int | None = None,
) -> Forecast:
    """Reads a sample of each source and says what follows.

    Args:
      base: folder of the configuration file, which its template files are relative to.
      sample: uncompressed bytes that are read of each source; a source that is no larger is read as a whole.
      workers: processes of the local runner, or machines on Dataflow.

    Raises:
      ConfigError: the configuration cannot be carried out.
      BeamPrepError: a file cannot be read. (That the wishes cannot be met is part of the result.)
    """
    with at_hand(config.tokenizer) as tokenizer:
        sources = resolve_sources(config, tokenizer, base)
        outputs = outputs_of(config, [source.template.purpose for source in sources])
        files: list[list[InputFile]] = []
        problems = []
        for source in sources:
            try:
                files.append(match_source(source.name, source.patterns))
            except ConfigError as error:
                problems.append(error.message)
        if problems:
            raise ConfigError("\n".join(problems))
        encode = encoder(tokenizer, config.tokenizer_backend)
    sampled = [
        sample_source(number, source, own, sample, config, tokenizer, encode)
        for number, (source, own) in enumerate(zip(sources, files, strict=True))
    ]
    made = estimate(config, sources, outputs, sampled)
    if made.problems:
        return Forecast(config, made, None, None)
    total = sum(file.size for own in files for file in own)
    processes = allot(None if runner == DATAFLOW else workers, None, total).workers
    local = local_resources(made, config.views, processes)
    cost = dataflow_cost(made, workers) if runner == DATAFLOW else None
    return Forecast(config, made, local, cost)


def as_json(forecast: Forecast) -> dict[str, Any]:
    """The forecast as JSON values.

    `exact`: whether nothing is estimated. `problems`: why the run would fail, `notes`: what the sample does not show.
    `sources` {name → `files`, `stored_bytes`, `bytes`, `sampled_bytes`, `exact`, `records`, `records_error`, `rejected`
    {reason → n}, `filtered` {reason → n}, `duplicates`, `tokens`, `tokens_error`}: bytes are uncompressed, tokens those
    of the distinct documents, errors relative half-widths of 95 % intervals (null: unknown).
    `outputs` {name → `context_length`, `packing`, `tokens`, `tokens_error`, `sequences`, `shards`, `bytes`, `padding`,
    `dropped_tokens`, `cut_share`, `sources` {name → `asked_share` or `asked_epochs`, `share`, `tokens`, `epochs`}}.
    `resources` (null if there are problems): `output_bytes`, `disk_bytes`, `memory_bytes`, `seconds`, `workers`,
    `read_bytes_per_second`, `tokens_per_second`. `dataflow` (null unless asked for): `workers`, `hours`, `vcpu_hours`,
    `memory_gib_hours`, `disk_gib_hours`, `shuffle_gib`, `memory_gib_per_process`, `dollars`, `dollars_flexrs`,
    `prices`.
    """
    made = forecast.estimate
    names = [source.name for source in made.sources]
    cost = forecast.dataflow
    return {
        "exact": made.exact,
        "problems": made.problems.splitlines(),
        "notes": list(made.notes),
        "sources": {name: _source(made, number) for number, name in enumerate(names)},
        "outputs": {o.output.name: _output(o, names, forecast.config) for o in made.outputs},
        "resources": forecast.resources._asdict() if forecast.resources else None,
        "dataflow": {**cost._asdict(), "prices": cost.prices._asdict()} if cost else None,
    }


def _error(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _source(made: Estimate, number: int) -> dict[str, Any]:
    source: SampledSource = made.sources[number]
    tally = made.tallies[number]
    return {
        "files": source.files,
        "stored_bytes": source.stored_bytes,
        "bytes": round(source.bytes),
        "sampled_bytes": source.sampled_bytes,
        "exact": source.complete,
        "records": tally.records,
        "records_error": _error(source.records_error),
        "rejected": dict(sorted(tally.rejected.items())),
        "filtered": dict(sorted(tally.filtered.items())),
        "duplicates": made.duplicates[number],
        "tokens": made.tokens[number],
        "tokens_error": _error(source.tokens_error),
    }


def _output(made: OutputEstimate, names: list[str], config: Config) -> dict[str, Any]:
    return {
        "context_length": made.output.context_length,
        "packing": made.output.packing,
        "tokens": made.tokens,
        "tokens_error": _error(made.tokens_error),
        "sequences": made.sequences,
        "shards": made.shards,
        "bytes": output_bytes(made, config.views),
        "padding": made.padding,
        "dropped_tokens": made.dropped_tokens,
        "cut_share": made.cut_share,
        "sources": {
            name: _share(share) for name, share in zip(names, made.shares, strict=True) if takes_part(made, share)
        },
    }


def takes_part(made: OutputEstimate, share: SourceShare) -> bool:
    """Whether a source was asked for, or is, in an output."""
    return share.asked is not None or bool(share.asked_epochs) or bool(share.tokens)


def _share(share: SourceShare) -> dict[str, Any]:
    asked = {"asked_epochs": share.asked_epochs} if share.asked_epochs is not None else {"asked_share": share.asked}
    return {**asked, "share": share.reachable, "tokens": share.tokens, "epochs": share.epochs}
