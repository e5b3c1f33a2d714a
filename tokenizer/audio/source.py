"""Audio as blocks of samples, in and out, at any rate and in bounded memory.

Samples are float32 ``[C, n]``. `tokenizer.audio.inputs` makes an `AudioSource` of whatever the
user has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32
from torch import Tensor

from tokenizer.errors import FileError, InputError, StateError
from tokenizer.saving import check_target, writing

# Files and arrays are cut into the same blocks: both go through the same computations.
BLOCK_LENGTH = 2**16

# soxr's 20-bit setting (errors below -120 dB), the one that training data is resampled with. VHQ
# takes twice the time.
RESAMPLING_QUALITY = "HQ"

# One block of input becomes at most this many blocks of output, so memory stays bounded even where
# a file's header is nonsense (1 Hz, say).
MAX_RATIO = 256
# What is resampled at once is cut further where so many samples, of all channels, would come out.
MAX_RESAMPLED = 2**24

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


def check_rate(value: Any, what: str = "sampling rate") -> int:
    """Returns a sampling rate as an int.

    Raises:
        ValueError: If it is not a positive whole number of Hz.
    """
    try:
        rate = int(value)
        whole = rate == value and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        whole = rate = 0
    if not whole or rate <= 0:
        raise InputError(f"The {what} is {value!r}; it must be a positive whole number of Hz.")
    return rate


def resampled_length(num_samples: int, source_rate: int, target_rate: int) -> int:
    """Samples after resampling: ``round(num_samples * target_rate / source_rate)``, exactly."""
    return round(Fraction(num_samples * target_rate, source_rate))


class Resampler:
    """Resamples one signal that arrives in blocks.

    soxr rounds halves up and might be off by one at the end; the last block is cut or padded with
    zeros, so that the length is `resampled_length` exactly. Equal rates pass through untouched.
    """

    def __init__(self, source_rate: int, target_rate: int, num_channels: int) -> None:
        ratio = max(source_rate, target_rate) / min(source_rate, target_rate)
        if ratio > MAX_RATIO:
            raise InputError(
                f"Cannot resample from {source_rate} Hz to {target_rate} Hz: the rates differ by "
                f"more than a factor of {MAX_RATIO}. Is one of them wrong?"
            )
        self._rates = source_rate, target_rate
        self._num_in = self._num_out = 0
        self._empty = np.zeros((0, num_channels), dtype=np.float32)
        self._stream = None
        if source_rate != target_rate:
            self._stream = soxr.ResampleStream(
                source_rate, target_rate, num_channels, dtype="float32", quality=RESAMPLING_QUALITY
            )

    def push(self, block: Float32[np.ndarray, "C n"]) -> Float32[np.ndarray, "C m"]:
        """Takes a block and returns the samples that are complete; there may be none yet."""
        if self._stream is None:
            return block
        out = self._stream.resample_chunk(np.ascontiguousarray(block.T))
        self._num_in += block.shape[-1]
        self._num_out += len(out)
        return np.ascontiguousarray(out.T)

    def finish(self) -> Float32[np.ndarray, "C m"]:
        """Returns the remaining samples; call it once, after the last block."""
        if self._stream is None:
            return np.ascontiguousarray(self._empty.T)
        out = self._stream.resample_chunk(self._empty, last=True)
        missing = resampled_length(self._num_in, *self._rates) - self._num_out
        if len(out) < missing:
            out = np.pad(out, ((0, missing - len(out)), (0, 0)))
        return np.ascontiguousarray(out[:missing].T)


class AudioSource:
    """Audio that can be read again and again, block by block, at the rate that is asked for.

    `tokenizer.audio.inputs.open_audio` makes one from any form of input.

    Attributes:
        name: For messages, such as the path.
        source_rate: Hz of the file or array.
        sampling_rate: Hz of what `blocks` yields.
        num_channels: C of what `blocks` yields.
    """

    def __init__(
        self,
        decode: Callable[[], Iterator[np.ndarray]],
        *,
        name: str,
        source_rate: int,
        target_rate: int,
        num_channels: int,
        downmix: bool = False,
    ) -> None:
        """Wraps a function that starts reading.

        Args:
            decode: Each call yields the whole signal from its beginning, float32 ``[C, n]`` at
                ``source_rate``, ``BLOCK_LENGTH`` samples at a time.
            name: See above.
            source_rate: Hz.
            target_rate: Hz.
            num_channels: C of what ``decode`` yields.
            downmix: Whether to average the channels into one.
        """
        self.name = name
        self.source_rate = check_rate(source_rate, f"sampling rate of {name}")
        self.sampling_rate = check_rate(target_rate, "target sampling rate")
        self.num_channels = 1 if downmix else num_channels
        self._decode, self._downmix = decode, downmix
        self._num_samples: int | None = None
        self._resampler()  # Finds impossible rates now rather than when reading begins.

    @property
    def num_samples(self) -> int:
        """N at `sampling_rate`; before `blocks` has run to its end this decodes all, to count."""
        if self._num_samples is None:
            total = sum(block.shape[-1] for block in self._decode())
            self._num_samples = resampled_length(total, self.source_rate, self.sampling_rate)
        return self._num_samples

    def blocks(self) -> Iterator[Float32[np.ndarray, "C n"]]:
        """Yields the whole signal in consecutive blocks that the caller may keep and change.

        ``BLOCK_LENGTH`` samples of the source make one block. ``num_samples`` in all, which is
        `resampled_length` of the source's.

        Raises:
            ValueError: If there are no samples, or one is not finite, or the file is damaged.
        """
        resampler = self._resampler()
        num_in = num_out = 0
        for block in self._decode():
            if not np.isfinite(block).all():
                place = num_in + int(np.flatnonzero(~np.isfinite(block).all(axis=0))[0])
                raise InputError(
                    f"{self.name} has a NaN or infinite sample at {place / self.source_rate:.3f} s "
                    f"(sample {place}): repair or leave out the clip."
                )
            num_in += block.shape[-1]
            mixed = block.mean(axis=0, keepdims=True, dtype=np.float64) if self._downmix else block
            # Few channels at usual rates are never cut, so that blocks stay as they are.
            size = max(1, int(MAX_RESAMPLED / max(1, self.sampling_rate / self.source_rate)))
            size = max(1, size // len(mixed))
            for start in range(0, mixed.shape[-1], size):
                piece = np.array(mixed[:, start : start + size], dtype=np.float32, order="C")
                out = resampler.push(piece)
                num_out += out.shape[-1]
                if out.shape[-1]:
                    yield out
        tail = resampler.finish()
        num_out += tail.shape[-1]
        if tail.shape[-1]:
            yield tail
        self._num_samples = num_out
        if num_out == 0:
            raise InputError(
                f"{self.name} is too short: {num_in} samples at {self.source_rate} Hz are none at "
                f"{self.sampling_rate} Hz."
            )

    def read(self) -> Float32[np.ndarray, "C N"]:
        """Returns the whole signal as one array; errors as in `blocks`."""
        return np.concatenate(list(self.blocks()), axis=-1)

    def _resampler(self) -> Resampler:
        return Resampler(self.source_rate, self.sampling_rate, self.num_channels)


def read_beginning(source: AudioSource, seconds: float | int) -> tuple[np.ndarray, bool]:
    """Up to so many seconds of a source, and whether there is more; reads little beyond them."""
    wanted = round(seconds * source.sampling_rate)
    blocks, found = [], 0
    for block in source.blocks():
        blocks.append(block)
        found += block.shape[-1]
        if found > wanted:
            break
    wave = np.concatenate(blocks, axis=-1)
    return wave[:, :wanted], found > wanted


def rms(source: AudioSource) -> Float32[np.ndarray, " C"]:
    """The root mean square of each channel; reads the source once, summing in float64."""
    squares, num_samples = np.zeros(source.num_channels), 0
    for block in source.blocks():
        squares += np.square(block, dtype=np.float64).sum(axis=-1)
        num_samples += block.shape[-1]
    return np.sqrt(squares / num_samples).astype(np.float32)


class AudioWriter:
    """Writes an audio file block by block; a context manager.

    The format follows from the suffix: .wav and .flac (16-bit PCM unless ``subtype`` says
    otherwise), .ogg (Vorbis), .opus and .mp3. Until the end everything goes to a temporary file in
    the same folder, so that the path never names half a file: on an error nothing is left.

    Integer encodings round and clip samples to [-1, 1]; float and lossy encodings get them as they
    are. Opus and MP3 know few rates: audio of another rate is resampled to 48 kHz. Ogg gives six
    and more channels the roles of loudspeakers, and its encoders remove all but the bass from one
    of them: prefer .wav or .flac there.

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
            path: The file to write, or to replace.
            sampling_rate: Hz of the blocks.
            num_channels: C of the blocks.
            subtype: soundfile's name of an encoding, such as "PCM_24" or "FLOAT".
            num_samples: N of all blocks together, if it is known: what gets too long for the
                format is refused now rather than when it has.

        Raises:
            FileNotFoundError: If the folder does not exist.
            ValueError: If the format is unknown or cannot hold such audio.
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
        self._closing = ExitStack()

    def __enter__(self) -> AudioWriter:
        with ExitStack() as stack:
            self._partial = stack.enter_context(writing(self.path))
            try:
                sound = soundfile.SoundFile(
                    self._partial,
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
            self._sound = sound
            stack.push(self._end)
            self._closing = stack.pop_all()
        return self

    def write(self, block: np.ndarray | Tensor) -> None:
        """Appends samples, float ``[C, n]``.

        Raises:
            ValueError: If the shape is wrong, a sample is not finite, or a WAV file gets too long.
            OSError: If the disk is full.
        """
        self._put(self._resampler.push(_as_block(block, self.num_channels, self.path)))

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

    def __exit__(self, *exception: Any) -> None:
        self._closing.__exit__(*exception)

    def _end(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._sound is not None
        try:
            if kind is None:
                self._put(self._resampler.finish())
                if self._sound.frames == 0:
                    raise InputError(f"Nothing to write to {self.path}: there are no samples.")
                with self._explained():
                    self._sound.close()  # Writes the header and what the encoder held back.
        finally:
            self._sound.close()
            self._sound = None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except soundfile.LibsndfileError as error:
            reason = error.error_string.rstrip(". ")
            raise FileError(f"Cannot write {self.path}: {reason}. Is the disk full?") from error


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


def _as_block(block: np.ndarray | Tensor, num_channels: int, path: Path) -> np.ndarray:
    array = block.detach().cpu().float().numpy() if isinstance(block, Tensor) else np.asarray(block)
    if array.ndim != 2 or len(array) != num_channels:
        raise InputError(
            f"Cannot write {path}: a block has shape {list(array.shape)}; expected "
            f"[{num_channels}, n]."
        )
    if array.dtype.kind != "f":
        raise InputError(f"Cannot write {path}: samples are {array.dtype}, not floats.")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"Cannot write {path}: the audio has NaN or infinite samples.")
    return array
