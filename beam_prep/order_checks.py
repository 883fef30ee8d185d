"""The part of verify that recomputes where a document belongs: split and shard follow from id, copy and seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from beam_prep.balance import bucket_edges
from beam_prep.mix import order_keys, split_points
from beam_prep.outputs import split_edges


class Order(NamedTuple):
    """What decides where the documents of an output stand."""

    seed: int
    split: tuple[float, float]
    """Part [low, high) of the split points that belongs to the output."""
    edges: np.ndarray
    """uint64[shards + 1]: shard n holds the order keys in [edges[n], edges[n + 1])."""
    sorted: bool
    """Whether documents of a shard stand in the order of their keys, as `concat` leaves them."""


def order_of(name: str, shards: int, packing: str, seed: int, configuration: Mapping[str, Any]) -> Order:
    """The order of the output `name`, from the manifest's own figures (its configuration may be damaged)."""
    splits = configuration.get("splits")
    try:
        split = dict(split_edges(splits)).get(name.rsplit("/", 1)[-1], (0.0, 1.0))
    except (AttributeError, TypeError, ValueError):
        split = (0.0, 1.0)
    return Order(seed, split, bucket_edges(max(1, shards)), packing == "concat")


def misplaced(
    order: Order, ids: np.ndarray, copy: np.ndarray, begins: np.ndarray, shard: int
) -> tuple[int, str] | None:
    """The first span whose document does not belong where it stands.

    The last shard also holds the rests of the others, in an order of their own, so there only the split is certain.

    Args:
      ids: uint64[n, 2], of the spans of a shard in the order of its tokens.
      copy: uint64[n].
      begins: bool[n]: spans with which a document begins.
      shard: its number.

    Returns:
      (row, problem), or None.
    """
    points = split_points(ids)
    low, high = order.split
    wrong = (points < low) | (points >= high)
    if wrong.any():
        return int(np.argmax(wrong)), "belongs to another split, by its content"
    if shard >= len(order.edges) - 2:
        return None
    rows = np.nonzero(begins)[0]
    keys = order_keys(ids[rows], order.seed, copy[rows])
    wrong = (keys < order.edges[shard]) | (keys >= order.edges[shard + 1])
    if wrong.any():
        return int(rows[np.argmax(wrong)]), "belongs to another shard, by its content and the seed"
    if order.sorted and (wrong := keys[1:] < keys[:-1]).any():
        return int(rows[np.argmax(wrong) + 1]), "stands out of order, by its content and the seed"
    return None
