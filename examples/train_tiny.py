"""Trains a tiny transformer on an output of beam-prep, stops, and resumes exactly. On a CPU; needs `pip install torch`.

    beam-prep demo
    python examples/train_tiny.py demo/out/train

What to copy from here: how `train` opens the loader, calls `advance` and keeps the sampler's state in its checkpoint,
and how `document_ids` and `position_ids` keep the documents of a sequence apart in `TinyTransformer`. The model is a
toy, and its vocabulary the 511 most frequent ids of the data, so that it trains on one core in seconds.

    python examples/train_tiny.py demo/out/train --reader data-forager

runs the same loop on data-forager's `TokensDataset`; `ForagerSequences` says what to mind with it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from beam_prep import PackedDataset
from beam_prep.sampling import ResumableSampler

BATCH, WIDTH, HEADS, LAYERS, VOCABULARY = 4, 32, 2, 2, 512


class ForagerSequences(Dataset):
    """data-forager's dataset of the same files, made safe for a loader with workers.

    To mind: `token_dtype` must be given, as its default reads these files as garbage without an error. The files must
    be opened in each worker: a dataset that has been read from before the workers are forked shares its file positions
    with all of them, and returns wrong rows without an error. Indexes must be plain ints. It knows no documents, so
    positions run on and attention crosses from one document to the next.
    """

    def __init__(self, path: str, context_length: int):
        self.path, self.context_length = path, context_length
        self.opened_by: int | None = None
        self.tokens: Any = None
        self.parts = PackedDataset(path).stored_context_length // context_length

    def __len__(self) -> int:
        return os.path.getsize(f"{self.path}/index/sample_locations.bin") // 24 * self.parts

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self.opened_by != os.getpid():
            from data_forager.datasets.tokens import TokensDataset

            self.tokens = TokensDataset.create_from_index_on_filesystem(self.path, token_dtype=np.uint32)
            self.opened_by = os.getpid()
        stored, part = divmod(int(index), self.parts)
        row = self.tokens[stored].reshape(self.parts, -1)[part]
        return {
            "input_ids": torch.from_numpy(row.astype(np.int64)),
            "document_ids": torch.zeros(self.context_length, dtype=torch.int32),
            "position_ids": torch.arange(self.context_length),
        }


class Block(nn.Module):
    """Attention and a two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_heads, self.from_heads = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        heads = self.to_heads(self.norm_attention(x)).view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        x = x + self.from_heads(mixed.transpose(1, 2).reshape(n, length, WIDTH))
        return x + self.mlp(self.norm_mlp(x))


class TinyTransformer(nn.Module):
    """Predicts the next token; no position sees another document."""

    def __init__(self, context_length: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(context_length, WIDTH)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks, self.norm = nn.ModuleList(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH)

    def forward(self, batch: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """The mean loss over all positions whose next token is of the same document."""
        document = batch["document_ids"]
        mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        x = self.tokens(ids) + self.positions(batch["position_ids"])
        for block in self.blocks:
            x = block(x, mask)
        logits = self.norm(x) @ self.tokens.weight.T
        follows = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
        targets = ids[:, 1:].masked_fill(~follows, -100)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)


def open_dataset(reader: str, path: str, context_length: int) -> Dataset | PackedDataset:
    if reader == "data-forager":
        return ForagerSequences(path, context_length)
    extras = ("document_ids", "position_ids")
    return PackedDataset(path, context_length=context_length, extras=extras, as_torch=True)


def small_vocabulary(path: str) -> torch.Tensor:
    """int64[largest id + 1]: the toy's own number of each id, 0 for all but the most frequent ones."""
    counts = np.bincount(PackedDataset(path)[:].reshape(-1))
    numbers = np.zeros(len(counts), np.int64)
    frequent = np.argsort(-counts, kind="stable")[: VOCABULARY - 1]
    numbers[frequent] = np.arange(1, len(frequent) + 1)
    return torch.from_numpy(numbers)


def train(
    dataset: Any, numbers: torch.Tensor, context_length: int, begin: int, end: int, checkpoint: Path, workers: int
) -> list[float]:
    """Steps [begin, end), from a checkpoint if `begin` is not 0; leaves one behind. Returns the losses."""
    torch.manual_seed(0)
    model = TinyTransformer(context_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # In distributed training: rank= and world_size= of the data-parallel group.
    sampler = ResumableSampler(len(dataset), seed=0, endless=True)
    if begin:
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        sampler.load_state_dict(state["sampler"])

    losses = []
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=workers)
    for step, batch in zip(range(begin, end), loader, strict=False):
        loss = model(batch, numbers[batch["input_ids"]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sampler.advance(batch)  # the loader has fetched further; what was trained on is known here
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step:4}  epoch {sampler.epoch}  loss {losses[-1]:.3f}", flush=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "sampler": sampler.state_dict()}
    torch.save(state, checkpoint)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="an output (demo/out/train)")
    parser.add_argument("--reader", choices=["beam-prep", "data-forager"], default="beam-prep")
    parser.add_argument("--context-length", type=int, default=256, help="a divisor of the stored one")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--stop", type=int, help="the step to stop before, and to resume with (default: half way)")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    steps, stop = arguments.steps, arguments.stop or arguments.steps // 2

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    dataset = open_dataset(arguments.reader, arguments.path, arguments.context_length)
    numbers = small_vocabulary(arguments.path)
    with tempfile.TemporaryDirectory() as folder:
        common = (dataset, numbers, arguments.context_length)
        whole = train(*common, 0, steps, Path(folder) / "whole.pt", arguments.workers)
        print(f"again, stopped before step {stop}")
        checkpoint = Path(folder) / "stopped.pt"
        before = train(*common, 0, stop, checkpoint, arguments.workers)
        # Resumed with other workers, which changes nothing.
        after = train(*common, stop, steps, checkpoint, 0 if arguments.workers else 1)
    tenth = max(1, steps // 10)
    first, last = sum(whole[:tenth]) / tenth, sum(whole[-tenth:]) / tenth
    print(f"loss {first:.3f} -> {last:.3f}")
    if before + after != whole:
        raise SystemExit("the resumed run differs from the whole one")
    print(f"resumed exactly: all {steps} losses are the same, bit for bit")


if __name__ == "__main__":
    main()
