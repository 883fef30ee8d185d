"""The reader: an output of a run as a sequence of token sequences, for training.

Needs numpy alone; pyarrow where document boundaries are asked for, torch where tensors are, google-cloud-storage for gs://
paths, and Beam for other remote ones. Nothing of it is imported before.
"""

from __future__ import annotations

import json
import operator
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np

from beam_prep import boundaries, storage
from beam_prep.boundaries import Boundaries
from beam_prep.byte_ranges import RangeReader, read_file
from beam_prep.errors import BeamPrepError, ConfigError
from beam_prep.layout import MANIFEST, SUCCESS
from beam_prep.sampling import ResumableSampler
from beam_prep.success import answers_for

EXTRAS = ("document_ids", "position_ids", "cu_seqlens", "sources")
_DTYPES = {"uint32": np.dtype("<u4")}
_LEVELS = 4  # folders to look into above the one given: outputs are `train` or `S1/train`


class Tokenizer(NamedTuple):
    """Which tokenizer made the ids."""

    name: str
    sha256: str
    """Of its tokenizer.json."""
    eod_token_id: int
    """The separator behind every document, which also pads."""
    vocab_size: int


class _Shard(NamedTuple):
    path: str
    size: int
    """Bytes."""
    sequences: int
    documents: str


class _Layout(NamedTuple):
    """What the manifest says of an output."""

    dtype: np.dtype
    fingerprint: str
    tokenizer: Tokenizer
    context_length: int
    shards: list[_Shard]
    """Those that hold a sequence, in their order."""


class PackedDataset:
    """An output as a random-access sequence of token sequences, each of exactly `context_length` tokens.

        train = PackedDataset("out/train")
        train[0]                    # uint32[context_length]
        train[-1], train[10:20]     # the last one; uint32[10, context_length]

    Safe in every way of starting workers, opened or read before or after: no two reads share a file position, and a
    pickled dataset leaves its open files behind. Threads may share one. Only as many shards as the limit on open files
    allows are open at a time. Every array that is returned is a fresh copy.

    A map-style dataset for torch's `DataLoader` (`__getitems__` reads a whole batch), and a `RandomAccessDataSource`
    for Grain. `sampler` gives the order of training.

    Args:
      path: an output (`out/train`), or the folder of a run with `output` or only one output; local or gs://….
      output: the output's name (`train`, `S1/train`), if `path` is the folder of the run.
      context_length: a divisor of the stored one; then every stored sequence is read as several.
      extras: what a sample holds beside its tokens, of these, all from the stored documents:
        `document_ids`: int32[context_length], the position's document, numbered from 0 within the sample; -1: padding.
        `position_ids`: int32[context_length], from 0 in every document's part (or see `positions`); padding counts from
          0 as well.
        `cu_seqlens`: int32[m + 1], the bounds of those parts, from 0 to `context_length`, as variable-length attention
          takes them; a run of padding is a part.
        `sources`: list of the documents' source names, by document number.
      positions: what `position_ids` of a part that continues a document begins with: "part": 0; "document": the part's
        position in the document.
      as_dict: samples are dicts, tokens under `input_ids`. With extras they always are.
      as_torch: torch tensors: tokens and position_ids int64, the others int32.
      generations: the first so many generations of an output that grows (see docs/increments.md); default: all.
      allow_unfinished: reads an output without `_SUCCESS` too.
      open_files: shards kept open; default: an eighth of the process's limit.

    Raises:
      ConfigError: there is no such output, or an argument is out of range.
      BeamPrepError: the output is not finished, or its manifest is damaged. Reading raises it for a shard or sidecar
        that is missing or not of the manifest's size.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        output: str | None = None,
        *,
        context_length: int | None = None,
        extras: Sequence[str] = (),
        positions: Literal["part", "document"] = "part",
        as_dict: bool = False,
        as_torch: bool = False,
        generations: int | None = None,
        allow_unfinished: bool = False,
        open_files: int | None = None,
    ):
        extras = (extras,) if isinstance(extras, str) else tuple(extras)
        if unknown := [name for name in extras if name not in EXTRAS]:
            raise ConfigError(f"extras: {unknown[0]!r} is not one of {', '.join(EXTRAS)}")
        if positions not in ("part", "document"):
            raise ConfigError(f"positions: {positions!r} is neither 'part' nor 'document'")
        if open_files is not None and open_files < 1:
            raise ConfigError(f"open_files: {open_files} is below 1")
        root, name, manifest = _find_finished(os.fspath(path), output, allow_unfinished)
        self.path = storage.join(root, name)
        """The output's folder."""
        self.name = name
        """The output's name in the manifest."""
        layout = _layout(storage.join(root, MANIFEST), manifest, name, self.path, generations)
        self.dtype = layout.dtype
        """Of the stored tokens, and of the arrays returned."""
        self.fingerprint = layout.fingerprint
        """Of the run; equal runs have equal ones."""
        self.tokenizer = layout.tokenizer
        self.stored_context_length = layout.context_length
        """Tokens of a stored sequence."""
        self.context_length = layout.context_length if context_length is None else context_length
        """Tokens of a sample."""
        if self.context_length < 1 or layout.context_length % self.context_length:
            raise ConfigError(
                f"context_length: {context_length} does not divide the stored {self.stored_context_length:,}"
            )
        parts = self.stored_context_length // self.context_length
        # The sample that each shard begins with, and behind them the number of samples.
        self._firsts = [0, *accumulate(shard.sequences * parts for shard in layout.shards)]
        self._length = self._firsts[-1]
        self._row_bytes = self.context_length * self.dtype.itemsize
        self._documents = [shard.documents for shard in layout.shards]
        self._extras, self._positions, self._as_torch = extras, positions, as_torch
        self._as_dict = as_dict or bool(extras)
        self._reader = RangeReader([(shard.path, shard.size) for shard in layout.shards], open_files)
        self._boundaries = Boundaries()

    def __repr__(self) -> str:
        return (
            f"PackedDataset({self.path!r}: {len(self):,} sequences of {self.context_length:,} tokens, "
            f"{self.dtype.name}, {self.tokenizer.name})"
        )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        """A sample; for a slice: integer[n, context_length], or a list of dicts."""
        if isinstance(index, slice):
            numbers = range(*index.indices(self._length))
            return self._samples(numbers) if self._as_dict else self._out(self._read(numbers))
        number = self._number(index)
        row = np.empty(self.context_length, self.dtype)
        shard = bisect_right(self._firsts, number) - 1
        self._reader.read_into(shard, (number - self._firsts[shard]) * self._row_bytes, row, self._row_bytes)
        if self._as_dict:
            return self._sample(row, number)
        return self._out(row) if self._as_torch else row

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """The samples of a batch, in order; torch's loaders call it. Neighbours are read together."""
        numbers = [self._number(index) for index in indices]
        return self._samples(numbers) if self._as_dict else list(self._out(self._read(numbers)))

    def read(self, indices: Sequence[Any]) -> Any:
        """The tokens of any samples: integer[n, context_length] (a tensor with `as_torch`)."""
        return self._out(self._read([self._number(index) for index in indices]))

    def sampler(
        self,
        seed: int = 0,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = True,
        endless: bool = False,
    ) -> ResumableSampler:
        """The order of training, for one rank; see `ResumableSampler`."""
        identity = f"{self.fingerprint}/{self.name}/{self.context_length}"
        return ResumableSampler(
            len(self), seed=seed, rank=rank, world_size=world_size, shuffle=shuffle, endless=endless, identity=identity
        )

    def _number(self, index: Any) -> int:
        number = operator.index(index)
        if number < 0:
            number += self._length
        if not 0 <= number < self._length:
            raise IndexError(f"sequence {operator.index(index)} is out of range: there are {self._length:,}")
        return number

    def _read(self, numbers: Sequence[int]) -> np.ndarray:
        """`dtype`[n, context_length]; every run of neighbours within a shard by one read."""
        out = np.empty((len(numbers), self.context_length), self.dtype)
        firsts, row_bytes = self._firsts, self._row_bytes
        at, count = 0, len(numbers)
        while at < count:
            number = numbers[at]
            shard = bisect_right(firsts, number) - 1
            end = at + 1
            while end < count and numbers[end] == number + end - at < firsts[shard + 1]:
                end += 1
            self._reader.read_into(shard, (number - firsts[shard]) * row_bytes, out[at:end], (end - at) * row_bytes)
            at = end
        return out

    def _out(self, rows: np.ndarray) -> Any:
        return _tensor(rows, np.int64) if self._as_torch else rows

    def _samples(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [self._sample(row, number) for row, number in zip(self._read(numbers), numbers, strict=True)]

    def _sample(self, row: np.ndarray, number: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"input_ids": self._out(row)}
        if not self._extras:
            return sample
        shard = bisect_right(self._firsts, number) - 1
        stored, part = divmod(number - self._firsts[shard], self.stored_context_length // self.context_length)
        spans = self._boundaries.spans(self._documents[shard], stored, self.stored_context_length)
        spans = spans.window(part * self.context_length, (part + 1) * self.context_length)
        runs = boundaries.segments(spans, self.context_length)
        for name in self._extras:
            if name == "document_ids":
                value: Any = boundaries.document_ids(runs)
            elif name == "position_ids":
                value = boundaries.position_ids(runs, spans, self._positions == "document")
            elif name == "cu_seqlens":
                value = boundaries.cu_seqlens(runs)
            else:
                value = [spans.names[source] for source in spans.source.tolist()]
            if self._as_torch and name != "sources":
                value = _tensor(value, np.int64 if name == "position_ids" else np.int32)
            sample[name] = value
        return sample


def _tensor(array: np.ndarray, dtype: Any) -> Any:
    import torch

    return torch.from_numpy(array.astype(dtype, copy=False))


def _find_finished(path: str, output: str | None, allow_unfinished: bool) -> tuple[str, str, dict[str, Any]]:
    """As `_find`; raises BeamPrepError if the output is not finished."""
    for _ in range(3):  # an increment may come between the manifest and `_SUCCESS`
        root, name, manifest = _find(path, output)
        mark = read_file(storage.join(root, SUCCESS)) or b""
        if allow_unfinished or "fingerprint" not in manifest or answers_for(mark, str(manifest["fingerprint"])):
            return root, name, manifest
    raise BeamPrepError(
        f"{root}: is not finished ({SUCCESS} is missing or of another run); run the job again, or give "
        "allow_unfinished=True to read it as it is"
    )


def _find(path: str, output: str | None) -> tuple[str, str, dict[str, Any]]:
    """(folder of the run, name of the output, manifest): the manifest lies in `path` or in a folder above it."""
    if storage.is_local(path):
        path = os.path.abspath(path)  # so that a worker finds it from any folder
        if not os.path.isdir(path):
            raise ConfigError(f"{path}: no such folder; give an output (out/train)")
    root, names = path.rstrip("/") or "/", []
    for _ in range(_LEVELS if output is None else 1):
        data = read_file(storage.join(root, MANIFEST))
        if data is not None:
            manifest = _parse(storage.join(root, MANIFEST), data)
            name = output if output is not None else "/".join(reversed(names))
            return root, _choose(path, name, list(manifest["outputs"])), manifest
        parent, _, last = root.rpartition("/")
        if not last or parent.endswith("/") or not parent:  # the root of a file system
            break
        root, names = parent, [*names, last]
    above = "" if output is not None else ", nor does a folder above it"
    raise ConfigError(f"{path}: holds no {MANIFEST}{above}; give an output of a run that has finished (out/train)")


def _parse(path: str, data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        if not isinstance(manifest["outputs"], dict):
            raise TypeError("outputs")
    except (KeyError, TypeError, ValueError) as error:
        raise BeamPrepError(f"{path}: is damaged ({error!r}); run the job again with --overwrite") from None
    return manifest


def _layout(path: str, manifest: dict[str, Any], name: str, folder: str, generations: int | None) -> _Layout:
    try:
        entry, spec = manifest["outputs"][name], manifest["tokenizer"]
        fingerprint, count = _until(manifest, name, generations)
        dtype, context_length = _DTYPES[manifest["dtype"]], operator.index(entry["context_length"])
        shards = [
            _Shard(
                storage.join(folder, shard["path"]),
                shard["bytes"],
                operator.index(shard["sequences"]),
                storage.join(folder, shard["documents"]),
            )
            for shard in entry["shards"][:count]
            if shard["sequences"]
        ]
        if any(shard.size != shard.sequences * context_length * dtype.itemsize for shard in shards):
            raise ValueError("the bytes of a shard are not those of its sequences")
        tokenizer = Tokenizer(*(spec[key] for key in Tokenizer._fields))
        return _Layout(dtype, fingerprint, tokenizer, context_length, shards)
    except (KeyError, TypeError, ValueError) as error:
        raise BeamPrepError(f"{path}: is damaged ({error!r}); run the job again with --overwrite") from None


def _until(manifest: dict[str, Any], name: str, generations: int | None) -> tuple[str, int | None]:
    """(fingerprint, shards) of an output when it had so many generations; None shards: all."""
    all_ = manifest.get("generations") or [{}]
    if generations is None or generations == len(all_):
        return str(manifest["fingerprint"]), None
    if not 1 <= generations < len(all_):
        raise ConfigError(f"generations: {generations} of {len(all_)}; give a number from 1 to {len(all_)}")
    shards = sum(operator.index(generation["outputs"][name]["shards"]) for generation in all_[:generations])
    return str(all_[generations - 1]["fingerprint"]), shards


def _choose(path: str, name: str, names: list[str]) -> str:
    if not name and len(names) == 1:
        return names[0]
    if name not in names:
        said = f"output {name!r} is not there" if name else "say which output"
        raise ConfigError(f"{path}: {said}; there is {', '.join(names)}")
    return name


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of dict samples whose extras differ in length; for `DataLoader(…, collate_fn=collate)`.

    Arrays (or tensors) of `context_length` are stacked. `cu_seqlens` become those of the batch laid end to end
    (int32[m + 1], from 0 to n × context_length), with the longest part as `max_seqlen`; `sources` a list of lists.
    """
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name == "sources":
            batch[name] = values
        elif name == "cu_seqlens":
            lengths = np.concatenate([np.diff(np.asarray(value)) for value in values])
            joined = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            batch[name] = joined if isinstance(values[0], np.ndarray) else _tensor(joined, np.int32)
            batch["max_seqlen"] = int(lengths.max())
        elif isinstance(values[0], np.ndarray):
            batch[name] = np.stack(values)
        else:
            import torch

            batch[name] = torch.stack(values)
    return batch
