"""Audio at its own rate, from files and arrays: in blocks from the beginning, or any part of it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float32
from torch import Tensor

from tokenizer.audio.av_decoding import AV_SUFFIXES, AvSound, partly_read
from tokenizer.audio.joined import READ_BY_NONE
from tokenizer.audio.resampling import check_rate
from tokenizer.audio.truncation import find_cut
from tokenizer.errors import InputError, MissingFileError, MissingPackageError, StateError

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".caf", ".w64",
    ".rf64", ".au", *AV_SUFFIXES,
)  # fmt: skip
_READABLE = (
    "WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, CAF and what else libsndfile decodes, and with PyAV "
    '(pip install "latent-tokenizer[av]") M4A, AAC, ALAC, WMA, WebM and the sound of videos'
)
_NO_AUDIO = "no audio was found in it"
# libsndfile's errors for formats and encodings that it does not know, such as FLAC of 32 bits.
_OTHER_FORMATS = (1, 4, 18)
_UNKNOWN_LENGTH = 2**62  # libsndfile says 2^63 - 1.

# Zero and full scale of integers are libsndfile's: a file and its samples give the same floats.
_SCALES = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (2**7, 2**7)}

# Files and arrays are cut into the same blocks: both go through the same computations.
BLOCK_LENGTH = 2**16

# A file of a few bytes may claim to have 1,024 channels, and a block of those is a quarter of a
# GiB. Raise the limit here if you have more.
MAX_CHANNELS = 64

# libsndfile misses the place by some samples where it seeks within the last page of an Ogg Vorbis
# file. It is read from so many samples earlier instead; only pages of near silence are longer.
_OGG_PAGE = 2**16


class NoSamplesError(InputError):
    """An audio file is whole, but has a length of zero."""


class SignalInfo(NamedTuple):
    """What is known of a signal before it is decoded.

    ``num_samples`` of a file is what its header says, or has been counted where it says nothing.
    """

    sampling_rate: int
    num_channels: int
    num_samples: int


@runtime_checkable
class Signal(Protocol):
    """Audio that can be read again and again, at its own rate; ``name`` is for messages."""

    name: str

    def info(self) -> SignalInfo:
        """Rate, channels and length; ValueError if it cannot be read."""
        ...

    def blocks(self) -> Iterator[Float32[np.ndarray, "C n"]]:
        """Yields it in blocks of `BLOCK_LENGTH` samples; ValueError if it is damaged or cut off."""
        ...

    def read(self, first: int, count: int) -> Float32[np.ndarray, "C n"]:
        """Up to ``count`` samples from ``first`` on, without reading all that comes before."""
        ...


def as_block(
    block: np.ndarray | Tensor, num_channels: int, what: str
) -> Float32[np.ndarray, "C n"]:
    """Checks finite floats ``[C, n]`` from elsewhere; ``what`` begins the message of the error."""
    if isinstance(block, Tensor):
        block = block.detach().cpu()
        block = (block.float() if block.is_floating_point() else block).numpy()
    array = np.asarray(block)
    if array.ndim != 2 or len(array) != num_channels:
        raise InputError(f"{what} has shape {list(array.shape)}; expected [{num_channels}, n].")
    if array.dtype.kind != "f":
        raise InputError(f"{what} holds {array.dtype}; expected floats, e.g. int16 / 32768.")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{what} holds NaN or infinite samples.")
    return array


class AudioFile:
    """An audio file, or the bytes of one; nothing is opened before it is needed."""

    def __init__(self, file: Path | bytes, name: str | None = None) -> None:
        self._file, self.name = file, str(file) if name is None else name
        self._av: str | None = None  # libsndfile's name of the format, if FFmpeg is to decode it.

    def info(self) -> SignalInfo:
        """See `Signal.info`."""
        return self._info

    def blocks(self) -> Iterator[Float32[np.ndarray, "C n"]]:
        """See `Signal.blocks`."""
        info = self._info  # It decides who decodes.
        with self._open() as sound:
            if (sound.samplerate, sound.channels) != info[:2]:
                raise StateError(f"{self.name} was replaced by another file while it was in use.")
            num_read = 0
            while len(block := self._next(sound, BLOCK_LENGTH)):
                num_read += len(block)
                yield block.T
        # Last: the caller has all samples before the damage by now.
        file = self._file
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
            cut = find_cut(stream, sound.format, self._info.num_samples, num_read)
        if cut is not None:
            raise InputError(f"{self.name} is cut off: {cut}. Copy it again.")

    def read(self, first: int, count: int) -> Float32[np.ndarray, "C n"]:
        """See `Signal.read`."""
        num_samples = self._info.num_samples
        with self._open() as sound:
            first = min(first, num_samples)
            skip = 0
            if sound.subtype == "VORBIS" and num_samples - first < _OGG_PAGE:
                skip = min(first, _OGG_PAGE)
            try:
                if sound.format == "FLAC" and sound.frames > _UNKNOWN_LENGTH:
                    while first > 0 and len(read := self._next(sound, min(first, BLOCK_LENGTH))):
                        first -= len(read)  # It cannot seek.
                else:
                    sound.seek(first - skip)
            except soundfile.LibsndfileError as error:
                raise self._damage(error) from error
            return self._next(sound, skip + count)[skip:].T

    @cached_property
    def _info(self) -> SignalInfo:
        file = self._file
        if (len(file) if isinstance(file, bytes) else file.stat().st_size) == 0:
            raise InputError(f"{self.name}: the file is empty (0 bytes).")
        with self._open() as sound:
            rate, num_channels, form = sound.samplerate, sound.channels, sound.format
            if self._av is None:
                num_samples = sound.frames
                if num_samples > _UNKNOWN_LENGTH:
                    num_samples = self._count(sound)
                reason = partly_read(file, form, num_samples)
            else:
                num_samples, reason = self._count(sound), None
        if reason is not None and form in READ_BY_NONE:
            raise InputError(f"{self.name} would be read in part: {reason}. Take them apart.")
        if reason is not None:
            self._av = form
            try:
                with self._open() as sound:
                    rate, num_channels = sound.samplerate, sound.channels
                    num_samples = self._count(sound)
            except MissingPackageError as error:
                raise InputError(f"{self.name} would be read in part: {reason}. {error}") from None
        if num_samples == 0 and self._av == "":
            raise self._refused(_NO_AUDIO)
        if num_samples == 0:
            raise NoSamplesError(f"{self.name} holds no samples.")
        if num_channels > MAX_CHANNELS:
            raise InputError(
                f"{self.name} has {num_channels} channels; at most {MAX_CHANNELS} are read. Is its "
                "header damaged?"
            )
        rate = check_rate(rate, f"sampling rate of {self.name}")
        return SignalInfo(rate, num_channels, num_samples)

    def _open(self) -> Any:
        """A `soundfile.SoundFile` or `AvSound`."""
        file = self._file
        if self._av is not None:
            return AvSound(file, self.name, self._av)
        try:
            return _Sound(io.BytesIO(file) if isinstance(file, bytes) else system_path(file))
        except soundfile.LibsndfileError as error:
            reason = error.error_string.rstrip(". ")
            is_other = error.code in _OTHER_FORMATS or self._is_flac_in_ogg()
            if "not a regular file" in reason:  # So it calls what ends in .mp3 and is none.
                reason, is_other = _NO_AUDIO, True
        except TypeError:
            # soundfile asks for a rate where it sees the suffix .raw.
            reason = "a .raw file has no header that tells its rate and encoding"
            is_other = False
        if isinstance(file, Path):
            # Not libsndfile's "System error" where access is denied, or the file is gone.
            if not file.exists():
                raise MissingFileError(f"No such file: {file}")
            file.open("rb").close()
        # What libsndfile knows and finds damaged is not given to FFmpeg, which overlooks that.
        if is_other:
            with suppress(InputError, MissingPackageError):
                sound = AvSound(file, self.name)
                self._av = ""
                return sound
        raise self._refused(reason)

    def _is_flac_in_ogg(self) -> bool:
        """Whether it is FLAC within Ogg, which libsndfile takes for FLAC that is damaged."""
        file = self._file
        if isinstance(file, Path) and not file.is_file():
            return False
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
            head = stream.read(64)
        return head[:4] == b"OggS" and b"\x7fFLAC" in head

    def _refused(self, reason: str) -> InputError:
        return InputError(f"Cannot read {self.name} as audio: {reason}. Supported: {_READABLE}.")

    def _next(self, sound: Any, count: int) -> np.ndarray:
        try:
            return sound.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise self._damage(error) from error

    def _count(self, sound: Any) -> int:
        count = 0
        while size := len(self._next(sound, BLOCK_LENGTH)):
            count += size
        return count

    def _damage(self, error: soundfile.LibsndfileError) -> InputError:
        reason = error.error_string.rstrip(". ")
        return InputError(f"{self.name} is damaged or cut off: {reason}.")


def system_path(file: Path) -> Any:
    """A path for soundfile, which takes names that are not UTF-8 as bytes only."""
    return os.fsencode(file) if os.name == "posix" else file


class _Sound(soundfile.SoundFile):
    """A sound file that is only read forward, but for seeks of our own."""

    def seekable(self) -> bool:
        # Otherwise soundfile seeks to where it is after every read, and near the end of an Opus
        # file libsndfile continues with wrong samples.
        return False


class ArraySignal:
    """An array, tensor or nested list ``[N]`` or ``[C, N]`` of floats, int16, int32 or uint8.

    Integers are scaled to [-1, 1). It is not copied: leave it unchanged while it is in use.

    Raises:
        ValueError: If shape or type are impossible, there are no samples, or no rate.
    """

    def __init__(self, value: Any, sampling_rate: Any, where: str = "") -> None:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            # NumPy has no bfloat16.
            value = value.float() if value.is_floating_point() and value.itemsize < 4 else value
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InputError(f"The channels of the array differ in length{where}.") from error
        self.name = f"array {list(array.shape)}{where}"
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2:
            raise InputError(
                f"{self.name} has {array.ndim} axes; expected [N] or [C, N]. Give several signals "
                "as a list."
            )
        num_channels, num_samples = array.shape
        if array.size == 0:
            raise NoSamplesError(f"{self.name} holds no samples.")
        # A surround clip may be shorter than it has channels; beyond 7.1 it is a transposed array.
        if num_channels > MAX_CHANNELS or num_channels > max(num_samples, 8):
            raise InputError(
                f"{self.name} has {num_channels} channels of {num_samples} samples; expected "
                "[C, N]. If time comes first, transpose it: array.T."
            )
        self._array = array
        self.read(0, 0)  # Refuses other types before anything is read.
        if sampling_rate is None:
            raise InputError(
                f"The sampling rate of {self.name} is not known: pass sampling_rate=, or "
                '{"array": ..., "sampling_rate": ...}.'
            )
        rate = check_rate(sampling_rate, f"sampling rate of {self.name}")
        self._info = SignalInfo(rate, num_channels, num_samples)

    def info(self) -> SignalInfo:
        """See `Signal.info`."""
        return self._info

    def blocks(self) -> Iterator[Float32[np.ndarray, "C n"]]:
        """See `Signal.blocks`."""
        for first in range(0, self._info.num_samples, BLOCK_LENGTH):
            yield self.read(first, BLOCK_LENGTH)

    def read(self, first: int, count: int) -> Float32[np.ndarray, "C n"]:
        """See `Signal.read`."""
        samples = self._array[:, first : first + count]
        if samples.dtype.kind == "f" and samples.dtype.itemsize <= 8:
            with np.errstate(over="ignore"):  # What float32 cannot hold is refused as infinite.
                return samples.astype(np.float32)
        if samples.dtype.name not in _SCALES:
            raise InputError(
                f"{self.name} is of type {samples.dtype}: give floats, int16, int32 or uint8, whose"
                " scales are known."
            )
        zero, scale = _SCALES[samples.dtype.name]
        return (samples.astype(np.float32) - np.float32(zero)) / np.float32(scale)
