"""Audio to train on, fit to and judge by: lists of clips that are read in parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from tokenizer.audio import AUDIO_SUFFIXES, AudioFile, list_audio
from tokenizer.audio.signals import NoSamplesError
from tokenizer.errors import InputError, MissingFileError, import_extra
from tokenizer.saving import dataset_errors


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

    def read(self, first: int, count: int) -> np.ndarray:
        """Up to ``count`` samples from ``first`` on, float32 ``[n, C]``.

        Raises ValueError if the file is damaged, OSError if it has gone.
        """
        return _audio_file(self.name, self.audio).read(first, count).T


def _audio_file(name: str, audio: str | dict[str, Any]) -> AudioFile:
    """The file or the bytes that `Clip.audio` gives."""
    if isinstance(audio, str):
        return AudioFile(Path(audio))
    # What `datasets.Audio(decode=False)` gives.
    content = audio.get("bytes")
    return AudioFile(Path(audio["path"]) if content is None else content, name)


def identity(clips: Iterable[Clip], *, modified: bool = False) -> str:
    """Sixteen hex digits, other ones for other clips: what is made of audio is kept under them.

    Files are told apart by name, length and size, and by their time of modification where that
    matters, so that a run may go on where its audio has moved to; a dataset by its fingerprint.
    """
    digest = hashlib.sha256()
    for clip in clips:
        described = [clip.num_samples, clip.sampling_rate, clip.num_channels]
        if clip.dataset is None:
            path = Path(clip.name)
            status = path.stat()
            described += [path.name, status.st_size]
            if modified:
                described.append(status.st_mtime_ns)
        else:
            described += [clip.dataset._fingerprint, clip.index]
        digest.update(json.dumps(described).encode())
    return digest.hexdigest()[:16]


def scan(source: str | Path, skipped: list[str] | None = None) -> list[Clip]:
    """Lists the clips of a folder of audio, or of a `datasets` dataset, in a stable order.

    The source is an audio file, a folder of them (see `list_audio`), one that
    ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote (of the latter the train split),
    or ``dataset:NAME`` for the train split of what ``datasets.load_dataset`` knows. Clips that
    cannot be read are left out if there is a list ``skipped``, to which the reasons are appended.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If there is no readable audio, or something that should be audio cannot be read.
    """
    name = str(source)
    root = Path(name)
    if name.startswith("dataset:"):
        with dataset_errors(name):
            dataset = _datasets().load_dataset(name.removeprefix("dataset:"), split="train")
        return scan_dataset(dataset, skipped)
    if root.is_file():
        return _describe(name, name, None)
    if not root.is_dir():
        raise MissingFileError(f"No such folder: {root}. Name a folder of audio, or dataset:NAME.")
    if (root / "dataset_info.json").exists():
        return scan_dataset(_datasets().load_from_disk(name), skipped)
    if (root / "dataset_dict.json").exists():
        splits = _datasets().load_from_disk(name)
        if "train" not in splits:
            raise InputError(f"{root} has no split train, only {', '.join(splits)}: name one.")
        return scan_dataset(splits["train"], skipped)
    names = map(str, list_audio(root))
    clips = [clip for name in names for clip in _describe(name, name, skipped)]
    if not clips:
        why = f" that can be read: {skipped[0]}" if skipped else ""
        raise InputError(f"No audio in {root}{why}. Supported: {', '.join(AUDIO_SUFFIXES)}.")
    return clips


def _describe(
    name: str, audio: str | dict[str, Any] | None, skipped: list[str] | None, **place: Any
) -> list[Clip]:
    """The clip of a file, or no clip if it has no samples, or cannot be read and may be skipped."""
    try:
        if audio is None:
            raise InputError(f"{name} holds no audio.")
        info = _audio_file(name, audio).info()
    except (InputError, OSError) as error:
        if skipped is not None:
            skipped.append(str(error))
        elif isinstance(error, InputError) and not isinstance(error, NoSamplesError):
            raise InputError(f"{error} Remove or repair it.") from None
        elif isinstance(error, OSError):
            raise
        return []
    return [Clip(name, info.num_samples, info.sampling_rate, info.num_channels, **place)]


def scan_dataset(dataset: Any, skipped: list[str] | None = None) -> list[Clip]:
    """Lists the clips of a `datasets.Dataset` with an ``audio`` column of type ``Audio``.

    ``skipped`` as for `scan`.
    """
    if "audio" not in dataset.column_names:
        raise InputError(f"The dataset has no column 'audio', only {dataset.column_names}.")
    # torchcodec is not needed: soundfile reads the encoded bytes.
    raw = dataset.cast_column("audio", _datasets().Audio(decode=False)).select_columns(["audio"])
    clips = [
        clip
        for index, row in enumerate(raw)
        for clip in _describe(f"row {index}", row["audio"], skipped, dataset=raw, index=index)
    ]
    if not clips:
        raise InputError("The dataset holds no audio.")
    return clips


def _datasets() -> Any:
    return import_extra("datasets", "Audio in a dataset", "datasets")


def short_names(clips: Sequence[Clip]) -> list[str]:
    """Names for tables: of each path the last parts, as many as tell all the clips apart."""
    paths = [Path(clip.name).parts for clip in clips]
    for count in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(path[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return []


def split_clips(clips: list[Clip], num_held_out: int) -> tuple[list[Clip], list[Clip]]:
    """Returns (train, held out): ``num_held_out`` clips, evenly spread, are held out."""
    if not 0 <= num_held_out < len(clips):
        raise InputError(f"Cannot hold out {num_held_out} of {len(clips)} clips.")
    picked = {round((i + 0.5) * len(clips) / num_held_out) for i in range(num_held_out)}
    train = [clip for i, clip in enumerate(clips) if i not in picked]
    return train, [clips[i] for i in sorted(picked)]


def read_window(
    clip: Clip, start: float, seconds: float, sampling_rate: int, channels: int | list[int]
) -> np.ndarray:
    """Reads part of one channel of a clip, resampled, as float32 ``[N]``; of several as ``[C, N]``.

    It begins at ``start`` in seconds; it is shorter where the clip ends, and never empty.
    """
    first = min(int(start * clip.sampling_rate), max(clip.num_samples - 1, 0))
    audio = clip.read(first, max(1, round(seconds * clip.sampling_rate)))[:, channels]
    if clip.sampling_rate != sampling_rate:
        audio = soxr.resample(audio, clip.sampling_rate, sampling_rate)
    return audio.T


def joint_channels(clip: Clip, first: int, count: int) -> list[int]:
    """``count`` channels from ``first`` on; the clip's last one stands for those that it lacks."""
    return [min(first + i, clip.num_channels - 1) for i in range(count)]
