"""Training data: random crops from a folder of audio, each a pure function of seed and position.

Because a crop depends on nothing but ``(seed, index)``, any run can be resumed at any step with
the same data, however many workers read it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch.utils.data import DataLoader, Dataset

from tokenizer.audio import AUDIO_SUFFIXES
from tokenizer.errors import InputError, MissingFileError, StateError


@dataclass(frozen=True)
class Clip:
    """A piece of audio that can be read in parts, and what is known of it without decoding.

    Attributes:
        name: For messages and caches.
        num_samples: Length at its own rate.
        sampling_rate: Hz.
        num_channels: Channels.
        dataset: The `datasets.Dataset` that holds it; None for a file.
        index: Its row.
    """

    name: str
    num_samples: int
    sampling_rate: int
    num_channels: int
    dataset: Any = None
    index: int = 0

    @property
    def audio(self) -> str | dict[str, Any]:
        """The whole clip as `tokenizer.audio.inputs.open_audio` takes it."""
        return self.name if self.dataset is None else self.dataset[self.index]["audio"]

    def _stream(self) -> str | io.BytesIO:
        audio = self.audio
        return audio if isinstance(audio, str) else _row_stream(audio)

    def read(self, first: int, count: int) -> np.ndarray:
        """Up to ``count`` samples from ``first`` on, float32 ``[n, C]``."""
        with soundfile.SoundFile(self._stream()) as stream:
            stream.seek(first)
            return stream.read(count, dtype="float32", always_2d=True)


def identity(clips: Iterable[Clip], *, modified: bool = False) -> str:
    """Sixteen hex digits, other ones for other clips: what is made of audio is kept under them.

    Files are told apart by name, length and size, so that a run may go on where its audio has moved
    to; a dataset by its fingerprint.

    Args:
        clips: In their order.
        modified: Whether to look at the time of modification too, which copying a file may change.
    """
    digest = hashlib.sha256()
    for clip in clips:
        known = [clip.num_samples, clip.sampling_rate, clip.num_channels]
        if clip.dataset is None:
            path = Path(clip.name)
            status = path.stat()
            known += [path.name, status.st_size]
            if modified:
                known.append(status.st_mtime_ns)
        else:
            known += [clip.dataset._fingerprint, clip.index]
        digest.update(json.dumps(known).encode())
    return digest.hexdigest()[:16]


def _row_stream(audio: dict[str, Any]) -> str | io.BytesIO:
    # What `datasets.Audio(decode=False)` gives.
    if audio.get("bytes") is not None:
        return io.BytesIO(audio["bytes"])
    return str(audio["path"])


def _describe(name: str, stream: str | io.BytesIO, **where: Any) -> Clip | None:
    try:
        info = soundfile.info(stream)
    except soundfile.LibsndfileError as error:
        raise InputError(f"Cannot read {name}: {error}. Remove or mend it.") from None
    return Clip(name, info.frames, info.samplerate, info.channels, **where) if info.frames else None


def scan(source: str | Path) -> list[Clip]:
    """Lists the clips of a folder of audio, or of a `datasets` dataset, in a stable order.

    Args:
        source: A folder of audio files (searched through), a folder written by
            ``Dataset.save_to_disk``, or ``dataset:NAME`` for the train split of a dataset that
            ``datasets.load_dataset`` knows.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If there is no readable audio, or something that should be audio cannot be read.
    """
    name = str(source)
    root = Path(name)
    if name.startswith("dataset:"):
        return scan_dataset(_datasets().load_dataset(name.removeprefix("dataset:"), split="train"))
    if not root.is_dir():
        raise MissingFileError(f"No such folder: {root}. Name a folder of audio, or dataset:NAME.")
    if (root / "dataset_info.json").exists():
        return scan_dataset(_datasets().load_from_disk(name))
    paths = (p for p in sorted(root.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES)
    found = [_describe(str(path), str(path)) for path in paths if path.is_file()]
    clips = [clip for clip in found if clip is not None]
    if not clips:
        raise InputError(f"No audio in {root}. Supported: {', '.join(AUDIO_SUFFIXES)}.")
    return clips


def scan_dataset(dataset: Any) -> list[Clip]:
    """Lists the clips of a `datasets.Dataset` with an ``audio`` column of type ``Audio``."""
    if "audio" not in dataset.column_names:
        raise InputError(f"The dataset has no column 'audio', only {dataset.column_names}.")
    # torchcodec is not needed: soundfile reads the encoded bytes.
    raw = dataset.cast_column("audio", _datasets().Audio(decode=False)).select_columns(["audio"])
    found = [
        _describe(f"row {index}", _row_stream(row["audio"]), dataset=raw, index=index)
        for index, row in enumerate(raw)
    ]
    clips = [clip for clip in found if clip is not None]
    if not clips:
        raise InputError("The dataset holds no audio.")
    return clips


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise StateError(
            'This needs `datasets`: pip install "latent-tokenizer[datasets]".'
        ) from None
    return datasets


def split_clips(clips: list[Clip], num_held_out: int) -> tuple[list[Clip], list[Clip]]:
    """Returns (train, held out): ``num_held_out`` clips, evenly spread, are held out."""
    if not 0 <= num_held_out < len(clips):
        raise InputError(f"Cannot hold out {num_held_out} of {len(clips)} clips.")
    picked = {round((i + 0.5) * len(clips) / num_held_out) for i in range(num_held_out)}
    train = [clip for i, clip in enumerate(clips) if i not in picked]
    return train, [clips[i] for i in sorted(picked)]


def read_window(
    clip: Clip, start: float, seconds: float, sampling_rate: int, channel: int
) -> np.ndarray:
    """Reads part of one channel of a clip, resampled, as float32 ``[N]``.

    Args:
        clip: What to read.
        start: Seconds from the beginning.
        seconds: Length; the result is shorter where the clip ends, and never empty.
        sampling_rate: Wanted rate in Hz.
        channel: Which channel.
    """
    first = min(int(start * clip.sampling_rate), max(clip.num_samples - 1, 0))
    audio = clip.read(first, max(1, round(seconds * clip.sampling_rate)))[:, channel]
    if clip.sampling_rate != sampling_rate:
        audio = soxr.resample(audio, clip.sampling_rate, sampling_rate)
    return audio


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges of what is done to training crops.

    Attributes:
        lowpass: Probability of a random low-pass filter; teaches the decoder that what is silent
            must stay silent.
        lowpass_range: Its cut-off in Hz.
        mix: Probability of adding a second clip.
        mix_range: Its level against the first in dB.
        round_to_16_bit: Probability of rounding to 16 bits, whose noise floor most clips have.
        level_jitter: Standard deviation in dB of the level that the crop is normalised to.
        level_range: Loudness of the crop as the listener gets it, in dB, around its own.
    """

    lowpass: float = 0.5
    lowpass_range: tuple[float, float] = (2500.0, 21500.0)
    mix: float = 0.25
    mix_range: tuple[float, float] = (-20.0, 5.0)
    round_to_16_bit: float = 0.5
    level_jitter: float = 2.0
    level_range: float = 6.0

    def __post_init__(self) -> None:
        for name in ("lowpass", "mix", "round_to_16_bit"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a probability, 0 to 1, got {getattr(self, name):g}.")
        for name in ("lowpass_range", "mix_range"):
            low, high = getattr(self, name)
            if not low <= high:
                raise InputError(f"{name} goes from low to high, got {low:g} {high:g}.")
        if self.lowpass_range[0] <= 0:
            raise InputError(f"lowpass_range is in Hz above 0, got {self.lowpass_range[0]:g}.")
        for name in ("level_jitter", "level_range"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name):g}.")


# Clips that cannot be read any more, or hold NaN, are replaced by others; so many in a row mean
# that it is not the clips: a disk is gone, say.
MAX_UNREADABLE_IN_A_ROW = 20
# Crops of each validation.
HELD_OUT_CROPS = 32

NO_AUGMENTATION = Augmentation(
    lowpass=0.0, mix=0.0, round_to_16_bit=0.0, level_jitter=0.0, level_range=0.0
)


def _lowpass(audio: np.ndarray, sampling_rate: int, cutoff: float) -> np.ndarray:
    # Zero-phase, falling over 3% of the cut-off like the encoders that band-limit what people
    # collect.
    spectrum = np.fft.rfft(audio)
    frequency = np.fft.rfftfreq(len(audio), 1 / sampling_rate)
    gain = np.clip((cutoff * 1.03 - frequency) / (cutoff * 0.03), 0, 1)
    return np.fft.irfft(spectrum * gain, len(audio)).astype(np.float32)


class CropDataset(Dataset):
    """Random mono crops, one for every index.

    An item is a dict: ``audio`` float32 ``[1, N]``, as loud as the listener gets it, and ``gain``
    float32 ``[]``, the root mean square of the surroundings, by which a normalising autoencoder
    divides; and ``unreadable``, float32 ``[]``, how many clips were drawn in vain: they were
    damaged or removed since they were listed, or have samples that are not finite.

    Args:
        clips: Where to crop from; each is drawn in proportion to its length.
        sampling_rate: Hz of the crops.
        crop_length: N in samples. Files that are shorter are padded with silence.
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
        window_seconds: float = 4.0,
    ) -> None:
        self.clips = clips
        self.sampling_rate = sampling_rate
        self.crop_length = crop_length
        self.augmentation = augmentation
        self.seed = seed
        self.length = length
        self.window_seconds = max(window_seconds, crop_length / sampling_rate)
        durations = np.array([clip.num_samples / clip.sampling_rate for clip in clips])
        self._cumulative = np.cumsum(durations) / durations.sum()

    def __len__(self) -> int:
        return self.length

    def _window(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Part of a random clip, and how many others could not be read before it."""
        problem = ""
        for failures in range(MAX_UNREADABLE_IN_A_ROW):
            clip, start, channel = self._draw(rng)
            try:
                audio = read_window(clip, start, self.window_seconds, self.sampling_rate, channel)
            except (RuntimeError, OSError) as error:  # libsndfile's errors are RuntimeErrors
                problem = f"{clip.name}: {error}"
                continue
            if len(audio) and np.isfinite(audio).all():
                return audio, failures
            problem = f"{clip.name} has no samples, or some that are not finite, at {start:.1f} s"
        raise StateError(
            f"{MAX_UNREADABLE_IN_A_ROW} clips in a row could not be read. The last: {problem}. "
            "Mend or remove them."
        )

    def _draw(self, rng: np.random.Generator) -> tuple[Clip, float, int]:
        which = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        clip = self.clips[min(which, len(self.clips) - 1)]
        slack = clip.num_samples / clip.sampling_rate - self.window_seconds
        start = rng.random() * max(slack, 0.0)
        return clip, start, int(rng.integers(clip.num_channels))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns the crop that belongs to an index."""
        a = self.augmentation
        rng = np.random.default_rng([self.seed, index])
        audio, unreadable = self._window(rng)
        if rng.random() < a.mix:
            other, more = self._window(rng)
            unreadable += more
            other = other[: len(audio)]
            other = np.pad(other, (0, len(audio) - len(other)))
            level = np.sqrt(np.mean(audio**2)) / (np.sqrt(np.mean(other**2)) + 1e-6)
            audio = audio + min(level, 30) * 10 ** (rng.uniform(*a.mix_range) / 20) * other
        if rng.random() < a.lowpass:
            audio = _lowpass(audio, self.sampling_rate, rng.uniform(*a.lowpass_range))
        audio = audio * 10 ** (rng.uniform(-1, 1) * a.level_range / 20) * rng.choice([-1.0, 1.0])
        peak = np.abs(audio).max()
        if peak > 1:
            audio = audio / peak
        if rng.random() < a.round_to_16_bit:
            audio = np.round(audio * 32767) / 32767
        gain = np.sqrt(np.mean(np.square(audio, dtype=np.float64))) + 1e-5
        gain *= 10 ** (rng.normal() * a.level_jitter / 20)
        start = int(rng.integers(max(len(audio) - self.crop_length, 0) + 1))
        crop = audio[start : start + self.crop_length]
        crop = np.pad(crop, (0, self.crop_length - len(crop)))
        return {
            "audio": torch.from_numpy(crop.astype(np.float32))[None],
            "gain": torch.tensor(gain, dtype=torch.float32),
            "unreadable": torch.tensor(unreadable, dtype=torch.float32),
            "index": torch.tensor(index),
        }


def crop_datasets(
    clips: list[Clip],
    *,
    sampling_rate: int,
    crop_seconds: float,
    augmentation: Augmentation,
    seed: int,
    length: int,
    num_held_out: int,
) -> tuple[CropDataset, CropDataset]:
    """Augmented crops to train on, and `HELD_OUT_CROPS` plain ones of 4 s to validate on.

    The latter come from ``num_held_out`` other clips, but never more than a fifth of them; if that
    leaves none, from the same.
    """
    if num_held_out < 0:
        raise InputError(f"num_held_out must not be negative, got {num_held_out}.")
    num_held_out = min(num_held_out, len(clips) // 5)
    train, held_out = split_clips(clips, num_held_out) if num_held_out else (clips, clips)
    return (
        CropDataset(
            train,
            sampling_rate=sampling_rate,
            crop_length=round(crop_seconds * sampling_rate),
            augmentation=augmentation,
            seed=seed,
            length=length,
        ),
        CropDataset(
            held_out,
            sampling_rate=sampling_rate,
            crop_length=4 * sampling_rate,
            augmentation=NO_AUGMENTATION,
            seed=1,
            length=HELD_OUT_CROPS,
        ),
    )


def crop_batches(
    dataset: CropDataset,
    *,
    batch_size: int,
    first_step: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the batches of a run from ``first_step`` on; rank r of w gets every w-th batch."""
    num_steps = len(dataset) // (batch_size * world_size)
    starts = ((step * world_size + rank) * batch_size for step in range(first_step, num_steps))
    batches = [list(range(start, start + batch_size)) for start in starts]
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=num_workers, persistent_workers=False
    )
    try:
        yield from loader
    except (ValueError, RuntimeError) as error:
        text = str(error).strip()
        if "Original Traceback" not in text:
            raise
        # A worker's error comes with its traceback as text; what it says is in the last line.
        raise type(error)(text.rsplit("\n", 1)[-1].partition(": ")[2]) from None
