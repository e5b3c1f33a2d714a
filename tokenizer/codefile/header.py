"""What a code file says about its codes, and how it is laid out (docs/file-format.md)."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from tokenizer.errors import InputError

FORMAT_VERSION = 1

# What a file may claim. Larger numbers are damage or an attack.
MAX_SAMPLING_RATE = 2**24
MAX_HOP_LENGTH = 2**24
MAX_CHANNELS = 1024
MAX_CODEBOOKS = 1024
MAX_CHUNK_CODES = 2**22  # in all groups, frames and codebooks of one chunk

MAGIC = b"\x89LTK"
PREFIX = struct.Struct("<4sBBH")  # magic, version, entropy, bytes of the header
CRC = struct.Struct("<I")
RECORD = struct.Struct("<BHI")  # kind, frames, bytes of the payload
END = struct.Struct("<BQQ")  # kind, frames, samples
KIND_END, KIND_PACKED, KIND_STATIC = 0, 1, 2
_FIXED = struct.Struct("<IIHHHHHHI")
_ENTROPIES = ("packed", "static")


@runtime_checkable
class Readable(Protocol):
    """A binary stream to read from."""

    def read(self, size: int, /) -> bytes | None:
        """At most ``size`` bytes; none at the end."""
        ...

    def seekable(self) -> bool:
        """Whether `tell` and `seek` work."""
        ...

    def tell(self) -> int:
        """The position."""
        ...

    def seek(self, position: int, /) -> int:
        """Goes to a position that `tell` returned."""
        ...


@runtime_checkable
class Writable(Protocol):
    """A binary stream to write to."""

    def write(self, data: memoryview, /) -> int | None:
        """Writes some bytes and returns how many."""
        ...

    def flush(self) -> None:
        """Passes everything on."""
        ...


Source = str | os.PathLike[str] | Readable
Target = str | os.PathLike[str] | Writable


class CodeFileError(InputError):
    """A code file cannot be read, or what is to be written does not make one."""


@dataclass(frozen=True)
class CodeFileHeader:
    """What a code file says about its codes.

    Attributes:
        model_fingerprint: Of the model whose codes these are: 16 to 64 lower-case hex digits, an
            even number.
        sampling_rate: Hz.
        hop_length: Samples per frame.
        num_channels: Audio channels, C.
        codebook_sizes: Entries of each codebook: 2 to 65,536.
        num_groups: Groups of jointly coded channels; each has its own codes.
        gains: What each channel was divided by, as float32; empty for models that do not normalise.
        entropy: "packed", or "static" for chunks that are range-coded where that is smaller.
        chunk_frames: Frames of each chunk but the last.
        num_frames: Frames of each group. It stands at a file's end: None until it is known.
        num_samples: Samples of each channel; likewise.

    Raises:
        CodeFileError: If a number is not plausible.
    """

    model_fingerprint: str
    sampling_rate: int
    hop_length: int
    num_channels: int
    codebook_sizes: tuple[int, ...]
    num_groups: int = 1
    gains: tuple[float, ...] = ()
    entropy: Literal["packed", "static"] = "packed"
    chunk_frames: int = 1024
    num_frames: int | None = None
    num_samples: int | None = None
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise CodeFileError(f"version={self.version}; this library writes {FORMAT_VERSION}.")
        digits = self.model_fingerprint
        if not 16 <= len(digits) <= 64 or len(digits) % 2 or set(digits) - set("0123456789abcdef"):
            raise CodeFileError(
                f"model_fingerprint={digits[:80]!r} is not an even number of 16 to 64 hex digits."
            )
        if self.entropy not in _ENTROPIES:
            raise CodeFileError(f"entropy={self.entropy!r} is none of {_ENTROPIES}.")
        _check("sampling_rate", self.sampling_rate, 1, MAX_SAMPLING_RATE)
        _check("hop_length", self.hop_length, 1, MAX_HOP_LENGTH)
        _check("num_channels", self.num_channels, 1, MAX_CHANNELS)
        _check("num_groups", self.num_groups, 1, self.num_channels)
        _check("the number of codebooks", len(self.codebook_sizes), 1, MAX_CODEBOOKS)
        for k, size in enumerate(self.codebook_sizes):
            _check(f"codebook_sizes[{k}]", size, 2, 2**16)
        per_frame = self.num_groups * len(self.codebook_sizes)
        longest = min(2**16 - 1, MAX_CHUNK_CODES // per_frame)
        _check(f"chunk_frames (of {per_frame} codes each)", self.chunk_frames, 1, longest)
        if len(self.gains) not in (0, self.num_channels):
            raise CodeFileError(f"{len(self.gains)} gains for {self.num_channels} channels.")
        with np.errstate(over="ignore"):
            gains = np.array(self.gains, dtype=np.float32)
        wrong = ~(np.isfinite(gains) & (gains > 0))
        if wrong.any():
            raise CodeFileError(f"gain {gains[wrong][0]} is not a positive finite float32 number.")
        object.__setattr__(self, "gains", tuple(gains.tolist()))
        if self.num_frames is not None:
            _check("num_frames", self.num_frames, 0, 2**63)
        if self.num_samples is not None:
            # One frame more than they should need, for codecs that lose some at the edges.
            frames = 2**63 if self.num_frames is None else self.num_frames + 1
            _check("num_samples", self.num_samples, 0, frames * self.hop_length)

    @property
    def bitrate(self) -> float:
        """Nominal bit/s of a channel group: what its codes would cost if equally likely."""
        return self.sampling_rate / self.hop_length * sum(math.log2(s) for s in self.codebook_sizes)


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise CodeFileError(f"{name}={value} is not in {low}..{high}.")


def header_bytes(header: CodeFileHeader, checksum: int) -> bytes:
    """The header's bytes, all but their CRC; ``checksum`` is that of the static tables, or 0."""
    fingerprint = bytes.fromhex(header.model_fingerprint)
    sizes, gains = header.codebook_sizes, header.gains
    lengths = len(fingerprint), len(sizes), len(gains)
    counts = header.num_channels, header.num_groups, header.chunk_frames
    body = _FIXED.pack(header.sampling_rate, header.hop_length, *counts, *lengths, checksum)
    body += fingerprint + struct.pack(f"<{len(sizes)}H", *(size - 1 for size in sizes))
    body += struct.pack(f"<{len(gains)}f", *gains)
    size = PREFIX.size + len(body) + CRC.size
    return PREFIX.pack(MAGIC, header.version, _ENTROPIES.index(header.entropy), size) + body


def parse_header(data: bytes) -> tuple[CodeFileHeader, int]:
    """Inverse of `header_bytes`; CodeFileError if the header is not plausible."""
    if len(data) < PREFIX.size + _FIXED.size:
        raise CodeFileError(f"{len(data)} bytes are too few.")
    _, version, entropy, _ = PREFIX.unpack_from(data)
    rate, hop, channels, groups, chunk, digits, books, gains, checksum = _FIXED.unpack_from(
        data, PREFIX.size
    )
    start = PREFIX.size + _FIXED.size
    expected = start + digits + 2 * books + 4 * gains
    if len(data) != expected:
        raise CodeFileError(f"{len(data)} bytes where its contents take {expected}.")
    if entropy >= len(_ENTROPIES) or (checksum and _ENTROPIES[entropy] == "packed"):
        raise CodeFileError(f"entropy={entropy} with table checksum {checksum:#x}.")
    sizes = struct.unpack_from(f"<{books}H", data, start + digits)
    header = CodeFileHeader(
        model_fingerprint=data[start : start + digits].hex(),
        sampling_rate=rate,
        hop_length=hop,
        num_channels=channels,
        codebook_sizes=tuple(size + 1 for size in sizes),
        num_groups=groups,
        gains=struct.unpack_from(f"<{gains}f", data, start + digits + 2 * books),
        entropy=_ENTROPIES[entropy],
        chunk_frames=chunk,
        version=version,
    )
    return header, checksum
