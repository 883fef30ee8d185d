"""Mixture: from the counted tokens of every source to how often each of its documents is written.

A weight is a share of an output's tokens. What a source has is only known when everything is tokenized, so Deduplicate
counts, and the rates that give the asked shares are solved here before anything is placed:

* Sources with `epochs` are fixed; the rest of the output is divided among the weighted ones in proportion.
* The rest is the budget less the fixed tokens; without a budget it is the largest one at which no weighted source is
  seen more than `max_epochs` times.
* A source's rate is cut at the documents that come nearest to its tokens. For that, tokens are counted by share point
  (`mix.share_words`) in bins whose width is 1/4096 of the point itself, so that a weight of 1e-6 is met as closely as
  one of 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from beam_prep.mix import SHARE_BITS, Rate, rate_of
from beam_prep.outputs import Output

_MANTISSA_BITS = 12
_BIN_SHIFT = np.uint64(52 - _MANTISSA_BITS)
_CELL_SHIFT = np.uint64(24)
_TOLERANCE = 0.004
"""Relative shortage of a source that is not worth failing for. Shares are realised within 0.005: the rest is for cuts,
which fall between documents."""


class Histogram(NamedTuple):
    """Tokens by (output, source, bin of the share point), for weighted sources; sparse."""

    keys: np.ndarray
    """uint64[n], ascending: cell << 24 | bin, where cell = output * sources + source."""
    tokens: np.ndarray
    """int64[n]."""


EMPTY = Histogram(np.empty(0, np.uint64), np.empty(0, np.int64))


class Share(NamedTuple):
    """What a source contributes to an output."""

    asked: float | None
    """Share of the output's tokens that its weight asks for; None for a source with `epochs`."""
    rate: Rate
    tokens: int
    """Tokens of all copies."""


def histogram(cell: int, words: np.ndarray, tokens: np.ndarray) -> Histogram:
    """The histogram of one cell. `words`: uint64[n] share words; `tokens`: int64[n]."""
    # The leading bits of a float are its exponent and mantissa: bins of equal relative width, in ascending order.
    bins = words.astype(np.float64).view(np.uint64) >> _BIN_SHIFT
    return _summed(np.uint64(cell) << _CELL_SHIFT | bins, tokens)


def merge(parts: Iterable[Histogram]) -> Histogram:
    """The sum of histograms."""
    parts = list(parts)
    if not parts:
        return EMPTY
    return _summed(np.concatenate([p.keys for p in parts]), np.concatenate([p.tokens for p in parts]))


def _summed(keys: np.ndarray, tokens: np.ndarray) -> Histogram:
    order = np.argsort(keys, kind="stable")
    keys, tokens = keys[order], tokens[order].astype(np.int64)
    first = np.nonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))[0] if len(keys) else np.empty(0, np.int64)
    return Histogram(keys[first], np.add.reduceat(tokens, first) if len(first) else np.empty(0, np.int64))


def cell_of(counted: Histogram, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """(bins uint64[n] ascending, tokens int64[n]) of one cell."""
    low, high = np.searchsorted(counted.keys, np.array([cell, cell + 1], np.uint64) << _CELL_SHIFT)
    return counted.keys[low:high] & np.uint64(2**24 - 1), counted.tokens[low:high]


def nearest_rate(bins: np.ndarray, tokens: np.ndarray, wanted: float) -> tuple[Rate, int]:
    """The rate whose copies hold as nearly `wanted` tokens as whole bins allow, and the tokens that it gives.

    Args:
      bins, tokens: of one cell; see `cell_of`. At least one bin.
    """
    total = int(tokens.sum())
    whole, part = divmod(max(0.0, wanted), total)
    sums = np.concatenate([[0], np.cumsum(tokens)])
    at = int(np.searchsorted(sums, part))
    if at > 0 and (at == len(sums) or part - sums[at - 1] <= sums[at] - part):
        at -= 1
    given = int(whole) * total + int(sums[at])
    if at == len(tokens):
        return Rate(int(whole) + 1, 0), given
    cut = 0 if at == 0 else _edge(int(bins[at - 1]) + 1)
    return Rate(int(whole), cut), given


def _edge(number: int) -> int:
    """The least share word in bin `number` or above."""
    lower = float((np.uint64(number) << _BIN_SHIFT).view(np.float64))
    return min(1 << SHARE_BITS, int(np.ceil(lower)))


class Supply(NamedTuple):
    """What an output asks for, and what there is for it."""

    output: Output
    available: Sequence[int]
    """By source: tokens of its documents that belong to the output, each counted once."""
    fixed: int
    """Tokens of the sources with `epochs`, all copies."""

    @property
    def shares(self) -> dict[int, float]:
        """Weighted source → its share of what the fixed ones leave. One without documents has none."""
        weights = {s: w for s, w in enumerate(self.output.weights) if w > 0 and self.available[s] > 0}
        total = sum(weights.values())
        return {s: weight / total for s, weight in weights.items()}

    @property
    def largest(self) -> float:
        """Tokens of all weighted sources at which the first of them is seen `max_epochs` times."""
        return min(self.output.max_epochs * self.available[s] / share for s, share in self.shares.items())

    @property
    def rest(self) -> float:
        """Tokens asked of all weighted sources together."""
        return self.largest if self.output.total_tokens is None else self.output.total_tokens - self.fixed

    @property
    def short(self) -> dict[int, float]:
        """Source that falls short → the epochs that it would take."""
        rest = self.rest
        epochs = {s: rest * share / self.available[s] for s, share in self.shares.items()}
        return {s: n for s, n in epochs.items() if n > self.output.max_epochs * (1 + _TOLERANCE)}

    @property
    def possible(self) -> bool:
        """Whether the shares can be met."""
        return not self.shares or (self.rest > 0 and not self.short)


def solve(
    output: Output,
    number: int,
    names: Sequence[str],
    available: Sequence[int],
    fixed: Sequence[int],
    counted: Histogram,
) -> tuple[list[Share], list[str]]:
    """Every source's part in an output.

    Args:
      number: the output's.
      names: of the sources.
      available: tokens of each source's documents that belong to the output, each counted once.
      fixed: tokens that each source with `epochs` contributes.
      counted: of weighted sources.

    Returns:
      One share a source, and what makes the wish impossible (nothing, if it is possible); see `remedies` for what
      would help.
    """
    supply = Supply(output, available, sum(fixed))
    shares = [Share(None, rate_of(epochs or 0), fixed[s]) for s, epochs in enumerate(output.epochs)]
    if not supply.possible:
        return shares, _shortages(supply, names)
    divided = supply.shares
    rest = supply.rest if divided else 0.0
    for s, share in divided.items():
        wanted = min(rest * share, output.max_epochs * available[s])
        rate, tokens = nearest_rate(*cell_of(counted, number * len(names) + s), wanted)
        shares[s] = Share(share * rest / (rest + supply.fixed), rate, tokens)
    return shares, []


def _shortages(supply: Supply, names: Sequence[str]) -> list[str]:
    output, available = supply.output, supply.available
    if supply.rest <= 0:
        return [
            f"output {output.name!r}: total_tokens gives it {output.total_tokens:,.0f} tokens, and the datasets with "
            f"epochs already make {supply.fixed:,}: nothing is left for those with weights"
        ]
    return [
        f"output {output.name!r}: of the {supply.rest:,.0f} tokens that total_tokens leaves for weights here, "
        f"{supply.shares[s]:.4g} are asked of dataset {names[s]!r}, which has {available[s]:,}: that is {epochs:.3g} "
        f"epochs, and max_epochs is {output.max_epochs:g}"
        for s, epochs in supply.short.items()
    ]
