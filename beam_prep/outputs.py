"""Outputs: which documents of which sources belong to each output, at what rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from beam_prep.config import Config
from beam_prep.mix import split_points


class Output(NamedTuple):
    """One output of a run (`train`, `val`, `S1/train` …), as asked for."""

    name: str
    context_length: int
    split: tuple[float, float]
    """Part [low, high) of the split points that belongs here."""
    rates: tuple[float, ...]
    """Epochs of each source, 0 where it takes no part."""
    min_chars: int = 0
    min_tokens: int = 0


def outputs_of(config: Config) -> tuple[Output, ...]:
    """The outputs of a configuration."""
    rates = tuple(1.0 if dataset.epochs is None else dataset.epochs for dataset in config.datasets)
    return (Output("train", config.context_length, (0.0, 1.0), rates),)


def member(output: Output, source: int, entries: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """bool[n]: which documents (`ENTRY[n]`, ids uint64[n, 2]) of a source belong to an output."""
    if output.rates[source] == 0:
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


def source_names(config: Config) -> Sequence[str]:
    """Names of the sources in the configuration's order, which is also their order of precedence."""
    return [dataset.name for dataset in config.datasets]
