"""Uncompressed audio on pipes, where libsndfile cannot seek: WAV and raw samples as they come."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from tokenizer.audio.resampling import check_rate
from tokenizer.errors import InputError

# Bytes read at once, at most.
_READ = 2**16
# The size of a chunk that is not known to end, as ffmpeg writes it to a pipe. Other programs write
# the largest that they know, which is 2^31 for some, less the header.
_ENDLESS = 2**32 - 1
_PROBABLY_ENDLESS = 2**31 - 2**16
_FORMATS = ("s16le", "s24le", "s32le", "f32le")


@dataclass(frozen=True)
class PcmFormat:
    """What raw samples are.

    Attributes:
        sampling_rate: Hz.
        num_channels: C, interleaved.
        encoding: "s16le", "s24le", "s32le" or "f32le", ffmpeg's names.
    """

    sampling_rate: int
    num_channels: int = 1
    encoding: str = "s16le"

    def __post_init__(self) -> None:
        check_rate(self.sampling_rate)
        if not 1 <= self.num_channels <= 1024:
            raise InputError(f"{self.num_channels} channels; expected 1 to 1024.")
        if self.encoding not in _FORMATS:
            raise InputError(f"Unknown encoding {self.encoding!r}; known: {', '.join(_FORMATS)}.")

    @classmethod
    def parse(cls, text: str) -> PcmFormat:
        """Reads ``RATE[:CHANNELS[:ENCODING]]``, such as ``44100:2:s16le``."""
        parts = text.split(":")
        try:
            numbers = [int(part) for part in parts[:2]]
        except ValueError:
            numbers = []
        if not numbers or len(parts) > 3:
            raise InputError(f"{text!r} is not RATE[:CHANNELS[:ENCODING]], e.g. 44100:2:s16le.")
        return cls(*numbers, *parts[2:])  # pyright: ignore[reportArgumentType]

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.num_channels * int(self.encoding[1:3]) // 8

    def samples(self, data: bytes) -> Float32[np.ndarray, "C n"]:
        """Whole frames as floats; full scale is 1."""
        bits = int(self.encoding[1:3])
        if bits == 24:  # The upper three bytes of an int32.
            wide = np.zeros((len(data) // 3, 4), dtype=np.uint8)
            wide[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
            data, bits = wide.tobytes(), 32
        x = np.frombuffer(data, dtype=f"<{self.encoding[0].replace('s', 'i')}{bits // 8}")
        if self.encoding[0] == "s":
            x = x.astype(np.float32) / np.float32(2 ** (bits - 1))
        return np.ascontiguousarray(x.reshape(-1, self.num_channels).T)


class PcmReader:
    """Samples of a binary stream, as they arrive; without ``pcm`` it begins as a WAV file.

    ValueError for other WAV than `PcmFormat` knows, and for a stream that is cut off.
    """

    def __init__(self, stream: Any, pcm: PcmFormat | None = None) -> None:
        # As much as there is, not as much as is asked for: nothing waits in a buffer.
        self._read = getattr(stream, "read1", stream.read)
        self._left: int | None = None  # bytes of the data chunk; None: to the end
        self._exact = False  # whether there must be so many
        self.pcm = self._wav_header() if pcm is None else pcm

    def __iter__(self) -> Iterator[Float32[np.ndarray, "C n"]]:
        size, rest = self.pcm.frame_bytes, b""
        while self._left is None or self._left > 0:
            data = self._read(_READ if self._left is None else min(_READ, self._left))
            if not data:
                if self._left and self._exact:
                    raise InputError(
                        f"The stream ends {self._left:,} bytes before its WAV header says: it is "
                        "cut off. If that is all there is, send raw samples (--raw)."
                    )
                break
            if self._left is not None:
                self._left -= len(data)
            rest += data
            whole = len(rest) // size * size
            if whole:
                yield self.pcm.samples(rest[:whole])
                rest = rest[whole:]

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._read(size - len(data))
            if not more:
                raise InputError(
                    "The stream ends within its WAV header. Raw samples need their format (--raw)."
                )
            data += more
        return data

    def _wav_header(self) -> PcmFormat:
        head = self._take(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            raise InputError(
                f"The stream begins with {head[:4]!r}, not as a WAV file does. Raw samples need "
                "their format (--raw); other files are read to their end first, without --gain."
            )
        pcm = None
        while True:
            name, size = struct.unpack("<4sI", self._take(8))
            if name == b"data":
                break
            body = self._take(size + size % 2)
            if name == b"fmt ":
                pcm = self._wav_format(body)
        if pcm is None:
            raise InputError("The stream's WAV header does not say what its samples are.")
        self._left = None if size in (0, _ENDLESS) else size
        self._exact = size < _PROBABLY_ENDLESS
        return pcm

    @staticmethod
    def _wav_format(body: bytes) -> PcmFormat:
        if len(body) < 16:
            raise InputError("The stream's WAV header is damaged.")
        tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
        if tag == 0xFFFE and len(body) >= 26:  # extensible: the kind stands further on
            (tag,) = struct.unpack("<H", body[24:26])
        kinds = {1: "s", 3: "f"}
        encoding = f"{kinds.get(tag, '?')}{bits}le"
        if encoding not in _FORMATS:
            raise InputError(
                f"WAV of kind {tag} with {bits} bits cannot be read from a pipe; send one of "
                f"{', '.join(_FORMATS)}."
            )
        return PcmFormat(rate, channels, encoding)


class WavPipe:
    """Writes WAV, 16 bits, to a stream that cannot seek; a context manager like `AudioWriter`.

    Its header says that the length is not known, as ffmpeg's does.
    """

    def __init__(self, stream: Any, sampling_rate: int, num_channels: int) -> None:
        self._stream = stream
        self._header = (sampling_rate, num_channels)

    def __enter__(self) -> WavPipe:
        rate, channels = self._header
        form = struct.pack("<HHIIHH", 1, channels, rate, 2 * rate * channels, 2 * channels, 16)
        self._stream.write(
            struct.pack("<4sI4s4sI", b"RIFF", _ENDLESS, b"WAVE", b"fmt ", len(form))
            + form
            + struct.pack("<4sI", b"data", _ENDLESS)
        )
        return self

    def write(self, block: Float32[np.ndarray, "C n"]) -> None:
        """Appends samples, and passes them on at once."""
        top = 2.0**15
        integers = np.clip(np.rint(block.T.astype(np.float64) * top), -top, top - 1)
        self._stream.write(integers.astype("<i2").tobytes())
        self._stream.flush()

    def __exit__(self, *_: object) -> None:
        self._stream.flush()
