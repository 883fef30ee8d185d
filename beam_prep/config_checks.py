"""What no single key of a configuration shows: wishes that contradict each other."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beam_prep.config import Config

Location = tuple[str | int, ...]
_MOST_EPOCHS = 1e6
_MOST_TOKENS = 1e15
_MOST_WEIGHT = 1e12


def contradictions(config: Config) -> Iterator[tuple[Location, str]]:
    """(place, what is wrong and what to do) of every contradiction between keys."""
    yield from _ranges(config)
    yield from _weights(config)
    yield from _splits(config)
    yield from _stages(config)
    yield from _views(config)


def _ranges(config: Config) -> Iterator[tuple[Location, str]]:
    """Numbers with which the sums of a mixture would leave what a float holds."""
    own_stages = config.stages if isinstance(config.stages, list) else []
    weights: list[tuple[Location, float | None]] = [
        (("datasets", index, "weight"), dataset.weight) for index, dataset in enumerate(config.datasets)
    ]
    budgets: list[tuple[Location, float | None]] = [(("total_tokens",), config.total_tokens)]
    for index, stage in enumerate(own_stages):
        if isinstance(stage.datasets, dict):
            weights += [(("stages", index, "datasets", name), share.weight) for name, share in stage.datasets.items()]
        budgets.append((("stages", index, "total_tokens"), stage.total_tokens))
        if stage.max_epochs is not None and stage.max_epochs > _MOST_EPOCHS:
            yield ("stages", index, "max_epochs"), f"{stage.max_epochs:g} is more than {_MOST_EPOCHS:g}"
    for place, weight in weights:
        if weight is not None and not 1 / _MOST_WEIGHT <= weight <= _MOST_WEIGHT:
            yield (
                place,
                f"{weight:g} is not between {1 / _MOST_WEIGHT:g} and {_MOST_WEIGHT:g}; only the proportions of weights "
                "count",
            )
    for place, budget in budgets:
        if budget is not None and budget > _MOST_TOKENS:
            yield place, f"{budget:g} is more than {_MOST_TOKENS:g}; leave it out to take as much as there is"


def _weights(config: Config) -> Iterator[tuple[Location, str]]:
    weighted = [dataset for dataset in config.datasets if dataset.weight is not None]
    own_stages = config.stages if isinstance(config.stages, list) else []
    in_stages = any(s.weight is not None for stage in own_stages for s in _shares(stage.datasets))
    for index, dataset in enumerate(config.datasets):
        if weighted and dataset.weight is None and dataset.epochs is None:
            yield (
                ("datasets", index),
                f"dataset {dataset.name!r} has neither `weight` nor `epochs`, and {weighted[0].name!r} has a weight; "
                "say how much of this one is wanted",
            )
    if config.total_tokens is not None and not weighted and not in_stages:
        yield (
            ("total_tokens",),
            "no dataset has a `weight`, and those with `epochs` (default 1) already decide the size; give the datasets "
            "weights in place of epochs, or remove total_tokens",
        )


def _shares(datasets: object) -> list:
    return list(datasets.values()) if isinstance(datasets, dict) else []


def _splits(config: Config) -> Iterator[tuple[Location, str]]:
    if config.splits is None:
        return
    total = math.fsum(config.splits.values())
    if not math.isclose(total, 1, abs_tol=1e-9):
        yield ("splits",), f"the fractions sum to {total:.10g}, not 1; every document belongs to one split"


def _stages(config: Config) -> Iterator[tuple[Location, str]]:
    if not isinstance(config.stages, list):
        return
    known = [dataset.name for dataset in config.datasets]
    seen: set[str] = set()
    for index, stage in enumerate(config.stages):
        if stage.name in seen:
            yield ("stages", index, "name"), f"two stages are called {stage.name!r}; give each a name of its own"
        seen.add(stage.name)
        for name in stage.datasets or []:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                yield ("stages", index, "datasets"), f"no dataset is called {name!r}; {hint}"


def _views(config: Config) -> Iterator[tuple[Location, str]]:
    from beam_prep.outputs import context_lengths  # which itself needs the models

    for index, length in enumerate(config.views):
        longer = [n for n in context_lengths(config) if n > length]
        if not longer:
            yield ("views", index), f"{length} is not below any context length; a view shows shorter sequences"
        for other in longer:
            if other % length:
                yield (
                    ("views", index),
                    f"{other} is no multiple of {length}; a view cuts every sequence into equal parts",
                )
