"""Reads an output of beam-prep through Grain, in worker processes, and resumes exactly. Needs `pip install grain`.

    beam-prep demo
    python examples/train_grain.py demo/out/train

`PackedDataset` is a `RandomAccessDataSource` as it is: it has a length and reads any sequence, in any thread or
process. Grain brings the order (its own seeded shuffle, an epoch at a time), the workers and the iterator's state.
"""

from __future__ import annotations

import argparse
import sys

import grain
import numpy as np

from beam_prep import PackedDataset

BATCH = 8


def batches(path: str, context_length: int | None, workers: int) -> grain.IterDataset:
    """Batches of {"input_ids", "document_ids", "position_ids"}, each (BATCH, context_length), without end."""
    source = PackedDataset(path, context_length=context_length, extras=("document_ids", "position_ids"))
    dataset = (
        grain.MapDataset.source(source)
        .seed(0)
        .shuffle()
        .repeat()  # every epoch in an order of its own
        .map(lambda sample: {**sample, "input_ids": sample["input_ids"].astype(np.int32)})  # as JAX likes them
        .batch(BATCH)
        .to_iter_dataset()
    )
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="an output (demo/out/train)")
    parser.add_argument("--context-length", type=int, help="a divisor of the stored one (default: that)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    iterator = iter(batches(arguments.path, arguments.context_length, arguments.workers))
    whole = []
    for step in range(arguments.steps):
        whole.append(next(iterator))
        if step + 1 == arguments.steps // 2:
            state = iterator.get_state()  # goes into the checkpoint, beside the model

    resumed = iter(batches(arguments.path, arguments.context_length, arguments.workers))
    resumed.set_state(state)
    for expected in whole[arguments.steps // 2 :]:
        found = next(resumed)
        if not all(np.array_equal(found[key], expected[key]) for key in expected):
            raise SystemExit("the resumed run differs from the whole one")
    batch = whole[-1]
    print({key: (str(value.dtype), value.shape) for key, value in batch.items()})
    print(
        f"resumed exactly: the last {arguments.steps - arguments.steps // 2} of {arguments.steps} batches are the same"
    )


if __name__ == "__main__":
    from absl import app  # Grain's workers are started by it

    app.run(lambda _: main(), argv=sys.argv[:1])
