"""Writing audio files block by block, in the format that the suffix names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from tokenizer.audio.resampling import Resampler, check_rate
from tokenizer.audio.signals import BLOCK_LENGTH, as_block, system_path
from tokenizer.errors import FileError, InputError, StateError
from tokenizer.saving import check_target, writing

# Suffix: libsndfile's container and default encoding.
_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_RATES = {"OPUS": _OPUS_RATES, "MPEG_LAYER_III": _MP3_RATES}
_UNCLIPPED = ("FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_III")
_PCM_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
# Of a sample, in encodings whose size is known before the audio is.
_BITS = {**_PCM_BITS, "FLOAT": 32, "DOUBLE": 64, "ULAW": 8, "ALAW": 8}
# A WAV file counts its bytes with 32 bits; beyond that libsndfile writes a header that lies.
_WAV_LIMIT = 2**32 - 2**20


class AudioWriter:
    """Writes an audio file block by block; a context manager.

    The format follows from the suffix: .wav and .flac (16-bit PCM unless ``subtype`` says
    otherwise), .ogg (Vorbis), .opus and .mp3. The path never names half a file: on an error nothing
    is left.

    Integer encodings round and clip samples to [-1, 1]; float and lossy encodings get them as they
    are. Opus and MP3 know few rates: audio of another rate is resampled to 48 kHz. Of six and more
    channels Ogg's encoders keep only the bass of one: prefer .wav or .flac there.

        with AudioWriter("speech.opus", 44_100, num_channels=1) as writer:
            writer.write(block)

    Attributes:
        file_rate: Hz of the file.
    """

    def __init__(
        self,
        path: str | Path,
        sampling_rate: int,
        num_channels: int,
        *,
        subtype: str | None = None,
        num_samples: int | None = None,
    ) -> None:
        """Checks the request; nothing is written before the ``with`` block begins.

        Args:
            path: The file to write, or to replace; its folder must exist.
            sampling_rate: Hz of the blocks.
            num_channels: C of the blocks.
            subtype: soundfile's name of an encoding, such as "PCM_24" or "FLOAT".
            num_samples: N of all blocks together, if it is known: too many are refused at once.
        """
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in _FORMATS:
            raise InputError(
                f"Cannot write {self.path}: unknown suffix {suffix!r}. Use {', '.join(_FORMATS)}."
            )
        check_target(self.path)
        self._format, default = _FORMATS[suffix]
        self._subtype = default if subtype is None else subtype.upper()
        known = soundfile.available_subtypes(self._format)
        if self._subtype not in known:
            raise InputError(
                f"Cannot write {self.path}: unknown subtype {subtype!r}. Use {', '.join(known)}."
            )
        if self._subtype == "MPEG_LAYER_III" and num_channels > 2:
            raise InputError(
                f"Cannot write {self.path}: MP3 holds 1 or 2 channels, not {num_channels}. "
                "Use .flac, .ogg or .wav."
            )
        num_bytes = (num_samples or 0) * num_channels * _BITS.get(self._subtype, 0) // 8
        if self._format == "WAV" and num_bytes > _WAV_LIMIT:
            raise InputError(_too_long(self.path))
        self.num_channels = num_channels
        self.sampling_rate = self.file_rate = check_rate(sampling_rate)
        if self.sampling_rate not in _RATES.get(self._subtype, (self.sampling_rate,)):
            self.file_rate = 48_000
        self._resampler = Resampler(self.sampling_rate, self.file_rate, num_channels)
        self._sound: soundfile.SoundFile | None = None
        self._file: _CheckedFile | None = None

    def __enter__(self) -> AudioWriter:
        self._context = self._opened()
        self._context.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with ExitStack() as stack:
            self._partial = stack.enter_context(writing(self.path))
            target: Any = self._partial
            if target.is_file():
                self._file = target = _CheckedFile(
                    stack.enter_context(target.open("r+b", buffering=0))
                )
            try:
                self._sound = soundfile.SoundFile(
                    target,
                    "w",
                    samplerate=self.file_rate,
                    channels=self.num_channels,
                    format=self._format,
                    subtype=self._subtype,
                )
            except soundfile.LibsndfileError as error:
                raise InputError(
                    f"Cannot write {self.path}: {error.error_string.rstrip('. ')} ({self._format}, "
                    f"{self._subtype}, {self.file_rate} Hz, {self.num_channels} channels)"
                ) from error
            try:
                yield
                self._put(self._resampler.finish())
                if (written := self._sound.frames) == 0:
                    raise InputError(f"Nothing to write to {self.path}: there are no samples.")
                with self._explained():
                    self._sound.close()  # Writes the header and what the encoder held back.
            finally:
                self._sound.close()
                self._sound = None
            if self._file is None:  # a device or a pipe
                return
            if (found := soundfile.info(system_path(self._partial)).frames) < written:
                raise FileError(f"Cannot write {self.path}: {found} of {written} samples arrived.")

    def write(self, block: np.ndarray | Tensor) -> None:
        """Appends samples, finite floats ``[C, n]``; ValueError if a WAV file gets too long."""
        checked = as_block(block, self.num_channels, f"Cannot write {self.path}: a block")
        self._put(self._resampler.push(checked))

    def _put(self, block: np.ndarray) -> None:
        if self._sound is None:
            raise StateError(f"{self.path} is not open: write within `with AudioWriter(...)`.")
        block = _for_subtype(block, self._subtype)
        # Small pieces: libsndfile's Vorbis encoder puts a whole call's samples on the stack.
        for start in range(0, block.shape[-1], BLOCK_LENGTH):
            with self._explained():
                self._sound.write(np.ascontiguousarray(block[:, start : start + BLOCK_LENGTH].T))
        if self._format == "WAV" and self._partial.stat().st_size > _WAV_LIMIT:
            raise InputError(_too_long(self.path))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
            if self._file is not None and self._file.error is not None:
                raise self._file.error
        except (soundfile.LibsndfileError, OSError) as error:
            reason = str(
                getattr(error, "error_string", "") or getattr(error, "strerror", "")
            ).rstrip(". ")
            raise FileError(f"Cannot write {self.path}: {reason}. Is the disk full?") from error


class _CheckedFile:
    """A file for libsndfile, most of whose encoders do not tell when a write fails.

    The first error is kept in ``error``, where the caller looks, and libsndfile goes on.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.error: OSError | None = None
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def write(self, data: bytes) -> int:
        """Writes all of it, unless a write has failed."""
        left = data
        while left and self.error is None:
            try:
                left = left[self._file.write(left) :]
            except OSError as error:
                self.error = error
        return len(data)


def write_audio(
    path: str | Path, audio: np.ndarray | Tensor, sampling_rate: int, *, subtype: str | None = None
) -> None:
    """Writes audio ``[C, N]`` to a file; formats, clipping and errors as in `AudioWriter`."""
    if audio.ndim != 2:
        raise InputError(f"Audio to write has shape {list(audio.shape)}; expected [C, N].")
    num_channels, num_samples = audio.shape
    with AudioWriter(
        path, sampling_rate, num_channels, subtype=subtype, num_samples=num_samples
    ) as writer:
        for start in range(0, num_samples, BLOCK_LENGTH):
            writer.write(audio[:, start : start + BLOCK_LENGTH])


def _too_long(path: Path) -> str:
    return f"{path} would pass 4 GiB, which WAV cannot hold: use .flac."


def _for_subtype(block: np.ndarray, subtype: str) -> np.ndarray:
    if subtype in _UNCLIPPED:
        return block
    if subtype not in _PCM_BITS:
        return np.clip(block, -1.0, 1.0)
    # libsndfile would cut off what does not fit in the bits: twice the noise, and an offset.
    bits = _PCM_BITS[subtype]
    top = 2.0 ** (bits - 1)
    integers = np.clip(np.rint(block.astype(np.float64) * top), -top, top - 1)
    return (integers * 2.0 ** (32 - bits)).astype(np.int32)
