"""Reads random rows in two processes at once and prints how many were wrong: a script, so that nothing else is forked.

    python read_in_workers.py FOLDER fork|spawn unread|read|inside READS

`read`: the dataset has been read from before the workers start; `inside`: it is opened in each worker. The tokens are
those of `fake_output`: a row is right if it holds the numbers that belong to its place.
"""

import multiprocessing
import random
import sys

import numpy as np

from beam_prep.dataset import PackedDataset


def wrong_rows(dataset, path: str, seed: int, reads: int) -> int:
    dataset = dataset if dataset is not None else PackedDataset(path, open_files=3)
    numbers, wrong = random.Random(seed), 0
    for _ in range(reads // 10):
        chosen = [numbers.randrange(len(dataset)) for _ in range(5)]
        rows = [dataset[index] for index in chosen] + dataset.__getitems__(chosen)
        for index, row in zip(chosen * 2, rows, strict=True):
            length = dataset.context_length
            wrong += not np.array_equal(row, np.arange(index * length, (index + 1) * length) + 2**31)
    return wrong


def main(path: str, method: str, opened: str, reads: str) -> None:
    dataset = None if opened == "inside" else PackedDataset(path, open_files=3)
    if opened == "read":
        assert not wrong_rows(dataset, path, 99, 100)
    with multiprocessing.get_context(method).Pool(2) as pool:
        jobs = [pool.apply_async(wrong_rows, (dataset, path, seed, int(reads) // 2)) for seed in range(2)]
        own = 0 if dataset is None else wrong_rows(dataset, path, 5, 500)  # the parent goes on reading meanwhile
        print(own + sum(job.get() for job in jobs))


if __name__ == "__main__":
    main(*sys.argv[1:])
