"""What libsndfile cannot read, or reads in part, decoded by FFmpeg through PyAV (extra ``av``).

That is AAC, ALAC, WMA, WebM and the sound of videos; files that were joined; and MP3 whose header
does not tell its length.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tokenizer.audio.joined import READ_BY_FFMPEG, READ_BY_NONE, is_joined
from tokenizer.errors import InputError, import_extra

AV_SUFFIXES = (
    ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".aac", ".ac3", ".amr", ".wma", ".wmv", ".asf",
    ".webm", ".mkv", ".mka", ".avi", ".ape", ".wv",
)  # fmt: skip
# kbit/s of MPEG layer III by the index in a frame's header, and Hz of MPEG 1; 2 and 2.5 have half
# and a quarter of it.
_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
# Encoders add some frames that hold no audio, and players cut them off.
_MP3_SLACK = 5 * 1152


class AvSound:
    """An audio file as `soundfile.SoundFile` gives it, as far as reading forward needs that.

    ``format`` is libsndfile's name, if it knows the file. ValueError if FFmpeg cannot read it,
    ImportError without PyAV.
    """

    subtype, frames = "", 0  # The length is known when all is decoded.

    def __init__(self, file: Path | bytes, name: str, form: str = "") -> None:
        self._av = import_extra("av", f"Reading {name}", "av")
        self.name, self.format = name, form
        try:
            source = io.BytesIO(file) if isinstance(file, bytes) else str(file)
            self._container = self._av.open(source, metadata_errors="ignore")
        except (self._av.error.FFmpegError, ValueError) as error:
            raise self._error(error) from error
        if not self._container.streams.audio:
            self.close()
            raise InputError(f"{name} has no sound.")
        self._stream = self._container.streams.audio[0]
        context = self._stream.codec_context
        if context is None:
            self.close()
            raise InputError(f"{name} has sound in an encoding that FFmpeg does not know.")
        self.samplerate, self.channels = context.sample_rate or 0, context.channels
        self.container_format = self._container.format.name
        self._blocks = self._decoded()
        self._rest = np.zeros((self.channels, 0), np.float32)

    def __enter__(self) -> AvSound:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def read(self, count: int, **_: Any) -> Float32[np.ndarray, "n C"]:
        """Up to ``count`` samples; fewer only at the end. ValueError if the file is damaged."""
        pieces, size = [self._rest], self._rest.shape[1]
        while size < count and (block := next(self._blocks, None)) is not None:
            pieces.append(block)
            size += block.shape[1]
        joined = np.concatenate(pieces, axis=1)
        self._rest = joined[:, count:]
        return np.ascontiguousarray(joined[:, :count].T)

    def seek(self, place: int) -> None:
        """Goes to a sample of a file of which nothing was read, by decoding all before it."""
        while place > 0 and len(read := self.read(min(place, 2**16))):
            place -= len(read)

    def _decoded(self) -> Iterator[Float32[np.ndarray, "C n"]]:
        resampler = self._av.AudioResampler(format="fltp")
        num_packets = 0
        try:
            for packet in self._container.demux(self._stream):
                num_packets += packet.size > 0
                try:
                    frames = packet.decode()
                except self._av.error.InvalidDataError:
                    if self._stream.codec_context.name not in ("mp3", "mp3float"):
                        raise
                    continue  # Tags between joined files.
                for frame in frames:
                    yield from (piece.to_ndarray() for piece in resampler.resample(frame))
        except (self._av.error.FFmpegError, ValueError) as error:
            raise self._error(error) from error
        # Only MP4 and its like count packets, and those of PCM are samples.
        counts = "mp4" in self.container_format and self._stream.codec_context.name[:4] != "pcm_"
        if counts and num_packets < self._stream.frames:
            raise InputError(
                f"{self.name} is cut off: its header promises {self._stream.frames:,} packets, and "
                f"{num_packets:,} are there. Copy it again."
            )

    def _error(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or error
        return InputError(f"Cannot read {self.name} as audio: {reason} (FFmpeg).")


def partly_read(file: Path | bytes, form: str, num_samples: int) -> str | None:
    """Why libsndfile, which found ``num_samples``, would not read all of a file; None if it does.

    Of its names ``form`` these are checked: MP3, whose length it may have guessed, and formats of
    which it reads the first of several files that were joined.
    """
    if form not in ("MP3", *READ_BY_FFMPEG, *READ_BY_NONE):
        return None
    if isinstance(file, bytes):
        return _partly(file, form, num_samples)
    status = file.stat()
    return _partly_file(file, form, num_samples, (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=2**16)
def _partly_file(
    file: Path,
    form: str,
    num_samples: int,
    version: tuple[int, int],  # noqa: ARG001
) -> str | None:
    """`_partly` of a file, read once: training opens the same files for every crop.

    ``version``, size and time, tells a file that was replaced from the one before.
    """
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _partly(data, form, num_samples)


def _partly(data: Any, form: str, num_samples: int) -> str | None:
    if form != "MP3":
        return "several files were joined" if is_joined(data, form) else None
    found = mp3_length(data)
    if found <= num_samples + _MP3_SLACK:
        return None
    return f"its header tells {num_samples:,} of {found:,} samples"


def mp3_length(data: Any) -> int:
    """Samples of all frames of MPEG layer III, by walking over their headers."""
    count = place = 0
    if data[:3] == b"ID3":
        place = 10 + sum(byte << 7 * i for i, byte in enumerate(reversed(data[6:10])))
    while (place := data.find(b"\xff", place)) >= 0:
        frame = _mp3_frame(data[place : place + 4])
        # Elsewhere such bytes occur by chance: a frame follows upon the frame before.
        after = place + frame[0] if frame else 0
        if frame and (after >= len(data) - 4 or _mp3_frame(data[after : after + 4])):
            count += frame[1]
            place = after
        else:
            count += frame[1] if frame and data[after : after + 3] in (b"ID3", b"TAG") else 0
            place += 1
    return count


def _mp3_frame(head: bytes) -> tuple[int, int] | None:
    """Bytes and samples of a frame, by its first four bytes; None if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, rate, kbits = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or rate == 3 or kbits in (0, 15):
        return None
    first = version == 3
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    length = (144 if first else 72) * 1000 * _KBITS[first][kbits] // hertz + (head[2] >> 1 & 1)
    return length, 1152 if first else 576
