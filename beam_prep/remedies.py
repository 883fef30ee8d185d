"""Remedies: what would make an impossible mixture possible. Only what was tried is said."""

from __future__ import annotations

import math
from collections.abc import Sequence

from beam_prep.mixture import Supply

_MOST_EPOCHS = 1e6
"""What a configuration accepts."""


def remedies(names: Sequence[str], supplies: Sequence[Supply]) -> str:
    """Values of `max_epochs`, `total_tokens` or weights, each of which alone would do.

    Args:
      names: of the sources.
      supplies: of all outputs that share these keys (the splits of a stage), with a budget that cannot be met.
    """
    found = []
    budget = _largest_budget(supplies)
    if budget is not None:
        found.append(f"`total_tokens: {budget}`")
    if epochs := _least_epochs(supplies):
        found.append(f"`max_epochs: {epochs:.2f}`")
    if weights := _lower_weights(supplies):
        found.append(" and ".join(f"`weight: {weight:g}` for {names[s]!r}" for s, weight in weights.items()))
    if any(supply.rest <= 0 for supply in supplies):
        least = max(supply.fixed / _part(supply) for supply in supplies)
        found.append(f"fewer `epochs` of the others, or a total_tokens well above {math.ceil(least)}")
    return f"possible: {', or '.join(found)}" if found else "no single number makes it possible"


def _possible(supplies: Sequence[Supply], **changes: object) -> bool:
    return all(supply._replace(output=supply.output._replace(**changes)).possible for supply in supplies)


def _part(supply: Supply) -> float:
    """The output's part of the configuration's budget."""
    low, high = supply.output.split
    return high - low


def _largest_budget(supplies: Sequence[Supply]) -> int | None:
    """The largest `total_tokens` of the configuration that every output can meet."""
    budget = math.floor(min((s.largest + s.fixed) / _part(s) for s in supplies if s.shares))
    changed = [s._replace(output=s.output._replace(total_tokens=budget * _part(s))) for s in supplies]
    return budget if budget >= 1 and all(s.possible for s in changed) else None


def _least_epochs(supplies: Sequence[Supply]) -> float | None:
    """The least `max_epochs`, to two decimals, at which every output can be had."""
    needed = max((n for supply in supplies if supply.rest > 0 for n in supply.short.values()), default=0.0)
    epochs = math.ceil(needed * 100) / 100
    return epochs if 0 < epochs <= _MOST_EPOCHS and _possible(supplies, max_epochs=epochs) else None


def _lower_weights(supplies: Sequence[Supply]) -> dict[int, float]:
    """Lower weights for the sources that fall short, while the other weights stay as they are; empty: there are none.

    A source that falls short gets the most that it can give, the others divide what it leaves; then another one may
    fall short, and so on.
    """
    asked = dict(enumerate(supplies[0].output.weights))
    most = {s: min((_most_share(supply, s) for supply in supplies), default=0.0) for s, w in asked.items() if w > 0}
    capped: set[int] = set()
    while True:
        left = 1 - sum(most[s] for s in capped)
        free = sum(asked[s] for s in most if s not in capped)
        if left <= 0 or free <= 0:
            return {}
        more = {s for s in most if s not in capped and left * asked[s] / free > most[s]}
        if not more:
            break
        capped |= more
    found = {s: _down(most[s] / left * free) for s in sorted(capped)}
    weights = tuple(found.get(s, weight) for s, weight in asked.items())
    return found if found and all(found.values()) and _possible(supplies, weights=weights) else {}


def _most_share(supply: Supply, source: int) -> float:
    if not supply.available[source] or supply.rest <= 0:
        return math.inf
    return supply.output.max_epochs * supply.available[source] / supply.rest


def _down(value: float) -> float:
    """Four digits, rounded down, so that following the advice is enough."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{math.floor(value / unit) * unit:.4g}")
