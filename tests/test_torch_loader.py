"""The reader and the sampler in torch's loaders: the right batches, in the same order for any number of workers."""

import numpy as np
import pytest
from fake_output import FakeOutput, write_fake

from beam_prep import PackedDataset
from beam_prep.dataset import EXTRAS, collate
from beam_prep.sampling import Batches

torch = pytest.importorskip("torch", reason="torch is not installed")
DataLoader = torch.utils.data.DataLoader


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeOutput:
    return write_fake(tmp_path_factory.mktemp("torch") / "out", [25, 40, 12], 32)


def numbers_of(batch: "torch.Tensor") -> list[int]:
    """Which sequences a batch holds; fails if a row is not one."""
    rows = batch.to(torch.int64).numpy() - 2**31
    first = rows[:, 0] // 32
    assert np.array_equal(rows, first[:, None] * 32 + np.arange(32))
    return first.tolist()


@pytest.mark.parametrize("method", [None, "fork", "spawn"])
def test_map_style(fake: FakeOutput, method: str | None) -> None:
    """Opened and read before the workers start; shuffled by our sampler, and by the loader's own."""
    reader = PackedDataset(fake.folder, as_torch=True)
    reader[0], reader[-1]
    options = {"num_workers": 2, "multiprocessing_context": method} if method else {}
    loader = DataLoader(reader, batch_size=10, sampler=reader.sampler(seed=5), **options)
    batches = [numbers_of(batch) for batch in loader]
    assert [len(batch) for batch in batches] == [10] * 7 + [7]
    assert sum(batches, []) == list(reader.sampler(seed=5))
    own = [n for batch in DataLoader(reader, batch_size=10, shuffle=True, **options) for n in numbers_of(batch)]
    assert sorted(own) == list(range(77))


def test_types(fake: FakeOutput) -> None:
    plain, tensors = PackedDataset(fake.folder), PackedDataset(fake.folder, as_torch=True)
    assert next(iter(DataLoader(plain, batch_size=2))).dtype == torch.uint32
    for value, shape in ((tensors[3], (32,)), (tensors[2:6], (4, 32)), (tensors.read([1, -1]), (2, 32))):
        assert value.dtype == torch.int64 and tuple(value.shape) == shape
    assert tensors[torch.tensor(3)].tolist() == plain[3].tolist() == tensors.__getitems__([3])[0].tolist()
    sample = PackedDataset(fake.folder, as_torch=True, extras=EXTRAS)[5]
    expected = PackedDataset(fake.folder, extras=EXTRAS)[5]
    for key, type_ in zip(["input_ids", *EXTRAS[:3]], ["int64", "int32", "int64", "int32"], strict=True):
        assert sample[key].dtype == getattr(torch, type_)
        assert sample[key].tolist() == expected[key].tolist()


def test_extras_in_batches(fake: FakeOutput) -> None:
    reader = PackedDataset(fake.folder, as_torch=True, extras=EXTRAS)
    plain = PackedDataset(fake.folder, extras=EXTRAS)
    sampler = reader.sampler(seed=2)
    order = list(reader.sampler(seed=2))
    loader = DataLoader(reader, batch_size=6, sampler=sampler, collate_fn=collate, num_workers=1)
    for n, batch in enumerate(loader):
        expected = collate([plain[number] for number in order[6 * n : 6 * n + 6]])
        assert batch["max_seqlen"] == expected["max_seqlen"] and batch["sources"] == expected["sources"]
        assert all(batch[key].tolist() == expected[key].tolist() for key in ("input_ids", *EXTRAS[:3]))
        assert batch["cu_seqlens"].dtype == torch.int32


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_iterable(fake: FakeOutput, workers: int, rank: int) -> None:
    """The same batches as map-style, and a stop in the middle goes on behind what was counted."""
    reader = PackedDataset(fake.folder, as_torch=True)
    options = {"seed": 5, "rank": rank, "world_size": 2}
    expected = [numbers_of(batch) for batch in DataLoader(reader, batch_size=5, sampler=reader.sampler(**options))] + [
        numbers_of(batch) for batch in DataLoader(reader, batch_size=5, sampler=advanced(reader, options, 39))
    ]
    sampler = reader.sampler(**options)
    loader = DataLoader(Batches(reader, sampler, 5), batch_size=None, num_workers=workers)
    got = []
    for step, batch in enumerate(loader):
        got.append(numbers_of(batch))
        sampler.advance(batch)
        if step == 2:
            break
    resumed = reader.sampler(**options)
    resumed.load_state_dict(sampler.state_dict())
    rest = [numbers_of(batch) for batch in DataLoader(Batches(reader, resumed, 5), batch_size=None, num_workers=2)]
    for _ in range(2):  # the rest of this pass, and the next one
        for batch in loader:
            got.append(numbers_of(batch))
            sampler.advance(batch)
    assert got == expected
    assert rest == expected[3:8]


def advanced(reader: PackedDataset, options: dict, samples: int):
    sampler = reader.sampler(**options)
    sampler.advance(samples)
    return sampler


def test_iterable_collates(fake: FakeOutput) -> None:
    reader = PackedDataset(fake.folder, as_torch=True, extras="cu_seqlens")
    batches = Batches(reader, reader.sampler(seed=1), 4, collate)
    assert isinstance(batches, torch.utils.data.IterableDataset)
    batch = next(iter(DataLoader(batches, batch_size=None, num_workers=1)))
    assert numbers_of(batch["input_ids"]) == list(reader.sampler(seed=1))[:4]
    assert batch["cu_seqlens"][-1] == 4 * 32


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_data_loader(fake: FakeOutput, workers: int) -> None:
    """torchdata's loader, which counts by itself what it hands on."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    reader = PackedDataset(fake.folder, as_torch=True)

    def loader():
        return stateful.StatefulDataLoader(reader, batch_size=10, sampler=reader.sampler(seed=5), num_workers=workers)

    expected = [numbers_of(batch) for batch in loader()]
    first = loader()
    iterator = iter(first)
    got = [numbers_of(next(iterator)) for _ in range(3)]
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert got + [numbers_of(batch) for batch in second] == expected
