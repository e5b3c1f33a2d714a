"""Prepared datasets (`python -m datasets_scripts prepare`) as batches to train and validate on.

The batches of a run are a function of the seed and the step, so a run that goes on from a
checkpoint sees the batches it would have seen.
"""

from __future__ import annotations

from tokenizer.errors import InputError, MissingFileError, MissingPackageError

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from datasets_scripts import (
    CodesCollator,
    LatentsCollator,
    LengthBucketSampler,
    frame_lengths,
)
from generative.protocol import Batch, Row
from tokenizer import LatentTokenizer

# What is read of a row besides its codes or latents.
COLUMNS = ("id", "source_id", "start", "num_samples", "num_channels", "gain", "label")
# What the names of splits begin with: corpora have train.clean.100, dev.other, training, eval.
TRAINING_WORDS = ("train", "training")
VALIDATION_WORDS = ("validation", "valid", "val", "dev")
TEST_WORDS = ("test", "testing", "eval", "evaluation")


@dataclass(frozen=True)
class PreparedData:
    """Rows to train on, rows held out, and what they are.

    Attributes:
        column: "codes" or "latents".
        train: A `datasets.Dataset`.
        held_out: Another, of other sources.
        labels: Names of the classes in ``train``, sorted.
        splits: Names of the dataset's splits in ``train``, and of those in ``held_out``: none where
            that was taken from the former.
        manifest: The dataset's ``manifest.json``; empty if it has none.
    """

    column: str
    train: Any
    held_out: Any
    labels: tuple[str, ...]
    splits: tuple[tuple[str, ...], tuple[str, ...]]
    manifest: dict[str, Any]


def load_prepared(
    folder: str | Path, column: str, held_out: float = 0.05, *, captions: bool = False
) -> PreparedData:
    """Opens a prepared dataset; `choose_splits` says which of its splits are trained on.

    Args:
        folder: Holds ``data/<split>-*.parquet``.
        column: "codes" or "latents".
        held_out: Share of the sources to hold out where there is no split to validate on. A source
            is held out with all of its segments; which, depends on its name only.
        captions: Whether to read captions, for models that have a text encoder.

    Raises:
        FileNotFoundError: If there is no such dataset.
        ValueError: If it lacks the column, has no split to train on, or is too small to hold
            anything out.
    """
    root = Path(folder)
    manifest_path = root / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.exists() else {}
    if not isinstance(manifest, dict):
        raise InputError(f"{manifest_path} is damaged: it holds no JSON object.")
    shards, splits = _shards(root), training_splits(root)
    train, rest = (
        _open_all([shards[name] for name in names], column, root, captions) for names in splits
    )
    if rest is None:
        train, rest = hold_out(train, held_out)
    labels = sorted({label for label in _values(train, "label") if label})
    return PreparedData(column, train, rest, tuple(labels), splits, manifest)


def training_splits(folder: str | Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which splits of a dataset are trained on and which validated on; see `choose_splits`."""
    return choose_splits(_shards(Path(folder)))


def choose_splits(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which splits to train on and which to validate on, by the first words of their names.

    Trained on are ``train`` and the like or, where there is none of these, all that are not held
    out by name. Validated on are ``validation`` and the like, else ``test`` and the like.

    Returns:
        Names in order; the latter may be none.

    Raises:
        ValueError: If there is nothing to train on.
    """
    words = {name: re.split(r"[._-]", name)[0].lower() for name in sorted(names)}

    def beginning(with_one_of: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name, word in words.items() if word in with_one_of)

    validation, test = beginning(VALIDATION_WORDS), beginning(TEST_WORDS)
    train = beginning(TRAINING_WORDS) or tuple(n for n in words if n not in validation + test)
    if not train:
        raise InputError(
            f"No split to train on, only {', '.join(words)}: prepare another with --split."
        )
    return train, validation or test


def _values(dataset: Any, column: str) -> list[Any]:
    """A column as Python values; none if it is not there. Other columns are not touched."""
    if column not in dataset.column_names:
        return []
    return list(dataset.select_columns([column]).with_format(None)[column])


def _shards(root: Path) -> dict[str, list[str]]:
    """Parquet files by split."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "data").glob("*.parquet")):
        # Names of splits have no "-"; train-00000-of-00002, as other programs write it, has two.
        found.setdefault(path.stem.partition("-")[0], []).append(str(path))
    if not found:
        raise MissingFileError(
            f"No prepared dataset in {root} (data/<split>-*.parquet). Make one:"
            f" python -m datasets_scripts prepare ... --out {root}"
        )
    return found


def _open_all(splits: Sequence[list[str]], column: str, root: Path, captions: bool) -> Any:
    """The rows of some splits, None for no split."""
    if not splits:
        return None
    # One by one, as sources of two splits may have the same name.
    parts = [_open(files, column, root, captions) for files in splits]
    import datasets

    return datasets.concatenate_datasets(parts)


def _open(files: list[str], column: str, root: Path, captions: bool) -> Any:
    try:
        import datasets
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingPackageError(
            'Training needs `datasets`: pip install "latent-tokenizer[generative]".'
        ) from None
    schema = parquet.read_schema(files[0])
    present = [field.name for field in schema if str(field.type) != "null"]
    if column not in present:
        raise InputError(
            f"The dataset in {root} has no {column}, only {present}. Prepare it with --{column}."
        )
    wanted = (*COLUMNS, "caption") if captions else COLUMNS
    columns = [column, *(name for name in wanted if name in present)]
    rows = datasets.load_dataset(
        "parquet", data_files={"rows": files}, split="rows", columns=columns
    )
    rows = rows.add_column("last", _last_segments(rows))
    # NumPy for the arrays only: strings that are missing stay None.
    return rows.with_format("numpy", columns=[column], output_all_columns=True)


def _last_segments(rows: Any) -> list[bool]:
    """Whether each row ends its source; collators ask that."""
    starts = _values(rows, "start")
    if not starts:
        return [True] * len(rows)
    sources = _values(rows, "source_id")
    ends: dict[str, int] = {}
    for source, start in zip(sources, starts, strict=True):
        ends[source] = max(start, ends.get(source, start))
    return [start == ends[source] for source, start in zip(sources, starts, strict=True)]


def median_gains(data: PreparedData) -> dict[str, float]:
    """Median level of the training rows of each class, and under "" of all."""
    gains = _values(data.train, "gain")
    labels = _values(data.train, "label") or [None] * len(gains)
    groups: dict[str, list[float]] = {}
    for label, gain in zip(labels, gains, strict=True):
        for name in {"", label or ""}:
            groups.setdefault(name, []).append(sum(gain) / len(gain))
    return {name: float(f"{median(values):.4g}") for name, values in sorted(groups.items())}


def hold_out(dataset: Any, share: float) -> tuple[Any, Any]:
    """Splits a dataset by source into (train, held out); at least one source is held out.

    Raises:
        ValueError: If there are fewer than two sources, or the share is not in (0, 1).
    """
    if not 0 < share < 1:
        raise InputError(f"The share to hold out must lie between 0 and 1, got {share:g}.")
    sources = list(map(str, _values(dataset, "source_id") or _values(dataset, "id")))
    ranked = sorted(set(sources), key=lambda s: hashlib.blake2b(s.encode()).digest())
    if len(ranked) < 2:
        raise InputError(f"The dataset has {len(ranked)} source(s); holding some out needs two.")
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    chosen = set(ranked[:count])
    train = [i for i, source in enumerate(sources) if source not in chosen]
    rest = [i for i, source in enumerate(sources) if source in chosen]
    return dataset.select(train), dataset.select(rest)


def make_collator(
    data: PreparedData,
    tokenizer: LatentTokenizer,
    *,
    crop_frames: int | None,
    seed: int,
    n_codebooks: int | None = None,
    latent_dim: int | None = None,
) -> Callable[[], Any]:
    """Returns a function that makes the collator of `datasets_scripts` for this data.

    Args:
        data: What is to be collated.
        tokenizer: Its statistics normalise latents.
        crop_frames: Length of random crops.
        seed: Of the crops.
        n_codebooks: Use only the first ones.
        latent_dim: Use only the first so many numbers of a frame.
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
    return partial(FirstCodebooks, n_codebooks, **shared)


class FirstLatents(LatentsCollator):
    """A collator of latents that keeps the first numbers of a frame, as many as it has means of."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch; see `LatentsCollator`."""
        dim = len(self.mean)
        kept = [{**row, "latents": np.asarray(row["latents"])[..., :dim]} for row in rows]
        return super().__call__(kept)


class FirstCodebooks(CodesCollator):
    """A collator of codes that leaves out all but the first codebooks.

    Args:
        n_codebooks: How many are kept; None for all.
        options: Of `CodesCollator`.
    """

    def __init__(self, n_codebooks: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.n_codebooks = n_codebooks

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """A batch of the first codebooks."""
        batch = super().__call__(rows)
        available = batch["codes"].shape[-1]
        if available < (self.n_codebooks or 1):
            raise InputError(f"The rows have {available} codebooks, not {self.n_codebooks}.")
        return batch | {"codes": batch["codes"][..., : self.n_codebooks]}


class _EpochRows(Dataset):
    """Rows that know their epoch, so that nothing has to be told to workers that prefetch."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __getitem__(self, key: tuple[int, int]) -> Row:
        epoch, index = key
        return self.rows[index] | {"epoch": epoch}


def training_batches(
    data: PreparedData,
    make: Callable[[], Any],
    *,
    batch_size: int,
    crop_frames: int | None,
    seed: int,
    first: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    joint_channels: int = 1,
) -> Iterator[Batch]:
    """Yields batches without end, epoch after epoch, from the ``first``-th on.

    Args:
        data: Its training rows are used.
        make: Makes a collator.
        batch_size: Rows per batch and process.
        crop_frames: The collator's.
        seed: Of the order.
        first: Batches of this process to pass over.
        num_workers: Processes that read.
        rank: Of this process.
        world_size: Processes that train together.
        joint_channels: Channels that the tokenizer codes jointly.
    """
    lengths = frame_lengths(
        data.train, data.column, crop_frames=crop_frames, joint_channels=joint_channels
    )
    sampler = LengthBucketSampler(
        lengths, batch_size=batch_size, seed=seed, num_replicas=world_size, rank=rank
    )
    yield from DataLoader(
        _EpochRows(data.train),
        batch_sampler=_plan(sampler, first),  # pyright: ignore[reportArgumentType]
        collate_fn=_OwnCollator(make),
        num_workers=num_workers,
    )


class _OwnCollator:
    """Collates with a collator of this process' own.

    A collator keeps its epoch in memory that workers share; here each row says its epoch, and
    workers may be in different ones at the same time.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make, self.collator = make, None

    def __call__(self, rows: Sequence[Row]) -> Batch:
        if self.collator is None:
            self.collator = self.make()
        self.collator.set_epoch(rows[0]["epoch"])
        return self.collator(rows)


def _plan(sampler: LengthBucketSampler, first: int) -> Iterator[list[tuple[int, int]]]:
    epoch, left = 0, first
    while True:
        batches = sampler.batches(epoch)
        for batch in batches[left:]:
            yield [(epoch, index) for index in batch]
        left = max(left - len(batches), 0)
        epoch += 1


def validation_batches(
    data: PreparedData, collator: Any, *, batch_size: int, max_rows: int = 64
) -> Iterator[Batch]:
    """Yields the held-out rows, at most ``max_rows``, evenly spread; always the same crops.

    Rows of classes that no training row has count as rows without a class.
    """
    count = len(data.held_out)
    picked = [math.floor(i * count / min(count, max_rows)) for i in range(min(count, max_rows))]
    collator.set_epoch(0)
    for start in range(0, len(picked), batch_size):
        rows = [data.held_out[i] for i in picked[start : start + batch_size]]
        known = [row.get("label") if row.get("label") in data.labels else None for row in rows]
        yield collator([row | {"label": name} for row, name in zip(rows, known, strict=True)])
