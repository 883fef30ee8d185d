"""Outputs: which documents of which sources belong to each output, and how much of each source is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from beam_prep.config import MIN_CHARS_FOR_LONG, Config, Dataset, Stage
from beam_prep.errors import ConfigError
from beam_prep.mix import split_points

QWEN3_STAGES = (
    Stage(name="S1", context_length=4096, purposes=["grammar", "knowledge", "dialogue"]),
    Stage(
        name="S2",
        context_length=4096,
        purposes=["reasoning", "procedural", "debugging", "agentic", "code", "rag_grounding"],
    ),
    Stage(name="S3", context_length=32_768, min_chars=MIN_CHARS_FOR_LONG),
)
"""`stages: qwen3`: two stages of short context by purpose, one of long documents."""
_QWEN3_PURPOSES = [purpose for stage in QWEN3_STAGES for purpose in stage.purposes or []]


class Output(NamedTuple):
    """One output of a run (`train`, `val`, `S1/train` …), as asked for."""

    name: str
    context_length: int
    split: tuple[float, float]
    """Part [low, high) of the split points that belongs here."""
    epochs: tuple[float | None, ...]
    """Epochs of each source: 0 where it takes no part, None where its weight decides."""
    weights: tuple[float, ...] = ()
    """Weight of each source, 0 where it has none."""
    min_chars: int = 0
    min_tokens: int = 0
    total_tokens: float | None = None
    """Budget of this output."""
    max_epochs: float = 1.0
    packing: str = "concat"
    named: bool = False
    """Whether the stage lists its datasets by name, so that one without documents in it is a mistake."""

    @property
    def stage(self) -> str:
        """The stage's name; empty where the configuration has no stages."""
        return self.name.rpartition("/")[0]


def outputs_of(config: Config, purposes: Sequence[str | None]) -> tuple[Output, ...]:
    """The outputs of a configuration: every split of every stage.

    Args:
      purposes: of each dataset's template.

    Raises:
      ConfigError: a stage has no datasets, or a dataset has no place in any.
    """
    stages = _stages(config)
    parts = [(stage, *_wishes(config, stage, purposes)) for stage in stages]
    problems = [
        f"stage {stage.name!r}: no dataset takes part in it{_wanted(stage)}; add one, or list your own `stages`"
        for stage, epochs, _ in parts
        if config.stages is not None and all(e == 0 for e in epochs)
    ]
    own_stages = config.stages if isinstance(config.stages, list) else []
    for stage, (_, _, weights) in zip(own_stages, parts, strict=False):
        if stage.total_tokens is not None and not any(weights):
            problems.append(
                f"stage {stage.name!r}: none of its datasets has a `weight`, and their epochs already decide its size; "
                "give them weights, or remove the stage's total_tokens"
            )
    for index, dataset in enumerate(config.datasets):
        if config.stages is not None and dataset.epochs != 0 and all(epochs[index] == 0 for _, epochs, _ in parts):
            problems.append(
                f"dataset {dataset.name!r} takes part in no stage (its purpose is {purposes[index] or 'not given'}); "
                "name it in a stage, give its template a `purpose`, or set `epochs: 0`"
            )
        elif config.stages == "qwen3" and dataset.epochs != 0 and purposes[index] not in _QWEN3_PURPOSES:
            given = "it has none" if purposes[index] is None else f"{purposes[index]!r} is in none"
            problems.append(
                f"dataset {dataset.name!r}: `stages: qwen3` places datasets by purpose, and {given}; give it a "
                f"`purpose` ({', '.join(_QWEN3_PURPOSES)})"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(
        Output(
            f"{stage.name}/{split}" if config.stages is not None else split,
            stage.context_length or config.context_length,
            edges,
            epochs,
            weights,
            stage.min_chars or 0,
            stage.min_tokens or 0,
            None if stage.total_tokens is None else stage.total_tokens * (edges[1] - edges[0]),
            config.max_epochs if stage.max_epochs is None else stage.max_epochs,
            stage.packing or config.packing,
            stage.datasets is not None,
        )
        for stage, epochs, weights in parts
        for split, edges in split_edges(config.splits)
    )


def context_lengths(config: Config) -> list[int]:
    """Of all stages, in order, each once."""
    return list(dict.fromkeys(stage.context_length or config.context_length for stage in _stages(config)))


def _stages(config: Config) -> Sequence[Stage]:
    if config.stages is None:
        return [Stage(name="all", total_tokens=config.total_tokens)]
    stages = QWEN3_STAGES if config.stages == "qwen3" else config.stages
    return [s if s.total_tokens else s.model_copy(update={"total_tokens": config.total_tokens}) for s in stages]


def split_edges(splits: dict[str, float] | None) -> list[tuple[str, tuple[float, float]]]:
    """(name, part [low, high) of the split points) of each split."""
    if not splits:
        return [("train", (0.0, 1.0))]
    sums = np.cumsum(list(splits.values())).tolist()
    edges = [0.0, *sums[:-1], 1.0]
    return [(name, (edges[i], edges[i + 1])) for i, name in enumerate(splits)]


def _wishes(
    config: Config, stage: Stage, purposes: Sequence[str | None]
) -> tuple[tuple[float | None, ...], tuple[float, ...]]:
    """(epochs, weights) of every dataset in a stage."""
    epochs: list[float | None] = []
    weights: list[float] = []
    for dataset, purpose in zip(config.datasets, purposes, strict=True):
        wish = _wish(dataset, stage, purpose)
        epochs.append(wish[0])
        weights.append(wish[1])
    return tuple(epochs), tuple(weights)


def _wish(dataset: Dataset, stage: Stage, purpose: str | None) -> tuple[float | None, float]:
    named = stage.datasets is None or dataset.name in stage.datasets
    fits = stage.purposes is None or purpose in stage.purposes
    if not (named and fits):
        return 0.0, 0.0
    own = stage.datasets.get(dataset.name) if isinstance(stage.datasets, dict) else None
    epochs, weight = (own.epochs, own.weight) if own is not None else (dataset.epochs, dataset.weight)
    if weight is not None:
        return None, weight
    return (1.0 if epochs is None else epochs), 0.0


def _wanted(stage: Stage) -> str:
    return f" (purposes {', '.join(stage.purposes)})" if stage.purposes else ""


def member(output: Output, source: int, entries: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """bool[n]: which documents (`ENTRY[n]`, ids uint64[n, 2]) of a source belong to an output."""
    if output.epochs[source] == 0:
        return np.zeros(len(entries), bool)
    mask = np.ones(len(entries), bool)
    low, high = output.split
    if (low, high) != (0.0, 1.0):
        points = split_points(ids)
        mask &= (points >= low) & (points < high)
    if output.min_chars:
        mask &= entries["chars"] >= output.min_chars
    if output.min_tokens:
        mask &= entries["tokens"] > output.min_tokens  # the separator is counted in `tokens`
    return mask
