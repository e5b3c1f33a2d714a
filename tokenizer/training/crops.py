"""Random crops of clips, each a pure function of the seed and its position in the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tokenizer.errors import StateError
from tokenizer.training.augmentation import Augmentation, lowpass
from tokenizer.training.clips import Clip, joint_channels, read_window
from tokenizer.training.loaders import loader_options
from tokenizer.training.processes import training_device

# Clips that cannot be read any more, or hold NaN, are replaced by others; so many in a row mean
# that it is not the clips: a disk is gone, say.
MAX_UNREADABLE_IN_A_ROW = 20


class CropDataset(Dataset):
    """Random crops, one for every index.

    An item is a dict: ``audio`` float32 ``[C, N]``, as loud as the listener gets it; ``gain``
    float32 ``[]``, the root mean square of the surroundings, by which a normalising autoencoder
    divides; ``unreadable`` float32 ``[]``, how many clips were drawn in vain, as they are damaged
    or gone, or not finite; and the ``index``.

    Args:
        clips: Where to crop from; each is drawn in proportion to its length.
        sampling_rate: Hz of the crops.
        crop_length: N in samples. Files that are shorter are padded with silence.
        num_channels: C: as many as the model codes jointly. They are neighbours in a clip; a clip
            with fewer gives its last channel again.
        window_seconds: Length of the surroundings that are read, filtered and measured.
        augmentation: What is done to them.
        seed: Decides every draw, together with the index.
        length: Number of items.
    """

    def __init__(
        self,
        clips: list[Clip],
        *,
        sampling_rate: int,
        crop_length: int,
        augmentation: Augmentation,
        seed: int,
        length: int,
        num_channels: int = 1,
        window_seconds: float = 4.0,
    ) -> None:
        self.clips, self.augmentation, self.seed, self.length = clips, augmentation, seed, length
        self.sampling_rate, self.crop_length = sampling_rate, crop_length
        self.num_channels = num_channels
        self.window_seconds = max(window_seconds, crop_length / sampling_rate)
        durations = np.array([clip.num_samples / clip.sampling_rate for clip in clips])
        self._cumulative = np.cumsum(durations) / durations.sum()

    def __len__(self) -> int:
        return self.length

    def _window(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Part of a random clip, and how many others could not be read before it."""
        problem = ""
        for failures in range(MAX_UNREADABLE_IN_A_ROW):
            which = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
            clip = self.clips[min(which, len(self.clips) - 1)]
            speed = self._speed(rng)
            seconds = self.window_seconds * speed
            slack = clip.num_samples / clip.sampling_rate - seconds
            start = rng.random() * max(slack, 0.0)
            joint = self.num_channels
            channel = int(rng.integers(-(-clip.num_channels // joint))) * joint
            # Resampled to a lower rate than it is played at.
            window = (clip, start, seconds, round(self.sampling_rate / speed))
            try:
                audio = read_window(*window, joint_channels(clip, channel, joint))
            except (ValueError, RuntimeError, OSError) as error:
                problem = f"{clip.name}: {error}"
                continue
            if audio.size and np.isfinite(audio).all():
                return audio, failures
            problem = f"{clip.name} has no samples, or some that are not finite, at {start:.1f} s"
        raise StateError(
            f"{MAX_UNREADABLE_IN_A_ROW} clips in a row could not be read. The last: {problem}. "
            "Mend or remove them."
        )

    def _speed(self, rng: np.random.Generator) -> float:
        """How many times as fast a clip is played."""
        a = self.augmentation
        if not a.speed:  # Nothing is drawn, so that runs without it stay what they were.
            return 1.0
        return rng.uniform(*a.speed_range) if rng.random() < a.speed else 1.0

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns the crop that belongs to an index."""
        a = self.augmentation
        rng = np.random.default_rng([self.seed, index])
        audio, unreadable = self._window(rng)
        if rng.random() < a.mix:
            other, more = self._window(rng)
            unreadable += more
            other = other[:, : audio.shape[1]]
            other = np.pad(other, ((0, 0), (0, audio.shape[1] - other.shape[1])))
            level = np.sqrt(np.mean(audio**2)) / (np.sqrt(np.mean(other**2)) + 1e-6)
            audio = audio + min(level, 30) * 10 ** (rng.uniform(*a.mix_range) / 20) * other
        if rng.random() < a.lowpass:
            audio = lowpass(audio, self.sampling_rate, rng.uniform(*a.lowpass_range))
        audio = audio * 10 ** (rng.uniform(-1, 1) * a.level_range / 20) * rng.choice([-1.0, 1.0])
        peak = np.abs(audio).max()
        if peak > 1:
            audio = audio / peak
        if rng.random() < a.round_to_16_bit:
            audio = np.round(audio * 32767) / 32767
        gain = np.sqrt(np.mean(np.square(audio, dtype=np.float64))) + 1e-5
        gain *= 10 ** (rng.normal() * a.level_jitter / 20)
        start = int(rng.integers(max(audio.shape[1] - self.crop_length, 0) + 1))
        crop = audio[:, start : start + self.crop_length]
        crop = np.pad(crop, ((0, 0), (0, self.crop_length - crop.shape[1])))
        return {
            "audio": torch.from_numpy(crop.astype(np.float32)),
            "gain": torch.tensor(gain, dtype=torch.float32),
            "unreadable": torch.tensor(unreadable, dtype=torch.float32),
            "index": torch.tensor(index),
        }


def crop_batches(
    dataset: CropDataset,
    *,
    batch_size: int,
    first: int,
    num_workers: int | None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the batches of a process from its ``first``-th on; rank r of w has every w-th batch.

    ``num_workers`` is as for `loader_options`.

    Raises:
        RuntimeError: If clips cannot be read, or a reading process was killed.
    """
    batches = range(first * world_size + rank, len(dataset) // batch_size, world_size)
    # A run has millions of them, so they are never all in memory.
    indices = (list(range(i * batch_size, (i + 1) * batch_size)) for i in batches)
    options = loader_options(num_workers, training_device())
    loader = DataLoader(dataset, batch_sampler=indices, **options)  # pyright: ignore[reportArgumentType]
    with reading_errors():
        yield from loader


@contextmanager
def reading_errors() -> Iterator[None]:
    """Turns what a `DataLoader` raises for an error in a worker into that error, in one line."""
    try:
        yield
    except Exception as error:
        text = str(error).strip()
        if "Original Traceback" in text:
            # The message ends with the worker's traceback, whose last part is "class: message".
            message = text.rpartition(f"{type(error).__name__}: ")[2]
            raise type(error)(message) from None
        if "DataLoader worker" in text and "exited unexpectedly" in text:
            raise StateError(
                f"A process that reads training data was killed ({text}). If memory ran out, lower "
                "num_workers or batch_size."
            ) from error
        raise
