"""Batches of a prepared dataset to train and validate on.

The training batches are a function of the seed and the step, so a run that resumes from a
checkpoint sees the batches that it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from datasets_scripts import CodesCollator, LatentsCollator, LengthBucketSampler, frame_lengths
from generative.protocol import Batch, TokenRow
from generative.runs.prepared_data import PreparedData
from generative.training.training_config import TrainingConfig
from tokenizer import LatentTokenizer
from tokenizer.errors import InputError
from tokenizer.training import loader_options, training_device


def make_collator(
    data: PreparedData,
    tokenizer: LatentTokenizer,
    *,
    crop_frames: int | None,
    seed: int,
    n_codebooks: int | None = None,
    latent_dim: int | None = None,
) -> FrameCollator:
    """Returns a collator for this data, of the first ``n_codebooks`` or ``latent_dim`` values."""
    shared: Any = {
        "crop_frames": crop_frames,
        "seed": seed,
        "labels": data.labels,
        "joint_channels": tokenizer.autoencoder.num_channels,
    }
    if data.column == "latents":
        mean, std = tokenizer.latents_mean.cpu(), tokenizer.latents_std.cpu()
        latents = LatentsCollator(mean[:latent_dim], std[:latent_dim], **shared)
        return FrameCollator(latents, latent_dim)
    codes = CodesCollator(codebook_sizes=tokenizer.codebook_sizes, **shared)
    return FrameCollator(codes, n_codebooks)


class FrameCollator:
    """Collates the first ``width`` values of each row's frames; all for None."""

    def __init__(self, collator: CodesCollator | LatentsCollator, width: int | None) -> None:
        self.collator, self.width = collator, width

    def __call__(self, rows: Sequence[TokenRow]) -> Batch:
        """A batch; ValueError for rows that do not fit."""
        return self.collator([self._cut(row, self.collator.column) for row in rows])

    def _cut(self, row: TokenRow, column: str) -> TokenRow:
        values = np.asarray(row[column])
        if values.shape[-1] < (self.width or 1):
            raise InputError(f"A row has {column} of width {values.shape[-1]}, not {self.width}.")
        return row | {column: values[..., : self.width]}


class _EpochRows(Dataset):
    """Rows that carry their epoch: workers that prefetch may be in another one than the trainer."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __getitem__(self, key: tuple[int, int]) -> TokenRow:
        epoch, index = key
        return self.rows[index] | {"epoch": epoch}


def training_batches(
    data: PreparedData,
    collator: FrameCollator,
    config: TrainingConfig,
    *,
    first: int = 0,
    rank: int = 0,
    world_size: int = 1,
    joint_channels: int = 1,
) -> Iterator[Batch]:
    """Yields endless batches of one process, epoch after epoch, from the ``first``-th on."""
    crop = {"crop_frames": config.crop_frames, "joint_channels": joint_channels}
    lengths = frame_lengths(data.train, data.column, **crop)
    ranks = {"num_replicas": world_size, "rank": rank}
    sampler = LengthBucketSampler(lengths, batch_size=config.batch_size, seed=config.seed, **ranks)
    yield from DataLoader(
        _EpochRows(data.train),
        batch_sampler=_plan(sampler, first),  # pyright: ignore[reportArgumentType]
        collate_fn=collator,
        **loader_options(config.num_workers, training_device()),
    )


def _plan(sampler: LengthBucketSampler, first: int) -> Iterator[list[tuple[int, int]]]:
    epoch, skip = 0, first
    while True:
        batches = sampler.batches(epoch)
        for batch in batches[skip:]:
            yield [(epoch, index) for index in batch]
        skip = max(skip - len(batches), 0)
        epoch += 1


def validation_batches(
    data: PreparedData, collator: FrameCollator, *, batch_size: int, max_rows: int = 64
) -> Iterator[Batch]:
    """Yields at most ``max_rows`` held-out rows, evenly spread; the same crops at every call.

    Rows whose class is not in the training rows count as rows without a class.
    """
    count = len(data.held_out)
    indices = [math.floor(i * count / min(count, max_rows)) for i in range(min(count, max_rows))]
    for start in range(0, len(indices), batch_size):
        rows = [data.held_out[i] for i in indices[start : start + batch_size]]
        labels = [row.get("label") if row.get("label") in data.labels else None for row in rows]
        yield collator([row | {"label": name} for row, name in zip(rows, labels, strict=True)])
