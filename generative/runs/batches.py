"""Batches of a prepared dataset to train and validate on.

The training batches are a function of the seed and the step, so a run that resumes from a
checkpoint sees the batches that it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from datasets_scripts import CodesCollator, LatentsCollator, LengthBucketSampler, frame_lengths
from generative.protocol import Batch, TokenRow
from generative.runs.prepared_data import PreparedData
from generative.training.training_config import TrainingConfig
from tokenizer import LatentTokenizer
from tokenizer.errors import InputError


def make_collator(
    data: PreparedData,
    tokenizer: LatentTokenizer,
    *,
    crop_frames: int | None,
    seed: int,
    n_codebooks: int | None = None,
    latent_dim: int | None = None,
) -> Callable[[], Any]:
    """Returns a function that makes a collator of `datasets_scripts` for this data.

    Of a frame it keeps the first ``n_codebooks`` or ``latent_dim`` values; None keeps all.
    """
    shared = {
        "crop_frames": crop_frames,
        "seed": seed,
        "labels": data.labels,
        "joint_channels": tokenizer.autoencoder.num_channels,
    }
    if data.column == "latents":
        mean, std = tokenizer.latents_mean.cpu(), tokenizer.latents_std.cpu()
        return partial(FirstLatents, mean[:latent_dim], std[:latent_dim], **shared)
    sizes = tokenizer.codebook_sizes
    return partial(FirstCodebooks, n_codebooks, codebook_sizes=sizes, **shared)


class FirstLatents(LatentsCollator):
    """A collator of latents that keeps as many numbers of a frame as it has means for."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """See `LatentsCollator`."""
        dim = len(self.mean)
        cut = [{**row, "latents": np.asarray(row["latents"])[..., :dim]} for row in rows]
        return super().__call__(cut)


class FirstCodebooks(CodesCollator):
    """A collator of codes that keeps the first ``n_codebooks``, or all for None."""

    def __init__(self, n_codebooks: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.n_codebooks = n_codebooks

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """See `CodesCollator`."""
        batch = super().__call__(rows)
        available = batch["codes"].shape[-1]
        if available < (self.n_codebooks or 1):
            raise InputError(f"The rows have {available} codebooks, not {self.n_codebooks}.")
        return batch | {"codes": batch["codes"][..., : self.n_codebooks]}


class _EpochRows(Dataset):
    """Rows that carry their epoch: workers that prefetch may be in another one than the trainer."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __getitem__(self, key: tuple[int, int]) -> TokenRow:
        epoch, index = key
        return self.rows[index] | {"epoch": epoch}


def training_batches(
    data: PreparedData,
    make: Callable[[], Any],
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
    share = {"num_replicas": world_size, "rank": rank}
    sampler = LengthBucketSampler(lengths, batch_size=config.batch_size, seed=config.seed, **share)
    yield from DataLoader(
        _EpochRows(data.train),
        batch_sampler=_plan(sampler, first),  # pyright: ignore[reportArgumentType]
        collate_fn=_OwnCollator(make),
        num_workers=config.num_workers,
    )


class _OwnCollator:
    """Collates with one collator per process.

    A collator keeps its epoch in memory that workers share, but workers that prefetch may be in
    different epochs at the same time.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make, self.collator = make, None

    def __call__(self, rows: Sequence[TokenRow]) -> Batch:
        if self.collator is None:
            self.collator = self.make()
        self.collator.set_epoch(rows[0]["epoch"])
        return self.collator(rows)


def _plan(sampler: LengthBucketSampler, first: int) -> Iterator[list[tuple[int, int]]]:
    epoch, skip = 0, first
    while True:
        batches = sampler.batches(epoch)
        for batch in batches[skip:]:
            yield [(epoch, index) for index in batch]
        skip = max(skip - len(batches), 0)
        epoch += 1


def validation_batches(
    data: PreparedData, collator: Any, *, batch_size: int, max_rows: int = 64
) -> Iterator[Batch]:
    """Yields at most ``max_rows`` held-out rows, evenly spread; the same crops at every call.

    Rows whose class is not in the training rows count as rows without a class.
    """
    count = len(data.held_out)
    indices = [math.floor(i * count / min(count, max_rows)) for i in range(min(count, max_rows))]
    collator.set_epoch(0)
    for start in range(0, len(indices), batch_size):
        rows = [data.held_out[i] for i in indices[start : start + batch_size]]
        labels = [row.get("label") if row.get("label") in data.labels else None for row in rows]
        yield collator([row | {"label": name} for row, name in zip(rows, labels, strict=True)])
