"""Batches for training on prepared rows: collators for codes and latents, and a sampler.

    sampler = LengthBucketSampler(frame_lengths(ds, "codes"), max_frames=20_000, seed=0)
    collate = CodesCollator(crop_frames=500, seed=0, labels=names)
    loader = DataLoader(ds, batch_sampler=sampler, collate_fn=collate, num_workers=4)
    for epoch in range(...):
        sampler.set_epoch(epoch)
        collate.set_epoch(epoch)

Whatever is drawn at random depends on nothing but the seed, the epoch and the row, so a run that
goes on from the middle of an epoch (``itertools.islice(sampler, step, None)``) sees the batches it
would have seen, however many workers there are.

Rows of several channels hold the frames of one channel after those of another; a training item is
one of them, drawn anew in every epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Sampler

from tokenizer.errors import InputError

# Batches whose rows are sorted by length together: more means less padding, fewer means that the
# batches of two epochs differ more.
BATCHES_PER_BUCKET = 50


class _Collator:
    """What the collators share: crops, padding, labels and captions."""

    column = ""

    def __init__(
        self, crop_frames: int | None, seed: int, labels: Sequence[str] | None, joint_channels: int
    ) -> None:
        if crop_frames is not None and crop_frames < 1:
            raise InputError(f"crop_frames={crop_frames}; it must be at least 1, or None.")
        if joint_channels < 1:
            raise InputError(f"joint_channels={joint_channels}; it must be at least 1.")
        self.crop_frames, self.seed, self.joint_channels = crop_frames, seed, joint_channels
        self._index = None if labels is None else {name: i for i, name in enumerate(labels)}
        if len(self._index or ()) < len(labels or ()):
            raise InputError("labels holds a name twice.")
        # Shared memory: workers that live on from epoch to epoch see the change too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draws other crops from now on; workers of a running loader see it too."""
        self._epoch.fill_(epoch)

    def _crop(self, row: Mapping[str, Any]) -> tuple[np.ndarray, bool]:
        """The frames ``[t, ...]`` of one channel group, cropped; whether the clip ends there.

        A row is a whole clip, or its last segment, unless it says ``last: False``. It may say for
        which ``epoch`` the crop is drawn, instead of `set_epoch`.
        """
        values = row.get(self.column)
        if values is None:
            raise InputError(
                f"The row has no {self.column!r}, only"
                f" {sorted(key for key, value in row.items() if value is not None)}."
                f" Was the dataset prepared with --{self.column}?"
            )
        frames = np.asarray(values)
        groups = -(-int(row.get("num_channels") or 1) // self.joint_channels)
        if frames.ndim != 2 or len(frames) == 0 or groups < 1 or len(frames) % groups:
            raise InputError(
                f"{self.column!r} has shape {list(frames.shape)}; expected [T, ...] with the frames"
                f" of {groups} channel group(s). Set joint_channels= to what the tokenizer codes"
                " jointly."
            )
        epoch = int(row.get("epoch", self._epoch))
        rng = np.random.default_rng([self.seed, epoch, _row_key(row, frames)])
        length = len(frames) // groups
        group = int(rng.integers(groups))
        start, kept = 0, min(self.crop_frames or length, length)
        if kept < length:
            start = int(rng.integers(length - kept + 1))
        first = group * length + start
        return frames[first : first + kept], start + kept == length and bool(row.get("last", True))

    def _label(self, row: Mapping[str, Any]) -> int:
        label = row.get("label")
        if label is None or self._index is None:
            return -1
        if isinstance(label, str) and label in self._index:
            return self._index[label]
        # Datasets that were not prepared here may hold indices already.
        if isinstance(label, (int, np.integer)) and 0 <= label < len(self._index):
            return int(label)
        raise InputError(f"The label {label!r} is not one of the {len(self._index)} in labels.")

    def _item(self, row: Mapping[str, Any], frames: np.ndarray) -> Tensor:
        """The cropped frames of a row, checked and as the batch holds them."""
        raise NotImplementedError

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns a batch; raises ValueError for a row that does not fit."""
        if not rows:
            raise InputError("A batch needs at least one row.")
        crops, ended = zip(*map(self._crop, rows), strict=True)
        items = [self._item(row, frames) for row, frames in zip(rows, crops, strict=True)]
        lengths = torch.tensor([len(item) for item in items])
        return {
            self.column: torch.nn.utils.rnn.pad_sequence(items, batch_first=True),
            "mask": torch.arange(int(lengths.max())) < lengths[:, None],
            "ended": torch.tensor(ended),
            "label": torch.tensor([self._label(row) for row in rows]),
            "caption": [None if row.get("caption") is None else row["caption"] for row in rows],
        }


class CodesCollator(_Collator):
    """Makes batches of codes for a language model; a ``collate_fn``.

    Rows are those of a prepared dataset, or of `LatentTokenizer.encode_codes`. One that is a
    segment before the last of its clip should say ``last: False``. A batch has ``codes`` int64
    ``[B, T, K]``, 0 where padded; ``mask`` bool ``[B, T]``, True for frames of the row; ``ended``
    bool ``[B]``, True where the last of them ends the clip; ``label`` int64 ``[B]``, an index into
    ``labels`` or -1; ``caption``, a list of strings or None. A row without codes, a code out of
    range, and a label that is not in ``labels`` raise ValueError.

    Args:
        crop_frames: Longer rows are cropped to so many frames, at a random place. Default: none.
        seed: Of the crops.
        labels: Names of the classes; their order gives ``label`` its meaning. Default: no labels.
        joint_channels: How many channels the tokenizer codes jointly (2 for stereo models).
        codebook_sizes: Entries of each codebook, by which codes are checked. Default: only that
            none is negative.
    """

    column = "codes"

    def __init__(
        self,
        crop_frames: int | None = None,
        seed: int = 0,
        labels: Sequence[str] | None = None,
        *,
        joint_channels: int = 1,
        codebook_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(crop_frames, seed, labels, joint_channels)
        self._sizes = None if codebook_sizes is None else np.asarray(codebook_sizes)

    def _item(self, row: Mapping[str, Any], frames: np.ndarray) -> Tensor:
        codes = frames.astype(np.int64)
        sizes = np.iinfo(np.int64).max if self._sizes is None else self._sizes[: codes.shape[1]]
        if self._sizes is not None and codes.shape[1] > len(self._sizes):
            raise InputError(
                f"Row {row.get('id')!r} has codes of {codes.shape[1]} codebooks; the tokenizer has"
                f" {len(self._sizes)}."
            )
        wrong = (codes < 0) | (codes >= sizes)
        if wrong.any():
            frame, k = np.argwhere(wrong)[0]
            raise InputError(
                f"Row {row.get('id')!r}: the code {codes[frame, k]} of codebook {k} is out of range"
                + ("." if self._sizes is None else f" 0 to {self._sizes[k] - 1}.")
                + " Check the dataset: python -m datasets_scripts verify FOLDER."
            )
        return torch.from_numpy(codes)


class LatentsCollator(_Collator):
    """Makes batches of normalised latents for a diffusion model; a ``collate_fn``.

    Arguments and batches are as those of `CodesCollator`, with ``latents`` float32 ``[B, T, D]``
    instead of ``codes``, 0 where padded. ``mean`` ``[D]`` is subtracted from every frame, and
    ``std`` ``[D]`` divided by: the tokenizer's ``latents_mean`` and ``latents_std``, or those of
    the dataset's ``statistics.json``. A row without latents, or not D of them, or some that are not
    finite, raises ValueError.
    """

    column = "latents"

    def __init__(
        self,
        mean: Float[Tensor, " D"] | np.ndarray | Sequence[float],
        std: Float[Tensor, " D"] | np.ndarray | Sequence[float],
        crop_frames: int | None = None,
        seed: int = 0,
        labels: Sequence[str] | None = None,
        *,
        joint_channels: int = 1,
    ) -> None:
        super().__init__(crop_frames, seed, labels, joint_channels)
        self.mean, self.std = (
            torch.as_tensor(value, dtype=torch.float32).detach().cpu() for value in (mean, std)
        )
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise InputError(
                f"mean and std have shapes {list(self.mean.shape)} and {list(self.std.shape)};"
                " expected [D] for both."
            )
        if not bool((self.std > 0).all()):
            raise InputError("std has values that are not positive: latents cannot be divided by.")

    def _item(self, row: Mapping[str, Any], frames: np.ndarray) -> Tensor:
        latents = torch.from_numpy(frames.astype(np.float32))
        if latents.shape[1] != len(self.mean):
            raise InputError(
                f"The latents have {latents.shape[1]} dimensions, mean and std {len(self.mean)}."
            )
        if not bool(torch.isfinite(latents).all()):
            raise InputError(
                f"Row {row.get('id')!r} has latents that are not finite. Check the dataset:"
                " python -m datasets_scripts verify FOLDER."
            )
        return (latents - self.mean) / self.std


def _row_key(row: Mapping[str, Any], frames: np.ndarray) -> int:
    name = row.get("id")
    content = str(name).encode() if name is not None else np.ascontiguousarray(frames).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


class LengthBucketSampler(Sampler[list[int]]):
    """Batches of rows of similar length, shuffled; a ``batch_sampler``.

    Rows are shuffled, rows of some batches are sorted together by length and cut into batches, and
    the batches are shuffled. Every row comes once an epoch. With several replicas, batches of
    the same step are of similar length, and to give all the same number of steps a few batches may
    come twice.

    Args:
        lengths: Frames of each row, after cropping (`frame_lengths`).
        batch_size: Rows of a batch.
        max_frames: Instead of ``batch_size``: frames of a batch, padding included.
        seed: Of the order.
        num_replicas: Processes that train together.
        rank: Which of them this is.

    Raises:
        ValueError: If not exactly one of ``batch_size`` and ``max_frames`` is given, there are no
            rows, a row alone exceeds ``max_frames``, or the rank is impossible.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int | None = None,
        max_frames: int | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if (batch_size is None) == (max_frames is None):
            raise InputError(f"Give batch_size or max_frames, not {batch_size=} and {max_frames=}.")
        if (batch_size if batch_size is not None else max_frames or 0) < 1:
            raise InputError(f"{batch_size=}, {max_frames=}: a batch holds at least 1.")
        if not 0 <= rank < num_replicas:
            raise InputError(f"rank={rank} is not in 0..{num_replicas - 1}.")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if self.lengths.ndim != 1 or len(self.lengths) == 0 or self.lengths.min() < 1:
            raise InputError("lengths must name at least one row, and each have a frame or more.")
        if max_frames is not None and self.lengths.max() > max_frames:
            raise InputError(
                f"Row {int(self.lengths.argmax())} has {self.lengths.max()} frames, over"
                f" max_frames={max_frames}: raise it, or crop and pass the cropped lengths."
            )
        self.batch_size, self.max_frames, self.seed = batch_size, max_frames, seed
        self.num_replicas, self.rank, self.epoch = num_replicas, rank, 0
        self._made: tuple[int, list[list[int]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; call it before each epoch."""
        self.epoch = epoch

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of this rank in an epoch: a pure function of the arguments and the seed."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))
        rows = self.batch_size or max(1.0, (self.max_frames or 0) / float(self.lengths.mean()))
        bucket = max(1, round(BATCHES_PER_BUCKET * self.num_replicas * rows))
        batches: list[list[int]] = []
        for first in range(0, len(order), bucket):
            piece = order[first : first + bucket]
            batches += self._cut(piece[np.argsort(self.lengths[piece], kind="stable")])
        batches += [batches[i % len(batches)] for i in range(-len(batches) % self.num_replicas)]
        steps = [
            batches[i : i + self.num_replicas] for i in range(0, len(batches), self.num_replicas)
        ]
        return [steps[i][self.rank] for i in rng.permutation(len(steps))]

    def _cut(self, rows: np.ndarray) -> list[list[int]]:
        """Cuts rows, sorted by length, into batches."""
        batches: list[list[int]] = [[]]
        for row in rows.tolist():
            size = len(batches[-1]) + 1
            frames = size * int(self.lengths[row])
            if size > (self.batch_size or size) or frames > (self.max_frames or frames):
                batches.append([])
            batches[-1].append(row)
        return batches

    def _current(self) -> list[list[int]]:
        if self._made is None or self._made[0] != self.epoch:
            self._made = self.epoch, self.batches(self.epoch)
        return self._made[1]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._current())

    def __len__(self) -> int:
        """Batches of this rank in the current epoch; with ``max_frames`` epochs differ a little."""
        return len(self._current())


def frame_lengths(
    dataset: Any, column: str, *, crop_frames: int | None = None, joint_channels: int = 1
) -> np.ndarray:
    """Frames of every row of a `datasets.Dataset`, read off Arrow's offsets: no row is decoded.

    Args:
        dataset: A prepared dataset.
        column: "codes" or "latents".
        crop_frames: The collator's: longer rows count as so many frames.
        joint_channels: The collator's.

    Returns:
        int64 ``[rows]``. Rows of several channels count one channel only.

    Raises:
        ValueError: If there is no such column, or a row has none.
    """
    import pyarrow.compute as pc

    if column not in dataset.column_names:
        raise InputError(f"The dataset has no column {column!r}, only {dataset.column_names}.")
    names = [name for name in (column, "num_channels") if name in dataset.column_names]
    parts = [np.zeros(0, dtype=np.int64)]
    for table in dataset.select_columns(names).with_format("arrow").iter(1000):
        values = table[column].combine_chunks()
        storage = getattr(values, "storage", values)
        if storage.null_count:
            raise InputError(f"Some rows have no {column!r}: prepare with --{column}.")
        lengths = pc.list_value_length(storage).to_numpy(zero_copy_only=False)  # pyright: ignore
        if "num_channels" in names:
            lengths = lengths // -(-table["num_channels"].to_numpy() // joint_channels)
        parts.append(lengths.astype(np.int64))
    lengths = np.concatenate(parts)
    return lengths if crop_frames is None else np.minimum(lengths, crop_frames)
